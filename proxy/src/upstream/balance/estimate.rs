//! The latency that an endpoint is expected to have: it jumps up to peaks and decays exponentially (Finagle's peak-EWMA), with
//! failures as a penalty of their own. Pure.

use std::{
    mem,
    time::{Duration, Instant},
};

/// Time in which an old latency loses all but 1/e of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// Assumed latency where nothing was measured. Not zero: that would draw all load to the unknown.
pub const DEFAULT_LATENCY: Duration = Duration::from_millis(30);
/// What a failure counts as at least: an endpoint that fails fast must not attract load.
pub const LEAST_PENALTY: Duration = Duration::from_secs(1);
/// What a failure counts as at most: a timeout must not keep an endpoint away for minutes.
pub const MOST_PENALTY: Duration = Duration::from_secs(5);
/// Time in which a penalty loses all but 1/e; a success halves it, too. Shorter than [`DECAY`]: a restarted endpoint is
/// to have its share again within seconds.
const PENALTY_DECAY: Duration = Duration::from_secs(2);
/// What a failure costs of trust: the endpoint takes one in two to the power of so many draws, whatever others cost.
const DISTRUST: f64 = 2.0;
/// Distrust after failures in a row, at most: a draw in 256, a second later one in 29, after four seconds every other.
const MOST_DISTRUST: f64 = 8.0;
/// Less is none.
const LEAST_DISTRUST: f64 = 0.01;
/// An endpoint that is silent for so many times its usual latency is not tried out of curiosity.
const HANGING: f64 = 2.0;
/// What one request counts for in the usual latency: a slow one little, so that a rare peak changes nothing.
const USUAL_RISE: f64 = 1.0 / 32.0;
/// See [`USUAL_RISE`].
const USUAL_FALL: f64 = 1.0 / 8.0;

/// The latency estimate of one endpoint: jumps up to peaks, decays exponentially. Failures are a penalty of their own.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    seconds: f64,
    at: Instant,
    measured: bool,
    /// Something succeeded, at whatever latency.
    answered: bool,
    /// Seconds, without peaks.
    usual: f64,
    /// Seconds.
    penalty: f64,
    /// Grows with failures; decays as the penalty does, and halves with a success.
    distrust: f64,
    penalized_at: Instant,
    waiting: Waiting,
}

/// Tries at an endpoint that were sent whole and wait for its answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waiting {
    pub tries: u32,
    /// The first of them that was sent since anything was heard of the endpoint.
    pub silent_since: Option<Instant>,
    /// The last that was sent.
    pub last: Option<Instant>,
    /// Tries that their clients gave up, after far longer than is usual, since anything was heard of the endpoint.
    pub ignored: u32,
}

impl Estimate {
    /// Nothing measured yet: `seed` (what its peers show, or [`DEFAULT_LATENCY`]) until the first observation.
    pub fn new(seed: Duration, now: Instant) -> Self {
        let seconds = seed.as_secs_f64();
        let (penalty, distrust) = (0.0, 0.0);
        let (measured, answered) = (false, false);
        let (at, penalized_at, waiting) = (now, now, Waiting::default());
        Self { seconds, at, measured, answered, usual: seconds, penalty, distrust, penalized_at, waiting }
    }

    /// The same of an endpoint where these wait.
    pub fn with(self, waiting: Waiting) -> Self {
        Self { waiting, ..self }
    }

    /// The latency of a try that succeeded. Above the estimate it replaces it; below, it is averaged in by the time passed. The very
    /// first is left out if it is slower than was assumed: its connection was made for it, and caches were cold.
    pub fn succeeded(&mut self, latency: Duration, now: Instant) {
        let seconds = latency.as_secs_f64();
        self.penalty /= 2.0;
        self.distrust /= 2.0;
        let is_first = !mem::replace(&mut self.answered, true);
        if is_first && seconds > self.seconds {
            return;
        }
        let kept = decay(self.at, now, DECAY);
        self.usual = match seconds - self.usual {
            _ if !self.measured => seconds,
            more if more > 0.0 => self.usual + more * USUAL_RISE,
            less => self.usual + less * USUAL_FALL,
        };
        self.seconds = if !self.measured || seconds > self.seconds {
            seconds
        } else {
            self.seconds * kept + seconds * (1.0 - kept)
        };
        self.at = self.at.max(now);
        self.measured = true;
    }

