//! One worker thread: a single-threaded runtime, listeners of its own (SO_REUSEPORT), pools and
//! balancers of its own. Everything in [`Worker`] is reached through `Rc`; nothing in it locks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::{
    config::{Config, limits},
    detect::{self, FirstBytes},
    drain::Drain,
    http::{hops::Hops, mirror::Room, stream_task::StreamTasks},
    inbound::Application,
    outbound::ServersFirst,
    policy, telemetry, tls, upstream,
};

/// The service in metrics of a request that failed before its own was known. No service is named so: theirs are
/// "namespace/name".
const UNKNOWN_SERVICE: &str = "unknown";

/// What the tasks of one worker share.
pub struct Worker {
    /// Process configuration and limits.
    pub config: Arc<Config>,
    /// Policy, shared with the control runtime; read without a lock.
    pub policy: Arc<policy::Store>,
    /// Certificates, shared with the control runtime; read without a lock.
    pub credentials: Arc<tls::CredentialStore>,
    /// Metric handles, access log, tracer.
    pub telemetry: Arc<telemetry::Telemetry>,
    /// Tells connections when to finish.
    pub drain: Drain,
    /// Balancers and pools: this worker's alone.
    pub upstreams: upstream::Upstreams,
    /// The longest time without a byte moved in an HTTP exchange: STREAM_IDLE.
    pub(crate) stream_idle: Duration,
    /// The same for TCP connections and tunnels: TCP_IDLE.
    pub(crate) tcp_idle: Duration,
    /// The same for opaque bytes of a mesh peer, whose own proxy knows the policy and ends them by it: PEER_IDLE.
    pub(crate) peer_idle: Duration,
    /// Weighted choices, jitter, span ids.
    pub random: Random,
    /// Destinations whose server was seen to speak first.
    pub(crate) servers_first: RefCell<ServersFirst>,
    /// The local application's ports, as backends, with the port that policy knows each by.
    pub(crate) applications: RefCell<HashMap<(SocketAddr, u16), Rc<Application>>>,
    /// What requests inherit from the requests that they serve; shared by all workers.
    pub hops: Arc<Hops>,
    /// Metric handles for outbound requests that failed before it was known whom they are for.
    pub(crate) undecided: telemetry::RouteMetrics,
    /// What copies of requests take up.
    pub(crate) mirrors: Room,
    /// Answer the streams of clients' HTTP/2 connections.
    pub(crate) stream_tasks: Rc<StreamTasks>,
    /// Metric handles for requests that reached no backend, by service.
    pub(crate) unrouted: RefCell<HashMap<Arc<str>, telemetry::RouteMetrics>>,
}

/// A worker's context, as its tasks hold it.
pub type Context = Rc<Worker>;

impl Worker {
    /// See [`detect::first_bytes`]; when draining, a client that says nothing is as good as gone.
    pub(crate) async fn first_bytes(
        &self,
        already: Bytes,
        stream: TcpStream,
        wait: Option<Duration>,
    ) -> io::Result<FirstBytes> {
        let spoken = self.drain.patiently(detect::first_bytes(already, stream, wait)).await;
        spoken.unwrap_or(Ok(FirstBytes::Closed))
    }

    pub fn new(
        config: Arc<Config>,
        policy: Arc<policy::Store>,
        credentials: Arc<tls::CredentialStore>,
        telemetry: Arc<telemetry::Telemetry>,
        drain: Drain,
        upstreams: upstream::Upstreams,
        hops: Arc<Hops>,
    ) -> Context {
        Rc::new(Self {
            config,
            policy,
            credentials,
            telemetry,
            drain,
            upstreams,
            stream_idle: limits::STREAM_IDLE,
            tcp_idle: limits::TCP_IDLE,
            peer_idle: limits::PEER_IDLE,
            random: Random::default(),
            servers_first: RefCell::default(),
            applications: RefCell::default(),
            hops,
            undecided: telemetry::RouteMetrics::outbound(UNKNOWN_SERVICE, "", "", ""),
            mirrors: Room::default(),
            stream_tasks: Rc::default(),
            unrouted: RefCell::default(),
        })
    }

    /// SO_MARK for connections of the proxy's own, if the redirect tells them apart by it.
    pub fn mark(&self) -> Option<u32> {
        self.config.transparent.as_ref().and_then(|transparent| transparent.mark)
    }
}

/// Random numbers that need not be secret: SplitMix64 (Steele, Lea, Flood 2014), seeded by the
/// operating system.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Default for Random {
    fn default() -> Self {
        Self::seeded(RandomState::new().hash_one(std::process::id()))
    }
}

impl Random {
    /// The same seed gives the same sequence.
    pub fn seeded(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
