//! Sockets: listening, original destinations, connecting, and streams whose first bytes were read.

mod backlog;
pub mod connect;
pub mod copy;
pub mod listener;
pub mod original_dst;
pub mod prefixed;

use std::{io, net::SocketAddr, time::Duration};

pub(crate) use backlog::Backlog;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
pub use prefixed::Prefixed;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// A byte stream, whatever carries it.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the drop of this stream a reset, so that nobody takes it for the end of what was sent. Bytes that the
    /// peer has not got by then are lost.
    fn reset(&self);
}

impl Io for TcpStream {
    fn reset(&self) {
        // If it fails the connection is closed the ordinary way.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl<T: Io> Io for Prefixed<T> {
    fn reset(&self) {
        self.get_ref().reset();
    }
}

/// Dropped, it sends no close_notify either.
impl<T: Io> Io for client::TlsStream<T> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

/// Dropped, it sends no close_notify either.
impl<T: Io> Io for server::TlsStream<T> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

impl Io for Box<dyn Io> {
    fn reset(&self) {
        (**self).reset();
    }
}

/// What is below cannot be reached through hyper: it is closed the ordinary way.
impl Io for TokioIo<Upgraded> {
    fn reset(&self) {}
}

#[cfg(test)]
impl Io for tokio::io::DuplexStream {
    fn reset(&self) {}
}

/// A connection as a listener hands it over.
#[derive(Debug)]
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    /// Where the client meant to go: the original destination if redirected, else the local address.
    pub destination: SocketAddr,
}

/// Silence after which the kernel asks whether the peer still lives.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between two such questions; after three without an answer the connection is broken.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Finds peers that vanished without a word within a minute. (TCP_USER_TIMEOUT would be quicker, but it
/// also breaks connections to peers that live and do not read.)
fn set_keepalive(socket: &SockRef<'_>) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
    socket.set_tcp_keepalive(&probes)
}
