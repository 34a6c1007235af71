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
//!   smaller and leaves W as it is: then that, seen clearly or twice, is the new baseline, and the limit is lifted.
//! - **Cheap requests neither hide an overload nor measure it.** What is answered far sooner than usual never stood in the
//!   queue (a cache, a health check), and is no evidence against one; unless most of the others usually are slow, and so only
//!   dearer. Nor does it end or measure the draining of the queue after a cut.

mod measured;

use std::time::{Duration, Instant};

use self::measured::{EVIDENCE, Ended, Evidence, JUDGED_AT, Measured, Pace, SAMPLES, Verdict, Window, slow};

/// An answer that takes so many times the baseline is slow,
pub const SLOW: f64 = 2.0;
/// and at least so much longer: what schedulers and garbage collectors do is no overload.
pub const LATE: Duration = Duration::from_millis(20);
/// What answers take under a limit, as a multiple of the baseline: enough of a queue to keep the application busy.
pub const TARGET: f64 = 1.4;
/// Cheap answers speak against a queue only where more than this share of the others is slow usually: there, some requests
/// are merely dearer than others.
const USUALLY_SLOW: f64 = 0.5;
/// Answers in flight in excess of those that latency and throughput explain, as a share: the queue is still growing.
const GROWING: f64 = 1.5;
/// Answers that the first baseline is made of, and windows that may change it quickly: what comes first may be the shortest
/// answers, or those of an application that is still warming up.
const FIRST_SAMPLES: u32 = 16;
const FIRST_WINDOWS: u32 = 5;
/// A window is no shorter than so many times its mean answer, since short ones come first; under a limit, which is to be judged
/// soon, than so many, and for a clear verdict of harm, than so many.
const MEANS: f64 = 5.0;
const MEANS_UNDER_LIMIT: f64 = 2.0;
const MEANS_FOR_HARM: f64 = 1.0;
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
/// Answers may come together, and a cut falls on the first of them: so much of a baseline is added to the time of a drain.
const TOGETHER: f64 = 0.5;
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
    /// The share of slow answers among those that are not cheap, as it usually is; 1 until it is known.
    usually_slow: f64,
    /// Answers per second in the last window.
    usual_rate: f64,
    /// Seconds that slow answers took when they were first seen, and did not get slower.
    watched: Option<f64>,
    /// None: no limit but `max`.
    limited: Option<Limited>,
}

#[derive(Debug, Clone, Copy)]
struct Limited {
    limit: f64,
    /// The limit was cut then: of those that were let in earlier the queue must first be empty.
    cut: Option<Instant>,
    /// Those of them that ended since the first cut; None: the queue was empty since.
    drained: Option<Window>,
    /// Under a larger limit.
    before: Measured,
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
            usually_slow: 1.0,
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

