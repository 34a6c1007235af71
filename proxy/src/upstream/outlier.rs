//! Passive outlier ejection of one endpoint: closed, ejected for a growing time, one probe, closed again. [`Outlier`]
//! is pure (takes `now`); [`Gate`] shares it among workers, so that a healthy endpoint costs two atomic loads.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Failures in a row that eject.
pub const CONSECUTIVE_FAILURES: u32 = 5;
/// First ejection; the n-th lasts n times as long.
pub const BASE_EJECTION: Duration = Duration::from_secs(5);
/// No ejection is longer.
pub const MAX_EJECTION: Duration = Duration::from_secs(300);
/// Time in service after which one earlier ejection is forgotten.
pub const FORGIVE_AFTER: Duration = Duration::from_secs(30);
/// A probe without a result for so long is given up, and another admitted.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// Ejections are longer by up to this share, at random, so that proxies do not probe in step.
const JITTER: f64 = 0.25;

/// What a try's result may decide over an endpoint that is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sent while the endpoint was in service: nothing.
    Ordinary,
    /// Sent to an ejected endpoint for want of a better one: its success brings the endpoint back, its failure is what was
    /// to be expected.
    LastResort,
    /// Admitted by [`Outlier::admit_probe`]: whether the endpoint comes back, or is ejected for longer.
    Probe,
}

/// The state of one endpoint.
#[derive(Debug)]
pub struct Outlier {
    state: State,
    /// Ejections not yet forgiven.
    ejections: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
        since: Option<Instant>,
    },
    Ejected {
        until: Instant,
    },
    /// One request finds out; given up at `patience`.
    Probing {
        patience: Instant,
    },
}

impl Default for Outlier {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0, since: None }, ejections: 0 }
    }
}

impl Outlier {
    /// A try's result. `jitter` is in 0.0..1.0; `may_eject` is asked only when the endpoint is about to be ejected.
    /// True: it has just been ejected.
    pub fn record(
        &mut self,
        success: bool,
        role: Role,
        now: Instant,
        jitter: f64,
        may_eject: impl FnOnce() -> bool,
    ) -> bool {
        match (&mut self.state, success, role) {
            (State::Closed { failures, .. }, true, _) => {
                *failures = 0;
                false
            }
            (State::Closed { failures, since }, false, _) => {
                *failures = failures.saturating_add(1);
                if *failures < CONSECUTIVE_FAILURES || !may_eject() {
                    return false;
                }
                let served = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                let forgiven = served.as_secs() / FORGIVE_AFTER.as_secs();
                self.ejections = self.ejections.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
                self.eject(now, jitter);
                true
            }
            // What was under way before the ejection tells nothing new.
            (State::Ejected { .. } | State::Probing { .. }, _, Role::Ordinary) => false,
            (State::Ejected { .. } | State::Probing { .. }, true, Role::LastResort | Role::Probe) => {
                self.state = State::Closed { failures: 0, since: Some(now) };
                false
            }
            (State::Probing { .. }, false, Role::Probe) => {
                self.eject(now, jitter);
                true
            }
            // Ejected it is already: by this failure no more than before. (A probe: one that was given up.)
            (State::Ejected { .. }, false, _) | (State::Probing { .. }, false, Role::LastResort) => false,
        }
    }

    fn eject(&mut self, now: Instant, jitter: f64) {
        self.ejections = self.ejections.saturating_add(1);
        let length = BASE_EJECTION.saturating_mul(self.ejections).min(MAX_EJECTION);
        self.state = State::Ejected { until: now + length.mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0)) };
    }

    /// Whether this request may be the probe; if so, no other is until it has a result.
    pub fn admit_probe(&mut self, now: Instant) -> bool {
        let due = match self.state {
            State::Closed { .. } => return false,
            State::Ejected { until } => until,
            State::Probing { patience } => patience,
        };
        if now < due {
            return false;
        }
        self.state = State::Probing { patience: now + PROBE_PATIENCE };
        true
    }

    /// The probe came to nothing: another may be admitted at once.
    pub fn abandon_probe(&mut self, now: Instant) {
        if let State::Probing { .. } = self.state {
            self.state = State::Ejected { until: now };
        }
    }

    /// When a probe is due; None: in service.
    fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => None,
            State::Ejected { until: at } | State::Probing { patience: at } => Some(at),
        }
    }

    fn is_spotless(&self) -> bool {
        matches!(self.state, State::Closed { failures: 0, .. })
    }
}

/// An endpoint's [`Outlier`], shared by all workers.
#[derive(Debug, Default)]
pub struct Gate {
    /// [`millis`] at which a probe is due; 0: in service.
    probe_at: AtomicU64,
    /// A success has something to reset.
    stained: AtomicBool,
    state: Mutex<Outlier>,
}

/// How [`Gate`] stands, without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    InService,
    Ejected,
    /// [`Gate::admit_probe`] may be asked.
    ProbeDue,
}

impl Gate {
    pub fn health(&self, now: Instant) -> Health {
        match self.probe_at.load(Ordering::Relaxed) {
            0 => Health::InService,
            at if millis(now) < at => Health::Ejected,
            _ => Health::ProbeDue,
        }
    }

    /// See [`Outlier::record`].
    pub fn record(&self, success: bool, role: Role, now: Instant, may_eject: impl FnOnce() -> bool) -> bool {
        if success && !self.stained.load(Ordering::Relaxed) {
            return false;
        }
        // Bits that nobody can foresee to the nanosecond are jitter enough.
        let jitter = f64::from(now.saturating_duration_since(*EPOCH).subsec_nanos() % 1000) / 1000.0;
        let mut state = self.state.lock();
        let ejected = state.record(success, role, now, jitter, may_eject);
        self.publish(&state);
        ejected
    }

    /// See [`Outlier::admit_probe`].
    pub fn admit_probe(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let admitted = state.admit_probe(now);
        self.publish(&state);
        admitted
    }

    /// See [`Outlier::abandon_probe`].
    pub fn abandon_probe(&self, now: Instant) {
        let mut state = self.state.lock();
        state.abandon_probe(now);
        self.publish(&state);
    }

    fn publish(&self, state: &Outlier) {
        // Never 0, and rounded up: not due before its time.
        let at = state.probe_at().map_or(0, |at| millis(at).saturating_add(1));
        self.probe_at.store(at, Ordering::Relaxed);
        self.stained.store(!state.is_spotless(), Ordering::Relaxed);
    }
}

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since some moment early in this process: an instant that fits an atomic.
pub fn millis(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