    /// A try that failed after `latency`.
    pub fn failed(&mut self, latency: Duration, now: Instant) {
        self.penalty = latency.clamp(LEAST_PENALTY, MOST_PENALTY).as_secs_f64();
        self.distrust = (self.distrust(now) + DISTRUST).min(MOST_DISTRUST);
        self.penalized_at = now;
    }

    /// A try that was turned away (429, the mesh's `overload`): not fast for that, but no failure, which would cost trust.
    pub fn refused(&mut self, latency: Duration, now: Instant) {
        // Both decay from the same moment.
        self.distrust = self.distrust(now);
        self.penalty = latency.clamp(LEAST_PENALTY, MOST_PENALTY).as_secs_f64();
        self.penalized_at = now;
    }

    /// A try that had no answer when its client gave it up: no failure, but the endpoint is slower than that.
    pub fn given_up(&mut self, waited: Duration, now: Instant) {
        let seconds = waited.min(MOST_PENALTY).as_secs_f64();
        self.usual += (seconds - self.usual).max(0.0) * USUAL_RISE;
        if seconds > self.latency(now) {
            self.seconds = seconds;
            self.at = self.at.max(now);
            self.measured = true;
        }
    }

    /// The endpoint proved to be well again.
    pub fn pardon(&mut self) {
        self.penalty = 0.0;
        self.distrust = 0.0;
    }

    /// Measured latency in seconds, decayed towards zero while nothing is observed, so that a slow endpoint is tried again; not less
    /// than it has been silent: else one that hangs would look better and better.
    pub fn latency(&self, now: Instant) -> f64 {
        (self.seconds * decay(self.at, now, DECAY)).max(self.silence(now))
    }

    /// Seconds for which nothing was heard while tries waited for an answer, up to [`MOST_PENALTY`].
    pub fn silence(&self, now: Instant) -> f64 {
        let silent = self.waiting.silent_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        silent.min(MOST_PENALTY).as_secs_f64()
    }

    /// Whether tries wait there for far longer than they should, or did until their clients gave up: to send another would tell
    /// nothing new, until some time has passed without one. One alone may be a long poll, or a stream.
    pub fn hangs(&self, now: Instant) -> bool {
        let Waiting { tries, last, ignored, .. } = self.waiting;
        tries.saturating_add(ignored) > 1
            && (ignored > 1 || self.is_far_too_long(self.silence(now)))
            && last.is_some_and(|last| now.saturating_duration_since(last) < MOST_PENALTY)
    }

    /// Whether the endpoint mostly answers much sooner than after so many seconds.
    pub fn is_far_too_long(&self, seconds: f64) -> bool {
        seconds > HANGING * self.usual.max(DEFAULT_LATENCY.as_secs_f64())
    }

    pub fn is_measured(&self) -> bool {
        self.measured
    }

    /// How much of a measurement is still of weight, 0.0..=1.0: 1 if it was made just now, 0 if none ever was.
    pub fn freshness(&self, now: Instant) -> f64 {
        if self.measured { decay(self.at, now, DECAY) } else { 0.0 }
    }

    /// What most requests take at least, in seconds, or what failures count as.
    pub fn usual(&self, now: Instant) -> f64 {
        self.usual.max(self.penalty(now))
    }

    /// What is expected of the endpoint if nothing in between is heard of it: its usual latency as it was, by and by that
    /// of `others` (seconds).
    pub fn reverting(&self, others: f64, now: Instant) -> f64 {
        let fresh = self.freshness(now);
        (self.usual * fresh + others * (1.0 - fresh)).max(self.penalty(now))
    }

    /// Latency and penalty, whichever is worse, in seconds.
    pub fn seconds(&self, now: Instant) -> f64 {
        self.latency(now).max(self.penalty(now))
    }

