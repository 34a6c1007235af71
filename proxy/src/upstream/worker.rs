//! What one worker has of all backends; and the sweeper, one task per worker, that retires what is idle or gone.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;

use super::{
    Backend, Endpoint,
    balance::{self, Estimate},
    balancer::Balancer,
    dial::Dialer,
    dns,
    local::LocalEndpoint,
    stats::BackendStats,
};
use crate::{
    policy::{self, Protocol},
    tls::CredentialStore,
    worker::Random,
};

const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What [`super::Upstreams`] holds.
pub struct State {
    /// By the backend's address in memory, which the balancer's weak reference keeps from being used again.
    balancers: RefCell<HashMap<usize, Rc<Balancer>, RandomState>>,
    plain: RefCell<HashMap<SocketAddr, Rc<LocalEndpoint>, RandomState>>,
    plain_stats: OnceCell<Rc<BackendStats>>,
    outside: RefCell<HashMap<Box<str>, Arc<Backend>>>,
    dialer: Rc<Dialer>,
    resolver: dns::Resolver,
    pub random: Random,
    /// Where the proxy's own zone is found; not set: it is not known.
    policy: OnceCell<Arc<policy::Store>>,
    sweeping: Cell<bool>,
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
            policy: OnceCell::new(),
            sweeping: Cell::new(false),
        })
    }

    /// Whether the endpoints are known. Has an old DNS answer renewed behind the scenes.
    pub fn is_settled(&self, backend: &Arc<Backend>) -> bool {
        if backend.host_name.load().is_none() {
            return backend.endpoints.load().known;
        }
        self.resolver.refresh(backend);
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
        let mut set = backend.endpoints.load();
        if set.kept_until.is_some() && set.is_stale(Instant::now()) {
            backend.forget_kept(&set);
            set = backend.endpoints.load();
        }
        balancer.follow(&set, &self.dialer, || (self.zone(), self.random.next()));
        (balancer, set.protocol)
    }

    /// Where the proxy's own zone is found.
    pub fn placed_by(&self, policy: Arc<policy::Store>) {
        // Said once, when the worker starts.
        let _ = self.policy.set(policy);
    }

    /// The proxy's own zone; empty: not known.
    fn zone(&self) -> Arc<str> {
        self.policy.get().map_or_else(|| "".into(), |policy| Arc::clone(&policy.inbound().zone))
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
        let zone = self.zone();
        let mut balancers = self.balancers.borrow_mut();
        balancers.retain(|_, balancer| {
            balancer.moved_to(&zone);
            balancer.sweep(now)
        });
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
