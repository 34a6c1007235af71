//! Hands policy to workers and asks for what they lack.
//!
//! Readers (workers) load one immutable [`Snapshot`]; the control runtime ([`super::client`]) is the only
//! writer. A worker that lacks a destination asks through a bounded channel and is answered by name.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use leno_proto::v1;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::{Destination, DestinationKey, Inbound, Settings, Target};
use crate::{
    config::limits,
    inbound::protection::{PortPolicy, Protection},
    upstream::Backend,
};

/// Destinations asked for and not yet looked at by the control runtime.
const ASKS: usize = 1024;

/// A destination cannot be had: the control plane was never reached, does not answer in time, or does not
/// know it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("destination {0} could not be discovered")]
pub struct Unavailable(pub String);

/// The policy in force, shared by workers (readers) and the control runtime (writer).
pub struct Store {
    snapshot: ArcSwap<Snapshot>,
    asks: mpsc::Sender<Ask>,
    /// By the workload's port: those that were called.
    protections: Mutex<HashMap<u16, Arc<Protection>>>,
}

/// A worker's question for a destination that is not held.
pub struct Ask {
    pub key: DestinationKey,
    /// Dropped unanswered when the worker gave up.
    pub reply: oneshot::Sender<Result<Arc<Destination>, Unavailable>>,
}

/// Everything that is held, at one moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// The mesh-wide generation of the last delta.
    pub generation: u64,
    pub destinations: HashMap<DestinationKey, Arc<HeldDestination>, foldhash::fast::RandomState>,
    /// By ENDPOINTS key; each is named by at least one destination.
    pub backends: HashMap<Arc<str>, Arc<Backend>>,
    pub settings: Option<Arc<Settings>>,
    /// None: the control plane has not said; see [`Store::inbound`].
    pub inbound: Option<Arc<Inbound>>,
    /// A trust bundle was received (the credential store has it).
    pub trusted: bool,
    /// What is in force of each resource, for people and for resuming.
    pub provenance: HashMap<v1::ResourceName, Arc<Provenance>>,
}

impl Snapshot {
    /// The generation of an object ("HTTPRoute shop/cart") by which a resource was compiled; 0: it is in none.
    pub fn generation_of(&self, object: &str) -> u64 {
        let origins = self.provenance.values().flat_map(|held| &held.origins);
        let named = |origin: &&v1::ObjectGeneration| {
            let found = origin.object.as_ref();
            found.is_some_and(|found| is_named(found, object))
        };
        origins.filter(named).map(|origin| origin.generation).max().unwrap_or_default()
    }
}

/// Whether it is the object of that text, "HTTPRoute shop/cart" or "Namespace shop".
fn is_named(object: &v1::ObjectRef, text: &str) -> bool {
    let rest = text.strip_prefix(object.kind.as_str()).and_then(|rest| rest.strip_prefix(' '));
    let rest = rest.and_then(|rest| match object.namespace.as_str() {
        "" => Some(rest),
        namespace => rest.strip_prefix(namespace)?.strip_prefix('/'),
    });
    rest == Some(object.name.as_str())
}

/// A destination and whether it is used.
pub struct HeldDestination {
    pub destination: Arc<Destination>,
    /// Set by readers, cleared by the sweep that evicts what is idle. Shared between versions.
    pub used: Arc<AtomicBool>,
}

/// Where a resource in force came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    pub version: String,
    pub origins: Vec<v1::ObjectGeneration>,
}

impl Store {
    /// An empty store, and the questions of its readers.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(ASKS);
        (Arc::new(Self { snapshot: ArcSwap::default(), asks, protections: Mutex::default() }), receiver)
    }

    /// The destination if it is held. No lock, no wait; marks it used.
    pub fn get(&self, key: &DestinationKey) -> Option<Arc<Destination>> {
        let snapshot = self.snapshot.load();
        let held = snapshot.destinations.get(key)?;
        // Read first: a line that all workers share is written once per sweep, not once per request.
        if !held.used.load(Ordering::Relaxed) {
            held.used.store(true, Ordering::Relaxed);
        }
        Some(held.destination.clone())
    }

    /// The destination, asking the control plane for it and waiting CONNECT_TIMEOUT at most. An address
    /// outside the mesh networks (from settings, once known) is `Target::Outside` without asking.
    pub async fn resolve(&self, key: &DestinationKey) -> Result<Arc<Destination>, Unavailable> {
        self.resolve_within(key, limits::CONNECT_TIMEOUT).await
    }

    async fn resolve_within(&self, key: &DestinationKey, wait: Duration) -> Result<Arc<Destination>, Unavailable> {
        if let Some(destination) = self.get(key) {
            return Ok(destination);
        }
        if self.snapshot.load().is_outside(key) {
            return Ok(outside(key));
        }
        let unavailable = || Unavailable(key.to_string());
        let answer = time::timeout(wait, async {
            let (reply, answer) = oneshot::channel();
            self.asks.send(Ask { key: key.clone(), reply }).await.map_err(|_| unavailable())?;
            answer.await.unwrap_or_else(|_| Err(unavailable()))
        });
        answer.await.unwrap_or_else(|_| Err(unavailable()))
    }

    /// The workload's inbound policy; strict until the control plane said otherwise.
    pub fn inbound(&self) -> Arc<Inbound> {
        self.snapshot.load().inbound.clone().unwrap_or_else(|| {
            Arc::new(Inbound { strict: true, mode_origin: None, zone: "".into(), ports: Vec::new() })
        })
    }

    /// Whether settings, trust bundle and inbound policy were received.
    pub fn is_ready(&self) -> bool {
        let snapshot = self.snapshot.load();
        snapshot.settings.is_some() && snapshot.trusted && snapshot.inbound.is_some()
    }

    /// What is held now, whole.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Puts a snapshot in force for every worker. For the one writer alone.
    pub(super) fn swap(&self, next: Snapshot) {
        self.snapshot.store(Arc::new(next));
        let inbound = self.inbound();
        for (port, protection) in self.protections.lock().iter() {
            match inbound.port(*port) {
                Some(known) => protection.set(&known.policy),
                None => protection.set(&PortPolicy::default()),
            }
        }
    }

    /// What protects a port of the workload, under the policy in force from here on. Not for every request: a lock is taken.
    pub fn protection(&self, port: u16) -> Arc<Protection> {
        let mut protections = self.protections.lock();
        if let Some(held) = protections.get(&port) {
            return Arc::clone(held);
        }
        // Under the lock: what is put in force later finds it in the map.
        let inbound = self.inbound();
        let known = inbound.port(port).map(|known| &known.policy);
        let defaults = PortPolicy::default();
        let made = Protection::new(port, known.unwrap_or(&defaults));
        if protections.len() >= limits::APPLICATIONS {
            protections.retain(|_, held| Arc::strong_count(held) > 1);
        }
        // A port that nobody names and that finds no room has the defaults, which do not change.
        if known.is_some() || protections.len() < limits::APPLICATIONS {
            protections.insert(port, Arc::clone(&made));
        }
        made
    }
}

impl Snapshot {
    /// Whether the address is known to be outside the mesh networks. Names, and addresses as long as there are
    /// no settings, are not known to be.
    pub fn is_outside(&self, key: &DestinationKey) -> bool {
        match (key, &self.settings) {
            (DestinationKey::Address(address), Some(settings)) => settings.is_outside(address.ip()),
            _ => false,
        }
    }
}

/// The destination of an address outside the mesh.
pub(super) fn outside(key: &DestinationKey) -> Arc<Destination> {
    Arc::new(Destination { key: key.clone(), target: Target::Outside })
}

#[cfg(test)]
mod tests;
