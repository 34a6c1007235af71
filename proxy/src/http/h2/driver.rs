//! The one task that owns a connection's I/O: reads, has what came handled, and writes what all streams have queued since, at
//! once.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    error::{Code, Fault, H2Error},
    frame,
    intake::{Came, DRAIN_PING, Intake, LIVE_PING},
    output,
    state::{LAST_STREAM, Role, State, set_waker},
};
use crate::{alarm::Alarm, bell::Bell, config::limits};

/// Largest single read.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Reads before other tasks have their turn.
const READS_PER_TURN: usize = 8;
/// Answers (to PING, SETTINGS, what is malformed) that may wait to be written; beyond it, nothing more is read.
const ANSWERS_BYTES: usize = 16 * 1024;
/// Output of a server that may wait to be written; beyond it, nothing more is read. Bodies wait much earlier.
const BACKLOG_BYTES: usize = 1024 * 1024;
/// How long the last of the output, a GOAWAY mostly, may take to be written, and to be taken; and the last of the input to come
/// where nothing can be written.
const FAREWELL: Duration = Duration::from_secs(1);
/// What is still read of a peer that is being left: what it may have on its way by its window.
const LEFT_BYTES: usize = limits::H2_CONNECTION_WINDOW as usize;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

pub(super) type Link = Rc<RefCell<State>>;

