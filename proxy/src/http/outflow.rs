//! A body on its way out in an HTTP/2 stream, as fast as the peer and the connection take it: a request's to a server, a
//! response's to a client.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;

use super::{
    Body,
    body::{BodyError, Frame},
    h2::{Code, SendStream, StreamError},
    watch::{Watch, Watched},
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

/// Sends what is left of a request's body whose answer has begun, in a task of its own. As long as it does, `held` (the
/// stream's place among its connection's) is kept. While its exchange lasts, that keeps the time, since the answer may move
/// when the request does not; after it, what is left ends when nothing of it moves for STREAM_IDLE.
pub(crate) fn spawn(mut outflow: Outflow, held: impl Sized + 'static) {
    let watch = Watch::new(outflow.body.idle(), None);
    watch.begin(Instant::now());
    watch.answered(true);
    outflow.watch = Some(Rc::clone(&watch));
    tokio::task::spawn_local(async move {
        match Watched::new(&watch, outflow).await {
            Ok(Ok(())) => {}
            Ok(Err(stopped)) => tracing::debug!(%stopped, "request not sent to its end"),
            Err(overdue) => tracing::debug!(reason = %overdue.reason(), "request not sent to its end"),
        }
        drop(held);
    });
}

impl Future for Outflow {
    type Output = Result<(), Stopped>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.poll_flow(cx);
        if polled.is_pending()
            && self.body.in_exchange()
            && let Some(watch) = &self.watch
        {
            watch.moved(1);
        }
        polled
    }
}

/// A reset keeps its code on the way through, but for NO_ERROR: some recipients take that for the end of a body, and what
/// broke off must not look complete.
fn code_of(error: &BodyError) -> Code {
    let code = error.downcast_ref::<StreamError>().map(|error| error.code);
    code.filter(|code| *code != Code::NO_ERROR).unwrap_or(Code::INTERNAL_ERROR)
}
