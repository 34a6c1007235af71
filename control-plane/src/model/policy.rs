//! Policies of ours after the door: validated and defaulted.

use std::{sync::Arc, time::Duration};

use super::{
    Kind, ObjectKey,
    object::{BackendTarget, Header, HttpMatch, SessionPersistence},
    resilience::{BackendLimits, CircuitBreaker, Hedging, RetryBudget, RetryPolicy},
};

mod balancing;

pub use balancing::*;

/// A policy of any kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// RFC 3339 in UTC: of two policies for one place the older is in force. A folder has none.
    pub created: Option<Arc<str>>,
    /// In the policy's own namespace.
    pub targets: Vec<Target>,
    pub spec: PolicySpec,
}

/// What a policy is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub object: ObjectKey,
    /// Name of a Service's port or of a route's rule; None: all of them.
    pub section: Option<Arc<str>>,
}

/// What a policy says, by its kind.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicySpec {
    Backend(BackendPolicy),
    Route(RoutePolicy),
    Inbound(InboundPolicy),
    Fault(FaultPolicy),
    Traffic(TrafficPolicy),
}

/// How a Service's endpoints are called.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BackendPolicy {
    pub connect_timeout: Option<Duration>,
    pub load_balancing: Option<LoadBalancing>,
    pub outlier_detection: Option<OutlierDetection>,
    pub request_timeout: Option<Duration>,
    pub response_timeout: Option<Duration>,
    pub backend_request_timeout: Option<Duration>,
    pub stream_idle: Option<Duration>,
    pub connection_idle: Option<Duration>,
    pub circuit_breaker: Option<CircuitBreaker>,
    pub limits: Option<BackendLimits>,
    pub retry_budget: Option<RetryBudget>,
}

/// What a route or rule adds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoutePolicy {
    /// Some(zero): switched off.
    pub request_timeout: Option<Duration>,
    /// Some(zero): switched off.
    pub response_timeout: Option<Duration>,
    /// Some(zero): switched off.
    pub backend_request_timeout: Option<Duration>,
    pub stream_idle: Option<Duration>,
    pub retry: Option<RetryPolicy>,
    pub hedging: Option<Hedging>,
    pub direct_response: Option<StaticAnswer>,
    pub fallback: Option<Fallback>,
    /// Headers in lower case, by which requests are kept for explanations.
    pub explain_headers: Vec<Arc<str>>,
}

/// An answer that is spelled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticAnswer {
    pub status: u16,
    pub grpc_status: u16,
    pub headers: Vec<Header>,
    pub body: Arc<str>,
}

/// What serves requests whose backend cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    Backend(BackendTarget),
    Answer(StaticAnswer),
}

/// What workloads accept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InboundPolicy {
    pub rate_limits: Vec<RateLimit>,
    /// Answers to admitted requests do not tell of them.
    pub quiet: bool,
    pub concurrency: Option<Concurrency>,
    pub max_connections: Option<u32>,
    /// Bytes of a request's head, and of its body.
    pub max_head: Option<u32>,
    pub max_body: Option<u64>,
}

/// So many requests in so many seconds, and so many at once.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimit {
    pub name: Arc<str>,
    pub requests: u32,
    pub per: u32,
    pub burst: u32,
    /// None: all requests.
    pub matches: Vec<HttpMatch>,
    pub key: Option<RateLimitKey>,
}

/// What a rate limit is counted by.
#[derive(Debug, Clone, PartialEq)]
pub enum RateLimitKey {
    ClientIdentity,
    SourceAddress,
    /// In lower case.
    Header(Arc<str>),
}

/// How many requests a port has at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Concurrency {
    Off,
    Fixed(u32),
    Adaptive { min: u32, max: u32 },
}

/// Gateway API's XBackendTrafficPolicy, as far as it is ours.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrafficPolicy {
    pub retry_budget: Option<RetryBudget>,
    /// Of rules that say nothing of sessions themselves.
    pub session_persistence: Option<SessionPersistence>,
}

/// Faults made on purpose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FaultPolicy {
    pub delay: Option<(FaultCondition, Duration)>,
    pub abort: Option<(FaultCondition, StaticAnswer)>,
}

/// Which requests meet a fault.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultCondition {
    /// Of a million.
    pub share: u32,
    /// Any of them; none: every request.
    pub matches: Vec<HttpMatch>,
}

/// Kinds that a kind of policy can be attached to.
pub(crate) fn target_kinds(policy: Kind) -> &'static [Kind] {
    match policy {
        Kind::BackendPolicy | Kind::InboundPolicy | Kind::BackendTrafficPolicy => &[Kind::Service],
        Kind::RoutePolicy | Kind::FaultPolicy => &[Kind::HttpRoute, Kind::GrpcRoute],
        _ => &[],
    }
}
