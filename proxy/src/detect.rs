//! What is spoken on a connection, told by its first bytes, without stalling a server that speaks first.
//!
//! [`classify`] is pure and decides at the first byte that tells; [`first_bytes`] reads for it, from any stream: what
//! comes inside mesh TLS as opaque bytes is looked at like what comes in plaintext. [`NotHttp`] goes on looking where
//! bytes could not wait for the answer.

pub mod client_hello;
mod not_http;

#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use self::client_hello::{ClientHello, Parsed};
pub(crate) use self::not_http::NotHttp;
use crate::{
    config::limits,
    net::{Io, Prefixed},
};

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
        &TLS_HANDSHAKE => classify_tls(first),
        _ => classify_http(first),
    }
}

/// The type of a TLS record (RFC 8446 5.1).
const TLS_HANDSHAKE: u8 = 22;

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

/// What some servers still take for a request line although it is none (RFC 9112 3: white space of any kind and
/// length, and before it, too): it must be refused as HTTP, and not slip by as opaque bytes with headers that nobody
/// looked at.
fn classify_loose_request_line(first: &[u8]) -> Option<Spoken> {
    let begin = first.iter().position(|byte| *byte != b'\n' && !is_loose_space(*byte))?;
    let line = first.get(begin..).unwrap_or_default();
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    match line.get(method) {
        None => return None,
        Some(space) if is_loose_space(*space) && method > 0 => {}
        _ => return Some(Spoken::Opaque),
    }
    let end = line.iter().position(|byte| *byte == b'\n')?;
    let last_word = line.get(..end)?.rsplit(|byte| is_loose_space(*byte)).find(|word| !word.is_empty())?;
    Some(if last_word.starts_with(VERSION) { Spoken::Http1 } else { Spoken::Opaque })
}

/// RFC 9112 3, what lenient recipients take for a space.
fn is_loose_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | b'\r')
}

const VERSION: &[u8] = b"HTTP/1.";

/// `method SP target SP "HTTP/1."`, whatever the method, and however long: servers that do not look at it take any.
fn classify_request_line(first: &[u8]) -> Option<Spoken> {
    let method = first.iter().take_while(|byte| is_token(**byte)).count();
    let (space, rest) = first.get(method..)?.split_first()?;
    if *space != b' ' || method == 0 {
        return classify_loose_request_line(first);
    }
    let target = rest.iter().take_while(|byte| (0x21..=0x7e).contains(*byte) || **byte >= 0x80).count();
    let (space, version) = rest.get(target..)?.split_first()?;
    if *space != b' ' || target == 0 {
        return classify_loose_request_line(first);
    }
    let compared = version.len().min(VERSION.len());
    match version.get(..compared) == VERSION.get(..compared) {
        false => classify_loose_request_line(first),
        true if compared == VERSION.len() => Some(Spoken::Http1),
        true => None,
    }
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What bytes so far are, if they tell, or if no more of them would: they are the last, or PEEK_BYTES came.
pub(crate) fn decide(first: &[u8], ended: bool) -> Option<Spoken> {
    match classify(first) {
        None if ended => Some(Spoken::Opaque),
        // A request line without an end must not become opaque by its length: some server may still take it.
        None if first.len() >= limits::PEEK_BYTES && !is_tls(first) => Some(Spoken::Http1),
        None if first.len() >= limits::PEEK_BYTES => Some(Spoken::Opaque),
        decided => decided,
    }
}

/// Whether bytes begin as TLS does, and nothing else.
pub(crate) fn is_tls(first: &[u8]) -> bool {
    first.first() == Some(&TLS_HANDSHAKE)
}

/// What a server says that speaks first, by what came at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerSpeaks {
    /// An HTTP/1 server tired of waiting (408): it answered no request.
    Http1,
    /// Its SETTINGS, which an HTTP/2 server may send before the client's preface came (RFC 9113 3.4).
    Http2,
    Opaque,
}

/// Tells an HTTP server, to which the client still has to speak, from others that speak first.
pub(crate) fn classify_server(first: &[u8]) -> ServerSpeaks {
    const SETTINGS: u8 = 4;
    const SETTING_BYTES: u8 = 6;
    match first {
        // Length (few settings), type, no flags, stream 0.
        [0, 0, length, SETTINGS, 0, 0, 0, 0, 0, ..] if length % SETTING_BYTES == 0 => ServerSpeaks::Http2,
        _ if first.starts_with(VERSION) => ServerSpeaks::Http1,
        _ => ServerSpeaks::Opaque,
    }
}

/// Outcome of waiting for a client's first bytes.
#[derive(Debug)]
pub enum FirstBytes<S = TcpStream> {
    Spoken(Spoken, Prefixed<S>),
    /// Nothing (decisive) came within the wait: the server may be the one to speak. Bytes read so far are kept; they are
    /// not the beginning of TLS.
    Silent(Prefixed<S>),
    /// The client closed without a byte.
    Closed,
}

/// Reads until [`classify`] decides, for `wait` at most (`None`: until HEADER_TIMEOUT) and PEEK_BYTES at most (see
/// [`decide`]). A client that closes after bytes that do not tell is Opaque. `already`: bytes read before, of an
/// earlier [`FirstBytes::Silent`].
///
/// Bytes that begin as TLS does are waited on until HEADER_TIMEOUT whatever `wait` is: a ClientHello that comes in pieces
/// must never be taken, by a timer, for a client that lets the server speak, in clear.
///
/// # Errors
/// Those of reading, and `TimedOut` for a ClientHello that does not become whole.
pub async fn first_bytes<S: Io>(already: Bytes, mut stream: S, wait: Option<Duration>) -> io::Result<FirstBytes<S>> {
    let begun = Instant::now();
    let mut first = BytesMut::from(already);
    let mut ended = false;
    loop {
        match decide(&first, ended) {
            Some(_) if first.is_empty() => return Ok(FirstBytes::Closed),
            Some(spoken) => return Ok(FirstBytes::Spoken(spoken, Prefixed::new(first.freeze(), stream))),
            None => {}
        }
        let hello = is_tls(&first);
        let wait = wait.filter(|_| !hello).unwrap_or(limits::HEADER_TIMEOUT);
        match timeout_at(begun + wait, read_more(&mut stream, &mut first)).await {
            Ok(read) => ended = read? == 0,
            Err(_) if hello => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => return Ok(FirstBytes::Silent(Prefixed::new(first.freeze(), stream))),
        }
    }
}

/// One read: a post-quantum ClientHello, or nearly every request head.
const READ_BYTES: usize = 2048;

/// Reads once; 0: the end. Room is made only for what came, so who is silent holds no buffer. Dropped before it is
/// done, it has read nothing.
pub(crate) async fn read_more(stream: &mut (impl AsyncRead + Unpin), into: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut room = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
        into.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}
