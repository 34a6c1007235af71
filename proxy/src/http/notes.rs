//! What is written down of a request while it is decided, for operators who ask why it went as it did: for those that are
//! sampled, have a header that is asked for, or whose client's proxy asks; and for the rest from the first thing on that goes
//! wrong, before which only what the exchange holds anyway is known. A request of none of these kinds has no notes, and
//! pays for none.
//!
//! Nobody reads bodies, queries or headers out of them, but the headers that the mesh's settings name, or a RoutePolicy.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use leno_proto::v1::{CarriedRequest, Decision, Header};
use prost::Message as _;

use super::head::{Name, RequestHead};
use crate::{
    config::limits,
    reason::Reason,
    telemetry::{Direction, RequestRecord, kept::Cause},
};

/// By this header the client's proxy has the server's take notes, and either tells the other by which id they are found.
pub(crate) const HEADER: &[u8] = b"leno-request-id";

/// What requests are known by: the id of their trace, or one that was made.
pub(crate) type Id = [u8; 16];

/// Why notes are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Because {
    Sampled,
    Header,
    /// The client's proxy takes some, too.
    Asked,
    Failed,
}

impl Because {
    fn as_str(self, failed: bool) -> &'static str {
        match self {
            Self::Sampled => "sampled",
            Self::Header => "header",
            Self::Asked => "the client's proxy asks",
            Self::Failed if failed => "failed",
            Self::Failed => "a try failed",
        }
    }
}

/// One request's.
#[derive(Debug)]
pub(crate) struct Notes {
    because: Because,
    id: Id,
    /// The id is that of a trace.
    traced: bool,
    started: Instant,
    path: String,
    authority: String,
    has_head: bool,
    headers: Vec<Header>,
    decisions: Vec<Decision>,
    bytes: usize,
    left_out: u32,
    /// The latest answer was the server's proxy's, which refuses the request for what it is.
    refused: bool,
}

impl Notes {
    /// `head`: None if it is gone.
    pub(crate) fn begin(
        because: Because,
        (id, traced): (Id, bool),
        started: Instant,
        head: Option<&RequestHead>,
        wanted: &[Box<str>],
    ) -> Box<Self> {
        let mut notes = Self {
            because,
            id,
            traced,
            started,
            path: head.map(|head| cut(head.path())).unwrap_or_default(),
            authority: head.and_then(RequestHead::authority).map(cut).unwrap_or_default(),
            has_head: head.is_some(),
            headers: Vec::new(),
            decisions: Vec::new(),
            bytes: 0,
            left_out: 0,
            refused: false,
        };
        head.into_iter().for_each(|head| notes.keep_headers(head, wanted));
        Box::new(notes)
    }

    fn keep_headers(&mut self, head: &RequestHead, names: &[Box<str>]) {
        for name in names {
            if self.headers.iter().any(|kept| *kept.name == **name) {
                continue;
            }
            let value = head.fields.values(name.as_bytes()).next();
            self.headers.extend(value.map(|value| {
                let value = String::from_utf8_lossy(value);
                Header { name: name.to_string(), value: cut(&value) }
            }));
        }
    }

    /// It is to be found by one of these headers, too.
    pub(crate) fn wanted_by(&mut self, head: &RequestHead, names: &[Box<str>]) {
        self.keep_headers(head, names);
        if self.because != Because::Failed {
            self.because = Because::Header;
        }
    }

    pub(crate) fn id(&self) -> Id {
        self.id
    }

    pub(crate) fn began_with_failure(&self) -> bool {
        self.because == Because::Failed
    }

    /// The other proxy knows the request by this id.
    pub(crate) fn known_as(&mut self, id: Id) {
        if !self.traced {
            self.id = id;
        }
    }

    pub(crate) fn is_by_header(&self) -> bool {
        self.because == Because::Header
    }

    pub(crate) fn answered(&mut self, refused: bool) {
        self.refused = refused;
    }

    pub(crate) fn was_refused(&self) -> bool {
        self.refused
    }

    /// What its client asked for, if the request was rewritten since.
    pub(crate) fn asked_for(&mut self, path: &str, authority: Option<&str>) {
        self.path = cut(path);
        self.authority = authority.map(cut).unwrap_or_default();
    }

