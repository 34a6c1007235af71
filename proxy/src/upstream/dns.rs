//! Names outside the mesh (ExternalName, explicit destinations by name), resolved on the control runtime: asked when
//! first used, again by TTL while in use; the last good answer stays until there is a better one.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{Backend, Endpoint, EndpointSet, HostName, outlier::millis};
use crate::policy::Protocol;

/// No answer is asked for anew sooner than this, nor a failed one.
const LEAST_TTL: Duration = Duration::from_secs(1);
/// No answer is kept longer than this.
const MOST_TTL: Duration = Duration::from_secs(300);
/// One question to one name server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Questions asked before a look-up has failed.
const QUERY_ATTEMPTS: usize = 2;

/// Resolves names; cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    runtime: Handle,
    /// None: the system's configuration.
    server: Option<SocketAddr>,
    /// Made on the control runtime when first needed: most proxies never are.
    hickory: OnceLock<TokioResolver>,
    /// By "host:port"; as many as the configuration names.
    outside: Mutex<HashMap<Box<str>, Arc<Backend>>>,
}

/// What DNS said last about a backend's name.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Serial of the set it was published as; 0: none yet.
    serial: AtomicU64,
    /// [`millis`] from which it is asked for anew.
    expires: AtomicU64,
    resolving: AtomicBool,
    /// The last look-up failed, and was logged.
    failing: AtomicBool,
}

impl Resolver {
    /// `runtime` does the look-ups (the control runtime). `server`: the name server to ask; None: the system's.
    pub fn new(runtime: Handle, server: Option<SocketAddr>) -> Self {
        Self(Arc::new(Inner { runtime, server, hickory: OnceLock::new(), outside: Mutex::default() }))
    }

    /// Has the backend's name resolved, if it has one whose answer is missing or old and nobody is at it. Does not wait.
    pub fn refresh(&self, backend: &Arc<Backend>) {
        let answer = &backend.answer;
        let current = answer.is_of(backend.endpoints.load().serial) && !answer.is_stale(Instant::now());
        if current || answer.resolving.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, backend) = (Arc::clone(&self.0), Arc::clone(backend));
        self.0.runtime.spawn(async move {
            inner.renew(&backend).await;
            backend.answer.resolving.store(false, Ordering::Release);
        });
    }

    /// See [`super::Upstreams::outside`].
    pub(super) fn backend(&self, name: &str) -> Option<Arc<Backend>> {
        let (host, port) = name.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let mut outside = self.0.outside.lock();
        Some(Arc::clone(outside.entry(name.into()).or_insert_with(|| {
            let backend = Backend::new(name.into());
            backend.host_name.store(Some(Arc::new(HostName { host: host.to_owned(), port })));
            backend.publish(EndpointSet::new(false, Protocol::Detect, Vec::new()));
            Arc::new(backend)
        })))
    }
}

impl Inner {
    /// One look-up; a failure keeps what was known, and an unknown name becomes a backend without endpoints, so that
    /// requests fail at once instead of each waiting for its own look-up.
    async fn renew(&self, backend: &Backend) {
        let Some(name) = backend.host_name.load_full() else { return };
        let found = self.look_up(&name.host).await;
        let is_same = backend.host_name.load().as_ref().is_some_and(|current| **current == *name);
        if !is_same {
            return;
        }
        let current = backend.endpoints.load_full();
        let (addresses, ttl) = match found {
            Ok(found) => {
                backend.answer.failing.store(false, Ordering::Relaxed);
                found
            }
            Err(reason) => {
                if !backend.answer.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(host = name.host, backend = %backend.key, reason,
                        "name not resolved; what was known of it stays in force");
                }
                backend.answer.expires.store(millis(Instant::now() + LEAST_TTL), Ordering::Relaxed);
                if backend.answer.is_of(current.serial) {
                    return;
                }
                (Vec::new(), LEAST_TTL)
            }
        };
        let endpoints = addresses.into_iter().map(|ip| {
            let address = SocketAddr::new(ip, name.port);
            let kept = current.endpoints.iter().find(|endpoint| endpoint.address == address);
            kept.map_or_else(|| Endpoint::new(address, None, name.host.as_str(), "", 1), Arc::clone)
        });
        let set = EndpointSet::new(true, current.protocol, endpoints.collect()).under(Arc::clone(&current.policy));
        backend.answer.expires.store(millis(Instant::now() + ttl), Ordering::Relaxed);
        let unchanged = set.endpoints.len() == current.endpoints.len()
            && set.endpoints.iter().all(|new| current.endpoints.iter().any(|old| Arc::ptr_eq(old, new)));
        if !(unchanged && backend.answer.is_of(current.serial)) {
            backend.answer.serial.store(set.serial, Ordering::Release);
            backend.publish(set);
        }
    }

    /// Addresses, and how long they hold.
    async fn look_up(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok((vec![ip], MOST_TTL));
        }
        let answer = self.hickory()?.lookup_ip(host).await.map_err(|error| error.to_string())?;
        let ttl = answer.valid_until().saturating_duration_since(Instant::now());
        let addresses = usable(answer.iter().collect());
        if addresses.is_empty() { Err("no address".into()) } else { Ok((addresses, ttl.clamp(LEAST_TTL, MOST_TTL))) }
    }

    fn hickory(&self) -> Result<&TokioResolver, String> {
        if let Some(resolver) = self.hickory.get() {
            return Ok(resolver);
        }
        let built = build(self.server).map_err(|error| format!("cannot set up DNS: {error}"))?;
        Ok(self.hickory.get_or_init(|| built))
    }
}

fn build(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        Some(server) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio()?,
    };
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_ATTEMPTS;
    // Answers are kept here, with their endpoints.
    options.cache_size = 0;
    builder.build()
}

/// Leaves out IPv6 where there is no route to it (RFC 6724, rule 1), unless nothing else is left.
fn usable(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let has_route =
        |ip: &IpAddr| ip.is_ipv4() || UdpSocket::bind("[::]:0").and_then(|socket| socket.connect((*ip, 53))).is_ok();
    let routed: Vec<IpAddr> = addresses.iter().copied().filter(has_route).collect();
    if routed.is_empty() { addresses } else { routed }
}

impl Answer {
    /// Whether the set with this serial came from DNS: not from before the name was known.
    pub(super) fn is_of(&self, serial: u64) -> bool {
        self.serial.load(Ordering::Acquire) == serial
    }

    /// What the set `before` was made of is in the set `after`, too.
    pub(super) fn continues(&self, before: u64, after: u64) {
        // If DNS has answered meanwhile, that is newer than both.
        let _ = self.serial.compare_exchange(before, after, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The answer is missing or its TTL has passed.
    fn is_stale(&self, now: Instant) -> bool {
        millis(now) >= self.expires.load(Ordering::Relaxed)
    }
}
