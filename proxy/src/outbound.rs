//! Connections that the workload opens: find the destination, tell what is spoken, carry it there.

mod request;
mod told;

use std::{collections::VecDeque, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    config::limits,
    detect::{self, FirstBytes, Spoken},
    drain::Drain,
    error::Error,
    http::{
        h2,
        serve::{self, Broken, Wire},
    },
    net::{Accepted, Backlog, Io, Prefixed, listener},
    policy::{Destination, DestinationKey, Protocol, RuleOrigin, Target},
    tcp::{self, Carried, Purpose},
    telemetry::{ConnectionMetrics, ConnectionRecord, Direction},
    upstream::{Backend, Pick},
    worker::Context,
};

/// Destinations whose server speaks first, the latest last: their connections wait for no client.
#[derive(Default)]
pub(crate) struct ServersFirst(VecDeque<DestinationKey>);

impl ServersFirst {
    fn contains(&self, key: &DestinationKey) -> bool {
        self.0.contains(key)
    }

    fn insert(&mut self, key: &DestinationKey) {
        if self.contains(key) {
            return;
        }
        if self.0.len() >= limits::SERVERS_FIRST {
            self.0.pop_front();
        }
        self.0.push_back(key.clone());
    }

    fn remove(&mut self, key: &DestinationKey) {
        self.0.retain(|held| held != key);
    }
}

/// Accepts until `closing`. `key`: what the listener stands for; None: the original destination of each redirected
/// connection.
pub async fn run(ctx: Context, listener: TcpListener, key: Option<DestinationKey>, closing: watch::Receiver<bool>) {
    listener::accept(listener, key.is_none(), closing, |accepted| {
        let key = key.clone().unwrap_or(DestinationKey::Address(accepted.destination));
        tokio::task::spawn_local(serve(Rc::clone(&ctx), accepted, key, ctx.drain.clone()));
    })
    .await;
}

/// Serves one connection of the workload to its end; a drain waits for it from the moment it was accepted.
pub async fn serve(ctx: Context, accepted: Accepted, key: DestinationKey, _waited_for: Drain) {
    let peer = accepted.peer;
    match connection(&ctx, accepted, &key).await {
        Ok(()) => {}
        // Said by the endpoint's failures and the connection's metrics.
        Err(error @ (Error::Connect { .. } | Error::Tls { .. } | Error::Reset { .. })) => {
            tracing::debug!(%peer, %key, %error, "connection failed");
        }
        Err(error) => {
            let reason = match &error {
                Error::Refused(what) => *what,
                error => error.reason().as_str(),
            };
            ctx.telemetry.refused(Direction::Outbound, reason, peer, &format_args!("to {key}: {error}"));
        }
    }
}

async fn connection(ctx: &Context, accepted: Accepted, key: &DestinationKey) -> Result<(), Error> {
    let destination = match destination(ctx, key).await {
        Ok(destination) => destination,
        Err(error) => return Box::pin(undiscovered(ctx, accepted, key, error)).await,
    };
    let protocol = match &destination.target {
        Target::Service(service) => service.protocol,
        Target::Workload(_) => Protocol::Detect,
        Target::Outside => return Box::pin(outside(ctx, accepted, &destination)).await,
    };
    // Each by itself on the heap: a connection takes the room of what it carries, not of the largest there is.
    match protocol {
        Protocol::Http | Protocol::Http1 | Protocol::Http2 => Box::pin(declared_http(ctx, accepted, key)).await,
        Protocol::Tls => Box::pin(declared_tls(ctx, accepted, &destination)).await,
        Protocol::Tcp => Box::pin(declared_tcp(ctx, accepted, &destination)).await,
        Protocol::Detect => Box::pin(detected(ctx, accepted, &destination)).await,
    }
}

/// Policy for the destination: held, or asked for.
async fn destination(ctx: &Context, key: &DestinationKey) -> Result<Arc<Destination>, Error> {
    match ctx.policy.get(key) {
        Some(destination) => Ok(destination),
        // Seldom, and large.
        None => Box::pin(ctx.policy.resolve(key)).await.map_err(|unavailable| Error::Discovery(unavailable.0)),
    }
}

// ---- HTTP -------------------------------------------------------------------------------------

