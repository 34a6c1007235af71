//! What the proxy tells of itself: metrics (handles made when policy is compiled), access log, spans.

pub mod access_log;
pub mod recorder;
pub mod trace;

use std::{sync::Arc, time::Duration};

use leno_proto::spiffe::SpiffeId;

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
    /// Path without the query.
    pub path: String,
    pub authority: Option<String>,
    pub version: http::Version,
    pub status: Option<http::StatusCode>,
    /// From the trailers or, trailers-only, the head.
    pub grpc_status: Option<u16>,
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// `Error::reason()`, if the proxy itself answered or the exchange broke.
    pub reason: Option<&'static str>,
    pub route: Option<crate::policy::RuleOrigin>,
    pub backend: Option<Arc<str>>,
    pub endpoint: Option<std::net::SocketAddr>,
    /// The verified identity on the other side of the mesh connection.
    pub peer: Option<SpiffeId>,
    pub attempts: u32,
    pub trace: Option<crate::http::trace_context::TraceContext>,
}

/// Handles for requests of one (direction, service, route, rule, backend).
#[derive(Clone)]
pub struct RouteMetrics {
    // telemetry
}

impl RouteMetrics {
    /// Outbound: all labels known when policy is compiled.
    pub fn outbound(_service: &str, _route: &str, _rule: &str, _backend: &str) -> Self {
        todo!("telemetry")
    }

    /// Inbound: by workload port.
    pub fn inbound(_port: u16) -> Self {
        todo!("telemetry")
    }

    /// Counts the request, its duration (by status class, gRPC status, reason, whether mTLS) and bytes.
    pub fn record(&self, _record: &RequestRecord) {
        todo!("telemetry")
    }

    /// One retry was made.
    pub fn retried(&self) {
        todo!("telemetry")
    }
}

/// Handles for connections of one (direction, service, route, backend).
#[derive(Clone)]
pub struct ConnectionMetrics {
    // telemetry
}

impl ConnectionMetrics {
    pub fn outbound(_service: &str, _route: &str, _backend: &str) -> Self {
        todo!("telemetry")
    }

    pub fn inbound(_port: u16) -> Self {
        todo!("telemetry")
    }

    pub fn opened(&self) {
        todo!("telemetry")
    }

    /// `reason`: None if it ended well.
    pub fn closed(&self, _reason: Option<&'static str>, _to_server: u64, _to_client: u64, _duration: Duration) {
        todo!("telemetry")
    }
}

/// What all workers share.
pub struct Telemetry {
    // telemetry: access log, tracer, proxy-wide handles
}

impl Telemetry {
    /// A request ended: access log line and span (metrics are recorded by the caller's RouteMetrics).
    pub fn request_ended(&self, _record: &RequestRecord) {
        todo!("telemetry")
    }

    /// A connection or request was refused: `leno_refused_total{direction,reason}` and a rate-limited warning.
    pub fn refused(
        &self,
        _direction: Direction,
        _reason: &'static str,
        _peer: std::net::SocketAddr,
        _detail: &dyn std::fmt::Display,
    ) {
        todo!("telemetry")
    }
}
