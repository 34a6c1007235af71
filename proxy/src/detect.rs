//! What is spoken on a connection, told by its first bytes, without stalling a server that speaks first.

pub mod client_hello;

use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::net::Prefixed;

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spoken {
    /// TLS whose ALPN offers mesh protocols only (`leno_proto::alpn`).
    MeshTls,
    /// The application's own TLS.
    Tls {
        server_name: Option<String>,
    },
    Http1,
    /// HTTP/2 connection preface.
    Http2,
    Opaque,
}

/// What bytes so far say: an answer, or that more are needed.
pub fn classify(_first: &[u8]) -> Option<Spoken> {
    todo!("transport")
}

/// Outcome of waiting for a client's first bytes.
#[derive(Debug)]
pub enum FirstBytes {
    Spoken(Spoken, Prefixed<TcpStream>),
    /// Nothing (decisive) came within the wait: the server may be the one to speak. Bytes read so far are kept.
    Silent(Prefixed<TcpStream>),
    /// The client closed without a byte.
    Closed,
}

/// Reads until [`classify`] decides, for `wait` at most (`None`: until HEADER_TIMEOUT) and PEEK_BYTES at most (then Opaque).
pub async fn first_bytes(_already: Bytes, _stream: TcpStream, _wait: Option<Duration>) -> std::io::Result<FirstBytes> {
    todo!("transport")
}
