//! One HTTP/2 connection with prior knowledge; made anew when it ended.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{LIMIT, Load, Pace, Tally, http1::answered};

type Sender = SendRequest<Full<Bytes>>;

pub(super) async fn run(load: Arc<Load>, mut pace: Pace, tally: Arc<Tally>) {
    let mut connection: Option<Sender> = None;
    while pace.next().await {
        let since = Instant::now();
        let outcome = match tokio::time::timeout(LIMIT, request(&load, &mut connection)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("no answer within {LIMIT:?}")),
        };
        tally.count(since, outcome);
    }
}

async fn request(load: &Load, connection: &mut Option<Sender>) -> Result<String> {
    let open = match connection.take() {
        Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
        None => None,
    };
    let mut sender = match open {
        Some(sender) => sender,
        None => connect(load).await?,
    };
    let (mut head, body) = load.request()?.into_parts();
    head.headers.remove(http::header::HOST);
    head.uri = Uri::builder().scheme("http").authority(&*load.authority).path_and_query(&*load.path).build()?;
    let response = sender.send_request(http::Request::from_parts(head, body)).await.context("no response")?;
    *connection = Some(sender);
    answered(response).await
}

async fn connect(load: &Load) -> Result<Sender> {
    let stream = TcpStream::connect(load.address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // How it ends shows at the request.
    tokio::spawn(connection);
    Ok(sender)
}
