//! BackendPolicy: how a Service, or one of its ports, is called.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{DurationText, LoadBalancing, OutlierDetection, TargetRef};

/// How the endpoints of a Service, or of one of its ports, are called by every client in the mesh.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendPolicySpec {
    /// Services of this namespace, or single ports of them, that the policy holds for.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) target_refs: Vec<TargetRef>,
    /// How an endpoint is chosen.
    pub(crate) load_balancing: Option<LoadBalancing>,
    /// When an endpoint that fails gets no more requests.
    pub(crate) outlier_detection: Option<OutlierDetection>,
    /// How long is waited.
    pub(crate) timeouts: Option<BackendTimeouts>,
}

/// How long a client's proxy waits for a backend.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BackendTimeouts {
    /// To make a connection, TLS included: 1ms to 60s. Default: 2s.
    #[schemars(example = "500ms")]
    pub(crate) connect: Option<DurationText>,
}
