//! What is spoken on a connection, told by its first bytes, without stalling a server that speaks first.
//!
//! [`classify`] is pure and decides at the first byte that tells; [`first_bytes`] reads for it.

pub mod client_hello;

#[cfg(test)]
mod tests;

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use self::client_hello::{ClientHello, Parsed};
use crate::{config::limits, net::Prefixed};

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spoken {
    /// TLS whose ALPN offers mesh protocols only (`leno_proto::alpn`).
    MeshTls,
    /// The application's own TLS.
    Tls {
        /// SNI, lower case.
        server_name: Option<String>,
    },
    Http1,
    /// HTTP/2 connection preface.
    Http2,
    Opaque,
}

/// What bytes so far say: an answer, or that more are needed. More bytes never change an answer.
pub fn classify(first: &[u8]) -> Option<Spoken> {
    match first.first()? {
        // No HTTP method starts with this byte, and TLS starts with no other.
        0x16 => classify_tls(first),
        _ => classify_http(first),
    }
}

fn classify_tls(first: &[u8]) -> Option<Spoken> {
    match client_hello::parse(first) {
        Parsed::Partial => None,
        Parsed::NotAHello => Some(Spoken::Opaque),
        Parsed::Hello(ClientHello { mesh: true, .. }) => Some(Spoken::MeshTls),
        Parsed::Hello(ClientHello { mesh: false, server_name }) => Some(Spoken::Tls { server_name }),
    }
}

/// RFC 9113 3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9110 9 and RFC 5789, with what every target of theirs in origin form starts with: nothing else that
/// starts like this is in use, so the rest of the line need not be waited for.
const KNOWN_STARTS: [&[u8]; 7] = [b"GET /", b"HEAD /", b"POST /", b"PUT /", b"DELETE /", b"OPTIONS /", b"PATCH /"];
/// Longest method that is looked for.
const METHOD_BYTES: usize = 32;

fn classify_http(first: &[u8]) -> Option<Spoken> {
    let common = first.iter().zip(HTTP2_PREFACE).take_while(|(got, expected)| got == expected).count();
    if common == HTTP2_PREFACE.len() {
        return Some(Spoken::Http2);
    }
    if common == first.len() {
        return None;
    }
    if KNOWN_STARTS.iter().any(|start| first.starts_with(start)) {
        return Some(Spoken::Http1);
    }
    classify_request_line(first)
}

/// What some servers still take for a request line although it is none (RFC 9112 3: several spaces, tabs, empty
/// lines before it): it must be refused as HTTP, and not slip by as opaque bytes with headers that nobody looked at.
fn classify_loose_request_line(first: &[u8]) -> Option<Spoken> {
    let begin = first.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let line = first.get(begin..).unwrap_or_default();
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    match line.get(method) {
        None if method <= METHOD_BYTES => return None,
        Some(b' ' | b'\t') if (1..=METHOD_BYTES).contains(&method) => {}
        _ => return Some(Spoken::Opaque),
    }
    let end = line.iter().position(|byte| *byte == b'\n');
    let text = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
    if text.iter().any(|byte| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r')) {
        return Some(Spoken::Opaque);
    }
    match end {
        Some(_) if text.windows(VERSION.len()).any(|window| window == VERSION) => Some(Spoken::Http1),
        None if first.len() < limits::PEEK_BYTES => None,
        _ => Some(Spoken::Opaque),
    }
}

const VERSION: &[u8] = b"HTTP/1.";

/// `method SP target SP "HTTP/1."`, whatever the method.
fn classify_request_line(first: &[u8]) -> Option<Spoken> {
    let method = first.iter().take_while(|byte| is_token(**byte)).count();
    if method > METHOD_BYTES {
        return Some(Spoken::Opaque);
    }
    let (space, rest) = first.get(method..)?.split_first()?;
    match *space {
        b' ' if method > 0 => {}
        b'\t' if method > 0 => return classify_loose_request_line(first),
        b'\r' | b'\n' if method == 0 => return classify_loose_request_line(first),
        _ => return Some(Spoken::Opaque),
    }
    let target = rest.iter().take_while(|byte| (0x21..=0x7e).contains(*byte) || **byte >= 0x80).count();
    let (space, version) = rest.get(target..)?.split_first()?;
    match *space {
        b' ' if target > 0 => {}
        b' ' | b'\t' => return classify_loose_request_line(first),
        _ => return Some(Spoken::Opaque),
    }
    if matches!(version.first(), Some(b' ' | b'\t')) {
        return classify_loose_request_line(first);
    }
    let compared = version.len().min(VERSION.len());
    match version.get(..compared) == VERSION.get(..compared) {
        false => Some(Spoken::Opaque),
        true if compared == VERSION.len() => Some(Spoken::Http1),
        true => None,
    }
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
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

/// Reads until [`classify`] decides, for `wait` at most (`None`: until HEADER_TIMEOUT) and PEEK_BYTES at most (then
/// Opaque). A client that closes after bytes that do not tell is Opaque. `already`: bytes read before, of an earlier
/// [`FirstBytes::Silent`].
///
/// # Errors
/// Those of reading.
pub async fn first_bytes(already: Bytes, stream: TcpStream, wait: Option<Duration>) -> io::Result<FirstBytes> {
    let deadline = Instant::now() + wait.unwrap_or(limits::HEADER_TIMEOUT);
    let mut first = BytesMut::from(already);
    if let Some(spoken) = classify(&first) {
        return Ok(FirstBytes::Spoken(spoken, Prefixed::new(first.freeze(), stream)));
    }
    loop {
        match timeout_at(deadline, stream.readable()).await {
            Ok(readable) => readable?,
            Err(_) => return Ok(FirstBytes::Silent(Prefixed::new(first.freeze(), stream))),
        }
        // Room only now: silent clients hold no buffer.
        first.reserve(READ_BYTES);
        let read = match stream.try_read_buf(&mut first) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if read == 0 && first.is_empty() {
            return Ok(FirstBytes::Closed);
        }
        let spoken = match classify(&first) {
            None if read == 0 || first.len() >= limits::PEEK_BYTES => Some(Spoken::Opaque),
            decided => decided,
        };
        if let Some(spoken) = spoken {
            return Ok(FirstBytes::Spoken(spoken, Prefixed::new(first.freeze(), stream)));
        }
    }
}

/// One read: a post-quantum ClientHello, or nearly every request head.
const READ_BYTES: usize = 2048;
