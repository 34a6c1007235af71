//! The retry budget: retries may be a share of the requests that are answered well (20 %) plus a trickle (10/s), for the
//! whole proxy, always. A token bucket in thousandths, without a lock (after Finagle's RetryBudget). Requests that fail,
//! whatever was tried, pay nothing in (as in gRPC's retry throttling, proposal A6): while a backend answers nobody,
//! trying again helps nobody, and only the trickle is left. So a storm does not grow from hop to hop by a fifth each.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use super::outlier::millis;
use crate::config::limits;

const TOKEN: u64 = 1000;

/// How much may be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Retries for each hundred requests that are answered well.
    pub percent: u32,
    /// Retries per second that there may be besides.
    pub per_second: u32,
    /// Tokens kept at most: what a burst of retries may spend.
    pub burst: u32,
    /// What would be tried again, were there budget for it, is answered with 503 (GEP-3388).
    pub answer_unavailable: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            percent: limits::RETRY_PERCENT,
            per_second: limits::RETRIES_PER_SECOND,
            burst: limits::RETRY_BURST,
            answer_unavailable: false,
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { percent, per_second, burst, answer_unavailable } = self;
        write!(f, "{percent} % of what is answered well, and {per_second} a second, {burst} saved up at most")?;
        if *answer_unavailable { f.write_str("; beyond, 503") } else { Ok(()) }
    }
}

/// Shared by all workers.
#[derive(Debug)]
pub struct RetryBudget {
    /// Thousandths of a token.
    balance: AtomicU64,
    /// [`millis`] up to which the trickle was paid in.
    paid_until: AtomicU64,
    /// Thousandths of a token for each request answered well.
    deposit: AtomicU64,
    per_second: AtomicU64,
    /// Thousandths of a token.
    most: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(Settings::default(), Instant::now())
    }
}

impl RetryBudget {
    /// Begins with one second's trickle.
    pub fn new(settings: Settings, now: Instant) -> Self {
        let budget = Self {
            balance: AtomicU64::new(0),
            paid_until: AtomicU64::new(millis(now)),
            deposit: AtomicU64::new(0),
            per_second: AtomicU64::new(0),
            most: AtomicU64::new(0),
        };
        budget.set(settings);
        budget.add(u64::from(settings.per_second) * TOKEN);
        budget
    }

    /// From here on; what has been saved stays, as far as it may.
    pub fn set(&self, settings: Settings) {
        // A hundredth of a token is ten thousandths.
        self.deposit.store(u64::from(settings.percent) * TOKEN / 100, Ordering::Relaxed);
        self.per_second.store(settings.per_second.into(), Ordering::Relaxed);
        let most = u64::from(settings.burst) * TOKEN;
        self.most.store(most, Ordering::Relaxed);
        self.balance.fetch_min(most, Ordering::Relaxed);
    }

    /// A request (not a retry) was answered well.
    pub fn deposit(&self) {
        self.add(self.deposit.load(Ordering::Relaxed));
    }

    /// Takes a token for one retry. False: the budget is spent, and no retry may be made.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.pay_trickle(now);
        self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| balance.checked_sub(TOKEN)).is_ok()
    }

    /// Whole retries that are saved up.
    pub fn left(&self) -> u64 {
        self.balance.load(Ordering::Relaxed) / TOKEN
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
            self.add(self.per_second.load(Ordering::Relaxed).saturating_mul(now - since));
        }
    }

    fn add(&self, thousandths: u64) {
        let most = self.most.load(Ordering::Relaxed);
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
        let budget = RetryBudget::new(Settings::default(), start);
        assert_eq!(withdraw_all(&budget, start), 10, "what it begins with");
        for _ in 0..50 {
            budget.deposit();
        }
        assert_eq!(withdraw_all(&budget, start), 10);
        assert_eq!(withdraw_all(&budget, start + Duration::from_millis(500)), 5);
        assert_eq!(withdraw_all(&budget, start + Duration::from_secs(3600)), u64::from(limits::RETRY_BURST));
    }

    #[test]
    fn settings_change_what_comes_and_what_may_be_kept() {
        let start = Instant::now();
        let budget =
            RetryBudget::new(Settings { percent: 100, per_second: 50, burst: 60, ..Settings::default() }, start);
        (0..100).for_each(|_| budget.deposit());
        budget.set(Settings { percent: 1, per_second: 0, burst: 5, ..Settings::default() });
        assert_eq!(withdraw_all(&budget, start), 5, "what was saved is cut");
        (0..199).for_each(|_| budget.deposit());
        assert_eq!(withdraw_all(&budget, start + Duration::from_secs(100)), 1, "one in a hundred, and no trickle");
        budget.set(Settings { percent: 0, per_second: 0, burst: 0, ..Settings::default() });
        budget.deposit();
        assert!(!budget.withdraw(start + Duration::from_secs(200)), "off");
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_pays_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let budget = RetryBudget::new(Settings::default(), start);
        withdraw_all(&budget, start);
        assert!(!budget.withdraw(start - Duration::from_secs(5)));
        assert!(!budget.withdraw(start));
    }

    proptest! {
        #[test]
        fn retries_never_exceed_share_and_trickle(
            steps in proptest::collection::vec((0_u64..200, 0_u64..50, 0_u64..50), 1..60),
            percent in 0_u32..200,
            per_second in 0_u32..100,
        ) {
            let start = Instant::now();
            let mut now = start;
            let budget = RetryBudget::new(Settings { percent, per_second, burst: 100, ..Settings::default() }, start);
            let (mut requests, mut retries) = (0_u64, 0_u64);
            for (wait, deposits, withdrawals) in steps {
                now += Duration::from_millis(wait);
                for _ in 0..deposits {
                    budget.deposit();
                }
                requests += deposits;
                retries += (0..withdrawals).filter(|_| budget.withdraw(now)).count() as u64;
                let elapsed = (now - start).as_secs_f64();
                let most = f64::from(per_second) * (1.0 + elapsed + 0.001) + requests as f64 * f64::from(percent) / 100.0;
                prop_assert!(retries as f64 <= most, "{retries} retries of {requests} requests in {elapsed} s");
            }
        }
    }
}
