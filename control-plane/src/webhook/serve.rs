//! HTTPS for the API server's questions. One connection carries many, one after another. Who only connects keeps nobody out:
//! when there are too many connections, the one that has waited longest for its client goes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    admission,
    certificates::{self, Certificates},
    limits,
    settings::Settings,
};
use crate::serve::listener;

/// Random bytes of a nonce.
const NONCE_BYTES: usize = 12;

/// What the webhooks are started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where API servers connect.
    pub listen: SocketAddr,
    pub settings: Settings,
    pub certificates: certificates::Options,
}

/// Webhooks that are bound, and not yet served.
pub struct Webhooks {
    tcp: TcpListener,
    settings: Arc<Settings>,
    certificates: Certificates,
}

impl Webhooks {
    /// Binds the port and looks for a certificate.
    ///
    /// # Errors
    /// If the port cannot be had. Without a certificate they start, too, and look again.
    pub async fn bind(client: Client, options: Options) -> anyhow::Result<Self> {
        let tcp = listener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen on {} for webhooks", options.listen))?;
        let mut certificates = Certificates::new(client, options.certificates);
        certificates.look().await;
        Ok(Self { tcp, settings: Arc::new(options.settings), certificates })
    }

    /// End of the certificate that is served with, Unix time; 0: there is none.
    pub fn not_after(&self) -> Arc<AtomicU64> {
        self.certificates.not_after()
    }

    /// Answers until `stopping`.
    ///
    /// # Errors
    /// None: a question that fails is the asker's.
    pub async fn serve(self, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Self { tcp, settings, certificates } = self;
        let serving = certificates.serving();
        let keeping = tokio::spawn(certificates.keep());
        let budget = Arc::new(Semaphore::new(limits::BODIES_KIB));
        let mut open: Vec<Open> = Vec::new();
        loop {
            let accepted = tokio::select! {
                accepted = tcp.accept() => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("webhooks cannot accept: {error}");
                    sleep(limits::ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            // Without a certificate there is nothing to say.
            let Some(tls) = serving.load_full() else { continue };
            open.retain(|open| !open.task.is_finished());
            if open.len() >= limits::CONNECTIONS {
                let longest = longest_waiting(open.iter().map(|open| *open.waiting.lock()));
                open.swap_remove(longest).task.abort();
            }
            let waiting: Waiting = Arc::new(Mutex::new(Some(Instant::now())));
            let server =
                Server { settings: Arc::clone(&settings), budget: Arc::clone(&budget), waiting: waiting.clone() };
            let stopping = stopping.clone();
            let task = tokio::spawn(async move {
                if let Err(error) = connection(stream, TlsAcceptor::from(tls), server, stopping).await {
                    tracing::debug!("a webhook's connection: {error:#}");
                }
            });
            open.push(Open { waiting, task });
        }
        keeping.abort();
        Ok(())
    }
}

/// A connection that is served.
struct Open {
    waiting: Waiting,
    task: JoinHandle<()>,
}

/// Since when a connection waits for its client's question; None: it is answering one.
type Waiting = Arc<Mutex<Option<Instant>>>;

/// Which connection is given up for another: the one that has waited longest, or else the first.
fn longest_waiting(waiting: impl Iterator<Item = Option<Instant>>) -> usize {
    let waiting = waiting.enumerate().filter_map(|(index, since)| Some((since?, index)));
    waiting.min().map_or(0, |(_, index)| index)
}

/// Path, body, and the room that it takes.
type Question<'a> = (String, Bytes, Option<SemaphorePermit<'a>>);

/// What answers on one connection.
#[derive(Clone)]
struct Server {
    settings: Arc<Settings>,
    /// KiB of questions that may be held at once, over all connections.
    budget: Arc<Semaphore>,
    waiting: Waiting,
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    server: Server,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stream = timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.context("no TLS handshake")??;
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.reply(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits::HEADER_TIMEOUT);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        served = serving.as_mut() => return Ok(served?),
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    // The question that is being answered still is.
    serving.as_mut().graceful_shutdown();
    Ok(serving.await?)
}

impl Server {
    async fn reply(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        *self.waiting.lock() = None;
        let response = match self.question(request).await {
            // The room is held until the answer is made.
            Ok((path, body, _room)) => self.answer(&path, &body),
            Err(refusal) => refusal,
        };
        *self.waiting.lock() = Some(Instant::now());
        response
    }

    /// Reads a question, within its time and the room that there is.
    async fn question(&self, request: Request<Incoming>) -> Result<Question<'_>, Response<Full<Bytes>>> {
        if request.method() != Method::POST {
            return Err(text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview\n".to_owned()));
        }
        let path = request.uri().path().to_owned();
        let announced = request.body().size_hint().upper().unwrap_or(u64::MAX);
        let bytes = usize::try_from(announced).unwrap_or(usize::MAX).min(limits::REQUEST_BYTES);
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let reading = async {
            let room = self.budget.acquire_many(kib).await;
            let body = Limited::new(request.into_body(), bytes).collect().await;
            let body = body.map_err(|error| {
                text(StatusCode::PAYLOAD_TOO_LARGE, format!("the question could not be read: {error}\n"))
            })?;
            Ok((path, body.to_bytes(), room.ok()))
        };
        match timeout(limits::QUESTION_TIMEOUT, reading).await {
            Ok(question) => question,
            Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the question took too long to arrive\n".to_owned())),
        }
    }

    fn answer(&self, path: &str, body: &[u8]) -> Response<Full<Bytes>> {
        let nonce = match nonce() {
            Ok(nonce) => nonce,
            Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
        };
        match admission::answer(path, body, &self.settings, &nonce) {
            Ok(answer) => {
                tracing::info!(path, object = answer.object, decision = answer.decision, "admission");
                let mut response = Response::new(Full::new(answer.review.to_string().into()));
                let json = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Err(wrong) => text(StatusCode::BAD_REQUEST, wrong + "\n"),
        }
    }
}

/// Something that cannot be guessed, for paths that only the kubelet is to know.
pub(crate) fn nonce() -> anyhow::Result<String> {
    let mut bytes = [0; NONCE_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("no random numbers")?;
    Ok(hex(&bytes))
}

/// The same for each copy of a Pod's template. Who knows the template to the letter can work it out.
pub(crate) fn nonce_of(template: &Value) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, template.to_string().as_bytes());
    hex(digest.as_ref().get(..NONCE_BYTES).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_longest_goes_first() {
        let now = Instant::now();
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        assert_eq!(longest_waiting([None, ago(1), ago(3), ago(2)].into_iter()), 2);
        assert_eq!(longest_waiting([None, None].into_iter()), 0);
    }
}
