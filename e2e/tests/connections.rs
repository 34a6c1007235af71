//! How long connections to servers are waited for and kept, and what happens to requests when a server takes one away.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Request;
use leno_e2e::{
    client::{self, Answer},
    mesh::{
        LIMIT, Mesh, Workload,
        documents::{self, backend_policy, endpoint_slice, service},
    },
    ports,
    raw::{self, frame},
    scenario::destination,
    scripted::{Act, Scripted},
    server::Server,
    wait::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

async fn get(client: &Workload, service: &str) -> Result<Answer> {
    client::get(client.calls(&destination(service))?, service, "/").await
}

/// A Service with one endpoint outside the mesh.
fn outside(name: &str, protocol: &str, address: SocketAddr) -> [String; 2] {
    [service("default", name, 80, protocol), endpoint_slice("default", name, None, address, true)]
}

/// A listener that nobody accepts from, its queue full: who connects hears nothing.
async fn unanswering() -> Result<(TcpListener, Vec<TcpStream>)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((ports::loopback_ip(), 0).into())?;
    let listener = socket.listen(1)?;
    let (address, mut queue) = (listener.local_addr()?, Vec::new());
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(900), TcpStream::connect(address)).await {
        queue.push(connected?);
        ensure!(queue.len() < 100, "its queue does not fill");
    }
    Ok((listener, queue))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_waited_for_as_long_as_the_policy_says() -> Result<()> {
    let mesh = Mesh::start().await?;
    let (listener, _queue) = unanswering().await?;
    mesh.apply("mute.yaml", &documents::file(&outside("mute", "http", listener.local_addr()?)))?;
    let client = mesh.workload("client").outbound(&destination("mute")).start().await?;
    let waited = async |policy: &str| -> Result<Duration> {
        mesh.change("policy.yaml", &backend_policy("mute", "mute", policy), "backendpolicy/mute").await?;
        let started = Instant::now();
        let answer = get(&client, "mute").await?;
        ensure!(answer.status == 502 && answer.header("leno-reason") == "connect", "{answer:?}");
        Ok(started.elapsed())
    };
    // Five tries. By the default of 2 s that were ten.
    let short = waited("  timeouts: {connect: 100ms}\n").await?;
    ensure!(short < Duration::from_secs(5), "waited {short:?}");
    // One try, or two with what is left of the budget. By the default that were four at most.
    let long = waited("  timeouts: {connect: 5s}\n  retryBudget: {percent: 0, minPerSecond: 0, burst: 1}\n").await?;
    ensure!(long >= Duration::from_secs(5), "waited {long:?}");
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_kept_as_long_as_the_policy_says() -> Result<()> {
    let mesh = Mesh::start().await?;
    let names = ["short", "usual", "long"];
    let mut servers = Vec::new();
    let mut documents = vec![
        backend_policy("short", "short", "  timeouts: {connectionIdle: 500ms}\n"),
        backend_policy("long", "long", "  timeouts: {connectionIdle: 9s}\n"),
        // To a mesh peer it is a minute by default.
        backend_policy("meshed", "meshed", "  timeouts: {connectionIdle: 3s}\n"),
        service("default", "meshed", 80, "http"),
    ];
    for name in names {
        let server = Server::start(name).await?;
        documents.extend(outside(name, "http", server.address()));
        servers.push(server);
    }
    mesh.apply("all.yaml", &documents::file(&documents))?;
    for name in ["short", "long", "meshed"] {
        mesh.wait(&format!("backendpolicy/{name}")).await?;
    }
    let peer = Server::start("meshed").await?;
    mesh.workload("meshed").serves("meshed", peer.address()).start().await?;
    let mut client = mesh.workload("client").outbound(&destination("meshed"));
    for name in names {
        client = client.outbound(&destination(name));
    }
    let client = client.start().await?;

    let lived = async |server: &Server| -> Result<Duration> {
        let started = Instant::now();
        ensure!(get(&client, server.name()).await?.status == 200, "{}", server.name());
        eventually("the server has no connection any longer", LIMIT, async || {
            ensure!(server.control().open.load(Relaxed) == 0, "{} has one", server.name());
            Ok(())
        })
        .await?;
        Ok(started.elapsed())
    };
    let [short, usual, long] = servers.as_slice() else { anyhow::bail!("three servers") };
    let (short, usual, long) = tokio::try_join!(lived(short), lived(usual), lived(long))?;
    ensure!(short < usual && usual < long, "{short:?}, {usual:?}, {long:?}");
    for (lived, least) in [(short, 500), (usual, 4000), (long, 9000)] {
        ensure!(lived >= Duration::from_millis(least), "it was kept for {lived:?}, not {least} ms");
    }

    let pooled = async |expected: f64| {
        eventually(&format!("{expected} connections to the peer"), LIMIT, async || {
            let labels = [("backend", "default/meshed:80")];
            let pooled = client.metrics().await?.sum("leno_upstream_pooled_connections", &labels);
            ensure!(pooled == expected, "{pooled}");
            Ok(())
        })
        .await
    };
    ensure!(get(&client, "meshed").await?.status == 200, "a request to the peer");
    pooled(1.0).await?;
    pooled(0.0).await?;
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_idle_connections_is_found_out() -> Result<()> {
    let mesh = Mesh::start().await?;
    let server = Scripted::idling(Duration::from_millis(3000), |_| Act::Answer(200, String::new())).await?;
    mesh.apply("tired.yaml", &documents::file(&outside("tired", "http", server.address())))?;
    let client = mesh.workload("client").outbound(&destination("tired")).start().await?;
    for times in 1..=2 {
        ensure!(get(&client, "tired").await?.status == 200, "before it is known");
        eventually("the server closes, and the proxy sees it", LIMIT, async || {
            let closed = server.counts().idled_out.load(Relaxed);
            ensure!(closed == times, "closed {closed}");
            let pooled = client.metrics().await?.sum("leno_upstream_pooled_connections", &[]);
            ensure!(pooled == 0.0, "{pooled} are pooled");
            Ok(())
        })
        .await?;
    }
    // It is a habit. So near to its end no connection is used any more, which the server would still have served; nothing is
    // sent twice.
    ensure!(get(&client, "tired").await?.status == 200, "a new connection");
    for n in 1..=3 {
        tokio::time::sleep(Duration::from_millis(2900)).await;
        let before = server.requests();
        ensure!(get(&client, "tired").await?.status == 200, "request {n}");
        ensure!(server.requests() == before + 1, "request {n} came {} times", server.requests() - before);
        ensure!(server.last()?.on_connection == 1, "request {n} came on an old connection");
    }
    // One that has only just been used is.
    ensure!(get(&client, "tired").await?.status == 200 && server.last()?.on_connection == 2, "{:?}", server.last());
    mesh.end().await
}

/// What a server of HTTP/2 does with a request, frame by frame.
#[derive(Debug, Clone, Copy)]
enum Does {
    Answers,
    /// REFUSED_STREAM: not processed.
    Refuses,
    /// INTERNAL_ERROR: nobody knows.
    Fails,
    /// GOAWAY: this one is, or is not, the last that it may have processed; then the connection ends.
    Leaves {
        after_it: bool,
    },
}

/// Does what was planned, then answers.
#[derive(Debug, Default)]
struct Plan {
    next: Mutex<VecDeque<Does>>,
    requests: AtomicU64,
}

impl Plan {
    fn is(&self, does: &[Does]) {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).extend(does);
    }

    fn next(&self) -> Does {
        self.requests.fetch_add(1, Relaxed);
        self.next.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(Does::Answers)
    }
}

async fn frames(mut stream: TcpStream, plan: &Plan) -> Result<()> {
    const ACK: u8 = 1;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&raw::encode(frame::SETTINGS, 0, 0, &[])).await?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        let [a, b, c, kind, flags, id @ ..] = header;
        let id = u32::from_be_bytes(id);
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        stream.read_exact(&mut payload).await?;
        let reply = match (kind, flags & ACK) {
            (frame::SETTINGS, 0) => raw::encode(frame::SETTINGS, ACK, 0, &[]),
            (frame::PING, 0) => raw::encode(frame::PING, ACK, 0, &payload),
            (frame::HEADERS, _) => match plan.next() {
                // ":status: 200" of the static table.
                Does::Answers => raw::encode(frame::HEADERS, raw::END_STREAM | raw::END_HEADERS, id, &[0x88]),
                Does::Refuses => raw::encode(frame::RST_STREAM, 0, id, &7_u32.to_be_bytes()),
                Does::Fails => raw::encode(frame::RST_STREAM, 0, id, &2_u32.to_be_bytes()),
                Does::Leaves { after_it } => {
                    let last = if after_it { id } else { id.saturating_sub(2) };
                    let payload = [last.to_be_bytes(), [0; 4]].concat();
                    stream.write_all(&raw::encode(frame::GOAWAY, 0, 0, &payload)).await?;
                    return Ok(());
                }
            },
            _ => continue,
        };
        stream.write_all(&reply).await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_http2_server_did_not_process_is_sent_again() -> Result<()> {
    let mesh = Mesh::start().await?;
    let listener = TcpListener::bind((ports::loopback_ip(), 0)).await?;
    let (address, plan) = (listener.local_addr()?, Arc::new(Plan::default()));
    let serving = tokio::spawn({
        let plan = plan.clone();
        async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let plan = plan.clone();
                // Whoever leaves, it is seen at the client.
                connections.spawn(async move { drop(frames(stream, &plan).await) });
            }
        }
    });
    mesh.apply("frames.yaml", &documents::file(&outside("frames", "kubernetes.io/h2c", address)))?;
    let client = mesh.workload("client").outbound(&destination("frames")).start().await?;
    for (does, expected) in [
        (vec![Does::Refuses], (200, 2)),
        (vec![Does::Leaves { after_it: false }], (200, 2)),
        (vec![Does::Refuses, Does::Leaves { after_it: false }], (200, 3)),
        // A POST may be processed once, and may have been.
        (vec![Does::Fails], (502, 1)),
        (vec![Does::Leaves { after_it: true }], (502, 1)),
    ] {
        plan.is(&does);
        let before = plan.requests.load(Relaxed);
        let request = Request::post("http://frames.default/").body(Bytes::new())?;
        let answer = client::http2(client.calls(&destination("frames"))?, request).await?;
        let found = (answer.status.as_u16(), plan.requests.load(Relaxed) - before);
        ensure!(found == expected, "{does:?}: expected {expected:?}, got {found:?}");
        let reason = if expected.0 == 502 { "reset" } else { "" };
        ensure!(answer.header("leno-reason") == reason, "{does:?}: {answer:?}");
    }
    serving.abort();
    mesh.end().await
}
