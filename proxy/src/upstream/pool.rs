//! HTTP connections to one endpoint: idle HTTP/1 connections (a stack: the warmest first), and HTTP/2 connections shared
//! up to STREAMS_BEFORE_NEXT. Retired when idle for POOL_IDLE (MESH_POOL_IDLE), when the peer closes, on GOAWAY, when
//! credentials rotated.
//!
//! To a mesh peer HTTP/1.1 requests share connections, too, as streams of HTTP/2 ([`MeshProtocol::Http1Mux`]): many
//! messages then go out in one write and in one TLS record. A peer that knows nothing of it gets one request at a time. What needs
//! a connection for itself gets one ([`single`]).

mod http1;
mod http2;
mod idle_close;
mod single;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

pub use self::http2::StreamSlot;
use self::idle_close::IdleClose;
use super::{
    Backend, DialError, Endpoint,
    balance::prequal::Report,
    bulkhead::{Counts, Place},
    dial::{Dialed, Dialer},
    stats::BackendStats,
};
use crate::{
    config::limits,
    http::{
        Body,
        h2::Heard,
        head::{RequestHead, ResponseHead},
        informational::Informed,
        request_body::ContinueGate,
        upgrade::Upgraded,
    },
    policy::BackendPolicy,
    tls::MeshProtocol,
};

/// Connections that a request which was never written is tried on before its sender is told.
const RESENDS: usize = 3;

/// A worker's connections to one endpoint.
pub struct Pool {
    pub endpoint: Arc<Endpoint>,
    dialer: Rc<Dialer>,
    pub stats: Rc<BackendStats>,
    /// To make a connection.
    connect_timeout: Cell<Duration>,
    /// How long one may be idle; None: as is usual.
    connection_idle: Cell<Option<Duration>>,
    /// How many there may be, if that is limited.
    bulkhead: RefCell<Option<Bulkhead>>,
    /// Connections that count, while that is so.
    counted: Arc<AtomicU32>,
    /// The endpoint left its backend: what is in use finishes, nothing comes back.
    retired: Cell<bool>,
    idle: RefCell<Vec<http1::Idle>>,
    /// The server's habit.
    idle_close: Cell<IdleClose>,
    /// HTTP/1.1 goes in streams: to mesh peers, but for one whose last answer was that it knows no such thing.
    in_streams: Cell<bool>,
    /// HTTP/1.1 in streams.
    mux: Rc<http2::Shared>,
    http2: Rc<http2::Shared>,
    /// What the endpoint says of its load when it is asked.
    heard: Heard,
}

/// The limit of a backend's connections, which its pools share.
struct Bulkhead {
    counts: Arc<Counts>,
    limit: u32,
    backend: Arc<str>,
}

/// How an exchange wants to be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carry {
    Http1,
    Http2,
    /// HTTP/1.1 on a connection for itself: a change of protocols, CONNECT, or a body that waits for `100 Continue`.
    Alone,
}

/// One exchange's claim on a connection. HTTP/1: goes back to the pool when the response body was read to its end.
pub struct HttpConnection {
    /// Was taken from the pool (a failure before any response byte may be the idle race).
    pub reused: bool,
    pool: Rc<Pool>,
    slot: StreamSlot,
    /// None once it was used.
    kind: Option<Kind>,
}

enum Kind {
    Http1(http1::Connection),
    /// `true`: HTTP/1.1 in a stream.
    Stream(Rc<http2::Connection>, bool),
    Alone(Dialed),
}

/// An exchange that failed on the connection.
#[derive(Debug)]
pub struct SendError {
    /// The request was provably not processed: never written, REFUSED_STREAM, or above GOAWAY's last stream.
    pub not_processed: bool,
    /// The connection had been used before: if it is HTTP/1, the peer may have closed it as idle while the request was
    /// on its way. Not provable; a matter for requests that may be repeated.
    pub reused: bool,
    /// This proxy lacks what it needs to connect again; the endpoint is not to blame.
    pub own: bool,
    /// The request is none that can be written there, and why: nothing was tried.
    pub unfit: Option<&'static str>,
    pub reason: String,
    /// Given back if nothing was ever written.
    pub body: Option<Body>,
}

