//! The retry budget: retries may be a share of requests (20 %) plus a trickle (10/s), for the whole proxy, always. A
//! token bucket in thousandths, without a lock (after Finagle's RetryBudget).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use super::outlier::millis;
use crate::config::limits;

const TOKEN: u64 = 1000;
/// Tokens kept at most: what a burst of retries may spend.
pub const BURST: u64 = 100;

/// Shared by all workers.
#[derive(Debug)]
pub struct RetryBudget {
    /// Thousandths of a token.
    balance: AtomicU64,
    /// [`millis`] up to which the trickle was paid in.
    paid_until: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl RetryBudget {
    /// Begins with one second's trickle.
    pub fn new(now: Instant) -> Self {
        Self {
            balance: AtomicU64::new((limits::RETRIES_PER_SECOND * TOKEN as f64) as u64),
            paid_until: AtomicU64::new(millis(now)),
        }
    }

    /// A request was sent (not a retry): adds RETRY_RATIO of a token.
    pub fn deposit(&self) {
        self.add((limits::RETRY_RATIO * TOKEN as f64) as u64);
    }

    /// Takes a token for one retry. False: the budget is spent, and no retry may be made.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.pay_trickle(now);
        self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| balance.checked_sub(TOKEN)).is_ok()
    }

    fn pay_trickle(&self, now: Instant) {
        let now = millis(now);
        let since = self.paid_until.load(Ordering::Relaxed);
        if now <= since {
            return;
        }
        // Whoever moves the mark forward pays; the others see it moved.
        if self.paid_until.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // Tokens per second are thousandths per millisecond.
            self.add((limits::RETRIES_PER_SECOND * (now - since) as f64) as u64);
        }
    }

    fn add(&self, thousandths: u64) {
        let most = BURST * TOKEN;
        if self.balance.load(Ordering::Relaxed) < most {
            let _ = self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| {
                Some(balance.saturating_add(thousandths).min(most))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn withdraw_all(budget: &RetryBudget, now: Instant) -> u64 {
        std::iter::repeat_with(|| budget.withdraw(now)).take_while(|granted| *granted).count() as u64
    }

    #[test]
    fn a_fifth_of_the_requests_and_ten_a_second() {
        let start = Instant::now();
        let budget = RetryBudget::new(start);
        assert_eq!(withdraw_all(&budget, start), 10, "what it begins with");
        for _ in 0..50 {
            budget.deposit();
        }
        assert_eq!(withdraw_all(&budget, start), 10);
        assert_eq!(withdraw_all(&budget, start + Duration::from_millis(500)), 5);
        assert_eq!(withdraw_all(&budget, start + Duration::from_secs(3600)), BURST);
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_pays_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let budget = RetryBudget::new(start);
        withdraw_all(&budget, start);
        assert!(!budget.withdraw(start - Duration::from_secs(5)));
        assert!(!budget.withdraw(start));
    }

    proptest! {
        #[test]
        fn retries_never_exceed_share_and_trickle(
            steps in proptest::collection::vec((0_u64..200, 0_u64..50, 0_u64..50), 1..60),
        ) {
            let start = Instant::now();
            let mut now = start;
            let budget = RetryBudget::new(start);
            let (mut requests, mut retries) = (0_u64, 0_u64);
            for (wait, deposits, withdrawals) in steps {
                now += Duration::from_millis(wait);
                for _ in 0..deposits {
                    budget.deposit();
                }
                requests += deposits;
                retries += (0..withdrawals).filter(|_| budget.withdraw(now)).count() as u64;
                let elapsed = (now - start).as_secs_f64();
                let most = 10.0 + requests as f64 * limits::RETRY_RATIO + (elapsed + 0.001) * limits::RETRIES_PER_SECOND;
                prop_assert!(retries as f64 <= most, "{retries} retries of {requests} requests in {elapsed} s");
            }
        }
    }
}
