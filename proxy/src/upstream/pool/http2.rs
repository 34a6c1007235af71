//! HTTP/2 connections: shared by many exchanges. Another is opened when all have STREAMS_BEFORE_NEXT streams; requests
//! wait for one in progress only if none that is open takes more.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::Method;
use tokio::sync::{Notify, oneshot};

use super::{DialError, Dialed, Dialer, Pool, Reply, SendError};
use crate::{
    config::limits,
    http::{
        Body,
        h2::{self, RecvStream, StreamError},
        head::{RequestHead, ResponseHead},
        informational::Informed,
        outflow::{self, Outflow, Stopped},
        upgrade::{self, Upgraded},
    },
    tls::MeshProtocol,
    upstream::bulkhead::Place,
};

/// Connections on which a server takes no streams at all until it is believed that it takes none on a further one either.
const CLOSED_UNTIL_BELIEVED: usize = 2;

/// The connections to one endpoint that carry streams of one kind.
pub(super) struct Shared {
    protocol: MeshProtocol,
    open: RefCell<Vec<Rc<Connection>>>,
    /// Connections being made.
    dialing: Cell<usize>,
    /// Requests that wait for them.
    waiting: Cell<usize>,
    /// Attempts that failed so far, and why the last did.
    failures: Cell<u64>,
    failure: RefCell<Option<DialError>>,
    /// A connection was made, failed to be, or has room again.
    news: Notify,
    /// What the server says of its load.
    heard: h2::Heard,
}

pub(super) struct Connection {
    wire: h2::Connection,
    epoch: Option<u64>,
    /// See [`super::Dialed::place`].
    _place: Option<Place>,
    /// Claimed.
    streams: Cell<usize>,
    last_used: Cell<Instant>,
}

/// The place of one exchange among the streams of its connection; given back when dropped.
#[derive(Clone, Default)]
pub struct StreamSlot(Rc<RefCell<Option<Claim>>>);

struct Claim {
    connection: Rc<Connection>,
    shared: Rc<Shared>,
}

/// A connection for one exchange, and whether it was there before. Dials in tasks of their own, so that a request that
/// gives up does not take the connection others wait for with it.
pub(super) async fn claim(
    pool: &Rc<Pool>,
    shared: &Rc<Shared>,
    slot: &StreamSlot,
) -> Result<(Rc<Connection>, bool), DialError> {
    if let Some(connection) = shared.choose(&pool.dialer)
        && !connection.is_busy()
    {
        slot.fill(&connection, shared);
        return Ok((connection, true));
    }
    let within = pool.connect_timeout.get();
    let waited = tokio::time::timeout(within, wait_for_stream(pool, shared, slot)).await;
    waited.unwrap_or_else(|_| Err(DialError::Connect(format!("no HTTP/2 stream to be had within {within:?}"))))
}

async fn wait_for_stream(
    pool: &Rc<Pool>,
    shared: &Rc<Shared>,
    slot: &StreamSlot,
) -> Result<(Rc<Connection>, bool), DialError> {
    let failures = shared.failures.get();
    let mut waiting: Option<Waiting<'_>> = None;
    loop {
        let news = shared.news.notified();
        tokio::pin!(news);
        news.as_mut().enable();

        let chosen = shared.choose(&pool.dialer);
        let (closed, others) = shared.closed_to_streams(&pool.dialer);
        let is_closed = closed >= CLOSED_UNTIL_BELIEVED;
        if is_closed && others == 0 {
            return Err(DialError::Connect(
                "the server takes no streams (SETTINGS_MAX_CONCURRENT_STREAMS is 0)".into(),
            ));
        }
        let is_busy = chosen.as_ref().is_none_or(|connection| connection.is_busy());
        if is_busy && !is_closed && shared.needs_dial(chosen.is_none()) {
            dial(pool, shared);
        }
        if let Some(connection) = chosen {
            slot.fill(&connection, shared);
            return Ok((connection, waiting.is_none()));
        }
        if shared.failures.get() != failures {
            let failure = shared.failure.borrow().clone();
            return Err(failure.unwrap_or_else(|| DialError::Connect("connection failed".into())));
        }
        waiting.get_or_insert_with(|| Waiting::new(&shared.waiting));
        news.await;
    }
}

