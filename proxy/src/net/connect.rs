//! Plain TCP connections to endpoints: nodelay, keep-alive, mark, timeout.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

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
/// [`limits::CONNECT_TIMEOUT`]. For the control plane; endpoints are addresses.
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
