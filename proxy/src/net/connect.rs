//! Plain TCP connections to endpoints: nodelay, keep-alive, mark, timeout.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
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
    /// Attempts in a row that reached nobody: each begins at another address than the one before.
    failures: AtomicUsize,
}

impl KnownHost {
    /// `host_port`: a name or an address, and a port. `mark`: see `config::Transparent::mark`.
    pub fn new(host_port: &str, mark: Option<u32>) -> Self {
        Self { host_port: host_port.to_owned(), mark, last: Mutex::default(), failures: AtomicUsize::default() }
    }

    pub fn as_str(&self) -> &str {
        &self.host_port
    }

    /// Looks the host up and tries its addresses in turn, each for its share of the time, all within [`limits::CONNECT_TIMEOUT`] or half
    /// as much again; those known from the last time if the look-up fails.
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
        let begin = self.failures.load(Relaxed).checked_rem(addresses.len()).unwrap_or_default();
        addresses.rotate_left(begin);
        let (within, connecting) = (left_to_connect(started.elapsed()), Instant::now());
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host_port));
        for index in 0..addresses.len() {
            let Some(address) = addresses.get(index).copied() else { break };
            let left = within.saturating_sub(connecting.elapsed());
            match connect(address, self.mark, share(left, addresses.len() - index)).await {
                Ok(stream) => {
                    self.failures.store(0, Relaxed);
                    addresses.swap(0, index);
                    *self.last.lock() = addresses;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        self.failures.fetch_add(1, Relaxed);
        Err(last)
    }

    /// A look-up has half of the time, so that the other half is left to connect in where the host was last; all of it, if that is not
    /// known (see [`left_to_connect`]).
    async fn addresses(
        &self,
        lookup: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let limit = if self.last.lock().is_empty() { limits::CONNECT_TIMEOUT } else { limits::CONNECT_TIMEOUT / 2 };
        let failure = match timeout(limit, lookup).await {
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

/// After a look-up that took so long: what is left of [`limits::CONNECT_TIMEOUT`], and half of it at least, since a look-up that was slow
/// is no reason to try nobody.
fn left_to_connect(lookup: Duration) -> Duration {
    limits::CONNECT_TIMEOUT.saturating_sub(lookup).max(limits::CONNECT_TIMEOUT / 2)
}

/// What the next of `addresses` addresses gets of the time that is left: one that is silent leaves the others theirs.
fn share(left: Duration, addresses: usize) -> Duration {
    left / u32::try_from(addresses).unwrap_or(u32::MAX).max(1)
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
    async fn an_address_that_is_silent_keeps_nobody_from_the_others() {
        // A queue of none that is full: what else comes is not answered.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let dead = silent.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = connect(dead, None, Duration::from_millis(100)).await {
            queued.push(stream);
            assert!(queued.len() < 100, "everybody gets in");
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = KnownHost::new("control-plane.test:4190", None);
        host.connect_by(async { Ok(vec![dead, address]) }).await.unwrap();
        assert_eq!(*host.last.lock(), [address, dead]);
        assert_eq!(share(Duration::from_secs(2), 4), Duration::from_millis(500));
        assert_eq!(share(Duration::from_secs(2), 0), Duration::from_secs(2));
        assert_eq!(left_to_connect(Duration::ZERO), limits::CONNECT_TIMEOUT);
        assert_eq!(left_to_connect(limits::CONNECT_TIMEOUT), limits::CONNECT_TIMEOUT / 2);
    }

    #[tokio::test]
    async fn each_attempt_that_reaches_nobody_begins_elsewhere() {
        let bound = || async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() };
        let (first, second, third) = (bound().await, bound().await, bound().await.local_addr().unwrap());
        let (one, two) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        let host = KnownHost::new("control-plane.test:4190", None);
        let connect = || host.connect_by(async { Ok(vec![one, two, third]) });
        host.failures.store(4, Relaxed);
        assert_eq!(connect().await.unwrap().peer_addr().unwrap(), two);
        // Back to the order that the look-up says.
        assert_eq!(connect().await.unwrap().peer_addr().unwrap(), one);
        assert!(host.connect_by(async { Ok(vec![third]) }).await.is_err());
        assert_eq!(host.failures.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_look_up_that_never_ends_is_not_waited_for() {
        let host = KnownHost::new("control-plane.test:4190", None);
        let known = "127.0.0.1:1".parse().unwrap();
        *host.last.lock() = vec![known];
        assert_eq!(host.addresses(std::future::pending()).await.unwrap(), [known]);
    }
}
