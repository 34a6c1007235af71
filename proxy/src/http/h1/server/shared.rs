//! What a client's connection shares with the reader of its request's body. The connection alone reads the stream: what the
//! reader wants is read when the connection is polled, which is in the same turn if the exchange itself reads the body.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};

use super::Next;
use crate::{
    config::limits,
    http::{
        body::{BodyError, Frame},
        h1::{Decoded, Decoder, Framing, Incoming, parse::Request},
    },
};

/// See the module.
#[derive(Default)]
pub(super) struct Shared {
    /// Read and not used.
    pub(super) bytes: BytesMut,
    /// The request's body; None: there is none.
    decoder: Option<Decoder>,
    /// Grows with each body, so that the reader of an earlier one takes nothing of a later.
    number: u64,
    /// The reader, waiting for bytes.
    pub(super) reader: Option<Waker>,
    /// The connection, while a body may be wanted.
    pub(super) connection: Option<Waker>,
    /// The reader was dropped before the body's end.
    pub(super) abandoned: bool,
    /// No more bytes will come, or they cannot be understood.
    pub(super) broken: bool,
}

/// Reads a request's body.
pub(in crate::http::h1) struct Reader {
    shared: Rc<RefCell<Shared>>,
    number: u64,
}

impl Reader {
    pub(in crate::http::h1) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        if shared.number != self.number {
            return Poll::Ready(None);
        }
        let Some(decoder) = &mut shared.decoder else { return Poll::Ready(None) };
        let polled = match decoder.decode(&mut shared.bytes) {
            Ok(Decoded::Data(data)) => Poll::Ready(Some(Ok(Frame::Data(data)))),
            Ok(Decoded::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::Trailers(Box::new(trailers))))),
            Ok(Decoded::End) => Poll::Ready(None),
            Ok(Decoded::More) if shared.broken => {
                Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())))
            }
            Ok(Decoded::More) => {
                if !shared.reader.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
                    shared.reader = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Err(malformed) => {
                shared.broken = true;
                Poll::Ready(Some(Err(malformed.into())))
            }
        };
        // The connection has to read on, or is waiting for the body's end. In its own turn it will see by itself.
        if (polled.is_pending() || shared.broken || shared.is_read())
            && let Some(connection) = &shared.connection
            && !connection.will_wake(cx.waker())
        {
            connection.wake_by_ref();
        }
        polled
    }

    pub(in crate::http::h1) fn is_end(&self) -> bool {
        let shared = self.shared.borrow();
        shared.number != self.number || shared.decoder.as_ref().is_none_or(Decoder::is_done)
    }

    pub(in crate::http::h1) fn exact_length(&self) -> Option<u64> {
        let shared = self.shared.borrow();
        if shared.number == self.number { shared.decoder.as_ref().and_then(Decoder::exact) } else { Some(0) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        if shared.number == self.number && !shared.is_read() {
            shared.abandoned = true;
            let connection = shared.connection.take();
            drop(shared);
            if let Some(connection) = connection {
                connection.wake();
            }
        }
    }
}

impl Shared {
    /// A new request's body. `whole`: all of it, if it was read with the head.
    pub(super) fn begin_body(&mut self, held: &Rc<RefCell<Self>>, framing: Framing, whole: Option<Bytes>) -> Incoming {
        self.abandoned = false;
        self.reader = None;
        self.decoder = None;
        self.number += 1;
        if let Some(whole) = whole {
            return Incoming::full(whole);
        }
        self.decoder = Some(Decoder::new(framing));
        Incoming::request(Reader { shared: Rc::clone(held), number: self.number })
    }

    /// A request that is refused: no more is read.
    pub(super) fn refuse(&mut self, held: &Rc<RefCell<Self>>, request: Request) -> Next {
        let body = self.begin_body(held, request.framing, Some(Bytes::new()));
        self.broken = true;
        Next::Request(request, body)
    }

    /// Whether the current request was read to its end.
    pub(super) fn is_read(&self) -> bool {
        self.decoder.as_ref().is_none_or(Decoder::is_done)
    }

    /// Whether nothing of what the client sends is read for now: nobody waits for more of the request, or so much came behind it.
    pub(super) fn is_left_unread(&self) -> bool {
        match self.is_read() || self.abandoned {
            true => self.bytes.len() >= limits::HTTP1_BUFFER,
            false => self.reader.is_none(),
        }
    }

    /// Skips what nobody will read and is there; whether that was all.
    pub(super) fn skip(&mut self) -> bool {
        let Some(decoder) = &mut self.decoder else { return true };
        loop {
            match decoder.decode(&mut self.bytes) {
                Ok(Decoded::End) => return true,
                Ok(Decoded::More) => return false,
                Ok(_) => {}
                Err(_) => {
                    self.broken = true;
                    return false;
                }
            }
        }
    }
}

/// The connection's hold on what it shares: when it is gone, no more bytes will come.
#[derive(Default)]
pub(super) struct Held(pub(super) Rc<RefCell<Shared>>);

impl Drop for Held {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.broken = true;
        shared.connection = None;
        let reader = shared.reader.take();
        drop(shared);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}
