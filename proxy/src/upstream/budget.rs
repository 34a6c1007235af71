//! The retry budget: retries may be a share of the requests that are answered well (20 %) plus a trickle (10/s), for the
//! whole proxy, always. A token bucket without a lock (after Finagle's RetryBudget). Requests that fail,
//! whatever was tried, pay nothing in (as in gRPC's retry throttling, proposal A6): while a backend answers nobody,
//! trying again helps nobody, and only the trickle is left. So a storm does not grow from hop to hop by a fifth each.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::outlier::millis;
use crate::config::limits;

/// Of a token, so that one in an hour is some in each millisecond.
const TOKEN: u64 = 1_000_000_000;

/// What a sliding budget never has more of: beyond any share of the requests that there can be.
const SLIDING_MOST: u64 = 1_000_000_000 * TOKEN;

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
    /// In place of `per_second` and `burst`.
    pub sliding: Option<Sliding>,
}

/// Retries as GEP-3388 allows them: a share of the requests of late, and a few in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    /// Retries in `interval` that there may be in any case.
    pub retries: u32,
    pub interval: Duration,
    /// Of the requests of so long `percent` are meant. What they pay in fades exponentially, so that no time of each is kept.
    pub window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            percent: limits::RETRY_PERCENT,
            per_second: limits::RETRIES_PER_SECOND,
            burst: limits::RETRY_BURST,
            answer_unavailable: false,
            sliding: None,
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { percent, per_second, burst, answer_unavailable, sliding } = self;
        write!(f, "{percent} % of what is answered well")?;
        match sliding {
            None => write!(f, ", and {per_second} a second, {burst} saved up at most")?,
            Some(Sliding { retries, interval, window }) => {
                write!(f, " of late ({window:?}), or {retries} in {interval:?}")?;
            }
        }
        if *answer_unavailable { f.write_str("; beyond, 503") } else { Ok(()) }
    }
}

/// Shared by all workers.
#[derive(Debug)]
pub struct RetryBudget {
    /// Parts of a token, see [`TOKEN`]; so are the others.
    balance: AtomicU64,
    /// [`millis`] up to which the trickle was paid in.
    paid_until: AtomicU64,
    /// For each request answered well.
    deposit: AtomicU64,
    per_ms: AtomicU64,
    /// No more is kept.
    most: AtomicU64,
    /// What the trickle fills up to, and below which nothing fades.
    trickle_most: AtomicU64,
    /// Milliseconds in which what is above fades to a third (1/e). 0: nothing does.
    window: AtomicU64,
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
            per_ms: AtomicU64::new(0),
            most: AtomicU64::new(0),
            trickle_most: AtomicU64::new(0),
            window: AtomicU64::new(0),
        };
        budget.set(settings);
        let first = settings.sliding.map_or(settings.per_second, |sliding| sliding.retries);
        budget.add(u64::from(first) * TOKEN);
        budget
    }

    /// From here on; what has been saved stays, as far as it may.
    pub fn set(&self, settings: Settings) {
        let (per_ms, most, trickle_most, window) = match settings.sliding {
            None => {
                let most = u64::from(settings.burst) * TOKEN;
                (u64::from(settings.per_second) * TOKEN / 1000, most, most, 0)
            }
            Some(Sliding { retries, interval, window }) => {
                let trickle_most = u64::from(retries) * TOKEN;
                (trickle_most / whole_ms(interval), SLIDING_MOST, trickle_most, whole_ms(window))
            }
        };
        self.deposit.store(u64::from(settings.percent) * TOKEN / 100, Ordering::Relaxed);
        self.per_ms.store(per_ms, Ordering::Relaxed);
        self.most.store(most, Ordering::Relaxed);
        let before = self.trickle_most.swap(trickle_most, Ordering::Relaxed);
        let was = self.window.swap(window, Ordering::Relaxed);
        // What was saved under other rules is no more than what these begin with.
        let kept = if window != 0 && (before, was) != (trickle_most, window) { trickle_most } else { most };
        self.balance.fetch_min(kept, Ordering::Relaxed);
    }

    /// A request (not a retry) was answered well.
    pub fn deposit(&self, now: Instant) {
        if self.window.load(Ordering::Relaxed) != 0 {
            // Before it comes in, so that only what was there fades.
            self.pay_trickle(now);
        }
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
            self.pass(now - since);
        }
    }

    /// So many milliseconds went by.
    fn pass(&self, elapsed: u64) {
        let paid = self.per_ms.load(Ordering::Relaxed).saturating_mul(elapsed);
        let window = self.window.load(Ordering::Relaxed);
        if window == 0 {
            return self.add(paid);
        }
        let trickle_most = self.trickle_most.load(Ordering::Relaxed);
        let _ = self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| {
            Some(match balance.checked_sub(trickle_most) {
                None => balance.saturating_add(paid).min(trickle_most),
                Some(above) => {
                    let left = (-(elapsed as f64) / window as f64).exp();
                    trickle_most + (above as f64 * left) as u64
                }
            })
        });
    }

    fn add(&self, parts: u64) {
        let most = self.most.load(Ordering::Relaxed);
        if self.balance.load(Ordering::Relaxed) < most {
            let _ = self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| {
                Some(balance.saturating_add(parts).min(most))
            });
        }
    }
}