pub(super) struct Driver<S> {
    io: S,
    link: Link,
    intake: Intake,
    /// Rings when more can be read: the task is mostly woken for output.
    readable: Bell,
    /// What is being written, and how far.
    writing: Vec<u8>,
    wrote: usize,
    unflushed: bool,
    timer: Option<Pin<Box<Alarm>>>,
    /// The timer is for a client that asks for nothing.
    resting: bool,
    /// A ping was sent because nothing came, and nothing has come since.
    pinged: bool,
    /// Since when the timer has found the peer amid the same frame or head, and how much it had ended before.
    amid: Option<(Instant, u64)>,
    draining: Draining,
    /// A client's: nothing can be written any more, and why. What the server said before that is still heard: answers, and
    /// which streams it never took.
    deaf: Option<io::Error>,
    /// The connection is over; what is left is to write the last of it.
    over: Option<Result<(), H2Error>>,
    /// Bytes written when it was last looked whether the peer takes the last of it.
    farewell: u64,
    /// The last of it is written.
    said_all: bool,
    /// Bytes of the peer that were dropped since.
    dropped: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Draining {
    No,
    /// The peer was told to open no more streams; those that cross it are taken.
    Announced,
    /// Streams beyond the last are not taken.
    Final,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(super) fn new(io: S, link: Link) -> Self {
        let intake = Intake::new(&link.borrow());
        Self {
            io,
            link,
            intake,
            readable: Bell::default(),
            writing: Vec::new(),
            wrote: 0,
            unflushed: false,
            timer: None,
            resting: false,
            pinged: false,
            amid: None,
            draining: Draining::No,
            deaf: None,
            over: None,
            farewell: 0,
            said_all: false,
            dropped: 0,
        }
    }

    /// Ends the connection when the streams that are open have ended; those on their way to us are still taken.
    pub(super) fn drain(&mut self) {
        if self.draining == Draining::No {
            self.draining = Draining::Announced;
            let mut state = self.link.borrow_mut();
            goaway(&mut state, LAST_STREAM, Code::NO_ERROR, "");
            state.output.frame(frame::PING, 0, 0, &DRAIN_PING);
        }
    }

    /// Drives on. `arrived` gets each new request, and each that was reset. Ready: the connection is over, and why.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        arrived: &mut impl FnMut(&Link, Came),
    ) -> Poll<Result<(), H2Error>> {
        {
            let mut state = self.link.borrow_mut();
            state.awake = true;
            set_waker(&mut state.driver, cx.waker());
        }
        let mut held_back = false;
        if self.over.is_none() {
            match self.poll_read(cx, arrived) {
                Ok(read) => held_back = read == Read::HeldBack,
                Err(error) => self.end(error),
            }
            if let Err(error) = self.poll_timer(cx) {
                self.end(error);
            }
            self.look_for_end();
        }
        let wrote = match self.poll_write(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                let mut state = self.link.borrow_mut();
                if state.role == Role::Server || self.over.is_some() {
                    state.end(Code::INTERNAL_ERROR, "the connection broke");
                    return Poll::Ready(self.over.take().unwrap_or(Err(H2Error::Io(error))));
                }
                state.closing = true;
                self.deaf = Some(error);
                self.timer = None;
                // To be timed, and read.
                cx.waker().wake_by_ref();
                true
            }
            Poll::Pending => false,
        };
        if self.over.is_some() {
            return self.poll_farewell(cx, wrote);
        }
        let mut state = self.link.borrow_mut();
        if wrote {
            state.answers = 0;
        }
        let more = state.give_turns() | (wrote && held_back);
        state.awake = more;
        if more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Reads what is there.
    fn poll_read(&mut self, cx: &mut Context<'_>, arrived: &mut impl FnMut(&Link, Came)) -> Result<Read, H2Error> {
        for _ in 0..READS_PER_TURN {
            {
                let state = self.link.borrow();
                let backlog = state.role == Role::Server && state.output.len() > BACKLOG_BYTES;
                if backlog || state.answers > ANSWERS_BYTES {
                    return Ok(Read::HeldBack);
                }
            }
            // Taken out of its place meanwhile, so that nothing can find it in use.
            let mut scratch = SCRATCH.take();
            scratch.resize(SCRATCH_BYTES, 0);
            let read = self.poll_read_into(cx, &mut scratch);
            SCRATCH.set(scratch);
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(Read::All),
            }
            for request in self.intake.arrived.drain(..) {
                arrived(&self.link, Came::Request(request));
            }
            for (head, why) in self.intake.malformed.drain(..) {
                arrived(&self.link, Came::Malformed(head, why));
            }
        }
        cx.waker().wake_by_ref();
        Ok(Read::All)
    }

    fn poll_read_into(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<(), H2Error>> {
        let mut buffer = ReadBuf::new(scratch);
        let io = Pin::new(&mut self.io);
        ready!(self.readable.poll(cx, |cx| io.poll_read(cx, &mut buffer)))?;
        let mut state = self.link.borrow_mut();
        if buffer.filled().is_empty() {
            let ended = match state.goaway {
                Some(code) if code != Code::NO_ERROR => Err(H2Error::Peer(code)),
                _ if state.streams() > 0 => Err(H2Error::Closed),
                _ => Ok(()),
            };
            drop(state);
            self.over = Some(match (ended, self.deaf.take()) {
                (Err(H2Error::Closed), Some(error)) => Err(H2Error::Io(error)),
                (ended, _) => ended,
            });
            return Poll::Ready(Err(H2Error::Closed));
        }
        Poll::Ready(
            self.intake.feed(&mut state, buffer.filled()).map_err(|Fault { code, what }| H2Error::Fault { code, what }),
        )
    }

    /// The connection is over because of `error`.
    fn end(&mut self, error: H2Error) {
        let mut state = self.link.borrow_mut();
        let last = state.last_id.min(self.intake.last_taken);
        let code = match &error {
            H2Error::Fault { code, what } => {
                goaway(&mut state, last, *code, what);
                *code
            }
            H2Error::PingTimeout => {
                goaway(&mut state, last, Code::NO_ERROR, "ping timeout");
                Code::INTERNAL_ERROR
            }
            H2Error::Peer(code) => *code,
            H2Error::Io(_) | H2Error::Closed => Code::INTERNAL_ERROR,
        };
        state.end(code, &error.to_string());
        // What came before the fault is not looked at.
        self.intake.arrived.clear();
        self.intake.malformed.clear();
        self.timer = None;
        self.over.get_or_insert(Err(error));
    }

    /// Whether the connection's last stream has ended, and there are to be no more.
    fn look_for_end(&mut self) {
        if self.over.is_some() {
            return;
        }
        let mut state = self.link.borrow_mut();
        if self.draining == Draining::Announced && self.intake.drain_seen {
            self.draining = Draining::Final;
            self.intake.last_taken = state.last_id;
            let last = state.last_id;
            goaway(&mut state, last, Code::NO_ERROR, "");
        }
        let no_more = match state.role {
            Role::Client => state.closing || state.handles == 0,
            Role::Server => self.draining == Draining::Final,
        };
        if no_more && state.streams() == 0 {
            if state.role == Role::Client {
                goaway(&mut state, 0, Code::NO_ERROR, "");
            }
            state.end(Code::NO_ERROR, "the connection was closed");
            self.timer = None;
            self.over = Some(Ok(()));
        }
    }

    /// Writes all that is queued. Ready: all is written, and flushed.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf.is_some() {
            self.wrote = 0;
            output::spare(std::mem::take(&mut self.writing));
            output::spare(self.link.borrow_mut().output.take());
            return Poll::Ready(Ok(()));
        }
        loop {
            let rest = self.writing.get(self.wrote..).unwrap_or_default();
            if rest.is_empty() {
                output::spare(std::mem::take(&mut self.writing));
                self.wrote = 0;
                self.writing = self.link.borrow_mut().output.take();
                if self.writing.is_empty() {
                    break;
                }
                continue;
            }
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote += count;
            self.unflushed = true;
            self.link.borrow_mut().output.wrote(count);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the connection once the last is written. After a fault that may take FAREWELL; after a clean end, when the last
    /// of an answer may be on its way, the peer's PATIENCE as long as it takes something in it.
    fn poll_farewell(&mut self, cx: &mut Context<'_>, wrote: bool) -> Poll<Result<(), H2Error>> {
        let clean = matches!(self.over, Some(Ok(())));
        // A client that is told of its fault should hear it.
        let faulted = matches!(self.over, Some(Err(H2Error::Fault { .. })));
        let waits = clean || (faulted && self.link.borrow().role == Role::Server);
        if wrote && !std::mem::replace(&mut self.said_all, true) {
            self.timer = None;
        }
        loop {
            if wrote && Pin::new(&mut self.io).poll_shutdown(cx).is_ready() && (!waits || self.poll_left(cx).is_ready())
            {
                break;
            }
            let patience = if wrote || !clean { FAREWELL } else { limits::STREAM_IDLE };
            let timer = self.timer.get_or_insert_with(|| Box::pin(Alarm::after(patience)));
            ready!(timer.as_mut().poll(cx));
            let written = self.link.borrow().output.written();
            if wrote || !clean || std::mem::replace(&mut self.farewell, written) == written {
                break;
            }
            self.timer = None;
        }
        Poll::Ready(self.over.take().unwrap_or(Ok(())))
    }

    /// Ready: the peer has ended its side, too, or floods us. What it still sends is dropped: a connection closed over unread
    /// bytes is reset, and the peer would lose the last of what was sent.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut dropped = [0; 4096];
        for _ in 0..READS_PER_TURN {
            let mut buffer = ReadBuf::new(&mut dropped);
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            self.dropped += count;
            if read.is_err() || count == 0 || self.dropped > LEFT_BYTES {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Asks a peer that says nothing whether it lives, while something is owed to it or by it; and ends the connection of a client
    /// that asks for nothing, in time.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), H2Error> {
        if self.deaf.is_some() {
            let timer = self.timer.get_or_insert_with(|| Box::pin(Alarm::after(FAREWELL)));
            let late = timer.as_mut().poll(cx).is_ready();
            return self.deaf.take_if(|_| late).map_or(Ok(()), |error| Err(H2Error::Io(error)));
        }
        loop {
            let (interval, timeout, idle, needed) = {
                let state = self.link.borrow();
                let draining = self.draining == Draining::Announced;
                // A ping without an answer is waited for, whoever has left meanwhile.
                let needed = !state.is_idle() || draining || self.intake.is_amid() || self.pinged;
                let idle = (state.role == Role::Server).then_some(state.settings.idle);
                (state.settings.ping_interval, state.settings.ping_timeout, idle, needed)
            };
            let Some(timer) = &mut self.timer else {
                let Some(wait) = (if needed { Some(interval) } else { idle }) else { return Ok(()) };
                self.timer = Some(Box::pin(Alarm::after(wait)));
                self.resting = !needed;
                self.intake.heard = false;
                continue;
            };
            if needed && std::mem::take(&mut self.resting) {
                timer.as_mut().reset(Instant::now() + interval);
                self.intake.heard = false;
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            if !needed {
                self.timer = None;
                self.pinged = false;
                self.amid = None;
                self.intake.release();
                self.link.borrow_mut().release();
                if std::mem::take(&mut self.resting) {
                    self.drain();
                }
                continue;
            }
            let heard = std::mem::take(&mut self.intake.heard);
            if self.pinged && !heard {
                return Err(H2Error::PingTimeout);
            }
            let (now, complete) = (Instant::now(), self.intake.complete);
            let amid = self.intake.is_amid().then_some((now, complete));
            self.amid = amid.map(|amid| self.amid.filter(|(_, before)| *before == complete).unwrap_or(amid));
            if self.amid.is_some_and(|(since, _)| now.saturating_duration_since(since) >= AMID_WAIT) {
                return Err(H2Error::Fault { code: Code::ENHANCE_YOUR_CALM, what: "a head that takes too long" });
            }
            self.pinged = !heard;
            let next = if heard { interval } else { timeout };
            if self.pinged {
                self.link.borrow_mut().output.frame(frame::PING, 0, 0, &LIVE_PING);
            }
            timer.as_mut().reset(now + next);
        }
    }
}

/// See [`Driver::amid`]: with the time until the timer looks first, the longest that a head may take.
const AMID_WAIT: Duration = Duration::from_secs(30);

/// How reading went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// All that was there, or enough for now: the task is woken for more.
    All,
    /// More is read once what waits is written.
    HeldBack,
}

fn goaway(state: &mut State, last: u32, code: Code, what: &str) {
    let mut payload = Vec::with_capacity(8 + what.len());
    payload.extend_from_slice(&last.to_be_bytes());
    payload.extend_from_slice(&code.0.to_be_bytes());
    payload.extend_from_slice(what.as_bytes());
    state.output.frame(frame::GOAWAY, 0, 0, &payload);
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        let mut state = self.link.borrow_mut();
        if !state.over {
            state.end(Code::CANCEL, "the connection was dropped");
        }
    }
}
