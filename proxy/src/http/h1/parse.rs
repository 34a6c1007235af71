//! Heads and trailers from bytes. Requests: the plain subset alone, the rest is [`Parsed::Unusual`]. Responses: what RFC 9112
//! allows, read strictly. Neither knows folded lines, bare CR or LF, or blanks before a colon.

use http::{Method, StatusCode, Version};

use super::Framing;
use crate::{
    config::limits,
    http::{
        head::{Fields, RequestHead, ResponseHead, Unfit},
        headers::is_authority,
        respond,
    },
};

/// What the bytes at the beginning of a request are.
#[derive(Debug)]
pub enum Parsed {
    /// More is needed to tell.
    Incomplete,
    Request(Request),
    /// Anything that is not plain, whether allowed or not.
    Unusual,
}

/// A request's head, without the fields that its connection alone is concerned with: Host, Connection, Transfer-Encoding.
#[derive(Debug)]
pub struct Request {
    pub head: RequestHead,
    pub framing: Framing,
    /// The client wants no further response on this connection.
    pub close: bool,
    /// Bytes of the head.
    pub length: usize,
    /// It is to be refused, and why.
    pub refused: Option<Unfit>,
}

/// A response's head, without Connection (unless it names fields) and Transfer-Encoding.
#[derive(Debug)]
pub struct Response {
    pub head: ResponseHead,
    pub framing: Framing,
    /// No further request may be sent on this connection.
    pub close: bool,
    /// Bytes of the head.
    pub length: usize,
}

/// Why a response, or what follows a chunked body, is refused.
pub type Refused = &'static str;

/// Room for most heads.
const USUAL_HEAD: usize = 512;

/// Reads a request's head from the first bytes of `bytes`.
pub fn parse_request(bytes: &[u8]) -> Parsed {
    match request(bytes) {
        Ok(request) if request.length <= limits::HEAD_BYTES => Parsed::Request(request),
        Err(Stop::Incomplete) if bytes.len() <= limits::HEAD_BYTES => Parsed::Incomplete,
        _ => Parsed::Unusual,
    }
}

/// Reads a response's head from the first bytes of `bytes`; None: more is needed. `method`: the request's.
///
/// # Errors
/// What is wrong with it.
pub fn parse_response(bytes: &[u8], method: &Method) -> Result<Option<Response>, Refused> {
    match response(bytes, method) {
        Ok(response) if response.length <= limits::HEAD_BYTES => Ok(Some(response)),
        Err(Stop::Incomplete) if bytes.len() <= limits::HEAD_BYTES => Ok(None),
        Err(Stop::Refused(reason)) => Err(reason),
        _ => Err("a head beyond the limit"),
    }
}

/// Reads trailers, up to and with the empty line, from the first bytes of `bytes`, and how many bytes they are; None:
/// more is needed.
///
/// # Errors
/// What is wrong with them.
pub fn parse_trailers(bytes: &[u8]) -> Result<Option<(Fields, usize)>, Refused> {
    let mut fields = Fields::new();
    let mut at = 0;
    loop {
        match field(bytes, at, true) {
            Ok(Some(line)) if fields.len() < limits::HEADERS => {
                fields.push(line.name, line.value);
                at = line.next;
            }
            Ok(Some(_)) => return Err("too many trailers"),
            Ok(None) => return Ok(Some((fields, at + 2))),
            Err(Stop::Incomplete) => return Ok(None),
            Err(Stop::Refused(reason)) => return Err(reason),
        }
    }
}

/// Whether an empty line, and so perhaps the end of a head, is among the bytes from `seen` on. All before were looked at.
pub fn has_empty_line(bytes: &[u8], seen: usize) -> bool {
    let from = seen.saturating_sub(3);
    let new = bytes.get(from..).unwrap_or_default();
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

/// Why reading stopped early.
#[derive(Debug)]
enum Stop {
    Incomplete,
    Refused(Refused),
}

const TOKEN: u8 = 1;
const TARGET: u8 = 2;
const VALUE: u8 = 4;

/// What each byte may be part of.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        let token = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        // As `http::uri::PathAndQuery` takes them everywhere in path and query; `?` begins or continues the query.
        let target = matches!(byte, 0x21 | 0x24..=0x3b | 0x3d | b'?' | 0x40..=0x5f | 0x61..=0x7a | 0x7c | 0x7e);
        let value = matches!(byte, b'\t' | 0x20..=0x7e);
        classes[byte as usize] =
            if token { TOKEN } else { 0 } | if target { TARGET } else { 0 } | if value { VALUE } else { 0 };
        byte += 1;
    }
    classes
}

fn is_class(byte: u8, class: u8) -> bool {
    // Cannot miss: there is an entry for each byte.
    CLASSES.get(usize::from(byte)).is_some_and(|classes| classes & class != 0)
}

/// The end of the bytes of `class` that begin at `at`.
fn end_of(bytes: &[u8], at: usize, class: u8) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|&byte| !is_class(byte, class)).unwrap_or(rest.len())
}

