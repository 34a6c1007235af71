//! FaultPolicy: faults made on purpose, to see how callers bear them.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{DurationText, RequestMatch, TargetRef};

/// Faults that the proxy of the client makes for an HTTPRoute or GRPCRoute, or for one of its rules by the rule's name.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FaultPolicySpec {
    /// HTTPRoutes and GRPCRoutes of this namespace, or single rules of them, that the policy holds for: 1 to 16.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
    /// Requests wait before they go on. The wait counts as time that the client waits: against its own deadline and the route's.
    /// Default: none does.
    #[schemars(example = json!({"duration": "500ms", "percentage": 5}))]
    pub(crate) delay: Option<FaultDelay>,
    /// Requests are answered by the proxy, with an error, in place of the application. What is delayed, too, is delayed first.
    /// Default: none is.
    #[schemars(example = json!({"httpStatus": 503, "percentage": 0.5}))]
    pub(crate) abort: Option<FaultAbort>,
}

/// A wait.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FaultDelay {
    /// How long: 1ms to 2m.
    #[schemars(example = "500ms")]
    pub(crate) duration: DurationText,
    /// Share of the requests that match, in percent, to four places: 0 to 100. Default: 100.
    #[schemars(range(min = 0, max = 100), example = 0.5)]
    pub(crate) percentage: Option<f64>,
    /// Requests that it is for: those that any of these matches. At most 16. Default: all.
    #[serde(default)]
    #[schemars(length(max = 16), example = json!([{"path": {"value": "/v2"}, "method": "POST"}]))]
    pub(crate) matches: Vec<RequestMatch>,
}

/// An error. At least one status is required.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FaultAbort {
    /// Status that HTTP clients get, 200 to 599. Default: what comes nearest to `grpcStatus`.
    #[schemars(range(min = 200, max = 599), example = 503)]
    pub(crate) http_status: Option<i64>,
    /// Name of the status that gRPC clients get, in capitals. Default: what gRPC takes `httpStatus` for.
    #[schemars(example = &"UNAVAILABLE")]
    pub(crate) grpc_status: Option<String>,
    /// Share of the requests that match, in percent, to four places: 0 to 100. Default: 100.
    #[schemars(range(min = 0, max = 100), example = 0.5)]
    pub(crate) percentage: Option<f64>,
    /// Requests that it is for: those that any of these matches. At most 16. Default: all.
    #[serde(default)]
    #[schemars(length(max = 16), example = json!([{"path": {"value": "/v2"}, "method": "POST"}]))]
    pub(crate) matches: Vec<RequestMatch>,
}
