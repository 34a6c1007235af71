//! Listeners: one per worker and address, with SO_REUSEPORT, TCP_NODELAY and keep-alive; refuse
//! before descriptors run out.

use std::{io, net::SocketAddr};

use tokio::net::TcpListener;

use super::Accepted;

/// Binds with SO_REUSEADDR, SO_REUSEPORT, backlog 1024; IPv6 sockets are IPv6-only.
pub fn bind(_addr: SocketAddr) -> io::Result<TcpListener> {
    todo!("transport")
}

/// The next connection, with its original destination if `redirected`. Transient accept errors
/// (ECONNABORTED, EMFILE …) are logged, backed off from and not returned.
pub async fn accept(_listener: &TcpListener, _redirected: bool) -> Accepted {
    todo!("transport")
}
