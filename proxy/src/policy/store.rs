//! Hands policy to workers and asks for what they lack.

use std::sync::Arc;

use super::{Destination, DestinationKey, Inbound};

/// A destination cannot be had: the control plane was never reached, or does not answer in time.
#[derive(Debug, Clone, thiserror::Error)]
#[error("destination {0} could not be discovered")]
pub struct Unavailable(pub String);

/// The policy in force, shared by workers (readers) and the control runtime (writer).
pub struct Store {
    // policy: ArcSwap<Snapshot>, a channel that asks for destinations, a watch that tells of news
}

impl Store {
    /// The destination if it is held. No lock, no wait; marks it used.
    pub fn get(&self, _key: &DestinationKey) -> Option<Arc<Destination>> {
        todo!("policy")
    }

    /// The destination, asking the control plane for it and waiting CONNECT_TIMEOUT at most. An address
    /// outside the mesh networks (from settings, once known) is `Target::Outside` without asking.
    pub async fn resolve(&self, _key: &DestinationKey) -> Result<Arc<Destination>, Unavailable> {
        todo!("policy")
    }

    /// The workload's inbound policy; strict until the control plane said otherwise.
    pub fn inbound(&self) -> Arc<Inbound> {
        todo!("policy")
    }
}
