//! The server half of HTTP: connections from clients, HTTP/1 and HTTP/2, with every limit spelled out.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request, StatusCode, Version};
use hyper::{body::Incoming, server::conn, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use leno_proto::spiffe::SpiffeId;
use tokio::sync::oneshot;

use super::{
    Body, Response, adapt,
    client_stream::{ClientPhase, ClientStream},
    exchange::Exchange,
    h1,
    h2::{self, H2Error},
    head::{Name, RequestHead, ResponseHead, Unfit},
    stream_task::{Respond, StreamTasks},
    upgrade::Upgraded,
    watch::{Overdue, Watch, Watched},
};
use crate::{
    config::limits,
    drain::Drain,
    net::{Backlog, Io, Prefixed},
    telemetry::{Direction, RouteMetrics},
};

/// Why hyper's reading of a head is not taken ([`Framing`](super::framing::Framing)).
const AMBIGUOUS: &str = "a head whose end, or whose body's length, can be read in two ways";

/// A request as it came in, and what its connection knows of it.
pub(crate) struct Received {
    head: RequestHead,
    body: Body,
    watch: Rc<Watch>,
    /// Its head is not taken: why.
    refused: Option<Unfit>,
    /// The client's side of an upgrade, should one be granted.
    upgrade: Option<Upgraded>,
}

/// A request taken up.
pub(crate) struct Begun {
    pub(crate) head: RequestHead,
    pub(crate) body: Body,
    pub(crate) exchange: Box<Exchange>,
    /// The client's side of an upgrade, should one be granted.
    pub(crate) upgrade: Option<Upgraded>,
}

impl Received {
    fn of_hyper(request: Request<Incoming>, watch: Rc<Watch>, ambiguous: bool) -> Self {
        let (mut parts, body) = request.into_parts();
        let (head, refused) = adapt::request_head(&parts);
        let refused = if ambiguous { Some(AMBIGUOUS) } else { refused };
        let refused = refused.map(Unfit::Malformed);
        let upgrade = parts.extensions.remove::<OnUpgrade>().map(Upgraded::Hyper);
        Self { head, body: Body::hyper(body), watch, refused, upgrade }
    }

    /// A request that has its answer: what is still to be done is to record it, as any that the proxy answers itself.
    fn answered(head: RequestHead, unfit: Unfit, idle: Duration) -> Self {
        Self { head, body: Body::empty(), watch: Watch::new(idle, None), refused: Some(unfit), upgrade: None }
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

/// What answers a request. On the heap from the beginning: it is large, and would be moved at every step to its task.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Response>>>;

/// What serves a connection. On the heap by itself: it lives as long as the connection, most of the time idle, and takes the
/// room of nothing that came before it or might have come instead.
pub(crate) type Serving<'a> = Pin<Box<dyn Future<Output = Result<(), Broken>> + 'a>>;

/// What ended a client's connection, if it was not a clean close.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The last request, which was answered.
    #[error("{0}")]
    Unfit(Unfit),
    #[error("{0}")]
    Hyper(#[from] hyper::Error),
    #[error("{0}")]
    Http2(#[from] H2Error),
}

/// What a client's connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    /// HTTP/1.1 requests in streams of HTTP/2.
    Http1Mux,
    Http2,
}

/// The reason counted for [`Broken::is_malformed`].
pub(crate) const MALFORMED: &str = "malformed";

impl Broken {
    /// Whether the client sent what is no HTTP, or a head beyond the limits: it is answered (400, 431, GOAWAY) where that
    /// can be, and its connection ends.
    pub(crate) fn is_malformed(&self) -> bool {
        match self {
            Self::Io(_) => false,
            Self::Unfit(_) => true,
            Self::Hyper(error) => error.is_parse(),
            Self::Http2(error) => matches!(error, H2Error::Fault { .. }),
        }
    }
}

/// Serves HTTP on `stream` until the client leaves, or draining has begun and the last response is complete, or an
/// exchange is overdue. `drain`: a watcher; the connection is counted since it was accepted. `idle`: the longest time without a byte
/// moved in an exchange. `reports`: what an HTTP/2 client may hear of the load. `tasks`: the worker's.
///
/// # Errors
/// What ended the connection, if it was not a clean close.
pub(crate) fn http<'a, S>(
    stream: S,
    wire: Wire,
    drain: Drain,
    idle: Duration,
    reports: h2::Reports,
    tasks: &Rc<StreamTasks>,
    handle: impl Fn(Received) -> Answering + 'a,
) -> Serving<'a>
where
    S: Io + Backlog + 'a,
{
    match wire {
        Wire::Http1 => Box::pin(http1(stream, drain, idle, handle)),
        Wire::Http1Mux => Box::pin(http2(stream, reports, drain, idle, Rc::clone(tasks), Version::HTTP_11, handle)),
        Wire::Http2 => Box::pin(http2(stream, reports, drain, idle, Rc::clone(tasks), Version::HTTP_2, handle)),
    }
}

/// An answer as [`h1`] takes it, where it already is on the heap.
struct Plain(Answering);

impl Future for Plain {
    type Output = (ResponseHead, Body);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(|Response { head, body }| (head, body))
    }
}

/// HTTP/1.0 and HTTP/1.1.
///
/// Plain requests are read and answered by our own codec ([`h1`]), and what nobody can serve is refused by it; from the first
/// that is neither on, hyper serves the connection. What it refuses later it answers by itself, without a reason; that is recorded
/// all the same.
async fn http1<S>(stream: S, drain: Drain, idle: Duration, handle: impl Fn(Received) -> Answering) -> Result<(), Broken>
where
    S: Io + Backlog,
{
    let handle = &handle;
    let plain = |request: h1::Request| {
        let h1::Request { head, body, watch, refused } = request;
        Plain(handle(Received { head, body: Body::http1(body), watch, refused, upgrade: None }))
    };
    match h1::serve(stream, drain.watcher(), h1::Patience::new(idle), plain).await? {
        h1::Ended::Closed => Ok(()),
        h1::Ended::Refused(unfit) => Err(Broken::Unfit(unfit)),
        h1::Ended::Unusual(stream, read) => {
            // Large, and seldom needed.
            let ended = Box::pin(by_hyper(Prefixed::new(read, stream), drain, idle, handle)).await;
            if let Some(unfit) = ended.as_ref().err().and_then(refused_by_hyper) {
                let head = RequestHead::remains(Version::HTTP_11, None, None);
                handle(Received::answered(head, unfit, idle)).await;
            }
            ended
        }
    }
}

/// The last request, if hyper could not read its head, and why.
fn refused_by_hyper(ended: &Broken) -> Option<Unfit> {
    match ended {
        Broken::Hyper(error) if error.is_parse_too_large() => Some(Unfit::TooLarge),
        Broken::Hyper(error) if error.is_parse() => Some(Unfit::Malformed("a malformed head")),
        _ => None,
    }
}

/// As [`http1`], all of it by hyper, which says `100 Continue` when the request's body is asked for, and no other 1xx.
async fn by_hyper<S>(
    stream: S,
    drain: Drain,
    idle: Duration,
    handle: impl Fn(Received) -> Answering,
) -> Result<(), Broken>
where
    S: Io + Backlog,
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
    let served = async {
        tokio::select! {
            biased;
            ended = Watched::new(&watch, connection.as_mut()) => return ended,
            () = drain.begun() => {}
        }
        // Closed while idle, a connection may cross a request on its way (RFC 9112 9.5), which might not be safe to send
        // again: for a while the client is told by its next response instead.
        tokio::select! {
            biased;
            ended = Watched::new(&watch, connection.as_mut()) => return ended,
            () = tokio::time::sleep(limits::DRAIN_LINGER) => {}
        }
        connection.as_mut().graceful_shutdown();
        Watched::new(&watch, connection.as_mut()).await
    };
    let ended = served.await;
    let broke_off = match &ended {
        Ok(Ok(())) => false,
        Ok(Err(error)) => error.is_user(),
        Err(_overdue) => true,
    };
    if broke_off {
        phase.break_off();
    }
    ended_as(ended)
}

