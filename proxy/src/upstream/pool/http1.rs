//! HTTP/1.1 connections: one exchange at a time, then back on the stack of idle ones.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    rc::{Rc, Weak},
    task::Poll,
    time::Instant,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;

use super::{DialError, Dialed, Dialer, Pool};
use crate::{config::limits, http::adapt::HyperBody};

/// A connection without an exchange.
pub(super) struct Connection {
    sender: http1::SendRequest<HyperBody>,
    home: Rc<Home>,
}

/// A pooled connection.
pub(super) struct Idle {
    pub(super) connection: Connection,
    pub(super) since: Instant,
}

/// Where a connection goes when its exchange is over.
struct Home {
    pool: Weak<Pool>,
    /// See [`Dialed::epoch`].
    epoch: Option<u64>,
    /// The sender while the response's body is read; the connection's task finds it here when it is over.
    parked: RefCell<Option<http1::SendRequest<HyperBody>>>,
}

/// Starts HTTP/1.1 on a connection; its task ends with it.
pub(super) async fn start(dialed: Dialed, pool: &Rc<Pool>) -> Result<Connection, DialError> {
    let handshake = http1::Builder::new()
        .http09_responses(false)
        .allow_spaces_after_header_name_in_responses(false)
        .allow_obsolete_multiline_headers_in_responses(false)
        .ignore_invalid_headers_in_responses(false)
        .preserve_header_case(false)
        .title_case_headers(false)
        .writev(true)
        .max_headers(limits::HEADERS)
        .max_header_size(limits::HEAD_BYTES)
        .max_buf_size(limits::HTTP1_BUFFER)
        .handshake::<_, HyperBody>(TokioIo::new(dialed.io));
    let (sender, connection) = handshake.await.map_err(|error| DialError::Connect(error.to_string()))?;
    let home = Rc::new(Home { pool: Rc::downgrade(pool), epoch: dialed.epoch, parked: RefCell::default() });
    let mut connection = connection.with_upgrades();
    let at = Rc::clone(&home);
    tokio::task::spawn_local(async move {
        let ended = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended),
            Poll::Pending => {
                at.unpark();
                Poll::Pending
            }
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "HTTP/1 connection ended");
        }
        at.parked.take();
    });
    Ok(Connection { sender, home })
}

impl Connection {
    /// Without having been used: back to the pool, as soon as its task has begun.
    pub(super) fn give_back(self) {
        self.home.parked.replace(Some(self.sender));
        self.home.unpark();
    }

    pub(super) async fn send(
        mut self,
        request: Request<HyperBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<HyperBody>>> {
        let response = self.sender.try_send_request(request).await?;
        // A short response may be over already; else the connection's task sees its end.
        self.give_back();
        Ok(response)
    }
}

impl Home {
    /// Gives the connection back to the pool if it is ready for another request.
    fn unpark(self: &Rc<Self>) {
        let Some(sender) = self.parked.take() else { return };
        if !sender.is_ready() {
            if !sender.is_closed() {
                self.parked.replace(Some(sender));
            }
            return;
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.put_idle(Connection { sender, home: Rc::clone(self) });
        }
    }
}

impl Pool {
    fn put_idle(&self, connection: Connection) {
        let now = Instant::now();
        let in_service = self.endpoint.outlier.health(now) == crate::upstream::outlier::Health::InService;
        let welcome = !self.retired.get() && in_service && self.dialer.is_current(connection.home.epoch);
        let mut idle = self.idle.borrow_mut();
        if welcome && idle.len() < limits::POOL_IDLE_PER_ENDPOINT {
            idle.push(Idle { connection, since: now });
        }
    }
}

impl Idle {
    pub(super) fn is_usable(&self, dialer: &Dialer) -> bool {
        let sender = &self.connection.sender;
        sender.is_ready() && !sender.is_closed() && dialer.is_current(self.connection.home.epoch)
    }
}
