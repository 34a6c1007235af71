//! One keep-alive HTTP/1.1 connection, as a careful client uses it: a connection that the server closed between
//! requests is made anew; whatever fails after a request was begun is a failure.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    LIMIT, Load, Pace, Tally,
    failure::{NotConnected, Refused},
};
use crate::server::INSTANCE;

type Sender = SendRequest<Full<Bytes>>;

pub(super) async fn run(load: Arc<Load>, mut pace: Pace, tally: Arc<Tally>) {
    let mut connection: Option<(Sender, u64)> = None;
    while pace.next().await {
        let since = Instant::now();
        let outcome = match tokio::time::timeout(LIMIT, request(&load, &mut connection)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("no answer within {LIMIT:?}")),
        };
        if outcome.is_err() {
            connection = None;
        }
        tally.count(since, outcome);
    }
}

async fn request(load: &Load, connection: &mut Option<(Sender, u64)>) -> Result<String> {
    let reusable = connection.take().filter(|(_, used)| *used < load.requests_per_connection);
    let (mut sender, used) = match reusable {
        Some(reusable) => reusable,
        None => (connect(load).await?, 0),
    };
    if sender.ready().await.is_err() {
        sender = connect(load).await?;
    }
    let mut response = sender.try_send_request(load.request()?).await;
    if let Err(error) = &mut response
        && let Some(unsent) = error.take_message()
    {
        // The server closed it between requests; nothing was sent.
        sender = connect(load).await?;
        response = sender.try_send_request(unsent).await;
    }
    let response = response.map_err(|error| error.into_error()).context("no response")?;
    let instance = answered(response).await?;
    *connection = Some((sender, used + 1));
    Ok(instance)
}

/// Who gave the answer, if it is a server's.
pub(super) async fn answered(response: Response<Incoming>) -> Result<String> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("the response's body")?.to_bytes();
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let instance = header(INSTANCE);
    if head.status != StatusCode::OK || instance.is_empty() || body.is_empty() {
        return Err(Refused { status: head.status, reason: header("leno-reason"), body }.into());
    }
    Ok(instance)
}

async fn connect(load: &Load) -> Result<Sender> {
    let stream = TcpStream::connect(load.address).await.map_err(NotConnected)?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // How it ends shows at the request.
    tokio::spawn(connection);
    Ok(sender)
}

impl Load {
    pub(super) fn request(&self) -> Result<Request<Full<Bytes>>> {
        let (method, body) =
            if self.post { (Method::POST, Bytes::from_static(b"{\"load\":1}")) } else { (Method::GET, Bytes::new()) };
        let request = Request::builder().method(method).uri(&self.path).header("host", &self.authority);
        Ok(request.body(Full::new(body))?)
    }
}
