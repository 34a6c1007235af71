//! The time that a client may take around its exchanges; within them it is watched as a whole, and looked for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{alarm::Alarm, config::limits};

/// How long a client is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Without a byte moved in an exchange.
    pub(crate) exchange: Duration,
    /// From the first byte of a head to its end.
    pub(crate) head: Duration,
    /// Without a request.
    pub(crate) request: Duration,
    /// For all that is left of a request's body once its response is complete.
    pub(crate) rest: Duration,
}

impl Patience {
    /// As the proxy's limits have it, but for the longest time without a byte moved in an exchange.
    pub(crate) fn new(exchange: Duration) -> Self {
        Self { exchange, head: limits::HEADER_TIMEOUT, request: limits::CLIENT_IDLE, rest: limits::BODY_AFTER_RESPONSE }
    }
}

/// What a client is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Request,
    /// The end of a head that has begun.
    Head,
    /// The end of a request whose response is complete.
    Rest,
    /// A request, once draining has begun. Closed while idle, a connection may cross a request on its way (RFC 9112 9.5), which
    /// might not be safe to send again: for so long the client is told by its next response instead.
    Drained,
    /// The next look whether it is still there, while nothing of what it sends is read.
    Look,
}

/// Keeps the time between exchanges.
pub(super) struct Timer {
    /// Of [`Patience`], in milliseconds: each idle connection holds it.
    head: u32,
    request: u32,
    rest: u32,
    sleep: Option<Pin<Box<Alarm>>>,
    /// What it was set for, and the requests until then.
    timed: (u64, Wait),
    requests: u64,
}

impl Timer {
    pub(super) fn new(patience: Patience) -> Self {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Self {
            head: millis(patience.head),
            request: millis(patience.request),
            rest: millis(patience.rest),
            sleep: None,
            timed: (0, Wait::Request),
            requests: 0,
        }
    }

    fn allowed(&self, wait: Wait) -> Duration {
        let millis = match wait {
            Wait::Request => self.request,
            Wait::Head => self.head,
            Wait::Rest => self.rest,
            Wait::Drained => return limits::DRAIN_LINGER,
            Wait::Look => return limits::UNREAD_LOOK,
        };
        Duration::from_millis(millis.into())
    }

    pub(super) fn begin_exchange(&mut self) {
        self.requests += 1;
    }

    /// Ready if the client takes too long. What comes meanwhile gives it no more time. Re-armed when it fires and for what is to
    /// come sooner, not at each request: late by twice the limit at most.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>, wait: Wait) -> Poll<()> {
        let now = (self.requests, wait);
        loop {
            let allowed = self.allowed(wait);
            if self.sleep.is_none() || allowed < self.allowed(self.timed.1) {
                self.sleep = Some(Box::pin(Alarm::after(allowed)));
                self.timed = now;
            }
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
            }
            self.sleep = None;
            if self.timed == now {
                return Poll::Ready(());
            }
        }
    }
}
