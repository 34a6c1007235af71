//! The small HTTP/1.1 servers beside the traffic (admin, probes), on the control runtime.
//!
//! Idle connections keep nobody out: when there are too many, the one that has said nothing for longest goes. Nor do long answers
//! ([`long`]) keep out short ones: they have few connections of their own.

use std::{
    cell::{Cell, RefCell},
    io,
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
/// Of these, those that got a [`long`] answer.
const LONG_CONNECTIONS: usize = 8;
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
    /// From an answer to the end of the next request's head: the client must read the one and send the other in that time.
    pub(crate) silence: Duration,
}

/// Marks an answer as [`long`].
#[derive(Debug, Clone, Copy)]
struct Long;

/// An answer that is long, and that is not what the server is there for: of connections that got one only so many are open at once, and
/// one more is answered with 503.
pub(crate) fn long(mut answer: Answer) -> Answer {
    answer.extensions_mut().insert(Long);
    answer
}

/// Marks an answer that is [`none`].
#[derive(Debug, Clone, Copy)]
struct Unanswered;

/// No answer: the connection is closed.
pub(crate) fn none() -> Answer {
    let mut answer = Answer::default();
    answer.extensions_mut().insert(Unanswered);
    answer
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
    let long_answers: Rc<Cell<usize>> = Rc::default();
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
                let long_answers = Rc::clone(&long_answers);
                let task = tokio::task::spawn_local(async move {
                    // The client sees what went wrong; nobody else needs to.
                    let served = connection(stream, &*answer, &its_waiting, &long_answers);
                    let _ = time::timeout(limits.connection, async {
                        tokio::select! {
                            served = served => drop(served),
                            () = silent(&its_waiting, limits.silence) => {}
                        }
                    })
                    .await;
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

/// Returns when a client has been waited for for longer than that.
async fn silent(waiting: &Waiting, most: Duration) {
    loop {
        let left = waiting.get().map_or(most, |since| most.saturating_sub(since.elapsed()));
        if left.is_zero() {
            return;
        }
        time::sleep(left).await;
    }
}

/// `long_answers`: how many connections got one.
async fn connection(
    stream: TcpStream,
    answer: &impl AsyncFn(Request<Incoming>, SocketAddr) -> Answer,
    waiting: &Waiting,
    long_answers: &Rc<Cell<usize>>,
) -> hyper::Result<()> {
    let Ok(local) = stream.local_addr() else { return Ok(()) };
    let has_long = RefCell::new(None);
    let service = service_fn(async |request| {
        waiting.set(None);
        let mut answer = answer(request, local).await;
        if answer.extensions().get::<Unanswered>().is_some() {
            return Err(io::Error::other("there is no answer"));
        }
        if answer.extensions_mut().remove::<Long>().is_some() {
            let held = has_long.borrow_mut().take();
            let place = held.or_else(|| Place::take(long_answers));
            if place.is_none() {
                answer = text(StatusCode::SERVICE_UNAVAILABLE, "too many ask for this at once\n");
                answer.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
            }
            *has_long.borrow_mut() = place;
        }
        waiting.set(Some(Instant::now()));
        Ok(answer)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// One of [`LONG_CONNECTIONS`], given back when it is dropped.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(taken: &Rc<Cell<usize>>) -> Option<Self> {
        (taken.get() < LONG_CONNECTIONS).then(|| {
            taken.set(taken.get() + 1);
            Self(Rc::clone(taken))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
            let limits = Limits { what: "test", connection: Duration::from_secs(60), silence: Duration::from_secs(60) };
            tokio::task::spawn_local(serve(listener, limits, async |_, _| text(StatusCode::OK, "live\n")));
            let mut idle = Vec::new();
            for _ in 0..CONNECTIONS {
                idle.push(TcpStream::connect(address).await.unwrap());
            }
            let request = b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
            let answer = crate::testing::talk(address, request).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("live\n"), "{answer}");
            let still_open = |stream: &TcpStream| {
                stream.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            };
            assert!(still_open(&idle[1]), "one is closed for one");
            idle[0].readable().await.unwrap();
            assert!(!still_open(&idle[0]));
        });
    }

    #[test]
    fn long_answers_keep_no_short_one_out_and_nobody_may_leave_one_unread() {
        crate::testing::run(async {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let address = listener.local_addr().unwrap();
            let second = Duration::from_secs(1);
            let limits = Limits { what: "test", connection: Duration::from_secs(600), silence: second };
            // More than the kernel keeps for who does not read.
            let body = Bytes::from(vec![b'x'; 16 << 20]);
            tokio::task::spawn_local(serve(listener, limits, async move |request, _| match request.uri().path() {
                "/long" => long(text(StatusCode::OK, body.clone())),
                _ => text(StatusCode::OK, "live\n"),
            }));
            let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
            let mut unread = Vec::new();
            for _ in 0..LONG_CONNECTIONS {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(ask("/long").as_bytes()).await.unwrap();
                stream.readable().await.unwrap();
                unread.push(stream);
            }
            let answer = crate::testing::talk(address, ask("/long").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            let answer = crate::testing::talk(address, ask("/live").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            // Those that are not read are cut off, and make place.
            let made = async {
                loop {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    stream.write_all(ask("/long").as_bytes()).await.unwrap();
                    let mut head = [0; 12];
                    stream.read_exact(&mut head).await.unwrap();
                    if head.ends_with(b"200") {
                        break;
                    }
                    time::sleep(Duration::from_millis(20)).await;
                }
            };
            time::timeout(Duration::from_secs(30), made).await.unwrap();
            drop(unread);
        });
    }
}
