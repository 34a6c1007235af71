//! Bulkheads: how much of this proxy one backend may take. Counted for the whole proxy, and only where a policy sets the
//! limit; what is beyond a limit fails at once, and waits for nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// None: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections open, idle ones included.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests in flight, from the first try to the last byte of the answer.
    pub requests: Option<u32>,
    /// Of them, those that are being tried again.
    pub retries: Option<u32>,
}

impl Limits {
    /// Those that are set.
    pub fn set(&self) -> impl Iterator<Item = (What, u32)> {
        let all = [
            (What::Connection, self.connections),
            (What::Pending, self.pending),
            (What::Request, self.requests),
            (What::Retry, self.retries),
        ];
        all.into_iter().filter_map(|(what, limit)| Some((what, limit?)))
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Connection,
    Pending,
    Request,
    Retry,
}

impl What {
    /// As errors name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connections",
            Self::Pending => "pending requests",
            Self::Request => "requests in flight",
            Self::Retry => "retries in flight",
        }
    }
}

/// A backend's counts, shared by all workers.
#[derive(Debug, Default)]
pub struct Counts {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl Counts {
    fn of(&self, what: What) -> &AtomicU32 {
        match what {
            What::Connection => &self.connections,
            What::Pending => &self.pending,
            What::Request => &self.requests,
            What::Retry => &self.retries,
        }
    }

    /// A place, if there is one below `limit`.
    pub fn take(self: &Arc<Self>, what: What, limit: u32) -> Option<Place> {
        let take = |held: u32| (held < limit).then(|| held + 1);
        self.of(what).fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Place { counts: Arc::clone(self), what, owner: None })
    }

    /// A place for a connection of an owner (the pool of one endpoint), who may always have one: a limit below the number
    /// of endpoints must not starve any (so it is in Envoy).
    pub fn take_of(self: &Arc<Self>, owner: &Arc<AtomicU32>, limit: u32) -> Option<Place> {
        let first = owner.load(Ordering::Relaxed) == 0;
        let mut place = self.take(What::Connection, if first { u32::MAX } else { limit })?;
        owner.fetch_add(1, Ordering::Relaxed);
        place.owner = Some(Arc::clone(owner));
        Some(place)
    }

    /// Places taken.
    pub fn held(&self, what: What) -> u32 {
        self.of(what).load(Ordering::Relaxed)
    }
}

/// A place within a limit, given back when dropped.
#[derive(Debug)]
pub struct Place {
    counts: Arc<Counts>,
    what: What,
    /// Whose connections are counted by themselves, too.
    owner: Option<Arc<AtomicU32>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(owner) = &self.owner {
            owner.fetch_sub(1, Ordering::Relaxed);
        }
        self.counts.of(self.what).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_given_back() {
        let counts = Arc::new(Counts::default());
        let first = counts.take(What::Request, 1);
        assert!(first.is_some() && counts.take(What::Request, 1).is_none());
        assert!(counts.take(What::Retry, 1).is_some(), "each has its own");
        drop(first);
        assert!(counts.take(What::Request, 1).is_some());
        assert!(counts.take(What::Request, 0).is_none());
    }

    #[test]
    fn each_owner_may_have_one() {
        let (counts, pools) = (Arc::new(Counts::default()), [(); 3].map(|()| Arc::new(AtomicU32::new(0))));
        let firsts: Vec<_> = pools.iter().map(|pool| counts.take_of(pool, 2)).collect();
        assert!(firsts.iter().all(Option::is_some), "three endpoints, and a limit of two");
        assert!(pools.iter().all(|pool| counts.take_of(pool, 2).is_none()));
        drop(firsts);
        assert_eq!(counts.held(What::Connection), 0);
        let [one, ..] = &pools;
        let held = [counts.take_of(one, 2), counts.take_of(one, 2), counts.take_of(one, 2)];
        assert_eq!(held.iter().flatten().count(), 2);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit(steps in prop::collection::vec((any::<bool>(), 0_u32..5), 1..100)) {
            let counts = Arc::new(Counts::default());
            let mut held = Vec::new();
            for (take, limit) in steps {
                if take {
                    let before = held.len();
                    held.extend(counts.take(What::Pending, limit));
                    prop_assert_eq!(held.len() > before, before < limit as usize);
                } else {
                    held.pop();
                }
                prop_assert_eq!(counts.held(What::Pending) as usize, held.len());
            }
        }
    }
}
