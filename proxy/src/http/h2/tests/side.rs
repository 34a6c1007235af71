//! One side of a connection without I/O, whose peer is the test.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use http::{Method, Version};

use crate::http::{
    h2::{
        Code, Frame, RecvStream, SendStream, Settings, StreamError,
        driver::Link,
        error::Fault,
        frame::{self, ACK, END_HEADERS},
        intake::{Arrived, Intake},
        state::{Role, State},
        stream::halves,
    },
    head::RequestHead,
};

/// One side of a connection; the test plays the other.
pub(super) struct Side {
    pub(super) link: Link,
    intake: Intake,
}

pub(super) fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::frame(&mut out, kind, flags, stream, payload);
    out
}

/// Literals, not indexed.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            match text.len() {
                length @ 0..127 => out.push(length as u8),
                length => {
                    let mut rest = length - 127;
                    out.push(127);
                    while rest >= 128 {
                        out.push(rest as u8 | 0x80);
                        rest >>= 7;
                    }
                    out.push(rest as u8);
                }
            }
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

pub(super) const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "shop")];

pub(super) fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    block(&[&GET, more].concat())
}

impl Side {
    pub(super) fn new(role: Role, settings: Settings) -> Self {
        let link = Rc::new(RefCell::new(State::new(role, settings)));
        let intake = Intake::new(&link.borrow());
        let mut side = Self { link, intake };
        side.sent();
        side
    }

    /// A server whose client has said hello.
    pub(super) fn server() -> Self {
        let mut side = Self::new(Role::Server, Settings::new());
        side.feed(frame::PREFACE).unwrap();
        side.feed(&framed(frame::SETTINGS, 0, 0, &[])).unwrap();
        assert_eq!(side.sent(), [(frame::SETTINGS, ACK, 0, vec![])]);
        side
    }

    pub(super) fn client() -> Self {
        let mut side = Self::new(Role::Client, Settings::new());
        side.feed(&framed(frame::SETTINGS, 0, 0, &[])).unwrap();
        side.sent();
        side
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.intake.feed(&mut self.link.borrow_mut(), bytes)
    }

    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Fault> {
        self.feed(&framed(kind, flags, stream, payload))
    }

    /// The code that the frame ends the connection with.
    pub(super) fn fault(mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Code {
        self.frame(kind, flags, stream, payload).unwrap_err().code
    }

    /// What was sent since.
    pub(super) fn sent(&mut self) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut state = self.link.borrow_mut();
        let bytes = state.output.take();
        state.output.wrote(bytes.len());
        let mut rest = bytes.strip_prefix(frame::PREFACE).unwrap_or(&bytes);
        let mut all = Vec::new();
        while let [a, b, c, kind, flags, s0, s1, s2, s3, more @ ..] = rest {
            let (payload, after) = more.split_at(u32::from_be_bytes([0, *a, *b, *c]) as usize);
            all.push((*kind, *flags, u32::from_be_bytes([*s0, *s1, *s2, *s3]), payload.to_vec()));
            rest = after;
        }
        all
    }

    pub(super) fn resets(&mut self) -> Vec<(u32, Code)> {
        let of = |payload: &[u8]| Code(u32::from_be_bytes(payload.try_into().unwrap()));
        let resets = self.sent().into_iter().filter(|(kind, ..)| *kind == frame::RST_STREAM);
        resets.map(|(_, _, stream, payload)| (stream, of(&payload))).collect()
    }

    /// The requests that came.
    pub(super) fn arrived(&mut self) -> Vec<(Arrived, SendStream, RecvStream)> {
        let all: Vec<_> = self.intake.arrived.drain(..).collect();
        let with_halves = |arrived: Arrived| {
            let (send, receive) = halves(&self.link, arrived.key);
            (arrived, send, receive)
        };
        all.into_iter().map(with_halves).collect()
    }

    /// What could be read of requests that were reset.
    pub(super) fn malformed(&mut self) -> Vec<String> {
        self.intake.malformed.drain(..).map(|(head, _)| format!("{} {}", head.method, head.target())).collect()
    }

    /// A request with a body to come, on stream 1.
    pub(super) fn open(&mut self) -> (SendStream, RecvStream) {
        self.frame(frame::HEADERS, END_HEADERS, 1, &get_with(&[])).unwrap();
        let (_, send, receive) = self.arrived().pop().unwrap();
        (send, receive)
    }

    /// The client's role: a request on stream 1.
    pub(super) fn ask(&mut self, method: Method, end: bool) -> (SendStream, RecvStream) {
        let mut state = self.link.borrow_mut();
        let head = RequestHead::new(Version::HTTP_2, method, "/");
        let id = state.next_id;
        state.next_id += 2;
        let key = state.add(id);
        state.send_block(id, end, |encoder, out| encoder.request(&head, out));
        let stream = state.stream(key).unwrap();
        stream.receive.bodiless = head.method == Method::HEAD;
        stream.send.ended = end;
        drop(state);
        halves(&self.link, key)
    }
}

pub(super) fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

pub(super) fn body(receive: &mut RecvStream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Poll::Ready(Some(frame)) = receive.poll_frame(&mut cx()) {
        match frame? {
            Frame::Data(bytes) => all.extend_from_slice(&bytes),
            Frame::Trailers(_) => {}
        }
    }
    Ok(all)
}

pub(super) fn capacity(send: &mut SendStream) -> usize {
    match send.poll_capacity(&mut cx()) {
        Poll::Ready(capacity) => capacity.unwrap(),
        Poll::Pending => 0,
    }
}
