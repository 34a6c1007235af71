//! When to renew and when to try again: pure functions of time left, failures and chance.

use std::time::{Duration, Instant, SystemTime};

/// First wait after a failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest wait between tries.
const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// Longest sleep without a look at the wall clock.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// A certificate of hardly any life must not become a loop without a pause.
const RENEWAL_SOONEST: Duration = Duration::from_millis(500);

/// How long to use a certificate that has `left` to live before renewing it: two thirds, ± 10 % by `chance`
/// (0.0..1.0), so that a mesh started at once does not renew at once.
///
/// What is left counts, not the whole validity: authorities date certificates back against clock skew.
pub(super) fn renew_after(left: Duration, chance: f64) -> Duration {
    (left * 2 / 3).mul_f64(spread(0.1, chance)).max(RENEWAL_SOONEST)
}

/// When a certificate is to be renewed, by both clocks: the monotonic one stands still while the machine is suspended,
/// the wall clock may be set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    at: Option<Instant>,
    wall: Option<SystemTime>,
}

impl Renewal {
    /// `after` the present moment, which is both `now` and `wall`.
    pub(super) fn after(after: Duration, now: Instant, wall: SystemTime) -> Self {
        Self { at: now.checked_add(after), wall: wall.checked_add(after) }
    }

    /// How long to sleep before looking at the clocks again; None: it is due, as soon as one of them says so.
    pub(super) fn sleep(&self, now: Instant, wall: SystemTime) -> Option<Duration> {
        let by_now = self.at.map_or(LOOK_EVERY, |at| at.saturating_duration_since(now));
        let by_wall = self.wall.map_or(LOOK_EVERY, |at| at.duration_since(wall).unwrap_or_default());
        Some(by_now.min(by_wall).min(LOOK_EVERY)).filter(|sleep| !sleep.is_zero())
    }
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
    fn renewal_is_due_by_either_clock() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let second = Duration::from_secs(1);
        let renewal = Renewal::after(hours(16), start, wall);
        assert_eq!(renewal.sleep(start, wall), Some(LOOK_EVERY));
        assert_eq!(renewal.sleep(start + hours(16) - second, wall + hours(16) - second), Some(second));
        assert_eq!(renewal.sleep(start + hours(16), wall + hours(16)), None);
        // Suspended for a day, or the clock was set forward.
        assert_eq!(renewal.sleep(start + LOOK_EVERY, wall + hours(24)), None);
        // The clock was set back: the certificate is renewed after the time it was to be used for.
        assert_eq!(renewal.sleep(start + LOOK_EVERY, wall - hours(24)), Some(LOOK_EVERY));
        assert_eq!(renewal.sleep(start + hours(16), wall - hours(8)), None);
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let waits: Vec<_> = (1..9).map(|failures| backoff(failures, 0.5).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff(u32::MAX, 1.0).as_secs(), 12);
        assert_eq!(backoff(0, 0.0).as_millis(), 160);
    }
}
