//! An application in the middle of a call: it answers each request with what the next one answers, and forwards
//! `traceparent`, or not.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1::SendRequest, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A running relay; gone, with its connections, when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Where to, and under what name.
    next: OnceLock<(SocketAddr, String)>,
    forwards_trace: bool,
    /// Connections to the next that are at rest.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1; answers 500 until [`Relay::calls`] says whom it calls.
    pub async fn start(forwards_trace: bool) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.context("listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { next: OnceLock::new(), forwards_trace, idle: Mutex::default() });
        let serving = tokio::spawn(serve(listener, shared.clone()));
        Ok(Self { address, shared, serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whom it calls, once and for all.
    pub fn calls(&self, next: SocketAddr, host: &str) {
        // A second call changes nothing.
        let _ = self.shared.next.set((next, host.to_owned()));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // Latency only; a failure shows later.
                let _ = stream.set_nodelay(true);
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| {
                        let shared = shared.clone();
                        // Goes on if its client leaves, as many applications do.
                        let answer = tokio::spawn(async move { answer(&shared, &request).await });
                        async move {
                            let failed = |_| status(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new());
                            Ok::<_, Infallible>(answer.await.unwrap_or_else(failed))
                        }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // Clients may leave as they like.
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match call(shared, request).await {
        Ok((code, body)) => status(code, body),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}").into()),
    }
}

fn status(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

async fn call(shared: &Shared, request: &Request<Incoming>) -> Result<(StatusCode, Bytes)> {
    let (address, host) = shared.next.get().context("it calls nobody yet")?;
    let mut onward = Request::get(request.uri().path()).header(header::HOST, host);
    if shared.forwards_trace
        && let Some(trace) = request.headers().get("traceparent")
    {
        onward = onward.header("traceparent", trace);
    }
    let held = shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut sender = match held.filter(SendRequest::is_ready) {
        Some(sender) => sender,
        None => connect(*address).await?,
    };
    let (head, body) = sender.send_request(onward.body(Full::default())?).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    if sender.ready().await.is_ok() {
        shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    }
    Ok((head.status, body))
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends GET requests for `path` over `connections` connections at `rate` per second for as long as `duration`, each with a
/// `traceparent` of its own; the statuses that came, and how often.
pub async fn flood(
    address: SocketAddr,
    path: &str,
    connections: u32,
    rate: f64,
    duration: Duration,
) -> Result<BTreeMap<u16, u64>> {
    let pause = Duration::from_secs_f64(f64::from(connections) / rate);
    let mut senders = JoinSet::new();
    for n in 0..connections {
        let path = path.to_owned();
        senders.spawn(async move {
            let mut counts = BTreeMap::<u16, u64>::new();
            let end = tokio::time::Instant::now() + duration;
            // Spread over the pause, so that the load is even.
            let first = tokio::time::Instant::now() + pause.mul_f64(f64::from(n) / f64::from(connections));
            let mut ticks = tokio::time::interval_at(first, pause);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut sender = connect(address).await?;
            loop {
                let tick = ticks.tick().await;
                if tick >= end {
                    return Ok(counts);
                }
                let trace =
                    format!("00-{:016x}{:016x}-{:016x}-00", fastrand::u64(1..), fastrand::u64(..), fastrand::u64(1..));
                let request = Request::get(&path).header(header::HOST, "hop").header("traceparent", trace);
                let response = sender.send_request(request.body(Full::default())?).await?;
                *counts.entry(response.status().as_u16()).or_default() += 1;
                response.into_body().collect().await?;
                if sender.ready().await.is_err() {
                    sender = connect(address).await?;
                }
            }
        });
    }
    let mut all = BTreeMap::<u16, u64>::new();
    while let Some(done) = senders.join_next().await {
        let counts: Result<BTreeMap<u16, u64>> = done.context("a sender")?;
        for (status, count) in counts? {
            *all.entry(status).or_default() += count;
        }
    }
    Ok(all)
}
