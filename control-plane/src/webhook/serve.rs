//! HTTPS for the API server's questions. One connection carries many, one after another.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
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

    /// Answers until `stopping`.
    ///
    /// # Errors
    /// None: a question that fails is the asker's.
    pub async fn serve(self, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Self { tcp, settings, certificates } = self;
        let serving = certificates.serving();
        let keeping = tokio::spawn(certificates.keep());
        let slots = Arc::new(Semaphore::new(limits::CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
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
            let (settings, stopping) = (Arc::clone(&settings), stopping.clone());
            tokio::spawn(async move {
                if let Err(error) = connection(stream, TlsAcceptor::from(tls), settings, stopping).await {
                    tracing::debug!("a webhook's connection: {error:#}");
                }
                drop(slot);
            });
        }
        keeping.abort();
        Ok(())
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    settings: Arc<Settings>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let stream = timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.context("no TLS handshake")??;
    let service = service_fn(move |request| {
        let settings = Arc::clone(&settings);
        async move { Ok::<_, Infallible>(reply(request, &settings).await) }
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

async fn reply(request: Request<Incoming>, settings: &Settings) -> Response<Full<Bytes>> {
    match timeout(limits::QUESTION_TIMEOUT, asked(request, settings)).await {
        Ok(response) => response,
        Err(_) => text(StatusCode::REQUEST_TIMEOUT, "the question took too long to arrive\n".to_owned()),
    }
}

async fn asked(request: Request<Incoming>, settings: &Settings) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview\n".to_owned());
    }
    let path = request.uri().path().to_owned();
    let body = match Limited::new(request.into_body(), limits::REQUEST_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return text(StatusCode::PAYLOAD_TOO_LARGE, format!("the question could not be read: {error}\n")),
    };
    let nonce = match nonce() {
        Ok(nonce) => nonce,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
    };
    match admission::answer(&path, &body, settings, &nonce) {
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

/// Something that cannot be guessed, for paths that only the kubelet is to know.
pub(crate) fn nonce() -> anyhow::Result<String> {
    let mut bytes = [0; 12];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
