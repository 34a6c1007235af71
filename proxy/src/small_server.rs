//! The small HTTP/1.1 servers beside the traffic (admin, probes), on the control runtime.
//!
//! Idle connections keep nobody out: when there are too many, the one that has said nothing for longest goes.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time,
};

/// Connections open at once; for one more, another is closed.
const CONNECTIONS: usize = 64;
/// Bytes of a request head.
const HEAD_BYTES: usize = 16 * 1024;
/// From the moment a request is waited for to the end of its head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait after a failure to accept.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

pub(crate) type Answer = Response<Full<Bytes>>;

/// What differs between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the log: "admin".
    pub(crate) what: &'static str,
    /// A whole connection's life.
    pub(crate) connection: Duration,
}

/// A connection that is served.
struct Open {
    waiting: Waiting,
    task: JoinHandle<()>,
}

/// Since when a connection waits for its client's request; None: it is answering one.
type Waiting = Rc<Cell<Option<Instant>>>;

/// Serves until the process ends. `answer` gets each request with the address that its connection came in by.
pub(crate) async fn serve(
    listener: TcpListener,
    limits: Limits,
    answer: impl AsyncFn(Request<Incoming>, SocketAddr) -> Answer + 'static,
) {
    let answer = Rc::new(answer);
    let mut open: Vec<Open> = Vec::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|open| !open.task.is_finished());
                if open.len() >= CONNECTIONS {
                    let longest = longest_waiting(open.iter().map(|open| open.waiting.get()));
                    open.remove(longest).task.abort();
                }
                let waiting = Waiting::new(Cell::new(Some(Instant::now())));
                let (answer, its_waiting) = (Rc::clone(&answer), Rc::clone(&waiting));
                let task = tokio::task::spawn_local(async move {
                    // The client sees what went wrong; nobody else needs to.
                    let _ = time::timeout(limits.connection, connection(stream, &*answer, &its_waiting)).await;
                });
                open.push(Open { waiting, task });
            }
            Err(error) => {
                tracing::warn!("the {} server cannot accept: {error}", limits.what);
                time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Which connection is given up for another: the one that has waited longest for a request, or else the oldest.
fn longest_waiting(waiting: impl Iterator<Item = Option<Instant>>) -> usize {
    let waiting = waiting.enumerate().filter_map(|(index, since)| Some((since?, index)));
    waiting.min().map_or(0, |(_, index)| index)
}

async fn connection(
    stream: TcpStream,
    answer: &impl AsyncFn(Request<Incoming>, SocketAddr) -> Answer,
    waiting: &Waiting,
) -> hyper::Result<()> {
    let Ok(local) = stream.local_addr() else { return Ok(()) };
    let service = service_fn(async |request| {
        waiting.set(None);
        let answer = answer(request, local).await;
        waiting.set(Some(Instant::now()));
        Ok::<_, std::convert::Infallible>(answer)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    with_type(status, "application/json", format!("{value:#}\n").into())
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_longest_goes_first() {
        let now = Instant::now();
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        assert_eq!(longest_waiting([None, ago(1), ago(3), ago(2)].into_iter()), 2);
        assert_eq!(longest_waiting([None, None].into_iter()), 0);
    }

    #[test]
    fn idle_connections_keep_nobody_out() {
        crate::testing::run(async {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let address = listener.local_addr().unwrap();
            let limits = Limits { what: "test", connection: Duration::from_secs(60) };
            tokio::task::spawn_local(serve(listener, limits, async |_, _| text(StatusCode::OK, "live\n")));
            let mut idle = Vec::new();
            for _ in 0..CONNECTIONS {
                idle.push(TcpStream::connect(address).await.unwrap());
            }
            let request = b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
            let answer = crate::testing::talk(address, request).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("live\n"), "{answer}");
            let still_open = |stream: &TcpStream| {
                stream.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
            };
            assert!(still_open(&idle[1]), "one is closed for one");
            idle[0].readable().await.unwrap();
            assert!(!still_open(&idle[0]));
        });
    }
}
