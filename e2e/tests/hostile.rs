//! Malformed and hostile HTTP: refused or bounded, while others are served as if nothing had happened.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    load::{Load, Running},
    mesh::{LIMIT, Mesh, Options, Workload, documents},
    raw::{self, END_HEADERS, END_STREAM, Http2, encode, frame, statuses},
    scenario::{Scenario, destination},
    server::Server,
    wait::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};

/// Workloads of the namespace let plaintext in.
const PERMISSIVE: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: default
  annotations: {leno.dev/inbound: permissive}
";

/// A client's sidecar, a server's, and one that also lets plaintext in; with bystanders' load through all.
struct Stage {
    scenario: Scenario,
    /// A permissive workload: anybody can reach its inbound listener.
    open: Workload,
    open_server: Server,
    bystanders: Running,
}

impl Stage {
    async fn set() -> Result<Self> {
        let scenario = Scenario::start(&["shop"]).await?;
        scenario.mesh.apply("namespace.yaml", PERMISSIVE)?;
        // Floods ask the application for more than it can answer at once, which the adaptive limit would meet with refusals,
        // also of others. Here the frames are to be met without its help.
        let unlimited = documents::inbound_policy("unlimited", "shop", "  concurrency: {mode: \"Off\"}\n");
        scenario.mesh.change("unlimited.yaml", &unlimited, "inboundpolicy/unlimited").await?;
        let open_server = Server::start("open").await?;
        let open = scenario.mesh.workload("open").inbound(open_server.address()).start().await?;
        let load = Load::new(scenario.address("shop")?, &destination("shop"));
        let bystanders = load.connections(10).streams(4).rate(100.0).path("/bystander").start();
        Ok(Self { scenario, open, open_server, bystanders })
    }

    /// Where plaintext HTTP is read: a client's sidecar, and a permissive server's.
    fn doors(&self) -> Result<[SocketAddr; 2]> {
        Ok([self.scenario.address("shop")?, self.open.listener(0)?])
    }

    fn resident(&self) -> Result<u64> {
        Ok(self.scenario.client.process()?.resident()?.max(self.open.process()?.resident()?))
    }

    async fn end(self) -> Result<()> {
        self.bystanders.more(100).await?;
        self.bystanders.stop().await?.unharmed(100)?;
        self.scenario.mesh.end().await
    }
}

