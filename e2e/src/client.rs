//! Simple clients: one request on a connection of its own, and gRPC channels.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::{echo::echo_client::EchoClient, server::Seen};

/// Longest wait for one answer: ten times what is expected of a busy machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// What the server says it saw.
    pub fn seen(&self) -> Result<Seen> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}, not the server's answer: {:?}", self.status, self.body))
    }

    /// A header as text; empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// GET over HTTP/1.1.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    let request = Request::get(path).header("host", host).body(Bytes::new())?;
    http1(address, request).await
}

/// One request over HTTP/1.1 on a new connection. The request's URI is sent as it is: a path, usually.
pub async fn http1(address: SocketAddr, request: Request<Bytes>) -> Result<Answer> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its failure is the request's.
        let connection = tokio::spawn(connection);
        let answer = read(sender.send_request(request.map(Full::new)).await?).await;
        connection.abort();
        answer
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

/// One request over HTTP/2 with prior knowledge, on a new connection; the URI must be absolute.
pub async fn http2(address: SocketAddr, request: Request<Bytes>) -> Result<Answer> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await?;
        let connection = tokio::spawn(connection);
        let answer = read(sender.send_request(request.map(Full::new)).await?).await;
        connection.abort();
        answer
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

/// A gRPC client for the tests' service, which calls it by `authority`. Connects when first used.
pub fn grpc(address: SocketAddr, authority: &str) -> Result<EchoClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .origin(format!("http://{authority}").parse()?)
        .connect_timeout(LIMIT);
    Ok(EchoClient::new(endpoint.connect_lazy()))
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.with_context(|| format!("the body of a {}", head.status))?;
    let trailers = collected.trailers().cloned();
    Ok(Answer { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers })
}
