//! Backends and endpoints as policy gives them: shared by all workers, counted for the whole proxy.

use std::{
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use leno_proto::spiffe::SpiffeId;
use tokio::sync::Notify;

use super::{
    balance::{Algorithm, maglev},
    budget::RetryBudget,
    dns,
    outlier::{Gate, millis},
    shield::Shield,
};
use crate::{
    config::limits,
    policy::{BackendPolicy, Protocol},
};

/// A set of endpoints that are alike. Made by `policy::apply`, one per ENDPOINTS key, kept as long as
/// some destination or subscription needs it.
pub struct Backend {
    /// "namespace/service:port"
    pub key: Arc<str>,
    /// Not `known` until the first ENDPOINTS resource (or DNS answer) arrived.
    pub endpoints: ArcSwap<EndpointSet>,
    /// Set for a name outside the mesh, which [`dns`] resolves into `endpoints` by TTL.
    pub host_name: ArcSwapOption<HostName>,
    /// All waiters are told after each change of `endpoints`.
    pub changed: Notify,
    pub budget: RetryBudget,
    /// Circuit breaker, bulkheads and timeouts, if policy sets any.
    pub shield: Shield,
    pub(super) answer: dns::Answer,
}

/// A name that the proxy resolves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    pub host: String,
    pub port: u16,
}

/// The endpoints of a backend at one version. As long as address and identity stay, endpoints keep their ejection across
/// versions; and their `Arc`, in which draining lives, as long as everything else stays, too.
pub struct EndpointSet {
    /// Distinct for each set ever made in this process.
    pub serial: u64,
    /// False until the control plane (or DNS) has said anything.
    pub known: bool,
    /// What endpoints speak; `Http2`: also HTTP/1 requests are sent as HTTP/2 (h2c).
    pub protocol: Protocol,
    /// How they are called.
    pub policy: Arc<BackendPolicy>,
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Which of them a key goes to, if policy asks for it.
    pub table: Option<Arc<maglev::Table>>,
    /// The control plane says that there are none; these are the last there were, and still tried until then.
    pub kept_until: Option<Instant>,
}

/// One address that serves a backend.
pub struct Endpoint {
    pub address: SocketAddr,
    /// Whom it must prove to be; None: unmeshed, plaintext.
    pub identity: Option<SpiffeId>,
    pub workload: Arc<str>,
    pub zone: Arc<str>,
    /// Relative; at least 1.
    pub weight: u32,
    /// Gets nothing new. (Atomic: changes without a new `Arc`.)
    pub draining: AtomicBool,
    /// [`millis`] at which it became ready, and 1; 0: it was there when the backend was first heard of.
    ready_since: AtomicU64,
    /// Passive outlier ejection, for the whole proxy. Shared with what the endpoint was in earlier versions.
    pub outlier: Arc<Gate>,
}

impl Backend {
    /// A backend of which nothing is known yet but its key.
    pub fn new(key: Arc<str>) -> Self {
        Self {
            key,
            endpoints: ArcSwap::from_pointee(EndpointSet::new(false, Protocol::Detect, Vec::new())),
            host_name: ArcSwapOption::empty(),
            changed: Notify::new(),
            budget: RetryBudget::default(),
            shield: Shield::default(),
            answer: dns::Answer::default(),
        }
    }

    /// Replaces the endpoints and wakes those who wait for them.
    pub fn publish(&self, set: EndpointSet) {
        if !self.shield.is_told() || self.endpoints.load().policy != set.policy {
            self.budget.set(set.policy.retry_budget);
            self.shield.under(&set.policy);
        }
        self.endpoints.store(Arc::new(set));
        self.changed.notify_waiters();
    }

    /// Replaces the endpoints by none, because the control plane says so; but a set that empties all at once is more often a
    /// mistake than meant, so those that were ready are kept for [`limits::EMPTY_GRACE`]; not those outside the mesh, since nothing
    /// proves that their addresses are still theirs.
    pub fn publish_none(&self, protocol: Protocol, policy: Arc<BackendPolicy>, now: Instant) {
        let current = self.endpoints.load_full();
        let last: Vec<_> = current
            .endpoints
            .iter()
            .filter(|endpoint| !endpoint.is_draining() && endpoint.identity.is_some())
            .cloned()
            .collect();
        if !current.known || last.is_empty() || current.is_stale(now) {
            return self.publish(EndpointSet::new(true, protocol, Vec::new()).under(policy));
        }
        if current.kept_until.is_none() {
            tracing::warn!(backend = %self.key, kept = last.len(), grace = ?limits::EMPTY_GRACE,
                "no endpoints any longer: the last ones are tried for a while");
        }
        let kept_until = current.kept_until.or_else(|| now.checked_add(limits::EMPTY_GRACE));
        let set = EndpointSet::new(true, protocol, last).under(policy);
        self.publish(EndpointSet { kept_until, ..set });
    }

