//! How many requests an application can have at a time, learnt from how long it takes to answer. Pure.
//!
//! After the gradient limiters of Netflix's concurrency-limits and Envoy's adaptive concurrency, with other answers to what
//! hurt their users:
//!
//! - **Nothing is refused without evidence.** There is no limit (but `max`) until answers take more than [`SLOW`] times as
//!   long as usual, four out of five of them, for half as long as an answer usually takes (a standing queue, as CoDel,
//!   RFC 8289, tells it from a burst), and it grows: there are more requests than answers per second times their latency
//!   (Little's law), or that latency goes on growing. An application that answers within twice its usual time is never
//!   refused anything, however much it is asked to do; one with no more than `min` requests neither, however slow.
//! - **No pauses to find out the unloaded latency.** The usual time, [`Adaptive::baseline`], is a mean that follows answers down fast
//!   and up slowly, and up only while there is no limit, so a lasting overload does not become usual.
//! - **A limit that does harm is taken back.** With a limit L the application gives X answers per second within W = L / X. If it is overloaded, a smaller L makes W smaller and leaves X as it is; then the limit becomes what keeps
//!   W at [`TARGET`] times the baseline. If answers only take longer (a slow dependency, dearer requests), a smaller L makes X
//!   smaller and leaves W as it is: then that, seen twice, is the new baseline, and the limit is lifted.

use std::time::{Duration, Instant};

/// An answer that takes so many times the baseline is slow,
pub const SLOW: f64 = 2.0;
/// and at least so much longer: what schedulers and garbage collectors do is no overload.
pub const LATE: Duration = Duration::from_millis(20);
/// What answers take under a limit, as a multiple of the baseline: enough of a queue to keep the application busy.
pub const TARGET: f64 = 1.4;
/// Slow answers (less four for each that is not) that make evidence.
const EVIDENCE: u32 = 16;
const NOT_SLOW: u32 = 4;
/// Answers in flight in excess of those that latency and throughput explain, as a share: the queue is still growing.
const GROWING: f64 = 1.5;
/// Answers that the first baseline is made of, and windows that may change it quickly: what comes first may be the shortest
/// answers, or those of an application that is still warming up.
const FIRST_SAMPLES: u32 = 16;
const FIRST_WINDOWS: u32 = 5;
/// Answers that a window needs.
const SAMPLES: u32 = 50;
/// A window is no shorter.
const SHORTEST: Duration = Duration::from_millis(20);
/// And no shorter than so many times its mean answer, since short ones come first; under a limit, which is to be judged
/// soon, than so many.
const MEANS: f64 = 5.0;
const MEANS_UNDER_LIMIT: f64 = 2.0;
/// The times in which a baseline falls and rises most of the way.
const FALL: Duration = Duration::from_secs(5);
/// See [`FALL`].
const RISE: Duration = Duration::from_secs(60);
/// A latency that has become so many times longer while it was watched grows.
const WATCHED: f64 = 1.5;
/// A first limit lets in at least this share of what is there: it may be a mistake.
const FIRST_CUT: f64 = 0.2;
/// Per window, a limit changes by no more than this.
const STEP_DOWN: f64 = 0.5;
/// See [`STEP_DOWN`].
const STEP_UP: f64 = 1.1;
/// A limit that has become so much smaller must not have cost throughput.
const JUDGED_AT: f64 = 0.7;
/// Without a refusal for so long there is no limit any more.
const RELEASE: Duration = Duration::from_secs(5);
/// After a cut, the queue may take so many times as long to drain as it should before the limit is taken for a mistake.
const PATIENCE: f64 = 3.0;
/// And this in addition.
const PATIENCE_LEAST: Duration = Duration::from_millis(500);

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// The application answered.
    Answered,
    /// It answered that it failed or is overloaded, which may take less time than work does.
    Failed,
    /// The client gave up, or time was up: it would have taken longer.
    Unanswered,
}

/// See the module.
#[derive(Debug)]
pub struct Adaptive {
    min: f64,
    max: f64,
    /// Seconds that an answer usually takes; None: not known yet.
    baseline: Option<f64>,
    /// Windows that it was learnt from, up to FIRST_WINDOWS.
    windows: u32,
    window: Window,
    evidence: Evidence,
    /// Answers per second in the last window.
    usual_rate: f64,
    /// Seconds that slow answers took when they were first seen, and did not get slower.
    watched: Option<f64>,
    /// None: no limit but `max`.
    limited: Option<Limited>,
}

/// Answers since some moment.
#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    answers: u32,
    /// With those that were not waited for.
    samples: u32,
    /// Seconds that these took.
    sum: f64,
}

/// Answers that were slow, lately.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    weight: u32,
    since: Instant,
    answers: u32,
    /// With those that were not waited for.
    samples: u32,
    sum: f64,
}

