//! Heads of requests and responses as the proxy holds them: fields in the order they came, in one buffer, with no map
//! over them. The few names that the proxy itself looks at are told apart once, when a field is added ([`Name`]); what is
//! absent (most of them, mostly) costs one bit to know.
//!
//! A request's authority is never among its fields: HTTP/1's Host and HTTP/2's `:authority` both end up in
//! [`RequestHead::authority`], and each version writes it its own way.

mod room;

use std::{fmt, mem};

use http::{Method, StatusCode, Version};

use self::room::Text;

/// Field names that mean something to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Name {
    /// Any other.
    Other,
    Authorization,
    Baggage,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Expect,
    GrpcMessage,
    GrpcStatus,
    GrpcTimeout,
    Http2Settings,
    IdempotencyKey,
    KeepAlive,
    LenoAttempt,
    LenoClientId,
    /// Any other that begins with `leno-` or `leno_`: CGI and its heirs (WSGI, Rack, PHP) take the two for the same.
    LenoOther,
    LenoReason,
    LenoRetried,
    LenoTimeoutMs,
    Location,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    RetryAfter,
    Te,
    Traceparent,
    Tracestate,
    Trailer,
    TransferEncoding,
    Upgrade,
}

impl Name {
    /// By the name in lower case.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"authorization" => Self::Authorization,
            b"baggage" => Self::Baggage,
            b"connection" => Self::Connection,
            b"content-length" => Self::ContentLength,
            b"content-type" => Self::ContentType,
            b"cookie" => Self::Cookie,
            b"expect" => Self::Expect,
            b"grpc-message" => Self::GrpcMessage,
            b"grpc-status" => Self::GrpcStatus,
            b"grpc-timeout" => Self::GrpcTimeout,
            b"http2-settings" => Self::Http2Settings,
            b"idempotency-key" => Self::IdempotencyKey,
            b"keep-alive" => Self::KeepAlive,
            b"leno-attempt" => Self::LenoAttempt,
            b"leno-client-id" => Self::LenoClientId,
            b"leno-reason" => Self::LenoReason,
            b"leno-retried" => Self::LenoRetried,
            b"leno-timeout-ms" => Self::LenoTimeoutMs,
            b"location" => Self::Location,
            b"proxy-authenticate" => Self::ProxyAuthenticate,
            b"proxy-authorization" => Self::ProxyAuthorization,
            b"proxy-connection" => Self::ProxyConnection,
            b"retry-after" => Self::RetryAfter,
            b"te" => Self::Te,
            b"traceparent" => Self::Traceparent,
            b"tracestate" => Self::Tracestate,
            b"trailer" => Self::Trailer,
            b"transfer-encoding" => Self::TransferEncoding,
            b"upgrade" => Self::Upgrade,
            [b'l', b'e', b'n', b'o', b'-' | b'_', ..] => Self::LenoOther,
            _ => Self::Other,
        }
    }

    /// The name as it is written. [`Name::Other`] and [`Name::LenoOther`] have none.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Other | Self::LenoOther => "",
            Self::Authorization => "authorization",
            Self::Baggage => "baggage",
            Self::Connection => "connection",
            Self::ContentLength => "content-length",
            Self::ContentType => "content-type",
            Self::Cookie => "cookie",
            Self::Expect => "expect",
            Self::GrpcMessage => "grpc-message",
            Self::GrpcStatus => "grpc-status",
            Self::GrpcTimeout => "grpc-timeout",
            Self::Http2Settings => "http2-settings",
            Self::IdempotencyKey => "idempotency-key",
            Self::KeepAlive => "keep-alive",
            Self::LenoAttempt => "leno-attempt",
            Self::LenoClientId => "leno-client-id",
            Self::LenoReason => "leno-reason",
            Self::LenoRetried => "leno-retried",
            Self::LenoTimeoutMs => "leno-timeout-ms",
            Self::Location => "location",
            Self::ProxyAuthenticate => "proxy-authenticate",
            Self::ProxyAuthorization => "proxy-authorization",
            Self::ProxyConnection => "proxy-connection",
            Self::RetryAfter => "retry-after",
            Self::Te => "te",
            Self::Traceparent => "traceparent",
            Self::Tracestate => "tracestate",
            Self::Trailer => "trailer",
            Self::TransferEncoding => "transfer-encoding",
            Self::Upgrade => "upgrade",
        }
    }

    const fn bit(self) -> u32 {
        1 << (self as u8)
    }

    /// The proxy's own headers.
    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Self::LenoAttempt
                | Self::LenoClientId
                | Self::LenoOther
                | Self::LenoReason
                | Self::LenoRetried
                | Self::LenoTimeoutMs
        )
    }
}

/// What counts for a field beside its name and value (RFC 9113 6.5.2), in bytes.
pub const FIELD_OVERHEAD: usize = 32;

