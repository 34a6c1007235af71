//! Requests and failures in a sliding window, counted without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use super::{millis, settings::FailureShare};

const BUCKETS: usize = 10;
/// Bits of each count in a bucket; the rest says which time it is of.
const COUNT_BITS: u32 = 20;
const MOST: u64 = (1 << COUNT_BITS) - 1;
const EPOCH_MASK: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

/// See the module. Empty at first.
#[derive(Debug, Default)]
pub(super) struct Window {
    buckets: [AtomicU64; BUCKETS],
}

/// What a bucket holds: epoch, failures, requests.
fn parts(bucket: u64) -> (u64, u64, u64) {
    (bucket >> (2 * COUNT_BITS), bucket >> COUNT_BITS & MOST, bucket & MOST)
}

/// Tenths of the window, counted from 1 so that an empty bucket is of none of them.
fn epoch(share: &FailureShare, now: Instant) -> u64 {
    let length = u64::try_from(share.window.as_millis()).unwrap_or(u64::MAX) / BUCKETS as u64;
    millis(now) / length.max(1) + 1
}

impl Window {
    /// Counts a result.
    pub(super) fn count(&self, success: bool, share: &FailureShare, now: Instant) {
        let epoch = epoch(share, now);
        let Some(bucket) = self.buckets.get((epoch % BUCKETS as u64) as usize) else { return };
        let epoch = epoch & EPOCH_MASK;
        let counted = |held: u64| {
            let (of, failures, requests) = parts(held);
            let (failures, requests) = if of == epoch { (failures, requests) } else { (0, 0) };
            if requests >= MOST {
                return None;
            }
            Some(epoch << (2 * COUNT_BITS) | (failures + u64::from(!success)) << COUNT_BITS | (requests + 1))
        };
        // Full: it says enough.
        let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Whether too many have failed.
    pub(super) fn is_beyond(&self, share: &FailureShare, now: Instant) -> bool {
        let epoch = epoch(share, now);
        let (mut failures, mut requests) = (0, 0);
        for back in 0..(BUCKETS as u64).min(epoch) {
            let wanted = epoch - back;
            let Some(bucket) = self.buckets.get((wanted % BUCKETS as u64) as usize) else { continue };
            let (of, failed, all) = parts(bucket.load(Ordering::Relaxed));
            if of == wanted & EPOCH_MASK {
                failures += failed;
                requests += all;
            }
        }
        requests >= u64::from(share.least_requests.max(1)) && failures * 100 >= requests * u64::from(share.percent)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SHARE: FailureShare = FailureShare { percent: 50, window: Duration::from_secs(10), least_requests: 10 };

    #[test]
    fn little_says_nothing_and_old_is_forgotten() {
        let (window, now) = (Window::default(), Instant::now() + Duration::from_secs(1));
        (0..9).for_each(|_| window.count(false, &SHARE, now));
        assert!(!window.is_beyond(&SHARE, now), "nine are too few");
        window.count(false, &SHARE, now);
        assert!(window.is_beyond(&SHARE, now));
        (0..11).for_each(|_| window.count(true, &SHARE, now + Duration::from_secs(5)));
        assert!(!window.is_beyond(&SHARE, now + Duration::from_secs(5)), "10 of 21");
        (0..11).for_each(|_| window.count(false, &SHARE, now + Duration::from_secs(9)));
        assert!(window.is_beyond(&SHARE, now + Duration::from_secs(9)));
        assert!(!window.is_beyond(&SHARE, now + Duration::from_secs(30)));
    }

    proptest! {
        /// Against a list of all results: exact up to one tenth of the window.
        #[test]
        fn it_counts_what_a_list_counts(
            steps in proptest::collection::vec((0_u64..3000, any::<bool>()), 1..200), percent in 1_u32..=100,
        ) {
            let share = FailureShare { percent, ..SHARE };
            let window = Window::default();
            let mut now = Instant::now() + Duration::from_secs(1);
            let mut all: Vec<(Instant, bool)> = Vec::new();
            for (wait, success) in steps {
                now += Duration::from_millis(wait);
                window.count(success, &share, now);
                all.push((now, success));
                let since = epoch(&share, now).saturating_sub(BUCKETS as u64);
                let counted: Vec<bool> = all.iter().filter(|(at, _)| epoch(&share, *at) > since).map(|(_, s)| *s).collect();
                let failures = counted.iter().filter(|success| !**success).count();
                let beyond = counted.len() >= 10 && failures * 100 >= counted.len() * percent as usize;
                prop_assert_eq!(window.is_beyond(&share, now), beyond);
            }
        }
    }
}
