//! RoutePolicy: what a route, or one of its rules, adds to what Gateway API says.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{DurationText, RouteHedging, RouteRetry, StaticAnswer, TargetRef};

/// What is added to an HTTPRoute or GRPCRoute, or to one of its rules by the rule's name. What the route says itself holds;
/// the policy says the rest.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoutePolicySpec {
    /// HTTPRoutes and GRPCRoutes of this namespace, or single rules of them, that the policy holds for: 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
    /// How long requests may last. Default: what the backend's policy says.
    #[schemars(example = json!({"request": "10s", "backendRequest": "2s"}))]
    pub(crate) timeouts: Option<RouteTimeouts>,
    /// What is tried again, and when. Of no effect on rules with a `retry` of their own. Default: only what was provably not
    /// processed, or may be repeated and broke off.
    #[schemars(example = json!({"attempts": 2, "statuses": ["gateway-error", "429"], "backoff": {"base": "50ms"}}))]
    pub(crate) retry: Option<RouteRetry>,
    /// Requests that are not answered in time are sent to another endpoint, too. Default: never.
    #[schemars(example = json!({"percentile": 95, "delay": "20ms"}))]
    pub(crate) hedging: Option<RouteHedging>,
    /// Requests are answered so by the proxy, and go to no backend. A redirect of the route goes before it. Default: none are.
    #[schemars(example = json!({"status": 503, "body": "Closed until six."}))]
    pub(crate) direct_response: Option<StaticAnswer>,
    /// What serves requests whose backend cannot be reached: it has no endpoint, its circuit breaker is open, or no try came as
    /// far as a connection. Default: they fail.
    #[schemars(example = json!({"backendRef": {"name": "shop-static", "port": 80}}))]
    pub(crate) fallback: Option<Fallback>,
    /// Which requests proxies keep for `leno explain`. Default: those that fail, and those that the mesh's settings name.
    #[schemars(example = json!({"headers": ["x-request-id"]}))]
    pub(crate) explain: Option<RouteExplain>,
}

/// Of what requests the decisions are kept, beside those that fail.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RouteExplain {
    /// Requests with one of these headers are kept for ten minutes, as many as there is room for, and found by its value
    /// (`leno explain --header NAME=VALUE`), which whoever may ask the control plane can read. Names in any case; none that is known
    /// to carry secrets, like authorization and cookie. 1 to 4. Default: none.
    #[schemars(length(min = 1, max = 4), example = ["x-request-id"])]
    pub(crate) headers: Option<Vec<String>>,
}

/// Another backend, or an answer: exactly one of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fallback {
    /// A Service that gets the request in place of the backend that was chosen. Default: none.
    #[schemars(example = json!({"name": "shop-static", "port": 80}))]
    pub(crate) backend_ref: Option<BackendRef>,
    /// What is answered. Default: none.
    #[schemars(example = json!({"status": 503, "body": "Closed until six."}))]
    pub(crate) answer: Option<StaticAnswer>,
}

/// A port of a Service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendRef {
    /// Namespace of the Service: 1 to 63 characters. Default: the policy's.
    #[schemars(length(min = 1, max = 63), example = &"static")]
    pub(crate) namespace: Option<String>,
    /// Name of the Service: 1 to 253 characters.
    #[schemars(length(min = 1, max = 253), example = "shop-static")]
    pub(crate) name: String,
    /// Port of the Service: 1 to 65535.
    #[schemars(range(min = 1, max = 65535), example = 80)]
    pub(crate) port: i64,
}

/// How long requests may last. An HTTPRoute's own `timeouts` go before these.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RouteTimeouts {
    /// From the first byte of the request to the last byte of the response, all tries: 0s (no limit) to 24h. Default: none.
    #[schemars(example = "10s")]
    pub(crate) request: Option<DurationText>,
    /// From the first byte of the request to the head of the response, all tries; its body may take longer: 0s (no limit) to 24h;
    /// at most `request`. Default: none.
    #[schemars(example = "5s")]
    pub(crate) response: Option<DurationText>,
    /// One try, until the head of its response: 0s (no limit) to 24h; at most `response` and `request`. Default: none.
    #[schemars(example = "2s")]
    pub(crate) backend_request: Option<DurationText>,
    /// Without a byte moved either way: 100ms to 24h. Default: that of the backend's policy, or 5m.
    #[schemars(example = "30s")]
    pub(crate) stream_idle: Option<DurationText>,
}
