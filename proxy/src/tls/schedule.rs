//! When to renew and when to try again: pure functions of time left, failures and chance.

use std::time::Duration;

/// First wait after a failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest wait between tries.
const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// A certificate of hardly any life must not become a loop without a pause.
const RENEWAL_SOONEST: Duration = Duration::from_millis(500);

/// How long to use a certificate that has `left` to live before renewing it: two thirds, ± 10 % by `chance`
/// (0.0..1.0), so that a mesh started at once does not renew at once.
///
/// What is left counts, not the whole validity: authorities date certificates back against clock skew.
pub(super) fn renew_after(left: Duration, chance: f64) -> Duration {
    (left * 2 / 3).mul_f64(spread(0.1, chance)).max(RENEWAL_SOONEST)
}

/// The wait after the `failures`-th failure in a row (from 1): exponential, ± 20 % by `chance` (0.0..1.0).
pub(super) fn backoff(failures: u32, chance: f64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(BACKOFF_LAST).mul_f64(spread(0.2, chance))
}

/// 1 ± `share`.
fn spread(share: f64, chance: f64) -> f64 {
    1.0 - share + 2.0 * share * chance.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_two_thirds_with_jitter() {
        let day = Duration::from_secs(86_400);
        assert_eq!(renew_after(day, 0.5).as_secs(), 57_600);
        assert_eq!(renew_after(day, 0.0).as_secs(), 51_840);
        assert_eq!(renew_after(day, 1.0).as_secs(), 63_360);
        // Latest for ten seconds: time for several tries is left.
        assert!(renew_after(Duration::from_secs(10), 1.0) < Duration::from_millis(7_400));
        assert_eq!(renew_after(Duration::ZERO, 1.0), RENEWAL_SOONEST);
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let waits: Vec<_> = (1..9).map(|failures| backoff(failures, 0.5).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff(u32::MAX, 1.0).as_secs(), 12);
        assert_eq!(backoff(0, 0.0).as_millis(), 160);
    }
}
