//! Metric handles: what policy holds per route and backend, and what the process holds once.
//!
//! Handles of the same labels are shared, so that a policy change that leaves a route in place leaves
//! its counters in place, too. A series is registered when it first counts something: a route that is
//! never called costs no series.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, OnceLock, Weak},
    time::Duration,
};

use leno_proto::grpc;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata};
use parking_lot::Mutex;

use super::{Direction, RequestRecord};
use crate::reason::Reason;

/// Classes of `leno_requests_total`: by status, `none` if there was no status at all, `failed` if the
/// proxy answered or the exchange broke (then the series carries the reason).
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Reasons that one family of handles tells apart; more (there are fewer) are counted as "other".
pub(crate) const REASONS: usize = 32;

/// Handles for requests of one (direction, service, route, rule, backend).
#[derive(Debug, Clone)]
pub struct RouteMetrics(Arc<RouteSeries>);

#[derive(Debug)]
struct RouteSeries {
    labels: Vec<Label>,
    /// By class and whether the peer proved an identity.
    requests: [[OnceLock<Counter>; 2]; CLASSES.len()],
    failures: OnceLock<Box<ByReason>>,
    grpc: OnceLock<Box<[OnceLock<Counter>; grpc::CODES.len()]>>,
    duration: OnceLock<Histogram>,
    request_bytes: OnceLock<Counter>,
    response_bytes: OnceLock<Counter>,
    retries: OnceLock<Counter>,
    fallbacks: OnceLock<Box<ByReason>>,
}

/// Route handles by their labels: those that somebody holds.
static ROUTES: LazyLock<Interned<RouteSeries>> = LazyLock::new(Interned::default);
/// Mirror handles by their labels: those that somebody holds.
static MIRRORS: LazyLock<Interned<MirrorSeries>> = LazyLock::new(Interned::default);
/// Connection handles by their labels: those that somebody holds.
static CONNECTIONS: LazyLock<Interned<ConnectionSeries>> = LazyLock::new(Interned::default);

impl RouteMetrics {
    /// Outbound: all labels known when policy is compiled.
    pub fn outbound(service: &str, route: &str, rule: &str, backend: &str) -> Self {
        Self::of(labels(
            Direction::Outbound,
            [("service", service), ("route", route), ("rule", rule), ("backend", backend)],
        ))
    }

    /// Inbound: by workload port.
    pub fn inbound(port: u16) -> Self {
        Self::of(labels(Direction::Inbound, [("port", port.to_string())]))
    }

    fn of(labels: Vec<Label>) -> Self {
        Self(ROUTES.get(labels, |labels| RouteSeries {
            labels,
            requests: Default::default(),
            failures: OnceLock::new(),
            grpc: OnceLock::new(),
            duration: OnceLock::new(),
            request_bytes: OnceLock::new(),
            response_bytes: OnceLock::new(),
            retries: OnceLock::new(),
            fallbacks: OnceLock::new(),
        }))
    }

    /// Counts the request, its duration (by status class, gRPC status, reason, whether mTLS) and bytes.
    pub fn record(&self, record: &RequestRecord) {
        let series = &*self.0;
        let mtls = record.peer.is_some();
        match record.reason {
            Some(reason) => series.failures.get_or_init(Box::default).count(reason.as_str(), |reason| {
                series.counter("leno_requests_total", &[("class", "failed"), ("reason", reason)])
            }),
            None => series.count(record.status, mtls),
        }
        if let Some(code) = record.grpc_status {
            series.count_grpc(code);
        }
        series
            .duration
            .get_or_init(|| series.histogram("leno_request_duration_seconds"))
            .record(record.duration.as_secs_f64());
        add(&series.request_bytes, record.request_bytes, || series.counter("leno_request_bytes_total", &[]));
        add(&series.response_bytes, record.response_bytes, || series.counter("leno_response_bytes_total", &[]));
    }

