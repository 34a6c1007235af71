//! The metrics page: Prometheus text format 0.0.4, rendered from the registry.

use std::{
    fmt::Write as _,
    sync::atomic::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

use super::recorder::{BUCKETS, Registry, Series, histogram_totals};

/// Content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All series of `registry`, and the registry's own size, sorted by name and labels.
pub fn render(registry: &Registry) -> String {
    let mut page = String::with_capacity(16 * 1024);
    let mut last = String::new();
    registry.visit(|name, help, labels, series| {
        if last != name {
            last.clear();
            last.push_str(name);
            let kind = match series {
                Series::Counter(_) => "counter",
                Series::Gauge(_) => "gauge",
                Series::Histogram(_) => "histogram",
            };
            heading(&mut page, name, help, kind);
        }
        match series {
            Series::Counter(total) => line(&mut page, name, labels, total.0.load(Ordering::Relaxed)),
            Series::Gauge(bits) => line(&mut page, name, labels, f64::from_bits(bits.load(Ordering::Relaxed))),
            Series::Histogram(histogram) => render_histogram(&mut page, name, labels, histogram_totals(histogram)),
        }
    });
    let (count, folded) = registry.size();
    heading(&mut page, "leno_metric_series", Some("Series in the metrics registry."), "gauge");
    line(&mut page, "leno_metric_series", "", count);
    let help = "Registrations folded into overflow series, because the registry was full.";
    heading(&mut page, "leno_metric_series_folded_total", Some(help), "counter");
    line(&mut page, "leno_metric_series_folded_total", "", folded);
    page
}

/// What the operating system knows of this process, under the names every Prometheus client uses.
/// What cannot be read is left out.
pub fn render_process(page: &mut String, started: SystemTime) {
    let mut gauge = |name: &str, help: &str, kind: &str, value: Option<f64>| {
        if let Some(value) = value {
            heading(page, name, Some(help), kind);
            line(page, name, "", value);
        }
    };
    gauge("process_cpu_seconds_total", "User and system CPU time.", "counter", process::cpu_seconds());
    gauge("process_open_fds", "Open file descriptors.", "gauge", process::open_fds());
    gauge("process_max_fds", "Limit of open file descriptors.", "gauge", process::max_fds());
    gauge("process_resident_memory_bytes", "Resident memory.", "gauge", process::resident_bytes());
    gauge("process_threads", "Threads.", "gauge", process::threads());
    let started = started.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
    gauge("process_start_time_seconds", "Start, in seconds since 1970 (UTC).", "gauge", started);
}

/// One gauge that is read where it lives instead of being registered.
pub fn render_gauge(page: &mut String, name: &str, help: &str, value: f64) {
    heading(page, name, Some(help), "gauge");
    line(page, name, "", value);
}

fn heading(page: &mut String, name: &str, help: Option<&str>, kind: &str) {
    if let Some(help) = help {
        page.push_str("# HELP ");
        page.push_str(name);
        page.push(' ');
        escape(help, false, page);
        page.push('\n');
    }
    // Writing to a String cannot fail; so here and below.
    let _ = writeln!(page, "# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(page, "{name} {value}"),
        labels => writeln!(page, "{name}{{{labels}}} {value}"),
    };
}

fn render_histogram(page: &mut String, name: &str, labels: &str, totals: ([u64; BUCKETS.len() + 1], f64)) {
    let (cumulative, sum) = totals;
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, count) in BUCKETS.iter().zip(&cumulative) {
        let _ = writeln!(page, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
    }
    let all = cumulative.last().copied().unwrap_or_default();
    let _ = writeln!(page, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {all}");
    let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
    let _ = writeln!(page, "{name}_sum{open}{labels}{close} {sum}");
    let _ = writeln!(page, "{name}_count{open}{labels}{close} {all}");
}

/// Escapes a label's value: backslash, double quote, line feed.
pub(super) fn escape_label(value: &str, into: &mut String) {
    escape(value, true, into);
}

fn escape(text: &str, quotes: bool, into: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '"' if quotes => into.push_str("\\\""),
            c => into.push(c),
        }
    }
}

/// Readings from `/proc/self`.
mod process {
    use std::fs;

    /// Linux reports CPU time in hundredths of a second to user space on every architecture we build for.
    const TICKS_PER_SECOND: f64 = 100.0;

    pub(super) fn cpu_seconds() -> Option<f64> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the command in parentheses and may hold spaces; utime and stime are 14 and 15.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ').skip(11);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some((user + system) / TICKS_PER_SECOND)
    }

    pub(super) fn open_fds() -> Option<f64> {
        // One less: the directory being read.
        Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
    }

    pub(super) fn max_fds() -> Option<f64> {
        let (soft, _) = crate::config::descriptor_limits()?;
        Some(soft as f64)
    }

    pub(super) fn resident_bytes() -> Option<f64> {
        status_number("VmRSS:").map(|kib| kib * 1024.0)
    }

    pub(super) fn threads() -> Option<f64> {
        status_number("Threads:")
    }

    fn status_number(name: &str) -> Option<f64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use metrics::{Key, Label, Metadata, Recorder as _};

    use super::*;
    use crate::telemetry::recorder::Recorder;

    #[test]
    fn the_page_is_the_text_format() {
        let registry = Arc::new(Registry::default());
        let recorder = Recorder(registry.clone());
        let metadata = Metadata::new("test", metrics::Level::INFO, None);
        recorder.describe_counter("b_total".into(), None, "Line\nbreak \\ \"quoted\".".into());
        let labels = vec![Label::new("path", "a\"b\\c\nd")];
        recorder.register_counter(&Key::from_parts("b_total", labels), &metadata).increment(7);
        recorder.register_gauge(&Key::from_name("a"), &metadata).set(1.5);
        let histogram = Key::from_parts("c_seconds", vec![Label::new("x", "y")]);
        recorder.register_histogram(&histogram, &metadata).record(0.002);

        let page = render(&registry);
        let expected = "# TYPE a gauge\na 1.5\n\
            # HELP b_total Line\\nbreak \\\\ \"quoted\".\n# TYPE b_total counter\n\
            b_total{path=\"a\\\"b\\\\c\\nd\"} 7\n\
            # TYPE c_seconds histogram\nc_seconds_bucket{x=\"y\",le=\"0.0005\"} 0\n\
            c_seconds_bucket{x=\"y\",le=\"0.001\"} 0\nc_seconds_bucket{x=\"y\",le=\"0.0025\"} 1\n";
        assert!(page.starts_with(expected), "{page}");
        assert!(page.contains("c_seconds_bucket{x=\"y\",le=\"+Inf\"} 1\n"), "{page}");
        assert!(page.contains("c_seconds_sum{x=\"y\"} 0.002\nc_seconds_count{x=\"y\"} 1\n"), "{page}");
        assert!(page.ends_with("leno_metric_series 3\n# HELP leno_metric_series_folded_total Registrations folded into overflow series, because the registry was full.\n# TYPE leno_metric_series_folded_total counter\nleno_metric_series_folded_total 0\n"), "{page}");
    }

    #[test]
    fn process_readings_exist() {
        let mut page = String::new();
        render_process(&mut page, SystemTime::now());
        for name in [
            "process_cpu_seconds_total",
            "process_open_fds",
            "process_max_fds",
            "process_resident_memory_bytes",
            "process_threads",
            "process_start_time_seconds",
        ] {
            assert!(page.contains(&format!("\n{name} ")), "{name} in {page}");
        }
    }
}
