//! The choice of an endpoint: peak-EWMA latency over the power of two choices (Mitzenmacher 2001; the estimate is
//! Finagle's). Pure: takes `now`, random numbers and a view of the endpoints.

use std::time::{Duration, Instant};

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
/// One in so many choices ignores cost, so that a bad estimate is found out.
const EXPLORE_ONE_IN: u64 = 100;
/// Pairs drawn before all endpoints are looked at.
const DRAWS: usize = 4;

/// The latency estimate of one endpoint: jumps up to peaks, decays exponentially. Failures are a penalty of their own.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    seconds: f64,
    at: Instant,
    measured: bool,
    /// Seconds.
    penalty: f64,
    penalized_at: Instant,
}

impl Estimate {
    /// Nothing measured yet: `seed` (what its peers show, or [`DEFAULT_LATENCY`]) until the first observation.
    pub fn new(seed: Duration, now: Instant) -> Self {
        Self { seconds: seed.as_secs_f64(), at: now, measured: false, penalty: 0.0, penalized_at: now }
    }

    /// The latency of a try that succeeded. Above the estimate it replaces it; below, it is averaged in by the time passed.
    pub fn succeeded(&mut self, latency: Duration, now: Instant) {
        let seconds = latency.as_secs_f64();
        let kept = decay(self.at, now, DECAY);
        self.seconds = if !self.measured || seconds > self.seconds {
            seconds
        } else {
            self.seconds * kept + seconds * (1.0 - kept)
        };
        self.at = self.at.max(now);
        self.measured = true;
        self.penalty /= 2.0;
    }

    /// A try that failed after `latency`.
    pub fn failed(&mut self, latency: Duration, now: Instant) {
        self.penalty = latency.clamp(LEAST_PENALTY, MOST_PENALTY).as_secs_f64();
        self.penalized_at = now;
    }

    /// A try that had no answer when its client gave it up: no failure, but the endpoint is slower than that.
    pub fn given_up(&mut self, waited: Duration, now: Instant) {
        let seconds = waited.min(MOST_PENALTY).as_secs_f64();
        if seconds > self.latency(now) {
            self.seconds = seconds;
            self.at = self.at.max(now);
            self.measured = true;
        }
    }

    /// The endpoint proved to be well again.
    pub fn pardon(&mut self) {
        self.penalty = 0.0;
    }

    /// Measured latency in seconds, decayed towards zero while nothing is observed, so that a slow endpoint is tried again.
    pub fn latency(&self, now: Instant) -> f64 {
        self.seconds * decay(self.at, now, DECAY)
    }

    pub fn is_measured(&self) -> bool {
        self.measured
    }

    fn seconds(&self, now: Instant) -> f64 {
        let latency = self.latency(now);
        if self.penalty > 0.0 {
            latency.max(self.penalty * decay(self.penalized_at, now, PENALTY_DECAY))
        } else {
            latency
        }
    }
}

/// Expected cost of one more request: lower is better.
pub fn cost(estimate: &Estimate, in_flight: u32, weight: u32, now: Instant) -> f64 {
    estimate.seconds(now) * (f64::from(in_flight) + 1.0) / f64::from(weight.max(1))
}

fn decay(since: Instant, now: Instant, constant: Duration) -> f64 {
    (-now.saturating_duration_since(since).as_secs_f64() / constant.as_secs_f64()).exp()
}

/// What may be sent to an endpoint, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Ready,
    /// Ejected long enough: one request may find out whether it is well again.
    ProbeDue,
    /// This request was there already.
    Tried,
    /// Taken only if nothing better is left: ejection must not make a backend unreachable.
    Ejected,
    /// Taken only if nothing else is left: terminating, but perhaps still serving.
    Draining,
}

/// Chooses among `count` endpoints: two distinct ready ones drawn at random, the cheaper taken. An endpoint that is due
/// for a probe is taken if it is drawn and `admit` agrees. If none is ready, any of the best standing that exists.
pub fn choose(
    count: usize,
    standing: impl Fn(usize) -> Standing,
    cost: impl Fn(usize) -> f64,
    admit: impl Fn(usize) -> bool,
    random: impl Fn() -> u64,
) -> Option<usize> {
    let cheaper = |a: usize, b: usize| {
        if random().is_multiple_of(EXPLORE_ONE_IN) || cost(a) <= cost(b) { a } else { b }
    };
    if count >= 2 {
        for _ in 0..DRAWS {
            let (a, b) = two_of(count, random());
            let standings = (standing(a), standing(b));
            for (index, standing) in [(a, standings.0), (b, standings.1)] {
                if standing == Standing::ProbeDue && admit(index) {
                    return Some(index);
                }
            }
            if standings == (Standing::Ready, Standing::Ready) {
                return Some(cheaper(a, b));
            }
        }
    }
    // Few are ready: look at all.
    let best = (0..count).map(|index| graded(standing(index))).min()?;
    let alike = || (0..count).filter(|index| graded(standing(*index)) == best);
    match alike().count() {
        0 | 1 => alike().next(),
        many => {
            let (a, b) = two_of(many, random());
            Some(cheaper(alike().nth(a)?, alike().nth(b)?))
        }
    }
}

/// A probe nobody admitted is like an ejected endpoint.
fn graded(standing: Standing) -> Standing {
    if standing == Standing::ProbeDue { Standing::Ejected } else { standing }
}

/// Two distinct indices below `count` (at least 2), in random order.
fn two_of(count: usize, random: u64) -> (usize, usize) {
    let a = scale(random as u32, count);
    let b = scale((random >> 32) as u32, count - 1);
    (a, if b >= a { b + 1 } else { b })
}

/// A uniform 32-bit number, mapped to 0..count without division (Lemire 2019).
fn scale(random: u32, count: usize) -> usize {
    ((u64::from(random) * count as u64) >> 32) as usize
}

#[cfg(test)]
mod tests;
