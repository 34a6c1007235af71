//! RoutePolicy: what a route, or one of its rules, adds to what Gateway API says.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{DurationText, RouteHedging, RouteRetry, TargetRef};

/// What is added to an HTTPRoute or GRPCRoute, or to one of its rules by the rule's name. What the route says itself holds;
/// the policy says the rest.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoutePolicySpec {
    /// HTTPRoutes and GRPCRoutes of this namespace, or single rules of them, that the policy holds for.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
    /// How long requests may last.
    pub(crate) timeouts: Option<RouteTimeouts>,
    /// What is tried again, and when. Of no effect on rules with a `retry` of their own. Default: only what was provably not
    /// processed, or may be repeated and broke off.
    pub(crate) retry: Option<RouteRetry>,
    /// Requests that are not answered in time are sent to another endpoint, too. Default: never.
    pub(crate) hedging: Option<RouteHedging>,
}

/// How long requests may last. An HTTPRoute's own `timeouts` go before these.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RouteTimeouts {
    /// From the first byte of the request to the last byte of the response, all tries. `0s` switches it off. Default: none.
    #[schemars(example = "10s")]
    pub(crate) request: Option<DurationText>,
    /// One try: until the head of its response. `0s` switches it off; at most `request`. Default: none.
    #[schemars(example = "2s")]
    pub(crate) backend_request: Option<DurationText>,
    /// Without a byte moved either way: 100ms to 24h. Default: that of the backend's policy, or 5m.
    #[schemars(example = "30s")]
    pub(crate) stream_idle: Option<DurationText>,
}
