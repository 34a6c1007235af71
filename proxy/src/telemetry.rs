//! What the proxy tells of itself: metrics (handles made when policy is compiled), access log, spans.

pub mod access_log;
pub mod exposition;
mod handles;
pub mod kept;
pub mod lines;
pub mod log;
pub mod recorder;
mod refusals;
pub mod trace;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

#[cfg(test)]
pub(crate) use handles::REASONS;
pub use handles::{ConnectionMetrics, MirrorMetrics, MirrorResult, RouteMetrics};
pub(crate) use handles::{register_counter, register_gauge};

use leno_proto::spiffe::SpiffeId;
use metrics::Label;
use parking_lot::Mutex;

use self::refusals::Refusals;
use crate::reason::Reason;

/// Which side of the workload a request or connection is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Everything that is recorded about one HTTP request, filled in as it goes, recorded once at its end
/// (metrics, access log line, span).
#[derive(Debug, Clone)]
pub struct RequestRecord {
    pub direction: Direction,
    pub method: http::Method,
    /// Path without the query. Only if [`Telemetry::tells_of_requests`], as is the authority.
    pub path: String,
    pub authority: Option<String>,
    pub version: http::Version,
    pub status: Option<http::StatusCode>,
    /// From the trailers or, trailers-only, the head.
    pub grpc_status: Option<u16>,
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// If the proxy itself answered or the exchange broke.
    pub reason: Option<Reason>,
    pub route: Option<crate::policy::RuleOrigin>,
    pub backend: Option<Arc<str>>,
    pub endpoint: Option<SocketAddr>,
    /// The verified identity on the other side of the mesh connection.
    pub peer: Option<SpiffeId>,
    pub attempts: u32,
    pub trace: Option<crate::http::trace_context::TraceContext>,
    /// The policy that made a fault for it on purpose.
    pub fault: Option<Arc<str>>,
    /// Why what was chosen for it gave way to a fallback.
    pub fallback: Option<Reason>,
}

/// Everything that is recorded about one connection of opaque bytes, for its access log line.
#[derive(Debug, Clone)]
pub struct ConnectionRecord {
    pub direction: Direction,
    pub client: SocketAddr,
    /// What the client addressed: a name or an address; inbound: the workload's port.
    pub destination: String,
    /// From the moment it was decided to carry it.
    pub duration: Duration,
    pub bytes_to_server: u64,
    pub bytes_to_client: u64,
    /// What ended it; None: both sides were done.
    pub reason: Option<Reason>,
    pub route: Option<crate::policy::RuleOrigin>,
    pub backend: Option<Arc<str>>,
    pub endpoint: Option<SocketAddr>,
    /// The verified identity on the other side of the mesh connection.
    pub peer: Option<SpiffeId>,
}

impl ConnectionRecord {
    /// A connection that begins.
    pub fn new(direction: Direction, client: SocketAddr, destination: impl ToString) -> Self {
        Self {
            direction,
            client,
            destination: destination.to_string(),
            duration: Duration::ZERO,
            bytes_to_server: 0,
            bytes_to_client: 0,
            reason: None,
            route: None,
            backend: None,
            endpoint: None,
            peer: None,
        }
    }

    /// How it went.
    pub fn ended(&mut self, reason: Option<Reason>, to_server: u64, to_client: u64, duration: Duration) {
        (self.reason, self.duration) = (reason, duration);
        (self.bytes_to_server, self.bytes_to_client) = (to_server, to_client);
    }
}

/// Makes `registry` the process's metrics recorder and says what its metrics mean. Once per process, before
/// any handle is made: handles made earlier count nothing.
pub fn install(registry: &Arc<recorder::Registry>) -> anyhow::Result<()> {
    registry.install().map_err(|_| anyhow::anyhow!("a metrics recorder is installed already"))?;
    handles::describe();
    Ok(())
}

/// Counts panics. Made early, since a panic may come from anywhere.
pub(crate) fn panic_counter() -> metrics::Counter {
    register_counter("leno_panics_total", &[], &[])
}

/// What all workers share. The default keeps neither access log nor spans.
#[derive(Default)]
pub struct Telemetry {
    access_log: Option<access_log::AccessLog>,
    tracer: Option<trace::Tracer>,
    refusals: Mutex<Refusals>,
    /// What was decided over requests, for operators who ask.
    pub kept: kept::Kept,
    /// `leno_build_info`, held so that it stays.
    _build: Option<metrics::Gauge>,
}

impl Telemetry {
    pub fn new(access_log: Option<access_log::AccessLog>, tracer: Option<trace::Tracer>) -> Self {
        let build = register_gauge("leno_build_info", &[Label::new("version", env!("CARGO_PKG_VERSION"))]);
        build.set(1.0);
        Self { access_log, tracer, refusals: Mutex::default(), kept: kept::Kept::default(), _build: Some(build) }
    }

    /// A request ended: access log line and span (metrics are recorded by the caller's RouteMetrics).
    pub fn request_ended(&self, record: &RequestRecord) {
        if !self.tells_of_requests() {
            return;
        }
        let now = SystemTime::now();
        if let Some(access_log) = &self.access_log {
            access_log.request(record, now);
        }
        if let Some(tracer) = &self.tracer {
            tracer.ended(record, now);
        }
    }

    /// Whether anybody reads what [`Self::request_ended`] is told.
    pub fn tells_of_requests(&self) -> bool {
        self.access_log.is_some() || self.tracer.is_some()
    }

    /// Whether anybody reads what [`Self::connection_ended`] is told.
    pub fn has_access_log(&self) -> bool {
        self.access_log.is_some()
    }

    /// A connection of opaque bytes ended: access log line.
    pub fn connection_ended(&self, record: &ConnectionRecord) {
        if let Some(access_log) = &self.access_log {
            access_log.connection(record, SystemTime::now());
        }
    }

    /// Sends spans and writes lines that wait, `timeout` each at most; for the end of the process.
    pub async fn flush(&self, timeout: Duration) {
        if let Some(tracer) = &self.tracer {
            tracer.flush(timeout).await;
        }
        if let Some(access_log) = &self.access_log {
            access_log.flush(timeout);
        }
    }

    /// A connection or request was refused: `leno_refused_total{direction,reason}` and a rate-limited warning.
    /// Refusals are not the request path: a lock is taken.
    pub fn refused(
        &self,
        direction: Direction,
        reason: &'static str,
        peer: SocketAddr,
        detail: &dyn std::fmt::Display,
    ) {
        let direction = direction.as_str();
        // The guard ends before the warning is written: a slow log must not hold up other workers.
        let warn = self.refusals.lock().count(direction, reason, Instant::now());
        if let Some(suppressed) = warn {
            tracing::warn!(%peer, direction, reason, suppressed, "refused: {detail}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that went well.
    pub(super) fn request() -> RequestRecord {
        RequestRecord {
            direction: Direction::Outbound,
            method: http::Method::GET,
            path: "/cart".into(),
            authority: Some("shop".into()),
            version: http::Version::HTTP_11,
            status: Some(http::StatusCode::OK),
            grpc_status: None,
            duration: Duration::from_millis(3),
            request_bytes: 10,
            response_bytes: 20,
            reason: None,
            route: None,
            backend: None,
            endpoint: None,
            peer: None,
            attempts: 1,
            fault: None,
            fallback: None,
            trace: None,
        }
    }
}
