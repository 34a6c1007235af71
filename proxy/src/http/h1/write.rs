//! What is written: heads, bodies in their framing, as much in one write as is ready.

use std::{
    io::{self, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Method, StatusCode};
use tokio::io::AsyncWrite;

use super::{Outgoing, buffer, parse};
use crate::http::{
    body::{BodyError, Frame},
    head::{Fields, Name, RequestHead, ResponseHead},
    respond,
};

/// Data of fewer bytes is copied behind what is written with it.
const COPIED: usize = 16 * 1024;
/// Parts taken of a body that is not written.
const UNWRITTEN: usize = 16;
/// Bytes that are put together for one write, about.
const TOGETHER: usize = 64 * 1024;

/// How the body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// There is none, whatever the body's source says.
    None,
    /// So many bytes are left.
    Length(u64),
    Chunked,
}

/// How far the body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    Complete,
    /// It may have more, once this is written.
    Full,
    /// It has no more for now.
    Waiting,
}

/// Bytes on their way to the peer.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Of `bytes`, so many are written.
    written: usize,
    /// Follows `bytes`.
    large: Bytes,
    /// A chunk's end follows `large`.
    chunk_end: bool,
    /// Something was written that the stream may still hold.
    unflushed: bool,
}

impl Output {
    /// Adds a response's head. `close`: the connection ends with this response.
    pub(super) fn response(&mut self, method: &Method, head: &ResponseHead, body: &impl Outgoing, close: bool) -> Plan {
        let bytes = self.begin();
        put_status(bytes, head.status);
        let bare = head.status.is_informational() || head.status == StatusCode::NO_CONTENT;
        let plan = if respond::has_no_body(head.status, method) {
            let length = head.fields.only(Name::ContentLength).filter(|_| !bare);
            put_fields(bytes, &head.fields, |name| {
                name != Name::Connection && (name != Name::ContentLength || length.is_some())
            });
            Plan::None
        } else {
            put_framed(bytes, &head.fields, body, true, |name| name != Name::Connection)
        };
        if close {
            bytes.extend_from_slice(b"connection: close\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        plan
    }

    /// Adds the head of an informational response, which the final one's follows.
    pub(super) fn informational(&mut self, head: &ResponseHead) {
        let bytes = self.begin();
        put_status(bytes, head.status);
        put_fields(bytes, &head.fields, |_| true);
        bytes.extend_from_slice(b"\r\n");
    }

    /// Adds a request's head.
    pub(super) fn request(&mut self, head: &RequestHead, body: &impl Outgoing) -> Plan {
        let bytes = self.begin();
        bytes.extend_from_slice(head.method.as_str().as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(head.target().as_bytes());
        bytes.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        bytes.extend_from_slice(head.authority().unwrap_or_default().as_bytes());
        bytes.extend_from_slice(b"\r\n");
        // RFC 9110 8.6: methods that are expected to have content say that there is none.
        let expected = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        let plan = put_framed(bytes, &head.fields, body, expected, |_| true);
        if head.fields.has(Name::Te) {
            // RFC 9110 10.1.4: TE is for this hop.
            bytes.extend_from_slice(b"connection: te\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        plan
    }

    fn begin(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = buffer::take_spare();
        }
        &mut self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.large.is_empty()
    }

    /// Whether there is something that the stream has not taken, or may still hold.
    pub(super) fn is_underway(&self) -> bool {
        self.unflushed || !self.is_empty()
    }

    /// Adds what the body has ready, up to a limit.
    ///
    /// # Errors
    /// The body broke off, or is not as long as was said: the connection has to end after what there is.
    pub(super) fn fill(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut impl Outgoing,
        plan: &mut Plan,
    ) -> Result<Filled, BodyError> {
        if *plan == Plan::None {
            // What is not written may all the same have something to do at its end.
            for _ in 0..UNWRITTEN {
                if !matches!(body.poll_frame(cx), Poll::Ready(Some(Ok(_)))) {
                    break;
                }
            }
            return Ok(Filled::Complete);
        }
        while self.large.is_empty() && self.bytes.len() < TOGETHER {
            let Poll::Ready(frame) = body.poll_frame(cx) else { return Ok(Filled::Waiting) };
            match frame.transpose()? {
                Some(Frame::Data(data)) => self.data(data, plan)?,
                Some(Frame::Trailers(trailers)) => {
                    self.finish(*plan, &trailers)?;
                    return Ok(Filled::Complete);
                }
                None => {
                    self.finish(*plan, &Fields::new())?;
                    return Ok(Filled::Complete);
                }
            }
        }
        Ok(Filled::Full)
    }

    fn data(&mut self, data: Bytes, plan: &mut Plan) -> Result<(), BodyError> {
        if data.is_empty() {
            return Ok(());
        }
        let bytes = self.begin();
        match plan {
            Plan::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or("the body is longer than was said")?;
            }
            Plan::Chunked => {
                let _ = write!(bytes, "{:x}\r\n", data.len());
            }
            Plan::None => return Ok(()),
        }
        let chunked = *plan == Plan::Chunked;
        if data.len() <= COPIED {
            bytes.extend_from_slice(&data);
            if chunked {
                bytes.extend_from_slice(b"\r\n");
            }
        } else {
            self.large = data;
            self.chunk_end = chunked;
        }
        Ok(())
    }

    fn finish(&mut self, plan: Plan, trailers: &Fields) -> Result<(), BodyError> {
        match plan {
            Plan::Length(1..) => return Err("the body is shorter than was said".into()),
            Plan::Chunked => {
                let bytes = self.begin();
                bytes.extend_from_slice(b"0\r\n");
                put_fields(bytes, trailers, |_| true);
                bytes.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes what there is. Ready: all of it has left, so that the buffers are free. `wrote` hears of every write.
    pub(super) fn poll_write<S: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        mut wrote: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let bytes = self.bytes.get(self.written..).unwrap_or_default();
            let polled = if self.large.is_empty() {
                Pin::new(&mut *stream).poll_write(cx, bytes)
            } else if bytes.is_empty() {
                Pin::new(&mut *stream).poll_write(cx, &self.large)
            } else if stream.is_write_vectored() {
                Pin::new(&mut *stream).poll_write_vectored(cx, &[IoSlice::new(bytes), IoSlice::new(&self.large)])
            } else {
                Pin::new(&mut *stream).poll_write(cx, bytes)
            };
            let count = ready!(polled)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(count);
            wrote(count);
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, count: usize) {
        let small = count.min(self.bytes.len() - self.written);
        self.written += small;
        self.large.advance((count - small).min(self.large.len()));
        if self.written < self.bytes.len() {
            return;
        }
        self.bytes.clear();
        self.written = 0;
        if !self.large.is_empty() {
            return;
        }
        self.large = Bytes::new();
        if self.chunk_end {
            self.chunk_end = false;
            self.bytes.extend_from_slice(b"\r\n");
        } else {
            buffer::give_back(std::mem::take(&mut self.bytes));
        }
    }
}

fn put_status(bytes: &mut Vec<u8>, status: StatusCode) {
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    bytes.extend_from_slice(b"\r\n");
}

/// Writes the fields that `keep` holds for. How the body is delimited is for this codec to say.
fn put_fields(bytes: &mut Vec<u8>, fields: &Fields, keep: impl Fn(Name) -> bool) {
    for (known, name, value) in fields.iter_known() {
        if known != Name::TransferEncoding && keep(known) {
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
    }
}

/// Writes the fields that `keep` holds for, and the body's framing: the length that is stated, else the one that is known,
/// else chunks. `zero`: a body that is empty is said to be.
fn put_framed(
    bytes: &mut Vec<u8>,
    fields: &Fields,
    body: &impl Outgoing,
    zero: bool,
    keep: impl Fn(Name) -> bool,
) -> Plan {
    let stated = fields.only(Name::ContentLength).and_then(parse::content_length);
    put_fields(bytes, fields, |name| keep(name) && (name != Name::ContentLength || stated.is_some()));
    if let Some(length) = stated {
        return Plan::Length(length);
    }
    match body.exact_length().or_else(|| body.is_end().then_some(0)) {
        Some(0) if !zero => Plan::None,
        Some(length) => {
            let _ = write!(bytes, "content-length: {length}\r\n");
            Plan::Length(length)
        }
        None => {
            bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Plan::Chunked
        }
    }
}
