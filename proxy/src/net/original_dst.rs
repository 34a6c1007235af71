//! The address a redirected client meant to reach (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST).

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
};

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination before the kernel redirected the connection. For a connection that was not
/// redirected this is its local address.
///
/// # Errors
/// If the socket's addresses cannot be read: the peer is gone already.
pub fn original_dst(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let asked = match local {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => socket.original_dst_v6(),
        _ => socket.original_dst_v4(),
    };
    // ENOENT: not tracked, so not redirected; ENOPROTOOPT: no connection tracking in this kernel.
    Ok(asked.ok().and_then(|addr| addr.as_socket()).map_or(local, plain))
}

/// An IPv4 address as such, even when it came over an IPv6 socket.
fn plain(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddrV4::new(v4, v6.port()).into(),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}