fn dial(pool: &Rc<Pool>, shared: &Rc<Shared>) {
    shared.dialing.set(shared.dialing.get() + 1);
    let (pool, shared) = (Rc::clone(pool), Rc::clone(shared));
    tokio::task::spawn_local(async move {
        let dialed = pool.dial(shared.protocol).await;
        shared.dialing.set(shared.dialing.get().saturating_sub(1));
        match dialed {
            Ok(dialed) if dialed.protocol == shared.protocol => shared.add(dialed),
            Ok(dialed) => {
                pool.without_streams(dialed);
                shared.failed(DialError::NoStreams);
            }
            Err(error) => shared.failed(error),
        }
        shared.news.notify_waiters();
    });
}

/// Starts HTTP/2 on a connection; its task ends with it.
fn start(dialed: Dialed, shared: &Rc<Shared>) -> Rc<Connection> {
    let meshed = dialed.epoch.is_some();
    let settings = if meshed { h2::Settings::to_peer() } else { h2::Settings::new() };
    let settings = h2::Settings { heard: shared.heard.clone(), ..settings };
    let (wire, driver) = h2::connect(dialed.io, settings);
    let connection = Rc::new(Connection {
        wire,
        epoch: dialed.epoch,
        _place: dialed.place,
        streams: Cell::new(0),
        last_used: Cell::new(Instant::now()),
    });
    let (at, shared) = (Rc::downgrade(&connection), Rc::downgrade(shared));
    tokio::task::spawn_local(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "HTTP/2 connection ended");
        }
        // Requests that wait for it to have room look for another.
        if let (Some(shared), Some(ended)) = (shared.upgrade(), at.upgrade()) {
            shared.open.borrow_mut().retain(|connection| !Rc::ptr_eq(connection, &ended));
            shared.news.notify_waiters();
        }
    });
    connection
}

impl Connection {
    /// One exchange. The request's body goes on being sent, in a task of its own, if the answer begins before its end.
    pub(super) async fn send(
        &self,
        head: &RequestHead,
        body: Body,
        slot: &StreamSlot,
        informed: &Informed,
    ) -> Result<Reply, SendError> {
        let tunnel = head.method == Method::CONNECT;
        let end = body.is_end() && !tunnel;
        if head.protocol.is_some() {
            // Whether the peer takes extended CONNECT is in its SETTINGS.
            self.wire.settled().await;
        }
        let (sender, mut receiver) = match self.wire.open(head, end) {
            Ok(streams) => streams,
            Err(refused @ h2::Refused::NoConnectProtocol) => {
                let unfit = Some("the server takes no extended CONNECT (RFC 8441)");
                return Err(SendError { unfit, ..SendError::unsent(body, refused.to_string()) });
            }
            Err(refused) => return Err(SendError::unsent(body, refused.to_string())),
        };
        if tunnel {
            let head = poll_fn(|cx| poll_final(&mut receiver, cx, informed)).await.map_err(failed)?;
            if !head.status.is_success() {
                return Ok(Reply { head, body: Body::http2(receiver), upgraded: None });
            }
            let (opened, upgraded) = oneshot::channel();
            // Received below.
            let _ = opened.send(upgrade::tunnel(sender, receiver));
            return Ok(Reply { head, body: Body::empty(), upgraded: Some(Upgraded::Stream(upgraded)) });
        }
        let mut upload = (!end).then(|| Outflow::new(sender, body, None));
        let answered = poll_fn(|cx| {
            if let Some(running) = &mut upload
                && let Poll::Ready(sent) = Pin::new(running).poll(cx)
            {
                upload = None;
                // Of a stream that was reset the receiver knows more.
                if let Err(Stopped::Body(error)) = sent {
                    return Poll::Ready(Err(SendError::sent(format!("the request broke off: {error}"))));
                }
            }
            poll_final(&mut receiver, cx, informed).map_err(failed)
        });
        let head = answered.await?;
        if let Some(upload) = upload {
            outflow::spawn(upload, slot.clone());
        }
        Ok(Reply { head, body: Body::http2(receiver), upgraded: None })
    }
}

/// The response's head that counts. `informed` hears of those before it.
fn poll_final(
    receiver: &mut RecvStream,
    cx: &mut Context<'_>,
    informed: &Informed,
) -> Poll<Result<ResponseHead, StreamError>> {
    loop {
        match ready!(receiver.poll_response(cx)) {
            Ok(head) if head.status.is_informational() => informed.tell(head),
            read => return Poll::Ready(read),
        }
    }
}

/// RFC 9113, 8.7: a stream reset with REFUSED_STREAM, or above the last stream id of a GOAWAY, was not processed.
fn failed(error: StreamError) -> SendError {
    SendError { not_processed: error.is_unprocessed(), ..SendError::sent(error.to_string()) }
}

