//! Writes header blocks (RFC 7541, 6). Strings go as they are: a Huffman code costs both sides more time than its bytes.

use http::Method;

use super::table::{STATIC, Table};
use crate::http::head::{Fields, Name, RequestHead, ResponseHead, Scheme};

const INDEXED: u8 = 0x80;
const INDEXING: u8 = 0x40;
const RESIZE: u8 = 0x20;
const NEVER_INDEXED: u8 = 0x10;
const PLAIN: u8 = 0;

const AUTHORITY: usize = 1;
const METHOD: usize = 2;
const PATH: usize = 4;
const SCHEME: usize = 6;
const STATUS: usize = 8;

/// The table we keep at most, whatever the peer would allow.
pub const TABLE_BYTES: usize = 4096;
/// Longer values are not indexed: few would push out all others.
const LONGEST_INDEXED: usize = 256;
/// Names and values remembered; a power of two.
const SEEN: usize = 64;

/// One side's encoder.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// Announced before the next block: the least that the table was made, and what it is now.
    resize: Option<(usize, usize)>,
    /// What was sent lately, by hash. What comes a second time is indexed.
    seen: Vec<Seen>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    hash: u32,
    /// Its number among all entries ever added, from 1; 0: not indexed yet.
    entry: u32,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { table: Table::new(TABLE_BYTES), resize: None, seen: Vec::new() }
    }
}

impl Encoder {
    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn set_most(&mut self, most: usize) {
        let limit = most.min(TABLE_BYTES);
        if limit != self.table.limit() {
            self.resize(limit);
        }
    }

    fn resize(&mut self, limit: usize) {
        self.table.set_limit(limit);
        let least = self.resize.map_or(limit, |(least, _)| least.min(limit));
        self.resize = Some((least, limit));
    }

    /// Lets go of the table, on both sides.
    pub fn release(&mut self) {
        let limit = self.table.limit();
        if !self.seen.is_empty() {
            self.seen = Vec::new();
            self.resize(0);
            self.table.compact();
            self.resize(limit);
        }
    }

    pub fn request(&mut self, head: &RequestHead, out: &mut Vec<u8>) {
        self.begin(out);
        match head.method {
            Method::GET => out.push(INDEXED | 2),
            Method::POST => out.push(INDEXED | 3),
            ref other => literal(out, PLAIN, METHOD, other.as_str().as_bytes()),
        }
        let plain_connect = head.method == Method::CONNECT && head.protocol.is_none();
        if !plain_connect {
            out.push(INDEXED | if head.scheme == Scheme::Https { SCHEME as u8 + 1 } else { SCHEME as u8 });
            match head.target() {
                "/" => out.push(INDEXED | PATH as u8),
                "" => literal(out, PLAIN, PATH, b"/"),
                target => literal(out, PLAIN, PATH, target.as_bytes()),
            }
        }
        if let Some(authority) = head.authority() {
            self.repeated(out, AUTHORITY, b":authority", authority.as_bytes());
        }
        if let Some(protocol) = &head.protocol {
            self.repeated(out, 0, b":protocol", protocol.as_bytes());
        }
        self.fields(&head.fields, out);
    }

    pub fn response(&mut self, head: &ResponseHead, out: &mut Vec<u8>) {
        self.begin(out);
        let known = match head.status.as_u16() {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => 0,
        };
        match known {
            0 => self.repeated(out, STATUS, b":status", head.status.as_str().as_bytes()),
            known => out.push(INDEXED | known),
        }
        self.fields(&head.fields, out);
    }

    pub fn trailers(&mut self, fields: &Fields, out: &mut Vec<u8>) {
        self.begin(out);
        self.fields(fields, out);
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((least, limit)) = self.resize.take() {
            // Made smaller and larger again: both are told (RFC 7541, 4.2).
            if least < limit {
                integer(out, RESIZE, 5, least);
            }
            integer(out, RESIZE, 5, limit);
        }
    }