    /// A request was not served by this backend, but by a fallback.
    pub fn fell_back(&self, reason: &'static str) {
        let register = |reason| self.0.counter("leno_fallbacks_total", &[("reason", reason)]);
        self.0.fallbacks.get_or_init(Box::default).count(reason, register);
    }

    /// One retry was made.
    pub fn retried(&self) {
        add(&self.0.retries, 1, || self.0.counter("leno_retries_total", &[]));
    }
}

impl RouteSeries {
    fn count(&self, status: Option<http::StatusCode>, mtls: bool) {
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100)).min(CLASSES.len() - 1);
        let name = CLASSES.get(class).copied().unwrap_or("none");
        let register = || {
            let mtls = if mtls { "true" } else { "false" };
            self.counter("leno_requests_total", &[("class", name), ("mtls", mtls)])
        };
        match self.requests.get(class).and_then(|by_mtls| by_mtls.get(usize::from(mtls))) {
            Some(slot) => slot.get_or_init(register).increment(1),
            None => register().increment(1),
        }
    }

    fn count_grpc(&self, code: u16) {
        // Codes that the specification does not know are to be taken for UNKNOWN.
        let code = if usize::from(code) < grpc::CODES.len() { usize::from(code) } else { 2 };
        let register = || {
            let name = grpc::CODES.get(code).copied().unwrap_or("UNKNOWN");
            self.counter("leno_grpc_responses_total", &[("code", name)])
        };
        match self.grpc.get_or_init(Box::default).get(code) {
            Some(slot) => slot.get_or_init(register).increment(1),
            None => register().increment(1),
        }
    }

    fn counter(&self, name: &'static str, more: &[(&'static str, &'static str)]) -> Counter {
        register_counter(name, &self.labels, more)
    }

    fn histogram(&self, name: &'static str) -> Histogram {
        register_histogram(name, &self.labels)
    }
}

/// Handles for what is mirrored by one rule to one backend.
#[derive(Debug, Clone)]
pub struct MirrorMetrics(Arc<MirrorSeries>);

#[derive(Debug)]
struct MirrorSeries {
    labels: Vec<Label>,
    by_result: [OnceLock<Counter>; 5],
}

/// What became of a mirrored request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorResult {
    /// It was answered, whatever the answer.
    Sent,
    /// No connection could be made, or no whole answer came in time.
    Failed,
    /// Too many were under way, or too many bytes held; or the backend's breaker or limits let none be made.
    Overload,
    /// Its body is larger than what is copied.
    TooLarge,
    /// The request itself broke off, or its body was not read to the end.
    Incomplete,
}

impl MirrorResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Overload => "overload",
            Self::TooLarge => "too-large",
            Self::Incomplete => "incomplete",
        }
    }
}

impl MirrorMetrics {
    /// All labels known when policy is compiled.
    pub fn new(service: &str, route: &str, rule: &str, backend: &str) -> Self {
        let labels =
            labels(Direction::Outbound, [("service", service), ("route", route), ("rule", rule), ("backend", backend)]);
        Self(MIRRORS.get(labels, |labels| MirrorSeries { labels, by_result: Default::default() }))
    }

    pub fn count(&self, result: MirrorResult) {
        if let Some(slot) = self.0.by_result.get(result as usize) {
            let more = [("result", result.as_str())];
            add(slot, 1, || register_counter("leno_mirrored_requests_total", &self.0.labels, &more));
        }
    }
}

/// Handles for connections of one (direction, service, route, backend).
#[derive(Debug, Clone)]
pub struct ConnectionMetrics(Arc<ConnectionSeries>);

#[derive(Debug)]
struct ConnectionSeries {
    labels: Vec<Label>,
    handles: OnceLock<ConnectionHandles>,
    failures: OnceLock<Box<ByReason>>,
}

#[derive(Debug)]
struct ConnectionHandles {
    connections: Counter,
    open: Gauge,
    to_server: Counter,
    to_client: Counter,
    duration: Histogram,
}

