//! An endpoint as one worker sees it: what it is expected to take, what is in flight, and connections to it.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Endpoint,
    balance::{self, Estimate, Standing, Waiting},
    dial::Dialer,
    outlier::{Health, Role},
    pool::Pool,
    stats::BackendStats,
};
use crate::config::limits;

/// See the module.
pub struct LocalEndpoint {
    pub endpoint: Arc<Endpoint>,
    pub pool: Rc<Pool>,
    in_flight: Cell<u32>,
    waiting: Cell<Waiting>,
    estimate: Cell<Estimate>,
    /// As of the last time that anybody asked; the clock is not read for each request.
    last_used: Cell<Instant>,
    /// It was, since then.
    used: Cell<bool>,
    /// It asked to be left alone so long.
    rests_until: Cell<Option<Instant>>,
}

impl LocalEndpoint {
    pub fn new(endpoint: Arc<Endpoint>, dialer: &Rc<Dialer>, stats: &Rc<BackendStats>, estimate: Estimate) -> Self {
        Self {
            pool: Pool::new(Arc::clone(&endpoint), Rc::clone(dialer), Rc::clone(stats)),
            endpoint,
            in_flight: Cell::new(0),
            waiting: Cell::default(),
            estimate: Cell::new(estimate),
            last_used: Cell::new(Instant::now()),
            used: Cell::new(false),
            rests_until: Cell::new(None),
        }
    }

    /// The same address and identity under new attributes: connections and estimate stay.
    pub fn renewed(&self, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            pool: Rc::clone(&self.pool),
            in_flight: Cell::new(0),
            waiting: Cell::default(),
            estimate: Cell::new(self.estimate.get()),
            last_used: Cell::new(self.last_used.get()),
            used: Cell::new(self.used.get()),
            rests_until: Cell::new(self.rests_until.get()),
        }
    }

    pub fn begin(&self) {
        self.in_flight.set(self.in_flight.get().saturating_add(1));
    }

    /// A try was sent whole; [`Self::over`] once that is settled.
    pub fn asked(&self, now: Instant) {
        let waiting = self.waiting.get();
        let silent_since = waiting.silent_since.or(Some(now));
        self.waiting.set(Waiting { tries: waiting.tries.saturating_add(1), silent_since, last: Some(now), ..waiting });
    }

    /// One of those, however it ended.
    pub fn over(&self) {
        let waiting = self.waiting.get();
        let tries = waiting.tries.saturating_sub(1);
        self.waiting.set(Waiting { tries, silent_since: waiting.silent_since.filter(|_| tries > 0), ..waiting });
    }

    /// The endpoint answered a try, or failed it: those that wait longer (streams, long polls) are no sign that it hangs.
    fn heard(&self) {
        self.waiting.set(Waiting { silent_since: None, ignored: 0, ..self.waiting.get() });
    }

    pub fn end(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        self.used.set(true);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    pub fn estimate(&self) -> Estimate {
        self.estimate.get().with(self.waiting.get())
    }

    /// One try's result.
    pub fn observe(&self, success: bool, role: Role, latency: Duration, now: Instant) {
        self.heard();
        let mut estimate = self.estimate.get();
        if success {
            estimate.succeeded(latency, now);
        } else {
            estimate.failed(latency, now);
        }
        if success && role != Role::Ordinary {
            estimate.pardon();
        }
        self.estimate.set(estimate);
    }

    /// One try that was turned away. See [`Estimate::refused`].
    pub fn refused(&self, latency: Duration, now: Instant) {
        self.heard();
        let mut estimate = self.estimate.get();
        estimate.refused(latency, now);
        self.estimate.set(estimate);
    }

    /// One try that its client gave up, which was `ignored` so long once it was sent. See [`Estimate::given_up`].
    pub fn given_up(&self, waited: Duration, ignored: Duration, now: Instant) {
        let mut estimate = self.estimate.get();
        if estimate.is_far_too_long(ignored.as_secs_f64()) {
            let waiting = self.waiting.get();
            self.waiting.set(Waiting { ignored: waiting.ignored.saturating_add(1), ..waiting });
        }
        estimate.given_up(waited, now);
        self.estimate.set(estimate);
    }

    /// It asked to be left alone until then; of several answers the one that asks for the longest counts.
    pub fn rest(&self, until: Instant) {
        self.rests_until.set(self.rests_until.get().max(Some(until)));
        self.endpoint.outlier.rest(until);
    }

    pub fn standing(&self, tried: &[SocketAddr], now: Instant) -> Standing {
        if self.endpoint.is_draining() {
            return Standing::Draining;
        }
        match self.endpoint.outlier.health(now) {
            Health::InService if tried.contains(&self.endpoint.address) => Standing::Tried,
            Health::InService if self.rests_until.get().is_some_and(|until| now < until) => Standing::Resting,
            Health::InService => Standing::Ready,
            Health::Ejected => Standing::Ejected,
            Health::ProbeDue => Standing::ProbeDue,
        }
    }

    /// Asked now and then.
    pub fn is_idle(&self, now: Instant) -> bool {
        if self.used.replace(false) || self.in_flight.get() > 0 {
            self.last_used.set(now);
        }
        now.saturating_duration_since(self.last_used.get()) > limits::POOL_IDLE
    }
}

/// What a new endpoint is assumed to be like: the mean of its peers, so that it neither repels nor attracts load.
pub(super) fn typical_latency<'a>(peers: impl Iterator<Item = &'a Rc<LocalEndpoint>>, now: Instant) -> Duration {
    let (sum, count) = peers
        .map(|local| local.estimate.get())
        .filter(Estimate::is_measured)
        .fold((0.0, 0_u32), |(sum, count), estimate| (sum + estimate.latency(now), count + 1));
    if count == 0 { balance::DEFAULT_LATENCY } else { Duration::from_secs_f64(sum / f64::from(count)) }
}
