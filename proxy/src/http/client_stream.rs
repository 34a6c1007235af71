//! A client's HTTP/1 stream as hyper reads and writes it: what it is doing, whether it moves, how long a head may
//! take, and whether a head's framing is ambiguous.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::framing::Framing;
use crate::{
    config::limits,
    net::{Backlog, Io},
};

/// What a client's connection is doing, as its stream and its requests see it. Atomic only because an upgraded
/// stream must be `Send`; it never leaves its thread.
#[derive(Debug)]
pub(crate) struct ClientPhase {
    /// A request is being served.
    serving: AtomicBool,
    /// The bytes are no longer HTTP.
    tunnel: AtomicBool,
    /// Requests handed over so far.
    requests: AtomicU64,
    /// The number of the first request with an ambiguous head; from it on nothing is served.
    ambiguous: AtomicU64,
    /// Grows whenever the client takes something.
    taken: AtomicU64,
    /// Bytes wait that the client does not take.
    blocked: AtomicBool,
    /// An answer ended before its time.
    broken_off: AtomicBool,
}

impl Default for ClientPhase {
    fn default() -> Self {
        Self {
            serving: AtomicBool::new(false),
            tunnel: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            ambiguous: AtomicU64::new(u64::MAX),
            taken: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            broken_off: AtomicBool::new(false),
        }
    }
}

impl ClientPhase {
    /// hyper hands a request over; whether its framing was ambiguous.
    pub(super) fn begin(&self) -> bool {
        self.serving.store(true, Relaxed);
        let number = self.requests.load(Relaxed);
        self.requests.store(number + 1, Relaxed);
        number >= self.ambiguous.load(Relaxed)
    }

    /// The exchange has ended.
    pub(super) fn answered(&self) {
        self.serving.store(false, Relaxed);
    }

    /// What the client has of the answer must not look whole: the end of its connection is that of the body, if it speaks HTTP/1.0.
    pub(super) fn break_off(&self) {
        self.broken_off.store(true, Relaxed);
    }

    /// What follows is for the upgraded protocol alone.
    pub(super) fn tunnelled(&self) {
        self.tunnel.store(true, Relaxed);
    }

    /// Grows whenever the client takes something.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    /// Notes whether bytes wait that the client does not take.
    pub(super) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Relaxed);
    }

    /// Whether bytes wait that the client does not take.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Relaxed)
    }

    /// The client took so much.
    pub(super) fn take(&self, bytes: u64) {
        self.taken.store(self.taken.load(Relaxed).wrapping_add(bytes), Relaxed);
    }
}

/// See the module. Heads have HEADER_TIMEOUT, connections between two requests CLIENT_IDLE.
pub(super) struct ClientStream<S: Io> {
    stream: S,
    phase: Arc<ClientPhase>,
    framing: Framing,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the timer was set for: the requests served until then, and whether a head had begun.
    timed: (u64, bool),
    /// Bytes that waited in the kernel when the stream was last blocked.
    backlog: u64,
}

impl<S: Io> Drop for ClientStream<S> {
    fn drop(&mut self) {
        if self.phase.broken_off.load(Relaxed) {
            self.stream.reset();
        }
    }
}

impl<S: Io> ClientStream<S> {
    pub(super) fn new(stream: S, phase: Arc<ClientPhase>) -> Self {
        Self { stream, phase, framing: Framing::default(), timer: None, timed: (0, false), backlog: 0 }
    }

    fn saw(&mut self, bytes: &[u8]) {
        if self.phase.tunnel.load(Relaxed) {
            return;
        }
        if let Some(head) = self.framing.read(bytes) {
            self.phase.ambiguous.store(head, Relaxed);
        }
    }

    /// Ready if the client takes too long, in a head or between two requests. The timer is re-armed when
    /// it fires, not at each request: late by twice the limit at most.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.phase.serving.load(Relaxed) {
                return Poll::Pending;
            }
            let in_head = self.framing.in_head();
            let now = (self.phase.requests.load(Relaxed), in_head);
            if self.timer.is_none() || (in_head && !self.timed.1) {
                let allowed = if in_head { limits::HEADER_TIMEOUT } else { limits::CLIENT_IDLE };
                self.timer = Some(Box::pin(tokio::time::sleep(allowed)));
                self.timed = now;
            }
            if let Some(timer) = &mut self.timer {
                std::task::ready!(timer.as_mut().poll(cx));
            }
            self.timer = None;
            if self.timed == now {
                return Poll::Ready(());
            }
        }
    }
}

impl<S: Io + Backlog> ClientStream<S> {
    /// Notes what became of a write.
    fn wrote<T>(&mut self, polled: Poll<io::Result<T>>, bytes: impl Fn(&T) -> u64) -> Poll<io::Result<T>> {
        match &polled {
            Poll::Ready(Ok(written)) => {
                self.phase.take(bytes(written));
                self.phase.blocked.store(false, Relaxed);
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
                self.phase.blocked.store(true, Relaxed);
            }
        }
        polled
    }
}

impl<S: Io> AsyncRead for ClientStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                self.saw(buf.filled().get(before..).unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            Poll::Pending => self.poll_late(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            failed => failed,
        }
    }
}

impl<S: Io + Backlog> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(polled, |written| *written as u64)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(polled, |written| *written as u64)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(polled, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
