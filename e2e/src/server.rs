//! The application behind a sidecar: one port that speaks HTTP/1.1, HTTP/2 (prior knowledge) and gRPC, says
//! who it is and what it saw, and misbehaves when told to.
//!
//! Paths: `/status/503` answers so; `/delay/100` waits that many ms; `/slot/100` does so with
//! one of [`Control::slots`], which it waits for; `/bytes/1000` sends that many; `/trailers` ends
//! a chunked body with trailers; `/count/<key>/<n>` fails (503) the first `n` requests for a key; anything else is
//! answered with [`Seen`] as JSON.

mod grpc;

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Channel, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tonic::{body::Body as GrpcBody, codegen::Service as _};

use crate::echo::echo_server::EchoServer;

/// Response header that holds the server's name.
pub const INSTANCE: &str = "x-instance";

type Body = UnsyncBoxBody<Bytes, tonic::Status>;

/// What the server saw of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// The server's name.
    pub instance: String,
    pub method: String,
    /// With the query.
    pub path: String,
    /// "HTTP/1.1"
    pub version: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// Names in lower case; several values joined by ", ".
    pub headers: BTreeMap<String, String>,
    pub body_bytes: u64,
}

/// Counts and switches, while it runs.
#[derive(Debug, Default)]
pub struct Control {
    /// Requests received, of any kind.
    pub requests: AtomicU64,
    /// Requests not yet answered.
    pub in_flight: AtomicUsize,
    /// Connections accepted so far.
    pub connections: AtomicU64,
    /// Connections open now.
    pub open: AtomicUsize,
    /// Wait before each answer, ms.
    pub delay_ms: AtomicU64,
    /// Not 0: answer everything with this status.
    pub status: AtomicUsize,
    /// Not 0: with such an answer, the seconds of its Retry-After.
    pub retry_after: AtomicU64,
    /// Requests for `/slot` served at a time; others wait. Not set: any number.
    pub slots: OnceLock<Semaphore>,
    counts: Mutex<HashMap<String, u64>>,
    /// Requests by path; bounded by what tests ask for.
    paths: Mutex<HashMap<String, u64>>,
}

