//! The server half of HTTP: connections from clients, HTTP/1 and HTTP/2, with every limit spelled out.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION, request::Parts};
use hyper::{body::Incoming, rt::Executor, server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use leno_proto::spiffe::SpiffeId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::{Body, exchange::Exchange};
use crate::{config::limits, drain::Drain, net::Io, telemetry::Direction};

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

/// What a client's connection is doing, as its stream and its requests see it. Atomic only because an
/// upgraded stream must be `Send`; it never leaves its thread.
#[derive(Debug, Default)]
pub(crate) struct ClientPhase {
    phase: AtomicU8,
    requests: AtomicU32,
}

/// No byte of a next request head has come.
const IDLE: u8 = 0;
/// Some bytes of a head have come.
const HEAD: u8 = 1;
/// As HEAD, and the head had both a length and a transfer coding.
const AMBIGUOUS: u8 = 2;
/// A request is being served.
const REQUEST: u8 = 3;

impl ClientPhase {
    /// A head is complete; whether its framing was ambiguous (RFC 9112 6.1: both Content-Length and
    /// Transfer-Encoding, of which hyper shows only one).
    fn head_complete(&self) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.phase.swap(REQUEST, Ordering::Relaxed) == AMBIGUOUS
    }

    /// The exchange has ended.
    pub(crate) fn answered(&self) {
        self.phase.store(IDLE, Ordering::Relaxed);
    }
}

/// A request as it came in, and what its connection knows of it.
pub(crate) struct Received {
    pub(crate) request: Request<Incoming>,
    /// HTTP/1: told when the exchange ended.
    pub(crate) phase: Option<Arc<ClientPhase>>,
    /// The head stated its body's length in two ways.
    pub(crate) ambiguous: bool,
}

impl Received {
    /// The request's parts, and the exchange that begins with it.
    pub(crate) fn begin(
        self,
        ctx: &crate::worker::Context,
        direction: Direction,
        peer: Option<SpiffeId>,
    ) -> (Parts, Incoming, Box<Exchange>) {
        let (head, body) = self.request.into_parts();
        let exchange = Exchange::begin(ctx, direction, &head, peer, self.phase, self.ambiguous);
        (head, body, exchange)
    }
}