#[derive(Debug, Clone, Copy)]
struct Limited {
    limit: f64,
    /// The limit was cut then: of those that were let in earlier the queue must first be empty.
    cut: Option<Instant>,
    /// Answers to those since the first cut; None: the queue was empty since.
    drained: Option<u32>,
    /// A larger limit, and the answers per second under it.
    before: (f64, f64),
    /// The last window was one of less throughput.
    doubted: bool,
    refused_in_window: bool,
    last_refused: Instant,
    /// If no request has been let in and answered by then, the limit is a mistake.
    patience: Instant,
}

impl Adaptive {
    pub fn new(min: u32, max: u32, now: Instant) -> Self {
        Self {
            min: f64::from(min),
            max: f64::from(max.max(min)),
            baseline: None,
            windows: 0,
            window: Window::new(now),
            evidence: Evidence::new(now),
            usual_rate: 0.0,
            watched: None,
            limited: None,
        }
    }

    /// Whether these are its bounds.
    pub fn is_within(&self, min: u32, max: u32) -> bool {
        self.min == f64::from(min) && self.max == f64::from(max.max(min))
    }

    /// Requests that may be in flight.
    pub fn limit(&self) -> u32 {
        self.limited.map_or(self.max, |limited| limited.limit).round() as u32
    }

    /// Seconds that an answer usually takes.
    pub fn baseline(&self) -> Option<f64> {
        self.baseline
    }

    /// A request was refused for the limit.
    pub fn refused(&mut self, now: Instant) {
        let Some(limited) = &mut self.limited else { return };
        limited.refused_in_window = true;
        limited.last_refused = now;
        if now > limited.patience {
            self.lift(now);
        }
    }

    /// A request that began at `started` ended; `in_flight` are left.
    pub fn sample(&mut self, started: Instant, sample: Sample, in_flight: u32, now: Instant) {
        let took = now.saturating_duration_since(started).as_secs_f64();
        let slow = self.baseline.is_some_and(|baseline| took > slow(baseline));
        // What fails fast tells nothing of how long work takes; that nobody waited so long for an answer does.
        if sample != Sample::Answered && !slow {
            return;
        }
        let answered = sample != Sample::Unanswered;
        if let Some(limited) = &mut self.limited
            && let Some(cut) = limited.cut
        {
            if started < cut {
                limited.drained = limited.drained.map(|drained| drained.saturating_add(u32::from(answered)));
                self.measure_drain(now);
                return;
            }
            limited.cut = None;
            limited.drained = None;
            self.window = Window::new(now);
        }
        self.window.add(took, answered);
        match self.limited {
            None => {
                self.evidence.add(slow, took, answered, now);
                self.without_limit(in_flight, now);
            }
            Some(limited) => self.under(limited, now),
        }
    }

    fn without_limit(&mut self, in_flight: u32, now: Instant) {
        let Some(baseline) = self.baseline else {
            if self.window.samples >= FIRST_SAMPLES {
                self.baseline = Some(self.window.mean());
                self.window = Window::new(now);
            }
            return;
        };
        let in_flight = f64::from(in_flight);
        if self.evidence.holds(baseline, now) && in_flight > self.min {
            let (rate, mean) = (self.evidence.rate(now).max(self.usual_rate), self.evidence.mean());
            let growing = in_flight > GROWING * rate * mean;
            match self.watched {
                None if !growing => self.watched = Some(mean),
                Some(then) if !growing && mean < WATCHED * then => {}
                _ => return self.cut(baseline, in_flight, rate, now),
            }
            self.evidence = Evidence::new(now);
        }
        if self.window.is_over(MEANS, now) {
            self.usual_rate = self.window.rate(now);
            self.watched = self.watched.filter(|_| self.window.mean() > slow(baseline));
            self.learn(baseline, now);
            self.window = Window::new(now);
        }
    }

    /// Moves the baseline towards the window's mean.
    fn learn(&mut self, baseline: f64, now: Instant) {
        let mean = self.window.mean();
        let most = if mean < baseline { FALL } else { RISE };
        let passed = now.saturating_duration_since(self.window.since).as_secs_f64();
        let part = 1.0 - (-passed / most.as_secs_f64()).exp();
        let part = if self.windows < FIRST_WINDOWS { part.max(0.5) } else { part };
        self.windows = (self.windows + 1).min(FIRST_WINDOWS);
        self.baseline = Some(baseline + part * (mean - baseline));
    }

    /// There is a queue, and it grows: sets a limit.
    fn cut(&mut self, baseline: f64, in_flight: f64, rate: f64, now: Instant) {
        let limit = first_limit(baseline, in_flight, rate);
        let drain = seconds(PATIENCE * (in_flight / rate.max(1e-3)).min(60.0));
        self.limited = Some(Limited {
            limit: limit.clamp(self.min, self.max),
            cut: Some(now),
            drained: Some(0),
            before: (in_flight, rate),
            doubted: false,
            refused_in_window: false,
            last_refused: now,
            patience: now + drain + PATIENCE_LEAST,
        });
        self.window = Window::new(now);
    }

