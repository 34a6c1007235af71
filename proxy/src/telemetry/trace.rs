//! Spans: one per sampled request and hop, with the ids that the hop sent on in its trace context, exported by
//! OTLP over gRPC from the control runtime.
//!
//! A worker hands over a copy of the request's record and goes on; the span is built and sent elsewhere. The
//! queue is bounded; what does not fit, or what the collector does not take, is dropped and counted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use metrics::Counter;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tonic::transport::{Channel, Endpoint};

use super::{Direction, RequestRecord, access_log::protocol, handles::register_counter};
use crate::{http::trace_context::TraceContext, net::connect::connect_host};

/// Spans that wait to be sent at most; ~1 KiB each.
const QUEUE: usize = 2048;
/// Spans in one export.
const BATCH: usize = 512;
/// How long a span waits for others to be sent with.
const DELAY: Duration = Duration::from_secs(1);
/// The collector's port where none is said, as OpenTelemetry has it.
const OTLP_PORT: u16 = 4317;
/// One export, its retries included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes records of sampled requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    queue: mpsc::Sender<Message>,
    dropped: Counter,
}

#[derive(Debug)]
enum Message {
    Ended(Box<Ended>),
    Flush(oneshot::Sender<()>),
}

/// A sampled request and when it ended.
#[derive(Debug)]
struct Ended {
    record: RequestRecord,
    trace: TraceContext,
    now: SystemTime,
}

/// Who the spans are from: what OpenTelemetry calls the resource.
#[derive(Debug, Clone)]
pub struct Service {
    /// Name of the workload instance.
    pub workload: String,
    /// Its namespace, from its identity; None while it has none.
    pub namespace: Option<String>,
    /// Its service account: what all its replicas have in common.
    pub service_account: Option<String>,
}

impl Tracer {
    /// Starts the exporter on the current runtime. `mark`: SO_MARK of its connections. `service` is asked when there is something to export.
    pub fn start(endpoint: String, mark: Option<u32>, service: impl FnOnce() -> Service + Send + 'static) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let dropped = register_counter("leno_spans_dropped_total", &[], &[]);
        tokio::spawn(export_all(endpoint, mark, service, receiver, dropped.clone()));
        Self { queue, dropped }
    }

    /// The request ended at `now`. Does nothing unless its trace is sampled.
    pub fn ended(&self, record: &RequestRecord, now: SystemTime) {
        let Some(trace) = record.trace.filter(|trace| trace.sampled) else { return };
        let ended = Box::new(Ended { record: record.clone(), trace, now });
        if self.queue.try_send(Message::Ended(ended)).is_err() {
            self.dropped.increment(1);
        }
    }

    /// Sends what waits, for the end of the process.
    pub async fn flush(&self, timeout: Duration) {
        let (done, wait) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // An error means that the exporter is gone: nothing is left to wait for.
                let _ = wait.await;
            }
        };
        // What is not sent by then is lost, as is told by the collector's gap.
        let _ = time::timeout(timeout, flushed).await;
    }
}

async fn export_all(
    endpoint: String,
    mark: Option<u32>,
    service: impl FnOnce() -> Service,
    mut queue: mpsc::Receiver<Message>,
    dropped: Counter,
) {
    // Nothing is set up before there is something to send.
    let Some(mut next) = queue.recv().await else { return };
    let exporter = match exporter(&endpoint, mark, &service()) {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::error!(endpoint, "no spans will be exported: {error:#}");
            return;
        }
    };
    let scope = InstrumentationScope::builder("leno-proxy").with_version(env!("CARGO_PKG_VERSION")).build();
    let mut failing = false;
    loop {
        let (batch, flushed) = gather(next, &mut queue, &scope).await;
        let count = batch.len();
        if count > 0 {
            let result = time::timeout(EXPORT_TIMEOUT, exporter.export(batch)).await;
            let error = match result {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {EXPORT_TIMEOUT:?}")),
            };
            if error.is_some() {
                dropped.increment(count as u64);
            }
            match (&error, failing) {
                (Some(error), false) => tracing::warn!(endpoint, "spans are being dropped: {error}"),
                (None, true) => tracing::info!(endpoint, "spans are being exported again"),
                _ => {}
            }
            failing = error.is_some();
        }
        if let Some(flushed) = flushed {
            // Whoever asked may have given up.
            let _ = flushed.send(());
        }
        match queue.recv().await {
            Some(message) => next = message,
            None => return,
        }
    }
}

