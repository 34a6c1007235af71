//! Reads SNI and ALPN out of a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3, RFC 7301), which may span
//! several records and reads. Never decrypts; copies only a hello that is split into records.

use std::borrow::Cow;

use crate::config::limits;

/// What bytes from the start of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The start of a ClientHello, or too short to tell.
    Partial,
    NotAHello,
    Hello(ClientHello),
}

/// What of a ClientHello is looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Lower case, without a trailing dot. None if absent or no host name.
    pub server_name: Option<String>,
    /// ALPN is there, and every protocol in it starts with "leno1/".
    pub mesh: bool,
}

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Record type, version, length.
const RECORD_HEADER: usize = 5;
/// RFC 8446 5.1: 2^14 bytes of plaintext.
const MAX_RECORD: usize = 1 << 14;
/// Message type, length.
const MESSAGE_HEADER: usize = 4;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const MESH_PREFIX: &[u8] = b"leno1/";

/// Parses what has been read so far.
pub fn parse(bytes: &[u8]) -> Parsed {
    let Some(message) = gather(bytes) else {
        return Parsed::NotAHello;
    };
    // The type is looked at as soon as it is there, not only when the message is whole.
    let [kind, length @ ..] = &*message else {
        return Parsed::Partial;
    };
    if *kind != CLIENT_HELLO {
        return Parsed::NotAHello;
    }
    let Some(&[high, middle, low]) = length.first_chunk::<3>() else {
        return Parsed::Partial;
    };
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if length > limits::PEEK_BYTES {
        // Never comes whole. It is TLS nevertheless, and cannot be ours.
        return Parsed::Hello(ClientHello::default());
    }
    match message.get(MESSAGE_HEADER..MESSAGE_HEADER + length) {
        None => Parsed::Partial,
        Some(body) => Parsed::Hello(read_hello(body).unwrap_or_default()),
    }
}

/// The handshake bytes inside the records so far. None: these are no handshake records.
fn gather(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (first, mut rest) = next_record(bytes)?;
    let mut gathered = Cow::Borrowed(first);
    while !rest.is_empty() {
        if is_whole(&gathered) {
            break; // What follows the hello is not looked at.
        }
        let (fragment, after) = next_record(rest)?;
        gathered.to_mut().extend_from_slice(fragment);
        rest = after;
    }
    Some(gathered)
}

fn is_whole(message: &[u8]) -> bool {
    message.first_chunk().is_some_and(|&[_, high, middle, low]: &[u8; 4]| {
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        // What is too large to be waited for is not looked at either.
        length > limits::PEEK_BYTES || message.len() >= MESSAGE_HEADER + length
    })
}

/// The fragment of the first record, as much as is there, and what follows the record.
fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let header_so_far = bytes.get(..RECORD_HEADER).unwrap_or(bytes);
    // TLS 1.0 to 1.3 all send 3.x here, and are to ignore the x (RFC 8446 5.1).
    let plausible = header_so_far.iter().enumerate().all(|(index, byte)| match index {
        0 => *byte == HANDSHAKE_RECORD,
        1 => *byte == 3,
        3 => usize::from(*byte) << 8 <= MAX_RECORD,
        _ => true,
    });
    if !plausible {
        return None;
    }
    let Some((&[_, _, _, high, low], rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else {
        return Some((&[], &[]));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > MAX_RECORD {
        return None;
    }
    Some(rest.split_at_checked(length).unwrap_or((rest, &[])))
}

/// A cursor over length-prefixed fields; every read may find too little.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn vec8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    fn vec16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }
}

fn read_hello(body: &[u8]) -> Option<ClientHello> {
    let mut fields = Fields(body);
    let _legacy_version = fields.u16()?;
    let _random = fields.take(32)?;
    let _legacy_session_id = fields.vec8()?;
    let _cipher_suites = fields.vec16()?;
    let _legacy_compression_methods = fields.vec8()?;
    let mut hello = ClientHello::default();
    if fields.0.is_empty() {
        return Some(hello); // No extensions (TLS 1.2 and before).
    }
    let mut extensions = fields.vec16()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vec16()?;
        match kind {
            SERVER_NAME => hello.server_name = read_server_name(data),
            ALPN => hello.mesh = only_mesh_protocols(data),
            _ => {}
        }
    }
    Some(hello)
}

fn read_server_name(mut data: Fields<'_>) -> Option<String> {
    const HOST_NAME: u8 = 0;
    let mut names = data.vec16()?;
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vec16()?.0;
        if kind == HOST_NAME {
            let name = name.strip_suffix(b".").unwrap_or(name);
            let is_host = !name.is_empty()
                && name.len() <= 253
                && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
            return is_host.then(|| String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
    None
}

fn only_mesh_protocols(mut data: Fields<'_>) -> bool {
    let Some(mut protocols) = data.vec16() else {
        return false;
    };
    let mut any = false;
    while !protocols.0.is_empty() {
        match protocols.vec8() {
            Some(protocol) if protocol.0.starts_with(MESH_PREFIX) => any = true,
            _ => return false,
        }
    }
    any
}