impl ConnectionMetrics {
    /// Outbound: all labels known when policy is compiled.
    pub fn outbound(service: &str, route: &str, backend: &str) -> Self {
        Self::of(labels(Direction::Outbound, [("service", service), ("route", route), ("backend", backend)]))
    }

    /// Inbound: by workload port.
    pub fn inbound(port: u16) -> Self {
        Self::of(labels(Direction::Inbound, [("port", port.to_string())]))
    }

    fn of(labels: Vec<Label>) -> Self {
        Self(CONNECTIONS.get(labels, |labels| ConnectionSeries {
            labels,
            handles: OnceLock::new(),
            failures: OnceLock::new(),
        }))
    }

    /// A connection was opened. [`Self::closed`] must follow.
    pub fn opened(&self) {
        let handles = self.0.handles();
        handles.connections.increment(1);
        handles.open.increment(1.0);
    }

    /// `reason`: None if it ended well.
    pub fn closed(&self, reason: Option<Reason>, to_server: u64, to_client: u64, duration: Duration) {
        let handles = self.0.handles();
        handles.open.decrement(1.0);
        handles.to_server.increment(to_server);
        handles.to_client.increment(to_client);
        handles.duration.record(duration.as_secs_f64());
        if let Some(reason) = reason {
            let failures = self.0.failures.get_or_init(Box::default);
            let register =
                |reason| register_counter("leno_tcp_connection_failures_total", &self.0.labels, &[("reason", reason)]);
            failures.count(reason.as_str(), register);
        }
    }
}

impl ConnectionSeries {
    fn handles(&self) -> &ConnectionHandles {
        self.handles.get_or_init(|| ConnectionHandles {
            connections: register_counter("leno_tcp_connections_total", &self.labels, &[]),
            open: register_gauge("leno_tcp_open_connections", &self.labels),
            to_server: register_counter("leno_tcp_bytes_total", &self.labels, &[("to", "server")]),
            to_client: register_counter("leno_tcp_bytes_total", &self.labels, &[("to", "client")]),
            duration: register_histogram("leno_tcp_connection_duration_seconds", &self.labels),
        })
    }
}

