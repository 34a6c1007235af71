//! Passive outlier ejection of one endpoint: closed, ejected for a growing time, a few probes, closed again. [`Outlier`]
//! is pure (takes `now`); [`Gate`] shares it among workers, so that a healthy endpoint costs two atomic loads.

pub mod settings;
mod window;

use std::{
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

pub use self::settings::OutlierDetection;
use self::window::Window;

/// Time in service after which one earlier ejection is forgotten.
pub const FORGIVE_AFTER: Duration = Duration::from_secs(30);
/// Probes without a result for so long are given up, and another admitted.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(10);

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
    /// A few requests find out.
    Probing {
        under_way: u32,
        successes: u32,
        /// Those under way are given up.
        patience: Instant,
        /// Another may be admitted.
        room: bool,
    },
}

/// When an endpoint that is ejected may be probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeAt {
    Now,
    Then(Instant),
}

/// When something happens, and by which rules.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub now: Instant,
    pub settings: &'a OutlierDetection,
    /// 0.0..1.0
    pub jitter: f64,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0, since: None }, ejections: 0 }
    }
}

impl Outlier {
    /// A try's result. `jitter` is in 0.0..1.0; `beyond`: the share of failures is, too; `may_eject` is asked only when the
    /// endpoint is about to be ejected. True: it has just been ejected.
    pub fn record(
        &mut self,
        success: bool,
        role: Role,
        beyond: bool,
        at: At<'_>,
        may_eject: impl FnOnce() -> bool,
    ) -> bool {
        match (&mut self.state, success, role) {
            (State::Closed { failures, .. }, true, _) => {
                *failures = 0;
                false
            }
            (State::Closed { failures, since }, false, _) => {
                *failures = failures.saturating_add(1);
                let in_a_row = at.settings.consecutive_failures;
                let too_many = (in_a_row > 0 && *failures >= in_a_row) || beyond;
                if !too_many || !may_eject() {
                    return false;
                }
                let served = since.map_or(Duration::ZERO, |since| at.now.saturating_duration_since(since));
                let forgiven = served.as_secs() / FORGIVE_AFTER.as_secs();
                self.ejections = self.ejections.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
                self.eject(at);
                true
            }
            // What was under way before the ejection tells nothing new.
            (State::Ejected { .. } | State::Probing { .. }, _, Role::Ordinary) => false,
            (State::Ejected { .. } | State::Probing { .. }, true, Role::LastResort | Role::Probe) => {
                self.succeeded(role, at);
                false
            }
            (State::Probing { .. }, false, Role::Probe) => {
                self.eject(at);
                true
            }
            // Ejected it is already: by this failure no more than before. (A probe: one that was given up.)
            (State::Ejected { .. }, false, _) | (State::Probing { .. }, false, Role::LastResort) => false,
        }
    }

    fn eject(&mut self, At { now, settings, jitter }: At<'_>) {
        self.ejections = self.ejections.saturating_add(1);
        let length = settings.base_ejection.saturating_mul(self.ejections).min(settings.most_ejection);
        let jitter = f64::from(settings.jitter_percent) / 100.0 * jitter.clamp(0.0, 1.0);
        self.state = State::Ejected { until: now + length.mul_f64(1.0 + jitter) };
    }

    /// One of the successes that bring it back.
    fn succeeded(&mut self, role: Role, at: At<'_>) {
        let (under_way, before, patience) = match self.state {
            State::Probing { under_way, successes, patience, .. } => (under_way, successes, patience),
            _ => (0, 0, at.now + PROBE_PATIENCE),
        };
        let successes = before + 1;
        if successes >= at.settings.successes {
            self.state = State::Closed { failures: 0, since: Some(at.now) };
            return;
        }
        let under_way = under_way.saturating_sub(u32::from(role == Role::Probe));
        self.state = State::Probing { under_way, successes, patience, room: true };
    }