/// The names of a set, as [`Fields::has_any`] asks for them.
pub const fn names<const N: usize>(names: [Name; N]) -> u32 {
    let mut bits = 0;
    let mut index = 0;
    while index < N {
        bits |= names[index].bit();
        index += 1;
    }
    bits
}

/// A head that is not taken, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is no HTTP, or two readers could understand it differently.
    #[error("{0}")]
    Malformed(&'static str),
    /// It is beyond [`HEAD_BYTES`](crate::config::limits::HEAD_BYTES) or [`HEADERS`](crate::config::limits::HEADERS).
    #[error("a head beyond the limits")]
    TooLarge,
}

/// The fields of one head, or the trailers of one body. Names are in lower case.
#[derive(Clone, Default)]
pub struct Fields {
    /// Names and values, each name before its value.
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Which of [`Name`] may be there.
    present: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u32,
    name: u16,
    value: u32,
    known: Name,
    /// See [`Fields::seal_last`].
    sealed: bool,
}

impl Fields {
    pub fn new() -> Self {
        Self::default()
    }

    /// With room for so many bytes of names and values.
    pub fn with_capacity(bytes: usize) -> Self {
        let (bytes, entries) = room::take(bytes);
        Self { bytes, entries, present: 0 }
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of names and values, with what RFC 9113 6.5.2 adds for each field (32), as limits count it.
    pub fn size(&self) -> usize {
        self.entries.iter().map(|entry| usize::from(entry.name) + entry.value as usize + FIELD_OVERHEAD).sum()
    }

    /// Drops all fields and keeps the room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.present = 0;
    }

    /// Adds a field at the end. `name`: a token (RFC 9110 5.6.2), its letters in any case. `value`: without CR, LF and NUL,
    /// and without blanks around it. The caller has seen to that. Names of 64 KiB and more, which no head can hold, are cut.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let name = name.get(..usize::from(u16::MAX)).unwrap_or(name);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        let written = self.bytes.get_mut(start..).unwrap_or_default();
        written.make_ascii_lowercase();
        let known = Name::of(written);
        self.bytes.extend_from_slice(value);
        self.add(start, name.len(), value.len(), known);
    }

    /// As [`Self::push`], for a name that is in lower case and shorter than 64 KiB. What it is known as.
    pub fn push_lower(&mut self, name: &[u8], value: &[u8]) -> Name {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        let known = Name::of(name);
        self.add(start, name.len(), value.len(), known);
        known
    }

    /// The last field is never to be indexed: its sender wants it kept out of compression (RFC 7541, 7.1.3).
    pub fn seal_last(&mut self) {
        if let Some(entry) = self.entries.last_mut() {
            entry.sealed = true;
        }
    }

    /// Adds a field whose name is known.
    pub fn push_known(&mut self, name: Name, value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.as_str().as_bytes());
        self.bytes.extend_from_slice(value);
        self.add(start, name.as_str().len(), value.len(), name);
    }

    fn add(&mut self, start: usize, name: usize, value: usize, known: Name) {
        self.present |= known.bit();
        self.entries.push(Entry { start: start as u32, name: name as u16, value: value as u32, known, sealed: false });
    }

    /// Whether a field of that name is there.
    pub fn has(&self, name: Name) -> bool {
        self.present & name.bit() != 0 && self.entries.iter().any(|entry| entry.known == name)
    }

    /// Whether a field of any of [`names`] may be there. False is certain.
    pub fn may_have(&self, names: u32) -> bool {
        self.present & names != 0
    }

    /// The first value of that name.
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The only value of that name; None if there is none, or are several.
    pub fn only(&self, name: Name) -> Option<&[u8]> {
        let mut values = self.all(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// The first value of that name, if it is text.
    pub fn text(&self, name: Name) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of that name.
    pub fn all(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        let entries = if self.present & name.bit() == 0 { &[][..] } else { &self.entries[..] };
        entries.iter().filter(move |entry| entry.known == name).map(|entry| self.value_of(entry))
    }

    /// All values of any name (in lower case).
    pub fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.entries.iter().filter(move |entry| self.name_of(entry) == name).map(|entry| self.value_of(entry))
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|entry| (self.name_of(entry), self.value_of(entry)))
    }

    /// As [`Self::iter`], with what each name is known as.
    pub fn iter_known(&self) -> impl Iterator<Item = (Name, &[u8], &[u8])> {
        self.entries.iter().map(|entry| (entry.known, self.name_of(entry), self.value_of(entry)))
    }

    /// As [`Self::iter_known`], with whether the field is never to be indexed (see [`Self::seal_last`]).
    pub fn iter_sealed(&self) -> impl Iterator<Item = (Name, &[u8], &[u8], bool)> {
        self.entries.iter().map(|entry| (entry.known, self.name_of(entry), self.value_of(entry), entry.sealed))
    }

    /// Removes every field of any of `names` (see [`names`]).
    pub fn remove(&mut self, names: u32) {
        if self.present & names != 0 {
            self.entries.retain(|entry| entry.known.bit() & names == 0);
            self.present &= !names;
        }
    }

    /// Keeps the fields that `keep` holds for.
    pub fn retain(&mut self, mut keep: impl FnMut(Name, &[u8], &[u8]) -> bool) {
        let Self { bytes, entries, .. } = self;
        entries.retain(|entry| {
            let (name, value) = split(bytes, entry);
            keep(entry.known, name, value)
        });
    }

    /// Removes every field of that name (in lower case).
    pub fn remove_named(&mut self, wanted: &[u8]) {
        self.retain(|_, name, _| name != wanted);
    }

    /// The one field of that name from here on.
    pub fn set(&mut self, name: Name, value: &[u8]) {
        self.remove(name.bit());
        self.push_known(name, value);
    }

    /// As [`Self::set`], for any name (in lower case).
    pub fn set_named(&mut self, name: &[u8], value: &[u8]) {
        self.remove_named(name);
        self.push(name, value);
    }

    fn name_of(&self, entry: &Entry) -> &[u8] {
        split(&self.bytes, entry).0
    }

    fn value_of(&self, entry: &Entry) -> &[u8] {
        split(&self.bytes, entry).1
    }
}

