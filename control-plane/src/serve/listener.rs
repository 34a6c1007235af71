//! Connections from proxies: TCP, TLS 1.3, and who is at the other end.
//!
//! A client certificate is verified when presented; without one, a client can do nothing but ask for one, for a while. Whoever has
//! not shown one takes a place among [`strangers`](super::strangers), where the oldest makes room for the next.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use leno_proto::{
    spiffe::SpiffeId,
    v1::{identity_server::IdentityServer, replicas_server::ReplicasServer},
};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{body::Body, codegen::http, server::NamedService, transport::server::Connected};
use tower::Service;

use super::{
    discovery::{self, Distributor},
    limits,
    metrics::Metrics,
    strangers::{Place, Strangers},
};
use crate::{
    authority::{Authority, bound_pod::BoundPod, certify::Certifier, issue},
    kubernetes::peers::Answers,
};

/// The other end of a connection; an extension of every request on it.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// None: no client certificate was presented.
    pub certificate: Option<PeerCertificate>,
}

/// What a verified client certificate says.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    pub identity: SpiffeId,
    pub not_after: SystemTime,
    /// None: whoever has it may be any workload of the identity.
    pub pod: Option<BoundPod>,
}

/// The server's own certificate, and the TLS configuration made from it.
pub struct ServerCredentials {
    current: ArcSwap<Current>,
}

struct Current {
    tls: Arc<ServerConfig>,
    material: Arc<issue::Material>,
    trust_domain: String,
    issued_at: SystemTime,
    not_after: SystemTime,
}

impl ServerCredentials {
    /// # Errors
    /// If no certificate can be issued.
    pub fn new(authority: &Authority, now: SystemTime) -> anyhow::Result<Self> {
        Ok(Self { current: ArcSwap::from_pointee(Current::issue(authority, now)?) })
    }

    /// A new certificate, for connections from now on.
    ///
    /// # Errors
    /// If none can be issued; the current one stays.
    pub fn renew(&self, authority: &Authority, now: SystemTime) -> anyhow::Result<()> {
        let next = Current::issue(authority, now)?;
        tracing::debug!(not_after = %issue::display(next.not_after), "renewed the control plane's certificate");
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// Past two thirds of its life, made at a time that the clock has gone back behind, or of another root or issuer than that
    /// in force.
    pub fn renewal_due(&self, authority: &Authority, now: SystemTime) -> bool {
        let current = self.current.load();
        if !Arc::ptr_eq(&current.material, &authority.material()) {
            return true;
        }
        let life = current.not_after.duration_since(current.issued_at).unwrap_or_default();
        now < current.issued_at || now >= current.issued_at + life.mul_f64(2.0 / 3.0)
    }
}

impl Current {
    fn issue(authority: &Authority, now: SystemTime) -> anyhow::Result<Self> {
        // What it is compared with later: if it changes meanwhile, another is issued.
        let material = authority.material();
        let (issued, key) = authority.issue_own(now).context("cannot issue the control plane's own certificate")?;
        let provider = Arc::new(provider());
        let mut roots = RootCertStore::empty();
        for anchor in &material.anchors {
            roots.add(anchor.clone()).context("a trust anchor cannot be used")?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .context("the trust anchors cannot be used")?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(issued.chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session's client certificate would not be verified again.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        Ok(Self {
            tls: Arc::new(tls),
            material,
            trust_domain: authority.trust_domain().to_owned(),
            issued_at: now,
            not_after: issued.not_after,
        })
    }
}

/// TLS 1.3 key exchange, post-quantum first.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups =
        vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    provider
}

/// The services on one port, told apart by the path.
#[derive(Clone)]
pub struct Services {
    pub identity: IdentityServer<Certifier>,
    pub discovery: Distributor,
    /// For other replicas, in Kubernetes.
    pub replicas: Option<ReplicasServer<Answers>>,
}

const REPLICAS: &str = <ReplicasServer<Answers> as NamedService>::NAME;

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + Send>>;

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let path = request.uri().path();
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        if path == discovery::SUBSCRIBE {
            let distributor = self.discovery.clone();
            Box::pin(async move { Ok(distributor.answer(request).await) })
        } else if service == <IdentityServer<Certifier> as NamedService>::NAME {
            self.identity.call(request)
        } else if let Some(replicas) = self.replicas.as_mut().filter(|_| service == REPLICAS) {
            replicas.call(request)
        } else {
            Box::pin(async { Ok(tonic::Status::unimplemented("no such service").into_http()) })
        }
    }
}

/// Binds `address`. Where this machine has no IPv6, every address of it (`[::]`) is every address of IPv4.
///
/// # Errors
/// If it cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())).await
        }
        bound => bound,
    }
}