    /// A request that began at `started` and `took` so long ended; `in_flight` are left.
    pub fn ended(&mut self, (started, took): (Instant, Duration), sample: Sample, in_flight: u32, now: Instant) {
        let took = took.as_secs_f64();
        let pace = self.baseline.map_or(Pace::Usual, |baseline| Pace::of(took, baseline));
        // What fails fast tells nothing of how long work takes; that nobody waited so long for an answer does.
        if sample != Sample::Answered && pace != Pace::Slow {
            return;
        }
        let ended = Ended { took, answered: sample != Sample::Unanswered, pace };
        if let Some(limited) = &mut self.limited
            && let Some(cut) = limited.cut
        {
            if started < cut {
                return self.measure_drain(ended, now);
            }
            // It never stood in the queue that is to drain.
            if pace == Pace::Cheap && now < limited.patience {
                return;
            }
            limited.cut = None;
            limited.drained = None;
            self.window = Window::new(now);
        }
        self.window.add(ended);
        match self.limited {
            None => {
                let counts = pace != Pace::Cheap || self.usually_slow > USUALLY_SLOW;
                self.evidence.add(ended, counts, now);
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
            self.usually_slow = self.moved(self.usually_slow, self.window.slow_share(), now);
            self.learn(baseline, now);
            self.window = Window::new(now);
        }
    }

    /// Moves the baseline towards the window's mean.
    fn learn(&mut self, baseline: f64, now: Instant) {
        self.baseline = Some(self.moved(baseline, self.window.mean(), now));
        self.windows = (self.windows + 1).min(FIRST_WINDOWS);
    }

    /// What is usual, after a window in which it was `seen`.
    fn moved(&self, usual: f64, seen: f64, now: Instant) -> f64 {
        let most = if seen < usual { FALL } else { RISE };
        let passed = now.saturating_duration_since(self.window.since).as_secs_f64();
        let part = 1.0 - (-passed / most.as_secs_f64()).exp();
        let part = if self.windows < FIRST_WINDOWS { part.max(0.5) } else { part };
        usual + part * (seen - usual)
    }

    /// There is a queue, and it grows: sets a limit.
    fn cut(&mut self, baseline: f64, in_flight: f64, rate: f64, now: Instant) {
        let seen = Measured { limit: in_flight, rate, mean: self.evidence.mean() };
        self.limited = Some(Limited {
            limit: first_limit(baseline, in_flight, rate).clamp(self.min, self.max),
            cut: Some(now),
            drained: Some(Window::new(now)),
            before: seen,
            doubted: false,
            refused_in_window: false,
            last_refused: now,
            // By what it does now: it may do less than it usually did.
            patience: now + patience(in_flight / self.evidence.rate(now).max(1e-3)),
        });
        self.window = Window::new(now);
    }

    /// While what was let in before the first limit is answered, the application does all it can: what the limit was made of,
    /// a few answers that may have come together, is replaced by that.
    fn measure_drain(&mut self, ended: Ended, now: Instant) {
        let Some(limited) = &mut self.limited else { return };
        let Some(drained) = &mut limited.drained else { return };
        drained.add(ended);
        let baseline = self.baseline.unwrap_or_default();
        let passed = now.saturating_duration_since(drained.since).as_secs_f64();
        if drained.answers < EVIDENCE || passed < baseline {
            return;
        }
        let in_flight = limited.before.limit;
        let rate = f64::from(drained.answers) / (passed + TOGETHER * baseline).max(1e-6);
        limited.before = Measured { limit: in_flight, rate, mean: drained.mean() };
        limited.limit = first_limit(baseline, in_flight, rate).clamp(self.min, self.max);
        limited.patience = drained.since + patience(in_flight / rate);
    }

    /// Under a limit: judges it, and moves it to what keeps answers at TARGET times the baseline.
    fn under(&mut self, mut limited: Limited, now: Instant) {
        let baseline = self.baseline.unwrap_or_default();
        if !self.window.is_over(MEANS_FOR_HARM, now) {
            return;
        }
        let (mean, rate) = (self.window.mean(), self.window.rate(now));
        let measured = Measured { limit: limited.limit, rate, mean };
        let verdict = limited.verdict(measured, baseline);
        let is_over = self.window.is_over(MEANS_UNDER_LIMIT, now);
        if verdict == Verdict::Harmful || is_over && limited.doubted && verdict == Verdict::Doubtful {
            self.baseline = Some(mean);
            return self.lift(now);
        }
        if !is_over {
            return;
        }
        self.usual_rate = rate;
        // Longer than a window should take: requests let in now are answered by then.
        limited.patience = now + patience(MEANS_UNDER_LIMIT * mean + f64::from(SAMPLES) / rate.max(1e-3));
        limited.doubted = verdict == Verdict::Doubtful;
        if limited.doubted {
            self.limited = Some(Limited { refused_in_window: false, ..limited });
            self.window = Window::new(now);
            return;
        }
        if verdict == Verdict::Accepted {
            limited.before = measured;
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

impl Limited {
    fn verdict(&self, measured: Measured, baseline: f64) -> Verdict {
        // Without a refusal, it was as much as was asked for.
        if !self.refused_in_window {
            return Verdict::Open;
        }
        match measured.compared(self.before) {
            // It need not become smaller, and may grow again.
            Verdict::Doubtful | Verdict::Harmful if measured.mean <= TARGET * baseline => Verdict::Accepted,
            verdict => verdict,
        }
    }
}

/// For what was in flight without a limit: less than that.
fn first_limit(baseline: f64, in_flight: f64, rate: f64) -> f64 {
    (TARGET * rate * baseline).max(FIRST_CUT * in_flight).min(in_flight)
}

/// How long to wait for what should take so many seconds.
fn patience(expected: f64) -> Duration {
    seconds(PATIENCE * expected.min(60.0)) + PATIENCE_LEAST
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(60)).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests;
