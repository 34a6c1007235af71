//! Tries and failures of the last while: a ring of counters, each for a part of the window, without a lock. A counter that
//! is too old is taken for the present part when that is first counted.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Parts that a window is divided into.
const PARTS: u64 = 10;
/// Bits of a counter: which part it is of, failures, tries.
const COUNT_BITS: u32 = 20;
const MOST: u64 = (1 << COUNT_BITS) - 1;

#[derive(Debug, Default)]
pub(super) struct Window([AtomicU64; PARTS as usize]);

impl Window {
    /// Counts a try. `millis`: now.
    pub(super) fn record(&self, window: Duration, millis: u64, failed: bool) {
        let part = part(window, millis);
        let Some(counter) = self.0.get((part % PARTS) as usize) else { return };
        // Never fails: the closure always has a next value.
        let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let (total, failures) = if of(held) == tag(part) { counts(held) } else { (0, 0) };
            if total == MOST {
                return Some(held);
            }
            Some(tag(part) << (2 * COUNT_BITS) | (failures + u64::from(failed)) << COUNT_BITS | (total + 1))
        });
    }

    /// Tries and failures within the window.
    pub(super) fn totals(&self, window: Duration, millis: u64) -> (u64, u64) {
        let now = part(window, millis);
        let mut sum = (0, 0);
        for back in 0..PARTS.min(now + 1) {
            let part = now - back;
            let held = self.0.get((part % PARTS) as usize).map_or(0, |counter| counter.load(Ordering::Relaxed));
            if of(held) == tag(part) {
                let (total, failures) = counts(held);
                sum = (sum.0 + total, sum.1 + failures);
            }
        }
        sum
    }

    pub(super) fn clear(&self) {
        self.0.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}

fn part(window: Duration, millis: u64) -> u64 {
    let length = u64::try_from(window.as_millis()).unwrap_or(u64::MAX) / PARTS;
    millis / length.max(1)
}

/// What a counter remembers of its part; comes again after 16 million parts.
fn tag(part: u64) -> u64 {
    (part + 1) & ((1 << (64 - 2 * COUNT_BITS)) - 1)
}

fn of(held: u64) -> u64 {
    held >> (2 * COUNT_BITS)
}

fn counts(held: u64) -> (u64, u64) {
    (held & MOST, held >> COUNT_BITS & MOST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let window = Window::default();
        window.record(WINDOW, 500, true);
        window.record(WINDOW, 5_000, false);
        assert_eq!(window.totals(WINDOW, 9_999), (2, 1));
        assert_eq!(window.totals(WINDOW, 10_000), (1, 0));
        window.record(WINDOW, 10_001, true);
        assert_eq!(window.totals(WINDOW, 10_002), (2, 1));
        assert_eq!(window.totals(WINDOW, 100_000), (0, 0));
        window.clear();
        assert_eq!(window.totals(WINDOW, 10_002), (0, 0));
    }

    #[test]
    fn a_full_counter_keeps_its_ratio() {
        let window = Window::default();
        (0..MOST + 100).for_each(|n| window.record(WINDOW, 0, n % 2 == 0));
        let (total, failures) = window.totals(WINDOW, 0);
        assert_eq!((total, failures), (MOST, MOST / 2 + 1));
    }

    proptest! {
        /// Against the list of all tries, to the precision of a part.
        #[test]
        fn counts_are_those_of_the_window(
            steps in prop::collection::vec((0_u64..3000, any::<bool>()), 1..200),
        ) {
            let window = Window::default();
            let (mut now, mut all) = (0, Vec::new());
            for (wait, failed) in steps {
                now += wait;
                window.record(WINDOW, now, failed);
                all.push((now, failed));
                let since = (now / 1000).saturating_sub(9) * 1000;
                let within = || all.iter().filter(|(at, _)| *at >= since);
                let expected = (within().count() as u64, within().filter(|(_, failed)| *failed).count() as u64);
                prop_assert_eq!(window.totals(WINDOW, now), expected);
            }
        }
    }
}