/// The end of the field value that begins at `at`. `obs_text`: bytes from 0x80 on may be in it (RFC 9110 5.5).
fn end_of_value(bytes: &[u8], at: usize, obs_text: bool) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    let (words, _) = rest.as_chunks::<8>();
    let plain = 8 * words.iter().position(|word| !is_plain(*word)).unwrap_or(words.len());
    let rest = rest.get(plain..).unwrap_or_default();
    at + plain + rest.iter().position(|&byte| !is_value(byte, obs_text)).unwrap_or(rest.len())
}

/// Whether all bytes may be in a field's value (RFC 9110 5.5).
pub(in crate::http) fn is_field_value(value: &[u8]) -> bool {
    end_of_value(value, 0, true) == value.len()
}

fn is_value(byte: u8, obs_text: bool) -> bool {
    is_class(byte, VALUE) || (obs_text && byte >= 0x80)
}

/// Whether all eight bytes are in 0x20..=0x7e.
fn is_plain(word: [u8; 8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_ne_bytes(word);
    let below = word.wrapping_sub(ONES * 0x20) & !word;
    (below | word | word.wrapping_add(ONES)) & (ONES * 0x80) == 0
}

/// Whether bytes at `at` are `wanted`, as far as they have come.
fn expect(bytes: &[u8], at: usize, wanted: &[u8], reason: Refused) -> Result<usize, Stop> {
    let rest = bytes.get(at..).unwrap_or_default();
    if rest.starts_with(wanted) {
        Ok(at + wanted.len())
    } else if wanted.starts_with(rest) {
        Err(Stop::Incomplete)
    } else {
        Err(Stop::Refused(reason))
    }
}

/// One line of a head.
struct Line<'a> {
    name: &'a [u8],
    value: &'a [u8],
    next: usize,
}

/// The field that begins at `at`; None: the empty line is there.
fn field(bytes: &[u8], at: usize, obs_text: bool) -> Result<Option<Line<'_>>, Stop> {
    const LINE: Refused = "a malformed field line";
    let colon = end_of(bytes, at, TOKEN);
    if colon == at {
        return expect(bytes, at, b"\r\n", LINE).map(|_| None);
    }
    let mut start = expect(bytes, colon, b":", LINE)?;
    while matches!(bytes.get(start), Some(b' ' | b'\t')) {
        start += 1;
    }
    let end = end_of_value(bytes, start, obs_text);
    let next = expect(bytes, end, b"\r\n", LINE)?;
    let name = bytes.get(at..colon).unwrap_or_default();
    let mut value = bytes.get(start..end).unwrap_or_default();
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    Ok(Some(Line { name, value, next }))
}

/// What a head's fields say of the connection and of the body's length.
#[derive(Default)]
struct Told {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Told {
    /// Reads `Connection`; whether it says nothing but whether the connection is kept.
    fn connection(&mut self, value: &[u8]) -> bool {
        let mut only = true;
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty()) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else {
                only = false;
            }
        }
        only
    }
}

/// Plain digits, at most 18, without leading zeros: whoever reads them reads the same.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || (value.len() > 1 && value.starts_with(b"0")) {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| byte.is_ascii_digit().then(|| length * 10 + u64::from(byte - b'0')))
}

/// Without leading zeros, which RFC 9110 8.6 allows.
fn unpadded(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    digits.get(zeros.min(digits.len().saturating_sub(1))..).unwrap_or_default()
}

const UNUSUAL: Stop = Stop::Refused("unusual");

fn request(bytes: &[u8]) -> Result<Request, Stop> {
    let (method, at) = method(bytes)?;
    let end = end_of(bytes, at, TARGET);
    let target = bytes.get(at..end).unwrap_or_default();
    if !target.is_empty() && !target.starts_with(b"/") {
        return Err(UNUSUAL);
    }
    let mut at = expect(bytes, end, b" HTTP/1.1\r\n", "unusual")?;
    let target = std::str::from_utf8(target).ok().filter(|target| !target.is_empty()).ok_or(UNUSUAL)?;
    let mut head = RequestHead::new(Version::HTTP_11, method, target);
    head.fields = Fields::with_capacity(bytes.len().min(USUAL_HEAD));
    let mut told = Told::default();
    let mut count = 0;
    while let Some(line) = field(bytes, at, false)? {
        at = line.next;
        count += 1;
        if count > limits::HEADERS || !take(&line, &mut head, &mut told) {
            return Err(UNUSUAL);
        }
    }
    if head.authority().is_none() || (told.chunked && told.length.is_some()) {
        return Err(UNUSUAL);
    }
    let framing = if told.chunked { Framing::Chunked } else { Framing::Length(told.length.unwrap_or(0)) };
    Ok(Request { head, framing, close: told.close, length: at + 2, refused: None })
}