    /// `origin`: the object or rule that decided; empty: none.
    pub(crate) fn add(&mut self, subject: &str, applies: bool, text: String, origin: String, now: Instant) {
        let after_us = now.saturating_duration_since(self.started).as_micros().try_into().unwrap_or(u64::MAX);
        let subject = subject.to_owned();
        let text = cut(&text);
        let decision = Decision { subject, text, applies, origin, after_us, ..Decision::default() };
        let bytes = decision.encoded_len();
        if self.bytes + bytes > limits::KEPT_REQUEST_BYTES {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.bytes += bytes;
        self.decisions.push(decision);
    }

    /// Before all that was added, and no later than that.
    pub(crate) fn add_first(&mut self, subject: &str, text: String, now: Instant) {
        let (held, first) = (self.decisions.len(), self.decisions.first().map(|first| first.after_us));
        self.add(subject, true, text, String::new(), now);
        if let (Some(added), Some(first)) = (self.decisions.get_mut(held), first) {
            added.after_us = first;
            self.decisions.rotate_right(1);
        }
    }

    /// The request ended.
    pub(crate) fn end(self, record: &RequestRecord, failed: bool, now: SystemTime) -> CarriedRequest {
        let began = now.checked_sub(record.duration).unwrap_or(now).duration_since(UNIX_EPOCH).unwrap_or_default();
        let trace = record.trace.as_ref();
        CarriedRequest {
            id: self.id.to_vec(),
            traced: self.traced,
            span: trace.map(|trace| trace.span.to_vec()).unwrap_or_default(),
            parent: trace.and_then(|trace| trace.parent).map(Vec::from).unwrap_or_default(),
            inbound: record.direction == Direction::Inbound,
            began_us: began.as_micros().try_into().unwrap_or(i64::MAX),
            duration_us: record.duration.as_micros().try_into().unwrap_or(u64::MAX),
            method: if self.has_head { record.method.to_string() } else { String::new() },
            path: self.path,
            authority: self.authority,
            status: record.status.map_or(0, |status| status.as_u16().into()),
            grpc_status: record.grpc_status.map(u32::from),
            reason: record.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            peer: record.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
            failed,
            kept_because: self.because.as_str(failed).to_owned(),
            headers: self.headers,
            decisions: self.decisions,
            left_out: self.left_out,
            connection: false,
        }
    }
}

/// Whether the request failed: the proxy's own doing, or a server's error. An answer that policy spells out in place of any
/// backend is as it is to be, whatever its status.
pub(crate) fn failed(record: &RequestRecord) -> bool {
    match record.reason {
        Some(reason) => reason != Reason::DirectResponse,
        None => {
            record.status.is_some_and(|status| status.is_server_error()) || record.grpc_status.is_some_and(is_fault)
        }
    }
}

/// For what a request that failed is kept. Clients that are refused for what they sent, or leave, can be many, and are not to
/// drive out what is broken.
pub(crate) fn cause(reason: Option<Reason>) -> Cause {
    match reason {
        Some(
            Reason::BadRequest
            | Reason::RateLimit
            | Reason::Refused
            | Reason::ClientLeft
            | Reason::HeadTooLarge
            | Reason::BodyTooLarge
            | Reason::Cors
            | Reason::Fault,
        ) => Cause::Refusal,
        _ => Cause::Failure,
    }
}

/// gRPC's codes for what is the server's fault: UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE,
/// DATA_LOSS.
pub(crate) fn is_fault(grpc_status: u16) -> bool {
    matches!(grpc_status, 2 | 4 | 8 | 13 | 14 | 15)
}

/// The id that the other proxy wrote into a head. Only mesh peers are asked: from others such headers were removed.
pub(crate) fn read_id(fields: &super::head::Fields) -> Option<Id> {
    if !fields.has(Name::LenoOther) {
        return None;
    }
    let mut values = fields.values(HEADER);
    let digits = |value: &&[u8]| value.len() == 32 && value.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(values.next().filter(digits)?).ok()?;
    let id = u128::from_str_radix(text, 16).ok().filter(|id| *id != 0)?;
    values.next().is_none().then(|| id.to_be_bytes())
}

/// As the header has it.
pub(crate) fn hex(id: Id) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

/// No longer than a text may be.
fn cut(text: &str) -> String {
    match text.char_indices().nth(limits::KEPT_TEXT_CHARS) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Version};

    use super::*;
    use crate::http::head::Fields;

    #[test]
    fn nothing_but_the_path_and_what_is_asked_for_is_kept() {
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/cart?card=4711");
        head.fields.push(b"authorization", b"secret");
        head.fields.push(b"x-order", b"7");
        let notes = Notes::begin(Because::Header, ([1; 16], false), Instant::now(), Some(&head), &["x-order".into()]);
        let text = format!("{notes:?}");
        assert!(text.contains("/cart") && text.contains("\"7\""), "{text}");
        assert!(!text.contains("4711") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn notes_are_bounded() {
        let start = Instant::now();
        let mut notes = Notes::begin(Because::Sampled, ([1; 16], true), start, None, &[]);
        for _ in 0..10_000 {
            notes.add("endpoint", true, "é".repeat(10 * limits::KEPT_TEXT_CHARS), String::new(), start);
        }
        assert!(notes.bytes <= limits::KEPT_REQUEST_BYTES && notes.left_out > 0);
        let longest = notes.decisions.iter().map(|decision| decision.text.chars().count()).max();
        assert_eq!(longest, Some(limits::KEPT_TEXT_CHARS + 1));
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = 0x00f0_0000_0000_0000_0000_0000_0000_0abc_u128.to_be_bytes();
        let mut fields = Fields::new();
        assert_eq!(read_id(&fields), None);
        fields.set_named(HEADER, hex(id).as_bytes());
        assert_eq!(read_id(&fields), Some(id));
        for wrong in ["", "0", "00000000000000000000000000000000", "+0f00000000000000000000000000abc", "é"] {
            fields.set_named(HEADER, wrong.as_bytes());
            assert_eq!(read_id(&fields), None, "{wrong}");
        }
    }
}
