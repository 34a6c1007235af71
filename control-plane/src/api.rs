//! The kinds of group `leno.dev`, version `v1alpha1`, as their authors write them. Their CRDs are generated from these types
//! ([`crd`]), descriptions included; what they mean once read is in the model.
//!
//! They are direct policies as Gateway API attaches them (GEP-713): `spec.targetRefs` names what they hold for, a policy for a
//! section goes before one for the whole object, and of two for the same place the oldest is in force.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

mod backend_policy;
mod balancing;
pub mod crd;
mod fault_policy;
mod http_match;
mod inbound_policy;
pub mod reference;
mod resilience;
mod route_policy;
mod session_persistence;
mod static_answer;

pub(crate) use backend_policy::*;
pub(crate) use balancing::*;
pub(crate) use fault_policy::*;
pub(crate) use http_match::*;
pub(crate) use inbound_policy::*;
pub(crate) use resilience::*;
pub(crate) use route_policy::*;
pub(crate) use session_persistence::*;
pub(crate) use static_answer::*;

/// API group of our kinds.
pub(crate) const GROUP: &str = "leno.dev";
/// Its version.
pub(crate) const VERSION: &str = "v1alpha1";
/// Most targets of one policy, as Gateway API has it.
pub(crate) const MAX_TARGETS: usize = 16;

/// What a policy holds for: an object of the policy's own namespace, or a section of it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TargetRef {
    /// API group of the target: empty for a Service, `gateway.networking.k8s.io` for a route.
    pub(crate) group: String,
    /// Kind of the target: `Service`, or `HTTPRoute` or `GRPCRoute`, as the policy's kind allows.
    pub(crate) kind: String,
    /// Name of the target, in the policy's namespace: 1 to 253 characters.
    #[schemars(length(min = 1, max = 253))]
    pub(crate) name: String,
    /// Name of a Service's port, or of a route's rule: 1 to 253 characters. Default: the policy holds for all of them, except
    /// those that a policy of their own names.
    #[schemars(length(min = 1, max = 253))]
    pub(crate) section_name: Option<String>,
}

/// A time as Gateway API writes it (GEP-2257): `500ms`, `10s`, `1m30s`.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct DurationText(pub(crate) String);

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
    }
}
