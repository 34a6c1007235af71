//! A load generator: keep-alive HTTP/1.1 and HTTP/2 connections, gRPC streams and short connections of opaque bytes side by
//! side, paced, every answer checked.
//!
//! Closed-loop and bounded: a connection has one request in flight; one that is late sends later, not more.

mod failure;
mod grpc;
mod http1;
mod http2;
mod lines;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
pub use failure::Failure;
use rustls::ClientConfig;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Interval, MissedTickBehavior},
};

use crate::client::LIMIT;

/// Longest wait for as many answers as a test wants, where the machine is too busy for the rate that was asked for.
const PATIENCE: Duration = Duration::from_secs(300);
/// Failures that are told of in a message.
const REASONS: usize = 10;
/// Failures that are kept, each some hundred bytes.
const FAILURES: usize = 100_000;

/// What load to make; see [`Load::start`].
#[derive(Debug, Clone)]
pub struct Load {
    address: SocketAddr,
    authority: String,
    path: String,
    post: bool,
    connections: usize,
    multiplexed: usize,
    streams: usize,
    calls: usize,
    lines: usize,
    pause: Duration,
    /// Server names.
    tls: Option<(&'static [&'static str], Arc<ClientConfig>)>,
    rate: f64,
    requests_per_connection: u64,
}

impl Load {
    /// GET requests over 50 connections, 500/s, to the listener at `address`, naming `authority`.
    pub fn new(address: SocketAddr, authority: &str) -> Self {
        Self {
            address,
            authority: authority.to_owned(),
            path: "/load".to_owned(),
            post: false,
            connections: 50,
            multiplexed: 0,
            streams: 0,
            calls: 0,
            lines: 0,
            pause: Duration::ZERO,
            tls: None,
            rate: 500.0,
            requests_per_connection: u64::MAX,
        }
    }

    /// HTTP/1.1 connections.
    #[must_use]
    pub fn connections(self, connections: usize) -> Self {
        Self { connections, ..self }
    }

    /// HTTP/2 connections, each with one request at a time.
    #[must_use]
    pub fn multiplexed(self, multiplexed: usize) -> Self {
        Self { multiplexed, ..self }
    }

    /// gRPC bidirectional streams, each over a connection of its own: a message and its answer count as a request.
    #[must_use]
    pub fn streams(self, streams: usize) -> Self {
        Self { streams, ..self }
    }

    /// Clients that make unary gRPC calls, each over a connection of its own.
    #[must_use]
    pub fn calls(self, calls: usize) -> Self {
        Self { calls, ..self }
    }

    /// Clients of a [`LineServer`](crate::tcp::LineServer) that make a connection for each line: that and its answer count as a request.
    #[must_use]
    pub fn lines(self, lines: usize) -> Self {
        Self { lines, ..self }
    }

    /// Each of their connections is for two lines, with so long between them.
    #[must_use]
    pub fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Their connections are TLS, to these server names in turn.
    #[must_use]
    pub fn tls(self, names: &'static [&'static str], config: Arc<ClientConfig>) -> Self {
        Self { tls: Some((names, config)), ..self }
    }

    /// Requests per second, over all connections and streams.
    #[must_use]
    pub fn rate(self, rate: f64) -> Self {
        Self { rate, ..self }
    }

    #[must_use]
    pub fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// POST with a body: not safe to retry.
    #[must_use]
    pub fn post(self) -> Self {
        Self { post: true, ..self }
    }

    /// Each HTTP/1.1 connection is closed and made anew after so many requests.
    #[must_use]
    pub fn reconnect_after(self, requests: u64) -> Self {
        Self { requests_per_connection: requests, ..self }
    }

    /// Starts it in the background.
    pub fn start(self) -> Running {
        let (stop, stopped) = watch::channel(false);
        let tally = Arc::new(Tally::default());
        let (http1, http2) = (self.connections, self.connections + self.multiplexed);
        let (streams, calls) = (http2 + self.streams, http2 + self.streams + self.calls);
        let clients = calls + self.lines;
        let every = Duration::from_secs_f64(clients as f64 / self.rate);
        let load = Arc::new(self);
        let mut tasks = JoinSet::new();
        for n in 0..clients {
            // Spread over the period, so that the load is even.
            let pace = Pace::new(every, every.mul_f64(n as f64 / clients as f64), stopped.clone());
            let (load, tally) = (load.clone(), tally.clone());
            if n < http1 {
                tasks.spawn(http1::run(load, pace, tally));
            } else if n < http2 {
                tasks.spawn(http2::run(load, pace, tally));
            } else if n < streams {
                tasks.spawn(grpc::stream(load, pace, tally));
            } else if n < calls {
                tasks.spawn(grpc::calls(load, pace, tally));
            } else {
                tasks.spawn(lines::run(load, pace, tally));
            }
        }
        Running { tally, stop, tasks, started: Instant::now() }
    }

    /// Runs it for so long.
    pub async fn run(self, duration: Duration) -> Result<Report> {
        let running = self.start();
        tokio::time::sleep(duration).await;
        running.stop().await
    }
}

