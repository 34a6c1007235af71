//! Where requests go: backends and their endpoints, the choice among them, and connections to them.
//!
//! [`Backend`] and [`Endpoint`] are shared by all workers: what policy says, and what is counted for the
//! whole proxy (retry budget, ejection). [`Upstreams`] is one worker's own: latency estimates, requests
//! in flight, connection pools; it follows a backend's endpoint set by looking at its version.

pub mod balance;
pub mod budget;
pub mod dns;
pub mod outlier;
pub mod pool;

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use leno_proto::spiffe::SpiffeId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{error::Error, http::Body, net::Io, policy::Protocol};

/// A set of endpoints that are alike. Made by `policy::apply`, one per ENDPOINTS key, kept as long as
/// some destination or subscription needs it.
pub struct Backend {
    /// "namespace/service:port"
    pub key: Arc<str>,
    /// None until the first ENDPOINTS resource arrived.
    pub endpoints: ArcSwap<EndpointSet>,
    /// Set for a name outside the mesh, which [`dns`] resolves into `endpoints` by TTL.
    pub host_name: ArcSwapOption<HostName>,
    /// All waiters are told after each change of `endpoints`.
    pub changed: Notify,
    pub budget: budget::RetryBudget,
}

/// A name that the proxy resolves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    pub host: String,
    pub port: u16,
}

impl Backend {
    /// A backend of which nothing is known yet but its name.
    pub fn new(key: Arc<str>) -> Self {
        Self {
            key,
            endpoints: ArcSwap::from_pointee(EndpointSet::new(false, Protocol::Detect, Vec::new())),
            host_name: ArcSwapOption::empty(),
            changed: Notify::new(),
            budget: budget::RetryBudget::default(),
        }
    }

    /// Replaces the endpoints and wakes those who wait for them.
    pub fn publish(&self, set: EndpointSet) {
        self.endpoints.store(Arc::new(set));
        self.changed.notify_waiters();
    }
}

/// The endpoints of a backend at one version. Endpoints keep their `Arc` across versions as long as
/// address and identity stay.
pub struct EndpointSet {
    /// Distinct for each set ever made in this process.
    pub serial: u64,
    /// False until the control plane (or DNS) has said anything.
    pub known: bool,
    /// What endpoints speak; `Http2`: also HTTP/1 requests are sent as HTTP/2 (h2c).
    pub protocol: Protocol,
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl EndpointSet {
    /// A set with a serial of its own.
    pub fn new(known: bool, protocol: Protocol, endpoints: Vec<Arc<Endpoint>>) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Self { serial: SERIAL.fetch_add(1, Ordering::Relaxed), known, protocol, endpoints }
    }
}

/// One address that serves a backend.
pub struct Endpoint {
    pub address: SocketAddr,
    /// Whom it must prove to be; None: unmeshed, plaintext.
    pub identity: Option<SpiffeId>,
    pub workload: Arc<str>,
    pub zone: Arc<str>,
    pub weight: u32,
    /// Gets nothing new. (Atomic: changes without a new `Arc`.)
    pub draining: AtomicBool,
    /// Passive outlier ejection, for the whole proxy.
    pub outlier: Mutex<outlier::Outlier>,
}

/// A worker's balancers and pools.
pub struct Upstreams {
    // upstream: RefCell<HashMap<Arc<str>, Rc<Balancer>>>, mark, credentials, sweeper
}

/// How a try ended, as balancing sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// 5xx, reset, timeout: counts against the endpoint and is never taken for fast.
    Failure,
    /// The client left, or the fault is not the endpoint's: says nothing.
    Neutral,
}

/// An endpoint chosen for one try; counts as in flight until dropped.
pub struct Pick {
    pub endpoint: Arc<Endpoint>,
    // upstream: Rc of the worker's local endpoint, start time
}

impl Upstreams {
    /// Chooses an endpoint: peak-EWMA over two random choices among those that are ready and not
    /// ejected, avoiding `tried` while there is another. Waits (CONNECT_TIMEOUT at most) only while the backend's
    /// endpoints are not known yet.
    pub async fn pick(&self, _backend: &Arc<Backend>, _tried: &[SocketAddr]) -> Result<Pick, Error> {
        todo!("upstream")
    }
}

impl Pick {
    /// Reports the try's latency (to the response head) and outcome to estimate and outlier detection.
    pub fn report(&self, _outcome: Outcome, _now: Instant) {
        todo!("upstream")
    }

    /// A connection for one HTTP exchange: pooled or new, to the mesh peer over mTLS (ALPN tells the version) or in
    /// plaintext. `http2`: the exchange is carried as HTTP/2.
    pub async fn http(&self, _http2: bool) -> Result<pool::HttpConnection, Error> {
        todo!("upstream")
    }

    /// A connection of its own for opaque bytes (mesh: ALPN `leno1/tcp`).
    pub async fn tcp(&self) -> Result<Box<dyn Io>, Error> {
        todo!("upstream")
    }
}

/// See [`Upstreams`]; the worker's own part of a backend.
pub type Shared<T> = Rc<T>;
const _: fn(Body) = |_| {};
