//! A stream as a tunnel's bytes (CONNECT, extended CONNECT).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Frame,
    error::{Code, StreamError},
    stream::{RecvStream, ResetWatch, SendStream},
};

/// Both halves of a stream that has become a tunnel. Shut down it sends END_STREAM; dropped before, it resets the stream.
pub struct Tunnel {
    send: SendStream,
    receive: RecvStream,
    /// Received, and not read yet.
    rest: Bytes,
}

impl Tunnel {
    pub fn new(send: SendStream, receive: RecvStream) -> Self {
        Self { send, receive, rest: Bytes::new() }
    }

    /// Ends the stream early.
    pub fn reset(&mut self, code: Code) {
        self.send.reset(code);
    }

    /// Tells of a reset by the peer, as long as the tunnel is there.
    pub fn watch(&self) -> ResetWatch {
        self.send.watch()
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(this.receive.poll_frame(cx)) {
                Some(Ok(Frame::Data(bytes))) => this.rest = bytes,
                Some(Ok(Frame::Trailers(_))) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.rest.len().min(buf.remaining());
        buf.put_slice(this.rest.get(..count).unwrap_or_default());
        this.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.send.poll_capacity(cx)).map_err(broken)?;
        Poll::Ready(Ok(this.send.send_data(bytes, false)))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.send.is_end() {
            this.send.send_data(&[], true);
        }
        Poll::Ready(Ok(()))
    }
}