impl Shared {
    /// The first connection that is not busy, else the least busy, if it takes one more stream. One that is new and has not said how many
    /// it takes gets no more at first than another that has.
    fn choose(&self, dialer: &Dialer) -> Option<Rc<Connection>> {
        let open = self.open.borrow();
        // What takes no stream at all is the least busy, and no choice.
        let takes_any = |connection: &&Rc<Connection>| connection.wire.most_streams() > 0;
        let mut usable = open.iter().filter(|connection| connection.is_usable(dialer)).filter(takes_any);
        let mut best = usable.next()?;
        for connection in usable {
            if !best.is_busy() {
                break;
            }
            if connection.streams.get() < best.streams.get() {
                best = connection;
            }
        }
        best.has_room().then(|| Rc::clone(best))
    }

    /// Whether there are usable connections, and none has room.
    pub(super) fn is_full(&self, dialer: &Dialer) -> bool {
        self.choose(dialer).is_none() && self.open.borrow().iter().any(|connection| connection.is_usable(dialer))
    }

    /// Usable connections that take no stream, however few there are, which a server may say for now (RFC 9113, 6.5.2); and the
    /// others.
    fn closed_to_streams(&self, dialer: &Dialer) -> (usize, usize) {
        let open = self.open.borrow();
        let usable = open.iter().filter(|connection| connection.is_usable(dialer));
        usable.fold((0, 0), |(closed, others), connection| match connection.wire.most_streams() {
            0 => (closed + 1, others),
            _ => (closed, others + 1),
        })
    }

    pub(super) fn new(protocol: MeshProtocol, heard: h2::Heard) -> Rc<Self> {
        Rc::new(Self {
            protocol,
            open: RefCell::default(),
            dialing: Cell::new(0),
            waiting: Cell::new(0),
            failures: Cell::new(0),
            failure: RefCell::default(),
            news: Notify::new(),
            heard,
        })
    }

    /// One more connection.
    pub(super) fn add(self: &Rc<Self>, dialed: Dialed) {
        self.open.borrow_mut().push(start(dialed, self));
    }

    fn failed(&self, error: DialError) {
        self.failures.set(self.failures.get() + 1);
        self.failure.replace(Some(error));
    }

    /// One connection in the making per STREAMS_BEFORE_NEXT requests that wait; one at a time while others still serve.
    fn needs_dial(&self, nothing_to_use: bool) -> bool {
        let dialing = self.dialing.get();
        dialing == 0 || (nothing_to_use && self.waiting.get() >= dialing * limits::STREAMS_BEFORE_NEXT)
    }

    pub(super) fn close(&self) {
        self.open.take();
    }

    /// Whether some connection's server tells of its load.
    pub(super) fn reports_load(&self) -> bool {
        self.open.borrow().iter().any(|connection| connection.wire.reports_load())
    }

    /// Asks for it on the first connection that takes the question.
    pub(super) fn ask_load(&self) -> bool {
        self.open.borrow().iter().any(|connection| connection.wire.ask_load())
    }

    pub(super) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub(super) fn sweep(&self, pool: &Pool, now: Instant) {
        self.open.borrow_mut().retain(|connection| {
            let idle = connection.streams.get() == 0
                && now.saturating_duration_since(connection.last_used.get()) >= pool.patience();
            connection.is_usable(&pool.dialer) && !idle
        });
    }
}

impl Connection {
    fn is_usable(&self, dialer: &Dialer) -> bool {
        self.wire.is_usable() && dialer.is_current(self.epoch)
    }

    /// Time for another connection.
    fn is_busy(&self) -> bool {
        self.taken() >= limits::STREAMS_BEFORE_NEXT.min(self.wire.most_streams()) || self.wire.is_crowded()
    }

    fn has_room(&self) -> bool {
        self.taken() < self.wire.most_streams() && !self.wire.is_crowded()
    }

    /// Streams claimed, and those that outlast their claims.
    fn taken(&self) -> usize {
        self.streams.get().max(self.wire.streams())
    }
}

impl StreamSlot {
    fn fill(&self, connection: &Rc<Connection>, shared: &Rc<Shared>) {
        connection.streams.set(connection.streams.get() + 1);
        self.0.replace(Some(Claim { connection: Rc::clone(connection), shared: Rc::clone(shared) }));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Self { connection, shared } = self;
        let was_full = !connection.has_room();
        let left = connection.streams.get().saturating_sub(1);
        connection.streams.set(left);
        // The clock is read for what may be idle only.
        if left == 0 {
            connection.last_used.set(Instant::now());
        }
        if was_full {
            shared.news.notify_waiters();
        }
    }
}

/// Counts a request as waiting while it lives.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
