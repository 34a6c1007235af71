//! The sections of policies about calls that fail or take long: retries, hedging, circuit breaker, limits, retry budget.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::json;

use super::{DurationText, SessionPersistenceSpec, TargetRef};

/// What of a route is tried again, beside what was provably not processed (which always is, within the budget).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RouteRetry {
    /// Tries beyond the first: 0 to 10; 0: none but of what was provably not processed, or may be repeated and broke off.
    /// Default: 2.
    #[schemars(range(min = 0, max = 10), example = 2)]
    pub(crate) attempts: Option<i64>,
    /// HTTP statuses that are tried again: codes from 400 to 599 as text, `5xx`, or `gateway-error` (502, 503, 504).
    /// Never 400, 401, 403 and 404. At most 32. Default: `gateway-error`. An empty list: none.
    #[schemars(length(max = 32), example = ["5xx", "429"])]
    pub(crate) statuses: Option<Vec<StatusText>>,
    /// gRPC codes that are tried again, by name; naming one says that such calls may be repeated. Judged from answers
    /// without messages (trailers-only). Never INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED and UNAUTHENTICATED.
    /// Default: UNAVAILABLE. An empty list: none. At most 16.
    #[schemars(length(max = 16), example = ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])]
    pub(crate) grpc_codes: Option<Vec<String>>,
    /// Failures without an answer that are tried again: `ConnectFailure`, `Reset` (broken off), `TryTimeout`; at most these 3.
    /// Default: all.
    #[schemars(length(max = 3), example = ["ConnectFailure", "TryTimeout"])]
    pub(crate) on: Option<Vec<RetryCause>>,
    /// `Idempotent`: requests with an idempotent method (RFC 9110) or an `Idempotency-Key`. `Any`: all requests; the
    /// servers must bear it. Default: `Idempotent`.
    #[schemars(example = &"Any")]
    pub(crate) methods: Option<Methods>,
    /// The wait before a retry. A server's `Retry-After` is waited for instead if it is longer, and is at most 10s. Default: 25ms
    /// at first, at most 1s.
    #[schemars(example = json!({"base": "50ms", "max": "2s"}))]
    pub(crate) backoff: Option<RetryBackoff>,
}

/// Why a try has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum RetryCause {
    ConnectFailure,
    Reset,
    TryTimeout,
}

/// Which requests may be sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum Methods {
    Idempotent,
    Any,
}

/// Exponential, with full jitter: anything from nothing to `base` doubled with each retry, up to `max`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RetryBackoff {
    /// 1ms to 10s. Default: 25ms.
    #[schemars(example = "25ms")]
    pub(crate) base: Option<DurationText>,
    /// `base` to 10s. Default: 1s, or `base` if that is longer.
    #[schemars(example = "1s")]
    pub(crate) max: Option<DurationText>,
}

/// A request that is not answered in time is sent to another endpoint too: the first good answer wins, the other try is
/// cancelled. Inside the retry budget. Without `delay` and `percentile`: `percentile: 95`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RouteHedging {
    /// How long an answer is waited for: 1ms to 60s. With `percentile`: no less than that. Default: none.
    #[schemars(example = "50ms")]
    pub(crate) delay: Option<DurationText>,
    /// The wait is the latency that this many per cent of the rule's answers stay below, as the proxy has seen it: 50 to 99.
    /// Known after a hundred answers. Default: 95 if `delay` is absent, else none.
    #[schemars(range(min = 50, max = 99), example = 95)]
    pub(crate) percentile: Option<i64>,
    /// As `retry.methods`. gRPC calls are POST requests: they need `Any`. Default: `Idempotent`.
    #[schemars(example = &"Any")]
    pub(crate) methods: Option<Methods>,
}

