//! The server's role: a client's connection, one exchange after the other.

mod shared;
mod timer;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;

pub(super) use self::shared::Reader;
pub(crate) use self::timer::Patience;
use self::{
    shared::Held,
    timer::{Timer, Wait},
};
use super::{
    Incoming, Outgoing, buffer,
    chunked::{consume, take},
    judge::{Judged, judge},
    parse::{self, Parsed},
    write::{Filled, Output, Plan},
};
use crate::{
    config::limits,
    drain::{Begun, Drain},
    http::{
        body::BodyError,
        client_stream::ClientPhase,
        head::{Name, RequestHead, ResponseHead, Unfit},
        watch::{Watch, Watched},
    },
    net::{Backlog, Io},
};

/// For how long a client is read that goes on sending what nobody wants, and how much of it.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// See [`LINGER`].
const LINGER_BYTES: usize = 64 * 1024 * 1024;
/// Such reads before other tasks have their turn.
const READS_PER_TURN: usize = 8;

/// A request as it came in.
pub(crate) struct Request {
    /// Without Host, Connection and Transfer-Encoding, which were for this codec.
    pub(crate) head: RequestHead,
    pub(crate) body: Incoming,
    pub(crate) watch: Rc<Watch>,
    /// It is to be refused, and why.
    pub(crate) refused: Option<Unfit>,
}

/// How serving a connection ended.
pub(crate) enum Ended<S> {
    /// All is done.
    Closed,
    /// The last request was refused, for this.
    Refused(Unfit),
    /// What comes next is not for this codec: the stream, and the bytes that were read of it and not used. No exchange is
    /// in progress, and every response was written.
    Unusual(S, Bytes),
}

/// Why the connection is no longer read for requests.
enum End {
    Closed,
    Refused(Unfit),
    Unusual,
}

/// Serves requests on `stream` until the client leaves, draining has begun and the last response is complete, an exchange is
/// overdue, or something unusual comes. `drain`: a watcher; the connection is counted since it was accepted.
///
/// # Errors
/// What ended the connection, if it was not a clean close.
pub(crate) fn serve<S, B, F>(
    stream: S,
    drain: Drain,
    patience: Patience,
    handle: impl Fn(Request) -> F,
) -> impl Future<Output = io::Result<Ended<S>>>
where
    S: Io + Backlog,
    B: Outgoing,
    F: Future<Output = (ResponseHead, B)> + Unpin,
{
    let phase = Arc::new(ClientPhase::default());
    let watch = Watch::new(patience.exchange, Some(Arc::clone(&phase)));
    let mut connection = Connection {
        stream,
        shared: Held::default(),
        output: Output::default(),
        phase,
        backlog: 0,
        close: false,
        scanned: 0,
        timer: Timer::new(patience),
    };
    // Not an async function: that would keep room for its arguments, too, as long as the connection lives.
    async move {
        match Watched::new(&watch, connection.serve(&watch, &drain, handle)).await {
            Ok(Ok(End::Unusual)) => {
                let Connection { stream, shared, .. } = connection;
                let unread = std::mem::take(&mut shared.0.borrow_mut().bytes);
                Ok(Ended::Unusual(stream, unread.freeze()))
            }
            Ok(Ok(End::Closed)) => Ok(Ended::Closed),
            Ok(Ok(End::Refused(unfit))) => Ok(Ended::Refused(unfit)),
            Ok(Err(error)) => Err(error),
            Err(overdue) => {
                tracing::debug!(reason = %overdue.reason(), "client connection closed in the middle of an exchange");
                Ok(Ended::Closed)
            }
        }
    }
}

struct Connection<S> {
    stream: S,
    shared: Held,
    output: Output,
    phase: Arc<ClientPhase>,
    /// Bytes that waited in the kernel when the stream was last blocked.
    backlog: u64,
    /// The current response is the last.
    close: bool,
    /// Bytes of an incomplete head that were looked at.
    scanned: usize,
    timer: Timer,
}

