//! Requests in flight, all of them and those that have not been long: a ring of counters by the time of their beginning.
//! When a counter's turn comes again, what it still counts has been there for AGED and is left out. No timer, no lock.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::inbound::rate_limit::bucket::nanos;

const SLOTS: u64 = 8;
const SLOT: Duration = Duration::from_millis(1250);

/// After so long (or an eighth less) a request is not counted among the recent.
pub(super) const AGED: Duration = Duration::from_millis(SLOT.as_millis() as u64 * SLOTS);

#[derive(Debug, Default)]
pub(super) struct InFlight {
    all: AtomicU32,
    recent: AtomicU32,
    /// The turn that is counted (upper half), and how many.
    slots: [AtomicU64; SLOTS as usize],
}

/// Where a request is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    turn: u32,
}

impl InFlight {
    /// Counts a request: where, and how many there are with it, all and recent.
    pub(super) fn enter(&self, now: Instant) -> (Slot, u32, u32) {
        // Turns begin with 1, so that an unused counter is of the past.
        let turn = (nanos(now) / SLOT.as_nanos() as u64) as u32 + 1;
        let mut counted_in = turn;
        let mut left = 0;
        if let Some(slot) = self.slot(turn) {
            let counted = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |counted| {
                let (of, count) = split(counted);
                // A worker may be late by the length of a turn; it counts in the one that is there.
                Some(if of >= turn { join(of, count + 1) } else { join(turn, 1) })
            });
            let (of, count) = split(counted.unwrap_or_default());
            counted_in = of.max(turn);
            left = if of < turn { count } else { 0 };
        }
        let all = self.all.fetch_add(1, Ordering::Relaxed) + 1;
        let recent = self.recent.fetch_add(1, Ordering::Relaxed) + 1;
        if left > 0 {
            self.recent.fetch_sub(left, Ordering::Relaxed);
        }
        (Slot { turn: counted_in }, all, recent.saturating_sub(left))
    }

    /// Undoes [`Self::enter`].
    pub(super) fn leave(&self, Slot { turn }: Slot) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        let Some(slot) = self.slot(turn) else { return };
        let counted = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |counted| {
            let (of, count) = split(counted);
            (of == turn && count > 0).then(|| join(of, count - 1))
        });
        if counted.is_ok() {
            self.recent.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn all(&self) -> u32 {
        self.all.load(Ordering::Relaxed)
    }

    pub(super) fn recent(&self) -> u32 {
        self.recent.load(Ordering::Relaxed)
    }

    fn slot(&self, turn: u32) -> Option<&AtomicU64> {
        self.slots.get((u64::from(turn) % SLOTS) as usize)
    }
}

fn split(counted: u64) -> (u32, u32) {
    ((counted >> 32) as u32, counted as u32)
}

fn join(turn: u32, count: u32) -> u64 {
    u64::from(turn) << 32 | u64::from(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Recent are those younger than AGED, give or take one turn; and in the end nothing is left.
        #[test]
        fn the_recent_are_counted(steps in prop::collection::vec((0_u64..2000, any::<bool>(), any::<usize>()), 1..200)) {
            let in_flight = InFlight::default();
            let mut now = Instant::now() + Duration::from_secs(60);
            let mut held: Vec<(Instant, Slot)> = Vec::new();
            for (wait, enter, which) in steps {
                now += Duration::from_millis(wait);
                if enter || held.is_empty() {
                    let (slot, all, _) = in_flight.enter(now);
                    held.push((now, slot));
                    prop_assert_eq!(all as usize, held.len());
                    let younger = |age: Duration| held.iter().filter(|(at, _)| now - *at < age).count();
                    let recent = in_flight.recent() as usize;
                    prop_assert!(recent >= younger(AGED - SLOT), "{recent} of {}", younger(AGED - SLOT));
                } else {
                    let (_, slot) = held.swap_remove(which % held.len());
                    in_flight.leave(slot);
                }
            }
            held.drain(..).for_each(|(_, slot)| in_flight.leave(slot));
            prop_assert_eq!(in_flight.recent(), 0);
            prop_assert_eq!(in_flight.all.load(Ordering::Relaxed), 0);
        }
    }
}
