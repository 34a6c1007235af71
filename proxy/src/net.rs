//! Sockets: listening, original destinations, connecting, and streams whose first bytes were read.

mod backlog;
pub mod connect;
pub mod copy;
pub mod listener;
pub mod original_dst;
pub mod pipe;
pub mod prefixed;

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

pub(crate) use backlog::Backlog;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
pub use prefixed::Prefixed;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::TcpStream,
};

use crate::tls::TlsStream;

/// The port on every address: what a redirect sends, and who calls a Pod, comes by the family of the address it called.
pub fn any_address(port: u16) -> impl Iterator<Item = SocketAddr> {
    let any = [SocketAddr::from(([0; 4], port)), SocketAddr::from(([0; 8], port))];
    any.into_iter().filter(|any| any.is_ipv4() || has_ipv6())
}

/// Whether this machine has IPv6 at all.
fn has_ipv6() -> bool {
    let unsupported = |error: io::Error| error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    !socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).is_err_and(unsupported)
}

/// A byte stream, whatever carries it.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the drop of this stream a reset, so that nobody takes it for the end of what was sent. Bytes that the
    /// peer has not got by then are lost.
    fn reset(&self);

    /// The socket, if what it carries is what is read and written here.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    /// Whether the other end broke off, where that can be known without reading or writing. For the task that does both.
    fn poll_broken(&self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Whether the other end is known to have broken off. Nobody is woken for it: for those who read nothing for now.
    fn is_broken(&self) -> bool {
        false
    }

    /// Reads from `source` and writes it, without a copy in between; how much it was, 0: `source` is at its end. Bytes may
    /// be held back as by any write: flush. What `source` fails with is [`of_reader`]. None: this stream cannot do it.
    fn poll_write_from(&mut self, _cx: &mut Context<'_>, _source: &TcpStream) -> Option<Poll<io::Result<usize>>> {
        None
    }
}

/// What a relay's reader failed with, if it broke off, told from what a writer fails with that takes nothing any more.
pub(crate) fn of_reader(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::ConnectionReset {
        return io::Error::new(io::ErrorKind::ConnectionAborted, error);
    }
    error
}

impl Io for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn is_broken(&self) -> bool {
        pin!(self.ready(Interest::ERROR)).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn reset(&self) {
        // If it fails the connection is closed the ordinary way.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl<T: Io> Io for Prefixed<T> {
    fn tcp(&self) -> Option<&TcpStream> {
        if self.prefix().is_empty() { self.get_ref().tcp() } else { None }
    }

    fn reset(&self) {
        self.get_ref().reset();
    }

    fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.get_ref().poll_broken(cx)
    }

    fn is_broken(&self) -> bool {
        self.get_ref().is_broken()
    }
}

/// Dropped, it sends no close_notify either.
impl<T: Io> Io for TlsStream<T> {
    fn poll_write_from(&mut self, cx: &mut Context<'_>, source: &TcpStream) -> Option<Poll<io::Result<usize>>> {
        Some(Self::poll_write_from(self, cx, source))
    }

    fn reset(&self) {
        self.get_ref().reset();
    }

    fn is_broken(&self) -> bool {
        self.get_ref().is_broken()
    }
}

impl Io for Box<dyn Io> {
    fn reset(&self) {
        (**self).reset();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        (**self).tcp()
    }

    fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<()> {
        (**self).poll_broken(cx)
    }

    fn is_broken(&self) -> bool {
        (**self).is_broken()
    }

    fn poll_write_from(&mut self, cx: &mut Context<'_>, source: &TcpStream) -> Option<Poll<io::Result<usize>>> {
        (**self).poll_write_from(cx, source)
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
