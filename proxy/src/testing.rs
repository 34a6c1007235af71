//! Workers, sidecars and applications in one process, for tests of the request path over real sockets.

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use leno_proto::{spiffe::SpiffeId, v1};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::LocalSet,
};

use crate::{
    config::{Config, LogFormat},
    drain::DrainOwner,
    inbound, outbound,
    policy::{Destination, DestinationKey, Protocol, Store, Target, apply::apply},
    telemetry::{self, Telemetry, exposition, recorder::Registry},
    tls::{CredentialStore, testing::Authority},
    upstream::{Backend, Endpoint, EndpointSet, Upstreams, dns::Resolver, outlier::Health},
    worker::{Context, Worker},
};

/// Ten times what the slowest test should need.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test on a worker's kind of runtime.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(async {
        tokio::time::timeout(PATIENCE, test).await.expect("the test takes too long");
    }));
}

/// Spawns hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(Authority::new)
}

pub(crate) fn server_id() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "server").unwrap()
}

/// Of all sidecars in all tests; installed before the first of them makes a handle.
fn registry() -> &'static Arc<Registry> {
    static REGISTRY: OnceLock<Arc<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let registry = Arc::new(Registry::default());
        telemetry::install(&registry).unwrap();
        registry
    })
}

/// What no listener hears that it is to close from.
fn open_for_good() -> watch::Receiver<bool> {
    static NEVER: OnceLock<watch::Sender<bool>> = OnceLock::new();
    NEVER.get_or_init(|| watch::Sender::new(false)).subscribe()
}

/// What `/metrics` would show, of all sidecars together.
pub(crate) fn metrics_page() -> String {
    exposition::render(registry())
}

/// How many of a backend's endpoints are ejected.
pub(crate) fn ejected(backend: &Backend) -> usize {
    let (set, now) = (backend.endpoints.load(), Instant::now());
    set.endpoints.iter().filter(|endpoint| endpoint.outlier.health(now) != Health::InService).count()
}

/// A sidecar's worker: what it calls is `target`, whatever the key.
pub(crate) struct Sidecar {
    pub(crate) ctx: Context,
    pub(crate) drain: DrainOwner,
}

impl Sidecar {
    pub(crate) fn new(service_account: &str, target: impl Fn() -> Target + 'static) -> Self {
        registry();
        let (policy, mut asks) = Store::new();
        tokio::task::spawn_local(async move {
            while let Some(ask) = asks.recv().await {
                let destination = Destination { key: ask.key.clone(), target: target() };
                let _ = ask.reply.send(Ok(Arc::new(destination)));
            }
        });
        let credentials = Arc::new(CredentialStore::default());
        let id = SpiffeId::new("cluster.local", "shop", service_account).unwrap();
        credentials.install(authority().credentials(&id));
        let drain = DrainOwner::default();
        let resolver = Resolver::new(tokio::runtime::Handle::current(), None);
        let upstreams = Upstreams::new(None, Arc::clone(&credentials), resolver);
        let telemetry = Arc::new(Telemetry::default());
        let ctx =
            Worker::new(Arc::new(config()), policy, credentials, telemetry, drain.handle(), upstreams, Arc::default());
        Self { ctx, drain }
    }

    /// An outbound listener for a destination by name.
    pub(crate) async fn outbound(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = DestinationKey::Name("shop.shop:80".into());
        tokio::task::spawn_local(outbound::run(Rc::clone(&self.ctx), listener, Some(key), open_for_good()));
        address
    }

    /// An inbound listener for `application`.
    pub(crate) async fn inbound(&self, application: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(inbound::run(Rc::clone(&self.ctx), listener, Some(application), open_for_good()));
        address
    }
}

/// A backend with these endpoints, as a workload that has no routes.
pub(crate) fn workload(endpoints: &[(SocketAddr, Option<SpiffeId>)], protocol: Protocol) -> Target {
    let backend = Backend::new("shop/shop:80".into());
    let endpoints = endpoints.iter().map(|(address, id)| Endpoint::new(*address, id.clone(), "w", "", 1));
    backend.publish(EndpointSet::new(true, protocol, endpoints.collect()));
    Target::Workload(Arc::new(backend))
}

/// How a client reaches an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    /// One sidecar, and an application without one.
    Outbound,
    /// Both sidecars, mutual TLS between them.
    Mesh,
}

pub(crate) const BOTH: [Through; 2] = [Through::Outbound, Through::Mesh];

/// The address at which a client reaches `application`.
pub(crate) async fn reach(application: SocketAddr, through: Through) -> SocketAddr {
    let endpoint = match through {
        Through::Outbound => (application, None),
        Through::Mesh => {
            let server = Sidecar::new("server", || Target::Outside);
            (server.inbound(application).await, Some(server_id()))
        }
    };
    let target = workload_source(vec![endpoint]);
    Sidecar::new("client", target).outbound().await
}

/// The same backend at each call.
pub(crate) fn workload_source(endpoints: Vec<(SocketAddr, Option<SpiffeId>)>) -> impl Fn() -> Target + 'static {
    let Target::Workload(backend) = workload(&endpoints, Protocol::Detect) else { unreachable!() };
    move || Target::Workload(Arc::clone(&backend))
}

