//! Hops belong together: what is known of a request that came in is held, by its trace id, for the requests that the
//! application makes to answer it. They inherit its deadline, and whether it is itself a try made again; and that a retry
//! of theirs was in vain is told to the hop before, so that it does not try again what was tried already.
//!
//! Nothing is held of requests without a deadline that came for the first time. Applications must forward `traceparent`;
//! without it each hop stands alone.
//!
//! Bounded in number and time without a list of who was last used: entries live in two maps, the young and the old. When
//! the young is full or has lived for half of HOP_MEMORY it becomes the old one, and what was old is forgotten.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    time::Instant,
};

use parking_lot::Mutex;

use crate::config::limits;

/// As in `traceparent`.
pub type TraceId = [u8; 16];

/// Parts, each with its own lock, so that workers seldom meet.
const SHARDS: usize = 16;

/// What is known of a trace at this proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hop {
    /// Its answer is awaited until then; the latest, if several requests of the trace are being served.
    pub(crate) deadline: Option<Instant>,
    /// Which try of the client it is; 1: the first, 0: unknown.
    pub(crate) attempt: u32,
    /// A request of the trace was tried again from here, and failed all the same.
    pub(crate) in_vain: bool,
    /// Requests being served.
    serving: u32,
}

/// What is held, shared by all workers.
#[derive(Debug)]
pub struct Hops {
    shards: [Mutex<Shard>; SHARDS],
    /// Entries, so that it costs nothing to know there are none.
    held: AtomicUsize,
    /// Requests being served of which nothing is held, counted by the last bits of their trace. What they make others
    /// do is told from nothing else of the trace, and may inherit no other's deadline.
    plain: Box<[AtomicU32]>,
}

/// Counters of [`Hops::plain`]: two traces that share one only inherit nothing.
const PLAIN: usize = 4096;

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<TraceId, Hop>,
    old: HashMap<TraceId, Hop>,
    /// When the young map was begun; None: never.
    begun: Option<Instant>,
}

impl Default for Hops {
    fn default() -> Self {
        let plain = std::iter::repeat_with(AtomicU32::default).take(PLAIN).collect();
        Self { shards: Default::default(), held: AtomicUsize::new(0), plain }
    }
}

impl Hops {
    /// A request of the trace came in. True: it is held, and [`Self::end`] must follow.
    pub(crate) fn begin(&self, trace: TraceId, deadline: Option<Instant>, attempt: u32, now: Instant) -> bool {
        if deadline.is_none() && attempt <= 1 && self.is_empty() {
            return false;
        }
        self.with(trace, now, |shard| {
            let held = shard.take(&trace);
            if held.is_none() && deadline.is_none() && attempt <= 1 {
                return false;
            }
            let mut hop = held.unwrap_or_default();
            // The most patient and least repeated of those under way: none is to suffer for another.
            hop.deadline = if hop.serving == 0 { deadline } else { hop.deadline.zip(deadline).map(|(a, b)| a.max(b)) };
            hop.attempt = if hop.serving == 0 { attempt } else { hop.attempt.min(attempt) };
            hop.serving = hop.serving.saturating_add(1);
            shard.put(trace, hop);
            true
        })
    }