/// Serves HTTP to the client; each request asks policy anew.
async fn http(ctx: &Context, peer: SocketAddr, stream: impl Io + Backlog, key: &DestinationKey, wire: Wire) {
    let handle = |received| request::serve(Rc::clone(ctx), key.clone(), peer, received);
    let (reports, tasks) = (h2::Reports::default(), &ctx.stream_tasks);
    let serving = serve::http(stream, wire, ctx.drain.watcher(), ctx.stream_idle, reports, tasks, handle);
    served(ctx, peer, key, serving.await);
}

/// How serving a client's connection ended.
fn served(ctx: &Context, peer: SocketAddr, key: &DestinationKey, ended: Result<(), Broken>) {
    match ended {
        Ok(()) => {}
        Err(error) if error.is_malformed() => {
            ctx.telemetry.refused(Direction::Outbound, serve::MALFORMED, peer, &format_args!("to {key}: {error}"));
        }
        Err(error) => tracing::debug!(%key, %error, "client connection ended"),
    }
}

/// A port whose protocol is declared HTTP: whatever else comes is answered with 400.
async fn declared_http(ctx: &Context, accepted: Accepted, key: &DestinationKey) -> Result<(), Error> {
    let peer = accepted.peer;
    let first = Box::pin(ctx.first_bytes(Bytes::new(), accepted.stream, None)).await;
    let (stream, wire) = match first {
        Ok(FirstBytes::Spoken(Spoken::Http2, stream)) => (stream, Wire::Http2),
        Ok(FirstBytes::Spoken(_, stream) | FirstBytes::Silent(stream)) => (stream, Wire::Http1),
        Ok(FirstBytes::Closed) => return Ok(()),
        Err(error) => {
            tracing::debug!(%peer, %error, "client left before it spoke");
            return Ok(());
        }
    };
    // In a task of its own, which takes the room of nothing else: most of the time such connections are idle.
    let (ctx, key, waited_for) = (Rc::clone(ctx), key.clone(), ctx.drain.clone());
    let (of_requests, to) = (Rc::clone(&ctx), key.clone());
    let handle = move |received| request::serve(Rc::clone(&of_requests), to.clone(), peer, received);
    let (reports, tasks) = (h2::Reports::default(), &ctx.stream_tasks);
    let serving = serve::http(stream, wire, ctx.drain.watcher(), ctx.stream_idle, reports, tasks, handle);
    tokio::task::spawn_local(async move {
        served(&ctx, peer, &key, serving.await);
        drop(waited_for);
    });
    Ok(())
}

/// The destination cannot be had: a client that speaks HTTP is told so by request, others are closed.
async fn undiscovered(ctx: &Context, accepted: Accepted, key: &DestinationKey, error: Error) -> Result<(), Error> {
    let peer = accepted.peer;
    match ctx.first_bytes(Bytes::new(), accepted.stream, Some(limits::PEEK_WAIT)).await {
        Ok(FirstBytes::Spoken(Spoken::Http1, stream)) => http(ctx, peer, stream, key, Wire::Http1).await,
        Ok(FirstBytes::Spoken(Spoken::Http2, stream)) => http(ctx, peer, stream, key, Wire::Http2).await,
        _ => return Err(error),
    }
    Ok(())
}

// ---- what is spoken, found out ------------------------------------------------------------------

/// A port whose protocol is not declared.
async fn detected(ctx: &Context, accepted: Accepted, destination: &Destination) -> Result<(), Error> {
    let peer = accepted.peer;
    let server_first = ctx.servers_first.borrow().contains(&destination.key);
    let wait = if server_first { Duration::ZERO } else { limits::PEEK_WAIT };
    match ctx.first_bytes(Bytes::new(), accepted.stream, Some(wait)).await {
        Ok(FirstBytes::Spoken(spoken, stream)) => carry(ctx, peer, spoken, stream, destination, None).await,
        Ok(FirstBytes::Silent(stream)) => {
            // Requests are told from opaque bytes only by what comes; where the server spoke first of late, and where there
            // are no rules for requests, it is the latter.
            let opaque = server_first || !routes_http(destination);
            let purpose = if opaque { Purpose::Opaque } else { Purpose::Undecided };
            silent(ctx, peer, stream, destination, purpose).await
        }
        Ok(FirstBytes::Closed) => Ok(()),
        Err(error) => {
            tracing::debug!(%peer, %error, "client left before it spoke");
            Ok(())
        }
    }
}

