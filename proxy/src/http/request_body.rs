//! A client's request body, kept up to a limit so that another try can send it again.
//!
//! One [`RequestBody`] holds the client's stream; each try reads it through a [`Reader`] of its own, from
//! the start. Bytes are kept (shared, not copied) until they exceed REPLAY_BYTES or an answer was
//! accepted; from then on they only pass through, and no further try is possible.

use std::{
    cell::{Cell, RefCell},
    future::Future as _,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Sleep;

use super::{
    Body,
    body::{BodyError, Frame},
    h2::StreamError,
    head::{Fields, ResponseHead},
    informational::Heads,
    watch::Watch,
};
use crate::config::limits;

/// What the tries of one request share.
pub(crate) struct RequestBody {
    /// None: given up.
    stream: RefCell<Option<Body>>,
    /// The reader that waits for it.
    waiting: RefCell<Option<Waker>>,
    watch: Rc<Watch>,
    kept: RefCell<Kept>,
    /// Length of the whole body if the client stated it.
    exact: Option<u64>,
    /// Bytes received from the client.
    received: Cell<u64>,
    /// The client has not sent what was last asked for.
    awaited: Cell<bool>,
    /// The client broke its own request: no endpoint is to blame, and nothing can be tried again.
    failed: Cell<bool>,
    /// Bytes that it may have.
    most: Cell<u64>,
    /// Its exchange lasts, and keeps time for both directions.
    lasts: Cell<bool>,
    /// The try whose reader is current; readers of earlier ones get nothing more.
    attempt: Cell<u32>,
}

/// What can be sent again.
#[derive(Default)]
struct Kept {
    frames: Vec<Bytes>,
    bytes: usize,
    trailers: Option<Box<Fields>>,
    /// Everything received so far is here.
    complete: bool,
    /// Nothing more will come.
    ended: bool,
}

impl RequestBody {
    /// Takes over the client's stream.
    pub(crate) fn new(stream: Body, watch: &Rc<Watch>) -> Rc<Self> {
        let exact = stream.exact_length();
        // A body that is known to be too large is not kept at all.
        let keep = exact.is_none_or(|length| length <= limits::REPLAY_BYTES as u64);
        Rc::new(Self {
            stream: RefCell::new(Some(stream)),
            waiting: RefCell::default(),
            watch: Rc::clone(watch),
            kept: RefCell::new(Kept { complete: keep, ..Kept::default() }),
            exact,
            received: Cell::new(0),
            awaited: Cell::new(false),
            failed: Cell::new(false),
            most: Cell::new(u64::MAX),
            lasts: Cell::new(true),
            attempt: Cell::new(0),
        })
    }

    /// A reader from the start, for the next try. None if what was received cannot be sent again.
    pub(crate) fn reader(self: &Rc<Self>, gate: Option<Arc<ContinueGate>>) -> Option<Reader> {
        if !self.replayable() {
            return None;
        }
        self.attempt.set(self.attempt.get().wrapping_add(1));
        Some(Reader {
            shared: Rc::clone(self),
            attempt: self.attempt.get(),
            next: 0,
            delivered: 0,
            done: false,
            gate,
            wait: None,
        })
    }

    /// Whether another try could send the whole body.
    pub(crate) fn replayable(&self) -> bool {
        !self.failed.get() && (self.received.get() == 0 || self.kept.borrow().complete)
    }

    /// The whole of it once more, beside the reader that there is; None: it is not all here, or too large.
    pub(crate) fn whole(&self) -> Option<Body> {
        let kept = self.kept.borrow();
        if self.failed.get() || !kept.complete || kept.trailers.is_some() {
            return None;
        }
        let ended = kept.ended || self.stream.borrow().as_ref().is_some_and(Body::is_end);
        ended.then(|| Body::full(kept.frames.concat()))
    }

    /// An answer was accepted: nothing will be sent again.
    pub(crate) fn settle(&self) {
        let mut kept = self.kept.borrow_mut();
        if kept.complete {
            kept.complete = false;
            // The reader may still have frames to deliver; it drops each once delivered.
        }
    }

    /// The exchange is over; what is left of the request may still be on its way.
    pub(crate) fn leave(&self) {
        self.lasts.set(false);
    }

    /// Nothing more is read for anybody: the exchange ended before its answer did.
    pub(crate) fn abandon(&self) {
        // Neither may be dropped or woken while it is borrowed.
        let stream = self.stream.borrow_mut().take();
        let waiting = self.waiting.borrow_mut().take();
        drop(stream);
        if let Some(reader) = waiting {
            reader.wake();
        }
    }

    /// The client's next frame.
    fn poll_stream(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut stream = self.stream.borrow_mut();
        let Some(body) = stream.as_mut() else {
            return Poll::Ready(Some(Err(StreamError::cancelled().into())));
        };
        let polled = body.poll_frame(cx);
        self.awaited.set(polled.is_pending());
        if polled.is_pending() {
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
                *waiting = Some(cx.waker().clone());
            }
        }
        polled
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Whether it is the client that is waited for.
    pub(crate) fn awaited(&self) -> bool {
        self.awaited.get()
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }

    /// It may have so many bytes, and is broken off beyond them.
    pub(crate) fn limit(&self, most: u64) {
        self.most.set(most);
    }

    /// Whether more came than it may have: how many that is.
    pub(crate) fn too_large(&self) -> Option<u64> {
        Some(self.most.get()).filter(|most| self.received.get() > *most)
    }
}

/// One try's view of the body.
pub(crate) struct Reader {
    shared: Rc<RequestBody>,
    attempt: u32,
    /// Index of the next kept frame.
    next: usize,
    delivered: u64,
    done: bool,
    gate: Option<Arc<ContinueGate>>,
    /// Since the gate was first waited at.
    wait: Option<Pin<Box<Sleep>>>,
}

impl Reader {
    /// Whether an exchange that lasts keeps its time.
    pub(super) fn in_exchange(&self) -> bool {
        self.shared.lasts.get()
    }

    /// The longest time without a byte moved, once it is on its own.
    pub(super) fn idle(&self) -> Duration {
        self.shared.watch.usual_idle()
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Some(gate) = &self.gate {
            if gate.poll_open(cx).is_pending() {
                // A server that never says so must not hold the request for ever (RFC 9110 10.1.1).
                let wait = self.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::CONTINUE_WAIT)));
                std::task::ready!(wait.as_mut().poll(cx));
                // Its client may wait, too.
                gate.hear(ResponseHead::new(StatusCode::CONTINUE));
            }
            self.gate = None;
            self.wait = None;
        }
        if self.done {
            return Poll::Ready(None);
        }
        if self.attempt != self.shared.attempt.get() {
            return Poll::Ready(Some(Err("another try has taken over the request".into())));
        }
        if let Some(frame) = self.kept_frame() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let polled = std::task::ready!(self.shared.poll_stream(cx));
        Poll::Ready(match polled {
            Some(Ok(frame)) => {
                self.keep(&frame);
                if self.shared.too_large().is_some() {
                    self.shared.failed.set(true);
                    self.done = true;
                    return Poll::Ready(Some(Err("the request's body is larger than policy allows".into())));
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.shared.failed.set(true);
                self.done = true;
                Some(Err(error))
            }
            None => {
                self.done = true;
                self.shared.kept.borrow_mut().ended = true;
                None
            }
        })
    }

    /// The next frame that an earlier try has already received.
    fn kept_frame(&mut self) -> Option<Frame> {
        let mut kept = self.shared.kept.borrow_mut();
        if let Some(bytes) = kept.frames.get(self.next) {
            let bytes = bytes.clone();
            self.next += 1;
            self.delivered += bytes.len() as u64;
            return Some(Frame::Data(bytes));
        }
        if !kept.complete && !kept.frames.is_empty() {
            kept.frames = Vec::new();
            self.next = 0;
        }
        let trailers = kept.trailers.clone()?;
        self.done = true;
        Some(Frame::Trailers(trailers))
    }

    fn keep(&mut self, frame: &Frame) {
        let shared = &self.shared;
        let mut kept = shared.kept.borrow_mut();
        match frame {
            Frame::Data(data) => {
                self.delivered += data.len() as u64;
                shared.received.set(shared.received.get() + data.len() as u64);
                shared.watch.moved(data.len() as u64);
                if !kept.complete {
                    return;
                }
                kept.bytes += data.len();
                if kept.bytes > limits::REPLAY_BYTES {
                    *kept = Kept::default();
                    self.next = 0;
                } else {
                    kept.frames.push(data.clone());
                    self.next += 1;
                }
            }
            Frame::Trailers(trailers) => {
                self.done = true;
                kept.ended = true;
                if kept.complete {
                    kept.trailers = Some(trailers.clone());
                }
            }
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        if self.done {
            return true;
        }
        let kept = self.shared.kept.borrow();
        self.next >= kept.frames.len()
            && kept.trailers.is_none()
            && self.shared.stream.borrow().as_ref().is_some_and(Body::is_end)
    }

    pub(crate) fn exact_length(&self) -> Option<u64> {
        self.shared.exact.map(|exact| exact.saturating_sub(self.delivered))
    }
}

