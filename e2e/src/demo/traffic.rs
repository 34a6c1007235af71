//! The demo's traffic: paced requests and connections through the sidecars, and what came of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{server::Seen, tcp};

/// Live figures cover this much of the past.
const WINDOW: Duration = Duration::from_secs(3);
/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Failures kept in words.
const FAILURES_KEPT: usize = 5;

/// One backend's part of the traffic.
#[derive(Debug, Default, Clone)]
pub(super) struct Backend {
    pub(super) requests: u64,
    pub(super) instances: BTreeMap<String, u64>,
    /// Client identities its applications were shown.
    pub(super) identities: BTreeSet<String>,
    recent: Vec<(Instant, u32)>,
}

/// Live figures of one backend.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Live {
    pub(super) per_second: f64,
    pub(super) p50_us: u32,
    pub(super) p99_us: u32,
}

impl Backend {
    pub(super) fn live(&self, now: Instant) -> Live {
        let mut latencies: Vec<u32> =
            self.recent.iter().filter(|(at, _)| now.duration_since(*at) < WINDOW).map(|(_, us)| *us).collect();
        latencies.sort_unstable();
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
        Live { per_second: latencies.len() as f64 / WINDOW.as_secs_f64(), p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// What came of all traffic so far.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    pub(super) backends: BTreeMap<String, Backend>,
    pub(super) failed: u64,
    pub(super) failures: Vec<String>,
}

impl Tally {
    pub(super) fn requests(&self) -> u64 {
        self.backends.values().map(|backend| backend.requests).sum::<u64>() + self.failed
    }

    /// Client identities that applications were shown, and by which backends.
    pub(super) fn callers(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut callers = BTreeMap::<_, Vec<_>>::new();
        for (name, backend) in &self.backends {
            for identity in &backend.identities {
                callers.entry(identity.as_str()).or_default().push(name.as_str());
            }
        }
        callers
    }
}

/// Running traffic.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Traffic {
    /// `connections` clients that together make `rate` requests a second to `address`.
    pub(super) fn http(&mut self, address: SocketAddr, connections: u32, rate: u32) {
        let interval = Duration::from_secs(1) * connections / rate;
        for n in 0..connections {
            let (tally, stop) = (self.tally.clone(), self.stop.clone());
            self.clients.spawn(async move {
                tokio::time::sleep(interval * n / connections).await;
                let mut ticks = tokio::time::interval(interval);
                let mut connection = None;
                while !stop.load(Relaxed) {
                    ticks.tick().await;
                    let begun = Instant::now();
                    let outcome = tokio::time::timeout(LIMIT, request(address, &mut connection)).await;
                    match outcome.context("no answer in time").flatten() {
                        Ok(seen) => answered(&tally, begun, &seen),
                        Err(error) => {
                            connection = None;
                            failed(&tally, &error);
                        }
                    }
                }
            });
        }
    }

    /// One connection that sends `rate` lines a second to an echo service.
    pub(super) fn tcp(&mut self, name: &'static str, address: SocketAddr, rate: u32) {
        let (tally, stop) = (self.tally.clone(), self.stop.clone());
        self.clients.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
            let mut connection = None;
            while !stop.load(Relaxed) {
                ticks.tick().await;
                let begun = Instant::now();
                let outcome = tokio::time::timeout(LIMIT, echo(address, &mut connection)).await;
                match outcome.context("no echo in time").flatten() {
                    Ok(()) => record(&tally, name, name, None, begun),
                    Err(error) => {
                        connection = None;
                        failed(&tally, &error);
                    }
                }
            }
        });
    }

    pub(super) fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Lets every request end.
    pub(super) async fn end(&mut self) {
        self.stop.store(true, Relaxed);
        while self.clients.join_next().await.is_some() {}
    }
}

async fn request(address: SocketAddr, connection: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<Seen> {
    let sender = match connection {
        Some(sender) if !sender.is_closed() => sender,
        _ => {
            let stream = TcpStream::connect(address).await.context("connect to the sidecar")?;
            stream.set_nodelay(true)?;
            let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            connection.insert(sender)
        }
    };
    sender.ready().await?;
    let request = Request::get("/").header(header::HOST, "shop").body(Empty::new())?;
    let response = sender.send_request(request).await.context("send a request")?;
    let status = response.status();
    let body = response.into_body().collect().await.context("read a response")?.to_bytes();
    ensure!(status.is_success(), "answered with {status}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).context("read the server's answer")
}

async fn echo(address: SocketAddr, connection: &mut Option<TcpStream>) -> Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(TcpStream::connect(address).await.context("connect to the sidecar")?),
    };
    let back = tcp::ask(stream, "credit 42 to alice").await?;
    ensure!(back.ends_with(": credit 42 to alice"), "the line came back changed: {back}");
    Ok(())
}

fn answered(tally: &Mutex<Tally>, begun: Instant, seen: &Seen) {
    // Instances are called "shop-v1-2": the backend is what comes before the number.
    let backend = seen.instance.rsplit_once('-').map_or(seen.instance.as_str(), |(backend, _)| backend);
    record(tally, backend, &seen.instance, seen.headers.get("leno-client-id"), begun);
}

fn record(tally: &Mutex<Tally>, backend: &str, instance: &str, identity: Option<&String>, begun: Instant) {
    let now = Instant::now();
    let micros = u32::try_from(now.duration_since(begun).as_micros()).unwrap_or(u32::MAX);
    let mut tally = lock(tally);
    if !tally.backends.contains_key(backend) {
        tally.backends.insert(backend.to_owned(), Backend::default());
    }
    let Some(entry) = tally.backends.get_mut(backend) else { return };
    entry.requests += 1;
    *entry.instances.entry(instance.to_owned()).or_default() += 1;
    if let Some(identity) = identity
        && !entry.identities.contains(identity)
    {
        entry.identities.insert(identity.clone());
    }
    entry.recent.push((now, micros));
    // Old entries go in one sweep now and then.
    if entry.recent.len() > 20_000 {
        entry.recent.retain(|(at, _)| now.duration_since(*at) < WINDOW);
    }
}

fn failed(tally: &Mutex<Tally>, error: &anyhow::Error) {
    let mut tally = lock(tally);
    tally.failed += 1;
    if tally.failures.len() < FAILURES_KEPT {
        tally.failures.push(format!("{error:#}"));
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
