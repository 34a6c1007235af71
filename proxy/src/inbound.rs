//! Connections to the workload: who is it, may it come in, what does it speak; then to the application.
//!
//! `leno-client-id` reaches the application only as written here: requests are looked at on every port that is not
//! declared to be TCP or TLS, also inside the opaque bytes of a mesh peer, whatever its ALPN says. On ports declared TCP
//! or TLS bytes pass as they are, and an application must not read that header there.

pub mod concurrency;
pub(crate) mod load;
pub mod protection;
pub mod rate_limit;
mod request;
mod told;

pub(crate) use self::request::size as head_size;

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use leno_proto::spiffe::SpiffeId;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use self::protection::Protection;
use crate::{
    config::limits,
    detect::{self, FirstBytes, Spoken},
    drain::Drain,
    error::Error,
    http::{
        h2,
        serve::{self, Wire},
    },
    net::{Accepted, Backlog, Io, Prefixed, listener},
    policy::{Inbound, Protocol},
    tcp::{self, Carried},
    telemetry::{ConnectionMetrics, ConnectionRecord, Direction, RouteMetrics},
    tls::{MeshProtocol, TlsError, TlsStream},
    worker::Context,
};

/// One port of the local application.
pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    /// What policy says that it speaks.
    pub(crate) protocol: Protocol,
    pub(crate) protection: Arc<Protection>,
    pub(crate) requests: RouteMetrics,
    pub(crate) connections: ConnectionMetrics,
    /// What it tells clients in the mesh that ask.
    load: Arc<load::Load>,
}

/// Who is on the other side of a connection.
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// None: not through the mesh.
    pub(crate) identity: Option<SpiffeId>,
}

impl Client {
    fn new(address: SocketAddr, identity: Option<SpiffeId>) -> Self {
        Self { address, identity }
    }

    /// How long its connection may be without a byte moved.
    fn idle(&self, ctx: &Context) -> Duration {
        if self.identity.is_some() { ctx.peer_idle } else { ctx.tcp_idle }
    }
}

/// Accepts until `closing`. `application`: what the listener stands for; None: the original destination of each
/// redirected connection.
pub async fn run(ctx: Context, listener: TcpListener, application: Option<SocketAddr>, closing: watch::Receiver<bool>) {
    listener::accept(listener, application.is_none(), closing, |accepted| {
        let application = application.unwrap_or(accepted.destination);
        tokio::task::spawn_local(serve(Rc::clone(&ctx), accepted, application, ctx.drain.clone()));
    })
    .await;
}

/// Serves one connection to the workload to its end; a drain waits for it from the moment it was accepted.
pub async fn serve(ctx: Context, accepted: Accepted, application: SocketAddr, _waited_for: Drain) {
    let (address, began) = (accepted.peer, Instant::now());
    if let Err(refusal) = connection(&ctx, accepted, application).await {
        ctx.telemetry.refused(Direction::Inbound, refusal.reason, address, &refusal.detail);
        told::not_let_in(&ctx, address, application, &refusal, began);
    }
}

/// What a client hears that is not in the mesh, of a port that is for the mesh alone.
const STRICT: &str = "only mesh TLS is accepted (strict)";
/// The reason counted for it.
const PLAINTEXT: &str = "plaintext";
/// The reason counted for a connection beyond those that policy allows.
const TOO_MANY_CONNECTIONS: &str = "connections";

/// Why a connection was not let in.
struct Refusal {
    reason: &'static str,
    detail: String,
    /// The object by whose word it is.
    origin: Option<Arc<str>>,
}

impl Refusal {
    fn strict(reason: &'static str, policy: &Inbound) -> Self {
        Self { reason, detail: STRICT.to_owned(), origin: policy.mode_origin.clone() }
    }
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        Self { reason: error.reason(), detail: error.to_string(), origin: None }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { reason: error.reason().as_str(), detail: error.to_string(), origin: None }
    }
}

