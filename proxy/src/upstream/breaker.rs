//! The circuit breaker of one backend: closed, open for a growing time, half-open with a bounded number of probes, closed
//! again after enough of them succeeded. [`Circuit`] is pure (takes `now`); [`Breaker`] shares it among workers, so that a
//! healthy backend costs a load or two (and, if a ratio is asked for, one addition) per try.
//!
//! It counts tries, not requests, and whatever endpoint they went to: an endpoint that fails alone is
//! [`super::outlier`]'s business.

mod window;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::outlier::millis;
use window::Window;

/// Time closed after which earlier openings are forgotten.
pub const FORGIVE_AFTER: Duration = Duration::from_secs(60);
/// While probes without a result hold all places for so long, another is admitted.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// It stays open longer by up to this share, at random, so that proxies do not probe in step.
const JITTER: f64 = 0.25;
/// What clients are told while probes are under way.
const HALF_OPEN_RETRY: Duration = Duration::from_secs(1);

/// When it opens, for how long, and when it closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that open it. None: no such condition.
    pub consecutive: Option<u32>,
    /// Share of failures, in per cent, within `window` that opens it. None: no such condition.
    pub percent: Option<u32>,
    /// What `percent` looks back on.
    pub window: Duration,
    /// Tries within `window` below which `percent` says nothing.
    pub minimum_volume: u32,
    /// The first opening; each further one lasts twice as long as the last.
    pub open: Duration,
    /// No opening is longer (but for the jitter).
    pub open_max: Duration,
    /// Tries let through at a time, half-open.
    pub probes: u32,
    /// Probes that must succeed, none failing in between.
    pub successes: u32,
}

#[cfg(test)]
impl Settings {
    /// Failures in a row open it, for longer than a test takes; one probe decides.
    pub(crate) fn opens_after(failures: u32) -> Arc<Self> {
        Arc::new(Self {
            consecutive: Some(failures),
            percent: None,
            window: Duration::from_secs(10),
            minimum_volume: 1,
            open: Duration::from_secs(60),
            open_max: Duration::from_secs(60),
            probes: 1,
            successes: 1,
        })
    }
}

/// The state of one breaker.
#[derive(Debug)]
pub struct Circuit {
    state: State,
    /// Openings in a row, not yet forgiven.
    openings: u32,
    /// All openings that there ever were: which of them a probe belongs to.
    opened: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { since: Option<Instant> },
    Open { until: Instant },
    HalfOpen { probes: u32, successes: u32, patience: Instant },
}

/// What a try may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Made while it was closed.
    Ordinary,
    /// Half-open after that opening of the circuit: its result counts, and must be told ([`Circuit::probed`]).
    Probe { opened: u64 },
}

impl Default for Circuit {
    fn default() -> Self {
        Self { state: State::Closed { since: None }, openings: 0, opened: 0 }
    }
}

impl Circuit {
    /// Enough has failed. False: it was open already. `jitter` is in 0.0..1.0.
    pub fn trip(&mut self, settings: &Settings, now: Instant, jitter: f64) -> bool {
        let State::Closed { since } = self.state else { return false };
        if since.is_some_and(|since| now.saturating_duration_since(since) >= FORGIVE_AFTER) {
            self.openings = 0;
        }
        self.open(settings, now, jitter);
        true
    }

    fn open(&mut self, settings: &Settings, now: Instant, jitter: f64) {
        let length = settings.open.saturating_mul(1 << self.openings.min(16)).min(settings.open_max);
        self.openings = self.openings.saturating_add(1);
        self.opened = self.opened.wrapping_add(1);
        self.state = State::Open { until: now + length.mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0)) };
    }

    /// Whether a try may be made, and what its result decides.
    ///
    /// # Errors
    /// How long to wait, if it may not.
    pub fn admit(&mut self, settings: &Settings, now: Instant) -> Result<Role, Duration> {
        match &mut self.state {
            State::Closed { .. } => return Ok(Role::Ordinary),
            State::Open { until } if now < *until => return Err(until.saturating_duration_since(now)),
            State::Open { .. } => {
                self.state = State::HalfOpen { probes: 1, successes: 0, patience: now + PROBE_PATIENCE };
            }
            State::HalfOpen { probes, patience, .. } => {
                if *probes >= settings.probes && now < *patience {
                    return Err(HALF_OPEN_RETRY);
                }
                *probes = probes.saturating_add(1).min(settings.probes.max(1));
                *patience = now + PROBE_PATIENCE;
            }
        }
        Ok(Role::Probe { opened: self.opened })
    }

    /// A probe ended that was admitted after that opening; None: it says nothing. True: the circuit has just been opened again.
    pub fn probed(
        &mut self,
        opened: u64,
        success: Option<bool>,
        settings: &Settings,
        now: Instant,
        jitter: f64,
    ) -> bool {
        // Others may have decided meanwhile, and it may even be half-open once more.
        let State::HalfOpen { probes, successes, .. } = &mut self.state else { return false };
        if opened != self.opened {
            return false;
        }
        *probes = probes.saturating_sub(1);
        match success {
            None => {}
            Some(true) => {
                *successes = successes.saturating_add(1);
                if *successes >= settings.successes {
                    self.state = State::Closed { since: Some(now) };
                }
            }
            Some(false) => {
                self.open(settings, now, jitter);
                return true;
            }
        }
        false
    }
}

