//! The sections of policies about calls that fail or take long, with their defaults filled in.

use std::time::Duration;

/// A RoutePolicy's `retry`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    pub attempts: u32,
    /// Sorted, each once.
    pub statuses: Vec<u16>,
    /// Sorted, each once.
    pub grpc_codes: Vec<u32>,
    pub connect_failure: bool,
    pub reset: bool,
    pub try_timeout: bool,
    pub any_method: bool,
    pub base: Duration,
    pub max: Duration,
}

/// A RoutePolicy's `hedging`.
#[derive(Debug, Clone, PartialEq)]
pub struct Hedging {
    pub delay: Option<Duration>,
    pub percentile: Option<u32>,
    pub any_method: bool,
}

/// A BackendPolicy's `circuitBreaker`.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitBreaker {
    pub consecutive_failures: Option<u32>,
    pub failure_percent: Option<u32>,
    pub window: Duration,
    pub minimum_volume: u32,
    pub open_time: Duration,
    pub max_open_time: Duration,
    pub probes: u32,
    pub successes: u32,
}

/// A BackendPolicy's `limits`. None: no limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackendLimits {
    pub connections: Option<u32>,
    pub pending_requests: Option<u32>,
    pub requests: Option<u32>,
    pub retries: Option<u32>,
}

/// A BackendPolicy's `retryBudget`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryBudget {
    pub percent: u32,
    pub per_second: u32,
    pub burst: u32,
    /// A retry without budget is answered with 503, as XBackendTrafficPolicy has it (GEP-3388).
    pub answer_unavailable: bool,
    pub sliding: Option<SlidingBudget>,
}

/// An XBackendTrafficPolicy's `retryConstraint`, as it is said there; `per_second` and `burst` are what comes near it.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingBudget {
    /// Retries that there may be in any case, in `interval`.
    pub retries: u32,
    pub interval: Duration,
    /// What `percent` looks back on.
    pub window: Duration,
}