async fn connection(ctx: &Context, accepted: Accepted, address: SocketAddr) -> Result<(), Refusal> {
    let policy = ctx.policy.inbound();
    // Policy names the port that the mesh calls: the application's own, or in explicit mode the listener's.
    let called = accepted.destination.port();
    let protocol = policy.port(called).map_or(Protocol::Detect, |known| known.protocol);
    let application = application(ctx, address, called, protocol);
    let Some(_counted) = application.protection.connect() else {
        return Err(Refusal {
            reason: TOO_MANY_CONNECTIONS,
            detail: format!("port {called} has as many connections as its policy allows"),
            origin: application.protection.origin(),
        });
    };
    let peer = accepted.peer;
    // A strict port waits for the client: the mesh's clients always speak first.
    let wait = (!policy.strict).then_some(limits::PEEK_WAIT);
    match ctx.first_bytes(Bytes::new(), accepted.stream, wait).await {
        Ok(FirstBytes::Spoken(Spoken::MeshTls, stream)) => meshed(ctx, stream, peer, application).await,
        Ok(FirstBytes::Spoken(spoken, stream)) => {
            if policy.strict {
                let reason = if matches!(spoken, Spoken::Tls { .. }) { "unmeshed-tls" } else { PLAINTEXT };
                return Err(Refusal::strict(reason, &policy));
            }
            unmeshed(ctx, spoken, stream, peer, application).await
        }
        Ok(FirstBytes::Silent(_)) if policy.strict => Err(Refusal::strict(PLAINTEXT, &policy)),
        Ok(FirstBytes::Silent(stream)) => silent(ctx, stream, peer, application).await,
        // Of a ClientHello, the one thing that is waited for so.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(TlsError::Timeout.into()),
        Ok(FirstBytes::Closed) | Err(_) => Ok(()),
    }
}

/// Mesh TLS: the certificate says who it is, ALPN what it speaks.
async fn meshed(
    ctx: &Context,
    stream: Prefixed<TcpStream>,
    peer: SocketAddr,
    application: Rc<Application>,
) -> Result<(), Refusal> {
    let credentials = ctx.credentials.current().ok_or(TlsError::NoCredentials)?;
    // Boxed like all that an idle connection has behind it, which else would keep the room.
    let (stream, identity, carried) = Box::pin(credentials.accept(stream)).await?;
    drop(credentials);
    let client = Client::new(peer, Some(identity));
    match (carried, application.protocol) {
        (MeshProtocol::Http1, _) => http(ctx, stream, client, application, Wire::Http1).await,
        (MeshProtocol::Http1Mux, _) => http(ctx, stream, client, application, Wire::Http1Mux).await,
        (MeshProtocol::Http2, _) => http(ctx, stream, client, application, Wire::Http2).await,
        // What is inside must go through the door that strips and checks it.
        (MeshProtocol::Tcp | MeshProtocol::TcpReady, Protocol::Http | Protocol::Http1 | Protocol::Http2) => {
            return Err(Refusal {
                reason: "not-http",
                detail: format!("opaque bytes to port {}, which is declared HTTP", application.address.port()),
                origin: None,
            });
        }
        (MeshProtocol::Tcp, _) => return meshed_opaque(ctx, stream, client, application, false).await,
        (MeshProtocol::TcpReady, _) => return meshed_opaque(ctx, stream, client, application, true).await,
    }
    Ok(())
}

/// Opaque bytes from inside the mesh. `says_ready`: the client's proxy waits to hear that the application is there.
async fn meshed_opaque(
    ctx: &Context,
    mut stream: TlsStream<TcpStream>,
    client: Client,
    application: Rc<Application>,
    says_ready: bool,
) -> Result<(), Refusal> {
    let pick = ctx.upstreams.plain(application.address);
    let server = pick.tcp().await?;
    if says_ready && (stream.write_u8(leno_proto::alpn::READY).await.is_err() || stream.flush().await.is_err()) {
        return Ok(());
    }
    if application.protocol != Protocol::Detect {
        carried(ctx, &client, &application).relay(stream, server).await;
        return Ok(());
    }
    let race = Box::pin(tcp::race(Prefixed::new(Bytes::new(), stream), server, client.idle(ctx)));
    let first = ctx.drain.patiently(race).await.unwrap_or(tcp::First::Closed);
    carry(ctx, first, client, application).await;
    Ok(())
}

/// A permissive port, and a client that is not in the mesh.
async fn unmeshed(
    ctx: &Context,
    spoken: Spoken,
    stream: Prefixed<TcpStream>,
    peer: SocketAddr,
    application: Rc<Application>,
) -> Result<(), Refusal> {
    let client = Client::new(peer, None);
    let wire = wire_of(&spoken);
    match (application.protocol, spoken) {
        (Protocol::Http | Protocol::Http1 | Protocol::Http2, _) | (Protocol::Detect, Spoken::Http1 | Spoken::Http2) => {
            http(ctx, stream, client, application, wire).await;
            Ok(())
        }
        _ => opaque(ctx, stream, &client, &application).await,
    }
}