/// A running server; gone, with its connections, when dropped.
#[derive(Debug)]
pub struct Server {
    name: Arc<str>,
    address: SocketAddr,
    control: Arc<Control>,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start(name: &str) -> Result<Self> {
        Self::listen(name, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub async fn listen(name: &str, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let address = listener.local_addr()?;
        let (name, control): (Arc<str>, _) = (name.into(), Arc::new(Control::default()));
        let serving = tokio::spawn(serve(listener, name.clone(), control.clone()));
        Ok(Self { name, address, control, serving })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Requests for that path, its query left out, that it read to their end.
    pub fn seen(&self, path: &str) -> u64 {
        let paths = self.control.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.get(path).copied().unwrap_or_default()
    }

    pub fn requests(&self) -> u64 {
        self.control.requests.load(Relaxed)
    }

    /// Closes listener and connections at once, as a crash does.
    pub async fn kill(&mut self) {
        self.serving.abort();
        // An aborted task ends with an error, as it should.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, name: Arc<str>, control: Arc<Control>) {
    // Owned here, so that connections end with the listener.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, name.clone(), control.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, name: Arc<str>, control: Arc<Control>) {
    // Latency only; a failure shows later.
    let _ = stream.set_nodelay(true);
    control.connections.fetch_add(1, Relaxed);
    let _open = Counted::new(control.clone(), |control| &control.open);
    let service = service_fn(|request| {
        let (name, control) = (name.clone(), control.clone());
        async move {
            control.requests.fetch_add(1, Relaxed);
            let _in_flight = Counted::new(control.clone(), |control| &control.in_flight);
            let mut response = answer(request, &name, &control).await;
            if let Ok(name) = HeaderValue::from_str(&name) {
                response.headers_mut().insert(INSTANCE, name);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000);
    // Clients may leave as they like.
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn answer(mut request: Request<Incoming>, name: &Arc<str>, control: &Control) -> Response<Body> {
    let delay = control.delay_ms.load(Relaxed);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if content_type.starts_with(b"application/grpc") {
        let answered = EchoServer::new(grpc::Service::new(name.clone())).call(request).await;
        return answered.unwrap_or_else(|never| match never {}).map(GrpcBody::boxed_unsync);
    }
    if request.headers().contains_key(header::UPGRADE) {
        return upgrade(&mut request);
    }
    let path = request.uri().path().to_owned();
    let mut segments = path.split('/').skip(1);
    let (what, argument) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    let number = argument.parse::<u64>().unwrap_or_default();
    let seen = match seen(request, name).await {
        Ok(seen) => seen,
        Err(error) => return reply(StatusCode::BAD_REQUEST, format!("{error:#}").into()),
    };
    *control.paths.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default() += 1;
    let forced = u16::try_from(control.status.load(Relaxed)).ok().and_then(|code| StatusCode::from_u16(code).ok());
    if let Some(status) = forced {
        let mut response = reply(status, "as told".into());
        match control.retry_after.load(Relaxed) {
            0 => {}
            seconds => drop(response.headers_mut().insert(header::RETRY_AFTER, seconds.into())),
        }
        return response;
    }
    match what {
        "status" => {
            let status = argument.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
            reply(status.unwrap_or(StatusCode::BAD_REQUEST), "as asked".into())
        }
        "delay" => {
            tokio::time::sleep(Duration::from_millis(number)).await;
            reply_json(&seen)
        }
        "slot" => {
            let slot = match control.slots.get() {
                Some(slots) => slots.acquire().await.ok(),
                None => None,
            };
            tokio::time::sleep(Duration::from_millis(number)).await;
            drop(slot);
            reply_json(&seen)
        }
        "bytes" => reply(StatusCode::OK, vec![b'x'; usize::try_from(number).unwrap_or_default()].into()),
        "trailers" => trailers(),
        "count" => {
            let mut counts = control.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(argument.to_owned()).or_default();
            *count += 1;
            let failing = segments.next().and_then(|n| n.parse().ok()).unwrap_or(0u64);
            if *count <= failing { reply(StatusCode::SERVICE_UNAVAILABLE, "not yet".into()) } else { reply_json(&seen) }
        }
        _ => reply_json(&seen),
    }
}

async fn seen(request: Request<Incoming>, name: &str) -> Result<Seen> {
    let (head, mut body) = request.into_parts();
    let mut body_bytes = 0;
    while let Some(frame) = body.frame().await {
        body_bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    let mut headers = BTreeMap::<String, String>::new();
    for (key, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(key.as_str().to_owned())
            .and_modify(|all| *all = format!("{all}, {value}"))
            .or_insert_with(|| value.into_owned());
    }
    let authority = head.uri.authority().map(|authority| authority.as_str().to_owned());
    Ok(Seen {
        instance: name.to_owned(),
        method: head.method.to_string(),
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        version: format!("{:?}", head.version),
        authority: authority.or_else(|| headers.get("host").cloned()).unwrap_or_default(),
        headers,
        body_bytes,
    })
}

fn reply(status: StatusCode, content: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(content).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn reply_json(seen: &Seen) -> Response<Body> {
    let mut response = reply(StatusCode::OK, serde_json::to_vec(seen).unwrap_or_default().into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn trailers() -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, tonic::Status>::new(2);
    tokio::spawn(async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("abc"));
        // If the reader left, there is nobody to tell.
        let _ = sender.send_data("some data".into()).await;
        let _ = sender.send(Frame::trailers(trailers)).await;
    });
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

/// Switches to a protocol that sends back whatever it gets.
fn upgrade(request: &mut Request<Incoming>) -> Response<Body> {
    let protocol = request.headers().get(header::UPGRADE).cloned();
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
            // The peer may leave at any time.
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    let mut response = reply(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    response
}

/// Holds one of [`Control`]'s gauges up while it lives.
struct Counted {
    control: Arc<Control>,
    gauge: fn(&Control) -> &AtomicUsize,
}

impl Counted {
    fn new(control: Arc<Control>, gauge: fn(&Control) -> &AtomicUsize) -> Self {
        gauge(&control).fetch_add(1, Relaxed);
        Self { control, gauge }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.gauge)(&self.control).fetch_sub(1, Relaxed);
    }
}
