//! gRPC streaming: on each stream, a message is sent when the one before was answered.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;

use super::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    connections: usize,
    /// On each connection.
    #[arg(long)]
    streams: usize,
    #[arg(long)]
    seconds: f64,
}

/// A gRPC message of 100 bytes, with its prefix: not compressed, length 95.
const MESSAGE: &[u8; 100] = b"\0\0\0\0\x5f\
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(args.seconds);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..args.connections {
        let socket = TcpStream::connect(args.address).await.with_context(|| format!("connect to {}", args.address))?;
        socket.set_nodelay(true)?;
        let (client, connection) = h2::client::handshake(socket).await.context("HTTP/2")?;
        // Its failure is that of its streams.
        tokio::spawn(connection);
        for _ in 0..args.streams {
            streams.spawn(converse(client.clone(), end));
        }
    }
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while let Some(outcome) = streams.join_next().await {
        match outcome? {
            Ok(of_stream) => latencies.extend(of_stream),
            Err(error) => {
                eprintln!("a stream failed: {error:#}");
                failed += 1;
            }
        }
    }
    Ok(Outcome::new(latencies, failed, begin.elapsed()))
}

async fn converse(client: SendRequest<Bytes>, end: Instant) -> Result<Vec<u64>> {
    let mut client = client.ready().await?;
    let request = Request::post("http://shop/leno.bench.Echo/Both")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut sender) = client.send_request(request, false)?;
    let mut latencies = Vec::new();
    let mut since = Instant::now();
    sender.send_data(Bytes::from_static(MESSAGE), false)?;
    let response = tokio::time::timeout(LIMIT, response).await.context("no answer")??;
    ensure!(response.status() == 200, "{}", response.status());
    let mut body = response.into_body();
    let mut received = 0;
    loop {
        let data = tokio::time::timeout(LIMIT, body.data()).await.context("no message")?.context("the end")??;
        body.flow_control().release_capacity(data.len())?;
        received += data.len();
        if received < MESSAGE.len() {
            continue;
        }
        received -= MESSAGE.len();
        latencies.push(u64::try_from(since.elapsed().as_nanos())?);
        if Instant::now() >= end {
            break;
        }
        since = Instant::now();
        sender.send_data(Bytes::from_static(MESSAGE), false)?;
    }
    sender.send_data(Bytes::new(), true)?;
    let trailers = tokio::time::timeout(LIMIT, body.trailers()).await.context("no trailers")??;
    ensure!(trailers.is_some_and(|trailers| trailers.contains_key("grpc-status")), "no grpc-status at the end");
    Ok(latencies)
}