/// Spans until there are enough, the first has waited for DELAY, or a flush is asked for.
async fn gather(
    first: Message,
    queue: &mut mpsc::Receiver<Message>,
    scope: &InstrumentationScope,
) -> (Vec<SpanData>, Option<oneshot::Sender<()>>) {
    let deadline = time::Instant::now() + DELAY;
    let mut batch = Vec::new();
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Message::Ended(ended) => batch.push(span(&ended, scope)),
            Message::Flush(done) => return (batch, Some(done)),
        }
        if batch.len() >= BATCH {
            break;
        }
        next = time::timeout_at(deadline, queue.recv()).await.unwrap_or(None);
    }
    (batch, None)
}

fn exporter(endpoint: &str, mark: Option<u32>, service: &Service) -> anyhow::Result<SpanExporter> {
    let mut exporter = SpanExporter::builder()
        .with_tonic()
        .with_channel(channel(endpoint, mark)?)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .context("building the OTLP exporter")?;
    exporter.set_resource(&resource(service));
    Ok(exporter)
}

/// A connection to the collector, made when first used. Ours, for its mark: redirected to ourselves it would make
/// spans of its own.
fn channel(endpoint: &str, mark: Option<u32>) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).context("parsing the endpoint")?;
    let connect = tower::service_fn(move |uri: http::Uri| async move {
        let address = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(OTLP_PORT));
        connect_host(&address, mark).await.map(TokioIo::new)
    });
    Ok(endpoint.timeout(EXPORT_TIMEOUT).connect_with_connector_lazy(connect))
}

/// `service.name` is what replicas share, as the conventions want it; OTEL_SERVICE_NAME and
/// OTEL_RESOURCE_ATTRIBUTES go before what we know.
fn resource(service: &Service) -> Resource {
    let name = service.service_account.as_ref().unwrap_or(&service.workload);
    let mut known = vec![
        KeyValue::new("service.name", name.clone()),
        KeyValue::new("service.instance.id", service.workload.clone()),
    ];
    known.extend(service.namespace.clone().map(|namespace| KeyValue::new("service.namespace", namespace)));
    let detected = Resource::builder().build();
    let is_said = |key: &opentelemetry::Key| {
        detected.get_ref(key).is_some_and(|value| !value.as_str().starts_with("unknown_service"))
    };
    known.retain(|attribute| !is_said(&attribute.key));
    Resource::builder().with_attributes(known).build()
}

/// The span of a request, by the semantic conventions for HTTP spans (1.38) and attributes of our own.
fn span(ended: &Ended, scope: &InstrumentationScope) -> SpanData {
    let Ended { record, trace, now } = ended;
    let trace_id = TraceId::from_bytes(trace.trace_id);
    let is_remote = false;
    let context = SpanContext::new(
        trace_id,
        SpanId::from_bytes(trace.span),
        TraceFlags::SAMPLED,
        is_remote,
        TraceState::default(),
    );
    SpanData {
        span_context: context,
        parent_span_id: trace.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: trace.parent.is_some(),
        span_kind: match record.direction {
            Direction::Inbound => SpanKind::Server,
            Direction::Outbound => SpanKind::Client,
        },
        // No path: names are to be few. The route's name is.
        name: match &record.route {
            Some(origin) => format!("{} {}", record.method, origin.route).into(),
            None => record.method.to_string().into(),
        },
        start_time: now.checked_sub(record.duration).unwrap_or(*now),
        end_time: *now,
        attributes: attributes(record),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: status(record),
        instrumentation_scope: scope.clone(),
    }
}

/// An error if the exchange broke or, seen from where we stand, failed: 5xx for a server, 4xx too for a client.
fn status(record: &RequestRecord) -> Status {
    let least = match record.direction {
        Direction::Inbound => 500,
        Direction::Outbound => 400,
    };
    let failed = record.status.is_none_or(|status| status.as_u16() >= least);
    match record.reason {
        Some(reason) => Status::error(reason.as_str()),
        None if failed || record.grpc_status.is_some_and(|code| code != 0) => Status::error(""),
        None => Status::Unset,
    }
}

