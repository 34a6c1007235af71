//! One worker's part of each backend: local endpoints (estimate, requests in flight, pool), which follow the shared
//! set; and the sweeper, one task per worker, that retires what is idle or gone.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::{Arc, Weak as SharedWeak},
    time::{Duration, Instant},
};

use super::{
    Backend, Endpoint, EndpointSet,
    balance::{self, Estimate, Standing},
    dial::Dialer,
    dns,
    outlier::{Health, Role},
    pool::Pool,
    stats::{BackendStats, EndpointCounts},
};
use crate::{config::limits, policy::Protocol, tls::CredentialStore, worker::Random};

const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What [`super::Upstreams`] holds.
pub struct State {
    /// By the backend's address in memory, which the balancer's weak reference keeps from being used again.
    balancers: RefCell<HashMap<usize, Rc<Balancer>>>,
    plain: RefCell<HashMap<SocketAddr, Rc<LocalEndpoint>>>,
    plain_stats: OnceCell<Rc<BackendStats>>,
    outside: RefCell<HashMap<Box<str>, Arc<Backend>>>,
    dialer: Rc<Dialer>,
    resolver: dns::Resolver,
    pub random: Random,
    sweeping: Cell<bool>,
}

/// A backend as this worker sees it.
pub struct Balancer {
    backend: SharedWeak<Backend>,
    serial: Cell<u64>,
    endpoints: RefCell<Rc<[Rc<LocalEndpoint>]>>,
    stats: Rc<BackendStats>,
}

/// An endpoint as this worker sees it.
pub struct LocalEndpoint {
    pub endpoint: Arc<Endpoint>,
    pub pool: Rc<Pool>,
    in_flight: Cell<u32>,
    estimate: Cell<Estimate>,
    last_used: Cell<Instant>,
}

impl State {
    pub fn new(mark: Option<u32>, credentials: Arc<CredentialStore>, resolver: dns::Resolver) -> Rc<Self> {
        Rc::new(Self {
            balancers: RefCell::default(),
            plain: RefCell::default(),
            plain_stats: OnceCell::new(),
            outside: RefCell::default(),
            dialer: Dialer::new(mark, credentials),
            resolver,
            random: Random::default(),
            sweeping: Cell::new(false),
        })
    }

    /// Whether the endpoints are known. Has an old DNS answer renewed behind the scenes.
    pub fn is_settled(&self, backend: &Arc<Backend>) -> bool {
        if backend.host_name.load().is_some() {
            self.resolver.refresh(backend);
        }
        backend.is_known()
    }

    /// The balancer of a backend, following its current set; and what that speaks.
    pub fn balancer(self: &Rc<Self>, backend: &Arc<Backend>) -> (Rc<Balancer>, Protocol) {
        let key = Arc::as_ptr(backend).addr();
        let known = self.balancers.borrow().get(&key).cloned();
        let balancer = known.unwrap_or_else(|| {
            let balancer = Rc::new(Balancer::new(backend));
            self.balancers.borrow_mut().insert(key, Rc::clone(&balancer));
            self.sweep_from_now();
            balancer
        });
        let set = backend.endpoints.load();
        balancer.follow(&set, &self.dialer);
        (balancer, set.protocol)
    }

    pub fn plain(self: &Rc<Self>, addr: SocketAddr) -> Rc<LocalEndpoint> {
        if let Some(local) = self.plain.borrow().get(&addr) {
            return Rc::clone(local);
        }
        let seed = Estimate::new(balance::DEFAULT_LATENCY, Instant::now());
        let stats = self.plain_stats.get_or_init(|| BackendStats::new("plain"));
        let local = Rc::new(LocalEndpoint::new(Endpoint::plain(addr), &self.dialer, stats, seed));
        self.plain.borrow_mut().insert(addr, Rc::clone(&local));
        self.sweep_from_now();
        local
    }

    pub fn outside(&self, name: &str) -> Option<Arc<Backend>> {
        if let Some(backend) = self.outside.borrow().get(name) {
            return Some(Arc::clone(backend));
        }
        let backend = self.resolver.backend(name)?;
        self.outside.borrow_mut().insert(name.into(), Arc::clone(&backend));
        Some(backend)
    }

