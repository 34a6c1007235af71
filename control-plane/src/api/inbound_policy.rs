//! InboundPolicy: what the workloads behind a Service accept.

use schemars::JsonSchema;
use serde::Deserialize;

use super::TargetRef;

/// What the workloads behind a Service, or behind one of its ports, accept from whoever calls them. It holds at each
/// workload's own port, whichever Service was called; where several Services name the same port of a workload, the oldest policy holds.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InboundPolicySpec {
    /// Services of this namespace, or single ports of them, whose workloads the policy holds for.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
}