/// Load under way; ends when dropped.
#[derive(Debug)]
pub struct Running {
    tally: Arc<Tally>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    started: Instant,
}

impl Running {
    /// Requests answered well so far.
    pub fn ok(&self) -> u64 {
        self.tally.ok.load(Relaxed)
    }

    /// Requests that failed so far.
    pub fn failed(&self) -> u64 {
        self.tally.failed.load(Relaxed)
    }

    /// Waits until so many more requests than now were answered well.
    pub async fn more(&self, requests: u64) -> Result<()> {
        let goal = self.ok() + requests;
        crate::wait::eventually(&format!("{requests} more requests"), LIMIT * 3, async || {
            ensure!(self.ok() >= goal, "{} to go, {} failed: {:?}", goal - self.ok(), self.failed(), self.reasons());
            Ok(())
        })
        .await
    }

    /// Waits until so many requests in all were answered well: how fast is the machine's matter.
    pub async fn answered(&self, requests: u64) -> Result<()> {
        crate::wait::eventually(&format!("{requests} requests answered"), PATIENCE, async || {
            ensure!(self.ok() >= requests, "{} are, {} failed: {:?}", self.ok(), self.failed(), self.reasons());
            Ok(())
        })
        .await
    }

    fn reasons(&self) -> Vec<String> {
        lock(&self.tally.failures).iter().take(REASONS).map(ToString::to_string).collect()
    }

    /// Lets requests in flight end, and says how it went.
    pub async fn stop(mut self) -> Result<Report> {
        // Nobody listens if all clients gave up; the report says so.
        let _ = self.stop.send(true);
        let elapsed = self.started.elapsed();
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(LIMIT * 2, all_ended).await?;
        let mut latencies = std::mem::take(&mut *lock(&self.tally.latencies_us));
        latencies.sort_unstable();
        Ok(Report {
            ok: self.ok(),
            failed: self.failed(),
            failures: lock(&self.tally.failures).clone(),
            instances: lock(&self.tally.instances).clone(),
            elapsed,
            latencies_us: latencies,
        })
    }
}

/// How it went.
#[derive(Debug, Clone)]
pub struct Report {
    pub ok: u64,
    pub failed: u64,
    /// The first of the requests that failed.
    pub failures: Vec<Failure>,
    /// Answers by server.
    pub instances: BTreeMap<String, u64>,
    pub elapsed: Duration,
    latencies_us: Vec<u32>,
}

impl Report {
    /// The latency that this share of answers was below.
    pub fn latency(&self, share: f64) -> Duration {
        let at = (self.latencies_us.len() as f64 * share) as usize;
        let us = self.latencies_us.get(at).or_else(|| self.latencies_us.last()).copied().unwrap_or_default();
        Duration::from_micros(us.into())
    }

    /// Fails if a request failed, or if there were fewer answers than `at_least`.
    pub fn unharmed(&self, at_least: u64) -> Result<()> {
        let told = self.reasons();
        ensure!(self.failed == 0, "{} of {} requests failed: {told:#?}", self.failed, self.ok + self.failed);
        ensure!(self.ok >= at_least, "only {} requests were made, {at_least} were wanted", self.ok);
        Ok(())
    }

    /// Why the first of the requests that failed did.
    pub fn reasons(&self) -> Vec<String> {
        self.failures.iter().take(REASONS).map(ToString::to_string).collect()
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64()
    }
}

#[derive(Debug, Default)]
struct Tally {
    ok: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    instances: Mutex<BTreeMap<String, u64>>,
    latencies_us: Mutex<Vec<u32>>,
}

impl Tally {
    /// Counts one request: who answered, or why nobody did.
    fn count(&self, since: Instant, outcome: Result<String>) {
        let latency = since.elapsed();
        match outcome {
            Ok(instance) => {
                self.ok.fetch_add(1, Relaxed);
                *lock(&self.instances).entry(instance).or_default() += 1;
                lock(&self.latencies_us).push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
            }
            Err(error) => {
                self.failed.fetch_add(1, Relaxed);
                let mut failures = lock(&self.failures);
                if failures.len() < FAILURES {
                    failures.push(Failure::new(since, &error));
                }
            }
        }
    }
}

/// When a client sends its next request, and when it stops.
struct Pace {
    interval: Interval,
    stopped: watch::Receiver<bool>,
}

impl Pace {
    fn new(every: Duration, offset: Duration, stopped: watch::Receiver<bool>) -> Self {
        let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + offset, every);
        // Who is late does not put off all that follow, as with `Delay`: a few ms each time would be another rate.
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self { interval, stopped }
    }

    /// Waits for the next turn; false: no more.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.stopped.wait_for(|stopped| *stopped) => false,
            _ = self.interval.tick() => true,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
