//! What answers tell of the application: how long they took, how many there were, and what a smaller limit did to both.

use std::time::{Duration, Instant};

use super::{LATE, SLOW, seconds};

/// An answer that takes less than this share of the baseline may have bypassed the queue.
const CHEAP: f64 = 0.5;
/// Slow answers (less NOT_SLOW for each that is not) that make evidence.
pub(super) const EVIDENCE: u32 = 16;
const NOT_SLOW: u32 = 4;
/// Answers that a window needs.
pub(super) const SAMPLES: u32 = 50;
/// A window is no shorter.
const SHORTEST: Duration = Duration::from_millis(20);
/// A limit that has become so much smaller must not have cost throughput.
pub(super) const JUDGED_AT: f64 = 0.7;
/// Throughput that fell to less than this share of what the smaller limit explains, or latency that grew as much, has
/// another reason: capacity fell.
const EXPLAINED: f64 = 0.7;
/// A share of the way from what harm would make of throughput and latency to what they were: nearer is harm, more likely
/// than not;
const DOUBTFUL: f64 = 0.5;
/// and throughput nearer than that is harm for certain, if the limit is so much smaller.
const CERTAIN: f64 = 0.25;
const CERTAIN_AT: f64 = 0.4;

/// How long a request took, compared with what is usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Cheap,
    Usual,
    Slow,
}

/// A request that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    /// Seconds.
    pub(super) took: f64,
    /// It was waited for.
    pub(super) answered: bool,
    pub(super) pace: Pace,
}

/// Answers since some moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) since: Instant,
    pub(super) answers: u32,
    /// With those that were not waited for.
    pub(super) samples: u32,
    cheap: u32,
    slow: u32,
    /// Seconds that all of these took.
    sum: f64,
}

/// Answers that were slow, lately.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence {
    weight: u32,
    pub(super) since: Instant,
    pub(super) answers: u32,
    /// With those that were not waited for.
    pub(super) samples: u32,
    sum: f64,
}

/// What the application did under a limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) limit: f64,
    /// Answers per second.
    pub(super) rate: f64,
    /// Seconds that they took.
    pub(super) mean: f64,
}

/// On a limit, compared with a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It cannot be told: the limits are too much alike, or nothing was refused.
    Open,
    /// It costs nothing, or something else has changed: what was measured is what the next is compared with.
    Accepted,
    /// It costs throughput, as it seems; one window may be chance.
    Doubtful,
    /// It costs throughput and makes answers no faster.
    Harmful,
}

impl Pace {
    pub(super) fn of(took: f64, baseline: f64) -> Self {
        if took > slow(baseline) {
            Self::Slow
        } else if took < CHEAP * baseline {
            Self::Cheap
        } else {
            Self::Usual
        }
    }
}

impl Measured {
    /// See the module: harm leaves the latency as it is, and makes the throughput smaller as the limit is.
    pub(super) fn compared(self, larger: Self) -> Verdict {
        let share = self.limit / larger.limit;
        let is_explained = self.rate >= EXPLAINED * share * larger.rate && EXPLAINED * self.mean <= larger.mean;
        if share >= 1.0 || !is_explained {
            return Verdict::Accepted;
        }
        if share > JUDGED_AT {
            return Verdict::Open;
        }
        let between = |harm: f64| share + harm * (1.0 - share);
        if self.rate >= between(DOUBTFUL) * larger.rate || self.mean <= between(DOUBTFUL) * larger.mean {
            Verdict::Accepted
        } else if share <= CERTAIN_AT && self.rate < between(CERTAIN) * larger.rate {
            Verdict::Harmful
        } else {
            Verdict::Doubtful
        }
    }
}

impl Window {
    pub(super) fn new(since: Instant) -> Self {
        Self { since, answers: 0, samples: 0, cheap: 0, slow: 0, sum: 0.0 }
    }

    pub(super) fn add(&mut self, ended: Ended) {
        self.answers += u32::from(ended.answered);
        self.samples += 1;
        self.cheap += u32::from(ended.pace == Pace::Cheap);
        self.slow += u32::from(ended.pace == Pace::Slow);
        self.sum += ended.took;
    }

    pub(super) fn slow_share(&self) -> f64 {
        f64::from(self.slow) / f64::from((self.samples - self.cheap).max(1))
    }

    pub(super) fn is_over(&self, means: f64, now: Instant) -> bool {
        if self.samples < SAMPLES {
            return false;
        }
        let passed = now.saturating_duration_since(self.since);
        passed >= SHORTEST && passed.as_secs_f64() >= means * self.mean()
    }

    pub(super) fn mean(&self) -> f64 {
        self.sum / f64::from(self.samples.max(1))
    }

    pub(super) fn rate(&self, now: Instant) -> f64 {
        f64::from(self.answers) / now.saturating_duration_since(self.since).as_secs_f64().max(1e-6)
    }
}

impl Evidence {
    pub(super) fn new(since: Instant) -> Self {
        Self { weight: 0, since, answers: 0, samples: 0, sum: 0.0 }
    }

    /// `counts`: it speaks for a queue, or against it.
    pub(super) fn add(&mut self, ended: Ended, counts: bool, now: Instant) {
        if ended.pace != Pace::Slow {
            self.weight = self.weight.saturating_sub(if counts { NOT_SLOW } else { 0 });
        } else if self.weight == 0 {
            *self = Self { weight: 1, ..Self::new(now) };
        } else {
            self.weight = (self.weight + 1).min(2 * EVIDENCE);
        }
        if self.weight > 0 {
            self.answers += u32::from(ended.answered);
            self.samples += 1;
            self.sum += ended.took;
        }
    }

    pub(super) fn holds(&self, baseline: f64, now: Instant) -> bool {
        self.weight >= EVIDENCE && now.saturating_duration_since(self.since) >= seconds(baseline / 2.0)
    }

    pub(super) fn mean(&self) -> f64 {
        self.sum / f64::from(self.samples.max(1))
    }

    pub(super) fn rate(&self, now: Instant) -> f64 {
        f64::from(self.answers) / now.saturating_duration_since(self.since).as_secs_f64().max(1e-6)
    }
}

/// Seconds above which an answer is slow.
pub(super) fn slow(baseline: f64) -> f64 {
    (SLOW * baseline).max(baseline + LATE.as_secs_f64())
}
