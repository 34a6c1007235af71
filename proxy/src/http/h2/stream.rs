//! A stream's two halves, as those who send and receive on it hold them.

use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::StatusCode;

use super::{
    Frame,
    driver::Link,
    error::{Code, Kind, StreamError},
    slot::Key,
    state::{State, set_waker},
};
use crate::http::head::{Fields, ResponseHead};

/// The half that receives: a request's body, or the response with its body. Dropped before the end, it ends what is of no
/// use without it: a client's stream (CANCEL); on the server's side what still comes is dropped, and once the response is complete the
/// stream ends (NO_ERROR).
pub struct RecvStream {
    link: Link,
    key: Key,
}

/// The half that sends: a request's body, or the response. Dropped before the end, it resets the stream (CANCEL).
pub struct SendStream {
    link: Link,
    key: Key,
}

/// Hears of a stream's early end beside those who hold its halves, and no longer than they do.
pub struct ResetWatch {
    link: Link,
    key: Key,
}

impl ResetWatch {
    /// As [`SendStream::poll_reset`]. For the task that polls the halves, too. NO_ERROR is none: it only says that the rest is not
    /// needed (RFC 9113 8.1).
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut state = self.link.borrow_mut();
        let Some(stream) = state.stream(self.key) else { return Poll::Pending };
        match &stream.error {
            Some(error) if error.code != Code::NO_ERROR => Poll::Ready(error.clone()),
            Some(_) => Poll::Pending,
            None => {
                set_waker(&mut stream.send.waker, cx.waker());
                Poll::Pending
            }
        }
    }
}

/// Both halves of a stream just added.
pub(super) fn halves(link: &Link, key: Key) -> (SendStream, RecvStream) {
    (SendStream { link: link.clone(), key }, RecvStream { link: link.clone(), key })
}

impl RecvStream {
    /// Client: the next head of the response. Informational ones (1xx) may come before the final one, up to
    /// [`limits::INFORMATIONAL`](crate::config::limits::INFORMATIONAL); those beyond are dropped.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, StreamError>> {
        let mut state = self.link.borrow_mut();
        let Some(stream) = state.stream(self.key) else { return Poll::Ready(Err(gone())) };
        let informational = stream.receive.informational.as_mut().and_then(|heads| heads.pop());
        if let Some(head) = informational.or_else(|| stream.receive.head.take()) {
            return Poll::Ready(Ok(head));
        }
        if let Some(error) = &stream.error {
            stream.receive.told = true;
            return Poll::Ready(Err(error.clone()));
        }
        set_waker(&mut stream.receive.waker, cx.waker());
        Poll::Pending
    }

    /// The body's next bytes, or its trailers; None at its end. What was taken the peer may send anew.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let mut state = self.link.borrow_mut();
        let Some(stream) = state.stream(self.key) else { return Poll::Ready(None) };
        let receive = &mut stream.receive;
        if !receive.data.is_empty() {
            let data = std::mem::take(&mut receive.data);
            state.take_of(self.key, data.len());
            return Poll::Ready(Some(Ok(Frame::Data(data.into()))));
        }
        if let Some(trailers) = receive.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
        }
        if receive.ended {
            return Poll::Ready(None);
        }
        if let Some(error) = &stream.error {
            let told = std::mem::replace(&mut receive.told, true);
            return Poll::Ready((!told).then(|| Err(error.clone())));
        }
        set_waker(&mut receive.waker, cx.waker());
        Poll::Pending
    }

    /// Whether nothing more will come, and nothing is left to take.
    pub fn is_end(&self) -> bool {
        let mut state = self.link.borrow_mut();
        state.stream(self.key).is_none_or(|stream| {
            let receive = &stream.receive;
            receive.ended && receive.data.is_empty() && receive.trailers.is_none()
        })
    }

    /// The whole body's length, if it is known: as content-length states it (which is held to it), or because it has ended
    /// without any of it taken.
    pub fn exact_length(&self) -> Option<u64> {
        let mut state = self.link.borrow_mut();
        let receive = &state.stream(self.key)?.receive;
        match receive.length {
            _ if receive.bodiless => Some(0),
            // Trailers go on only in a coding that has a place for them.
            None if receive.ended && receive.trailers.is_none() => Some(receive.received),
            length => length,
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.link.borrow_mut().drop_receiver(self.key);
    }
}

