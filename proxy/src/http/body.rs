//! The one body type of the proxy.

use bytes::Bytes;

/// A body on its way through: nothing, bytes we made, or a stream from a peer.
#[derive(Debug, Default)]
pub struct Body {
    bytes: Option<Bytes>,
    // http: Incoming, replay buffer, end-of-stream hooks
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.bytes.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}
