//! What kubelets and scrapers ask over plain HTTP: `/live`, `/ready` and `/metrics`. Answers from the first moment, so that a
//! control plane that waits for something says what it is.

use std::{
    borrow::Cow,
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{listener, metrics};

/// Connections at once; for one more, the oldest is closed, so that nobody keeps a kubelet out by saying nothing.
const CONNECTIONS: usize = 64;
/// Wait after a failure to accept.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// A scrape, from its first byte to the last of the answer.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
/// A scrape's request head.
const HEAD_BYTES: usize = 8 * 1024;

/// How far the control plane has come.
#[derive(Default)]
pub struct Health {
    /// What it waits for before it is ready; None: it is.
    waits_for: Mutex<Option<Cow<'static, str>>>,
    metrics: OnceLock<metrics::View>,
}

impl Health {
    /// Not ready, before anything else is done.
    pub fn starting() -> Arc<Self> {
        Arc::new(Self { waits_for: Mutex::new(Some("the start".into())), metrics: OnceLock::new() })
    }

    /// What is waited for from now on.
    pub fn waits_for(&self, what: impl Into<Cow<'static, str>>) {
        *self.waits_for.lock() = Some(what.into());
    }

    /// Everything is there.
    pub fn ready(&self, metrics: metrics::View) {
        // There is one control plane, which is ready once.
        let _ = self.metrics.set(metrics);
        *self.waits_for.lock() = None;
    }

    fn answer(&self, path: &[u8]) -> (&'static str, String) {
        match path {
            b"/live" => ("200 OK", "live\n".to_owned()),
            b"/ready" => match &*self.waits_for.lock() {
                None => ("200 OK", "ready\n".to_owned()),
                Some(what) => ("503 Service Unavailable", format!("not ready: waits for {what}\n")),
            },
            b"/metrics" => match self.metrics.get() {
                Some(view) => ("200 OK", view.render()),
                None => ("503 Service Unavailable", "metrics come once the control plane is ready\n".to_owned()),
            },
            _ => ("404 Not Found", "there are /metrics, /live and /ready\n".to_owned()),
        }
    }
}

/// Answers at `address` from now on, until `stopping`.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(address: SocketAddr, health: Arc<Health>, stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
    let tcp =
        listener::bind(address).await.with_context(|| format!("cannot listen on {address} for metrics and health"))?;
    tokio::spawn(accept(tcp, health, stopping));
    Ok(())
}

async fn accept(tcp: TcpListener, health: Arc<Health>, mut stopping: watch::Receiver<bool>) {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = tcp.accept() => accepted,
            _ = stopping.wait_for(|s| *s) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("the health and metrics port cannot accept: {error}");
                sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        open.retain(|task| !task.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let health = Arc::clone(&health);
        open.push_back(tokio::spawn(async move {
            // Who asked sees what went wrong.
            let _ = timeout(SCRAPE_TIMEOUT, answer(stream, &health)).await;
        }));
    }
}

/// One request per connection: enough for a scraper, and nothing to get wrong.
async fn answer(mut stream: TcpStream, health: &Health) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let path = head.split(|b| *b == b' ').nth(1).filter(|_| head.starts_with(b"GET ")).unwrap_or_default();
    let (status, body) = health.answer(path);
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_waits_for() {
        let health = Health::starting();
        assert_eq!(health.answer(b"/live").0, "200 OK");
        health.waits_for("the API server");
        let (status, text) = health.answer(b"/ready");
        assert!(status.starts_with("503") && text.contains("waits for the API server"), "{status} {text}");
        assert!(health.answer(b"/metrics").0.starts_with("503"));
        assert!(health.answer(b"/").0.starts_with("404"));
    }
}
