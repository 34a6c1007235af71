//! RoutePolicy: what a route, or one of its rules, adds to what Gateway API says.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{DurationText, TargetRef};

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
}
