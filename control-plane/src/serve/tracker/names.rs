//! Whose name it is: proxies that reconnect, that restart, that bear the name of another, and those that an earlier
//! control plane knew.

use super::*;
use crate::model::Kind;

impl Tracker {
    /// A new stream, under a name that is free, or was this process's, or whose holder is gone: an earlier stream of that name
    /// is told to leave. While another process holds the name it is asked to show that it is there; if it does not in time,
    /// claim again, and say that it is `dead`.
    pub fn claim(&self, opened: &Opened, dead: Option<StreamId>) -> Claim {
        let name = opened.name();
        let mut state = self.state.lock();
        let earlier = state.by_name.get(&name).copied();
        if let Some(holder) = earlier.filter(|earlier| dead != Some(*earlier)).and_then(|id| state.contest(id, opened))
        {
            return Claim::Contested(holder);
        }
        let was_refused = state.duplicates.get(&(name.clone(), opened.instance)).copied();
        if let Some(earlier) = earlier {
            // A restart, unless it is known that there are two.
            let is_other = state.streams.get(&earlier).is_some_and(|r| !r.opened.is_same_process(opened));
            if is_other && was_refused.is_some() {
                state.make_duplicate(earlier);
            } else {
                state.forget(earlier);
            }
        }
        if let Some(refused) = was_refused {
            state.forget(refused);
        }
        state.missing.remove(&name);
        let (id, orders) = state.add(opened.clone(), None);
        state.by_name.insert(name, id);
        drop(state);
        self.roster.send_modify(|n| *n += 1);
        self.bump();
        Claim::Granted(id, orders)
    }

    /// Whether the holder of a contested name has said anything since. None: it is gone.
    pub fn answered(&self, holder: &Holder) -> Option<bool> {
        let state = self.state.lock();
        let record = state.streams.get(&holder.stream).filter(|record| record.vanished.is_none())?;
        Some(record.heard > holder.heard)
    }

    /// A proxy that is not served because another has its name: it may be serving by what it got from an earlier stream.
    /// Returns whether that is news.
    pub fn refused(&self, opened: Opened, now: Instant) -> (StreamId, Orders, bool) {
        let key = (opened.name(), opened.instance);
        let mut state = self.state.lock();
        let known = state.duplicates.get(&key).copied();
        if let Some(known) = known {
            state.forget(known);
        }
        let (id, orders) = state.add(opened, Some(now));
        state.duplicates.insert(key, id);
        state.bound_vanished();
        drop(state);
        self.bump();
        (id, orders, known.is_none())
    }

    /// Proxies that were connected to an earlier control plane: until they are back, or have been away for long, what they
    /// serve is not known.
    pub fn expect(&self, names: impl IntoIterator<Item = Name>, now: Instant) {
        let names = names.into_iter().take(limits::DISCONNECTED);
        self.state.lock().missing = names.map(|n| (format!("{}/{}", n.namespace, n.workload), (n, now))).collect();
        self.bump();
    }

    /// Proxies ("namespace/workload") that vanished, or have not come yet, so many at most: they may be connected to another
    /// replica.
    pub fn lost(&self, most: usize) -> Vec<String> {
        let state = self.state.lock();
        let vanished = state.streams.values().filter(|record| record.vanished.is_some() && !record.duplicate);
        let vanished = vanished.map(|record| &record.name);
        vanished.chain(state.missing.keys()).take(most).cloned().collect()
    }

    /// Those of `names` that are connected here.
    pub fn connected_of(&self, names: &[String]) -> Vec<String> {
        let state = self.state.lock();
        let is_connected = |name: &&String| {
            let record = state.by_name.get(*name).and_then(|id| state.streams.get(id));
            record.is_some_and(|record| record.vanished.is_none())
        };
        names.iter().filter(is_connected).cloned().collect()
    }

    /// They are connected to another replica, which answers for them.
    pub fn found_elsewhere(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for name in names {
            let vanished = state.by_name.get(name).copied();
            let is_lost = |id: &StreamId| state.streams.get(id).is_some_and(|record| record.vanished.is_some());
            if let Some(id) = vanished.filter(is_lost) {
                state.forget(id);
            }
            state.missing.remove(name);
        }
        drop(state);
        self.roster.send_modify(|n| *n += 1);
        self.bump();
    }

    /// Changes whenever [`Self::names`] may.
    pub fn roster(&self) -> watch::Receiver<u64> {
        self.roster.subscribe()
    }

    /// Proxies that are, or may be, serving: what the next control plane must know.
    pub fn names(&self) -> BTreeSet<Name> {
        let state = self.state.lock();
        let known = state.streams.values().map(|record| Name {
            namespace: record.opened.identity.namespace().to_owned(),
            workload: record.opened.workload.clone(),
            has_pod: record.opened.has_pod,
        });
        known.chain(state.missing.values().map(|(name, _)| name.clone())).collect()
    }
}

impl State {
    /// Asks the stream to prove itself, if another process than that of `opened` may be at its other end.
    fn contest(&mut self, stream: StreamId, opened: &Opened) -> Option<Holder> {
        let record = self.streams.get(&stream)?;
        if record.vanished.is_some() || record.opened.is_same_process(opened) {
            return None;
        }
        record.orders.send_modify(|order| order.prove += 1);
        let Opened { identity, address, .. } = &record.opened;
        Some(Holder { stream, identity: identity.clone(), address: *address, heard: record.heard })
    }

    fn make_duplicate(&mut self, id: StreamId) {
        let Some(record) = self.streams.get_mut(&id) else { return };
        record.duplicate = true;
        let key = (record.name.clone(), record.opened.instance);
        if let Some(older) = self.duplicates.insert(key, id).filter(|older| *older != id) {
            self.remove(older);
        }
    }

    /// `refused`: since when.
    fn add(&mut self, opened: Opened, refused: Option<Instant>) -> (StreamId, Orders) {
        self.next += 1;
        let id = StreamId(self.next);
        let (orders, receiver) = watch::channel(Order { prove: 0, ask: 0, compare: self.told.max(1) });
        let record = Record {
            name: opened.name(),
            opened,
            vanished: refused,
            duplicate: refused.is_some(),
            orders,
            heard: 0,
            answered: 0,
            seen: 0,
            subscriptions: 0,
            standings: HashMap::new(),
            resources_sent: 0,
            bytes_sent: 0,
        };
        self.streams.insert(id, record);
        (id, receiver)
    }
}

pub(super) fn duplicate(opened: &Opened) -> String {
    format!(
        "another proxy is connected under this name, so the one at {} gets no policy: give each a --workload of its own \
         (forgotten {} minutes after it last tried)",
        opened.address.ip(),
        limits::DISCONNECTED_KEPT.as_secs() / 60
    )
}

/// Whether a proxy can ever be sent something that is made from `object`. Of other kinds it depends on what they said before.
pub(super) fn could_have(proxy: &Name, object: &ObjectRef) -> bool {
    object.kind != Kind::InboundPolicy.as_str() || object.namespace == proxy.namespace
}

pub(super) fn missing(name: &str) -> Laggard {
    Laggard {
        proxy: name.to_owned(),
        generation: 0,
        reason: "disconnected".to_owned(),
        message: "the proxy has not come back since the control plane started; what it serves is not known".to_owned(),
    }
}