/// What must never reach an application as a request of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_refused() -> Result<()> {
    let stage = Stage::set().await?;
    let smuggling = |head: &str| format!("POST /first HTTP/1.1\r\nHost: x\r\n{head}\r\n{SMUGGLED}");
    let simple = |head: &str| format!("GET /first HTTP/1.1\r\nHost: x\r\n{head}\r\n");
    let large = "a".repeat(200_000);
    let many: String = (0..5000).map(|n| format!("h{n}: v\r\n")).collect();
    let cases = [
        ("length and coding", smuggling("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n")),
        ("coding and length", smuggling("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n")),
        ("two lengths", smuggling("Content-Length: 0\r\nContent-Length: 36\r\n")),
        ("a list of lengths", smuggling("Content-Length: 0, 36\r\n")),
        ("a signed length", smuggling("Content-Length: +0\r\n")),
        ("a length that overflows", smuggling("Content-Length: 18446744073709551616\r\n")),
        ("a coding that is not chunked", smuggling("Transfer-Encoding: identity\r\n")),
        ("chunked and something", smuggling("Transfer-Encoding: chunked, identity\r\n")),
        ("chunked twice", smuggling("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
        ("almost chunked", smuggling("Transfer-Encoding: xchunked\r\n")),
        ("a quoted coding", smuggling("Transfer-Encoding: \"chunked\"\r\n")),
        ("a folded line", simple("X-A: b\r\n  c\r\n")),
        ("a folded coding", smuggling("Transfer-Encoding:\r\n chunked\r\n")),
        ("a space before the colon", simple("X-A : b\r\n")),
        ("a line without colon", simple("nonsense\r\n")),
        ("a bare CR in a value", simple("X-A: b\rX-B: c\r\n")),
        // Read as a line's end by some and not by others (RFC 9112, 2.2).
        ("lines that end in bare LF", "GET /first HTTP/1.1\nHost: x\n\n".to_owned()),
        ("one line that ends in bare LF", simple("X-A: b\nX-B: c\r\n")),
        ("NUL in a value", simple("X-A: b\0c\r\n")),
        ("a name with a space", simple("X A: b\r\n")),
        ("two hosts", simple("Host: y\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("a bad host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned()),
        ("a method with a bracket", "G{T / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("a version that does not exist", "GET / HTTP/3.9\r\nHost: x\r\n\r\n".to_owned()),
        ("spaces in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("a head that is too large", simple(&format!("X-A: {large}\r\n"))),
        ("a target that is too long", format!("GET /{large} HTTP/1.1\r\nHost: x\r\n\r\n")),
        ("too many fields", simple(&many)),
    ];
    for door in stage.doors()? {
        for (what, bytes) in &cases {
            let before = stage.scenario.instance("shop-1")?.server.seen("/first") + stage.open_server.seen("/first");
            let answer = raw::send(door, bytes.as_bytes()).await.with_context(|| (*what).to_owned())?;
            let statuses = statuses(&answer);
            ensure!(
                statuses.len() <= 1 && statuses.iter().all(|status| [400, 414, 431, 501, 505].contains(status)),
                "{what}: answered with {statuses:?}"
            );
            let after = stage.scenario.instance("shop-1")?.server.seen("/first") + stage.open_server.seen("/first");
            ensure!(before == after, "{what}: it reached the application");
        }
        // A body that goes wrong after its head was let through: the application sees it broken off, and nothing more.
        for (what, body) in [
            ("a chunk size that overflows", "FFFFFFFFFFFFFFFFF\r\n"),
            ("a negative chunk", "-1\r\n"),
            ("a chunk without end", "4\r\nabcdXX"),
            ("a chunk size with a bare LF", "4;a=\nb\r\nabcd\r\n0\r\n\r\n"),
        ] {
            let head = "POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
            let answer = raw::send(door, format!("{head}{body}{SMUGGLED}").as_bytes()).await?;
            ensure!(!statuses(&answer).contains(&200), "{what}: answered with {:?}", statuses(&answer));
        }
    }
    for server in [&stage.scenario.instance("shop-1")?.server, &stage.open_server] {
        ensure!(server.seen("/smuggled") == 0, "a smuggled request reached {}", server.name());
    }
    stage.end().await
}

/// What is not even a request gets its reason like any other: in the answer's header, the access log and the metric.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_refused_are_told_why() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply("namespace.yaml", PERMISSIVE)?;
    mesh.apply("service.yaml", &documents::service(documents::NAMESPACE, "shop", 80, ""))?;
    mesh.wait("service/shop").await?;
    let server = Server::start("shop").await?;
    let shop = mesh.workload("shop").access_log().serves("shop", server.address()).start().await?;
    let client = mesh.workload("client").access_log().outbound("shop.default:80").start().await?;
    let doors = [("outbound", &client, client.calls("shop.default:80")?), ("inbound", &shop, shop.listener(0)?)];
    let large = format!("GET / HTTP/1.1\r\nHost: shop\r\nX-A: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nHost: shop\r\n{}\r\n", "x: y\r\n".repeat(300));
    let get = "GET /before HTTP/1.1\r\nHost: shop\r\n\r\n";
    // Each begins as HTTP does: what does not is taken for opaque bytes, and is the application's to judge.
    let bad = |line: &str| format!("GET / HTTP/1.1\r\nHost: shop\r\n{line}\r\n\r\n");
    for (direction, workload, door) in doors {
        for (bytes, status, reason) in [
            (bad("X A: b"), 400, "bad-request"),
            (bad("X: a\r\n folded"), 400, "bad-request"),
            (bad("X: a\0b"), 400, "bad-request"),
            (bad("Content-Length: +1"), 400, "bad-request"),
            (bad("Content-Length: 1\r\nContent-Length: 2"), 400, "bad-request"),
            ("GET /a b HTTP/1.1\r\nHost: shop\r\n\r\n".to_owned(), 400, "bad-request"),
            (format!("{get}{}", bad("X A: b")), 400, "bad-request"),
            (large.clone(), 431, "head-too-large"),
            (many.clone(), 431, "head-too-large"),
        ] {
            let told = Told { direction, workload, reason };
            let before = told.count().await?;
            let answer = raw::send_to_end(door, bytes.as_bytes()).await?;
            let text = String::from_utf8_lossy(&answer);
            let shown = format!("{direction}, {:?}: {text}", bytes.chars().take(80).collect::<String>());
            ensure!(statuses(&answer).last() == Some(&status), "{shown}");
            ensure!(text.contains(&format!("leno-reason: {reason}\r\n")), "{shown}");
            ensure!(text.contains("connection: close\r\n"), "{shown}");
            told.once_more_than(before, status).await?;
        }
        // Behind a request that is out of the usual: the header is missing, the rest is told.
        let told = Told { direction, workload, reason: "bad-request" };
        let before = told.count().await?;
        let odd = "PROPFIND /odd HTTP/1.1\r\nHost: shop\r\n\r\n";
        let answer = raw::send_to_end(door, format!("{odd}{}", bad("X A: b")).as_bytes()).await?;
        ensure!(statuses(&answer) == [200, 400], "{direction}: {}", String::from_utf8_lossy(&answer));
        told.once_more_than(before, 400).await?;
        // HTTP/2: a pseudo-field is missing, which resets the stream.
        let told = Told { direction, workload, reason: "bad-request" };
        let before = told.count().await?;
        let mut connection = Http2::connect(door, &[]).await?;
        connection.write(&encode(frame::HEADERS, END_HEADERS | END_STREAM, 1, &[0x82])).await?;
        told.once_more_than(before, 400).await?;
        // A head beyond the limits is answered; gRPC calls in their own way, wherever they say what they are.
        let grpc = [&[0x0f, 0x10, 16][..], b"application/grpc"].concat();
        for (own, status, expected) in [(&[][..], 431, &b"431"[..]), (&grpc, 200, b"grpc-message")] {
            let told = Told { direction, workload, reason: "head-too-large" };
            let before = told.count().await?;
            let mut connection = Http2::connect(door, &[]).await?;
            connection.write(&beyond_the_limits(own)).await?;
            let head = connection.read_head().await?;
            let says = |text: &[u8]| head.windows(text.len()).any(|part| part == text);
            let shown = String::from_utf8_lossy(&head);
            ensure!(says(expected) && says(b"leno-reason") && says(b"head-too-large"), "{direction}: {shown}");
            told.once_more_than(before, status).await?;
        }
    }
    // Whose deadline it is nobody can tell: it is not taken.
    let stranger = "GET /late HTTP/1.1\r\nHost: shop\r\nleno-timeout-ms: 0\r\nConnection: close\r\n\r\n";
    let answer = raw::send_to_end(shop.listener(0)?, stranger.as_bytes()).await?;
    ensure!(statuses(&answer) == [200], "{}", String::from_utf8_lossy(&answer));
    ensure!(server.requests() == 5, "{} requests reached the application", server.requests());
    mesh.end().await
}

/// The frames of a request whose head has more than 64 KiB, with these fields at its end.
fn beyond_the_limits(last: &[u8]) -> Vec<u8> {
    const FILLER: usize = 16_000;
    // A literal without index, its value's length as HPACK has it.
    let filler = [vec![0x00, 0x01, b'a', 0x7f, 0x81, 0x7c], vec![b'x'; FILLER]].concat();
    let block = [raw::get("shop", "/long"), filler.repeat(5), last.to_vec()].concat();
    let parts: Vec<&[u8]> = block.chunks(FILLER).collect();
    let frames = parts.iter().enumerate().map(|(n, part)| {
        let kind = if n == 0 { frame::HEADERS } else { frame::CONTINUATION };
        let flags = if n == 0 { END_STREAM } else { 0 } | if n + 1 == parts.len() { END_HEADERS } else { 0 };
        encode(kind, flags, 1, part)
    });
    frames.collect::<Vec<_>>().concat()
}

/// What a proxy tells of requests that it refused for a reason.
struct Told<'a> {
    direction: &'static str,
    workload: &'a Workload,
    reason: &'static str,
}

impl Told<'_> {
    async fn count(&self) -> Result<f64> {
        let labels = [("direction", self.direction), ("class", "failed"), ("reason", self.reason)];
        Ok(self.workload.metrics().await?.sum("leno_requests_total", &labels))
    }

    /// One more is counted, and the access log has as many.
    async fn once_more_than(&self, before: f64, status: u16) -> Result<()> {
        eventually(&format!("{} tells of {}", self.direction, self.reason), LIMIT, async || {
            let count = self.count().await?;
            ensure!(count == before + 1.0, "counted {count} after {before}");
            let log = self.workload.process()?.log()?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let told: Vec<_> = lines.filter(|line| line.get("reason") == Some(&self.reason.into())).collect();
            ensure!(told.len() as f64 == count, "{} lines for {count} requests", told.len());
            let last = told.last().and_then(|line| line.get("status"));
            ensure!(last == Some(&status.into()), "status {last:?}");
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_frames_are_bounded() -> Result<()> {
    let stage = Stage::set().await?;
    stage.bystanders.more(200).await?;
    let before = stage.resident()?;
    for door in stage.doors()? {
        rapid_reset(door).await?;
        continuation_flood(door).await?;
        idle_frames(door).await?;
        zero_windows(door).await?;
    }
    let grown = stage.resident()?.saturating_sub(before);
    println!("resident memory grew by {} KiB", grown / 1024);
    ensure!(grown < 48 << 20, "the floods cost {} MiB", grown >> 20);
    let server = &stage.scenario.instance("shop-1")?.server;
    eventually("the application has no request left", LIMIT, async || {
        // The bystanders' streams are four.
        let left = server.control().in_flight.load(Ordering::Relaxed);
        ensure!(left <= 14, "{left} in flight");
        Ok(())
    })
    .await?;
    stage.end().await
}

/// Requests that are taken back at once (CVE-2023-44487): the connection is ended, or goes on bounded.
async fn rapid_reset(door: SocketAddr) -> Result<()> {
    let mut connection = Http2::connect(door, &[]).await?;
    let head = raw::get("shop", "/reset");
    for n in 0..20_000u32 {
        let stream = 2 * n + 1;
        let request = encode(frame::HEADERS, END_HEADERS | END_STREAM, stream, &head);
        let reset = encode(frame::RST_STREAM, 0, stream, &8u32.to_be_bytes());
        if connection.write(&[request, reset].concat()).await.is_err() {
            return Ok(());
        }
    }
    let frames = connection.read_to_goaway().await;
    ensure!(frames.contains(&frame::GOAWAY), "20,000 rapid resets were taken for well");
    Ok(())
}

/// A head without end (CVE-2024-27316).
async fn continuation_flood(door: SocketAddr) -> Result<()> {
    let mut connection = Http2::connect(door, &[]).await?;
    let filler = [vec![0x00, 0x01, b'a', 0x7f, 0x81, 0x7e], vec![b'x'; 16_000]].concat();
    connection.write(&encode(frame::HEADERS, END_STREAM, 1, &raw::get("shop", "/flood"))).await?;
    for _ in 0..2000 {
        if connection.write(&encode(frame::CONTINUATION, 0, 1, &filler)).await.is_err() {
            return Ok(());
        }
    }
    anyhow::bail!("32 MB of one head were read")
}

/// Frames that cost the sender nothing: each wants an answer, or work.
async fn idle_frames(door: SocketAddr) -> Result<()> {
    for frames in [
        encode(frame::PING, 0, 0, &[0; 8]),
        encode(frame::SETTINGS, 0, 0, &[]),
        [encode(frame::HEADERS, END_HEADERS, 1, &raw::get("shop", "/drip")), encode(frame::DATA, 0, 1, &[])].concat(),
    ] {
        let mut connection = Http2::connect(door, &[]).await?;
        let many = frames.repeat(100);
        for _ in 0..300 {
            // It need not end the connection, as long as it reads no more than it can bear.
            if connection.write(&many).await.is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Answers that nobody takes: they wait at the application, not in the proxy.
async fn zero_windows(door: SocketAddr) -> Result<()> {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = Http2::connect(door, &[(INITIAL_WINDOW_SIZE, 0)]).await?;
        let head = raw::get("shop", "/bytes/10000000");
        let requests: Vec<u8> =
            (0..10).flat_map(|n| encode(frame::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &head)).collect();
        connection.write(&requests).await?;
        connections.push(connection);
    }
    // 200 answers of 10 MB: as soon as the first heads are there, bodies have begun to pile up wherever they can.
    for connection in &mut connections {
        let mut byte = [0; 1];
        tokio::time::timeout(LIMIT, connection.stream.read_exact(&mut byte)).await.context("no answer at all")??;
    }
    sleep(Duration::from_secs(1)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_are_not_waited_for() -> Result<()> {
    let stage = Stage::set().await?;
    let began = Instant::now();
    let mut dribbling = JoinSet::new();
    for door in stage.doors()? {
        for _ in 0..100 {
            dribbling.spawn(async move {
                let mut stream = TcpStream::connect(door).await?;
                stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n").await?;
                // A byte a second, for ever: until the other side closes.
                loop {
                    let mut answer = [0; 256];
                    let wait = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
                    match wait {
                        Err(_) => stream.write_all(b"x").await?,
                        Ok(Ok(1..)) => {}
                        Ok(_) => return anyhow::Ok(()),
                    }
                }
            });
        }
    }
    let all = async { while dribbling.join_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(90), all).await.context("slow heads are still waited for after 90 s")?;
    println!("200 slow connections were closed within {:?}", began.elapsed());
    stage.end().await
}

/// A client that closes its side of the connection has left: its request is dropped, at the application too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_side_has_left() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let control = scenario.instance("shop-1")?.server.control();
    let in_flight = async |expected: usize| {
        eventually(&format!("the application has {expected} requests"), LIMIT, async || {
            let now = control.in_flight.load(Ordering::Relaxed);
            ensure!(now == expected, "{now} in flight");
            Ok(())
        })
        .await
    };
    let mut stream = TcpStream::connect(scenario.address("shop")?).await?;
    stream.write_all(b"GET /delay/600000 HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
    in_flight(1).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.context("the connection stays open")??;
    ensure!(answer.is_empty(), "answered with {:?}", String::from_utf8_lossy(&answer));
    in_flight(0).await?;
    scenario.mesh.end().await
}

/// Connections that begin something and never end it, again and again.
struct Crowd {
    members: JoinSet<()>,
    present: Arc<AtomicUsize>,
}

impl Crowd {
    /// More than the control plane has places for those it does not know.
    const MEMBERS: usize = 600;

    async fn gather(target: SocketAddr, says: Vec<u8>) -> Result<Self> {
        let (says, present) = (Arc::new(says), Arc::new(AtomicUsize::new(0)));
        let mut members = JoinSet::new();
        for _ in 0..Self::MEMBERS {
            let (says, present) = (Arc::clone(&says), Arc::clone(&present));
            members.spawn(async move {
                loop {
                    if let Ok(mut connection) = TcpStream::connect(target).await {
                        present.fetch_add(1, Ordering::Relaxed);
                        let _ = connection.write_all(&says).await;
                        let _ = connection.read_to_end(&mut Vec::new()).await;
                        present.fetch_sub(1, Ordering::Relaxed);
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            });
        }
        let crowd = Self { members, present };
        eventually("the crowd is there", LIMIT, async || crowd.is_there()).await?;
        Ok(crowd)
    }

    fn is_there(&self) -> Result<()> {
        let present = self.present.load(Ordering::Relaxed);
        ensure!(present >= Self::MEMBERS * 3 / 4, "{present} connections");
        Ok(())
    }

    async fn leave(mut self) {
        self.members.shutdown().await;
    }
}

fn client_hello() -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), "leno".try_into()?)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
}

/// Who says nothing to the control plane, or stops in the middle of a handshake, keeps no proxy from its certificate, from
/// renewing it, or from policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_crowd_the_control_plane() -> Result<()> {
    let options = Options { certificate_lifetime: Duration::from_secs(10), ..Options::default() };
    let mut scenario = Scenario::with(options, &["shop", "spare"], 1, "http").await?;
    for (number, (what, says)) in [("silent", Vec::new()), ("hello", client_hello()?)].into_iter().enumerate() {
        let crowd = Crowd::gather(scenario.mesh.address(), says).await?;
        let before = scenario.client.metrics().await?;

        // The quicker of two: what else the machine has to do may delay one.
        let (mut started, mut changed) = (Duration::MAX, Duration::MAX);
        for again in 0..2 {
            let began = Instant::now();
            scenario.add("shop", &format!("shop-{what}-{again}")).await?;
            started = started.min(began.elapsed());
            let weights = u32::try_from(number)? * 2 + again + 1;
            let began = Instant::now();
            let route = documents::http_route("shop", "shop", &[("shop", weights), ("spare", 1)]);
            scenario.route(&route, "httproute/shop").await?;
            changed = changed.min(began.elapsed());
        }
        println!("{what}: a proxy started in {started:?}, a route was in force in {changed:?}");
        // A busy machine's; who waits for the crowd to be timed out waits longer.
        ensure!(started < Duration::from_secs(8), "{what}: a proxy took {started:?} to start");
        ensure!(changed < Duration::from_secs(4), "{what}: a route took {changed:?} to be in force");

        let renewed = "leno_certificates_issued_total";
        eventually("the certificate is renewed twice", LIMIT, async || {
            crowd.is_there()?;
            let issued = scenario.client.metrics().await?.sum(renewed, &[]) - before.sum(renewed, &[]);
            ensure!(issued >= 2.0, "{issued} times");
            Ok(())
        })
        .await?;
        let failed = "leno_certificate_failures_total";
        let failures = scenario.client.metrics().await?.sum(failed, &[]) - before.sum(failed, &[]);
        ensure!(failures == 0.0, "{what}: {failures} renewals failed");
        crowd.leave().await;
    }
    let lines = scenario.mesh.control_plane().log()?.matches("refused a connection").count();
    ensure!(lines < 300, "the crowd filled the log with {lines} lines");
    scenario.mesh.end().await
}