    /// A request of the trace is served, and [`Self::begin`] holds nothing of it. [`Self::end_plain`] must follow.
    pub(crate) fn begin_plain(&self, trace: TraceId) {
        if let Some(count) = self.plain_of(trace) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// See [`Self::begin_plain`].
    pub(crate) fn end_plain(&self, trace: TraceId) {
        if let Some(count) = self.plain_of(trace) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn plain_of(&self, [.., before, last]: TraceId) -> Option<&AtomicU32> {
        self.plain.get(usize::from(u16::from_be_bytes([before, last])) % PLAIN)
    }

    /// What requests of the trace inherit; nothing, while a request is served that nothing is held of.
    pub(crate) fn inherited(&self, trace: TraceId, now: Instant) -> Option<Hop> {
        if self.is_empty() || self.plain_of(trace).is_some_and(|count| count.load(Ordering::Relaxed) > 0) {
            return None;
        }
        self.with(trace, now, |shard| shard.get(&trace)).filter(|hop| hop.serving > 0)
    }

    /// A request of the trace was tried again from here, and failed all the same.
    pub(crate) fn mark_in_vain(&self, trace: TraceId, now: Instant) {
        self.with(trace, now, |shard| {
            let hop = Hop { in_vain: true, ..shard.take(&trace).unwrap_or_default() };
            shard.put(trace, hop);
        });
    }

    /// Whether that was so; it is told once, with the answer to what came in.
    pub(crate) fn take_in_vain(&self, trace: TraceId, now: Instant) -> bool {
        if self.is_empty() {
            return false;
        }
        self.with(trace, now, |shard| {
            let Some(hop) = shard.take(&trace) else { return false };
            if hop.serving > 0 {
                shard.put(trace, Hop { in_vain: false, ..hop });
            }
            hop.in_vain
        })
    }

    /// A request of the trace was answered.
    pub(crate) fn end(&self, trace: TraceId, now: Instant) {
        self.with(trace, now, |shard| {
            let Some(mut hop) = shard.take(&trace) else { return };
            hop.serving = hop.serving.saturating_sub(1);
            if hop.serving > 0 || hop.in_vain {
                shard.put(trace, hop);
            }
        });
    }

    fn is_empty(&self) -> bool {
        self.held.load(Ordering::Relaxed) == 0
    }

    fn with<T>(&self, trace: TraceId, now: Instant, change: impl FnOnce(&mut Shard) -> T) -> T {
        // Ids are random (Trace Context 3.2.2.3), their last bytes at least.
        let [.., last] = trace;
        let [first, rest @ ..] = &self.shards;
        let index = usize::from(last) % SHARDS;
        let mut shard = index.checked_sub(1).and_then(|index| rest.get(index)).unwrap_or(first).lock();
        let before = shard.len();
        shard.turn(now);
        let result = change(&mut shard);
        let after = shard.len();
        if after > before {
            self.held.fetch_add(after - before, Ordering::Relaxed);
        } else if after < before {
            self.held.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }
}

impl Shard {
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Forgets what is too old, or too much.
    fn turn(&mut self, now: Instant) {
        let begun = *self.begun.get_or_insert(now);
        let age = now.saturating_duration_since(begun);
        let full = self.young.len() >= limits::HOPS / SHARDS / 2;
        if full || age >= limits::HOP_MEMORY / 2 {
            // Deadlines are kept while they matter, however far away, as long as there is room.
            let kept = |hop: &Hop| hop.deadline.is_some_and(|deadline| deadline > now) && !full;
            let young = std::mem::take(&mut self.young);
            let stale = age >= limits::HOP_MEMORY;
            let old = std::mem::replace(&mut self.old, young);
            if stale {
                self.old.retain(|_, hop| kept(hop));
            }
            let room = (limits::HOPS / SHARDS / 2).saturating_sub(self.old.len());
            self.old.extend(old.into_iter().filter(|(_, hop)| kept(hop)).take(room));
            self.begun = Some(now);
        }
    }

    fn get(&self, trace: &TraceId) -> Option<Hop> {
        self.young.get(trace).or_else(|| self.old.get(trace)).copied()
    }

    fn take(&mut self, trace: &TraceId) -> Option<Hop> {
        self.young.remove(trace).or_else(|| self.old.remove(trace))
    }

    fn put(&mut self, trace: TraceId, hop: Hop) {
        self.young.insert(trace, hop);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn trace(n: u64) -> TraceId {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&n.to_be_bytes());
        id
    }

    #[test]
    fn nothing_is_inherited_while_a_request_without_a_deadline_is_served() {
        let (hops, start) = (Hops::default(), Instant::now());
        assert!(!hops.begin(trace(1), None, 1, start));
        hops.begin_plain(trace(1));
        assert!(hops.begin(trace(1), Some(after(start, 1)), 2, start));
        assert_eq!(hops.inherited(trace(1), start), None);
        hops.end_plain(trace(1));
        assert_eq!(hops.inherited(trace(1), start).and_then(|hop| hop.deadline), Some(after(start, 1)));
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_plain_is_not_held() {
        let (hops, now) = (Hops::default(), Instant::now());
        assert!(!hops.begin(trace(1), None, 1, now));
        assert!(hops.is_empty());
        assert_eq!(hops.inherited(trace(1), now), None);
        assert!(!hops.take_in_vain(trace(1), now));
    }

    #[test]
    fn deadline_and_attempt_are_inherited_until_the_answer() {
        let (hops, now) = (Hops::default(), Instant::now());
        let deadline = after(now, 2);
        assert!(hops.begin(trace(1), Some(deadline), 2, now));
        let inherited = hops.inherited(trace(1), now).unwrap();
        assert_eq!((inherited.deadline, inherited.attempt), (Some(deadline), 2));
        assert_eq!(hops.inherited(trace(2), now), None);
        hops.end(trace(1), now);
        assert_eq!(hops.inherited(trace(1), now), None);
        assert!(hops.is_empty());
    }

    #[test]
    fn of_several_the_most_patient_counts() {
        let (hops, now) = (Hops::default(), Instant::now());
        hops.begin(trace(1), Some(after(now, 2)), 2, now);
        hops.begin(trace(1), Some(after(now, 5)), 1, now);
        let inherited = hops.inherited(trace(1), now).unwrap();
        assert_eq!((inherited.deadline, inherited.attempt), (Some(after(now, 5)), 1));
        assert!(hops.begin(trace(1), None, 1, now), "it matters here");
        assert_eq!(hops.inherited(trace(1), now).unwrap().deadline, None);
        (0..3).for_each(|_| hops.end(trace(1), now));
        assert!(hops.is_empty());
    }

    #[test]
    fn in_vain_is_told_once_and_not_for_ever() {
        let (hops, now) = (Hops::default(), Instant::now());
        hops.mark_in_vain(trace(1), now);
        assert!(hops.take_in_vain(trace(1), now) && !hops.take_in_vain(trace(1), now));
        hops.mark_in_vain(trace(1), now);
        let late = now + limits::HOP_MEMORY;
        assert!(!hops.take_in_vain(trace(1), late));
        assert!(hops.is_empty());
        // A request that is being served stays what it is.
        hops.begin(trace(1), Some(after(late, 60)), 1, late);
        hops.mark_in_vain(trace(1), late);
        assert!(hops.take_in_vain(trace(1), late));
        assert!(hops.inherited(trace(1), late).is_some());
        assert!(hops.inherited(trace(1), after(late, 50)).is_some(), "as long as its deadline");
        assert!(hops.inherited(trace(1), after(late, 61 + 30)).is_none());
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit(ids in prop::collection::vec(any::<u64>(), 1..50), repeat in 1_u64..100) {
            let (hops, now) = (Hops::default(), Instant::now());
            for (n, id) in ids.iter().enumerate() {
                for more in 0..repeat {
                    hops.begin(trace(id.wrapping_mul(more + 1).wrapping_add(n as u64)), Some(after(now, 3600)), 1, now);
                }
            }
            let held: usize = hops.shards.iter().map(|shard| shard.lock().len()).sum();
            prop_assert!(held <= limits::HOPS);
            prop_assert_eq!(held, hops.held.load(Ordering::Relaxed));
        }
    }
}
