//! What a header block says: heads and trailers, refused when malformed (RFC 9113, 8.1 to 8.3).

use http::{Method, StatusCode, Version};

use crate::http::{
    h1::parse::is_field_value,
    head::{FIELD_OVERHEAD, Fields, Name, RequestHead, ResponseHead, Scheme, Unfit, names},
    headers::{is_grpc, is_grpc_type},
};

/// What cannot be in HTTP/2 (RFC 9113, 8.2.2).
const OF_CONNECTIONS: u32 =
    names([Name::Connection, Name::KeepAlive, Name::ProxyConnection, Name::TransferEncoding, Name::Upgrade]);

/// Fields other than pseudo-fields, and what is found wrong on the way.
#[derive(Debug)]
struct Regular {
    fields: Fields,
    size: usize,
    wrong: Option<Unfit>,
    most: Most,
}

/// How much a head may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub(super) bytes: usize,
    pub(super) fields: usize,
}

impl Regular {
    fn new(fields: Fields, most: Most) -> Self {
        Self { fields, size: 0, wrong: None, most }
    }

    /// Counts the field, pseudo or not; false: it is not looked at.
    fn count(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.size += name.len() + value.len() + FIELD_OVERHEAD;
        if self.size > self.most.bytes || self.fields.len() >= self.most.fields {
            self.wrong = self.wrong.or(Some(Unfit::TooLarge));
        }
        self.wrong.is_none()
    }

    fn refuse(&mut self, why: &'static str) {
        self.wrong = Some(Unfit::Malformed(why));
    }

    fn push(&mut self, name: &[u8], value: &[u8], sealed: bool) {
        if name.is_empty() || !name.iter().all(|&byte| is_name(byte)) {
            return self.refuse("a field name with characters that must not be there");
        }
        if !is_value(value) {
            return self.refuse("a field value with characters that must not be there");
        }
        if self.fields.push_lower(name, value) == Name::Te && value != b"trailers" {
            self.refuse("te other than trailers");
        }
        if sealed {
            self.fields.seal_last();
        }
    }

    fn wrong(&self) -> Option<Unfit> {
        match self.wrong {
            None if self.fields.may_have(OF_CONNECTIONS) => Some(Unfit::Malformed("a field of HTTP/1 connections")),
            wrong => wrong,
        }
    }

    fn finish(self) -> Result<Fields, Unfit> {
        self.wrong().map_or(Ok(self.fields), Err)
    }
}

/// A request's head, field by field.
pub(super) struct RequestReader {
    regular: Regular,
    method: Option<Method>,
    scheme: Option<Scheme>,
    protocol: Option<Box<str>>,
    host: bool,
    authority: bool,
    /// `host` and `:authority` differ, or there are two hosts.
    ambiguous: bool,
    target: bool,
    any_regular: bool,
    /// Beyond the limits of a head it says that it is gRPC.
    late_grpc: bool,
    /// What becomes the head.
    head: RequestHead,
}

/// What a client's header block came to.
pub(super) enum Read {
    /// To be answered. If it is to be refused: why.
    Request(RequestHead, Option<Unfit>),
    /// To be reset (RFC 9113, 8.1.1), and why. In the head is what could be read of it, without fields.
    Malformed(RequestHead, &'static str),
}

impl RequestReader {
    pub(super) fn new(most: Most) -> Self {
        let regular = Regular::new(Fields::with_capacity(256), most);
        Self {
            regular,
            method: None,
            scheme: None,
            protocol: None,
            host: false,
            authority: false,
            ambiguous: false,
            target: false,
            any_regular: false,
            late_grpc: false,
            head: RequestHead::new(Version::HTTP_2, Method::GET, ""),
        }
    }