/// Accepts until `stopping`, and returns when every connection has ended.
///
/// # Errors
/// If the socket fails.
pub async fn serve(
    tcp: TcpListener,
    credentials: Arc<ServerCredentials>,
    services: Services,
    metrics: Arc<Metrics>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (accepted, incoming) = mpsc::channel::<Result<Connection, io::Error>>(64);
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(limits::HEAD_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .serve_with_incoming_shutdown(services, ReceiverStream::new(incoming), {
            let mut stopping = stopping.clone();
            async move {
                let _ = stopping.wait_for(|s| *s).await;
            }
        });
    let accept = async {
        let strangers = Strangers::new(limits::STRANGERS);
        let proxies = Arc::new(Semaphore::new(connections()));
        let refusals = Arc::new(Mutex::new(Refusals::default()));
        loop {
            match tcp.accept().await {
                Ok((stream, address)) => {
                    // One socket is for both families.
                    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                    let admission = Admission {
                        tls: credentials.current.load_full(),
                        stranger: strangers.admit(address.ip()).await,
                        proxies: Arc::clone(&proxies),
                        accepted: accepted.clone(),
                    };
                    let (metrics, refusals) = (Arc::clone(&metrics), Arc::clone(&refusals));
                    tokio::spawn(async move {
                        if let Err(error) = admission.admit(stream, address).await {
                            metrics.connection_refused();
                            refusals.lock().log(address, &error, Instant::now());
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most likely: some may be free in a moment.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.context("the gRPC server ended"),
        () = accept => {}
        _ = stopping.wait_for(|s| *s) => {}
    }
    server.await.context("the gRPC server ended")
}

/// How many proxies can be connected at once: as many files as the process may open, less some for other things.
pub fn connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    let others = limits::STRANGERS + limits::OTHER_FILES;
    files.map_or(limits::CONNECTIONS, |files| files.saturating_sub(others).clamp(16, limits::CONNECTIONS))
}

/// Raises the limit of open files to what is allowed: the usual 1,024 would be a few hundred proxies.
pub(super) fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!("the limit of open files stays at {current:?}, although {maximum:?} is allowed: {error}");
    }
}

/// Says why connections were refused, so many in a while: a flood of connections is not to become a flood of lines.
#[derive(Default)]
struct Refusals {
    began: Option<Instant>,
    count: u32,
}

impl Refusals {
    fn log(&mut self, address: SocketAddr, error: &anyhow::Error, now: Instant) {
        if self.began.is_none_or(|began| now >= began + limits::REFUSALS_PERIOD) {
            let unsaid = self.count.saturating_sub(limits::REFUSALS_LOGGED);
            if unsaid > 0 {
                tracing::warn!(connections = unsaid, "refused more connections than are logged one by one");
            }
            (self.began, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count <= limits::REFUSALS_LOGGED {
            tracing::warn!(%address, error = format!("{error:#}"), "refused a connection");
        }
    }
}

/// What it takes to let a connection in.
struct Admission {
    tls: Arc<Current>,
    stranger: Place,
    proxies: Arc<Semaphore>,
    accepted: mpsc::Sender<Result<Connection, io::Error>>,
}

impl Admission {
    async fn admit(mut self, stream: TcpStream, address: SocketAddr) -> anyhow::Result<()> {
        // Without it, answers are late, and right.
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls.tls));
        let stream = tokio::select! {
            done = timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => {
                done.context("the TLS handshake timed out")?.context("TLS handshake")?
            }
            () = self.stranger.dismissed() => bail!("too many connections: the TLS handshake took longer than others'"),
        };
        let certificate = peer_certificate(&stream, &self.tls.trust_domain)?;
        let held = match certificate {
            Some(_) => Held::Proxy {
                _slot: self.proxies.try_acquire_owned().context("as many proxies are connected as can be")?,
            },
            None => Held::Stranger { place: self.stranger, deadline: Box::pin(sleep(limits::STRANGER_LIFETIME)) },
        };
        let connection = Connection { stream, peer: Peer { address, certificate }, held };
        // The server has ended if this fails.
        let _ = self.accepted.send(Ok(connection)).await;
        Ok(())
    }
}

fn peer_certificate(stream: &TlsStream<TcpStream>, trust_domain: &str) -> anyhow::Result<Option<PeerCertificate>> {
    let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()) else {
        return Ok(None);
    };
    let (identity, not_after) = issue::identity(leaf).context("the client certificate is not a mesh identity")?;
    if identity.trust_domain() != trust_domain {
        bail!("the client is {identity}, not of the trust domain {trust_domain}");
    }
    Ok(Some(PeerCertificate { identity, not_after, pod: BoundPod::of(leaf)? }))
}

/// A TLS connection whose peer is known.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    held: Held,
}

/// What a connection takes of what there is a limit to.
enum Held {
    Proxy {
        _slot: OwnedSemaphorePermit,
    },
    /// Without a client certificate: until the deadline, or until somebody else needs the place.
    Stranger {
        place: Place,
        deadline: Pin<Box<Sleep>>,
    },
}

impl Held {
    /// Ready with the reason when it must be given back.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        let Self::Stranger { place, deadline } = self else { return Poll::Pending };
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready("no client certificate");
        }
        place.poll_dismissed(cx).map(|()| "no client certificate, and others wait")
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(why) = self.held.poll_over(cx) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
