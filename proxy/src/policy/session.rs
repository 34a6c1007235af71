//! The proxy's side of a subscription: what is wanted, what the server was told of it, what is idle. Pure: no
//! socket, no clock. What is held is the [`Snapshot`]'s to know; both outlive any one stream.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use leno_proto::v1::{HeldResource, Interest, Open, Rejection, ResourceKind, ResourceName};

use super::{DestinationKey, apply::endpoints_name, store::Snapshot};
use crate::config::limits;

/// First wait before reconnecting.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest wait before reconnecting.
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// Longest key of a resource, in bytes: a host name's 253 and a port, with room.
const KEY_BYTES: usize = 512;

/// What the proxy subscribes to.
pub struct Session {
    /// Named by the configuration: asked for from the start, and never idle.
    pinned: HashSet<DestinationKey>,
    wanted: HashSet<ResourceName>,
    /// What the server knows of `wanted`, on this stream.
    told: HashSet<ResourceName>,
    /// Of destinations that are wanted.
    last_used: HashMap<DestinationKey, Instant>,
    /// Destinations of which no version could be used so far: the next one may be.
    refused: HashSet<DestinationKey>,
}

/// Why a destination is not asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// As many are held or asked for as may be.
    Full,
    /// The control plane's answer is one that cannot be used.
    Refused,
}

impl Session {
    /// Wants what every proxy needs, and `pinned`.
    pub fn new(pinned: impl IntoIterator<Item = DestinationKey>, now: Instant) -> Self {
        let own = [ResourceKind::Settings, ResourceKind::TrustBundle, ResourceKind::Inbound];
        let wanted = own.map(|kind| ResourceName { kind: kind.into(), key: String::new() }).into();
        let mut session = Self {
            pinned: HashSet::new(),
            wanted,
            told: HashSet::new(),
            last_used: HashMap::new(),
            refused: HashSet::new(),
        };
        for key in pinned {
            if session.ask(&key, now).is_ok() {
                session.pinned.insert(key);
            }
        }
        session
    }

    pub fn wants(&self, name: &ResourceName) -> bool {
        self.wanted.contains(name)
    }

    /// How many subscriptions there are.
    pub fn size(&self) -> usize {
        self.wanted.len()
    }

    /// Wants a destination that is not held.
    pub fn ask(&mut self, key: &DestinationKey, now: Instant) -> Result<(), Denied> {
        let name = key.resource();
        if name.key.len() > KEY_BYTES || (self.last_used.len() >= limits::DESTINATIONS && !self.wants(&name)) {
            return Err(Denied::Full);
        }
        self.wanted.insert(name);
        self.last_used.insert(key.clone(), now);
        if self.refused.contains(key) { Err(Denied::Refused) } else { Ok(()) }
    }

    /// No longer wants destinations (and, by [`Self::follow`], what only they needed).
    pub fn forget(&mut self, key: &DestinationKey) {
        self.wanted.remove(&key.resource());
        self.last_used.remove(key);
        self.refused.remove(key);
    }

    /// The first message of a stream: everything wanted, with the versions held.
    pub fn open(&mut self, snapshot: &Snapshot, workload: &str, instance: u64) -> Open {
        self.told = self.wanted.clone();
        let held = |name: &ResourceName| {
            let version = snapshot.provenance.get(name).map(|held| held.version.clone()).unwrap_or_default();
            HeldResource { name: Some(name.clone()), version }
        };
        Open {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: leno_proto::capability::ALL.map(str::to_owned).into(),
            workload: workload.to_owned(),
            instance,
            held: self.wanted.iter().map(held).collect(),
        }
    }

    /// What the server has to be told since it last was.
    pub fn interest(&mut self) -> Option<Interest> {
        let subscribe: Vec<_> = self.wanted.difference(&self.told).cloned().collect();
        let unsubscribe: Vec<_> = self.told.difference(&self.wanted).cloned().collect();
        if subscribe.is_empty() && unsubscribe.is_empty() {
            return None;
        }
        self.told = self.wanted.clone();
        Some(Interest { subscribe, unsubscribe })
    }

    /// A delta is in force as `snapshot`: endpoints are wanted of the backends it names and of no others. A
    /// destination that does not exist is no longer wanted, and is asked for anew when it is next called. Returns
    /// the destinations that cannot be had.
    pub fn follow(
        &mut self,
        snapshot: &Snapshot,
        removed: &[ResourceName],
        rejected: &[Rejection],
    ) -> Vec<DestinationKey> {
        self.wanted.retain(|name| name.kind() != ResourceKind::Endpoints);
        self.wanted.extend(snapshot.backends.keys().map(|key| endpoints_name(key)));
        self.refused.retain(|key| !snapshot.destinations.contains_key(key));
        let destination = |name: &ResourceName| {
            let key = (name.kind() == ResourceKind::Destination).then(|| DestinationKey::from(name.key.as_str()))?;
            (!snapshot.destinations.contains_key(&key)).then_some(key)
        };
        let mut gone: Vec<_> = removed.iter().filter_map(destination).collect();
        for key in &gone {
            self.forget(key);
        }
        let refused = rejected.iter().filter_map(|rejection| destination(rejection.name.as_ref()?));
        for key in refused.filter(|key| self.last_used.contains_key(key)) {
            self.refused.insert(key.clone());
            gone.push(key);
        }
        gone
    }

    /// Destinations to let go: those idle for DESTINATION_IDLE, and the least lately used beyond the limits.
    /// Only while connected: what is let go could not be had back.
    pub fn idle(&mut self, snapshot: &Snapshot, now: Instant) -> Vec<DestinationKey> {
        for (key, held) in &snapshot.destinations {
            if held.used.swap(false, Ordering::Relaxed) {
                self.last_used.insert(key.clone(), now);
            }
        }
        // What is still waited for is not idle.
        let is_answered = |key| snapshot.destinations.contains_key(key) || self.refused.contains(key);
        let mut held: Vec<_> = self
            .last_used
            .iter()
            .filter(|(key, _)| is_answered(key) && !self.pinned.contains(*key))
            .map(|(key, used)| (*used, key.clone()))
            .collect();
        held.sort_unstable_by_key(|(used, _)| *used);
        // Room for what is asked next, so that the limit is not met by refusing it.
        let room = limits::DESTINATIONS - limits::DESTINATIONS / 16;
        let too_many = self.last_used.len().saturating_sub(room).max(self.too_many(snapshot));
        let idle = |used: Instant| now.saturating_duration_since(used) >= limits::DESTINATION_IDLE;
        let let_go = held.into_iter().enumerate().take_while(|(index, (used, _))| *index < too_many || idle(*used));
        let_go.map(|(_, (_, key))| key).collect()
    }

    /// How many destinations stand for the subscriptions beyond SUBSCRIPTIONS, at a guess.
    fn too_many(&self, snapshot: &Snapshot) -> usize {
        let beyond = self.wanted.len().saturating_sub(limits::SUBSCRIPTIONS);
        (beyond * snapshot.destinations.len()).div_ceil(self.wanted.len().max(1))
    }
}

/// The wait after the `failures`-th failure in a row (from 1): exponential, half of it by `chance` (0.0..1.0).
pub fn backoff(failures: u32, chance: f64) -> Duration {
    let longest = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_LAST);
    longest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests;