/// The method, and where what follows its blank begins.
fn method(bytes: &[u8]) -> Result<(Method, usize), Stop> {
    const LONGEST: usize = 7;
    let end = end_of(bytes.get(..=LONGEST).unwrap_or(bytes), 0, TOKEN);
    if end == bytes.len() && end <= LONGEST {
        return Err(Stop::Incomplete);
    }
    let method = match bytes.get(..=end).unwrap_or_default() {
        b"GET " => Method::GET,
        b"POST " => Method::POST,
        b"PUT " => Method::PUT,
        b"HEAD " => Method::HEAD,
        b"DELETE " => Method::DELETE,
        b"PATCH " => Method::PATCH,
        b"OPTIONS " => Method::OPTIONS,
        _ => return Err(UNUSUAL),
    };
    Ok((method, end + 1))
}

/// Adds a request's field to its head; whether it is a plain one.
fn take(line: &Line<'_>, head: &mut RequestHead, told: &mut Told) -> bool {
    let is = |name: &[u8]| line.name.eq_ignore_ascii_case(name);
    match line.name.len() {
        4 if is(b"host") => {
            let host = std::str::from_utf8(line.value).ok().filter(|host| is_authority(host.as_bytes()));
            return match host {
                Some(host) if head.authority().is_none() => {
                    head.set_authority(host);
                    true
                }
                _ => false,
            };
        }
        6 if is(b"expect") => return false,
        7 if is(b"upgrade") => return false,
        10 if is(b"connection") => return told.connection(line.value),
        14 if is(b"content-length") => {
            let length = content_length(line.value);
            if length.is_none() || told.length.is_some() {
                return false;
            }
            told.length = length;
        }
        14 if is(b"http2-settings") => return false,
        17 if is(b"transfer-encoding") => {
            let first = !told.chunked;
            told.chunked = true;
            return first && line.value.eq_ignore_ascii_case(b"chunked");
        }
        _ => {}
    }
    head.fields.push(line.name, line.value);
    true
}

fn response(bytes: &[u8], method: &Method) -> Result<Response, Stop> {
    const STATUS: Refused = "a malformed status line";
    let at = expect(bytes, 0, b"HTTP/1.", STATUS)?;
    let http_10 = match bytes.get(at) {
        Some(b'1') => false,
        Some(b'0') => true,
        Some(_) => return Err(Stop::Refused("an unknown version of HTTP")),
        None => return Err(Stop::Incomplete),
    };
    let at = expect(bytes, at + 1, b" ", STATUS)?;
    let code = bytes.get(at..at + 3).ok_or(Stop::Incomplete)?;
    let status = StatusCode::from_bytes(code).map_err(|_| Stop::Refused("an invalid status"))?;
    let end = match bytes.get(at + 3) {
        // The phrase may be empty, and many leave out the blank before it.
        Some(b' ') => end_of_value(bytes, at + 4, true),
        _ => at + 3,
    };
    let mut at = expect(bytes, end, b"\r\n", STATUS)?;
    let mut head = ResponseHead::new(status);
    head.fields = Fields::with_capacity(bytes.len().min(USUAL_HEAD));
    let mut told = Told::default();
    let mut count = 0;
    while let Some(line) = field(bytes, at, true)? {
        at = line.next;
        count += 1;
        if count > limits::HEADERS {
            return Err(Stop::Refused("too many fields"));
        }
        take_response(&line, &mut head, &mut told)?;
    }
    if told.chunked && (http_10 || told.length.is_some()) {
        return Err(Stop::Refused("an ambiguous length"));
    }
    let framing = framing(status, method, &told);
    let close = told.close || (http_10 && !told.keep_alive) || framing == Framing::Close;
    Ok(Response { head, framing, close, length: at + 2 })
}

fn take_response(line: &Line<'_>, head: &mut ResponseHead, told: &mut Told) -> Result<(), Stop> {
    let is = |name: &[u8]| line.name.eq_ignore_ascii_case(name);
    match line.name.len() {
        10 if is(b"connection") && told.connection(line.value) => return Ok(()),
        14 if is(b"content-length") => {
            let length = content_length(unpadded(line.value)).ok_or(Stop::Refused("an invalid Content-Length"))?;
            match told.length.replace(length) {
                None => {}
                // RFC 9110 8.6: the same again may be taken as one.
                Some(told) if told == length => return Ok(()),
                Some(_) => return Err(Stop::Refused("two lengths")),
            }
        }
        17 if is(b"transfer-encoding") => {
            if told.chunked || !line.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Stop::Refused("the response has a transfer coding other than chunked"));
            }
            told.chunked = true;
            return Ok(());
        }
        _ => {}
    }
    head.fields.push(line.name, line.value);
    Ok(())
}

/// RFC 9112 6.3.
fn framing(status: StatusCode, method: &Method, told: &Told) -> Framing {
    if respond::has_no_body(status, method) {
        Framing::Length(0)
    } else if told.chunked {
        Framing::Chunked
    } else {
        told.length.map_or(Framing::Close, Framing::Length)
    }
}

#[cfg(test)]
mod tests;
