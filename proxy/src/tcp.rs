//! Opaque connections: choose an endpoint, connect, relay, record.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;

use crate::{
    config::limits,
    detect::{self, ServerSpeaks, Spoken},
    error::Error,
    http::affinity,
    net::{
        Io, Prefixed,
        copy::{self, Moved},
    },
    reason::Reason,
    telemetry::{ConnectionMetrics, ConnectionRecord},
    upstream::{
        Backend, Outcome, Pick,
        balance::settings::HashKey,
        bulkhead::{Place, What},
        shield::Rules,
    },
    worker::Context,
};

/// Endpoints tried for one connection before giving up.
const TRIES: usize = 3;

/// What a connection that is to be made is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It carries opaque bytes.
    Opaque,
    /// To see who speaks first. If that is an HTTP client it serves nothing: breaker and budget are its requests' to ask
    /// and to tell.
    Undecided,
}

/// A connection to one of the backend's endpoints: another one is tried if a connection cannot be made, as far as breaker,
/// limits and budget of the backend allow it; of those, an undecided one meets `limits.connections` alone.
///
/// `source`: where the client's connection came from.
///
/// # Errors
/// If there is no endpoint, none of those tried could be reached, or the breaker is open.
pub(crate) async fn connect(
    ctx: &Context,
    backend: &Arc<Backend>,
    source: SocketAddr,
    purpose: Purpose,
) -> Result<(Box<dyn Io>, Pick), Error> {
    if !backend.shield.is_told() {
        ctx.upstreams.await_policy(backend).await?;
    }
    let opaque = purpose == Purpose::Opaque;
    let rules = backend.shield.rules().filter(|_| opaque);
    let mut retrying = None;
    let mut tried: Vec<SocketAddr> = Vec::new();
    let key =
        |by: &HashKey| matches!(by, HashKey::SourceAddress).then(|| affinity::of_source(source, &ctx.config.workload));
    loop {
        let permit = match &rules {
            Some(rules) => backend.shield.admit(rules, &backend.key, Instant::now())?,
            None => None,
        };
        let pick = ctx.upstreams.pick(backend, &tried, key).await?;
        let connected = pick.tcp().await;
        let (outcome, now) = (outcome(&connected), Instant::now());
        pick.report(outcome, now);
        backend.shield.report(permit, outcome, &backend.key, now);
        match connected {
            Ok(stream) => {
                if opaque {
                    backend.budget.deposit(now);
                }
                return Ok((stream, pick));
            }
            Err(error) => {
                tried.push(pick.endpoint.address);
                // Beyond a limit it fails at once, as requests do.
                if outcome == Outcome::Neutral || tried.len() >= TRIES {
                    return Err(error);
                }
                if opaque && !may_retry(backend, rules.as_deref(), &mut retrying, now) {
                    return Err(error);
                }
            }
        }
    }
}

/// What a connection, or the lack of one, says of its endpoint and backend.
fn outcome<T>(connected: &Result<T, Error>) -> Outcome {
    match connected {
        Ok(_) => Outcome::Success,
        Err(Error::Limit { .. }) => Outcome::Neutral,
        Err(_) => Outcome::Failure,
    }
}

/// Whether the backend's breaker, limits and budget allow one more try. `place`: its place among the retries, once it has one.
fn may_retry(backend: &Arc<Backend>, rules: Option<&Rules>, place: &mut Option<Place>, now: Instant) -> bool {
    if let Some(rules) = rules {
        if rules.breaker.is_some() && backend.shield.breaker.is_open(now) {
            return false;
        }
        if place.is_none() {
            match backend.shield.place(rules, What::Retry, &backend.key) {
                Ok(taken) => *place = taken,
                Err(_) => return false,
            }
        }
    }
    backend.budget.withdraw(now)
}

/// Who spoke first on a connection on which both sides were silent.
pub(crate) enum First<S> {
    Server(Prefixed<S>, Box<dyn Io>),
    Client(Spoken, Prefixed<S>, Box<dyn Io>),
    /// The client sent bytes that do not tell what they are, and waits. They may still be the beginning of HTTP:
    /// see [`detect::NotHttp`].
    Undecided(Prefixed<S>, Box<dyn Io>),
    /// Nothing is to be carried: the client left, or an HTTP server was tired of waiting for it, or we were.
    Closed,
}

