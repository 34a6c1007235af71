//! HTTP connections to one endpoint: idle HTTP/1 connections (a stack: the warmest first), HTTP/2 connections
//! shared up to STREAMS_BEFORE_NEXT. Retired when idle for POOL_IDLE, when the peer closes, on GOAWAY, when credentials rotated.
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
    time::Instant,
};

use http::{Request, Response};
use hyper::body::Incoming;

pub use self::http2::StreamSlot;
use super::{
    DialError, Endpoint,
    dial::{Dialed, Dialer},
};
use crate::{http::Body, tls::MeshProtocol};

/// Connections that a request which was never written is tried on before its sender is told.
const RESENDS: usize = 3;

/// A worker's connections to one endpoint.
pub struct Pool {
    pub endpoint: Arc<Endpoint>,
    pub dialer: Rc<Dialer>,
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
    kind: Kind,
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
    pub reason: String,
    /// Given back if it was never written.
    pub request: Option<Request<Body>>,
}

impl Pool {
    pub(super) fn new(endpoint: Arc<Endpoint>, dialer: Rc<Dialer>) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            dialer,
            retired: Cell::new(false),
            idle: RefCell::default(),
            shared: http2::Shared::default(),
        })
    }

    /// An HTTP/1 connection: the last one used, or a new one.
    pub(super) async fn http1(self: &Rc<Self>) -> Result<HttpConnection, DialError> {
        if let Some(connection) = self.take_idle() {
            return Ok(HttpConnection { reused: true, pool: Rc::clone(self), kind: Kind::Http1(connection) });
        }
        self.new_http1().await
    }

    async fn new_http1(self: &Rc<Self>) -> Result<HttpConnection, DialError> {
        let dialed = self.dialer.dial(&self.endpoint, MeshProtocol::Http1).await?;
        let connection = http1::start(dialed, self).await?;
        Ok(HttpConnection { reused: false, pool: Rc::clone(self), kind: Kind::Http1(connection) })
    }

    /// A stream on an HTTP/2 connection. `slot` counts it for as long as its owner keeps it.
    pub(super) async fn http2(self: &Rc<Self>, slot: &StreamSlot) -> Result<HttpConnection, DialError> {
        let (sender, reused) = http2::claim(self, slot).await?;
        Ok(HttpConnection { reused, pool: Rc::clone(self), kind: Kind::Http2(sender, slot.clone()) })
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
        self.idle.borrow_mut().retain(|idle| idle.is_usable(&self.dialer, now));
        self.shared.sweep(&self.dialer, now);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.is_empty()
    }

    fn take_idle(&self) -> Option<http1::Connection> {
        let now = Instant::now();
        loop {
            // Out of the stack before it is looked at: dropping it must not meet the borrow.
            let idle = self.idle.borrow_mut().pop()?;
            if idle.is_usable(&self.dialer, now) {
                return Some(idle.connection);
            }
        }
    }
}

impl HttpConnection {
    /// Sends the request; the response's body keeps the connection claimed. Upgrades (101, CONNECT 2xx): through
    /// `hyper::upgrade::on(&mut response)` as hyper does. A request that a pooled connection took and never wrote is sent
    /// on another one first: its sender only hears of it if that fails too.
    ///
    /// Dropping this future, or the response's body before its end, closes an HTTP/1 connection and resets an HTTP/2 stream.
    pub async fn send(mut self, mut request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        for _ in 0..RESENDS {
            let pool = Rc::clone(&self.pool);
            let (reused, http2) = (self.reused, self.is_http2());
            let slot = if let Kind::Http2(_, slot) = &self.kind { Some(slot.clone()) } else { None };
            let error = match self.send_once(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let Some(unsent) = error.request else { return Err(error) };
            if !reused {
                return Err(SendError { request: Some(unsent), ..error });
            }
            tracing::debug!(endpoint = %pool.endpoint.address, reason = error.reason, http2, "sending on another connection");
            let next = match &slot {
                Some(slot) => pool.http2(slot).await,
                None => pool.new_http1().await,
            };
            match next {
                Ok(connection) => (self, request) = (connection, unsent),
                Err(dial) => return Err(SendError::unsent(unsent, reused, dial.to_string())),
            }
        }
        let reused = self.reused;
        Err(SendError::unsent(request, reused, "connections closed as soon as they were used".into()))
    }

    async fn send_once(self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let result = match self.kind {
            Kind::Http1(connection) => connection.send(request).await,
            Kind::Http2(mut sender, _) => sender.try_send_request(request).await,
        };
        result.map_err(|mut error| {
            let request = error.take_message();
            SendError {
                not_processed: request.is_some() || was_refused(error.error()),
                reused: self.reused,
                reason: describe(error.error()),
                request,
            }
        })
    }

    /// Also serves the inbound side: a pool to the local application is a pool like any other.
    pub fn is_http2(&self) -> bool {
        matches!(self.kind, Kind::Http2(..))
    }
}

impl SendError {
    fn unsent(request: Request<Body>, reused: bool, reason: String) -> Self {
        Self { not_processed: true, reused, reason, request: Some(request) }
    }
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
