//! Bodies that come in on an HTTP/1 connection, and what the codec asks of those that it writes.

use std::{
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::{client, server};
use crate::{
    config::limits,
    http::{
        Body,
        body::{BodyError, Frame},
    },
};

/// A body that is written. Polled only while the peer takes what there is.
pub trait Outgoing: 'static {
    /// The next part; None: it is complete. Trailers are the last part.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>>;
    /// Whether nothing more will come. False if that is not known.
    fn is_end(&self) -> bool;
    /// The bytes still to come, if that is known.
    fn exact_length(&self) -> Option<u64>;
    /// Whether an exchange that lasts keeps its time.
    fn in_exchange(&self) -> bool {
        false
    }
    /// The longest time without a byte moved, once it is on its own.
    fn idle(&self) -> Duration {
        limits::STREAM_IDLE
    }
}

/// A body that is read: what came together with its head at once, more as it is polled for. Dropped before its end, a
/// response's closes its connection; a request's is skipped if the rest is there, else its connection closes after the response.
#[derive(Default)]
pub struct Incoming(Inner);

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Full(Bytes),
    Request(server::Reader),
    Response(Box<client::Reader>),
}

impl Incoming {
    pub(super) fn full(bytes: Bytes) -> Self {
        Self(if bytes.is_empty() { Inner::Empty } else { Inner::Full(bytes) })
    }

    pub(super) fn request(reader: server::Reader) -> Self {
        Self(Inner::Request(reader))
    }

    pub(super) fn response(reader: client::Reader) -> Self {
        Self(Inner::Response(Box::new(reader)))
    }

    /// The whole body, if it came with its head: Err gives back a body that is still to be read.
    pub fn into_bytes(self) -> Result<Bytes, Self> {
        match self.0 {
            Inner::Empty => Ok(Bytes::new()),
            Inner::Full(bytes) => Ok(bytes),
            _ => Err(self),
        }
    }

    /// The next part; None: it is complete. Nothing is read from the connection, beyond what came with the rest, while nobody polls.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::Data(bytes))))
            }
            Inner::Request(reader) => reader.poll_frame(cx),
            Inner::Response(reader) => reader.poll_frame(cx),
        }
    }

    /// Whether nothing more will come. False if that is not known.
    pub fn is_end(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Request(reader) => reader.is_end(),
            Inner::Response(reader) => reader.is_end(),
        }
    }

    /// The bytes still to come, if that is known.
    pub fn exact_length(&self) -> Option<u64> {
        match &self.0 {
            Inner::Empty => Some(0),
            Inner::Full(bytes) => Some(bytes.len() as u64),
            Inner::Request(reader) => reader.exact_length(),
            Inner::Response(reader) => reader.exact_length(),
        }
    }
}

impl Outgoing for Incoming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Self::poll_frame(self, cx)
    }

    fn is_end(&self) -> bool {
        Self::is_end(self)
    }

    fn exact_length(&self) -> Option<u64> {
        Self::exact_length(self)
    }
}

impl Outgoing for Body {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Self::poll_frame(self, cx)
    }

    fn is_end(&self) -> bool {
        Self::is_end(self)
    }

    fn exact_length(&self) -> Option<u64> {
        Self::exact_length(self)
    }

    fn in_exchange(&self) -> bool {
        Self::in_exchange(self)
    }

    fn idle(&self) -> Duration {
        Self::idle(self)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("length", &self.exact_length()).finish()
    }
}