/// Serves HTTP/1.0 and HTTP/1.1 on `stream` until the client leaves or draining has begun and the last
/// response is complete.
///
/// # Errors
/// What ended the connection, if it was not a clean close.
pub(crate) async fn http1<S, F>(stream: S, mut drain: Drain, handle: impl Fn(Received) -> F) -> hyper::Result<()>
where
    S: Io,
    F: Future<Output = Response<Body>>,
{
    let phase = Arc::new(ClientPhase::default());
    let stream = HeadGuard::new(stream, Arc::clone(&phase));
    let closing = drain.clone();
    let service = service_fn(|request| {
        let ambiguous = phase.head_complete();
        let answer = handle(Received { request, phase: Some(Arc::clone(&phase)), ambiguous });
        let closing = &closing;
        async move {
            let mut response = answer.await;
            if closing.has_begun() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // `HeadGuard` keeps time: hyper's timeout would also close connections that are merely idle.
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
        ended = connection.as_mut() => return ended,
        () = drain.begun() => {}
    }
    // Closed while idle, a connection may cross a request on its way (RFC 9112 9.5), which might not be safe to send again:
    // for a while the client is told by its next response instead.
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = tokio::time::sleep(limits::DRAIN_LINGER) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Serves HTTP/2 on `stream`, as [`http1`] does HTTP/1.
///
/// # Errors
/// What ended the connection, if it was not a clean close.
pub(crate) async fn http2<S, F>(stream: S, mut drain: Drain, handle: impl Fn(Received) -> F) -> hyper::Result<()>
where
    S: Io,
    F: Future<Output = Response<Body>> + 'static,
{
    let service = service_fn(|request| {
        let answer = handle(Received { request, phase: None, ambiguous: false });
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = conn::http2::Builder::new(LocalExecutor)
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

/// A client's HTTP/1 stream. It bounds the time a request head may take (HEADER_TIMEOUT) apart from the
/// time a connection may be idle (CLIENT_IDLE), and notices heads whose framing is ambiguous.
struct HeadGuard<S> {
    stream: S,
    phase: Arc<ClientPhase>,
    framing: Framing,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the timer was set for: the requests served until then, and whether a head had begun.
    timed: (u32, bool),
}

impl<S> HeadGuard<S> {
    fn new(stream: S, phase: Arc<ClientPhase>) -> Self {
        Self { stream, phase, framing: Framing::default(), timer: None, timed: (0, false) }
    }

    /// Bytes came: unless a request is being served, they belong to a head.
    fn saw(&mut self, bytes: &[u8]) {
        match self.phase.phase.load(Ordering::Relaxed) {
            REQUEST | AMBIGUOUS => return,
            IDLE => {
                self.framing = Framing::default();
                self.phase.phase.store(HEAD, Ordering::Relaxed);
            }
            _ => {}
        }
        if self.framing.read(bytes) {
            self.phase.phase.store(AMBIGUOUS, Ordering::Relaxed);
        }
    }

    /// Ready if the client takes too long, in a head or between two requests. The timer is re-armed when
    /// it fires, not at each request: late by twice the limit at most.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let in_head = match self.phase.phase.load(Ordering::Relaxed) {
                REQUEST => return Poll::Pending,
                IDLE => false,
                _ => true,
            };
            let now = (self.phase.requests.load(Ordering::Relaxed), in_head);
            if self.timer.is_none() || (in_head && !self.timed.1) {
                let allowed = if in_head { limits::HEADER_TIMEOUT } else { limits::CLIENT_IDLE };
                self.timer = Some(Box::pin(tokio::time::sleep(allowed)));
                self.timed = now;
            }
            if let Some(timer) = &mut self.timer {
                std::task::ready!(timer.as_mut().poll(cx));
            }
            self.timer = None;
            if self.timed == now {
                return Poll::Ready(());
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                self.saw(buf.filled().get(before..).unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            Poll::Pending => self.poll_late(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            failed => failed,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Which framing fields a head has shown so far, read line by line across reads.
#[derive(Debug, Default)]
struct Framing {
    /// The first bytes of the present line, lower case: enough to tell the two fields.
    line: [u8; TRANSFER_ENCODING.len()],
    line_len: usize,
    any_line: bool,
    length: bool,
    coding: bool,
    ended: bool,
    last: u8,
    /// A line ended without CR, which recipients read differently (RFC 9112 2.2).
    bare_lf: bool,
}

const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";

impl Framing {
    /// Reads on; true if the head has both framing fields, or a line that ends in a bare LF.
    fn read(&mut self, bytes: &[u8]) -> bool {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.ended {
                break;
            }
            for byte in part.iter().take(self.line.len() - self.line_len) {
                if let Some(slot) = self.line.get_mut(self.line_len) {
                    *slot = byte.to_ascii_lowercase();
                    self.line_len += 1;
                }
            }
            if let [before @ .., b'\n'] = part {
                self.bare_lf |= before.last().unwrap_or(&self.last) != &b'\r';
                self.end_line();
            }
            self.last = part.last().copied().unwrap_or_default();
        }
        self.bare_lf || (self.length && self.coding)
    }

    fn end_line(&mut self) {
        let line = self.line.get(..self.line_len).unwrap_or_default();
        if line == b"\r\n" || line == b"\n" {
            // Empty lines before the request line are skipped (RFC 9112 2.2).
            self.ended = self.any_line;
        } else {
            self.any_line = true;
            self.length |= line.starts_with(CONTENT_LENGTH);
            self.coding |= line.starts_with(TRANSFER_ENCODING);
        }
        self.line_len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_framing_fields_are_noticed_however_the_head_is_cut() {
        let both = b"POST / HTTP/1.1\r\nHost: a\r\nContent-LENGTH: 5\r\nX: y\r\ntransfer-Encoding: chunked\r\n\r\n";
        for cut in 0..both.len() {
            let mut framing = Framing::default();
            let (first, second) = both.split_at(cut);
            assert!(framing.read(first) | framing.read(second), "cut at {cut}");
        }
        for fine in [
            &b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nTransfer-Encoding: chunked\r\n"[..],
            b"\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nContent-Length: 5\r\n",
            b"GET /?content-length: HTTP/1.1\r\nX-Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        ] {
            assert!(!Framing::default().read(fine), "{:?}", std::str::from_utf8(fine));
        }
        assert!(Framing::default().read(b"\r\nPOST / HTTP/1.1\nContent-Length:5\nTransfer-Encoding:chunked\n\n"));
    }
}