    pub(super) fn field(&mut self, name: &[u8], value: &[u8], sealed: bool) {
        if !self.regular.count(name, value) {
            // The form of the answer hangs on it.
            self.late_grpc |= name == Name::ContentType.as_str().as_bytes() && is_grpc_type(value);
            return;
        }
        if name.first() == Some(&b':') {
            if let Err(why) = self.pseudo(name, value) {
                self.regular.refuse(why);
            }
            return;
        }
        self.any_regular = true;
        if name == b"host" {
            if let Err(why) = self.host(value) {
                self.regular.refuse(why);
            }
            return;
        }
        self.regular.push(name, value, sealed);
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if self.any_regular {
            return Err("a pseudo-field after others");
        }
        let again = match name {
            b":method" => {
                let method = Method::from_bytes(value).map_err(|_| "a malformed method")?;
                self.method.replace(method).is_some()
            }
            b":scheme" => {
                let scheme = match value {
                    b"http" => Scheme::Http,
                    b"https" => Scheme::Https,
                    _ => return Err("a scheme other than http and https"),
                };
                self.scheme.replace(scheme).is_some()
            }
            b":path" => {
                self.head.set_target(target(value)?);
                std::mem::replace(&mut self.target, true)
            }
            b":authority" => {
                let authority = text(value).filter(|text| !text.is_empty()).ok_or("a malformed authority")?;
                self.head.set_authority(authority);
                std::mem::replace(&mut self.authority, true)
            }
            b":protocol" => {
                let protocol = text(value).filter(|text| !text.is_empty()).ok_or("a malformed protocol")?;
                self.protocol.replace(protocol.into()).is_some()
            }
            _ => return Err("an unknown pseudo-field"),
        };
        if again { Err("a pseudo-field twice") } else { Ok(()) }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if !is_value(value) {
            return Err("a field value with characters that must not be there");
        }
        let host = text(value).ok_or("a malformed host")?;
        match self.head.authority() {
            Some(authority) => self.ambiguous |= !authority.eq_ignore_ascii_case(host),
            None => self.head.set_authority(host),
        }
        self.ambiguous |= std::mem::replace(&mut self.host, true);
        Ok(())
    }

    /// `connect_protocol`: extended CONNECT was announced.
    pub(super) fn finish(self, connect_protocol: bool) -> Read {
        match self.wrong(connect_protocol) {
            None => {}
            Some(Unfit::TooLarge) => return Read::Request(self.remains(), Some(Unfit::TooLarge)),
            Some(Unfit::Malformed(why)) => return Read::Malformed(self.remains(), why),
        }
        let mut head = self.head;
        head.fields = self.regular.fields;
        head.method = self.method.unwrap_or_default();
        head.scheme = self.scheme.unwrap_or_default();
        head.protocol = self.protocol;
        Read::Request(head, self.ambiguous.then_some(Unfit::Malformed("Host and :authority differ")))
    }

    fn wrong(&self, connect_protocol: bool) -> Option<Unfit> {
        let malformed = |why| Some(Unfit::Malformed(why));
        if let Some(wrong) = self.regular.wrong() {
            return Some(wrong);
        }
        let Some(method) = &self.method else { return malformed("a request without method") };
        if self.protocol.is_some() && (!connect_protocol || method != Method::CONNECT) {
            return malformed("a protocol where none may be");
        }
        if *method == Method::CONNECT && self.protocol.is_none() {
            if self.scheme.is_some() || self.target || !self.authority {
                return malformed("a CONNECT with other than an authority");
            }
        } else if self.scheme.is_none() || !self.target {
            return malformed("a request without scheme or path");
        }
        None
    }

    /// What could be read of a head that is not taken; of its fields only that it is gRPC.
    fn remains(self) -> RequestHead {
        let target = self.target.then(|| self.head.target());
        let mut head = RequestHead::remains(Version::HTTP_2, self.method.as_ref().map(Method::as_str), target);
        if let Some(authority) = self.head.authority() {
            head.set_authority(authority);
        }
        if self.late_grpc || is_grpc(&self.regular.fields) {
            head.fields.push_known(Name::ContentType, b"application/grpc");
        }
        head
    }
}

/// A response's head, field by field.
pub(super) struct ResponseReader {
    regular: Regular,
    status: Option<StatusCode>,
    any_regular: bool,
}

impl ResponseReader {
    pub(super) fn new(most: Most) -> Self {
        let regular = Regular::new(Fields::with_capacity(256), most);
        Self { regular, status: None, any_regular: false }
    }

