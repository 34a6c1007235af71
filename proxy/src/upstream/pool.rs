//! HTTP connections to one endpoint: idle HTTP/1 connections (a stack: the warmest first), HTTP/2 connections
//! shared up to STREAMS_BEFORE_NEXT. Retired when idle for POOL_IDLE (MESH_POOL_IDLE), when the peer closes, on GOAWAY, when credentials rotated.
//!
//! Each connection has one task of its own, which hyper needs to move bytes; nothing else is spawned per connection,
//! request or idle entry.

mod http1;
mod http2;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    error::Error as _,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, Response, StatusCode};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, on as on_upgrade},
};

pub use self::http2::StreamSlot;
use super::{
    DialError, Endpoint,
    dial::{Dialed, Dialer},
    stats::BackendStats,
};
use crate::{
    config::limits,
    http::{
        Body,
        adapt::{self, HyperBody},
        head::{RequestHead, ResponseHead},
        request_body::ContinueGate,
    },
    tls::MeshProtocol,
};

/// Connections that a request which was never written is tried on before its sender is told.
const RESENDS: usize = 3;

/// A worker's connections to one endpoint.
pub struct Pool {
    pub endpoint: Arc<Endpoint>,
    dialer: Rc<Dialer>,
    pub stats: Rc<BackendStats>,
    /// The endpoint left its backend: what is in use finishes, nothing comes back.
    retired: Cell<bool>,
    idle: RefCell<Vec<http1::Idle>>,
    shared: http2::Shared,
}

/// One exchange's claim on a connection. HTTP/1: goes back to the pool when the response body was read to its end.
pub struct HttpConnection {
    /// Was taken from the pool (a failure before any response byte may be the idle race).
    pub reused: bool,
    pool: Rc<Pool>,
    /// None once it was used.
    kind: Option<Kind>,
}

enum Kind {
    Http1(http1::Connection),
    Http2(http2::Sender, StreamSlot),
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
    /// The request is none that can be written: nothing was tried.
    pub unfit: bool,
    pub reason: String,
    /// Given back if nothing was ever written.
    pub body: Option<Body>,
}