    /// Whether this request may be a probe; if so, no more than [`OutlierDetection::probes`] are at a time.
    pub fn admit_probe(&mut self, now: Instant, settings: &OutlierDetection) -> bool {
        let (under_way, successes) = match self.state {
            State::Ejected { until } if now >= until => (0, 0),
            State::Probing { under_way, successes, room: true, .. } => (under_way, successes),
            State::Probing { successes, patience, .. } if now >= patience => (0, successes),
            _ => return false,
        };
        let under_way = under_way + 1;
        let room = under_way < settings.probes;
        self.state = State::Probing { under_way, successes, patience: now + PROBE_PATIENCE, room };
        true
    }

    /// The probe came to nothing: another may be admitted at once.
    pub fn abandon_probe(&mut self, now: Instant) {
        if let State::Probing { under_way, successes, patience, .. } = self.state {
            let under_way = under_way.saturating_sub(1);
            self.state = if under_way == 0 && successes == 0 {
                State::Ejected { until: now }
            } else {
                State::Probing { under_way, successes, patience, room: true }
            };
        }
    }

    /// When a probe is due; None: in service.
    fn probe_at(&self) -> Option<ProbeAt> {
        match self.state {
            State::Closed { .. } => None,
            State::Probing { room: true, .. } => Some(ProbeAt::Now),
            State::Ejected { until: at } | State::Probing { patience: at, .. } => Some(ProbeAt::Then(at)),
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
    /// [`millis`] up to which it is left alone because it asked for that, as the worker that was asked last has it.
    rests_until: AtomicU64,
    /// A success has something to reset.
    stained: AtomicBool,
    state: Mutex<Outlier>,
    /// Made when policy first asks for the share of failures.
    window: OnceLock<Box<Window>>,
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
    /// It asked to be left alone until then. Workers each keep to what they were asked: this is for who looks on.
    pub fn rest(&self, until: Instant) {
        self.rests_until.fetch_max(millis(until), Ordering::Relaxed);
    }

    /// For how long it is left alone still; None: it is not.
    pub fn rests(&self, now: Instant) -> Option<Duration> {
        let left = self.rests_until.load(Ordering::Relaxed).saturating_sub(millis(now));
        (left > 0).then(|| Duration::from_millis(left))
    }

    pub fn health(&self, now: Instant) -> Health {
        match self.probe_at.load(Ordering::Relaxed) {
            0 => Health::InService,
            at if millis(now) < at => Health::Ejected,
            _ => Health::ProbeDue,
        }
    }

    /// See [`Outlier::record`].
    pub fn record(
        &self,
        success: bool,
        role: Role,
        now: Instant,
        settings: &OutlierDetection,
        may_eject: impl FnOnce() -> bool,
    ) -> bool {
        let beyond = settings.failure_share.as_ref().is_some_and(|share| {
            let window = self.window.get_or_init(Box::default);
            window.count(success, share, now);
            !success && window.is_beyond(share, now)
        });
        if success && !self.stained.load(Ordering::Relaxed) {
            return false;
        }
        // Bits that nobody can foresee to the nanosecond are jitter enough.
        let jitter = f64::from(now.saturating_duration_since(*EPOCH).subsec_nanos() % 1000) / 1000.0;
        let mut state = self.state.lock();
        let ejected = state.record(success, role, beyond, At { now, settings, jitter }, may_eject);
        let back = success && role != Role::Ordinary;
        if let Some(window) = self.window.get().filter(|_| ejected || back) {
            // What led to the ejection is not to lead to the next.
            window.clear();
        }
        self.publish(&state);
        ejected
    }

    /// See [`Outlier::admit_probe`].
    pub fn admit_probe(&self, now: Instant, settings: &OutlierDetection) -> bool {
        let mut state = self.state.lock();
        let admitted = state.admit_probe(now, settings);
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
        let at = match state.probe_at() {
            None => 0,
            Some(ProbeAt::Now) => 1,
            // Never 0, and rounded up: not due before its time.
            Some(ProbeAt::Then(at)) => millis(at).saturating_add(1),
        };
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
