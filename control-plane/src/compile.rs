//! From world and subscriber to resources: pure, deterministic, and the only place where routing rules are ordered.

use leno_proto::{
    spiffe::SpiffeId,
    v1::{Resource, ResourceName},
};

use crate::model::{Topic, World};

/// Who asks.
#[derive(Debug, Clone)]
pub struct Subscriber {
    pub identity: SpiffeId,
    /// Pod name, within the identity's namespace.
    pub workload: String,
}

/// The resource of that name for that subscriber, and the topics it was made from: recompile when one of them
/// changes. Its `version` is a hash of the body (not of origins), `origins` are filled in. None: it does not exist (a destination that
/// does not exist inside the mesh networks; outside them it is `Outside`).
/// TRUST_BUNDLE is not compiled here (see `authority`).
pub fn compile(_world: &World, _subscriber: &Subscriber, _name: &ResourceName) -> (Option<Resource>, Vec<Topic>) {
    todo!("model")
}