/// A permissive port and a client that says nothing (decisive): perhaps the server speaks first.
async fn silent(
    ctx: &Context,
    stream: Prefixed<TcpStream>,
    peer: SocketAddr,
    application: Rc<Application>,
) -> Result<(), Refusal> {
    let protocol = application.protocol;
    if protocol == Protocol::Tcp && !stream.prefix().is_empty() && !detect::is_tls(stream.prefix()) {
        // Whatever it becomes, it passes.
        return unmeshed(ctx, Spoken::Opaque, stream, peer, application).await;
    }
    if !matches!(protocol, Protocol::Detect | Protocol::Tcp) {
        let (already, stream) = stream.into_parts();
        return match ctx.first_bytes(already, stream, None).await {
            Ok(FirstBytes::Spoken(Spoken::MeshTls, stream)) => meshed(ctx, stream, peer, application).await,
            Ok(FirstBytes::Spoken(spoken, stream)) => unmeshed(ctx, spoken, stream, peer, application).await,
            Ok(FirstBytes::Silent(_) | FirstBytes::Closed) | Err(_) => Ok(()),
        };
    }
    let pick = ctx.upstreams.plain(application.address);
    let server = pick.tcp().await?;
    match ctx.drain.patiently(Box::pin(tcp::race(stream, server, ctx.tcp_idle))).await.unwrap_or(tcp::First::Closed) {
        tcp::First::Client(Spoken::MeshTls, stream, _) => meshed(ctx, stream, peer, application).await,
        first => {
            carry(ctx, first, Client::new(peer, None), application).await;
            Ok(())
        }
    }
}

/// Carries what a race between client and application found, on a port where the application may speak first.
async fn carry<S: Io + Backlog>(ctx: &Context, first: tcp::First<S>, client: Client, application: Rc<Application>) {
    let undeclared = application.protocol == Protocol::Detect;
    match first {
        tcp::First::Client(spoken @ (Spoken::Http1 | Spoken::Http2), stream, server) if undeclared => {
            drop(server);
            http(ctx, stream, client, application, wire_of(&spoken)).await;
        }
        tcp::First::Undecided(stream, server) if undeclared => {
            carried(ctx, &client, &application).relay(detect::NotHttp::new(stream), server).await;
        }
        tcp::First::Client(_, stream, server)
        | tcp::First::Server(stream, server)
        | tcp::First::Undecided(stream, server) => carried(ctx, &client, &application).relay(stream, server).await,
        tcp::First::Closed => {}
    }
}

/// Opaque bytes: the application is connected to at once, so that it may speak first.
async fn opaque(ctx: &Context, stream: impl Io, client: &Client, application: &Application) -> Result<(), Refusal> {
    let pick = ctx.upstreams.plain(application.address);
    let server = pick.tcp().await?;
    carried(ctx, client, application).relay(stream, server).await;
    Ok(())
}

fn carried<'a>(ctx: &'a Context, client: &Client, application: &'a Application) -> Carried<'a> {
    let record = || ConnectionRecord {
        endpoint: Some(application.address),
        peer: client.identity.clone(),
        ..ConnectionRecord::new(Direction::Inbound, client.address, application.address)
    };
    Carried::begin(ctx, &application.connections, record).idle(client.idle(ctx))
}

async fn http(ctx: &Context, stream: impl Io + Backlog, client: Client, application: Rc<Application>, wire: Wire) {
    let address = client.address;
    let reports = match &client.identity {
        Some(_) => {
            let load = Arc::clone(&application.load);
            h2::Reports::of(move || load.tell(Instant::now()))
        }
        None => h2::Reports::default(),
    };
    let client = Rc::new(client);
    let handle = |received| request::serve(Rc::clone(ctx), Rc::clone(&client), Rc::clone(&application), received);
    let tasks = &ctx.stream_tasks;
    match serve::http(stream, wire, ctx.drain.watcher(), ctx.stream_idle, reports, tasks, handle).await {
        Ok(()) => {}
        Err(error) if error.is_malformed() => {
            ctx.telemetry.refused(Direction::Inbound, serve::MALFORMED, address, &error);
        }
        Err(error) => tracing::debug!(peer = %address, %error, "client connection ended"),
    }
}

fn wire_of(spoken: &Spoken) -> Wire {
    if *spoken == Spoken::Http2 { Wire::Http2 } else { Wire::Http1 }
}

/// The application's port as a backend, made when first called and anew when its declared protocol changed. `called`: the
/// port that policy knows it by.
fn application(ctx: &Context, address: SocketAddr, called: u16, protocol: Protocol) -> Rc<Application> {
    let mut applications = ctx.applications.borrow_mut();
    if let Some(application) = applications.get(&(address, called))
        && application.protocol == protocol
    {
        return Rc::clone(application);
    }
    let application = Rc::new(Application {
        address,
        protocol,
        protection: ctx.policy.protection(called),
        requests: RouteMetrics::inbound(address.port()),
        connections: ConnectionMetrics::inbound(address.port()),
        load: load::of(address),
    });
    if applications.len() >= limits::APPLICATIONS {
        applications.clear();
    }
    applications.insert((address, called), Rc::clone(&application));
    application
}