/// Neither side has spoken: connects, and whoever speaks first decides.
async fn silent(
    ctx: &Context,
    peer: SocketAddr,
    client: Prefixed<TcpStream>,
    destination: &Destination,
    purpose: Purpose,
) -> Result<(), Error> {
    let chosen = Chosen::opaque(ctx, peer, destination, None)?;
    let carried = || chosen.carried(ctx, peer, &destination.key);
    let (server, pick) = match Box::pin(tcp::connect(ctx, &chosen.backend, peer, purpose)).await {
        Ok(connected) => connected,
        Err(error) => return Err(carried().failed(error)),
    };
    let idle = pick.stream_idle().unwrap_or(ctx.tcp_idle);
    match ctx.drain.patiently(Box::pin(tcp::race(client, server, idle))).await.unwrap_or(tcp::First::Closed) {
        tcp::First::Server(client, server) => {
            ctx.servers_first.borrow_mut().insert(&destination.key);
            carried().reached(&pick).relay(client, server).await;
            Ok(())
        }
        tcp::First::Client(spoken, stream, server) => {
            ctx.servers_first.borrow_mut().remove(&destination.key);
            let opened = Opened { server, pick, chosen };
            carry(ctx, peer, spoken, stream, destination, Some(opened)).await
        }
        tcp::First::Undecided(stream, server) => {
            let carried = carried().reached(&pick);
            if routes_http(destination) {
                carried.relay(detect::NotHttp::new(stream), server).await;
            } else {
                carried.relay(stream, server).await;
            }
            Ok(())
        }
        tcp::First::Closed => Ok(()),
    }
}

/// A connection made before it was known what is spoken; of use only to opaque bytes.
struct Opened<'a> {
    server: Box<dyn Io>,
    pick: Pick,
    chosen: Chosen<'a>,
}

/// Whether there are rules for requests.
fn routes_http(destination: &Destination) -> bool {
    match &destination.target {
        Target::Service(service) => service.http.is_some(),
        Target::Workload(_) => true,
        Target::Outside => false,
    }
}

/// Carries what was found to be spoken.
async fn carry(
    ctx: &Context,
    peer: SocketAddr,
    spoken: Spoken,
    stream: Prefixed<TcpStream>,
    destination: &Destination,
    opened: Option<Opened<'_>>,
) -> Result<(), Error> {
    let server_name = match spoken {
        Spoken::Http1 | Spoken::Http2 if routes_http(destination) => {
            drop(opened);
            let wire = if spoken == Spoken::Http2 { Wire::Http2 } else { Wire::Http1 };
            http(ctx, peer, stream, &destination.key, wire).await;
            return Ok(());
        }
        Spoken::Tls { server_name } => server_name,
        _ => None,
    };
    if let Some(Opened { server, pick, chosen }) = opened {
        chosen.carried(ctx, peer, &destination.key).reached(&pick).relay(stream, server).await;
        return Ok(());
    }
    let chosen = Chosen::opaque(ctx, peer, destination, server_name.as_deref())?;
    chosen.carried(ctx, peer, &destination.key).to(&chosen.backend, stream, peer).await
}

// ---- opaque bytes -------------------------------------------------------------------------------

/// A port that is declared to be the application's own TLS: routed by SNI, never decrypted.
async fn declared_tls(ctx: &Context, accepted: Accepted, destination: &Destination) -> Result<(), Error> {
    let (server_name, stream) = match ctx.first_bytes(Bytes::new(), accepted.stream, None).await {
        Ok(FirstBytes::Spoken(Spoken::Tls { server_name }, stream)) => (server_name, stream),
        Ok(FirstBytes::Spoken(..) | FirstBytes::Silent(_)) => return Err(Error::Refused("not-tls")),
        Ok(FirstBytes::Closed) | Err(_) => return Ok(()),
    };
    let chosen = Chosen::opaque(ctx, accepted.peer, destination, server_name.as_deref())?;
    chosen.carried(ctx, accepted.peer, &destination.key).to(&chosen.backend, stream, accepted.peer).await
}

/// A port that is declared to be opaque.
async fn declared_tcp(ctx: &Context, accepted: Accepted, destination: &Destination) -> Result<(), Error> {
    let chosen = Chosen::opaque(ctx, accepted.peer, destination, None)?;
    chosen.carried(ctx, accepted.peer, &destination.key).to(&chosen.backend, accepted.stream, accepted.peer).await
}