/// What a request's connection is to know beside head and body.
#[derive(Clone, Default)]
pub struct Extras {
    /// Opened by the server's `100 Continue`.
    pub(crate) gate: Option<Arc<ContinueGate>>,
    /// Hears of the server's informational responses.
    pub(crate) informed: Informed,
}

impl Extras {
    /// An informational response of the server has come.
    fn hear(&self, head: ResponseHead) {
        match &self.gate {
            Some(gate) => gate.hear(head),
            None => self.informed.tell(head),
        }
    }

    /// Waits for an answer, and passes on what is heard at the gate meanwhile.
    async fn heard_while<T>(&self, mut sending: Pin<&mut impl Future<Output = T>>) -> T {
        poll_fn(|cx| {
            let polled = sending.as_mut().poll(cx);
            if let Some(gate) = &self.gate {
                gate.take_heard(cx, |head| self.informed.tell(head));
            }
            polled
        })
        .await
    }
}

/// The answer to a request.
#[derive(Debug)]
pub struct Reply {
    pub head: ResponseHead,
    pub body: Body,
    /// The server changed protocols (101), or opened a tunnel (2xx to CONNECT): its side of the connection.
    pub upgraded: Option<Upgraded>,
}

impl Pool {
    pub(super) fn new(endpoint: Arc<Endpoint>, dialer: Rc<Dialer>, stats: Rc<BackendStats>) -> Rc<Self> {
        let in_streams = Cell::new(endpoint.identity.is_some());
        let heard = Heard::default();
        Rc::new(Self {
            endpoint,
            dialer,
            stats,
            connect_timeout: Cell::new(limits::CONNECT_TIMEOUT),
            connection_idle: Cell::new(None),
            bulkhead: RefCell::default(),
            counted: Arc::default(),
            retired: Cell::new(false),
            idle: RefCell::default(),
            idle_close: Cell::default(),
            in_streams,
            mux: http2::Shared::new(MeshProtocol::Http1Mux, heard.clone()),
            http2: http2::Shared::new(MeshProtocol::Http2, heard.clone()),
            heard,
        })
    }

    /// Takes what the backend's policy says of connections.
    pub(super) fn under(&self, policy: &BackendPolicy, backend: &Backend) {
        self.connect_timeout.set(policy.connect_timeout);
        self.connection_idle.set(policy.connection_idle);
        let bulkhead = policy.limits.connections.map(|limit| Bulkhead {
            counts: Arc::clone(&backend.shield.counts),
            limit,
            backend: Arc::clone(&backend.key),
        });
        self.bulkhead.replace(bulkhead);
    }

    /// A place for a connection; None: they are not limited.
    fn place(&self) -> Result<Option<Place>, DialError> {
        let bulkhead = self.bulkhead.borrow();
        let Some(Bulkhead { counts, limit, backend }) = &*bulkhead else { return Ok(None) };
        let full = || DialError::Full { backend: Arc::clone(backend) };
        counts.take_of(&self.counted, *limit).map(Some).ok_or_else(full)
    }

    /// A new connection, counted.
    pub(super) async fn dial(&self, protocol: MeshProtocol) -> Result<Dialed, DialError> {
        let place = self.place()?;
        // As large as a handshake, and seldom wanted: not a part of every exchange.
        let dialed = Box::pin(self.dialer.dial(&self.endpoint, protocol, self.connect_timeout.get())).await;
        let dialed = dialed.map(|dialed| Dialed { place, ..dialed });
        match &dialed {
            Ok(_) => self.stats.connections.increment(1),
            Err(error) => {
                self.stats.connection_failures.increment(1);
                tracing::debug!(endpoint = %self.endpoint.address, %error, "no connection");
            }
        }
        dialed
    }

    /// A connection for one exchange. `slot` counts a stream for as long as its owner keeps it. `now`: about.
    pub(super) async fn connection(
        self: &Rc<Self>,
        carry: Carry,
        slot: &StreamSlot,
        now: Instant,
    ) -> Result<HttpConnection, DialError> {
        match carry {
            Carry::Http1 => self.http1(slot, now).await,
            Carry::Http2 => self.stream(&self.http2, slot).await,
            Carry::Alone => Ok(self.claimed(false, slot, Kind::Alone(self.dial(MeshProtocol::Http1).await?))),
        }
    }