    /// While what was let in before the first limit is answered, the application does all it can: what the limit was made of,
    /// a few answers that may have come together, is replaced by that.
    fn measure_drain(&mut self, now: Instant) {
        let Some(limited) = &mut self.limited else { return };
        let (Some(cut), Some(drained)) = (limited.cut, limited.drained.filter(|drained| *drained >= EVIDENCE)) else {
            return;
        };
        let rate = f64::from(drained) / now.saturating_duration_since(cut).as_secs_f64().max(1e-6);
        let in_flight = limited.before.0;
        limited.before.1 = rate;
        limited.limit = first_limit(self.baseline.unwrap_or_default(), in_flight, rate).clamp(self.min, self.max);
    }

    /// Under a limit: judges it, and moves it to what keeps answers at TARGET times the baseline.
    fn under(&mut self, mut limited: Limited, now: Instant) {
        let baseline = self.baseline.unwrap_or_default();
        if !self.window.is_over(MEANS_UNDER_LIMIT, now) {
            return;
        }
        let (mean, rate) = (self.window.mean(), self.window.rate(now));
        self.usual_rate = rate;
        let (larger, rate_then) = limited.before;
        // Longer than a window should take: requests let in now are answered by then.
        let expected = MEANS_UNDER_LIMIT * mean + f64::from(SAMPLES) / rate.max(1e-3);
        limited.patience = now + seconds(PATIENCE * expected.min(60.0)) + PATIENCE_LEAST;
        let is_judged = limited.limit <= JUDGED_AT * larger && limited.refused_in_window;
        let least = rate_then * (1.0 + limited.limit / larger) / 2.0;
        if is_judged && rate < least && mean > baseline {
            if limited.doubted {
                self.baseline = Some(mean);
                return self.lift(now);
            }
            // One window may be chance.
            self.limited = Some(Limited { doubted: true, refused_in_window: false, ..limited });
            self.window = Window::new(now);
            return;
        }
        if is_judged || limited.limit >= larger {
            limited.before = (limited.limit, rate);
            limited.doubted = false;
        }
        if now.saturating_duration_since(limited.last_refused) > RELEASE {
            return self.lift(now);
        }
        if mean < baseline {
            self.learn(baseline, now);
        }
        let step = (TARGET * baseline / mean.max(1e-9)).clamp(STEP_DOWN, STEP_UP);
        // Grown further than it was ever reached, a limit would mean nothing.
        if step < 1.0 || limited.refused_in_window {
            limited.limit = (limited.limit * step).clamp(self.min, self.max);
        }
        limited.refused_in_window = false;
        limited.cut = (step < JUDGED_AT).then_some(now);
        self.limited = Some(limited);
        self.window = Window::new(now);
    }

    fn lift(&mut self, now: Instant) {
        self.limited = None;
        self.watched = None;
        self.window = Window::new(now);
        self.evidence = Evidence::new(now);
    }
}

impl Window {
    fn new(since: Instant) -> Self {
        Self { since, answers: 0, samples: 0, sum: 0.0 }
    }

    fn add(&mut self, took: f64, answered: bool) {
        self.answers += u32::from(answered);
        self.samples += 1;
        self.sum += took;
    }

    fn is_over(&self, means: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        self.samples >= SAMPLES && passed >= SHORTEST && passed.as_secs_f64() >= means * self.mean()
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.samples.max(1))
    }

    fn rate(&self, now: Instant) -> f64 {
        f64::from(self.answers) / now.saturating_duration_since(self.since).as_secs_f64().max(1e-6)
    }
}

impl Evidence {
    fn new(since: Instant) -> Self {
        Self { weight: 0, since, answers: 0, samples: 0, sum: 0.0 }
    }

    fn add(&mut self, slow: bool, took: f64, answered: bool, now: Instant) {
        if !slow {
            self.weight = self.weight.saturating_sub(NOT_SLOW);
        } else if self.weight == 0 {
            *self = Self { weight: 1, ..Self::new(now) };
        } else {
            self.weight = (self.weight + 1).min(2 * EVIDENCE);
        }
        if self.weight > 0 {
            self.answers += u32::from(answered);
            self.samples += 1;
            self.sum += took;
        }
    }

    fn holds(&self, baseline: f64, now: Instant) -> bool {
        self.weight >= EVIDENCE && now.saturating_duration_since(self.since) >= seconds(baseline / 2.0)
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.samples.max(1))
    }

    fn rate(&self, now: Instant) -> f64 {
        f64::from(self.answers) / now.saturating_duration_since(self.since).as_secs_f64().max(1e-6)
    }
}

fn first_limit(baseline: f64, in_flight: f64, rate: f64) -> f64 {
    (TARGET * rate * baseline).max(FIRST_CUT * in_flight)
}

/// Seconds above which an answer is slow.
fn slow(baseline: f64) -> f64 {
    (SLOW * baseline).max(baseline + LATE.as_secs_f64())
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(60)).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests;
