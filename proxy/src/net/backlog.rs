//! How much of what was written the peer has not yet taken (SIOCOUTQ).

#![allow(unsafe_code, reason = "the ioctl has no safe form")]

use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

use super::Prefixed;
use crate::tls::TlsStream;

/// A stream over TCP that knows how many of its bytes wait.
pub(crate) trait Backlog {
    /// Bytes written to the socket that the peer's kernel has not acknowledged; 0 if that cannot be known.
    fn backlog(&self) -> u64;
}

impl Backlog for TcpStream {
    fn backlog(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open as long as `self` is, and this request writes one int, to `bytes`.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if result == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
    }
}

impl<T: Backlog> Backlog for Prefixed<T> {
    fn backlog(&self) -> u64 {
        self.get_ref().backlog()
    }
}

impl<T: Backlog> Backlog for TlsStream<T> {
    fn backlog(&self) -> u64 {
        self.get_ref().backlog()
    }
}

#[cfg(test)]
impl Backlog for tokio::io::DuplexStream {
    fn backlog(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_the_peer_does_not_take_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        assert_eq!(client.backlog(), 0);
        let chunk = [0; 64 * 1024];
        let mut written = 0_usize;
        while let Ok(count) = tokio::time::timeout(Duration::from_millis(50), client.write(&chunk)).await {
            written += count.unwrap();
        }
        let stalled = client.backlog();
        assert!(stalled > 0 && stalled <= written as u64, "{stalled} of {written}");
        let mut taken = vec![0; written];
        server.read_exact(&mut taken).await.unwrap();
        while client.backlog() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