/// Where opaque bytes go, and why.
struct Chosen<'a> {
    backend: Arc<Backend>,
    metrics: ConnectionMetrics,
    /// None: a workload, which has no routes.
    origin: Option<&'a RuleOrigin>,
}

impl<'a> Chosen<'a> {
    /// Where a connection of opaque bytes (or of TLS with `server_name`) goes. What goes nowhere is counted and has its line in the
    /// access log, too.
    fn opaque(
        ctx: &Context,
        client: SocketAddr,
        destination: &'a Destination,
        server_name: Option<&str>,
    ) -> Result<Self, Error> {
        Self::find(ctx, destination, server_name).map_err(|Nowhere { metrics, origin, error }| {
            let carried = Carried::begin(ctx, &metrics, || ConnectionRecord {
                route: origin.cloned(),
                ..ConnectionRecord::new(Direction::Outbound, client, &destination.key)
            });
            carried.failed(error)
        })
    }

    fn find(ctx: &Context, destination: &'a Destination, server_name: Option<&str>) -> Result<Self, Nowhere<'a>> {
        let service = match &destination.target {
            Target::Service(service) => service,
            Target::Workload(backend) => {
                let metrics = ConnectionMetrics::outbound(&backend.key, "default", &backend.key);
                return Ok(Self { backend: Arc::clone(backend), metrics, origin: None });
            }
            Target::Outside => {
                let metrics = ConnectionMetrics::outbound("outside", "default", "outside");
                let error = Error::InvalidBackend(format!("{} is outside the mesh", destination.key));
                return Err(Nowhere { metrics, origin: None, error });
            }
        };
        let route = match &service.tls {
            Some(routes) if service.protocol == Protocol::Tls => routes.decide(server_name),
            _ => service.tcp.as_ref(),
        };
        let metrics = |route: &str| ConnectionMetrics::outbound(&service.service, route, "");
        let Some(route) = route else {
            return Err(Nowhere { metrics: metrics(""), origin: None, error: Error::NoRule });
        };
        let origin = Some(&route.origin);
        let Some(chosen) = route.backends.pick(ctx.random.next()) else {
            return Err(Nowhere { metrics: metrics(&route.origin.route), origin, error: no_backend(&route.origin) });
        };
        let metrics = chosen.metrics.clone();
        match &chosen.backend {
            Ok(backend) => Ok(Self { backend: Arc::clone(backend), metrics, origin }),
            Err(reason) => Err(Nowhere { metrics, origin, error: Error::InvalidBackend(reason.clone()) }),
        }
    }

    fn carried<'c>(&'c self, ctx: &'c Context, client: SocketAddr, key: &DestinationKey) -> Carried<'c> {
        Carried::begin(ctx, &self.metrics, || ConnectionRecord {
            route: self.origin.cloned(),
            backend: Some(Arc::clone(&self.backend.key)),
            ..ConnectionRecord::new(Direction::Outbound, client, key)
        })
    }
}

/// Opaque bytes go nowhere.
struct Nowhere<'a> {
    metrics: ConnectionMetrics,
    /// The rule that was to take them, if there was one.
    origin: Option<&'a RuleOrigin>,
    error: Error,
}

/// A rule without backends, or whose backends all weigh nothing.
fn no_backend(origin: &RuleOrigin) -> Error {
    Error::InvalidBackend(format!("{} rule {} has no backend with a weight", origin.route, origin.rule))
}

/// Not in the mesh: bytes go on as they are, to the original address or to a name that DNS knows.
async fn outside(ctx: &Context, accepted: Accepted, destination: &Destination) -> Result<(), Error> {
    let metrics = ConnectionMetrics::outbound("outside", "default", "outside");
    let record = || ConnectionRecord::new(Direction::Outbound, accepted.peer, &destination.key);
    let carried = Carried::begin(ctx, &metrics, record);
    match &destination.key {
        DestinationKey::Address(address) => {
            let pick = ctx.upstreams.plain(*address);
            match pick.tcp().await {
                Ok(server) => carried.reached(&pick).relay(accepted.stream, server).await,
                Err(error) => return Err(carried.reached(&pick).failed(error)),
            }
            Ok(())
        }
        DestinationKey::Name(name) => {
            let invalid = || Error::InvalidBackend(format!("{name} is not host:port"));
            match ctx.upstreams.outside(name) {
                Some(backend) => carried.to(&backend, accepted.stream, accepted.peer).await,
                None => Err(carried.failed(invalid())),
            }
        }
    }
}