/// What reading between and beside exchanges came to.
enum Heard {
    /// Bytes for the reader of the body, in this turn.
    Body,
    /// The client has ended its side, which means that it has left.
    Left,
}

impl<S: Io + Backlog> Connection<S> {
    async fn serve<B, F>(&mut self, watch: &Rc<Watch>, drain: &Drain, handle: impl Fn(Request) -> F) -> io::Result<End>
    where
        B: Outgoing,
        F: Future<Output = (ResponseHead, B)> + Unpin,
    {
        let mut begun = pin!(drain.begun());
        let refused = loop {
            // Nothing but what the next wait needs is kept over it: an idle connection must be small.
            let (method, refused, mut exchange) = match poll_fn(|cx| self.poll_head(cx, begun.as_mut())).await? {
                Next::Request(request, body) => {
                    self.timer.begin_exchange();
                    self.close = request.close;
                    let method = request.head.method.clone();
                    let refused = request.refused;
                    watch.informational().begin();
                    let received = Request { head: request.head, body, watch: Rc::clone(watch), refused };
                    (method, refused, handle(received))
                }
                Next::Unusual => return Ok(End::Unusual),
                Next::Closed | Next::Drained => break None,
            };
            let mut answer = match poll_fn(|cx| self.poll_answer(cx, &mut exchange, watch)).await? {
                Some((head, body)) => {
                    let connection = head.fields.get(Name::Connection);
                    let last = connection.is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
                    self.close |= last || drain.has_begun() || self.cannot_go_on();
                    let plan = self.output.response(&method, &head, &body, self.close);
                    Answer { body: Some(body), plan, broken: None }
                }
                None => return Ok(End::Closed),
            };
            drop((exchange, method));
            if !poll_fn(|cx| self.poll_respond(cx, &mut answer)).await? {
                return Ok(End::Closed);
            }
            if let Some(error) = answer.broken {
                tracing::debug!(error = %error, "response broke off");
                return Ok(End::Closed);
            }
            if self.close || !poll_fn(|cx| self.poll_settled(cx)).await? {
                break refused;
            }
        };
        self.shutdown().await;
        // Of a head that was refused, much may be on its way.
        if refused.is_some() || !self.shared.0.borrow().is_read() {
            Box::pin(self.linger()).await;
        }
        Ok(refused.map_or(End::Closed, End::Refused))
    }

    /// Whether it is known already that no further request can be read.
    fn cannot_go_on(&self) -> bool {
        let mut shared = self.shared.0.borrow_mut();
        shared.broken || (shared.abandoned && !shared.skip())
    }

