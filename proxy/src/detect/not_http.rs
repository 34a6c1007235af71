//! Bytes that went on before it was known what they are.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Spoken, decide};
use crate::net::Io;

/// A client whose first bytes may be the beginning of HTTP or of something else, and which waits for an answer to
/// them. What it sends is passed on as it comes, until it is known what it is; reading fails if it is HTTP, before
/// the bytes that tell were passed on: nobody gets an HTTP request past the proxy by sending it slowly.
pub(crate) struct NotHttp<T> {
    inner: T,
    /// Read so far; None: it is known to be no HTTP.
    seen: Option<Vec<u8>>,
}

impl<T> NotHttp<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, seen: Some(Vec::new()) }
    }
}

impl<T: Io> Io for NotHttp<T> {
    fn reset(&self) {
        self.inner.reset();
    }

    fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_broken(cx)
    }

    fn tcp(&self) -> Option<&TcpStream> {
        if self.seen.is_none() { self.inner.tcp() } else { None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for NotHttp<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        if let Some(seen) = &mut this.seen {
            seen.extend_from_slice(read);
            match decide(seen, read.is_empty()) {
                None => {}
                Some(Spoken::Http1 | Spoken::Http2) => {
                    buf.set_filled(before);
                    let late = "a request came slower than it is waited for, on a port whose protocol is not declared";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, late)));
                }
                Some(_) => this.seen = None,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for NotHttp<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What is read of a client that sends these pieces one after the other.
    async fn reads(pieces: &[&str]) -> (String, io::Result<()>) {
        let (mut client, near) = duplex(100);
        let mut client_side = NotHttp::new(near);
        let mut got = String::new();
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            let mut read = [0; 100];
            match client_side.read(&mut read).await {
                Ok(count) => got.push_str(std::str::from_utf8(&read[..count]).unwrap()),
                Err(error) => return (got, Err(error)),
            }
        }
        (got, Ok(()))
    }

    #[tokio::test]
    async fn what_is_no_http_passes() {
        for pieces in
            [&["ruok", "and more\n", "GET / HTTP/1.1\r\n"][..], &["JDWP-Handshake", "\0\0\0\x0b"], &["GET k", "ey\r\n"]]
        {
            let (got, ended) = reads(pieces).await;
            ended.unwrap();
            assert_eq!(got, pieces.concat());
        }
    }

    #[tokio::test]
    async fn http_in_small_pieces_does_not() {
        for pieces in [
            &["GE", "T / HTTP/1.1\r\n"][..],
            &["FOO", " /x HTTP/", "1.1\r\n"],
            &["PRI * HTTP", "/2.0\r\n\r\nSM\r\n\r\n"],
        ] {
            let (got, ended) = reads(pieces).await;
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(got, pieces[..pieces.len() - 1].concat(), "the piece that tells is kept back");
        }
    }
}