    /// The share of its draws that an endpoint takes after failures, more than 0 and 1 at most. A penalty alone would be cheap where
    /// everybody is slow: who fails at once has nothing in flight.
    pub fn trust(&self, now: Instant) -> f64 {
        match self.distrust(now) {
            little if little < LEAST_DISTRUST => 1.0,
            distrust => (-distrust).exp2(),
        }
    }

    fn distrust(&self, now: Instant) -> f64 {
        if self.distrust > 0.0 { self.distrust * decay(self.penalized_at, now, PENALTY_DECAY) } else { 0.0 }
    }

    /// What is left of the penalty for failures, in seconds.
    pub fn penalty(&self, now: Instant) -> f64 {
        if self.penalty > 0.0 { self.penalty * decay(self.penalized_at, now, PENALTY_DECAY) } else { 0.0 }
    }
}

/// What is left of 1 after the time since then.
pub(super) fn decay(since: Instant, now: Instant, constant: Duration) -> f64 {
    (-now.saturating_duration_since(since).as_secs_f64() / constant.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_jumps_to_peaks_and_decays_from_them() {
        let start = Instant::now();
        let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
        estimate.succeeded(Duration::from_millis(1), start);
        assert!((estimate.seconds(start) - 0.001).abs() < 1e-9, "the first observation replaces the assumption");
        estimate.succeeded(Duration::from_secs(1), start);
        assert!((estimate.seconds(start) - 1.0).abs() < 1e-9);
        let later = start + DECAY;
        assert!((estimate.seconds(later) - (-1.0_f64).exp()).abs() < 1e-9);
        estimate.succeeded(Duration::from_millis(1), later);
        let expected = (-1.0_f64).exp() + 0.001 * (1.0 - (-1.0_f64).exp());
        assert!((estimate.seconds(later) - expected).abs() < 1e-9);
    }

    #[test]
    fn a_failure_is_a_penalty_that_time_and_success_take_away() {
        let start = Instant::now();
        let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
        estimate.succeeded(Duration::from_millis(1), start);
        estimate.failed(Duration::from_micros(200), start);
        assert!((estimate.seconds(start) - 1.0).abs() < 1e-9, "failing fast is not being fast");
        assert!((estimate.latency(start) - 0.001).abs() < 1e-9, "nor is it a measurement");
        assert!(estimate.seconds(start + Duration::from_secs(14)) < 0.001);
        estimate.succeeded(Duration::from_millis(1), start);
        assert!((estimate.seconds(start) - 0.5).abs() < 1e-9);
        estimate.failed(Duration::from_secs(60), start);
        assert!((estimate.seconds(start) - MOST_PENALTY.as_secs_f64()).abs() < 1e-9);
        estimate.pardon();
        assert!(estimate.seconds(start) < 0.0011);
    }

    #[test]
    fn trust_is_lost_by_failures_in_a_row_and_comes_back_within_seconds() {
        let start = Instant::now();
        let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
        assert_eq!(estimate.trust(start), 1.0);
        estimate.failed(Duration::ZERO, start);
        assert!((estimate.trust(start) - 0.25).abs() < 1e-9, "once");
        assert!(estimate.trust(start + Duration::from_secs(3)) > 0.7);
        (0..50).for_each(|_| estimate.failed(Duration::ZERO, start));
        assert!((estimate.trust(start) - 1.0 / 256.0).abs() < 1e-9, "again and again");
        assert!(estimate.trust(start + Duration::from_secs(4)) > 0.4);
        assert_eq!(estimate.trust(start + Duration::from_secs(14)), 1.0);
        estimate.succeeded(Duration::from_millis(1), start);
        assert!((estimate.trust(start) - 1.0 / 16.0).abs() < 1e-9);
        estimate.pardon();
        assert_eq!(estimate.trust(start), 1.0);
    }

    #[test]
    fn being_turned_away_is_not_fast_and_costs_no_trust() {
        let start = Instant::now();
        let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
        (0..10).for_each(|_| estimate.refused(Duration::from_micros(200), start));
        assert!((estimate.seconds(start) - 1.0).abs() < 1e-9);
        assert_eq!(estimate.trust(start), 1.0);
        estimate.failed(Duration::ZERO, start);
        let later = start + PENALTY_DECAY;
        let trust = estimate.trust(later);
        estimate.refused(Duration::ZERO, later);
        assert!((estimate.trust(later) - trust).abs() < 1e-9, "nor is any won");
    }

    #[test]
    fn the_first_answer_does_not_count_if_it_is_slower_than_assumed() {
        let start = Instant::now();
        let mut estimate = Estimate::new(Duration::from_millis(5), start);
        estimate.succeeded(Duration::from_millis(500), start);
        assert!(!estimate.is_measured() && (estimate.seconds(start) - 0.005).abs() < 1e-9);
        estimate.succeeded(Duration::from_millis(500), start);
        assert!((estimate.seconds(start) - 0.5).abs() < 1e-9, "it is slow indeed");
    }

    #[test]
    fn a_silent_endpoint_is_as_slow_as_it_is_silent() {
        let start = Instant::now();
        let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
        estimate.succeeded(Duration::from_millis(1), start);
        let after = |millis| start + Duration::from_millis(millis);
        let waiting = |tries| Waiting { tries, silent_since: Some(start), last: Some(start), ignored: 0 };
        let silent = estimate.with(waiting(2));
        assert!((silent.seconds(after(500)) - 0.5).abs() < 1e-9 && silent.hangs(after(500)));
        assert!(!silent.hangs(after(50)), "not yet");
        assert!(!estimate.with(waiting(1)).hangs(after(500)), "one alone may be a long poll");
        assert!(!silent.hangs(after(5_000)), "one more may find out");
        assert!((silent.seconds(after(60_000)) - MOST_PENALTY.as_secs_f64()).abs() < 1e-9);
        assert!(silent.with(Waiting::default()).seconds(after(500)) < 0.0011);

        // Nobody waits any longer: all gave up.
        let ignoring = |tries, ignored| {
            let silent_since = (tries > 0).then_some(after(400));
            estimate.with(Waiting { tries, silent_since, last: Some(after(400)), ignored })
        };
        assert!(ignoring(0, 2).hangs(after(410)) && !ignoring(0, 2).hangs(after(5_400)));
        assert!(
            !ignoring(0, 1).hangs(after(410)) && !ignoring(1, 1).hangs(after(410)) && ignoring(1, 1).hangs(after(500))
        );
        assert!(ignoring(0, 2).seconds(after(410)) < 0.0011, "what it is expected to take, `given_up` tells");
    }

    #[test]
    fn time_that_runs_backwards_changes_nothing() {
        let start = Instant::now() + Duration::from_secs(5);
        let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
        estimate.succeeded(Duration::from_millis(8), start);
        estimate.succeeded(Duration::from_millis(2), start - Duration::from_secs(3));
        assert!((estimate.seconds(start) - 0.008).abs() < 1e-9);
    }

    #[test]
    fn a_rare_peak_leaves_the_usual_as_it_is() {
        let mut now = Instant::now();
        let mut estimate = Estimate::new(DEFAULT_LATENCY, now);
        for request in 0..1000 {
            now += Duration::from_millis(10);
            let slow = request % 100 == 0;
            estimate.succeeded(Duration::from_millis(if slow { 40 } else { 2 }), now);
            assert!(request < 40 || estimate.usual(now) < 0.0035, "{} after {request}", estimate.usual(now));
        }
    }

    #[test]
    fn what_is_not_heard_of_is_by_and_by_like_the_others() {
        let start = Instant::now();
        let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
        assert!((estimate.reverting(0.5, start) - 0.5).abs() < 1e-9, "nothing was measured");
        (0..2).for_each(|_| estimate.succeeded(Duration::from_millis(100), start));
        assert!((estimate.reverting(0.5, start) - 0.1).abs() < 1e-9);
        let later = estimate.reverting(0.5, start + DECAY);
        assert!(later > 0.3 && later < 0.4, "{later}");
        assert!(estimate.reverting(0.5, start + DECAY * 10) > 0.499);
    }
}