/// A backend's [`Circuit`], shared by all workers.
#[derive(Debug, Default)]
pub struct Breaker {
    /// [`millis`] from which on probes may be asked for; 0: closed.
    opens_at: AtomicU64,
    /// In a row.
    failures: AtomicU32,
    window: Window,
    circuit: Mutex<Circuit>,
}

impl Breaker {
    /// See [`Circuit::admit`].
    ///
    /// # Errors
    /// How long to wait, if no try may be made.
    pub fn admit(self: &Arc<Self>, settings: &Arc<Settings>, now: Instant) -> Result<Permit, Duration> {
        let role = match self.opens_at.load(Ordering::Relaxed) {
            0 => Role::Ordinary,
            at if millis(now) < at => return Err(Duration::from_millis(at - millis(now))),
            _ => {
                let mut circuit = self.circuit.lock();
                let admitted = circuit.admit(settings, now);
                self.publish(&circuit);
                admitted?
            }
        };
        Ok(Permit { breaker: Arc::clone(self), settings: Arc::clone(settings), role, told: false })
    }

    /// Whether a try would be refused now; nothing changes.
    pub fn is_open(&self, now: Instant) -> bool {
        let at = self.opens_at.load(Ordering::Relaxed);
        at != 0 && millis(now) < at
    }

    fn record(&self, success: bool, settings: &Settings, now: Instant) -> bool {
        if self.opens_at.load(Ordering::Relaxed) != 0 {
            // What was under way before it opened tells nothing new.
            return false;
        }
        let failures = if success {
            if self.failures.load(Ordering::Relaxed) != 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
            0
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
        };
        if settings.percent.is_some() {
            self.window.record(settings.window, millis(now), !success);
        }
        if success || !self.is_too_much(failures, settings, now) {
            return false;
        }
        let mut circuit = self.circuit.lock();
        let opened = circuit.trip(settings, now, jitter(now));
        self.publish(&circuit);
        opened
    }

    fn is_too_much(&self, failures: u32, settings: &Settings, now: Instant) -> bool {
        if settings.consecutive.is_some_and(|most| failures >= most) {
            return true;
        }
        settings.percent.is_some_and(|percent| {
            let (total, failed) = self.window.totals(settings.window, millis(now));
            total >= u64::from(settings.minimum_volume) && failed * 100 >= total * u64::from(percent)
        })
    }

    fn probed(&self, opened: u64, success: Option<bool>, settings: &Settings, now: Instant) -> bool {
        let mut circuit = self.circuit.lock();
        let opened = circuit.probed(opened, success, settings, now, jitter(now));
        self.publish(&circuit);
        opened
    }

    fn publish(&self, circuit: &Circuit) {
        let at = match circuit.state {
            State::Closed { .. } => 0,
            // At any time, if a place is free.
            State::HalfOpen { .. } => 1,
            // Never 0, and rounded up: not before its time.
            State::Open { until } => millis(until).saturating_add(1),
        };
        if self.opens_at.swap(at, Ordering::Relaxed) != 0 && at == 0 {
            self.forget();
        }
    }

    /// What counts begins anew.
    fn forget(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.window.clear();
    }

    /// Closed, as if nothing had ever failed.
    pub fn reset(&self) {
        let mut circuit = self.circuit.lock();
        *circuit = Circuit { opened: circuit.opened, ..Circuit::default() };
        self.publish(&circuit);
        self.forget();
    }

    /// What operators see: "closed", "open" or "half-open".
    pub fn state(&self) -> &'static str {
        match self.circuit.lock().state {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half-open",
        }
    }
}

/// Bits that nobody can foresee to the nanosecond are jitter enough.
fn jitter(now: Instant) -> f64 {
    f64::from(millis(now).wrapping_mul(2_654_435_761) as u32 % 1000) / 1000.0
}

/// One try's leave. Tells nothing if dropped without [`Permit::report`]: a probe's place is free again.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    settings: Arc<Settings>,
    role: Role,
    told: bool,
}

impl Permit {
    /// How the try ended; None: that says nothing. True: the breaker has just opened.
    pub fn report(mut self, success: Option<bool>, now: Instant) -> bool {
        self.told = true;
        match (self.role, success) {
            (Role::Probe { opened }, success) => self.breaker.probed(opened, success, &self.settings, now),
            (Role::Ordinary, Some(success)) => self.breaker.record(success, &self.settings, now),
            (Role::Ordinary, None) => false,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let (false, Role::Probe { opened }) = (self.told, self.role) {
            self.breaker.probed(opened, None, &self.settings, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
