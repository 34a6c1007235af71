//! Open loop: request n is due at n/rate, whatever became of those before it, and its latency counts from then. A
//! server that stalls is thus charged for all requests that it kept waiting (no coordinated omission).
//!
//! One thread that sleeps in ppoll until the next request is due or an answer comes: timers of async runtimes tick in
//! milliseconds, too coarse for answers that take a tenth of one.

use std::{
    collections::VecDeque,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Outcome, http1};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    connections: usize,
    /// Requests per second, over all connections.
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    seconds: f64,
}

/// Longest wait for the last answers.
const GRACE: Duration = Duration::from_secs(5);

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// When the request under way was due; none: it is free.
    due: Option<Instant>,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    // Ask for timers that are right to the microsecond; without it they may be 50 µs late, for every contender alike.
    let _ = fs::write("/proc/self/timerslack_ns", "1000");
    let request = http1::request();
    let mut connections = (0..args.connections).map(|_| connect(args.address)).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let total = (f64::from(args.rate) * args.seconds) as u32;
    let due_at = |n: u32| begin + Duration::from_secs_f64(f64::from(n) / f64::from(args.rate));
    let deadline = due_at(total) + GRACE;
    let (mut next, mut waiting, mut latencies) = (0, VecDeque::new(), Vec::with_capacity(total as usize));
    while (latencies.len() as u32) < total {
        let now = Instant::now();
        if now > deadline {
            break;
        }
        while next < total && due_at(next) <= now {
            waiting.push_back(due_at(next));
            next += 1;
        }
        for connection in connections.iter_mut().filter(|connection| connection.due.is_none()) {
            let Some(due) = waiting.pop_front() else { break };
            // So small a request always fits the socket's buffer.
            connection.stream.write_all(&request).context("send a request")?;
            connection.due = Some(due);
        }
        let until = if next < total { due_at(next) } else { deadline };
        sleep_until(until, &connections)?;
        for connection in connections.iter_mut().filter(|connection| connection.due.is_some()) {
            if let Some(latency) = connection.receive()? {
                latencies.push(latency);
            }
        }
    }
    let failed = u64::from(total) - latencies.len() as u64;
    Ok(Outcome::new(latencies, failed, begin.elapsed()))
}

fn connect(address: SocketAddr) -> Result<Connection> {
    let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(Connection { stream, buffer: Vec::new(), due: None })
}

/// Or until an answer comes.
fn sleep_until(until: Instant, connections: &[Connection]) -> Result<()> {
    let mut waited: Vec<_> = connections
        .iter()
        .filter(|connection| connection.due.is_some())
        .map(|connection| PollFd::new(&connection.stream, PollFlags::IN))
        .collect();
    let pause = until.saturating_duration_since(Instant::now());
    let pause = Timespec { tv_sec: pause.as_secs().try_into()?, tv_nsec: pause.subsec_nanos().into() };
    match poll(&mut waited, Some(&pause)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("wait for answers"),
    }
}

impl Connection {
    /// Reads what there is; the latency in nanoseconds, once the answer is whole.
    fn receive(&mut self) -> Result<Option<u64>> {
        let mut bytes = [0; 8192];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => anyhow::bail!("the connection was closed"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("read an answer"),
        };
        self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        let Some(length) = http1::answer_length(&self.buffer)? else { return Ok(None) };
        if self.buffer.len() < length {
            return Ok(None);
        }
        ensure!(self.buffer.len() == length, "more than one answer to one request");
        self.buffer.clear();
        let due = self.due.take().context("an answer without a request")?;
        Ok(Some(u64::try_from(due.elapsed().as_nanos())?))
    }
}