    fn claimed(self: &Rc<Self>, reused: bool, slot: &StreamSlot, kind: Kind) -> HttpConnection {
        HttpConnection { reused, pool: Rc::clone(self), slot: slot.clone(), kind: Some(kind) }
    }

    async fn http1(self: &Rc<Self>, slot: &StreamSlot, now: Instant) -> Result<HttpConnection, DialError> {
        if self.in_streams.get() {
            match self.stream(&self.mux, slot).await {
                Err(DialError::NoStreams) => {}
                claimed => return claimed,
            }
        }
        match self.take_idle(now) {
            Some(connection) => Ok(self.claimed(true, slot, Kind::Http1(connection))),
            None => self.new_http1(slot).await,
        }
    }

    async fn new_http1(self: &Rc<Self>, slot: &StreamSlot) -> Result<HttpConnection, DialError> {
        if self.endpoint.identity.is_none() {
            let connection = http1::Connection::new(self.dial(MeshProtocol::Http1).await?);
            return Ok(self.claimed(false, slot, Kind::Http1(connection)));
        }
        // Streams are offered each time: the peer may be a newer one by now.
        let dialed = self.dial(MeshProtocol::Http1Mux).await?;
        if dialed.protocol == MeshProtocol::Http1Mux {
            self.in_streams.set(true);
            self.mux.add(dialed);
            let mut claimed = self.stream(&self.mux, slot).await?;
            claimed.reused = false;
            return Ok(claimed);
        }
        Ok(self.claimed(false, slot, Kind::Http1(http1::Connection::new(dialed))))
    }

    /// A mesh peer carries one HTTP/1.1 request at a time: this connection is for one of those who wait for streams.
    fn without_streams(&self, dialed: Dialed) {
        if self.in_streams.replace(false) {
            tracing::debug!(endpoint = %self.endpoint.address, "the peer carries one request at a time");
        }
        self.put_idle(http1::Connection::new(dialed));
    }

    async fn stream(
        self: &Rc<Self>,
        shared: &Rc<http2::Shared>,
        slot: &StreamSlot,
    ) -> Result<HttpConnection, DialError> {
        let (connection, reused) = http2::claim(self, shared, slot).await?;
        let mux = Rc::ptr_eq(shared, &self.mux);
        Ok(self.claimed(reused, slot, Kind::Stream(connection, mux)))
    }

    /// Closes what is idle; what is in use finishes and does not come back.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.close_idle();
    }

    /// Closes idle HTTP/1 connections, and takes no new stream on the HTTP/2 connections there are.
    pub(super) fn close_idle(&self) {
        self.idle.take();
        self.mux.close();
        self.http2.close();
    }

    /// Drops connections that are closed, too long idle or of old credentials.
    pub(super) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain_mut(|idle| self.is_fresh(idle, now));
        self.mux.sweep(self, now);
        self.http2.sweep(self, now);
    }

    /// Whether the endpoint can be asked for its load now.
    pub(super) fn reports_load(&self) -> bool {
        self.endpoint.identity.is_some() && (self.mux.reports_load() || self.http2.reports_load())
    }

    /// Asks it. False: it cannot be asked.
    pub(super) fn ask_load(&self) -> bool {
        self.endpoint.identity.is_some() && (self.mux.ask_load() || self.http2.ask_load())
    }

    /// What it said since it was last looked at.
    pub(super) fn heard_load(&self) -> Option<Report> {
        let (load, at) = self.heard.take()?;
        self.stats.load_reports.increment(1);
        Some(Report { in_flight: load.in_flight, latency: load.latency, at })
    }

    /// Connections kept for further requests.
    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len() + self.mux.len() + self.http2.len()
    }

    /// Whether there are connections that would serve, and have no room for one more request.
    pub(super) fn has_no_room(&self, carry: Carry) -> bool {
        match carry {
            Carry::Http2 => self.http2.is_full(&self.dialer),
            Carry::Http1 => self.in_streams.get() && self.mux.is_full(&self.dialer),
            Carry::Alone => false,
        }
    }

    fn is_fresh(&self, idle: &mut http1::Idle, now: Instant) -> bool {
        let age = now.saturating_duration_since(idle.since);
        if !idle.is_open() {
            let mut habit = self.idle_close.get();
            habit.closed(idle.seen_open.saturating_duration_since(idle.since), age, now);
            self.idle_close.set(habit);
            return false;
        }
        idle.seen_open = now;
        idle.is_current(&self.dialer) && age < self.idle_close.get().patience(self.patience(), now)
    }

    /// How long a connection may be idle.
    fn patience(&self) -> Duration {
        let usual = if self.endpoint.identity.is_some() { limits::MESH_POOL_IDLE } else { limits::POOL_IDLE };
        self.connection_idle.get().unwrap_or(usual)
    }

    fn take_idle(&self, now: Instant) -> Option<http1::Connection> {
        loop {
            // Out of the stack before it is looked at: dropping it must not meet the borrow.
            let mut idle = self.idle.borrow_mut().pop()?;
            if self.is_fresh(&mut idle, now) {
                return Some(idle.connection);
            }
        }
    }
}

