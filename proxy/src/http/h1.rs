//! HTTP/1.1 (RFC 9112) by a codec of our own: the server's role towards clients, the client's role towards applications and
//! servers without a proxy. One read and one write per message where the peer allows it, no task per connection, and
//! no buffer while a connection idles.
//!
//! The server reads a plain subset of HTTP/1.1 ([`parse::parse_request`]), on which it agrees with hyper to the letter. What hyper would
//! refuse is refused here ([`judge`]). Whatever else comes is handed over with its bytes unread ([`Ended::Unusual`]), for hyper to serve;
//! from then on the connection is hyper's. The client has nobody behind it: what it cannot read without doubt is an error.

mod body;
mod buffer;
mod chunked;
mod client;
mod judge;
pub mod parse;
mod server;
#[cfg(test)]
mod tests;
mod write;

pub use body::{Incoming, Outgoing};
pub use chunked::{Decoded, Decoder, Malformed};
pub use client::{ClientConnection, SendError};
pub(crate) use server::{Ended, Patience, Request, serve};

/// How a body is delimited (RFC 9112 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes, perhaps none.
    Length(u64),
    Chunked,
    /// By the connection's end; responses alone.
    Close,
}

impl Framing {
    /// The body's length, if all of it is at the beginning of `bytes`.
    fn within(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Length(length) => usize::try_from(length).ok().filter(|length| *length <= bytes.len()),
            _ => None,
        }
    }
}
