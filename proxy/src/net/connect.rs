//! Plain TCP connections to endpoints: nodelay, keep-alive, mark, timeout.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::set_keepalive;
use crate::config::limits;

/// Connects within that time. `mark`: see `config::Transparent::mark`.
///
/// # Errors
/// Those of the kernel, or `TimedOut`.
pub async fn connect(addr: SocketAddr, mark: Option<u32>, within: Duration) -> io::Result<TcpStream> {
    establish(open(addr, mark)?, addr, within).await
}

/// SO_PRIORITY of a connection to a mesh peer while it is made; see [`connect_peer`]. One that needs no
/// capability, and that queues treat like the default (TC_PRIO_INTERACTIVE_BULK).
pub const PEER_PRIORITY: u32 = 4;

/// Connects to a mesh peer within that time.
///
/// The peer may be this very workload, called by its service's address. Such a connection never leaves the
/// host, and would reach the application instead of the proxy: by its priority the redirect's rules know it
/// and send it to the inbound port, as they do a remote peer's.
///
/// # Errors
/// Those of the kernel, or `TimedOut`.
pub async fn connect_peer(addr: SocketAddr, mark: Option<u32>, within: Duration) -> io::Result<TcpStream> {
    let socket = open(addr, mark)?;
    SockRef::from(&socket).set_priority(PEER_PRIORITY)?;
    let stream = establish(socket, addr, within).await?;
    // The rules look at the first packet only.
    SockRef::from(&stream).set_priority(0)?;
    Ok(stream)
}

/// Connects to `host:port`: looks the host up and tries its addresses in turn, all within
/// [`limits::CONNECT_TIMEOUT`]. For a collector of traces; endpoints are addresses.
///
/// # Errors
/// The last address's error, or `TimedOut`, or `NotFound` if the name has no address.
pub async fn connect_host(host_port: &str, mark: Option<u32>) -> io::Result<TcpStream> {
    let started = Instant::now();
    let left = || limits::CONNECT_TIMEOUT.saturating_sub(started.elapsed());
    let addrs = timeout(left(), tokio::net::lookup_host(host_port))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("looking up {host_port}: no answer")))??;
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host_port} has no address"));
    for addr in addrs {
        match connect(addr, mark, left()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A host that is connected to again and again: the control plane. When nobody can say where it is, it is looked for where it was last;
/// who answers there must prove who it is, there as anywhere.
#[derive(Debug)]
pub struct KnownHost {
    host_port: String,
    mark: Option<u32>,
    /// As they were last looked up and one of them answered: that one first.
    last: Mutex<Vec<SocketAddr>>,
}

impl KnownHost {
    /// `host_port`: a name or an address, and a port. `mark`: see `config::Transparent::mark`.
    pub fn new(host_port: &str, mark: Option<u32>) -> Self {
        Self { host_port: host_port.to_owned(), mark, last: Mutex::default() }
    }

    pub fn as_str(&self) -> &str {
        &self.host_port
    }

    /// Connects as [`connect_host`] does, to the addresses known from the last time if the look-up fails.
    ///
    /// # Errors
    /// As [`connect_host`].
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let lookup = async { Ok(tokio::net::lookup_host(&self.host_port).await?.collect()) };
        self.connect_by(lookup).await
    }

    async fn connect_by(&self, lookup: impl Future<Output = io::Result<Vec<SocketAddr>>>) -> io::Result<TcpStream> {
        let started = Instant::now();
        let mut addresses = self.addresses(lookup).await?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host_port));
        for index in 0..addresses.len() {
            let Some(address) = addresses.get(index).copied() else { break };
            let left = limits::CONNECT_TIMEOUT.saturating_sub(started.elapsed());
            match connect(address, self.mark, left).await {
                Ok(stream) => {
                    addresses.swap(0, index);
                    *self.last.lock() = addresses;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A look-up has half of the time, so that the other half is left to connect in.
    async fn addresses(
        &self,
        lookup: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let failure = match timeout(limits::CONNECT_TIMEOUT / 2, lookup).await {
            Ok(Ok(found)) if !found.is_empty() => return Ok(found.into_iter().take(limits::HOST_ADDRESSES).collect()),
            Ok(Ok(_)) => io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host_port)),
            Ok(Err(error)) => io::Error::new(error.kind(), format!("looking up {}: {error}", self.host_port)),
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("looking up {}: no answer", self.host_port)),
        };
        let last = self.last.lock().clone();
        if last.is_empty() {
            return Err(failure);
        }
        tracing::debug!(%failure, addresses = ?last, "going to where the control plane was last");
        Ok(last)
    }
}

fn open(addr: SocketAddr, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    set_keepalive(&options)?;
    if let Some(mark) = mark {
        options.set_mark(mark).map_err(|error| {
            io::Error::new(error.kind(), format!("setting SO_MARK {mark:#x} (needs CAP_NET_ADMIN): {error}"))
        })?;
    }
    Ok(socket)
}

async fn establish(socket: TcpSocket, addr: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    timeout(limit, socket.connect(addr))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_that_cannot_be_looked_up_is_where_it_was_last() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Nobody listens there: it was bound, and is closed.
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let host = KnownHost::new("control-plane.test:4190", None);
        let fails = || async { Err(io::Error::other("no answer")) };
        let error = host.connect_by(fails()).await.unwrap_err();
        assert_eq!(error.to_string(), "looking up control-plane.test:4190: no answer");
        host.connect_by(async { Ok(vec![closed, address]) }).await.unwrap();
        assert_eq!(*host.last.lock(), [address, closed]);
        host.connect_by(fails()).await.unwrap();
        host.connect_by(async { Ok(Vec::new()) }).await.unwrap();
        // What is looked up counts, even if nobody is there; and is not remembered before somebody was.
        assert!(host.connect_by(async { Ok(vec![closed]) }).await.is_err());
        assert_eq!(*host.last.lock(), [address, closed]);
    }

    #[tokio::test]
    async fn a_look_up_that_never_ends_is_not_waited_for() {
        let host = KnownHost::new("control-plane.test:4190", None);
        let known = "127.0.0.1:1".parse().unwrap();
        *host.last.lock() = vec![known];
        assert_eq!(host.addresses(std::future::pending()).await.unwrap(), [known]);
    }
}
