//! How many requests the application has at a time: no limit, a fixed one, or one that follows what it can do
//! ([`adaptive`]). Decided before the application sees the request, which is why the client's proxy may send it to another
//! endpoint; there is no queue here, since another endpoint now is better than this one later, and the application's own
//! queue is what keeps it busy.
//!
//! A request counts from its head to the head of its answer, so WebSockets, tunnels and streamed answers do not count
//! while they last. What waits longer than AGED for its answer's head (long polls, watches, streams whose client is
//! still sending) is not counted by the adaptive limit any more ([`in_flight`]) and tells it nothing. A fixed limit counts
//! all that have no answer's head yet.

pub mod adaptive;
mod in_flight;
#[cfg(test)]
mod simulation;

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{Gauge, Label};
use parking_lot::Mutex;

use self::{
    adaptive::{Adaptive, Sample},
    in_flight::{InFlight, Slot},
};
use crate::{config::limits, telemetry::register_gauge};

/// What a port's policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    Off,
    /// So many requests without an answer.
    Fixed(u32),
    /// Never fewer than `min`, never more than `max`.
    Adaptive {
        min: u32,
        max: u32,
    },
}

impl Default for Concurrency {
    fn default() -> Self {
        Self::Adaptive { min: limits::CONCURRENCY_MIN, max: limits::CONCURRENCY_MAX }
    }
}

const OFF: u8 = 0;
const FIXED: u8 = 1;
const ADAPTIVE: u8 = 2;

/// Shared by all workers. Its lock is never waited for: a sample that finds another worker there is left out.
#[derive(Debug)]
pub struct Limiter {
    port: u16,
    /// Of the adaptive limit, since it was first less than its most.
    gauge: OnceLock<Gauge>,
    mode: AtomicU8,
    /// In force now.
    limit: AtomicU32,
    in_flight: InFlight,
    adaptive: Mutex<Adaptive>,
}

/// More requests are there than the limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded;

/// One request that counts, until it is dropped.
#[derive(Debug)]
pub struct Permit<'a> {
    limiter: &'a Limiter,
    slot: Slot,
    started: Instant,
    told: bool,
}

impl Limiter {
    pub fn new(port: u16, settings: Concurrency, now: Instant) -> Self {
        let limiter = Self {
            port,
            gauge: OnceLock::new(),
            mode: AtomicU8::new(OFF),
            limit: AtomicU32::new(u32::MAX),
            in_flight: InFlight::default(),
            adaptive: Mutex::new(Adaptive::new(0, 0, now)),
        };
        limiter.set(settings, now);
        limiter
    }

    /// Puts other settings in force. What was learnt stays if it is still asked for.
    pub fn set(&self, settings: Concurrency, now: Instant) {
        let mut adaptive = self.adaptive.lock();
        let (mode, limit) = match settings {
            Concurrency::Off => (OFF, u32::MAX),
            Concurrency::Fixed(limit) => (FIXED, limit),
            Concurrency::Adaptive { min, max } => {
                if !adaptive.is_within(min, max) {
                    *adaptive = Adaptive::new(min, max, now);
                }
                (ADAPTIVE, adaptive.limit())
            }
        };
        self.limit.store(limit, Ordering::Relaxed);
        self.mode.store(mode, Ordering::Relaxed);
    }

    /// Lets a request in that began at `now`. None: there is no limit.
    ///
    /// # Errors
    /// If too many are there.
    pub fn enter(&self, now: Instant) -> Result<Option<Permit<'_>>, Crowded> {
        let mode = self.mode.load(Ordering::Relaxed);
        if mode == OFF {
            return Ok(None);
        }
        let (slot, all, recent) = self.in_flight.enter(now);
        let counted = if mode == FIXED { all } else { recent };
        if counted > self.limit.load(Ordering::Relaxed) {
            self.in_flight.leave(slot);
            if mode == ADAPTIVE
                && let Some(mut adaptive) = self.adaptive.try_lock()
            {
                adaptive.refused(now);
                self.publish(adaptive.limit());
            }
            return Err(Crowded);
        }
        Ok(Some(Permit { limiter: self, slot, started: now, told: false }))
    }

    /// The limit in force; None: there is none.
    pub fn limit(&self) -> Option<u32> {
        (self.mode.load(Ordering::Relaxed) != OFF).then(|| self.limit.load(Ordering::Relaxed))
    }

    fn sample(&self, (started, took): (Instant, Duration), sample: Sample, now: Instant) {
        if self.mode.load(Ordering::Relaxed) != ADAPTIVE {
            return;
        }
        if let Some(mut adaptive) = self.adaptive.try_lock() {
            adaptive.ended((started, took), sample, self.in_flight.recent(), now);
            let limit = adaptive.limit();
            drop(adaptive);
            self.publish(limit);
        }
    }

    fn publish(&self, limit: u32) {
        // Written when it changes: it is read by every request of every worker.
        if self.limit.load(Ordering::Relaxed) != limit {
            self.limit.store(limit, Ordering::Relaxed);
            let register = || register_gauge("leno_concurrency_limit", &[Label::new("port", self.port.to_string())]);
            self.gauge.get_or_init(register).set(f64::from(limit));
        }
    }
}

impl fmt::Display for Limiter {
    /// What is in force now, and how much of it is taken.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit.load(Ordering::Relaxed);
        match self.mode.load(Ordering::Relaxed) {
            FIXED => write!(f, "{} of {limit} requests at a time (fixed)", self.in_flight.all()),
            ADAPTIVE => write!(f, "{} of {limit} requests at a time (adaptive)", self.in_flight.recent()),
            _ => write!(f, "{} requests at a time, no limit", self.in_flight.all()),
        }
    }
}

impl Permit<'_> {
    /// The answer's head has come.
    pub fn answered(mut self, sample: Option<Sample>, now: Instant) {
        self.told = true;
        if let Some(sample) = sample {
            self.tell(sample, now);
        }
    }

    fn tell(&self, sample: Sample, now: Instant) {
        let took = now.saturating_duration_since(self.started);
        if took < in_flight::AGED {
            self.limiter.sample((self.started, took), sample, now);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.limiter.in_flight.leave(self.slot);
        if !self.told {
            self.tell(Sample::Unanswered, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_limit_counts_all() {
        let now = Instant::now();
        let limiter = Limiter::new(80, Concurrency::Fixed(2), now);
        let first = limiter.enter(now).unwrap();
        let late = now + 10 * in_flight::AGED;
        let second = limiter.enter(late).unwrap();
        assert!(first.is_some() && limiter.enter(late).is_err());
        drop(second);
        assert!(limiter.enter(late).is_ok());
        limiter.set(Concurrency::Off, now);
        assert!(limiter.enter(late).unwrap().is_none() && limiter.limit().is_none());
    }

    #[test]
    fn an_adaptive_limit_does_not_count_what_has_waited_long() {
        let now = Instant::now();
        let limiter = Limiter::new(80, Concurrency::Adaptive { min: 2, max: 3 }, now);
        let watches: Vec<_> = (0..3).map(|_| limiter.enter(now).unwrap()).collect();
        assert!(limiter.enter(now).is_err());
        let late = now + 2 * in_flight::AGED;
        for _ in 0..100 {
            assert!(limiter.enter(late).is_ok());
        }
        drop(watches);
        assert_eq!(limiter.in_flight.recent(), 0);
    }
}
