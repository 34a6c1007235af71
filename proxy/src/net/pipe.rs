//! A stream within the process, whose other end hears whether it was ended or broken off.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::Io;

/// One end. Dropped before it is shut down, it is a reset for the other.
pub struct Pipe {
    stream: DuplexStream,
    own: Arc<End>,
    other: Arc<End>,
}

/// What an end does that the other hears of.
#[derive(Default)]
struct End {
    shut_down: AtomicBool,
    dropped: AtomicBool,
    /// Of the other, which waits for this one to break off.
    waiting: Mutex<Option<Waker>>,
}

/// Both ends; each way holds up to `bytes` that were not read yet.
pub fn pipe(bytes: usize) -> (Pipe, Pipe) {
    let (one, other) = tokio::io::duplex(bytes);
    let (of_one, of_other) = (Arc::<End>::default(), Arc::<End>::default());
    (
        Pipe { stream: one, own: Arc::clone(&of_one), other: Arc::clone(&of_other) },
        Pipe { stream: other, own: of_other, other: of_one },
    )
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.own.dropped.store(true, Ordering::Release);
        if let Some(waiting) = self.own.waiting.lock().take() {
            waiting.wake();
        }
    }
}

impl Io for Pipe {
    /// Its drop is one, unless it was shut down.
    fn reset(&self) {}

    fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<()> {
        let broken = || self.other.dropped.load(Ordering::Acquire) && !self.other.shut_down.load(Ordering::Acquire);
        if broken() {
            return Poll::Ready(());
        }
        let mut waiting = self.other.waiting.lock();
        if !waiting.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        drop(waiting);
        if broken() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let at_end = before > 0 && buf.remaining() == before;
        if at_end && !self.other.shut_down.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.own.shut_down.store(true, Ordering::Release);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