impl HttpConnection {
    /// Sends the request; the response's body keeps the connection claimed. A request that a pooled connection took and
    /// never wrote is sent on another one first: its sender only hears of it if that fails too.
    ///
    /// Dropping this future, or the response's body before its end, closes an HTTP/1 connection and resets an HTTP/2 stream.
    pub async fn send(mut self, head: &RequestHead, mut body: Body, extras: Extras) -> Result<Reply, SendError> {
        let pool = Rc::clone(&self.pool);
        for _ in 0..RESENDS {
            let in_stream = match &self.kind {
                Some(Kind::Stream(_, mux)) => Some(*mux),
                _ => None,
            };
            let (reused, slot) = (self.reused, self.slot.clone());
            let mut error = match self.send_once(head, body, &extras).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let Some(unsent) = error.body.take().filter(|_| reused && error.unfit.is_none()) else {
                return Err(SendError { reused, ..error });
            };
            tracing::debug!(endpoint = %pool.endpoint.address, reason = error.reason, "sending on another connection");
            let again = async {
                match in_stream {
                    Some(true) => pool.http1(&slot, Instant::now()).await,
                    Some(false) => pool.stream(&pool.http2, &slot).await,
                    None => pool.new_http1(&slot).await,
                }
            };
            match Box::pin(again).await {
                Ok(connection) => (self, body) = (connection, unsent),
                Err(dial) => {
                    let own = dial.is_own();
                    return Err(SendError { own, reused, ..SendError::unsent(unsent, dial.to_string()) });
                }
            }
        }
        Err(SendError::unsent(body, "connections closed as soon as they were used".into()))
    }

    async fn send_once(mut self, head: &RequestHead, body: Body, extras: &Extras) -> Result<Reply, SendError> {
        match self.kind.take() {
            Some(Kind::Http1(connection)) => connection.send(&self.pool, head, body, extras).await,
            Some(Kind::Stream(connection, _)) => connection.send(head, body, &self.slot, &extras.informed).await,
            Some(Kind::Alone(dialed)) => Box::pin(single::send(dialed, head, body, extras)).await,
            // Only `drop` leaves it empty, after which nobody can call this.
            None => Err(SendError::unsent(body, "the connection was used already".into())),
        }
    }

    /// Whether it is shared with others.
    pub fn is_stream(&self) -> bool {
        matches!(self.kind, Some(Kind::Stream(..)))
    }

    /// Whether what is sent must be fit for HTTP/1.1.
    pub fn is_http1(&self) -> bool {
        !matches!(self.kind, Some(Kind::Stream(_, false)))
    }
}

impl Drop for HttpConnection {
    /// Never used: it is as good as before.
    fn drop(&mut self) {
        if let Some(Kind::Http1(connection)) = self.kind.take() {
            self.pool.put_idle(connection);
        }
    }
}

impl SendError {
    /// Nothing was written.
    fn unsent(body: Body, reason: String) -> Self {
        Self { not_processed: true, body: Some(body), ..Self::sent(reason) }
    }

    /// The server may have processed it.
    fn sent(reason: String) -> Self {
        Self { not_processed: false, reused: false, own: false, unfit: None, reason, body: None }
    }
}
