//! A stream within the process, whose other end hears whether it was ended or broken off.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::Io;

/// One end. Dropped before it is shut down, it is a reset for the other.
pub struct Pipe {
    stream: DuplexStream,
    shut_down: Arc<AtomicBool>,
    /// The other end was.
    ended: Arc<AtomicBool>,
}

/// Both ends; each way holds up to `bytes` that were not read yet.
pub fn pipe(bytes: usize) -> (Pipe, Pipe) {
    let (one, other) = tokio::io::duplex(bytes);
    let (of_one, of_other) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    (
        Pipe { stream: one, shut_down: Arc::clone(&of_one), ended: Arc::clone(&of_other) },
        Pipe { stream: other, shut_down: of_other, ended: of_one },
    )
}

impl Io for Pipe {
    /// Its drop is one, unless it was shut down.
    fn reset(&self) {}
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let at_end = before > 0 && buf.remaining() == before;
        if at_end && !self.ended.load(Ordering::Acquire) {
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
        self.shut_down.store(true, Ordering::Release);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