    fn fields(&mut self, fields: &Fields, out: &mut Vec<u8>) {
        for (known, name, value, sealed) in fields.iter_sealed() {
            match known {
                _ if sealed => field(out, NEVER_INDEXED, name, value),
                Name::Authorization | Name::ProxyAuthorization | Name::Cookie => field(out, NEVER_INDEXED, name, value),
                Name::ContentLength
                | Name::Traceparent
                | Name::Tracestate
                | Name::GrpcTimeout
                | Name::IdempotencyKey
                | Name::LenoTimeoutMs
                | Name::Location => field(out, PLAIN, name, value),
                _ => match name {
                    b"set-cookie" => field(out, NEVER_INDEXED, name, value),
                    b"date" | b"etag" | b"x-request-id" | b"last-modified" | b"age" => field(out, PLAIN, name, value),
                    _ => self.repeated(out, 0, name, value),
                },
            }
        }
    }

    /// What may well come again. `number`: of an entry of the static table with the name, if it is known.
    fn repeated(&mut self, out: &mut Vec<u8>, number: usize, name: &[u8], value: &[u8]) {
        let number = if number == 0 { static_name(name) } else { number };
        if value.len() > LONGEST_INDEXED || self.table.limit() == 0 {
            return plain(out, PLAIN, number, name, value);
        }
        if self.seen.is_empty() {
            self.seen.resize(SEEN, Seen::default());
        }
        let hash = hash(name, value);
        let Some(seen) = self.seen.get_mut(hash as usize % SEEN) else { return };
        if seen.hash != hash {
            *seen = Seen { hash, entry: 0 };
            return plain(out, PLAIN, number, name, value);
        }
        if let Some(nth) = seen.entry.checked_sub(1)
            && let Some(index) = self.table.index_of(u64::from(nth))
            && self.table.get(index) == Some((name, value))
        {
            return integer(out, INDEXED, 7, index);
        }
        plain(out, INDEXING, number, name, value);
        if self.table.add(name, value) {
            seen.entry = u32::try_from(self.table.added()).unwrap_or(0);
        }
    }
}

fn field(out: &mut Vec<u8>, kind: u8, name: &[u8], value: &[u8]) {
    plain(out, kind, static_name(name), name, value);
}

/// A literal whose name is in the static table under `number`; 0: it is not.
fn plain(out: &mut Vec<u8>, kind: u8, number: usize, name: &[u8], value: &[u8]) {
    if number != 0 {
        return literal(out, kind, number, value);
    }
    out.push(kind);
    string(out, name);
    string(out, value);
}

fn literal(out: &mut Vec<u8>, kind: u8, number: usize, value: &[u8]) {
    integer(out, kind, if kind == INDEXING { 6 } else { 4 }, number);
    string(out, value);
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    integer(out, 0, 7, bytes.len());
    out.extend_from_slice(bytes);
}

fn integer(out: &mut Vec<u8>, kind: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return out.push(kind | value as u8);
    }
    out.push(kind | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// The number of an entry of the static table with that name; 0: none.
fn static_name(name: &[u8]) -> usize {
    // By length and last letter, which tell all of them apart but few.
    let Some(&last) = name.last() else { return 0 };
    let mut number = usize::from(STATIC_NAMES.first[slot(name.len(), last)]);
    while let Some((known, _)) = number.checked_sub(1).and_then(|place| STATIC.get(place)) {
        if known.as_bytes() == name {
            return number;
        }
        number = STATIC_NAMES.next.get(number - 1).map_or(0, |&next| usize::from(next));
    }
    0
}

const fn slot(length: usize, last: u8) -> usize {
    (length * 7 + last as usize) % 128
}

struct StaticNames {
    first: [u8; 128],
    next: [u8; 61],
}

static STATIC_NAMES: StaticNames = {
    let mut names = StaticNames { first: [0; 128], next: [0; 61] };
    let mut place = STATIC.len();
    // From the last on, so that of several entries the first is found. Pseudo-fields are never looked for.
    while place > 14 {
        place -= 1;
        let name = STATIC[place].0.as_bytes();
        let slot = slot(name.len(), name[name.len() - 1]);
        names.next[place] = names.first[slot];
        names.first[slot] = place as u8 + 1;
    }
    names
};

/// Multiply and rotate, eight bytes at a time: not against an adversary, who gains nothing by a collision.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = (name.len() as u64) << 32 | value.len() as u64;
    for bytes in [name, value] {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            state = (state.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(FACTOR);
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        state = (state.rotate_left(5) ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR);
    }
    ((state >> 32) ^ state) as u32 | 1
}
