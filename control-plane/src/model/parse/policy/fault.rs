//! FaultPolicy.

use super::super::Wrong;
use crate::{api::FaultPolicySpec, model::policy::FaultPolicy};

pub(super) fn fault_policy(_raw: &FaultPolicySpec) -> Result<FaultPolicy, Wrong> {
    Ok(FaultPolicy {})
}