/// Waits for the first bytes from either side, which nobody's silence delays; the client's are looked at as usual. Once
/// they begin as TLS does, what the server says waits: a hello in pieces must not get in clear what it was to encrypt.
/// `idle`: how long both may be silent.
pub(crate) async fn race<S: Io>(client: Prefixed<S>, mut server: Box<dyn Io>, idle: Duration) -> First<S> {
    let (already, mut client) = client.into_parts();
    let mut first = BytesMut::from(already);
    // A server that turns out to speak HTTP waits for the client, whatever it said first.
    let mut server_waits = false;
    let mut deadline = Instant::now() + idle;
    let mut undecided = false;
    let mut hello = false;
    loop {
        if !undecided && !hello && !first.is_empty() {
            hello = detect::is_tls(&first);
            undecided = !hello;
            deadline = Instant::now() + if hello { limits::HEADER_TIMEOUT } else { limits::UNDECIDED_WAIT };
        }
        let mut said = BytesMut::new();
        tokio::select! {
            biased;
            read = detect::read_more(&mut server, &mut said), if !server_waits && !hello => {
                if read.is_err() {
                    client.reset();
                    return First::Closed;
                }
                // Its end without a byte is passed on by the relay.
                let speaks = detect::classify_server(&said);
                server = Box::new(Prefixed::new(said.freeze(), server));
                match speaks {
                    ServerSpeaks::Http1 => return First::Closed,
                    ServerSpeaks::Http2 => server_waits = true,
                    ServerSpeaks::Opaque => return First::Server(Prefixed::new(first.freeze(), client), server),
                }
            }
            read = detect::read_more(&mut client, &mut first) => {
                let Ok(read) = read else { return First::Closed };
                if let Some(spoken) = detect::decide(&first, read == 0) {
                    return First::Client(spoken, Prefixed::new(first.freeze(), client), server);
                }
            }
            () = tokio::time::sleep_until(deadline.into()) => {
                if undecided {
                    return First::Undecided(Prefixed::new(first.freeze(), client), server);
                }
                return First::Closed;
            }
        }
    }
}

/// A connection that is carried as opaque bytes: counted from here on, and told of in the access log when it ends.
pub(crate) struct Carried<'a> {
    ctx: &'a Context,
    metrics: &'a ConnectionMetrics,
    /// None: there is no access log.
    record: Option<Box<ConnectionRecord>>,
    moved: Moved,
    started: Instant,
    /// The longest time without a byte moved.
    idle: Duration,
    reason: Option<Reason>,
}

impl<'a> Carried<'a> {
    /// `record`: what is known of the connection now; asked for only if there is an access log.
    pub(crate) fn begin(
        ctx: &'a Context,
        metrics: &'a ConnectionMetrics,
        record: impl FnOnce() -> ConnectionRecord,
    ) -> Self {
        metrics.opened();
        Self {
            ctx,
            metrics,
            record: ctx.telemetry.has_access_log().then(|| Box::new(record())),
            moved: Moved::default(),
            started: Instant::now(),
            idle: ctx.tcp_idle,
            reason: Some(Reason::Aborted),
        }
    }

    /// How long it may be without a byte moved, if not as long as is usual.
    pub(crate) fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// The endpoint that it goes to.
    pub(crate) fn reached(mut self, pick: &Pick) -> Self {
        self.idle = pick.stream_idle().unwrap_or(self.idle);
        if let Some(record) = &mut self.record {
            record.endpoint = Some(pick.endpoint.address);
            record.peer.clone_from(&pick.endpoint.identity);
        }
        self
    }

    /// Connects to one of the backend's endpoints and relays until both sides are done.
    ///
    /// # Errors
    /// If no connection can be made.
    pub(crate) async fn to(self, backend: &Arc<Backend>, client: impl Io, source: SocketAddr) -> Result<(), Error> {
        match Box::pin(connect(self.ctx, backend, source, Purpose::Opaque)).await {
            Ok((server, pick)) => {
                self.reached(&pick).relay(client, server).await;
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Relays until both sides are done.
    pub(crate) async fn relay(mut self, client: impl Io, server: impl Io) {
        self.reason = match copy::relay(client, server, self.idle, &self.moved).await {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%error, "relay ended");
                Some(reason(&error))
            }
        };
    }

    /// It came to nothing.
    pub(crate) fn failed(mut self, error: Error) -> Error {
        self.reason = Some(error.reason());
        error
    }
}

/// The name of what ended a relay, for metrics and log.
fn reason(error: &std::io::Error) -> Reason {
    match error.kind() {
        std::io::ErrorKind::TimedOut => Reason::Idle,
        // Of `detect::NotHttp`.
        std::io::ErrorKind::InvalidData => Reason::LateHttp,
        _ => Reason::Reset,
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        let (to_server, to_client) = (self.moved.to_server.get(), self.moved.to_client.get());
        let duration = self.started.elapsed();
        self.metrics.closed(self.reason, to_server, to_client, duration);
        if let Some(mut record) = self.record.take() {
            record.ended(self.reason, to_server, to_client, duration);
            self.ctx.telemetry.connection_ended(&record);
        }
    }
}

#[cfg(test)]
mod tests;
