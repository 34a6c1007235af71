//! InboundPolicy: what the workloads behind a Service accept.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{DurationText, RequestMatch, TargetRef};

/// What the workloads behind a Service, or behind one of its ports, accept from whoever calls them. It holds at each
/// workload's own port, whichever Service was called; where several Services name the same port of a workload, the oldest policy holds.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InboundPolicySpec {
    /// Services of this namespace, or single ports of them, whose workloads the policy holds for: 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
    /// How many requests are let in. A request must be admitted by every limit whose `matches` hold for it; if one refuses
    /// it, it takes nothing from the others, and is answered 429 (gRPC: `RESOURCE_EXHAUSTED`). Limits are those of each workload
    /// instance: three instances admit three times as much. At most 16. Default: none.
    #[serde(default)]
    #[schemars(length(max = 16), example = json!([{"name": "per-client", "requests": 100, "per": "1m", "key": {"type": "ClientIdentity"}}]))]
    pub(crate) rate_limits: Vec<RateLimitSpec>,
    /// Whether answers to admitted requests say in `RateLimit` and `RateLimit-Policy` how much is left (answers to refused ones
    /// always do). Default: true.
    #[schemars(example = false)]
    pub(crate) rate_limit_headers: Option<bool>,
    /// How many requests an instance has at a time. Default: `Adaptive` with `min: 100` and `max: 10000`.
    #[schemars(example = json!({"mode": "Fixed", "limit": 64}))]
    pub(crate) concurrency: Option<ConcurrencySpec>,
    /// Connections that an instance's port has at a time, of any protocol: 1 to 1000000. Further ones are closed. Default: no
    /// limit.
    #[schemars(range(min = 1, max = 1_000_000), example = 5000)]
    pub(crate) max_connections: Option<i64>,
    /// How large requests may be. Default: heads up to 64 KiB, bodies of any size.
    #[schemars(example = json!({"headBytes": 16_384, "bodyBytes": 1_048_576}))]
    pub(crate) request_size: Option<RequestSizeSpec>,
}

/// How large requests may be. Larger ones are refused before the application sees them, as far as that can be known: a body
/// whose length is not said in advance is cut off where it becomes too large.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestSizeSpec {
    /// Bytes of the request's target and its header fields, names and values and 32 for each field (as RFC 9113 6.5.2 counts):
    /// 1024 to 65536. Larger ones are answered 431.
    /// Default: 65536.
    #[schemars(range(min = 1024, max = 65_536), example = 16_384)]
    pub(crate) head_bytes: Option<i64>,
    /// Bytes of the request's body: 1 to 1099511627776. Larger ones are answered 413. Of gRPC, all messages of a call
    /// together. Default: no limit.
    #[schemars(range(min = 1, max = 1_099_511_627_776_i64), example = 1_048_576)]
    pub(crate) body_bytes: Option<i64>,
}

/// So many requests in so much time: a token bucket that holds `burst` tokens and gets `requests` in every `per`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RateLimitSpec {
    /// Names the limit in headers, logs and metrics; unique in the policy: 1 to 63 characters.
    #[schemars(length(min = 1, max = 63), example = "per-client")]
    pub(crate) name: String,
    /// How many requests are admitted in `per`, for each key: 1 to 4294967295, and at most 1000000 per second.
    #[schemars(range(min = 1, max = 4_294_967_295_i64), example = 100)]
    pub(crate) requests: i64,
    /// The time for so many requests: whole seconds, 1s to 24h. Default: 1s.
    #[schemars(example = "1m")]
    pub(crate) per: Option<DurationText>,
    /// How many requests are admitted at once after a quiet time: 1 to 4294967295; what was used up must come back within 30 days.
    /// Default: `requests`.
    #[schemars(range(min = 1, max = 4_294_967_295_i64), example = 200)]
    pub(crate) burst: Option<i64>,
    /// Requests that the limit is for: those that one of these holds for. At most 16. Default: all.
    #[serde(default)]
    #[schemars(length(max = 16), example = json!([{"path": {"value": "/v2"}, "method": "POST"}]))]
    pub(crate) matches: Vec<RequestMatch>,
    /// What is counted by itself. Default: all requests together.
    #[schemars(example = json!({"type": "ClientIdentity"}))]
    pub(crate) key: Option<RateLimitKeySpec>,
}

/// What a rate limit is counted by. Up to 16384 keys are counted by themselves, those beyond together.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RateLimitKeySpec {
    /// `ClientIdentity`: the service account that the client's certificate names; clients outside the mesh count together.
    /// `SourceAddress`: the client's IP address, of IPv6 the first 64 bits. `Header`: the value of a header; requests without it
    /// count together. Who may choose the header's value freely is not limited by it alone: add a limit with another key.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["ClientIdentity", "SourceAddress", "Header"]), example = &"ClientIdentity")]
    pub(crate) kind: String,
    /// Name of the header, for `Header`, which needs it: 1 to 256 characters. Default: none.
    #[schemars(length(min = 1, max = 256), example = "x-api-key")]
    pub(crate) header: Option<String>,
}

/// How many requests an instance has at a time, each from its head to the head of its answer. Those beyond are answered 503
/// with `Retry-After` before the application sees them, and the client's proxy tries another instance.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConcurrencySpec {
    /// `Adaptive`: as many as the application answers in not much more than its usual time; nothing is refused while it answers
    /// within twice that time or 20 ms more. `Fixed`: as many as `limit` says. `Off`: any number; it needs quotes,
    /// `"Off"`, which YAML takes for a boolean otherwise. Default: `Adaptive`.
    #[schemars(extend("enum" = ["Adaptive", "Fixed", "Off"]), example = &"Fixed")]
    pub(crate) mode: Option<String>,
    /// For `Fixed`, which needs it: how many, 1 to 1000000. Default: none.
    #[schemars(range(min = 1, max = 1_000_000), example = 64)]
    pub(crate) limit: Option<i64>,
    /// For `Adaptive`: as many are never refused, 1 to 1000000. Default: 100.
    #[schemars(range(min = 1, max = 1_000_000), example = 50)]
    pub(crate) min: Option<i64>,
    /// For `Adaptive`: more are always refused, `min` to 1000000. Default: 10000.
    #[schemars(range(min = 1, max = 1_000_000), example = 1000)]
    pub(crate) max: Option<i64>,
}