    /// Starts the sweeper if it is not running. It ends when there is nothing left to sweep.
    fn sweep_from_now(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        let state = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(state) = Weak::upgrade(&state) else { return };
                if !state.sweep(Instant::now()) {
                    state.sweeping.set(false);
                    return;
                }
            }
        });
    }

    /// True: something is left.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut balancers = self.balancers.borrow_mut();
        balancers.retain(|_, balancer| balancer.sweep(now));
        let mut plain = self.plain.borrow_mut();
        plain.retain(|_, local| {
            local.pool.sweep(now);
            !(local.is_idle(now) && local.pool.len() == 0)
        });
        if let Some(stats) = self.plain_stats.get() {
            stats.set_pooled(plain.values().map(|local| local.pool.len()).sum());
        }
        !balancers.is_empty() || !plain.is_empty()
    }
}

impl Balancer {
    fn new(backend: &Arc<Backend>) -> Self {
        Self {
            backend: Arc::downgrade(backend),
            serial: Cell::new(0),
            endpoints: RefCell::new(Rc::new([])),
            stats: BackendStats::new(&backend.key),
        }
    }

    /// Takes over a new set: endpoints that stay keep their estimate and connections, those that left are retired.
    fn follow(&self, set: &EndpointSet, dialer: &Rc<Dialer>) {
        if self.serial.replace(set.serial) == set.serial {
            return;
        }
        let now = Instant::now();
        let old = Rc::clone(&self.endpoints.borrow());
        let mut old: HashMap<SocketAddr, &Rc<LocalEndpoint>> =
            old.iter().map(|local| (local.endpoint.address, local)).collect();
        let seed = Estimate::new(typical_latency(old.values().copied(), now), now);
        let new = set.endpoints.iter().map(|endpoint| match old.remove(&endpoint.address) {
            Some(local) if Arc::ptr_eq(&local.endpoint, endpoint) => Rc::clone(local),
            Some(local) if local.endpoint.identity == endpoint.identity => Rc::new(local.renewed(endpoint)),
            Some(local) => {
                local.pool.retire();
                Rc::new(LocalEndpoint::new(Arc::clone(endpoint), dialer, &self.stats, seed))
            }
            None => Rc::new(LocalEndpoint::new(Arc::clone(endpoint), dialer, &self.stats, seed)),
        });
        let new: Rc<[Rc<LocalEndpoint>]> = new.collect();
        new.iter().for_each(|local| local.pool.under(&set.policy));
        for gone in old.values() {
            gone.pool.retire();
        }
        self.endpoints.replace(new);
        self.stats.set_endpoints(self.count(now));
    }

    fn count(&self, now: Instant) -> EndpointCounts {
        let mut counts = EndpointCounts::default();
        for local in self.endpoints.borrow().iter() {
            match local.standing(&[], now) {
                Standing::Ready | Standing::Tried => counts.ready += 1,
                Standing::Draining => counts.draining += 1,
                Standing::Ejected | Standing::ProbeDue => counts.ejected += 1,
            }
        }
        counts
    }

    /// The endpoint for one try, and what the try's result may decide over it.
    pub fn choose(
        &self,
        tried: &[SocketAddr],
        now: Instant,
        random: impl Fn() -> u64,
    ) -> Option<(Rc<LocalEndpoint>, Role)> {
        let all = self.endpoints.borrow();
        let probe = Cell::new(false);
        let standing = |index: usize| all.get(index).map_or(Standing::Draining, |local| local.standing(tried, now));
        let cost = |index: usize| all.get(index).map_or(f64::MAX, |local| local.cost(now));
        let admit = |index: usize| {
            let admitted = all.get(index).is_some_and(|local| local.endpoint.outlier.admit_probe(now));
            probe.set(admitted);
            admitted
        };
        let index = balance::choose(all.len(), standing, cost, admit, random)?;
        let local = Rc::clone(all.get(index)?);
        let role = match local.endpoint.outlier.health(now) {
            _ if probe.get() => Role::Probe,
            Health::InService => Role::Ordinary,
            Health::Ejected | Health::ProbeDue => Role::LastResort,
        };
        Some((local, role))
    }