fn split<'a>(bytes: &'a [u8], entry: &Entry) -> (&'a [u8], &'a [u8]) {
    let (start, name) = (entry.start as usize, usize::from(entry.name));
    let field = bytes.get(start..start + name + entry.value as usize).unwrap_or_default();
    field.split_at_checked(name).unwrap_or_default()
}

impl Drop for Fields {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            room::give_back(mem::take(&mut self.bytes), mem::take(&mut self.entries));
        }
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        f.debug_map().entries(self.iter().map(|(name, value)| (shown(name), shown(value)))).finish()
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Fields {
    fn from_iter<T: IntoIterator<Item = (&'a str, &'a str)>>(fields: T) -> Self {
        let mut all = Self::default();
        for (name, value) in fields {
            all.push(name.as_bytes(), value.as_bytes());
        }
        all
    }
}

/// The scheme that an HTTP/2 client named; HTTP/1 clients of a service name none, which is `http`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A request's head.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestHead {
    /// What the client speaks: HTTP/1.0, HTTP/1.1 or HTTP/2.
    pub version: Version,
    pub method: Method,
    pub scheme: Scheme,
    /// HTTP/2's extended CONNECT (RFC 8441): the protocol wanted.
    pub protocol: Option<Box<str>>,
    /// Without Host.
    pub fields: Fields,
    /// The target and behind it the authority, which is empty if there is none.
    text: Text,
    /// The target's length.
    target: usize,
    /// The same without its query.
    path: usize,
}

impl RequestHead {
    /// `target`: path and query in origin form, "*", or empty (CONNECT).
    pub fn new(version: Version, method: Method, target: &str) -> Self {
        let mut head = Self {
            version,
            method,
            scheme: Scheme::default(),
            protocol: None,
            fields: Fields::default(),
            text: Text::new(),
            target: 0,
            path: 0,
        };
        head.set_target(target);
        head
    }

    /// What there is of a head that could not be read whole: "-" in place of what could not.
    pub fn remains(version: Version, method: Option<&str>, target: Option<&str>) -> Self {
        const UNREAD: &str = "-";
        let method = method.unwrap_or(UNREAD).as_bytes();
        // It was one when it was read.
        let method = Method::from_bytes(method).unwrap_or_default();
        Self::new(version, method, target.unwrap_or(UNREAD))
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.text.get(..self.target).unwrap_or_default()
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.text.get(..self.path).unwrap_or_default()
    }

    /// What follows the path's `?`.
    pub fn query(&self) -> Option<&str> {
        self.text.get(self.path + 1..self.target)
    }

    /// See [`Self::new`].
    pub fn set_target(&mut self, target: &str) {
        if self.target > 0 {
            drop(self.text.drain(..self.target));
        }
        self.text.insert_str(0, target);
        self.target = target.len();
        self.path = target.bytes().position(|byte| byte == b'?').unwrap_or(target.len());
    }

    /// Whom the client addressed: `uri-host [ ":" port ]`.
    pub fn authority(&self) -> Option<&str> {
        self.text.get(self.target..).filter(|authority| !authority.is_empty())
    }

    pub fn set_authority(&mut self, authority: &str) {
        self.text.truncate(self.target);
        self.text.push_str(authority);
    }

    pub fn is_http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    /// Makes it the head of another request and keeps the room.
    pub fn reset(&mut self, version: Version, method: Method, target: &str) {
        self.version = version;
        self.method = method;
        self.scheme = Scheme::default();
        self.protocol = None;
        self.fields.clear();
        self.text.truncate(self.target);
        self.set_target(target);
    }
}

/// A response's head.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub fields: Fields,
}

impl ResponseHead {
    pub fn new(status: StatusCode) -> Self {
        Self { status, fields: Fields::default() }
    }
}

#[cfg(test)]
mod tests;
