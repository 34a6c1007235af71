//! Sockets: listening, original destinations, connecting, and streams whose first bytes were read.

pub mod connect;
pub mod copy;
pub mod listener;
pub mod original_dst;
pub mod prefixed;

use std::net::SocketAddr;

pub use prefixed::Prefixed;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A byte stream, whatever carries it.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// A connection as a listener hands it over.
#[derive(Debug)]
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    /// Where the client meant to go: the original destination if redirected, else the local address.
    pub destination: SocketAddr,
}
