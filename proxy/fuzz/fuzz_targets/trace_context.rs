//! `traceparent` from anybody: read or not, what goes on is well formed.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use leno_proxy::{http::trace_context::TraceContext, worker::Random};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let name = HeaderName::from_static("traceparent");
    let random = Random::seeded(1);
    let mut headers = HeaderMap::from_iter([(name, value)]);
    let read = TraceContext::read(&headers, &random);
    let joined = TraceContext::join(&mut headers, &random, 0.5);
    if let Some(read) = read {
        assert_eq!((read.trace_id, read.parent, read.sampled), (joined.trace_id, joined.parent, joined.sampled));
    }
    let next = TraceContext::read(&headers, &random).expect("what was written can be read");
    assert_eq!((next.trace_id, next.parent), (joined.trace_id, Some(joined.span)));
});