fn attributes(record: &RequestRecord) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("http.request.method", record.method.to_string()),
        KeyValue::new("url.path", record.path.clone()),
        KeyValue::new("network.protocol.version", protocol(record.version).trim_start_matches("HTTP/")),
        KeyValue::new("leno.attempts", i64::from(record.attempts)),
    ];
    let mut add = |name: &'static str, value: Option<opentelemetry::Value>| {
        attributes.extend(value.map(|value| KeyValue::new(name, value)));
    };
    let text = |text: &Arc<str>| text.to_string().into();
    add("http.response.status_code", record.status.map(|status| i64::from(status.as_u16()).into()));
    add("rpc.grpc.status_code", record.grpc_status.map(|code| i64::from(code).into()));
    add("server.address", record.authority.as_deref().map(|authority| host(authority).to_owned().into()));
    add("network.peer.address", record.endpoint.map(|endpoint| endpoint.ip().to_string().into()));
    add("network.peer.port", record.endpoint.map(|endpoint| i64::from(endpoint.port()).into()));
    add("error.type", record.reason.map(|reason| reason.as_str().into()));
    add("leno.route", record.route.as_ref().map(|origin| text(&origin.route)));
    add("leno.rule", record.route.as_ref().map(|origin| text(&origin.rule)));
    add("leno.backend", record.backend.as_ref().map(text));
    add("leno.peer", record.peer.as_ref().map(|peer| peer.as_str().to_owned().into()));
    attributes
}

/// An authority without its port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::request;

    const TRACE: TraceContext = TraceContext { trace_id: [1; 16], parent: Some([2; 8]), span: [3; 8], sampled: true };

    fn built(record: RequestRecord) -> SpanData {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        span(&Ended { record, trace: TRACE, now }, &InstrumentationScope::default())
    }

    #[test]
    fn a_span_has_the_ids_that_the_hop_sent_on() {
        let span = built(request());
        assert_eq!(span.span_context.trace_id(), TraceId::from_bytes([1; 16]));
        assert_eq!(span.span_context.span_id(), SpanId::from_bytes([3; 8]));
        assert_eq!(span.parent_span_id, SpanId::from_bytes([2; 8]));
        assert_eq!(span.span_kind, SpanKind::Client);
        assert_eq!(span.end_time.duration_since(span.start_time).unwrap(), Duration::from_millis(3));
        assert_eq!(span.status, Status::Unset);
    }

    #[test]
    fn failures_are_errors_from_where_we_stand() {
        let not_found = RequestRecord { status: Some(http::StatusCode::NOT_FOUND), ..request() };
        assert_ne!(built(not_found.clone()).status, Status::Unset);
        assert_eq!(built(RequestRecord { direction: Direction::Inbound, ..not_found }).status, Status::Unset);
        let broken = RequestRecord { reason: Some(crate::reason::Reason::Reset), ..request() };
        assert_eq!(built(broken).status, Status::error("reset"));
        let grpc = RequestRecord { grpc_status: Some(14), ..request() };
        assert_ne!(built(grpc).status, Status::Unset);
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let (queue, _receiver) = mpsc::channel(1);
        let dropped = Arc::new(crate::telemetry::recorder::Total::default());
        let tracer = Tracer { queue, dropped: Counter::from_arc(dropped.clone()) };
        let record = RequestRecord { trace: Some(TRACE), ..request() };
        for _ in 0..3 {
            tracer.ended(&record, SystemTime::now());
        }
        tracer.ended(
            &RequestRecord { trace: Some(TraceContext { sampled: false, ..TRACE }), ..request() },
            SystemTime::now(),
        );
        assert_eq!(dropped.0.load(std::sync::atomic::Ordering::Relaxed), 2);
    }

    #[test]
    fn hosts() {
        assert_eq!(host("shop:80"), "shop");
        assert_eq!(host("[::1]:80"), "[::1]");
        assert_eq!(host("shop"), "shop");
    }
}
