//! HTTP/1.1 connections: one exchange at a time, then back on the stack of idle ones.

use std::{pin::pin, rc::Rc, time::Instant};

use super::{Dialer, Extras, Pool, Reply, SendError};
use crate::{
    config::limits,
    http::{Body, h1::ClientConnection, head::RequestHead},
    upstream::{bulkhead::Place, outlier::Health},
};

/// A connection without an exchange.
pub(super) struct Connection {
    wire: ClientConnection,
    /// See [`super::Dialed::epoch`].
    epoch: Option<u64>,
    /// See [`super::Dialed::place`].
    place: Option<Place>,
}

/// A pooled connection.
pub(super) struct Idle {
    pub(super) connection: Connection,
    pub(super) since: Instant,
    pub(super) seen_open: Instant,
}

impl Connection {
    pub(super) fn new(dialed: super::Dialed) -> Self {
        Self { wire: ClientConnection::new(dialed.io), epoch: dialed.epoch, place: dialed.place }
    }

    /// One exchange; its end brings the connection back.
    pub(super) async fn send(
        self,
        pool: &Rc<Pool>,
        head: &RequestHead,
        body: Body,
        extras: &Extras,
    ) -> Result<Reply, SendError> {
        let Self { wire, epoch, place } = self;
        let home = Rc::downgrade(pool);
        let comes_back = move |wire| {
            if let Some(pool) = home.upgrade() {
                pool.put_idle(Self { wire, epoch, place });
            }
        };
        let sending = pin!(wire.send(head, body, |head| extras.hear(head), comes_back));
        match extras.heard_while(sending).await {
            Ok((head, body)) => Ok(Reply { head, body: Body::http1(body), upgraded: None }),
            Err(error) => {
                Err(SendError { not_processed: !error.written, body: error.body, ..SendError::sent(error.reason) })
            }
        }
    }
}

impl Pool {
    pub(super) fn put_idle(&self, connection: Connection) {
        let now = Instant::now();
        let in_service = self.endpoint.outlier.health(now) == Health::InService;
        let welcome = !self.retired.get() && in_service && self.dialer.is_current(connection.epoch);
        let mut idle = self.idle.borrow_mut();
        if welcome && idle.len() < limits::POOL_IDLE_PER_ENDPOINT {
            idle.push(Idle { connection, since: now, seen_open: now });
        }
    }
}

impl Idle {
    /// The server has not closed it.
    pub(super) fn is_open(&mut self) -> bool {
        self.connection.wire.is_reusable()
    }

    /// Made with the credentials in force.
    pub(super) fn is_current(&self, dialer: &Dialer) -> bool {
        dialer.is_current(self.connection.epoch)
    }
}
