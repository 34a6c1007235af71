//! A body on its way out in an HTTP/2 stream, as fast as the peer and the connection take it: a request's to a server, a
//! response's to a client.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{
    Body,
    body::{BodyError, Frame},
    h2::{Code, SendStream, StreamError},
    watch::Watch,
};

/// Sends a body to its end. Dropped before it, the stream is reset.
pub(crate) struct Outflow {
    sender: SendStream,
    body: Body,
    /// Taken from the body, and not sent.
    rest: Bytes,
    /// Told of what is sent.
    watch: Option<Rc<Watch>>,
}

/// Why a body was not sent to its end. The stream has been reset, by the peer or by us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("the body broke off: {0}")]
    Body(BodyError),
}

impl Outflow {
    pub(crate) fn new(sender: SendStream, body: Body, watch: Option<Rc<Watch>>) -> Self {
        Self { sender, body, rest: Bytes::new(), watch }
    }

    fn poll_flow(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if !self.rest.is_empty() {
                let (waiting, end) = (self.rest.len(), self.body.is_end());
                let sent = self.sender.poll_send(cx, &mut self.rest, end);
                if let Some(watch) = &self.watch {
                    watch.moved((waiting - self.rest.len()) as u64);
                }
                ready!(sent)?;
                if end {
                    return Poll::Ready(Ok(()));
                }
            }
            match self.body.poll_frame(cx) {
                Poll::Pending => {
                    // The peer may have lost interest meanwhile.
                    return self.sender.poll_reset(cx).map(|reset| Err(reset.into()));
                }
                Poll::Ready(None) => {
                    self.sender.send_data(&[], true);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Ok(Frame::Data(data)))) => self.rest = data,
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    self.sender.send_trailers(&trailers);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.sender.reset(code_of(&error));
                    return Poll::Ready(Err(Stopped::Body(error)));
                }
            }
        }
    }
}

impl Future for Outflow {
    type Output = Result<(), Stopped>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_flow(cx)
    }
}

/// A reset keeps its code on the way through.
fn code_of(error: &BodyError) -> Code {
    error.downcast_ref::<StreamError>().map_or(Code::INTERNAL_ERROR, |error| error.code)
}
