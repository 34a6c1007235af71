//! A token bucket as one number, the moment at which it will be full again: the generic cell rate algorithm (GCRA,
//! ITU-T I.371 annex A, "theoretical arrival time"). Pure; times are nanoseconds since some moment of this process.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use leno_proto::rate_limit;

/// Before any moment that is asked about: the first request's is older than the look at it.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
});

/// An instant as buckets count it.
pub fn nanos(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_nanos()).unwrap_or(u64::MAX)
}

/// How fast buckets of one kind fill, and what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds from one token to the next.
    interval: u64,
    /// Nanoseconds in which an empty bucket is full.
    fill: u64,
}

impl Rate {
    /// `requests` tokens in `per` seconds, `burst` of them at once.
    ///
    /// # Errors
    /// If that cannot be kept: the field, and why.
    pub fn new(requests: u32, per: u32, burst: u32) -> Result<Self, (&'static str, String)> {
        let (interval, fill) = rate_limit::rate(requests, per, burst)?;
        Ok(Self { interval, fill })
    }

    /// One token from a bucket that will be full at `full_at`: when it is full then, or how long until there is one.
    pub fn take(&self, full_at: u64, now: u64) -> Result<u64, u64> {
        let full_at = full_at.max(now).saturating_add(self.interval);
        match (full_at - now).checked_sub(self.fill) {
            None | Some(0) => Ok(full_at),
            Some(wait) => Err(wait),
        }
    }

    /// When the bucket will be full if the last token taken is put back.
    pub fn put_back(&self, full_at: u64) -> u64 {
        full_at.saturating_sub(self.interval)
    }

    /// Tokens in the bucket.
    pub fn remaining(&self, full_at: u64, now: u64) -> u64 {
        self.fill.saturating_sub(full_at.saturating_sub(now)) / self.interval.max(1)
    }

    /// Nanoseconds until there is a token.
    pub fn wait(&self, full_at: u64, now: u64) -> u64 {
        self.take(full_at, now).err().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate::new(10, 1, 3).unwrap();
        let mut full_at = 0;
        for remaining in [2, 1, 0] {
            full_at = rate.take(full_at, SECOND).unwrap();
            assert_eq!(rate.remaining(full_at, SECOND), remaining);
        }
        assert_eq!(rate.take(full_at, SECOND), Err(SECOND / 10));
        assert_eq!(rate.wait(full_at, SECOND + SECOND / 20), SECOND / 20);
        assert!(rate.take(full_at, SECOND + SECOND / 10).is_ok());
        assert_eq!(rate.remaining(full_at, 10 * SECOND), 3, "never more than the burst");
        assert_eq!(rate.take(rate.put_back(full_at), SECOND), Ok(full_at));
    }

    proptest! {
        /// In any stretch of time no more than the burst and what comes in meanwhile; and nobody waits longer than told.
        #[test]
        fn never_more_than_burst_and_rate(
            requests in 1_u32..1000, seconds in 1_u32..10, burst in 1_u32..100,
            waits in prop::collection::vec(0_u64..SECOND / 20, 1..300),
        ) {
            let rate = Rate::new(requests, seconds, burst).unwrap();
            let (mut full_at, mut now) = (0, 5 * SECOND);
            let mut admitted = Vec::new();
            for wait in waits {
                now += wait;
                match rate.take(full_at, now) {
                    Ok(taken) => {
                        prop_assert_eq!(rate.remaining(taken, now) + 1, rate.remaining(full_at, now));
                        full_at = taken;
                        admitted.push(now);
                    }
                    Err(wait) => {
                        prop_assert!(rate.remaining(full_at, now) == 0);
                        prop_assert!(rate.take(full_at, now + wait - 1).is_err());
                        prop_assert!(rate.take(full_at, now + wait).is_ok());
                    }
                }
            }
            for (first, from) in admitted.iter().enumerate() {
                for (last, to) in admitted.iter().enumerate().skip(first) {
                    let most = f64::from(burst) + (to - from) as f64 / rate.interval as f64;
                    prop_assert!((last - first + 1) as f64 <= most + 1e-6);
                }
            }
        }
    }
}