/// Holds a request body back until the server said `100 Continue` (RFC 9110 10.1.1), so that the
/// client hears it from the server and not from us. The server may be heard by another task, its connection's.
#[derive(Default)]
pub(crate) struct ContinueGate {
    open: AtomicBool,
    waker: Mutex<Option<Waker>>,
    heard: Mutex<Heard>,
}

/// Informational responses of the server, and who passes them on.
#[derive(Default)]
struct Heard {
    heads: Heads,
    waker: Option<Waker>,
}

impl ContinueGate {
    /// The server said so; or another informational response came.
    pub(crate) fn hear(&self, head: ResponseHead) {
        if head.status == StatusCode::CONTINUE {
            self.open.store(true, Ordering::Release);
            if let Some(waker) = self.waker.lock().take() {
                waker.wake();
            }
        }
        let mut heard = self.heard.lock();
        if heard.heads.push(head)
            && let Some(waker) = heard.waker.take()
        {
            drop(heard);
            waker.wake();
        }
    }

    /// Passes on what was heard; the task is woken when there is more.
    pub(crate) fn take_heard(&self, cx: &Context<'_>, mut tell: impl FnMut(ResponseHead)) {
        let mut heard = self.heard.lock();
        while let Some(head) = heard.heads.pop() {
            tell(head);
        }
        heard.waker = Some(cx.waker().clone());
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if self.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        *self.waker.lock() = Some(cx.waker().clone());
        if self.open.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}
