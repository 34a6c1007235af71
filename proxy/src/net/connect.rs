//! Plain TCP connections to endpoints: nodelay, keep-alive, mark, timeout.

use std::{io, net::SocketAddr};

use tokio::net::TcpStream;

/// Connects within [`crate::config::limits::CONNECT_TIMEOUT`]. `mark`: see `config::Transparent::mark`.
pub async fn connect(_addr: SocketAddr, _mark: Option<u32>) -> io::Result<TcpStream> {
    todo!("transport")
}
