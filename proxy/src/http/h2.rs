//! HTTP/2 (RFC 9113), both roles on one engine, made for many streams of few bytes: one task owns each connection and its
//! buffers ([`driver`]); tasks that answer requests append frames to the connection's output and wake it, so that one write
//! carries what all of them had to say. A stream is a slot with a waker, not a channel. All of it stays on one thread.
//!
//! What is malformed ends its stream; what breaks the connection's rules, or floods it, ends the connection. Whatever a peer does,
//! what it makes us hold is bounded: bodies by windows and by how much may wait to be written, heads by their limits,
//! answers by not reading on before they are written.

mod client;
mod driver;
mod error;
mod flood;
mod frame;
mod heads;
pub mod hpack;
mod intake;
mod load;
mod output;
mod server;
mod slot;
mod state;
mod stream;
mod tunnel;

use std::time::Duration;

pub use self::{
    client::{Connection, connect},
    error::{Code, H2Error, Kind, Refused, StreamError},
    load::{Heard, Load, Reports},
    server::{Request, serve},
    stream::{RecvStream, SendStream},
    tunnel::Tunnel,
};
use crate::config::limits;
pub use crate::http::body::Frame;

/// What a connection allows its peer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of one stream that may wait to be taken.
    pub stream_window: u32,
    /// Bytes of all streams together.
    pub connection_window: u32,
    /// Largest frame taken (16 KiB at least).
    pub frame_bytes: u32,
    /// A head, with all that RFC 9113, 6.5.2 counts as its size.
    pub head_bytes: usize,
    /// Its fields.
    pub head_fields: usize,
    /// Server: streams open at a time.
    pub most_streams: u32,
    /// Server: whether extended CONNECT (RFC 8441) is taken.
    pub connect_protocol: bool,
    /// Server: the longest time without a stream, before the client is told to leave.
    pub idle: Duration,
    /// With streams open, and nothing heard for so long, a ping is sent.
    pub ping_interval: Duration,
    /// The connection ends if nothing is heard for so long after a ping.
    pub ping_timeout: Duration,
    /// Server: whether and what it tells of its load.
    pub reports: Reports,
    /// Client: where it puts what it hears of the server's load.
    pub heard: Heard,
}

impl Settings {
    /// As the proxy's limits have them.
    pub fn new() -> Self {
        Self {
            stream_window: limits::H2_STREAM_WINDOW,
            connection_window: limits::H2_CONNECTION_WINDOW,
            frame_bytes: limits::H2_FRAME_BYTES,
            head_bytes: limits::HEAD_BYTES,
            head_fields: limits::HEADERS,
            most_streams: limits::STREAMS_PER_CONNECTION,
            connect_protocol: true,
            idle: limits::CLIENT_IDLE,
            ping_interval: limits::H2_PING_INTERVAL,
            ping_timeout: limits::H2_PING_TIMEOUT,
            reports: Reports::default(),
            heard: Heard::default(),
        }
    }

    /// Those of a client's proxy to the server's.
    pub fn to_peer() -> Self {
        Self {
            ping_interval: limits::PEER_PING_INTERVAL,
            ping_timeout: limits::PEER_PING_TIMEOUT,
            ..Self::new().between_peers()
        }
    }

    /// Those of a server's proxy to a client's.
    pub fn of_peer(reports: Reports) -> Self {
        Self { reports, ..Self::new().between_peers() }
    }

    /// A head that one proxy took must do for the next, which counts it differently if it came by HTTP/1, and after fields
    /// were added.
    fn between_peers(self) -> Self {
        Self { head_bytes: 2 * limits::HEAD_BYTES, head_fields: 2 * limits::HEADERS, ..self }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
