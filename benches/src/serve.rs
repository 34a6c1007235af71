//! Servers behind the proxies, each a process of its own (`leno-bench serve …`), for what nginx cannot do.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    kind: Kind,
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Sends back what it gets, over TCP.
    Echo,
    /// Sends back what it gets on each HTTP/2 stream, as a gRPC method that streams both ways.
    Stream,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        // Latency only; a failure shows later.
        let _ = stream.set_nodelay(true);
        match args.kind {
            Kind::Echo => tokio::spawn(echo(stream)),
            Kind::Stream => tokio::spawn(streams(stream)),
        };
    }
}

/// Clients may leave at any time.
async fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        if stream.write_all(bytes.get(..count).unwrap_or_default()).await.is_err() {
            return;
        }
    }
}

async fn streams(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        // A client that leaves ends its streams.
        tokio::spawn(async move { converse(request.into_body(), respond).await.ok() });
    }
}

async fn converse(mut body: h2::RecvStream, mut respond: h2::server::SendResponse<Bytes>) -> Result<()> {
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut sender = respond.send_response(response, false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if !data.is_empty() {
            sender.send_data(data, false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(sender.send_trailers(trailers)?)
}