/// An application that hands each connection to `serve`.
pub(crate) async fn application<F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream) -> F + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(serve(stream));
        }
    });
    address
}

/// An application that reads one request head (and as much as comes with it), answers `answer` and goes on; what it read
/// is in `seen`.
pub(crate) async fn scripted(answer: &'static [u8]) -> (SocketAddr, Rc<std::cell::RefCell<Vec<u8>>>) {
    let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = Rc::clone(&seen);
    let address = application(move |mut stream| {
        let log = Rc::clone(&log);
        async move {
            while let Some(head) = read_until(&mut stream, b"\r\n\r\n").await {
                log.borrow_mut().extend_from_slice(&head);
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, seen)
}

/// Reads until `end` has come; None at the end of the stream.
pub(crate) async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Option<Vec<u8>> {
    let mut read = Vec::new();
    while !read.windows(end.len()).any(|window| window == end) {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => read.extend_from_slice(&buffer[..n]),
        }
    }
    Some(read)
}

/// Sends `request` on a connection of its own and reads until the other side closes.
pub(crate) async fn talk(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A configuration that names nothing.
pub(crate) fn config() -> Config {
    Config {
        control_plane: String::new(),
        trust_bundle: Default::default(),
        token_file: None,
        workload: "test".into(),
        outbound: Vec::new(),
        inbound: Vec::new(),
        transparent: None,
        admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        probe_port: None,
        probe_metrics: false,
        probes: Default::default(),
        workers: 1,
        drain_timeout: Duration::from_secs(1),
        access_log: LogFormat::Off,
        otlp_endpoint: None,
        trace_sample: 0.0,
        dns_server: None,
        log: "off".into(),
        log_format: LogFormat::Text,
    }
}

// ---- policy -------------------------------------------------------------------------------------

impl Sidecar {
    /// Puts resources in force as the control plane would.
    pub(crate) fn apply(&self, resources: Vec<(v1::ResourceKind, &str, v1::resource::Body)>) {
        let changed = resources.into_iter().map(|(kind, key, body)| v1::Resource {
            name: Some(v1::ResourceName { kind: kind.into(), key: key.into() }),
            version: "1".into(),
            origins: Vec::new(),
            body: Some(body),
        });
        let delta = v1::Delta { nonce: 1, generation: 1, changed: changed.collect(), removed: Vec::new() };
        let current = self.ctx.policy.snapshot();
        let change = apply(&current, delta, |_| true, &mut |_, _| Ok(()));
        assert_eq!(change.rejected, vec![]);
        change.commit(&self.ctx.policy);
    }

    /// The service shop/shop:80, with one rule for everything and one backend with these endpoints.
    pub(crate) fn route(&self, protocol: v1::Protocol, action: v1::HttpAction, endpoints: &[SocketAddr]) {
        let backend = v1::WeightedBackend {
            weight: 1,
            kind: Some(v1::weighted_backend::Kind::Backend(v1::BackendRef { key: "shop/shop:80".into() })),
            filters: Vec::new(),
            session_persistence: None,
        };
        let action = v1::HttpAction { backends: vec![backend.clone()], ..action };
        let rule = v1::HttpRule { r#match: Some(v1::HttpMatch::default()), action: 0 };
        let tcp = v1::TcpRoute { origin: None, backends: vec![backend] };
        self.routes(protocol, v1::HttpRoutes { rules: vec![rule], actions: vec![action] }, Some(tcp), endpoints);
    }

    /// The same with these routes.
    pub(crate) fn routes(
        &self,
        protocol: v1::Protocol,
        http: v1::HttpRoutes,
        tcp: Option<v1::TcpRoute>,
        endpoints: &[SocketAddr],
    ) {
        let service = v1::ServiceTarget {
            service: Some(v1::ObjectRef { kind: "Service".into(), namespace: "shop".into(), name: "shop".into() }),
            port: 80,
            protocol: protocol.into(),
            http: Some(http),
            tls: None,
            tcp,
        };
        let destination = v1::Destination { target: Some(v1::destination::Target::Service(service)) };
        let endpoints = endpoints.iter().map(|address| v1::Endpoint {
            address: address.to_string(),
            state: v1::endpoint::State::Ready.into(),
            ..Default::default()
        });
        let endpoints = v1::Endpoints { protocol: 0, endpoints: endpoints.collect(), ..v1::Endpoints::default() };
        self.apply(vec![
            (v1::ResourceKind::Destination, "shop.shop:80", v1::resource::Body::Destination(destination)),
            (v1::ResourceKind::Endpoints, "shop/shop:80", v1::resource::Body::Endpoints(endpoints)),
        ]);
    }

    /// Inbound policy for the workload's port.
    pub(crate) fn permit(&self, mode: v1::inbound::Mode, port: u16, protocol: v1::Protocol) {
        let ports = vec![v1::InboundPort { port: port.into(), protocol: protocol.into(), policy: None }];
        let inbound = v1::Inbound { mode: mode.into(), ports, ..Default::default() };
        self.apply(vec![(v1::ResourceKind::Inbound, "", v1::resource::Body::Inbound(inbound))]);
    }
}