/// At least one.
fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
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
            budget.deposit(start);
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
        (0..100).for_each(|_| budget.deposit(start));
        budget.set(Settings { percent: 1, per_second: 0, burst: 5, ..Settings::default() });
        assert_eq!(withdraw_all(&budget, start), 5, "what was saved is cut");
        (0..199).for_each(|_| budget.deposit(start));
        assert_eq!(withdraw_all(&budget, start + Duration::from_secs(100)), 1, "one in a hundred, and no trickle");
        budget.set(Settings { percent: 0, per_second: 0, burst: 0, ..Settings::default() });
        budget.deposit(start);
        assert!(!budget.withdraw(start + Duration::from_secs(200)), "off");
    }

    fn sliding(percent: u32, retries: u32, interval: u64, window: u64) -> Settings {
        let (interval, window) = (Duration::from_secs(interval), Duration::from_secs(window));
        Settings { percent, sliding: Some(Sliding { retries, interval, window }), ..Settings::default() }
    }

    #[test]
    fn one_in_ten_minutes_is_one_in_ten_minutes() {
        let start = Instant::now();
        let budget = RetryBudget::default();
        budget.set(sliding(0, 1, 600, 10));
        assert_eq!(withdraw_all(&budget, start), 1, "nothing is left of what the default begins with");
        for seconds in [1, 5, 60, 590] {
            assert_eq!(withdraw_all(&budget, start + Duration::from_secs(seconds)), 0, "after {seconds} s");
        }
        // Asked for more often than it pays, it comes all the same.
        assert_eq!(withdraw_all(&budget, start + Duration::from_secs(602)), 1);
        assert_eq!(withdraw_all(&budget, start + Duration::from_secs(36_000)), 1, "and is not saved up");
    }

    #[test]
    fn a_share_is_of_the_requests_of_late() {
        let start = Instant::now();
        let budget = RetryBudget::new(sliding(20, 1, 3600, 10), start);
        (0..1000).for_each(|_| budget.deposit(start));
        budget.set(sliding(20, 1, 3600, 10));
        let left = budget.left();
        assert_eq!(left, 201, "a fifth of a thousand, and the one that there may be in any case");
        assert!(!std::iter::repeat_with(|| budget.withdraw(start)).take(200).any(|granted| !granted));
        (0..1000).for_each(|_| budget.deposit(start));
        let later = withdraw_all(&budget, start + Duration::from_secs(10));
        assert!((70..=76).contains(&later), "{later}: a third is left after the window");
        (0..1000).for_each(|_| budget.deposit(start + Duration::from_secs(10)));
        let much_later = withdraw_all(&budget, start + Duration::from_secs(130));
        assert!(much_later <= 1, "{much_later}: nothing is left of requests that long ago");
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
                    budget.deposit(now);
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