    pub(super) fn field(&mut self, name: &[u8], value: &[u8], sealed: bool) {
        if !self.regular.count(name, value) {
            return;
        }
        if name.first() != Some(&b':') {
            self.any_regular = true;
            return self.regular.push(name, value, sealed);
        }
        let status = StatusCode::from_bytes(value).ok().filter(|_| name == b":status" && !self.any_regular);
        if status.is_none() || self.status.is_some() {
            return self.regular.refuse("a malformed status");
        }
        self.status = status;
    }

    pub(super) fn finish(self) -> Result<ResponseHead, Unfit> {
        let fields = self.regular.finish()?;
        match self.status {
            // No upgrades in HTTP/2 (RFC 9113, 8.6).
            Some(StatusCode::SWITCHING_PROTOCOLS) => Err(Unfit::Malformed("101 (Switching Protocols)")),
            Some(status) => Ok(ResponseHead { status, fields }),
            None => Err(Unfit::Malformed("a response without status")),
        }
    }
}

/// Trailers, field by field.
pub(super) struct TrailerReader(Regular);

impl TrailerReader {
    pub(super) fn new(most: Most) -> Self {
        Self(Regular::new(Fields::default(), most))
    }

    pub(super) fn field(&mut self, name: &[u8], value: &[u8], sealed: bool) {
        if !self.0.count(name, value) {
            return;
        }
        if name.first() == Some(&b':') {
            return self.0.refuse("a pseudo-field in trailers");
        }
        self.0.push(name, value, sealed);
    }

    pub(super) fn finish(self) -> Result<Fields, Unfit> {
        self.0.finish()
    }
}

/// The body's length that a head states.
///
/// # Errors
/// What is wrong with it.
pub(super) fn content_length(fields: &Fields) -> Result<Option<u64>, &'static str> {
    const MALFORMED: &str = "a malformed content-length";
    if !fields.has(Name::ContentLength) {
        return Ok(None);
    }
    let value = fields.only(Name::ContentLength).ok_or(MALFORMED)?;
    let length = value.iter().try_fold(0_u64, |length, byte| match byte {
        b'0'..=b'9' => length.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    });
    length.filter(|_| !value.is_empty()).map(Some).ok_or(MALFORMED)
}

/// Path and query, or "*". Characters as in <https://url.spec.whatwg.org/#path-state>, and those that browsers leave as they are.
fn target(value: &[u8]) -> Result<&str, &'static str> {
    const FITS: [bool; 256] = {
        let mut table = [true; 256];
        let mut index = 0;
        while index < 256 {
            table[index] = !matches!(index as u8, 0..=b' ' | b'#' | b'<' | b'>' | b'`' | 0x7f);
            index += 1;
        }
        table
    };
    let fits = |byte: u8| FITS.get(usize::from(byte)).copied().unwrap_or(false);
    // Queries have the grave accent, too (<https://url.spec.whatwg.org/#query-percent-encode-set>).
    let in_query = |at: usize| {
        let (path, query) = value.split_at(at);
        path.contains(&b'?') && query.iter().all(|&byte| fits(byte) || byte == b'`')
    };
    let begins = value.first() == Some(&b'/') || value == b"*";
    let all_fit = || value.iter().position(|&byte| !fits(byte)).is_none_or(in_query);
    if !begins || value.len() > usize::from(u16::MAX) || !all_fit() {
        return Err("a malformed path");
    }
    std::str::from_utf8(value).map_err(|_| "a path that is not UTF-8")
}

/// Visible ASCII.
fn text(value: &[u8]) -> Option<&str> {
    if value.iter().all(|byte| byte.is_ascii_graphic()) { std::str::from_utf8(value).ok() } else { None }
}

/// A token's character (RFC 9110, 5.6.2), but no upper-case letter.
fn is_name(byte: u8) -> bool {
    const NAME: [bool; 256] = {
        let mut table = [false; 256];
        let mut index = 0;
        while index < 256 {
            table[index] = matches!(index as u8,
                b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.'
                | b'^' | b'_' | b'`' | b'|' | b'~');
            index += 1;
        }
        table
    };
    NAME.get(usize::from(byte)).copied().unwrap_or(false)
}

fn is_value(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !blank(value.first()) && !blank(value.last()) && is_field_value(value)
}
