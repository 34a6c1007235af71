//! The server half of HTTP: connections from clients, HTTP/1 and HTTP/2, with every limit spelled out.

use std::{cell::Cell, convert::Infallible, future::Future, pin::pin, rc::Rc, sync::Arc, time::Duration};

use http::{Request, StatusCode};
use hyper::{body::Incoming, rt::Executor, server::conn, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use leno_proto::spiffe::SpiffeId;

use super::{
    Body, Response, adapt,
    client_stream::{ClientPhase, ClientStream},
    exchange::Exchange,
    head::{Name, RequestHead},
    watch::{Counted, Overdue, Watch, Watched},
};
use crate::{
    config::limits,
    drain::Drain,
    net::{Backlog, Io},
    telemetry::{Direction, RouteMetrics},
};

/// Spawns on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Spawns the streams of one client's HTTP/2 connection, each with the watch that was made for it.
#[derive(Clone, Default)]
struct StreamExecutor {
    /// hyper calls the service and then, at once, spawns the stream that the call belongs to.
    next: Rc<Cell<Option<Rc<Watch>>>>,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        match self.next.take() {
            Some(watch) => drop(tokio::task::spawn_local(Watched::new(&watch, future))),
            // What moves a tunnel's bytes.
            None => drop(tokio::task::spawn_local(future)),
        }
    }
}

/// A request as it came in, and what its connection knows of it.
pub(crate) struct Received {
    head: RequestHead,
    body: Body,
    watch: Rc<Watch>,
    /// Two readers could understand the head differently: how.
    refused: Option<&'static str>,
    /// The client's side of an upgrade, should one be granted.
    upgrade: Option<OnUpgrade>,
}

/// A request taken up.
pub(crate) struct Begun {
    pub(crate) head: RequestHead,
    pub(crate) body: Body,
    pub(crate) exchange: Box<Exchange>,
    /// The client's side of an upgrade, should one be granted.
    pub(crate) upgrade: Option<OnUpgrade>,
}

impl Received {
    fn of_hyper(request: Request<Incoming>, watch: Rc<Watch>, ambiguous: bool) -> Self {
        let (mut parts, body) = request.into_parts();
        let (head, refused) = adapt::request_head(&parts);
        let refused = if ambiguous { Some("both Content-Length and Transfer-Encoding") } else { refused };
        Self { head, body: Body::hyper(body), watch, refused, upgrade: parts.extensions.remove() }
    }

    /// The exchange begins.
    pub(crate) fn begin(
        self,
        ctx: &crate::worker::Context,
        direction: Direction,
        peer: Option<SpiffeId>,
        metrics: &RouteMetrics,
    ) -> Begun {
        let Self { head, body, watch, refused, upgrade } = self;
        let exchange = Exchange::begin(ctx, direction, &head, peer, metrics, watch, refused);
        Begun { head, body, exchange, upgrade }
    }
}

/// The reason counted for [`is_malformed`].
pub(crate) const MALFORMED: &str = "malformed";

/// Whether the client sent what is no HTTP, or a head beyond the limits: hyper answers it (400, 431) and ends the
/// connection, and no request is recorded.
pub(crate) fn is_malformed(error: &hyper::Error) -> bool {
    let of_http2 = || std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    // "Library": it was our side that found fault.
    error.is_parse() || of_http2().is_some_and(h2::Error::is_library)
}

/// Serves HTTP/1.0 and HTTP/1.1 on `stream` until the client leaves, or draining has begun and the last
/// response is complete, or an exchange is overdue. `drain`: a watcher; the connection is counted since it was accepted.
/// `idle`: the longest time without a byte moved in an exchange.
///
/// # Errors
/// What ended the connection, if it was not a clean close.
pub(crate) async fn http1<S, F>(
    stream: S,
    drain: Drain,
    idle: Duration,
    handle: impl Fn(Received) -> F,
) -> hyper::Result<()>
where
    S: Io + Backlog,
    F: Future<Output = Response>,
{
    let phase = Arc::new(ClientPhase::default());
    let watch = Watch::new(idle, Some(Arc::clone(&phase)));
    let stream = ClientStream::new(stream, Arc::clone(&phase));
    let service = service_fn(|request| {
        let ambiguous = phase.begin();
        let version = request.version();
        let answer = handle(Received::of_hyper(request, Rc::clone(&watch), ambiguous));
        let drain = &drain;
        async move {
            let mut response = answer.await;
            if drain.has_begun() && response.head.status != StatusCode::SWITCHING_PROTOCOLS {
                response.head.fields.set(Name::Connection, b"close");
            }
            Ok::<_, Infallible>(adapt::response(response, version))
        }
    });
    let connection = conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // `ClientStream` keeps time: hyper's timeout would also close connections that are merely idle.
        .header_read_timeout(None)
        // A client that closes its side has left: its request is dropped, upstream too.
        .half_close(false)
        .keep_alive(true)
        .max_headers(limits::HEADERS)
        .max_header_size(limits::HEAD_BYTES)
        .max_buf_size(limits::HTTP1_BUFFER)
        .pipeline_flush(false)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = Watched::new(&watch, connection.as_mut()) => return ended_as(ended),
        () = drain.begun() => {}
    }
    // Closed while idle, a connection may cross a request on its way (RFC 9112 9.5), which might not be safe to send again:
    // for a while the client is told by its next response instead.
    tokio::select! {
        biased;
        ended = Watched::new(&watch, connection.as_mut()) => return ended_as(ended),
        () = tokio::time::sleep(limits::DRAIN_LINGER) => {}
    }
    connection.as_mut().graceful_shutdown();
    ended_as(Watched::new(&watch, connection).await)
}

/// How the connection ended: when an exchange is overdue its end is the connection's.
fn ended_as(ended: Result<hyper::Result<()>, Overdue>) -> hyper::Result<()> {
    ended.unwrap_or_else(|overdue| {
        tracing::debug!(reason = overdue.reason(), "client connection closed in the middle of an exchange");
        Ok(())
    })
}

/// Serves HTTP/2 on `stream`, as [`http1`] does HTTP/1; an exchange that is overdue ends its own stream alone.
///
/// # Errors
/// What ended the connection, if it was not a clean close.
pub(crate) async fn http2<S, F>(
    stream: S,
    drain: Drain,
    idle: Duration,
    handle: impl Fn(Received) -> F,
) -> hyper::Result<()>
where
    S: Io,
    F: Future<Output = Response> + 'static,
{
    let executor = StreamExecutor::default();
    let next = Rc::clone(&executor.next);
    let service = service_fn(|request| {
        let watch = Watch::new(idle, None);
        next.set(Some(Rc::clone(&watch)));
        let version = request.version();
        let answer = handle(Received::of_hyper(request, Rc::clone(&watch), false));
        async move {
            let response = adapt::response(answer.await, version);
            Ok::<_, Infallible>(response.map(|body| Counted::new(body, watch)))
        }
    });
    let connection = conn::http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_frame_size(limits::H2_FRAME_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .max_header_list_size(limits::HEAD_BYTES as u32)
        .max_send_buf_size(limits::H2_SEND_BUFFER)
        // Rapid reset (CVE-2023-44487) and resets that we are made to send (CVE-2025-8671).
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS)
        .max_local_error_reset_streams(limits::H2_LOCAL_RESETS)
        .keep_alive_interval(limits::H2_PING_INTERVAL)
        .keep_alive_timeout(limits::H2_PING_TIMEOUT)
        .enable_connect_protocol()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = drain.begun() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}
