//! A client's HTTP/1 stream as hyper reads and writes it for one exchange: of what comes it is given that request alone, and
//! whether its client takes anything is noted.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{adapt::HyperBody, body::BodyError, framing::Framing};
use crate::{config::limits, net::Backlog};

/// What a client's connection takes, as its stream and its requests see it.
#[derive(Debug, Default)]
pub(crate) struct ClientPhase {
    /// Grows whenever the client takes something.
    taken: Cell<u64>,
    /// Bytes wait that the client does not take.
    blocked: Cell<bool>,
}

impl ClientPhase {
    /// Grows whenever the client takes something.
    pub(super) fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Notes whether bytes wait that the client does not take.
    pub(super) fn set_blocked(&self, blocked: bool) {
        self.blocked.set(blocked);
    }

    /// Whether bytes wait that the client does not take.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// The client took so much.
    pub(super) fn take(&self, bytes: u64) {
        self.taken.set(self.taken.get().wrapping_add(bytes));
    }
}

/// How far hyper is with the exchange.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The request was read to its end.
    read: Cell<bool>,
    /// Of the response's body hyper has taken all that it takes.
    taken: Cell<bool>,
    /// All that hyper wrote was sent.
    flushed: Cell<bool>,
}

impl Progress {
    pub(super) fn is_complete(&self) -> bool {
        self.read.get() && self.taken.get() && self.flushed.get()
    }
}

/// See the module.
pub(super) struct ClientStream<S> {
    stream: S,
    /// Read, and not handed over.
    read: BytesMut,
    phase: Rc<ClientPhase>,
    progress: Rc<Progress>,
    framing: Framing,
    /// Bytes that waited in the kernel when the stream was last blocked.
    backlog: u64,
}

impl<S> ClientStream<S> {
    /// `read`: was read of it already, a complete head first.
    pub(super) fn new(stream: S, read: BytesMut, phase: Rc<ClientPhase>, progress: Rc<Progress>) -> Self {
        Self { stream, read, phase, progress, framing: Framing::default(), backlog: 0 }
    }

    /// The stream, and what was read behind the request.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.read)
    }
}

impl<S: Backlog> ClientStream<S> {
    /// Notes what became of a write.
    fn wrote<T>(&mut self, polled: Poll<io::Result<T>>, bytes: impl Fn(&T) -> u64) -> Poll<io::Result<T>> {
        match &polled {
            Poll::Ready(Ok(written)) => {
                self.phase.take(bytes(written));
                self.phase.set_blocked(false);
            }
            Poll::Ready(Err(_)) => {}
            // A kernel takes megabytes in, and says so again only when a third of them is gone: a client that reads
            // slowly shows in what is left.
            Poll::Pending => {
                let backlog = self.stream.backlog();
                if backlog != self.backlog {
                    self.backlog = backlog;
                    self.phase.take(1);
                }
                self.phase.set_blocked(true);
            }
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.framing.is_end() && !this.read.is_empty() {
            let fits = this.read.len().min(buf.remaining());
            let count = this.framing.read(this.read.get(..fits).unwrap_or_default());
            this.progress.read.set(this.framing.is_end());
            buf.put_slice(&this.read.split_to(count));
            return Poll::Ready(Ok(()));
        }
        // Behind the request it is read on to notice that the client leaves.
        let before = buf.filled().len();
        while this.read.len() < limits::HTTP1_BUFFER {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let new = buf.filled().get(before..).unwrap_or_default();
            let count = this.framing.read(new);
            this.progress.read.set(this.framing.is_end());
            this.read.extend_from_slice(new.get(count..).unwrap_or_default());
            let left = new.is_empty();
            buf.set_filled(before + count);
            if left || count > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Backlog + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.progress.flushed.set(false);
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(polled, |written| *written as u64)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.progress.flushed.set(false);
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(polled, |written| *written as u64)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress.flushed.set(polled.is_ready());
        self.wrote(polled, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A response's body as hyper is given it.
pub(super) struct ClientBody {
    body: HyperBody,
    progress: Rc<Progress>,
}

impl ClientBody {
    pub(super) fn new(body: HyperBody, progress: Rc<Progress>) -> Self {
        Self { body, progress }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        self.progress.taken.set(true);
    }
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
