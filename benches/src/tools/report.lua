-- Prints what wrk saw as one line of JSON, in leno-bench's words.
done = function(summary, latency, requests)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   io.write(string.format('{"done":%d,"failed":%d,"seconds":%f,"p50_us":%d,"p99_us":%d,"p999_us":%d}\n',
      summary.requests, failed, summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
