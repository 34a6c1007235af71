//! FaultPolicy: faults made on purpose, to see how callers bear them.

use schemars::JsonSchema;
use serde::Deserialize;

use super::TargetRef;

/// Faults that the proxy of the client makes for an HTTPRoute or GRPCRoute, or for one of its rules by the rule's name.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FaultPolicySpec {
    /// HTTPRoutes and GRPCRoutes of this namespace, or single rules of them, that the policy holds for.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
}
