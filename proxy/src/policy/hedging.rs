//! When a request that is not answered is sent to another endpoint too (Dean and Barroso, "The Tail at Scale", 2013): after a
//! fixed time, or when it takes longer than most.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// A rule's hedging.
#[derive(Debug)]
pub struct Hedge {
    /// The wait; with `quantile`: the shortest.
    pub delay: Option<Duration>,
    /// In per cent: the wait is the latency that so many answers stay below.
    pub quantile: Option<u32>,
    /// Whether requests that are not known to be repeatable are sent twice, too.
    pub any_method: bool,
    /// Shared with earlier versions of the rule.
    pub latencies: Arc<Latencies>,
}

impl Hedge {
    /// The same, with what an earlier version of the rule has learnt.
    pub fn taking_over(self, before: &Self) -> Self {
        let latencies = Arc::clone(&before.latencies);
        if let Some(percent) = self.quantile.filter(|_| self.quantile != before.quantile) {
            latencies.find(percent);
        }
        Self { latencies, ..self }
    }

    /// How long to wait for an answer; None: not known yet.
    pub fn wait(&self) -> Option<Duration> {
        match self.quantile {
            None => self.delay,
            Some(_) => {
                let seen = self.latencies.quantile()?;
                Some(seen.max(self.delay.unwrap_or_default()))
            }
        }
    }

    /// An answer came after so long.
    pub fn observe(&self, latency: Duration) {
        if let Some(percent) = self.quantile {
            self.latencies.record(latency, percent);
        }
    }
}

/// Eight steps for each doubling, so that a step is at most an eighth of what it stands for.
const STEPS: u64 = 8;
/// Up to 2^32 microseconds, more than an hour.
const BUCKETS: usize = 31 * STEPS as usize;
/// After so many the past counts half.
const MEMORY: u32 = 8192;
/// Answers without which there is no quantile.
const LEAST: u32 = 100;
/// The quantile is looked up anew after so many answers.
const EVERY: u32 = 32;

/// Latencies of late, shared by all workers: counts on a logarithmic scale.
#[derive(Debug)]
pub struct Latencies {
    counts: Box<[AtomicU32]>,
    total: AtomicU32,
    /// Microseconds; 0: not known.
    found: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        let counts = std::iter::repeat_with(AtomicU32::default).take(BUCKETS).collect();
        Self { counts, total: AtomicU32::new(0), found: AtomicU64::new(0) }
    }
}

impl Latencies {
    fn record(&self, latency: Duration, percent: u32) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(bucket(micros)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let total = self.total.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if total.is_multiple_of(EVERY) {
            self.find(percent);
        }
        if total == MEMORY {
            self.age();
        }
    }

    /// Looks the quantile up anew, if enough is known.
    fn find(&self, percent: u32) {
        if self.total.load(Ordering::Relaxed) >= LEAST {
            self.found.store(self.search(percent), Ordering::Relaxed);
        }
    }

    /// What was last found.
    fn quantile(&self) -> Option<Duration> {
        match self.found.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    fn search(&self, percent: u32) -> u64 {
        let counts = || self.counts.iter().map(|count| u64::from(count.load(Ordering::Relaxed)));
        let wanted = (counts().sum::<u64>() * u64::from(percent)).div_ceil(100);
        let mut below = 0;
        for (index, count) in counts().enumerate() {
            below += count;
            if below >= wanted {
                return top(index).max(1);
            }
        }
        0
    }

    /// Others may count meanwhile: a few are lost or count twice.
    fn age(&self) {
        let mut total = 0;
        for count in &self.counts {
            let half = count.load(Ordering::Relaxed) / 2;
            count.store(half, Ordering::Relaxed);
            total += half;
        }
        self.total.store(total, Ordering::Relaxed);
    }
}

/// Of what lasts so many microseconds.
fn bucket(micros: u64) -> usize {
    let micros = micros.max(1);
    let power = u64::from(micros.ilog2());
    // The three bits after the highest.
    let step = if power >= 3 { (micros >> (power - 3)) & (STEPS - 1) } else { (micros << (3 - power)) & (STEPS - 1) };
    usize::try_from(power * STEPS + step).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The most microseconds of a bucket.
fn top(index: usize) -> u64 {
    let (power, step) = (index as u64 / STEPS, index as u64 % STEPS);
    let next = (STEPS + step + 1) << power;
    next / STEPS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fixed_delay_is_known_at_once_and_a_quantile_after_a_while() {
        let fixed = Hedge {
            delay: Some(Duration::from_millis(10)),
            quantile: None,
            any_method: false,
            latencies: Arc::default(),
        };
        assert_eq!(fixed.wait(), Some(Duration::from_millis(10)));
        let late = Hedge { quantile: Some(90), ..fixed };
        assert_eq!(late.wait(), None);
        for n in 0..1000_u64 {
            late.observe(Duration::from_millis(n % 100));
        }
        let wait = late.wait().unwrap().as_secs_f64();
        assert!((0.089..0.105).contains(&wait), "{wait}");
        (0..20_000).for_each(|_| late.observe(Duration::from_micros(100)));
        assert_eq!(late.wait(), Some(Duration::from_millis(10)), "the past is forgotten; no sooner than its delay");
    }

    proptest! {
        #[test]
        fn a_bucket_is_close_to_what_is_in_it(micros in 1_u64..1 << 31) {
            let top = top(bucket(micros));
            prop_assert!(top >= micros && top <= micros + micros / 8 + 1, "{micros} in a bucket up to {top}");
        }
    }
}