/// When a backend is not called at all for a while: requests fail at once with 503 (gRPC: UNAVAILABLE), `Retry-After` and the
/// reason `circuit-open`. Counts tries, to whatever endpoint, for each proxy by itself. Without `consecutiveFailures` and
/// `failurePercent`: `failurePercent: 50`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CircuitBreaker {
    /// Failures in a row that open it: 1 to 1000. A failure is a 5xx, UNAVAILABLE, a broken connection or a timeout; not the mesh's `overload`. Default: none.
    #[schemars(range(min = 1, max = 1000), example = 10)]
    pub(crate) consecutive_failures: Option<i64>,
    /// Share of failures within `window` that opens it, in per cent: 1 to 100. Default: none; 50 if `consecutiveFailures` is absent, too.
    #[schemars(range(min = 1, max = 100), example = 50)]
    pub(crate) failure_percent: Option<i64>,
    /// What `failurePercent` looks back on, sliding: 1s to 10m. Default: 10s.
    #[schemars(example = "10s")]
    pub(crate) window: Option<DurationText>,
    /// Tries within `window` below which `failurePercent` says nothing: 1 to 100000. Default: 20.
    #[schemars(range(min = 1, max = 100_000), example = 20)]
    pub(crate) minimum_volume: Option<i64>,
    /// How long it stays open the first time: 10ms to 10m. Each further time in a row twice as long, and up to a quarter more
    /// at random. Default: 5s.
    #[schemars(example = "5s")]
    pub(crate) open_time: Option<DurationText>,
    /// The longest `openTime` grows to: `openTime` to 1h. Default: 1m, or `openTime` if that is longer.
    #[schemars(example = "1m")]
    pub(crate) max_open_time: Option<DurationText>,
    /// Tries let through at a time after that (half-open): 1 to 100. Default: 1.
    #[schemars(range(min = 1, max = 100), example = 1)]
    pub(crate) probes: Option<i64>,
    /// Of those that must succeed, without one that fails, to close it: 1 to 100. Default: 1.
    #[schemars(range(min = 1, max = 100), example = 3)]
    pub(crate) successes_to_close: Option<i64>,
}

/// How much of each proxy the backend may take. Beyond a limit requests fail at once with 503 (gRPC: UNAVAILABLE) and the reason
/// `overload`; the answer's text names the limit. What is absent is not limited.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BackendLimits {
    /// Connections open, idle ones included: 1 to 1000000. Default: no limit.
    #[schemars(range(min = 1, max = 1_000_000), example = 100)]
    pub(crate) connections: Option<i64>,
    /// Requests that wait for a connection: 1 to 1000000. Default: no limit.
    #[schemars(range(min = 1, max = 1_000_000), example = 100)]
    pub(crate) pending_requests: Option<i64>,
    /// Requests in flight, to the last byte of the answer: 1 to 1000000. Default: no limit.
    #[schemars(range(min = 1, max = 1_000_000), example = 1000)]
    pub(crate) requests: Option<i64>,
    /// Requests in flight that are being tried again: 0 to 1000000; beyond it answers are passed on as they are. Default: no limit.
    #[schemars(range(min = 0, max = 1_000_000), example = 10)]
    pub(crate) retries: Option<i64>,
}

/// How much may be tried again, by each proxy and whatever policy asks for it. It is always on.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RetryBudget {
    /// Retries for each hundred requests that are answered well: 0 to 1000. Default: 20.
    #[schemars(range(min = 0, max = 1000), example = 20)]
    pub(crate) percent: Option<i64>,
    /// Retries per second besides: 0 to 1000000. Default: 10.
    #[schemars(range(min = 0, max = 1_000_000), example = 10)]
    pub(crate) min_per_second: Option<i64>,
    /// Retries that may be saved up: 1 to 1000000. Default: 100, or `minPerSecond` if that is more.
    #[schemars(range(min = 1, max = 1_000_000), example = 100)]
    pub(crate) burst: Option<i64>,
}

/// Gateway API's XBackendTrafficPolicy (GEP-3388), as far as it is read.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendTrafficPolicySpec {
    pub(crate) target_refs: Vec<TargetRef>,
    pub(crate) retry_constraint: Option<RetryConstraint>,
    pub(crate) session_persistence: Option<SessionPersistenceSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RetryConstraint {
    pub(crate) budget: Option<ConstraintBudget>,
    pub(crate) min_retry_rate: Option<ConstraintRate>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConstraintBudget {
    pub(crate) percent: Option<i64>,
    pub(crate) interval: Option<DurationText>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConstraintRate {
    pub(crate) count: Option<i64>,
    pub(crate) interval: Option<DurationText>,
}

/// A status or a class of them; a number is taken for its text.
#[derive(Debug, Clone)]
pub(crate) struct StatusText(pub(crate) String);

impl<'de> Deserialize<'de> for StatusText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = StatusText;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a status such as \"503\", 5xx or gateway-error")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusText, E> {
                Ok(StatusText(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, code: u64) -> Result<StatusText, E> {
                Ok(StatusText(code.to_string()))
            }

            fn visit_i64<E: de::Error>(self, code: i64) -> Result<StatusText, E> {
                Ok(StatusText(code.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for StatusText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([45][0-9][0-9]|5xx|gateway-error)$" })
    }
}