/// How the connection ended: when an exchange is overdue its end is the connection's.
fn ended_as(ended: Result<hyper::Result<()>, Overdue>) -> Result<(), Broken> {
    ended.map_or_else(
        |overdue| {
            tracing::debug!(reason = %overdue.reason(), "client connection closed in the middle of an exchange");
            Ok(())
        },
        |served| served.map_err(Broken::from),
    )
}

/// Streams of HTTP/2; an exchange that is overdue ends its own stream alone. `version`: what the requests are.
async fn http2<S>(
    stream: S,
    reports: h2::Reports,
    drain: Drain,
    idle: Duration,
    tasks: Rc<StreamTasks>,
    version: Version,
    handle: impl Fn(Received) -> Answering,
) -> Result<(), Broken>
where
    S: Io,
{
    let handle = &handle;
    let on_request = |request: h2::Request| {
        let h2::Request { mut head, refused, send, receive } = request;
        head.version = version;
        tasks.answer(idle, |watch| {
            let (body, upgrade, tunnel) = if head.method == Method::CONNECT && refused.is_none() {
                let (tunnel, upgrade) = oneshot::channel();
                (Body::empty(), Some(Upgraded::Stream(upgrade)), Some((tunnel, receive)))
            } else {
                (Body::http2(receive), None, None)
            };
            let answer = handle(Received { head, body, watch: Rc::clone(watch), refused, upgrade });
            Respond::Waiting { answer, sender: send, tunnel }
        });
    };
    // Its answer is RST_STREAM.
    let on_malformed = |mut head: RequestHead, why| {
        head.version = version;
        let answer = handle(Received::answered(head, Unfit::Malformed(why), idle));
        tokio::task::spawn_local(async move { drop(answer.await) });
    };
    // Load is told to peers alone.
    let settings = if reports.are_given() { h2::Settings::of_peer(reports) } else { h2::Settings::new() };
    Ok(h2::serve(stream, settings, drain, on_request, on_malformed).await?)
}
