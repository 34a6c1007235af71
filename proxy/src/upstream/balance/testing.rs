//! Endpoints for tests, as one wants them.

use std::{cell::Cell, time::Instant};

use super::{Candidates, DEFAULT_LATENCY, Estimate, Sampler, Standing};
use crate::worker::Random;

pub(super) struct Endpoints {
    pub(super) standings: Vec<Standing>,
    pub(super) in_flight: Vec<u32>,
    pub(super) estimates: Vec<Estimate>,
    pub(super) weights: Vec<u32>,
    pub(super) warmth: Vec<f64>,
    /// Probes that will still be admitted.
    pub(super) probes: Cell<usize>,
}

impl Endpoints {
    /// Ready, idle and alike.
    pub(super) fn ready(count: usize, now: Instant) -> Self {
        Self::of(&vec![Standing::Ready; count], now)
    }

    pub(super) fn of(standings: &[Standing], now: Instant) -> Self {
        let count = standings.len();
        Self {
            standings: standings.to_vec(),
            in_flight: vec![0; count],
            estimates: vec![Estimate::new(DEFAULT_LATENCY, now); count],
            weights: vec![1; count],
            warmth: vec![1.0; count],
            probes: Cell::new(0),
        }
    }

    pub(super) fn weighing(weights: &[u32], now: Instant) -> Self {
        Self { weights: weights.to_vec(), ..Self::ready(weights.len(), now) }
    }

    pub(super) fn sampler(&self) -> Sampler {
        Sampler::new(self.weights.iter().copied())
    }
}

impl Candidates for Endpoints {
    fn count(&self) -> usize {
        self.standings.len()
    }

    fn standing(&self, index: usize) -> Standing {
        self.standings[index]
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.in_flight[index]
    }

    fn estimate(&self, index: usize) -> Estimate {
        self.estimates[index]
    }

    fn weight(&self, index: usize) -> f64 {
        let total: u32 = self.weights.iter().sum();
        f64::from(self.weights[index]) * self.weights.len() as f64 / f64::from(total)
    }

    fn warmth(&self, index: usize) -> f64 {
        self.warmth[index]
    }

    fn admit(&self, _: usize) -> bool {
        self.probes.replace(self.probes.get().saturating_sub(1)) > 0
    }
}

pub(super) fn generator(seed: u64) -> impl Fn() -> u64 {
    let random = Random::seeded(seed);
    move || random.next()
}
