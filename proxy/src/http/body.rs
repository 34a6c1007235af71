//! The one body type of the proxy: bytes on their way through, and the request they belong to.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;

use super::{adapt, exchange::Exchange, h1, h2, head::Fields, headers::clean_trailers, mirror::Tee, request_body};
use crate::config::limits;

/// Why a body ended early. Kept as it came, so that an HTTP/2 reset keeps its code on the way through.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A part of a body.
#[derive(Debug)]
pub enum Frame {
    Data(Bytes),
    /// The last, if there are any.
    Trailers(Box<Fields>),
}

/// A body on its way through: nothing, bytes we made, or a stream from a peer.
///
/// A response's body owns its [`Exchange`]: whether it ends, breaks or is dropped because the client
/// left, the request is recorded once, then.
#[derive(Default)]
pub struct Body {
    source: Source,
    exchange: Option<Box<Exchange>>,
}

#[derive(Default)]
enum Source {
    #[default]
    Empty,
    Full(Bytes),
    Hyper(Incoming),
    Http1(h1::Incoming),
    Http2(h2::RecvStream),
    Request(request_body::Reader),
    Teed(Box<Tee>),
    Kept(VecDeque<Bytes>, Option<Box<Fields>>),
}

impl Body {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self { source: Source::Full(bytes), exchange: None } }
    }

    /// A peer's stream, as hyper reads it.
    pub fn hyper(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self { source: Source::Hyper(incoming), exchange: None }
    }

    /// A peer's, on an HTTP/1 connection of ours.
    pub(crate) fn http1(incoming: h1::Incoming) -> Self {
        match incoming.into_bytes() {
            Ok(bytes) => Self::full(bytes),
            Err(incoming) => Self { source: Source::Http1(incoming), exchange: None },
        }
    }

    /// A peer's, in a stream of HTTP/2.
    pub(crate) fn http2(receiver: h2::RecvStream) -> Self {
        if receiver.is_end() {
            return Self::empty();
        }
        Self { source: Source::Http2(receiver), exchange: None }
    }

    /// A client's request body, which may be read again by another try.
    pub(crate) fn request(reader: request_body::Reader) -> Self {
        Self { source: Source::Request(reader), exchange: None }
    }

    /// A client's request body, of which a copy is made.
    pub(super) fn teed(tee: Tee) -> Self {
        Self { source: Source::Teed(Box::new(tee)), exchange: None }
    }

    /// A whole body that came in these parts.
    pub(super) fn kept(frames: VecDeque<Bytes>, trailers: Option<Box<Fields>>) -> Self {
        if frames.is_empty() && trailers.is_none() {
            return Self::empty();
        }
        Self { source: Source::Kept(frames, trailers), exchange: None }
    }

    /// The response's body from here on carries `exchange`, which is recorded when the body ends.
    pub(crate) fn carrying(mut self, exchange: Box<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    /// Without what was made here and is not to be sent: the answer is one that has no body.
    pub(super) fn unsaid(mut self) -> Self {
        if matches!(self.source, Source::Full(_)) {
            self.source = Source::Empty;
        }
        self
    }

    /// The next part; None at the end. Trailers hold nothing that belongs in a head.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let polled = self.poll_source(cx);
        let Some(exchange) = &mut self.exchange else {
            return polled;
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                exchange.saw_frame(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                exchange.broke();
                self.exchange = None;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                exchange.completed();
                self.exchange = None;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut polled = match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::Empty;
                Poll::Ready(Some(Ok(Frame::Data(bytes))))
            }
            Source::Hyper(incoming) => adapt::poll_frame(incoming, cx),
            Source::Http1(incoming) => incoming.poll_frame(cx),
            Source::Http2(receiver) => {
                receiver.poll_frame(cx).map(|polled| polled.map(|read| read.map_err(BodyError::from)))
            }
            Source::Request(reader) => return reader.poll_frame(cx),
            Source::Teed(tee) => return tee.poll_frame(cx),
            Source::Kept(frames, trailers) => {
                let next = frames.pop_front().map(Frame::Data).or_else(|| trailers.take().map(Frame::Trailers));
                return Poll::Ready(next.map(Ok));
            }
        };
        if let Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) = &mut polled {
            clean_trailers(trailers);
        }
        polled
    }

    /// Whether nothing will come any more. False is not certain.
    pub fn is_end(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(_) => false,
            Source::Hyper(incoming) => incoming.is_end_stream(),
            Source::Http1(incoming) => incoming.is_end(),
            Source::Http2(receiver) => receiver.is_end(),
            Source::Request(reader) => reader.is_end(),
            Source::Teed(tee) => tee.is_end(),
            Source::Kept(frames, trailers) => frames.is_empty() && trailers.is_none(),
        }
    }

    /// Whether an exchange that lasts keeps its time: it is a request's that is being answered.
    pub(super) fn in_exchange(&self) -> bool {
        matches!(&self.source, Source::Request(reader) if reader.in_exchange())
    }

    /// The longest time without a byte moved, once it is on its own.
    pub(super) fn idle(&self) -> Duration {
        match &self.source {
            Source::Request(reader) => reader.idle(),
            _ => limits::STREAM_IDLE,
        }
    }

    /// Bytes that are to come, if that is known.
    pub fn exact_length(&self) -> Option<u64> {
        match &self.source {
            Source::Empty => Some(0),
            Source::Full(bytes) => Some(bytes.len() as u64),
            Source::Hyper(incoming) => incoming.size_hint().exact(),
            Source::Http1(incoming) => incoming.exact_length(),
            Source::Http2(receiver) => receiver.exact_length(),
            Source::Request(reader) => reader.exact_length(),
            Source::Teed(tee) => tee.exact_length(),
            Source::Kept(_, Some(_)) => None,
            Source::Kept(frames, None) => Some(frames.iter().map(|frame| frame.len() as u64).sum()),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.exchange.is_some()
            && self.is_end()
            && let Some(exchange) = &mut self.exchange
        {
            exchange.completed();
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("length", &self.exact_length()).finish_non_exhaustive()
    }
}
