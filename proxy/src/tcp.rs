//! Opaque connections: choose an endpoint, connect, relay, record.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::BytesMut;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    config::limits,
    detect::{self, FirstBytes, Spoken},
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

/// Relays until both sides are done, and records the connection.
pub(crate) async fn relay(client: impl Io, server: impl Io, peer: SocketAddr, metrics: Option<&ConnectionMetrics>) {
    let started = Instant::now();
    let moved = Moved::default();
    if let Some(metrics) = metrics {
        metrics.opened();
    }
    let mut recorded = Recorded { metrics, moved: &moved, started, reason: Some("aborted") };
    // A drain waits for connections up to its limit: opaque bytes know no better moment to end.
    let ended = copy::relay(client, server, limits::TCP_IDLE, &moved).await;
    recorded.reason = match ended {
        Ok(()) => None,
        Err(error) => {
            tracing::debug!(%peer, %error, "relay ended");
            Some(reason(&error))
        }
    };
}

/// The name of what ended a relay, for metrics.
fn reason(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::TimedOut => "idle",
        _ => "reset",
    }
}

/// Records the connection's end, also if its task is dropped.
struct Recorded<'a> {
    metrics: Option<&'a ConnectionMetrics>,
    moved: &'a Moved,
    started: Instant,
    reason: Option<&'static str>,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics {
            metrics.closed(self.reason, self.moved.to_server.get(), self.moved.to_client.get(), self.started.elapsed());
        }
    }
}
