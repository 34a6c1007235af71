//! The servers that balancers choose among: they work by timers, not by CPU, on a few requests at a time, the others wait in
//! order. Half of them are half as fast as the others; antagonists slow one or another down for seconds; one may fail fast for
//! a while. What befalls them follows from a seed, so that all contenders meet the same.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

pub(super) const SERVERS: usize = 16;
/// Requests that a server works on at a time.
pub(super) const SLOTS: usize = 4;
/// Mean time of a request at every other server.
pub(super) const FAST: Duration = Duration::from_millis(40);
/// The same at the others.
pub(super) const SLOW: Duration = Duration::from_millis(80);
/// A server's chance of an antagonist, in each [`VISIT`].
pub(super) const ANTAGONISED: f64 = 0.1;
/// So many times longer do requests take that begin while an antagonist is there.
pub(super) const SLOWDOWN: f64 = 3.0;
/// How long an antagonist stays.
pub(super) const VISIT: Duration = Duration::from_secs(3);
/// Who fails, where somebody does: a fast one.
const FAILING: usize = 0;
/// Half of what the runtime's timers tick in: they fire up to a millisecond late.
const LATE: Duration = Duration::from_micros(500);
/// The header that says how much work a request is, in means.
pub(super) const WORK: &str = "bench-work";
/// Before a server tries again to accept connections.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest head of a request.
const HEAD: usize = 16 * 1024;

/// All servers, each on a port of its own.
pub(super) struct Fleet {
    pub(super) addresses: Vec<SocketAddr>,
    fate: Arc<Mutex<Fate>>,
}

/// What befalls the servers from a moment on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fate {
    pub(super) begin: Instant,
    pub(super) seed: u64,
    /// From when to when, after the beginning, one server fails at once whatever it gets.
    pub(super) failing: Option<(Duration, Duration)>,
}

struct Server {
    number: usize,
    slots: Semaphore,
    fate: Arc<Mutex<Fate>>,
}

impl Fleet {
    pub(super) fn start() -> Result<Self> {
        let fate = Arc::new(Mutex::new(Fate { begin: Instant::now(), seed: 0, failing: None }));
        let mut addresses = Vec::new();
        for number in 0..SERVERS {
            let listener = StdListener::bind("127.0.0.1:0").context("a server's port")?;
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            let listener = TcpListener::from_std(listener)?;
            let server = Arc::new(Server { number, slots: Semaphore::new(SLOTS), fate: Arc::clone(&fate) });
            tokio::spawn(async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        // Out of descriptors, for now.
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    };
                    let server = Arc::clone(&server);
                    // Proxies close connections when they like.
                    tokio::spawn(async move { server.serve(stream).await.ok() });
                }
            });
        }
        Ok(Self { addresses, fate })
    }

    pub(super) fn meets(&self, fate: Fate) {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner) = fate;
    }
}

/// Requests per second that all servers can do, in the mean over antagonists' visits.
pub(super) fn capacity() -> f64 {
    let each = |mean: Duration| SERVERS as f64 / 2.0 * SLOTS as f64 / mean.as_secs_f64();
    (each(FAST) + each(SLOW)) * (1.0 - ANTAGONISED * (1.0 - 1.0 / SLOWDOWN))
}

impl Fate {
    fn is_failing(&self, server: usize, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.begin);
        server == FAILING && self.failing.is_some_and(|(from, to)| (from..to).contains(&since))
    }

    /// How long a request takes that begins now.
    fn takes(&self, server: usize, work: f64, now: Instant) -> Duration {
        let mean = if server.is_multiple_of(2) { FAST } else { SLOW };
        let visit = (now.saturating_duration_since(self.begin).as_millis() / VISIT.as_millis()) as u64;
        let seed = (self.seed << 32) ^ (visit << 8) ^ server as u64;
        // The first number of a generator is too much like its seed.
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let slowdown = if random.f64() < ANTAGONISED { SLOWDOWN } else { 1.0 };
        mean.mul_f64(work * slowdown)
    }
}

impl Server {
    fn fate(&self) -> Fate {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection: GETs, one after the other.
    async fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        while let Some(work) = next_request(&mut stream, &mut buffer).await? {
            let answer: &[u8] = if self.fate().is_failing(self.number, Instant::now()) {
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
            } else {
                self.work(work).await?;
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            };
            stream.write_all(answer).await?;
        }
        Ok(())
    }

    /// Waits for a slot (first come, first served), then for the work's end. What waits since an earlier measurement is done
    /// at once, so that nobody finds the queues of another.
    async fn work(&self, work: f64) -> Result<()> {
        let came_at = self.fate().begin;
        let _slot = self.slots.acquire().await.context("a slot")?;
        let fate = self.fate();
        if fate.begin != came_at {
            return Ok(());
        }
        let begins = Instant::now();
        let takes = fate.takes(self.number, work, begins).saturating_sub(LATE);
        tokio::time::sleep_until((begins + takes).into()).await;
        Ok(())
    }
}

/// The work that the next request is; none: the connection ended.
async fn next_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<f64>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let work = work_of(buffer.get(..end).unwrap_or_default());
            buffer.drain(..end + 4);
            return Ok(Some(work));
        }
        if buffer.len() > HEAD || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// One mean, if the request does not say.
fn work_of(head: &[u8]) -> f64 {
    let head = String::from_utf8_lossy(head);
    let named = head.lines().filter_map(|line| line.split_once(':'));
    let mut values = named.filter(|(name, _)| name.eq_ignore_ascii_case(WORK));
    values.find_map(|(_, value)| value.trim().parse().ok()).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn antagonists_come_as_often_as_they_should_and_the_same_for_everybody() {
        let begin = Instant::now();
        let fate = Fate { begin, seed: 3, failing: None };
        let at = |visit: u32, server: usize| fate.takes(server, 1.0, begin + VISIT * visit);
        let visits: Vec<_> = (0..500).flat_map(|visit| (0..SERVERS).map(move |server| (visit, server))).collect();
        let slow = visits.iter().filter(|(visit, server)| at(*visit, *server) > SLOW * 11 / 10).count();
        let share = slow as f64 / visits.len() as f64;
        assert!((share - ANTAGONISED).abs() < 0.02, "{share}");
        assert!(visits.iter().all(|(visit, server)| at(*visit, *server) == at(*visit, *server)));
    }

    #[test]
    fn one_fails_for_a_while() {
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let fate = Fate { begin, seed: 1, failing: Some((second, 2 * second)) };
        assert!(!fate.is_failing(FAILING, begin) && fate.is_failing(FAILING, begin + second));
        assert!(!fate.is_failing(FAILING, begin + 2 * second) && !fate.is_failing(1, begin + second));
    }

    #[test]
    fn a_request_says_how_much_work_it_is() {
        assert_eq!(work_of(b"GET / HTTP/1.1\r\nhost: x\r\nBench-Work: 0.25"), 0.25);
        assert_eq!(work_of(b"GET / HTTP/1.1\r\nhost: x"), 1.0);
    }
}
