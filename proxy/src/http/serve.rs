//! The server half of HTTP: connections from clients, HTTP/1 and HTTP/2, with every limit spelled out.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use http::{Method, Request, StatusCode, Version};
use hyper::{body::Incoming, server::conn, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use leno_proto::spiffe::SpiffeId;
use tokio::{io::AsyncWriteExt as _, sync::oneshot};

use super::{
    Body, Response, adapt,
    client_stream::{ClientBody, ClientPhase, ClientStream, Progress},
    exchange::Exchange,
    framing::Framing,
    h1,
    h2::{self, H2Error},
    head::{Name, RequestHead, ResponseHead, Unfit},
    stream_task::{Respond, StreamTasks},
    upgrade::Upgraded,
    watch::{Watch, Watched},
};
use crate::{
    config::limits,
    drain::Drain,
    net::{Backlog, Io, Prefixed},
    telemetry::{Direction, RouteMetrics},
};

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
    fn of_hyper(request: Request<Incoming>, watch: Rc<Watch>, ambiguous: bool, upgrade: Option<Upgraded>) -> Self {
        let (parts, body) = request.into_parts();
        let (head, refused) = adapt::request_head(&parts);
        let refused = if ambiguous { Some("both Content-Length and Transfer-Encoding") } else { refused };
        let refused = refused.map(Unfit::Malformed);
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
/// Plain requests are read and answered by our own codec ([`h1`]), and what nobody can serve is refused by it; one that is neither
/// is served by hyper.
async fn http1<S>(stream: S, drain: Drain, idle: Duration, handle: impl Fn(Received) -> Answering) -> Result<(), Broken>
where
    S: Io + Backlog,
{
    let handle = &handle;
    let plain = |request: h1::Request| {
        let h1::Request { head, body, watch, refused } = request;
        Plain(handle(Received { head, body: Body::http1(body), watch, refused, upgrade: None }))
    };
    let (mut stream, mut read) = (stream, BytesMut::new());
    loop {
        match h1::serve(stream, read, drain.watcher(), h1::Patience::new(idle), plain).await? {
            h1::Ended::Closed => return Ok(()),
            h1::Ended::Refused(unfit) => return Err(Broken::Unfit(unfit)),
            // Large, and seldom needed.
            h1::Ended::Unusual(next, unread) => match Box::pin(by_hyper(next, unread, &drain, idle, handle)).await? {
                Some(next) => (stream, read) = next,
                None => return Ok(()),
            },
        }
    }
}

/// Serves one request, whose head is in `read`. The stream, and what was read behind the request, if there may be another.
async fn by_hyper<S>(
    stream: S,
    read: BytesMut,
    drain: &Drain,
    idle: Duration,
    handle: impl Fn(Received) -> Answering,
) -> Result<Option<(S, BytesMut)>, Broken>
where
    S: Io + Backlog,
{
    let phase = Rc::new(ClientPhase::default());
    let watch = Watch::new(idle, Some(Rc::clone(&phase)));
    let (progress, tunnel) = (Rc::<Progress>::default(), Cell::new(None));
    // Whatever hyper might find behind the one request is not served.
    let ambiguous = Cell::new(Framing::is_ambiguous(&read));
    let stream = ClientStream::new(stream, read, Rc::clone(&phase), Rc::clone(&progress));
    let service = service_fn(|mut request: Request<Incoming>| {
        let version = request.version();
        let is_connect = request.method() == Method::CONNECT;
        let (offer, upgrade) = request.extensions_mut().remove::<OnUpgrade>().map(|_| oneshot::channel()).unzip();
        let upgrade = upgrade.map(Upgraded::Stream);
        let answer = handle(Received::of_hyper(request, Rc::clone(&watch), ambiguous.replace(true), upgrade));
        let (progress, tunnel) = (Rc::clone(&progress), &tunnel);
        Box::pin(async move {
            let mut response = answer.await;
            let status = response.head.status;
            if status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && status.is_success()) {
                tunnel.set(offer);
            } else if drain.has_begun() {
                response.head.fields.set(Name::Connection, b"close");
            }
            Ok::<_, Infallible>(adapt::response(response, version).map(|body| ClientBody::new(body, progress)))
        })
    });
    let mut connection = conn::http1::Builder::new()
        // Its head is there.
        .header_read_timeout(None)
        // A client that closes its side has left: its request is dropped, upstream too.
        .half_close(false)
        .keep_alive(true)
        .max_headers(limits::HEADERS)
        .max_header_size(limits::HEAD_BYTES)
        .max_buf_size(limits::HTTP1_BUFFER)
        .pipeline_flush(false)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let served = poll_fn(|cx| match connection.poll_without_shutdown(cx) {
        Poll::Ready(ended) => Poll::Ready(ended.map(|()| false)),
        Poll::Pending if !progress.is_complete() => Poll::Pending,
        // It waits for another request, which is not for it: that is all there is to wait for if it ends at once.
        Poll::Pending => {
            Pin::new(&mut connection).graceful_shutdown();
            connection.poll_without_shutdown(cx).map_ok(|()| true)
        }
    });
    let goes_on = match Watched::new(&watch, served).await {
        Ok(served) => served?,
        Err(overdue) => {
            tracing::debug!(reason = %overdue.reason(), "client connection closed in the middle of an exchange");
            return Ok(None);
        }
    };
    let conn::http1::Parts { io, read_buf, .. } = connection.into_parts();
    let (mut stream, read) = io.into_inner().into_parts();
    if let Some(tunnel) = tunnel.take() {
        let read = [read_buf, read.freeze()].concat().into();
        // Nobody waits for it if the exchange has ended.
        let _ = tunnel.send(Box::new(Prefixed::new(read, stream)));
        return Ok(None);
    }
    if goes_on && read_buf.is_empty() {
        return Ok(Some((stream, read)));
    }
    // Its time is kept.
    phase.set_blocked(true);
    // Closed it will be, in any case.
    let _ = Watched::new(&watch, stream.shutdown()).await;
    Ok(None)
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
    let settings = h2::Settings { reports, ..h2::Settings::new() };
    Ok(h2::serve(stream, settings, drain, on_request, on_malformed).await?)
}