    /// The time of grace is over: see [`Self::publish_none`].
    pub fn forget_kept(&self, set: &Arc<EndpointSet>) {
        let none = EndpointSet::new(true, set.protocol, Vec::new()).under(Arc::clone(&set.policy));
        // If it changed meanwhile, that goes.
        self.endpoints.compare_and_swap(set, Arc::new(none));
        self.changed.notify_waiters();
    }

    /// Has the same endpoints, of a name, called otherwise. What DNS said of the name stays as it was.
    pub fn republish(&self, protocol: Protocol, policy: Arc<BackendPolicy>) {
        let current = self.endpoints.load_full();
        let set = EndpointSet::new(current.known, protocol, current.endpoints.clone()).under(policy);
        self.answer.continues(current.serial, set.serial);
        self.publish(set);
    }

    /// Whether the endpoints are known: said by the control plane or, for a name, found by DNS.
    pub fn is_known(&self) -> bool {
        let set = self.endpoints.load();
        if self.host_name.load().is_some() { self.answer.is_of(set.serial) } else { set.known }
    }

    /// Returns once the endpoints are known (at once if they are).
    pub async fn known(&self) {
        self.becomes(Self::is_known).await;
    }

    /// Returns once it is known how the backend is to be called (at once if it is): sooner than endpoints that DNS finds.
    pub async fn told(&self) {
        self.becomes(|backend| backend.shield.is_told()).await;
    }

    async fn becomes(&self, so: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if so(self) {
                return;
            }
            changed.await;
        }
    }
}

impl EndpointSet {
    /// A set with a serial of its own, under the default policy.
    pub fn new(known: bool, protocol: Protocol, endpoints: Vec<Arc<Endpoint>>) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        static DEFAULT: LazyLock<Arc<BackendPolicy>> = LazyLock::new(Arc::default);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Self { serial, known, protocol, policy: Arc::clone(&DEFAULT), endpoints, table: None, kept_until: None }
    }

    /// The same under a policy.
    pub fn under(self, policy: Arc<BackendPolicy>) -> Self {
        let table = match &policy.load_balancing.algorithm {
            Algorithm::ConsistentHash(_) => self.table_of_keys().map(Arc::new),
            _ => None,
        };
        Self { policy, table, ..self }
    }

    fn table_of_keys(&self) -> Option<maglev::Table> {
        let names: Vec<String> = self.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
        let all = self.endpoints.iter().zip(&names).enumerate();
        let stay = all.filter(|(_, (endpoint, _))| !endpoint.is_draining());
        maglev::Table::new(stay.map(|(index, (endpoint, name))| (index, name.as_str(), endpoint.weight)))
    }

    /// What the control plane says there is.
    pub fn told(&self) -> &[Arc<Endpoint>] {
        if self.kept_until.is_some() { &[] } else { &self.endpoints }
    }

    /// Whether its endpoints were kept for long enough.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.kept_until.is_some_and(|until| now >= until)
    }
}

impl Endpoint {
    /// A ready endpoint. `weight` 0 counts as 1.
    pub fn new(
        address: SocketAddr,
        identity: Option<SpiffeId>,
        workload: impl Into<Arc<str>>,
        zone: impl Into<Arc<str>>,
        weight: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            address,
            identity,
            workload: workload.into(),
            zone: zone.into(),
            weight: weight.max(1),
            draining: AtomicBool::new(false),
            ready_since: AtomicU64::new(0),
            outlier: Arc::default(),
        })
    }

    /// The same address and identity under new attributes: ejection stays.
    pub fn renewed(&self, workload: impl Into<Arc<str>>, zone: impl Into<Arc<str>>, weight: u32) -> Arc<Self> {
        Arc::new(Self {
            address: self.address,
            identity: self.identity.clone(),
            workload: workload.into(),
            zone: zone.into(),
            weight: weight.max(1),
            draining: AtomicBool::new(self.is_draining()),
            ready_since: AtomicU64::new(self.ready_since.load(Ordering::Relaxed)),
            outlier: Arc::clone(&self.outlier),
        })
    }

    /// Who serves here: others may get the address later.
    pub(crate) fn name(&self) -> String {
        let identity = self.identity.as_ref().map_or("", |identity| identity.as_str());
        format!("{} {identity}", self.workload)
    }

    /// An unmeshed address of which nothing else is known.
    pub fn plain(address: SocketAddr) -> Arc<Self> {
        Self::new(address, None, "", "", 1)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// It became ready later than the backend.
    pub fn came(&self, now: Instant) {
        self.ready_since.store(millis(now).saturating_add(1), Ordering::Relaxed);
    }

    /// How long it is ready; None: as long as the backend is known.
    pub fn ready_for(&self, now: Instant) -> Option<Duration> {
        let since = self.ready_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(millis(now).saturating_sub(since)))
    }
}
