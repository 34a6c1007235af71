//! The one body type of the proxy: bytes on their way through, and the request they belong to.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::{exchange::Exchange, headers::clean_trailers, request_body};

/// Why a body ended early. Kept as it came, so that an HTTP/2 reset keeps its code on the way through.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

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
    Stream(Incoming),
    Request(request_body::Reader),
}

impl Body {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self { source: Source::Full(bytes), exchange: None } }
    }

    /// A peer's stream, as it comes.
    pub fn stream(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self { source: Source::Stream(incoming), exchange: None }
    }

    /// A client's request body, which may be read again by another try.
    pub(crate) fn request(reader: request_body::Reader) -> Self {
        Self { source: Source::Request(reader), exchange: None }
    }

    /// The response's body from here on carries `exchange`, which is recorded when the body ends.
    pub(crate) fn carrying(mut self, exchange: Box<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Stream(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map(|polled| polled.map(|read| read.map(clean_trailers).map_err(Into::into))),
            Source::Request(reader) => reader.poll_frame(cx),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
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

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(_) => false,
            Source::Stream(incoming) => incoming.is_end_stream(),
            Source::Request(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream(incoming) => incoming.size_hint(),
            Source::Request(reader) => reader.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.exchange.is_some()
            && self.is_end_stream()
            && let Some(exchange) = &mut self.exchange
        {
            exchange.completed();
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}
