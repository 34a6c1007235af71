//! Requests as many independent clients send them: open loop, at random moments (Poisson), through balancers drawn at random.
//! Everything random follows from a seed, so that each contender gets the same requests.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::fleet::WORK;

/// Longest wait for the last answers.
const GRACE: Duration = Duration::from_secs(30);
/// Keys of requests, for balancers that go by them.
const USERS: u32 = 1000;
/// Requests under way at most, so that descriptors last; those beyond fail.
const UNDER_WAY: usize = 6000;
/// Longest head of an answer.
const HEAD: usize = 16 * 1024;

/// What is sent.
pub(super) struct Plan {
    pub(super) balancers: Vec<SocketAddr>,
    /// Requests per second.
    pub(super) rate: f64,
    /// What is sent before that does not count.
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
    pub(super) seed: u64,
}

/// What came of the requests that count.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Nanoseconds from the moment that a request was due, of those that went well.
    pub(super) latencies: Vec<u64>,
    pub(super) failed: u64,
}

/// A balancer's connections that are not in use.
struct Balancer {
    address: SocketAddr,
    idle: Mutex<Vec<TcpStream>>,
}

pub(super) async fn run(plan: &Plan) -> Result<Outcome> {
    let balancers: Vec<_> =
        plan.balancers.iter().map(|&address| Arc::new(Balancer { address, idle: Mutex::default() })).collect();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let begin = Instant::now();
    let end = plan.warm_up + plan.measured;
    let (mut outcome, mut requests, mut at) = (Outcome::default(), JoinSet::new(), Duration::ZERO);
    loop {
        at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / plan.rate);
        if at >= end {
            break;
        }
        let balancer = Arc::clone(random.choice(&balancers).context("no balancers")?);
        let head = format!(
            "GET / HTTP/1.1\r\nhost: shop\r\n{WORK}: {:.4}\r\nx-user: {}\r\n\r\n",
            work(&mut random),
            random.u32(..USERS)
        );
        let due = begin + at;
        tokio::time::sleep_until(due.into()).await;
        let counts = at >= plan.warm_up;
        while let Some(ended) = requests.try_join_next() {
            outcome.take(ended?)?;
        }
        if requests.len() >= UNDER_WAY {
            outcome.failed += u64::from(counts);
            continue;
        }
        requests.spawn(async move { (counts, balancer.request(head.as_bytes()).await.map(|()| due.elapsed())) });
    }
    let unanswered = async {
        while let Some(ended) = requests.join_next().await {
            outcome.take(ended?)?;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(GRACE, unanswered).await {
        Ok(result) => result?,
        // Some of them may have been sent before it counted; so late they hardly were.
        Err(_) => outcome.failed += requests.len() as u64,
    }
    Ok(outcome)
}

impl Outcome {
    fn take(&mut self, (counts, answered): (bool, Result<Duration>)) -> Result<()> {
        match answered {
            _ if !counts => {}
            Ok(latency) => self.latencies.push(u64::try_from(latency.as_nanos())?),
            Err(_) => self.failed += 1,
        }
        Ok(())
    }
}

/// How much work a request is, in means: as in Prequal's testbed normally distributed, with a deviation as large as the mean, and
/// what were less than nothing is drawn again.
fn work(random: &mut fastrand::Rng) -> f64 {
    /// Mean of what is left of N(1, 1) above 0.
    const MEAN: f64 = 1.287_600;
    loop {
        // Box and Muller.
        let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
        let drawn = 1.0 + radius * (std::f64::consts::TAU * random.f64()).cos();
        if drawn > 0.0 {
            return drawn / MEAN;
        }
    }
}

impl Balancer {
    /// Well answered, or an error.
    async fn request(&self, head: &[u8]) -> Result<()> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address).await.context("connect")?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        stream.write_all(head).await?;
        let status = answer(&mut stream).await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        ensure!(status == 200, "answered {status}");
        Ok(())
    }
}

/// The status of a whole answer, which must come with a content-length and alone.
async fn answer(stream: &mut TcpStream) -> Result<u16> {
    let mut buffer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 || buffer.len() > HEAD {
            bail!("no whole answer");
        }
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let length = length.context("an answer without content-length")?;
        if buffer.len() >= end + 4 + length {
            ensure!(buffer.len() == end + 4 + length, "more than one answer to one request");
            let status = head.split(' ').nth(1).context("an answer without status")?;
            return Ok(status.parse()?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_mean_of_work_in_the_mean() {
        let mut random = fastrand::Rng::with_seed(1);
        let drawn: Vec<f64> = (0..100_000).map(|_| work(&mut random)).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        assert!((mean - 1.0).abs() < 0.01 && drawn.iter().all(|work| *work > 0.0), "{mean}");
    }
}
