//! HTTP/2 connections: shared by many exchanges. Another is opened when all have STREAMS_BEFORE_NEXT streams; requests
//! wait for one in progress only if none that is open takes more.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::{DialError, Dialed, Dialer, Pool};
use crate::{config::limits, http::adapt::HyperBody, net::Io, tls::MeshProtocol};

pub(super) type Sender = http2::SendRequest<HyperBody>;

/// Between keep-alive pings while streams are open.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A ping without answer for so long ends the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams before the peer's SETTINGS have arrived (RFC 9113, 6.5.2 recommends to allow at least 100).
const INITIAL_STREAMS: usize = 100;
/// Bytes of a stream's body that wait to be written.
const SEND_BUFFER: usize = 128 * 1024;

/// The HTTP/2 connections to one endpoint.
#[derive(Default)]
pub(super) struct Shared {
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
}

struct Connection {
    sender: Sender,
    /// What its task runs; None once that has ended.
    driver: Rc<RefCell<Option<Driver>>>,
    epoch: Option<u64>,
    streams: Cell<usize>,
    last_used: Cell<Instant>,
}

type Driver = http2::Connection<TokioIo<Box<dyn Io>>, HyperBody, LocalExecutor>;

/// The place of one exchange among the streams of its connection; given back when dropped.
#[derive(Clone, Default)]
pub struct StreamSlot(Rc<RefCell<Option<Claim>>>);

struct Claim(Rc<Connection>, Rc<Pool>);

/// A sender for one exchange, and whether its connection was there before. Dials in tasks of their own, so that a
/// request that gives up does not take the connection others wait for with it.
pub(super) async fn claim(pool: &Rc<Pool>, slot: &StreamSlot) -> Result<(Sender, bool), DialError> {
    let waited = tokio::time::timeout(limits::CONNECT_TIMEOUT, wait_for_stream(pool, slot)).await;
    waited.unwrap_or_else(|_| {
        Err(DialError::Connect(format!("no HTTP/2 stream to be had within {:?}", limits::CONNECT_TIMEOUT)))
    })
}

async fn wait_for_stream(pool: &Rc<Pool>, slot: &StreamSlot) -> Result<(Sender, bool), DialError> {
    let shared = &pool.shared;
    let failures = shared.failures.get();
    let mut waiting: Option<Waiting<'_>> = None;
    loop {
        let news = shared.news.notified();
        tokio::pin!(news);
        news.as_mut().enable();

        let chosen = shared.choose(&pool.dialer);
        if chosen.as_ref().is_none_or(|connection| connection.is_busy()) && shared.needs_dial(chosen.is_none()) {
            dial(pool);
        }
        if let Some(connection) = chosen {
            let sender = connection.sender.clone();
            slot.fill(connection, pool);
            return Ok((sender, waiting.is_none()));
        }
        if shared.failures.get() != failures {
            let failure = shared.failure.borrow().clone();
            return Err(failure.unwrap_or_else(|| DialError::Connect("connection failed".into())));
        }
        waiting.get_or_insert_with(|| Waiting::new(&shared.waiting));
        news.await;
    }
}

fn dial(pool: &Rc<Pool>) {
    pool.shared.dialing.set(pool.shared.dialing.get() + 1);
    let pool = Rc::clone(pool);
    tokio::task::spawn_local(async move {
        let opened = match pool.dial(MeshProtocol::Http2).await {
            Ok(dialed) => start(dialed, &pool).await,
            Err(error) => Err(error),
        };
        let shared = &pool.shared;
        shared.dialing.set(shared.dialing.get().saturating_sub(1));
        match opened {
            Ok(connection) => shared.open.borrow_mut().push(connection),
            Err(error) => {
                shared.failures.set(shared.failures.get() + 1);
                shared.failure.replace(Some(error));
            }
        }
        shared.news.notify_waiters();
    });
}

/// Starts HTTP/2 on a connection; its tasks end with it.
async fn start(dialed: Dialed, pool: &Rc<Pool>) -> Result<Rc<Connection>, DialError> {
    let handshake = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .initial_max_send_streams(INITIAL_STREAMS)
        .max_concurrent_streams(None)
        .max_frame_size(16 * 1024)
        .max_header_list_size(limits::HEAD_BYTES as u32)
        .header_table_size(4096)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_reset_streams(limits::STREAMS_BEFORE_NEXT)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024)
        .reset_stream_duration(Duration::from_secs(1))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
        .handshake::<_, HyperBody>(TokioIo::new(dialed.io));
    let (sender, driver) = handshake.await.map_err(|error| DialError::Connect(error.to_string()))?;
    let driver = Rc::new(RefCell::new(Some(driver)));
    let connection = Rc::new(Connection {
        sender,
        driver: Rc::clone(&driver),
        epoch: dialed.epoch,
        streams: Cell::new(0),
        last_used: Cell::new(Instant::now()),
    });
    let (at, pool) = (Rc::downgrade(&connection), Rc::downgrade(pool));
    tokio::task::spawn_local(async move {
        let ended =
            poll_fn(|cx| driver.borrow_mut().as_mut().map_or(Poll::Ready(Ok(())), |run| Pin::new(run).poll(cx)));
        if let Err(error) = ended.await {
            tracing::debug!(%error, "HTTP/2 connection ended");
        }
        // Out of the pool before requests that it did not write come back to be sent elsewhere.
        if let (Some(pool), Some(ended)) = (pool.upgrade(), at.upgrade()) {
            pool.shared.open.borrow_mut().retain(|connection| !Rc::ptr_eq(connection, &ended));
        }
        driver.take();
    });
    Ok(connection)
}

impl Shared {
    /// The first connection that is not busy, else the least busy that takes one more stream.
    fn choose(&self, dialer: &Dialer) -> Option<Rc<Connection>> {
        let open = self.open.borrow();
        let mut usable = open.iter().filter(|connection| connection.is_usable(dialer));
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

    /// One connection in the making per STREAMS_BEFORE_NEXT requests that wait; one at a time while others still serve.
    fn needs_dial(&self, nothing_to_use: bool) -> bool {
        let dialing = self.dialing.get();
        dialing == 0 || (nothing_to_use && self.waiting.get() >= dialing * limits::STREAMS_BEFORE_NEXT)
    }

    pub(super) fn close(&self) {
        self.open.take();
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
        !self.sender.is_closed() && dialer.is_current(self.epoch)
    }

    /// Time for another connection.
    fn is_busy(&self) -> bool {
        self.streams.get() >= limits::STREAMS_BEFORE_NEXT.min(self.most_streams())
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.most_streams()
    }

    /// What the peer allows now.
    fn most_streams(&self) -> usize {
        let driver = self.driver.try_borrow().ok();
        driver.and_then(|driver| driver.as_ref().map(Driver::current_max_send_streams)).unwrap_or(0)
    }
}

impl StreamSlot {
    fn fill(&self, connection: Rc<Connection>, pool: &Rc<Pool>) {
        connection.streams.set(connection.streams.get() + 1);
        connection.last_used.set(Instant::now());
        self.0.replace(Some(Claim(connection, Rc::clone(pool))));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Self(connection, pool) = self;
        let was_full = !connection.has_room();
        connection.streams.set(connection.streams.get().saturating_sub(1));
        connection.last_used.set(Instant::now());
        if was_full {
            pool.shared.news.notify_waiters();
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

/// hyper's tasks stay on the worker.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