    #[cfg(test)]
    pub fn locals(&self) -> Rc<[Rc<LocalEndpoint>]> {
        Rc::clone(&self.endpoints.borrow())
    }

    /// Panic threshold: at most half of the endpoints are ejected at a time. If more fail, the fault is likely not theirs.
    pub fn may_eject_one_more(&self, now: Instant) -> bool {
        let all = self.endpoints.borrow();
        let ejected = all.iter().filter(|local| local.endpoint.outlier.health(now) != Health::InService).count();
        (ejected + 1) * 2 <= all.len()
    }

    /// False: the backend is gone.
    fn sweep(&self, now: Instant) -> bool {
        let alive = self.backend.strong_count() > 0;
        for local in self.endpoints.borrow().iter() {
            if alive {
                local.pool.sweep(now);
            } else {
                local.pool.retire();
            }
        }
        self.stats.set_endpoints(self.count(now));
        self.stats.set_pooled(self.endpoints.borrow().iter().map(|local| local.pool.len()).sum());
        alive
    }
}

impl LocalEndpoint {
    fn new(endpoint: Arc<Endpoint>, dialer: &Rc<Dialer>, stats: &Rc<BackendStats>, estimate: Estimate) -> Self {
        Self {
            pool: Pool::new(Arc::clone(&endpoint), Rc::clone(dialer), Rc::clone(stats)),
            endpoint,
            in_flight: Cell::new(0),
            estimate: Cell::new(estimate),
            last_used: Cell::new(Instant::now()),
        }
    }

    /// The same address and identity under new attributes: connections and estimate stay.
    fn renewed(&self, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            pool: Rc::clone(&self.pool),
            in_flight: Cell::new(0),
            estimate: Cell::new(self.estimate.get()),
            last_used: Cell::new(self.last_used.get()),
        }
    }

    pub fn begin(&self) {
        self.in_flight.set(self.in_flight.get().saturating_add(1));
    }

    pub fn end(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        self.last_used.set(Instant::now());
    }

    #[cfg(test)]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// One try's result.
    pub fn observe(&self, success: bool, role: Role, latency: Duration, now: Instant) {
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

    /// One try that its client gave up. See [`Estimate::given_up`].
    pub fn given_up(&self, waited: Duration, now: Instant) {
        let mut estimate = self.estimate.get();
        estimate.given_up(waited, now);
        self.estimate.set(estimate);
    }

    fn standing(&self, tried: &[SocketAddr], now: Instant) -> Standing {
        if self.endpoint.is_draining() {
            return Standing::Draining;
        }
        match self.endpoint.outlier.health(now) {
            Health::InService if tried.contains(&self.endpoint.address) => Standing::Tried,
            Health::InService => Standing::Ready,
            Health::Ejected => Standing::Ejected,
            Health::ProbeDue => Standing::ProbeDue,
        }
    }

    fn cost(&self, now: Instant) -> f64 {
        balance::cost(&self.estimate.get(), self.in_flight.get(), self.endpoint.weight, now)
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.in_flight.get() == 0 && now.saturating_duration_since(self.last_used.get()) > limits::POOL_IDLE
    }
}

/// What a new endpoint is assumed to be like: the mean of its peers, so that it neither repels nor attracts load.
fn typical_latency<'a>(peers: impl Iterator<Item = &'a Rc<LocalEndpoint>>, now: Instant) -> Duration {
    let (sum, count) = peers
        .map(|local| local.estimate.get())
        .filter(Estimate::is_measured)
        .fold((0.0, 0_u32), |(sum, count), estimate| (sum + estimate.latency(now), count + 1));
    if count == 0 { balance::DEFAULT_LATENCY } else { Duration::from_secs_f64(sum / f64::from(count)) }
}
