//! Opaque connections: choose an endpoint, connect, relay, record.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::BytesMut;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    config::limits,
    detect::{self, FirstBytes, Spoken},
    drain::Drain,
    error::Error,
    net::{
        Io, Prefixed,
        copy::{self, Moved},
    },
    telemetry::ConnectionMetrics,
    upstream::{Backend, Outcome, Pick},
    worker::Context,
};

/// Endpoints tried for one connection before giving up.
const TRIES: usize = 3;

/// A connection to one of the backend's endpoints: another one is tried if a connection cannot be made.
///
/// # Errors
/// If there is no endpoint, or none of those tried could be reached.
pub(crate) async fn connect(ctx: &Context, backend: &Arc<Backend>) -> Result<(Box<dyn Io>, Pick), Error> {
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let pick = ctx.upstreams.pick(backend, &tried).await?;
        match pick.tcp().await {
            Ok(stream) => {
                pick.report(Outcome::Success, Instant::now());
                return Ok((stream, pick));
            }
            Err(error) => {
                pick.report(Outcome::Failure, Instant::now());
                tried.push(pick.endpoint.address);
                if tried.len() >= TRIES {
                    return Err(error);
                }
            }
        }
    }
}

/// Who spoke first on a connection on which both sides were silent.
pub(crate) enum First {
    Server(Prefixed<TcpStream>, Prefixed<Box<dyn Io>>),
    Client(Spoken, Prefixed<TcpStream>, Box<dyn Io>),
    /// The client left.
    Closed,
}

/// Waits for the first byte from either side. A client that speaks is looked at as usual, without a wait for
/// more than PEEK_WAIT in which the server could not speak.
pub(crate) async fn race(client: Prefixed<TcpStream>, mut server: Box<dyn Io>) -> First {
    let (mut already, mut client) = client.into_parts();
    let mut first = BytesMut::with_capacity(limits::PEEK_BYTES);
    loop {
        tokio::select! {
            biased;
            // The server's end without a byte is passed on by the relay, as its failure is.
            _ = server.read_buf(&mut first) => {
                return First::Server(Prefixed::new(already, client), Prefixed::new(first.freeze(), server));
            }
            ready = client.readable() => if ready.is_err() { return First::Closed },
        }
        match detect::first_bytes(already, client, Some(limits::PEEK_WAIT)).await {
            Ok(FirstBytes::Spoken(spoken, client)) => return First::Client(spoken, client, server),
            Ok(FirstBytes::Silent(silent)) => (already, client) = silent.into_parts(),
            Ok(FirstBytes::Closed) | Err(_) => return First::Closed,
        }
    }
}

/// A connection that is carried as opaque bytes: counted from here on, and waited for when draining.
pub(crate) struct Carried<'a> {
    metrics: &'a ConnectionMetrics,
    moved: Moved,
    started: Instant,
    reason: Option<&'static str>,
    _waited_for: Drain,
}

impl<'a> Carried<'a> {
    pub(crate) fn begin(ctx: &Context, metrics: &'a ConnectionMetrics) -> Self {
        metrics.opened();
        Self {
            metrics,
            moved: Moved::default(),
            started: Instant::now(),
            reason: Some("aborted"),
            _waited_for: ctx.drain.clone(),
        }
    }

    /// Connects to one of the backend's endpoints and relays until both sides are done.
    ///
    /// # Errors
    /// If no connection can be made.
    pub(crate) async fn to(mut self, ctx: &Context, backend: &Arc<Backend>, client: impl Io) -> Result<(), Error> {
        match connect(ctx, backend).await {
            Ok((server, _pick)) => {
                self.relay(client, server).await;
                Ok(())
            }
            Err(error) => {
                self.reason = Some(error.reason());
                Err(error)
            }
        }
    }

    /// Relays until both sides are done.
    pub(crate) async fn relay(mut self, client: impl Io, server: impl Io) {
        self.reason = match copy::relay(client, server, limits::TCP_IDLE, &self.moved).await {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%error, "relay ended");
                Some(reason(&error))
            }
        };
    }
}

/// The name of what ended a relay, for metrics.
fn reason(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::TimedOut => "idle",
        _ => "reset",
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        let (to_server, to_client) = (self.moved.to_server.get(), self.moved.to_client.get());
        self.metrics.closed(self.reason, to_server, to_client, self.started.elapsed());
    }
}
