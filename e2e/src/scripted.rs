//! An HTTP/1.1 server that does with each request what the test says, by the byte: odd headers, connections that break off, idle
//! ones that are closed. [`crate::server`] is the one for everything that a well-behaved application does.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

/// Longest head that is read.
const MAX_HEAD: usize = 128 * 1024;

/// What it does with a request once that is read.
#[derive(Debug, Clone)]
pub enum Act {
    /// Answers with this status, and with these header lines, each with its end.
    Answer(u16, String),
    /// The same, no sooner than this.
    AnswerAfter(Duration, u16, String),
    /// Closes the connection without a word.
    BreakOff,
    /// Says nothing until the client leaves.
    Wait,
}

/// A request, as far as it matters.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Of all requests, from 1.
    pub number: u64,
    /// Of those on its connection, from 1.
    pub on_connection: u64,
    /// Request line and header lines, as they came.
    pub head: String,
}

impl Asked {
    /// A header's value; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next().unwrap_or("")
    }
}

/// What it counts, and what it was asked.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU64,
    /// Connections accepted so far.
    pub connections: AtomicU64,
    /// Connections that it closed because they were idle.
    pub idled_out: AtomicU64,
    /// Bytes of bodies read so far, also of requests that are not complete yet.
    pub body_bytes: AtomicU64,
    /// Requests that were read whole; bounded by what tests send.
    asked: Mutex<Vec<Asked>>,
}

/// A running server; gone, with its connections, when dropped.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    counts: Arc<Counts>,
    serving: tokio::task::JoinHandle<()>,
}

struct Script<F> {
    act: F,
    idle: Duration,
    counts: Arc<Counts>,
}

impl Scripted {
    /// Listens on a free port of 127.0.0.1, and does with each request what `act` says.
    pub async fn start(act: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Result<Self> {
        Self::idling(Duration::MAX, act).await
    }

    /// The same; connections that are idle for so long are closed.
    pub async fn idling(idle: Duration, act: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.context("listen")?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        let script = Arc::new(Script { act, idle, counts: counts.clone() });
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let script = script.clone();
                // A client that leaves in the middle is its own affair.
                connections.spawn(async move { drop(connection(stream, &script).await) });
            }
        });
        Ok(Self { address, counts, serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many requests came whole.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(Relaxed)
    }

    /// All requests that came whole, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.counts.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The latest request.
    pub fn last(&self) -> Result<Asked> {
        let asked = self.counts.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.last().cloned().context("it was asked nothing")
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn connection<F: Fn(&Asked) -> Act>(mut stream: TcpStream, script: &Script<F>) -> Result<()> {
    let counts = &script.counts;
    counts.connections.fetch_add(1, Relaxed);
    let mut read = Vec::new();
    for on_connection in 1.. {
        let Ok(head) = timeout(script.idle, read_head(&mut stream, &mut read)).await else {
            counts.idled_out.fetch_add(1, Relaxed);
            return Ok(());
        };
        let mut asked = Asked { number: 0, on_connection, head: head? };
        read_body(&mut stream, &mut read, &asked, counts).await?;
        asked.number = counts.requests.fetch_add(1, Relaxed) + 1;
        counts.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        match (script.act)(&asked) {
            Act::Answer(status, headers) => answer(&mut stream, status, &headers).await?,
            Act::AnswerAfter(time, status, headers) => {
                tokio::time::sleep(time).await;
                answer(&mut stream, status, &headers).await?;
            }
            Act::BreakOff => return Ok(()),
            Act::Wait => while stream.read_buf(&mut read).await? > 0 {},
        }
    }
    Ok(())
}

async fn answer(stream: &mut TcpStream, status: u16, headers: &str) -> Result<()> {
    let answer = format!("HTTP/1.1 {status} As Told\r\n{headers}content-length: 0\r\n\r\n");
    Ok(stream.write_all(answer.as_bytes()).await?)
}

/// The next head; what came after it stays in `read`.
async fn read_head(stream: &mut TcpStream, read: &mut Vec<u8>) -> Result<String> {
    loop {
        if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            let head = std::mem::replace(read, rest);
            return String::from_utf8(head).context("a head of text");
        }
        anyhow::ensure!(read.len() < MAX_HEAD, "a head of more than {MAX_HEAD} bytes");
        anyhow::ensure!(stream.read_buf(read).await? > 0, "the client left");
    }
}

/// Reads a body of stated length to its end.
async fn read_body(stream: &mut TcpStream, read: &mut Vec<u8>, asked: &Asked, counts: &Counts) -> Result<()> {
    anyhow::ensure!(asked.header("transfer-encoding").is_empty(), "bodies have a stated length here");
    let mut left: usize = asked.header("content-length").parse().unwrap_or_default();
    loop {
        let taken = left.min(read.len());
        read.drain(..taken);
        left -= taken;
        counts.body_bytes.fetch_add(taken as u64, Relaxed);
        if left == 0 {
            return Ok(());
        }
        anyhow::ensure!(stream.read_buf(read).await? > 0, "the client left");
    }
}