    /// The next request's head.
    fn poll_head(&mut self, cx: &mut Context<'_>, mut begun: Pin<&mut Begun<'_>>) -> Poll<io::Result<Next>> {
        loop {
            if let Some(next) = self.next_in_buffer() {
                return Poll::Ready(Ok(next));
            }
            let held = &self.shared;
            let scanned = &mut self.scanned;
            let read = buffer::poll_read(&mut self.stream, cx, |new| {
                let mut shared = held.0.borrow_mut();
                if new.is_empty() {
                    return Some(Next::Closed);
                }
                if !shared.bytes.is_empty() {
                    shared.bytes.extend_from_slice(new);
                    return None;
                }
                // Most heads come whole: nothing is kept of what was read, but for what follows them.
                let (next, rest) = match parse::parse_request(new) {
                    Parsed::Request(request) => {
                        let rest = new.get(request.length..).unwrap_or_default();
                        let length = request.framing.within(rest);
                        let whole = length.and_then(|length| rest.get(..length)).map(Bytes::copy_from_slice);
                        let rest = rest.get(length.unwrap_or(0)..).unwrap_or_default();
                        let body = shared.begin_body(&held.0, request.framing, whole);
                        (Some(Next::Request(request, body)), rest)
                    }
                    Parsed::Unusual => match judge(new) {
                        Judged::Unusual => (Some(Next::Unusual), new),
                        Judged::Refused(request) => (Some(shared.refuse(&held.0, *request)), &[][..]),
                        Judged::Incomplete => {
                            *scanned = new.len();
                            (None, new)
                        }
                    },
                    Parsed::Incomplete => {
                        *scanned = new.len();
                        (None, new)
                    }
                };
                shared.bytes.extend_from_slice(rest);
                next
            });
            match read {
                Poll::Ready(Ok(Some(next))) => return Poll::Ready(Ok(next)),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    let wait = match () {
                        () if self.scanned > 0 => Wait::Head,
                        () if begun.as_mut().poll(cx).is_ready() => Wait::Drained,
                        () => Wait::Request,
                    };
                    ready!(self.timer.poll_late(cx, wait));
                    let late = Err(io::ErrorKind::TimedOut.into());
                    return Poll::Ready(if wait == Wait::Drained { Ok(Next::Drained) } else { late });
                }
            }
        }
    }

    /// A request that was read behind another, or in parts.
    fn next_in_buffer(&mut self) -> Option<Next> {
        let mut shared = self.shared.0.borrow_mut();
        let length = shared.bytes.len();
        let seen = self.scanned > 0 && !parse::has_empty_line(&shared.bytes, self.scanned);
        if length <= self.scanned || (seen && length <= limits::HEAD_BYTES) {
            self.scanned = length;
            return None;
        }
        self.scanned = 0;
        match parse::parse_request(&shared.bytes) {
            Parsed::Request(request) => {
                consume(&mut shared.bytes, request.length);
                let whole = request.framing.within(&shared.bytes).map(|length| take(&mut shared.bytes, length as u64));
                let body = shared.begin_body(&self.shared.0, request.framing, whole);
                Some(Next::Request(request, body))
            }
            Parsed::Unusual => match judge(&shared.bytes) {
                Judged::Unusual => Some(Next::Unusual),
                Judged::Refused(request) => {
                    shared.bytes.clear();
                    Some(shared.refuse(&self.shared.0, *request))
                }
                Judged::Incomplete => {
                    self.scanned = length;
                    None
                }
            },
            Parsed::Incomplete => {
                self.scanned = length;
                None
            }
        }
    }

    /// The exchange's answer; None: the client has left.
    fn poll_answer<T>(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut (impl Future<Output = T> + Unpin),
        watch: &Watch,
    ) -> Poll<io::Result<Option<T>>> {
        loop {
            let answered = Pin::new(&mut *exchange).poll(cx);
            while let Some(head) = watch.informational().next() {
                self.output.informational(&head);
            }
            if let Poll::Ready(answer) = answered {
                return Poll::Ready(Ok(Some(answer)));
            }
            if self.output.is_underway() {
                // What is not written now goes on in a later turn, or with the answer.
                let _ = self.poll_write(cx)?;
            }
            match ready!(self.poll_client(cx))? {
                Heard::Body => {}
                Heard::Left => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Writes the response. Ready with false: the client has left.
    fn poll_respond<B: Outgoing>(&mut self, cx: &mut Context<'_>, answer: &mut Answer<B>) -> Poll<io::Result<bool>> {
        let Answer { body, plan, broken } = answer;
        loop {
            let filled = match body.as_mut().map(|body| self.output.fill(cx, body, plan)) {
                None => Filled::Complete,
                Some(Ok(filled)) => filled,
                Some(Err(error)) => {
                    // What came before it is still written.
                    *broken = Some(error);
                    Filled::Complete
                }
            };
            if filled == Filled::Complete {
                *body = None;
            }
            match (self.poll_write(cx)?, filled) {
                (Poll::Ready(()), Filled::Complete) => return Poll::Ready(Ok(true)),
                (Poll::Ready(()), Filled::Full) => continue,
                _ => {}
            }
            match ready!(self.poll_client(cx))? {
                Heard::Body => {}
                Heard::Left => return Poll::Ready(Ok(false)),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let phase = &self.phase;
        match self.output.poll_write(cx, &mut self.stream, |bytes| phase.take(bytes as u64)) {
            Poll::Ready(result) => {
                phase.set_blocked(false);
                result.map(Poll::Ready)
            }
            // A kernel takes megabytes in, and says so again only when a third of them is gone: a client that reads
            // slowly shows in what is left.
            Poll::Pending => {
                let backlog = self.stream.backlog();
                if backlog != self.backlog {
                    self.backlog = backlog;
                    phase.take(1);
                }
                phase.set_blocked(true);
                Ok(Poll::Pending)
            }
        }
    }

    /// As [`Self::poll_input`], and while nothing is read, which does not tell of a client that broke off, looks for it.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Heard>> {
        loop {
            if let Poll::Ready(heard) = self.poll_input(cx) {
                return Poll::Ready(heard);
            }
            if !self.shared.0.borrow().is_left_unread() {
                return Poll::Pending;
            }
            ready!(self.timer.poll_late(cx, Wait::Look));
            if self.stream.is_broken() {
                return Poll::Ready(Ok(Heard::Left));
            }
        }
    }

    /// Reads beside an exchange: what the reader of its body waits for; if nobody waits for more of the request, then only to
    /// notice that the client leaves.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Heard>> {
        loop {
            let mut shared = self.shared.0.borrow_mut();
            let unwanted = shared.is_read() || shared.abandoned;
            if shared.is_left_unread() {
                if !shared.connection.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
                    shared.connection = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            if shared.broken {
                return Poll::Pending;
            }
            let read = buffer::poll_read(&mut self.stream, cx, |new| {
                shared.bytes.extend_from_slice(new);
                new.is_empty()
            });
            let left = match read {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if !unwanted && !shared.connection.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
                        shared.connection = Some(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
            };
            if left {
                return Poll::Ready(Ok(Heard::Left));
            }
            if unwanted {
                continue;
            }
            let reader = shared.reader.take();
            drop(shared);
            match reader {
                Some(reader) if !reader.will_wake(cx.waker()) => reader.wake(),
                _ => return Poll::Ready(Ok(Heard::Body)),
            }
        }
    }

    /// Waits until the request was read to its end, now that its response is written. Ready with false: it will not be, so
    /// that no further request can be read.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let mut shared = self.shared.0.borrow_mut();
            if shared.is_read() {
                return Poll::Ready(Ok(true));
            }
            if shared.broken {
                return Poll::Ready(Ok(false));
            }
            if shared.abandoned {
                return Poll::Ready(Ok(shared.skip()));
            }
            drop(shared);
            match self.poll_input(cx)? {
                Poll::Ready(Heard::Body) => {}
                Poll::Ready(Heard::Left) => return Poll::Ready(Ok(false)),
                Poll::Pending => {
                    return self.timer.poll_late(cx, Wait::Rest).map(|()| Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }

    /// Ends our side.
    async fn shutdown(&mut self) {
        let ended = poll_fn(|cx| {
            let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
            // Its time is kept.
            self.phase.set_blocked(polled.is_pending());
            polled
        });
        // Closed it will be, in any case.
        let _ = ended.await;
    }

    /// Takes what the client is still sending, for a while: a connection closed over unread bytes is reset, and the client
    /// might never see its response.
    async fn linger(&mut self) {
        let mut left = LINGER_BYTES;
        let drained = poll_fn(|cx| {
            for _ in 0..READS_PER_TURN {
                match ready!(buffer::poll_read(&mut self.stream, cx, <[u8]>::len)) {
                    Ok(count @ 1..) if count < left => left -= count,
                    _ => return Poll::Ready(()),
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        // Either way it is closed now.
        let _ = tokio::time::timeout(LINGER, drained).await;
    }
}

/// A response that is being written.
struct Answer<B> {
    /// None: all of it is in the output.
    body: Option<B>,
    plan: Plan,
    /// Why the body ended early.
    broken: Option<BodyError>,
}

/// What a connection goes on with.
#[allow(clippy::large_enum_variant, reason = "moved once; the heap would cost more")]
enum Next {
    Request(parse::Request, Incoming),
    Unusual,
    Closed,
    /// It was idle when draining had begun some time ago.
    Drained,
}