/// What a request's connection is to know beside head and body.
#[derive(Clone, Default)]
pub struct Extras {
    /// Opened by the server's `100 Continue`.
    pub(crate) gate: Option<Arc<ContinueGate>>,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Reply {
    pub head: ResponseHead,
    pub body: Body,
    /// The server changed protocols (101), or opened a tunnel (2xx to CONNECT): its side of the connection.
    pub upgraded: Option<OnUpgrade>,
}

impl Pool {
    pub(super) fn new(endpoint: Arc<Endpoint>, dialer: Rc<Dialer>, stats: Rc<BackendStats>) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            dialer,
            stats,
            retired: Cell::new(false),
            idle: RefCell::default(),
            shared: http2::Shared::default(),
        })
    }

    /// A new connection, counted.
    pub(super) async fn dial(&self, protocol: MeshProtocol) -> Result<Dialed, DialError> {
        let dialed = self.dialer.dial(&self.endpoint, protocol).await;
        match &dialed {
            Ok(_) => self.stats.connections.increment(1),
            Err(error) => {
                self.stats.connection_failures.increment(1);
                tracing::debug!(endpoint = %self.endpoint.address, %error, "no connection");
            }
        }
        dialed
    }

    /// An HTTP/1 connection: the last one used, or a new one.
    pub(super) async fn http1(self: &Rc<Self>) -> Result<HttpConnection, DialError> {
        if let Some(connection) = self.take_idle() {
            return Ok(HttpConnection { reused: true, pool: Rc::clone(self), kind: Some(Kind::Http1(connection)) });
        }
        self.new_http1().await
    }

    async fn new_http1(self: &Rc<Self>) -> Result<HttpConnection, DialError> {
        let dialed = self.dial(MeshProtocol::Http1).await?;
        let connection = http1::start(dialed, self).await?;
        Ok(HttpConnection { reused: false, pool: Rc::clone(self), kind: Some(Kind::Http1(connection)) })
    }

    /// A stream on an HTTP/2 connection. `slot` counts it for as long as its owner keeps it.
    pub(super) async fn http2(self: &Rc<Self>, slot: &StreamSlot) -> Result<HttpConnection, DialError> {
        let (sender, reused) = http2::claim(self, slot).await?;
        Ok(HttpConnection { reused, pool: Rc::clone(self), kind: Some(Kind::Http2(sender, slot.clone())) })
    }

    /// Closes what is idle; what is in use finishes and does not come back.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.close_idle();
    }

    /// Closes idle HTTP/1 connections, and takes no new stream on the HTTP/2 connections there are.
    pub(super) fn close_idle(&self) {
        self.idle.take();
        self.shared.close();
    }

    /// Drops connections that are closed, too long idle or of old credentials.
    pub(super) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|idle| self.is_fresh(idle, now));
        self.shared.sweep(self, now);
    }

    /// Connections kept for further requests.
    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len() + self.shared.len()
    }

    fn is_fresh(&self, idle: &http1::Idle, now: Instant) -> bool {
        idle.is_usable(&self.dialer) && now.saturating_duration_since(idle.since) < self.patience()
    }

    /// How long a connection may be idle.
    fn patience(&self) -> Duration {
        if self.endpoint.identity.is_some() { limits::MESH_POOL_IDLE } else { limits::POOL_IDLE }
    }

    fn take_idle(&self) -> Option<http1::Connection> {
        let now = Instant::now();
        loop {
            // Out of the stack before it is looked at: dropping it must not meet the borrow.
            let idle = self.idle.borrow_mut().pop()?;
            if self.is_fresh(&idle, now) {
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
        let mut reused = self.reused;
        for _ in 0..RESENDS {
            reused = self.reused;
            let slot = match &self.kind {
                Some(Kind::Http2(_, slot)) => Some(slot.clone()),
                _ => None,
            };
            let mut error = match self.send_once(head, body, &extras).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let Some(unsent) = error.body.take() else { return Err(error) };
            if !reused || error.unfit {
                return Err(SendError { body: Some(unsent), ..error });
            }
            tracing::debug!(endpoint = %pool.endpoint.address, reason = error.reason, "sending on another connection");
            let next = match &slot {
                Some(slot) => pool.http2(slot).await,
                None => pool.new_http1().await,
            };
            match next {
                Ok(connection) => (self, body) = (connection, unsent),
                Err(dial) => {
                    let own = dial.is_own();
                    return Err(SendError { own, ..SendError::unsent(unsent, reused, dial.to_string()) });
                }
            }
        }
        Err(SendError::unsent(body, reused, "connections closed as soon as they were used".into()))
    }

    async fn send_once(mut self, head: &RequestHead, body: Body, extras: &Extras) -> Result<Reply, SendError> {
        let reused = self.reused;
        let request = if self.is_http2() { adapt::http2_request(head, body) } else { adapt::http1_request(head, body) };
        let mut request = request
            .map_err(|body| SendError { unfit: true, ..SendError::unsent(body, reused, "an invalid target".into()) })?;
        if let Some(gate) = &extras.gate {
            let gate = Arc::clone(gate);
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    gate.open();
                }
            });
        }
        let result = match self.kind.take() {
            Some(Kind::Http1(connection)) => connection.send(request).await,
            Some(Kind::Http2(mut sender, _)) => sender.try_send_request(request).await,
            // Only `drop` leaves it empty, after which nobody can call this.
            None => {
                let HyperBody(body) = request.into_body();
                return Err(SendError::unsent(body, reused, "the connection was used already".into()));
            }
        };
        let response = result.map_err(|mut error| {
            let body = error.take_message().map(|request| request.into_body().0);
            SendError {
                not_processed: body.is_some() || was_refused(error.error()),
                reused,
                own: false,
                unfit: false,
                reason: describe(error.error()),
                body,
            }
        })?;
        Ok(reply(head, response))
    }

    /// Also serves the inbound side: a pool to the local application is a pool like any other.
    pub fn is_http2(&self) -> bool {
        matches!(self.kind, Some(Kind::Http2(..)))
    }
}

impl Drop for HttpConnection {
    /// Never used: it is as good as before.
    fn drop(&mut self) {
        if let Some(Kind::Http1(connection)) = self.kind.take() {
            connection.give_back();
        }
    }
}

impl SendError {
    fn unsent(body: Body, reused: bool, reason: String) -> Self {
        Self { not_processed: true, reused, own: false, unfit: false, reason, body: Some(body) }
    }
}

fn reply(request: &RequestHead, mut response: Response<Incoming>) -> Reply {
    let status = response.status();
    let tunnel = request.method == Method::CONNECT && status.is_success();
    let upgraded = (tunnel || status == StatusCode::SWITCHING_PROTOCOLS).then(|| on_upgrade(&mut response));
    let (parts, body) = response.into_parts();
    Reply { head: adapt::response_head(&parts), body: Body::hyper(body), upgraded }
}

/// RFC 9113, 8.7: a stream reset with REFUSED_STREAM, or above the last stream id of a GOAWAY, was not processed. h2
/// fails a stream with the remote's GOAWAY only if it is above that id, or was never opened.
fn was_refused(error: &hyper::Error) -> bool {
    let Some(h2) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else { return false };
    h2.is_remote() && (h2.is_go_away() || (h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

/// The error with its causes.
fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