impl SendStream {
    /// How many bytes may be sent now. Pending while the peer takes none, or too much waits to be written; then another stream may
    /// come first.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        let mut state = self.link.borrow_mut();
        if let Some(error) = cannot_send(&mut state, self.key) {
            return Poll::Ready(Err(error));
        }
        match state.capacity(self.key, cx.waker()) {
            0 => Poll::Pending,
            bytes => Poll::Ready(Ok(bytes)),
        }
    }

    /// Sends as much of `bytes` as may be sent, and with the last of it `end`. How much that was.
    pub fn send_data(&mut self, bytes: &[u8], end: bool) -> usize {
        self.link.borrow_mut().send_data(self.key, bytes, end)
    }

    /// Sends all of `bytes`, as far as that is possible now, and with the last of it `end`. Ready: all is sent.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes, end: bool) -> Poll<Result<(), StreamError>> {
        let mut state = self.link.borrow_mut();
        loop {
            if let Some(error) = cannot_send(&mut state, self.key) {
                return Poll::Ready(Err(error));
            }
            let mut most = 0;
            if !bytes.is_empty() {
                most = state.capacity(self.key, cx.waker());
                if most == 0 {
                    return Poll::Pending;
                }
            }
            let piece = bytes.get(..most).unwrap_or(bytes);
            let sent = state.send_data(self.key, piece, end && piece.len() == bytes.len());
            bytes.advance(sent);
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Ends the body with trailers.
    pub fn send_trailers(&mut self, trailers: &Fields) {
        let mut state = self.link.borrow_mut();
        if let Some(id) = sendable(&mut state, self.key) {
            state.send_block(id, true, |encoder, out| encoder.trailers(trailers, out));
            state.end_send(self.key);
        }
    }

    /// Server: the final response's head. `end`: no body follows.
    pub fn send_response(&mut self, head: &ResponseHead, end: bool) {
        let mut state = self.link.borrow_mut();
        if let Some(id) = sendable(&mut state, self.key) {
            state.send_block(id, end, |encoder, out| encoder.response(head, out));
            if let Some(stream) = state.stream(self.key) {
                stream.send.begun = true;
            }
            if end {
                state.end_send(self.key);
            }
        }
    }

    /// Server: an informational response (1xx), which the final one follows. Dropped if much waits to be written already,
    /// unless the client waits for it.
    pub fn send_informational(&mut self, head: &ResponseHead) {
        let mut state = self.link.borrow_mut();
        if let Some(id) = sendable(&mut state, self.key)
            && (head.status == StatusCode::CONTINUE || !state.is_crowded())
        {
            state.send_block(id, false, |encoder, out| encoder.response(head, out));
        }
    }

    /// Ends the stream early.
    pub fn reset(&mut self, code: Code) {
        self.link.borrow_mut().cancel(self.key, code);
    }

    /// Waits for the stream to end early, whoever ends it. Shares its waker with [`Self::poll_capacity`]: one task polls both.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut state = self.link.borrow_mut();
        let Some(stream) = state.stream(self.key) else { return Poll::Ready(gone()) };
        if let Some(error) = &stream.error {
            return Poll::Ready(error.clone());
        }
        set_waker(&mut stream.send.waker, cx.waker());
        Poll::Pending
    }

    /// See [`ResetWatch`].
    pub fn watch(&self) -> ResetWatch {
        ResetWatch { link: self.link.clone(), key: self.key }
    }

    /// Whether the stream has ended early.
    pub fn is_reset(&self) -> bool {
        self.link.borrow_mut().stream(self.key).is_none_or(|stream| stream.error.is_some())
    }

    /// Whether the end was sent.
    pub fn is_end(&self) -> bool {
        self.link.borrow_mut().stream(self.key).is_none_or(|stream| stream.send.ended)
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.link.borrow_mut().drop_sender(self.key);
    }
}

/// The stream's identifier, if it may still be sent on.
fn sendable(state: &mut State, key: Key) -> Option<u32> {
    let stream = state.stream(key)?;
    (stream.open && !stream.send.ended && stream.error.is_none()).then_some(stream.id)
}

fn cannot_send(state: &mut State, key: Key) -> Option<StreamError> {
    let Some(stream) = state.stream(key) else { return Some(gone()) };
    if let Some(error) = &stream.error {
        return Some(error.clone());
    }
    stream.send.ended.then(|| StreamError::new(Kind::Cancelled, Code::NO_ERROR, "the end was sent already"))
}

/// What cannot be: a handle keeps its stream's place.
fn gone() -> StreamError {
    StreamError::new(Kind::Cancelled, Code::INTERNAL_ERROR, "no such stream")
}
