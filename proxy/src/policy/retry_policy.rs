//! What may be tried again, and when: a route's `retry`, or a RoutePolicy's.

use std::time::Duration;

use crate::config::limits;

/// What may be tried again besides what was provably not processed (which always may, within the budget).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Sorted.
    pub statuses: Vec<u16>,
    /// Whether requests with any method may be, for a status.
    pub any_method: bool,
    /// gRPC codes, each a bit. Naming one says that it may be, whatever the method (which is always POST).
    pub grpc: u32,
    /// A connection could not be made, more often than is tried anyway.
    pub connect: bool,
    /// Broken off before an answer.
    pub reset: Whom,
    /// A try that took too long.
    pub try_timeout: Whom,
    /// Tries beyond the first.
    pub attempts: u32,
    pub backoff: Backoff,
}

/// Which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    None,
    /// Those that may be repeated by what they are.
    Repeatable,
    Any,
}

/// The wait before a retry grows exponentially.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub cap: Duration,
    /// True: anything from nothing to the exponential value ("full jitter", Brooker 2015). False: that value is the least
    /// (GEP-1731), with up to as much again.
    pub full_jitter: bool,
}

impl Retry {
    /// Of an HTTPRoute (GEP-1731): statuses are for all methods; connections are tried again whatever they are, and broken
    /// and late tries as the 504 they become.
    pub fn of_route(statuses: Vec<u16>, attempts: u32, base: Duration) -> Self {
        let late = if statuses.binary_search(&504).is_ok() { Whom::Any } else { Whom::Repeatable };
        Self {
            statuses,
            any_method: true,
            grpc: 0,
            connect: true,
            reset: late,
            try_timeout: late,
            attempts,
            backoff: Backoff { base, cap: limits::RETRY_WAIT, full_jitter: false },
        }
    }
}

impl Whom {
    /// Whether it may be done with a request.
    pub fn includes(self, repeatable: bool) -> bool {
        match self {
            Self::None => false,
            Self::Repeatable => repeatable,
            Self::Any => true,
        }
    }
}

impl Backoff {
    /// The wait before the retry after `retries` others. `random`: a uniformly random number.
    pub fn wait(&self, retries: u32, random: u64) -> Duration {
        let grown = self.base.saturating_mul(1 << retries.min(16)).min(self.cap);
        let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
        let jitter = grown.mul_f64(share);
        if self.full_jitter { jitter } else { (grown + jitter).min(self.cap) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_grow_and_have_an_end() {
        let least = Backoff { base: Duration::from_millis(25), cap: limits::RETRY_WAIT, full_jitter: false };
        for (retries, base) in [(0, 25), (1, 50), (4, 400)] {
            assert_eq!(least.wait(retries, 0), Duration::from_millis(base));
            assert!(least.wait(retries, u64::MAX) <= Duration::from_millis(2 * base));
        }
        let full = Backoff { full_jitter: true, ..least };
        assert_eq!(full.wait(4, 0), Duration::ZERO);
        assert_eq!(full.wait(1, u64::MAX / 2), Duration::from_millis(25));
    }

    proptest! {
        #[test]
        fn no_wait_is_beyond_the_cap(base in 0_u64..10_000, cap in 0_u64..10_000, retries in 0_u32..100, random: u64, full_jitter: bool) {
            let cap = Duration::from_millis(cap);
            let backoff = Backoff { base: Duration::from_millis(base), cap, full_jitter };
            prop_assert!(backoff.wait(retries, random) <= cap);
        }
    }
}