/// Counters by reason (from a fixed set of names): append-only and without a lock.
#[derive(Debug, Default)]
struct ByReason([OnceLock<(&'static str, Counter)>; REASONS]);

impl ByReason {
    fn count(&self, reason: &'static str, register: impl Fn(&'static str) -> Counter) {
        for slot in &self.0 {
            let (name, counter) = slot.get_or_init(|| (reason, register(reason)));
            if *name == reason {
                return counter.increment(1);
            }
        }
        register("other").increment(1);
    }
}

/// Shared values by labels; a value lives as long as somebody holds it.
#[derive(Debug)]
struct Interned<T> {
    live: Mutex<HashMap<Vec<Label>, Weak<T>>>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { live: Mutex::default() }
    }
}

impl<T> Interned<T> {
    fn get(&self, labels: Vec<Label>, make: impl FnOnce(Vec<Label>) -> T) -> Arc<T> {
        let mut live = self.live.lock();
        if let Some(held) = live.get(&labels).and_then(Weak::upgrade) {
            return held;
        }
        // Growing is the moment to forget the dead: amortised, one look at each per insertion.
        if live.len() == live.capacity() {
            live.retain(|_, value| value.strong_count() > 0);
        }
        let made = Arc::new(make(labels.clone()));
        live.insert(labels, Arc::downgrade(&made));
        made
    }
}

fn labels<V: Into<String>, const N: usize>(direction: Direction, more: [(&'static str, V); N]) -> Vec<Label> {
    let direction = Label::from_static_parts("direction", direction.as_str());
    let more = more.into_iter().map(|(name, value)| Label::new(name, value.into()));
    std::iter::once(direction).chain(more).collect()
}

fn add(slot: &OnceLock<Counter>, value: u64, register: impl FnOnce() -> Counter) {
    if value > 0 {
        slot.get_or_init(register).increment(value);
    }
}

/// Of all handles made here: a label set that no handle holds is gone with its policy. Handles that live as long as the
/// process are never gone.
const METADATA: Metadata<'static> = Metadata::new(super::recorder::POLICY, Level::INFO, None);

fn key(name: &'static str, labels: &[Label], more: &[(&'static str, &'static str)]) -> Key {
    let more = more.iter().map(|(name, value)| Label::from_static_parts(name, value));
    Key::from_parts(name, labels.iter().cloned().chain(more).collect::<Vec<_>>())
}

pub(crate) fn register_counter(name: &'static str, labels: &[Label], more: &[(&'static str, &'static str)]) -> Counter {
    metrics::with_recorder(|recorder| recorder.register_counter(&key(name, labels, more), &METADATA))
}

pub(crate) fn register_gauge(name: &'static str, labels: &[Label]) -> Gauge {
    metrics::with_recorder(|recorder| recorder.register_gauge(&key(name, labels, &[]), &METADATA))
}

fn register_histogram(name: &'static str, labels: &[Label]) -> Histogram {
    metrics::with_recorder(|recorder| recorder.register_histogram(&key(name, labels, &[]), &METADATA))
}

/// Says what each metric means; once, after the recorder was installed.
pub(super) fn describe() {
    let counters = [
        (
            "leno_requests_total",
            "HTTP requests that ended, by class: of the status, or `failed` with a reason if the proxy answered or the exchange broke.",
        ),
        ("leno_grpc_responses_total", "gRPC exchanges that ended with a status, by its code."),
        ("leno_request_bytes_total", "Bytes of HTTP request bodies."),
        ("leno_response_bytes_total", "Bytes of HTTP response bodies."),
        ("leno_retries_total", "Tries beyond a request's first."),
        ("leno_fallbacks_total", "Requests that a fallback served, by why their own backend did not."),
        ("leno_mirrored_requests_total", "Copies of requests to mirrors, by what became of them."),
        ("leno_tcp_connections_total", "TCP connections opened."),
        ("leno_tcp_connection_failures_total", "TCP connections that ended badly, by reason."),
        ("leno_tcp_bytes_total", "Bytes relayed by TCP connections that ended."),
        ("leno_refused_total", "Connections and requests refused by policy or for what they are, by reason."),
        ("leno_panics_total", "Panics caught; each is a bug, of which the log says the place."),
        ("leno_access_log_dropped_total", "Access log lines dropped, because the output was too slow."),
        ("leno_spans_dropped_total", "Spans dropped, because the collector was too slow or away."),
    ];
    let gauges =
        [("leno_tcp_open_connections", "TCP connections open."), ("leno_build_info", "1; the label says the version.")];
    let histograms = [
        ("leno_request_duration_seconds", "From a request's first byte to its response's last."),
        ("leno_tcp_connection_duration_seconds", "From a TCP connection's opening to its end."),
    ];
    metrics::with_recorder(|recorder| {
        counters.into_iter().for_each(|(name, help)| recorder.describe_counter(name.into(), None, help.into()));
        gauges.into_iter().for_each(|(name, help)| recorder.describe_gauge(name.into(), None, help.into()));
        histograms.into_iter().for_each(|(name, help)| recorder.describe_histogram(name.into(), None, help.into()));
    });
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::telemetry::{
        exposition,
        recorder::{Recorder, Registry},
        tests::request,
    };

    #[test]
    fn requests_are_counted_by_class_code_and_reason() {
        let registry = Arc::new(Registry::default());
        metrics::with_local_recorder(&Recorder(registry.clone()), || {
            let route = RouteMetrics::outbound("shop/cart", "HTTPRoute shop/a", "0", "shop/cart:80");
            let ok = request();
            route.record(&ok);
            route.record(&RequestRecord { grpc_status: Some(14), ..ok.clone() });
            route.record(&RequestRecord { status: Some(StatusCode::NOT_FOUND), ..ok.clone() });
            route.record(&RequestRecord { reason: Some(Reason::NoEndpoint), ..ok.clone() });
            route.record(&RequestRecord { status: None, ..ok });
            route.retried();
        });
        let page = exposition::render(&registry);
        let labels = "direction=\"outbound\",@route=\"HTTPRoute shop/a\",rule=\"0\",service=\"shop/cart\"";
        for (name, more, count) in [
            ("leno_requests_total", "class=\"2xx\",@mtls=\"false\",", 2),
            ("leno_requests_total", "class=\"4xx\",@mtls=\"false\",", 1),
            ("leno_requests_total", "class=\"none\",@mtls=\"false\",", 1),
            ("leno_requests_total", "class=\"failed\",@reason=\"no-endpoint\",", 1),
            ("leno_grpc_responses_total", "code=\"UNAVAILABLE\",@", 1),
            ("leno_retries_total", "@", 1),
            ("leno_request_bytes_total", "@", 50),
            ("leno_response_bytes_total", "@", 100),
            ("leno_request_duration_seconds_count", "@", 5),
        ] {
            let (before, after) = more.split_once('@').unwrap();
            let line = format!("{name}{{backend=\"shop/cart:80\",{before}{}}} {count}\n", labels.replace('@', after));
            assert!(page.contains(&line), "{line} in\n{page}");
        }
    }

    #[test]
    fn a_thousand_recompilations_are_the_same_handles() {
        let registry = Arc::new(Registry::default());
        metrics::with_local_recorder(&Recorder(registry.clone()), || {
            let mut held = RouteMetrics::outbound("shop/same", "r", "0", "b");
            for _ in 0..1000 {
                held.record(&request());
                held = RouteMetrics::outbound("shop/same", "r", "0", "b");
            }
        });
        let page = exposition::render(&registry);
        assert!(page.contains("service=\"shop/same\"} 1000\n"), "{page}");
        assert_eq!(registry.size(), (4, 0), "class, duration, bytes in and out");
    }

    #[test]
    fn dead_handles_are_forgotten() {
        let interned = Interned::default();
        let kept = interned.get(vec![Label::new("n", "kept")], |_| ());
        for n in 0..1000 {
            interned.get(vec![Label::new("n", n.to_string())], |_| ());
        }
        assert!(interned.live.lock().len() < 100);
        assert!(Arc::ptr_eq(&kept, &interned.get(vec![Label::new("n", "kept")], |_| ())));
    }

    #[test]
    fn reasons_have_an_end() {
        let names: Vec<&'static str> = (0..40).map(|n| &*Box::leak(format!("r{n}").into_boxed_str())).collect();
        let by_reason = ByReason::default();
        let registered = Mutex::new(Vec::new());
        for name in names.iter().chain(&names) {
            by_reason.count(name, |reason| {
                registered.lock().push(reason);
                Counter::noop()
            });
        }
        let registered = registered.into_inner();
        assert_eq!(registered.iter().filter(|reason| **reason == "other").count(), 2 * (40 - REASONS));
    }

    #[test]
    fn connections_are_counted_open_and_closed() {
        let registry = Arc::new(Registry::default());
        metrics::with_local_recorder(&Recorder(registry.clone()), || {
            let connections = ConnectionMetrics::inbound(6379);
            connections.opened();
            connections.opened();
            connections.closed(Some(Reason::Reset), 10, 20, Duration::from_secs(1));
        });
        let page = exposition::render(&registry);
        for line in [
            "leno_tcp_connections_total{direction=\"inbound\",port=\"6379\"} 2",
            "leno_tcp_open_connections{direction=\"inbound\",port=\"6379\"} 1",
            "leno_tcp_bytes_total{direction=\"inbound\",port=\"6379\",to=\"client\"} 20",
            "leno_tcp_bytes_total{direction=\"inbound\",port=\"6379\",to=\"server\"} 10",
            "leno_tcp_connection_failures_total{direction=\"inbound\",port=\"6379\",reason=\"reset\"} 1",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
    }
}
