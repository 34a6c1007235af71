//! InboundPolicy.

use super::super::Wrong;
use crate::{api::InboundPolicySpec, model::policy::InboundPolicy};

pub(super) fn inbound_policy(_raw: &InboundPolicySpec) -> Result<InboundPolicy, Wrong> {
    Ok(InboundPolicy {})
}
