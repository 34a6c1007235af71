//! BackendPolicy: how a Service, or one of its ports, is called.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{BackendLimits, CircuitBreaker, DurationText, LoadBalancing, OutlierDetection, RetryBudget, TargetRef};

/// How the endpoints of a Service, or of one of its ports, are called by every client in the mesh.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendPolicySpec {
    /// Services of this namespace, or single ports of them, that the policy holds for: 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
    /// How an endpoint is chosen. Default: PeakEwma, with the client's own zone first.
    #[schemars(example = json!({"algorithm": "LeastRequest", "slowStart": "30s"}))]
    pub(crate) load_balancing: Option<LoadBalancing>,
    /// When an endpoint that fails gets no more requests. Default: after 5 failures in a row, for 5s at first.
    #[schemars(example = json!({"consecutiveFailures": 10, "baseEjection": "10s"}))]
    pub(crate) outlier_detection: Option<OutlierDetection>,
    /// How long is waited. Default: 2s for a connection, 5m without a byte moved, else any time.
    #[schemars(example = json!({"connect": "500ms", "request": "10s"}))]
    pub(crate) timeouts: Option<BackendTimeouts>,
    /// When the backend is not called at all for a while. Default: never.
    #[schemars(example = json!({"failurePercent": 50, "openTime": "10s"}))]
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
    /// How much of each proxy the backend may take. Default: no limits.
    #[schemars(example = json!({"connections": 100, "requests": 1000}))]
    pub(crate) limits: Option<BackendLimits>,
    /// How much may be tried again. Default: 20 % and 10 per second.
    #[schemars(example = json!({"percent": 10, "minPerSecond": 5}))]
    pub(crate) retry_budget: Option<RetryBudget>,
}

/// How long a client's proxy waits for a backend.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BackendTimeouts {
    /// To make a connection, TLS included: 1ms to 60s. Default: 2s.
    #[schemars(example = "500ms")]
    pub(crate) connect: Option<DurationText>,
    /// All tries of a request, from its first byte to the last of the answer: 1ms to 24h. Routes' own timeouts come first. Default: none.
    #[schemars(example = "10s")]
    pub(crate) request: Option<DurationText>,
    /// All tries of a request, from its first byte to the head of the answer, whose body may take longer: 1ms to 24h; at
    /// most `request`. Routes' own timeouts come first. Default: none.
    #[schemars(example = "5s")]
    pub(crate) response: Option<DurationText>,
    /// One try: until the head of its answer: 1ms to 24h; at most `response` and `request`. Routes' own timeouts come
    /// first. Default: none.
    #[schemars(example = "2s")]
    pub(crate) backend_request: Option<DurationText>,
    /// An exchange without a byte moved either way: 100ms to 24h. Default: 5m.
    #[schemars(example = "30s")]
    pub(crate) stream_idle: Option<DurationText>,
    /// A pooled connection without a request: 100ms to 1h. Default: 1m to endpoints of the mesh, 4s to others.
    #[schemars(example = "30s")]
    pub(crate) connection_idle: Option<DurationText>,
}
