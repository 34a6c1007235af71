//! TCPRoute and TLSRoute, and the protocols that nobody declared.

use std::time::Duration;

use anyhow::{Result, ensure};
use leno_e2e::{
    client,
    mesh::{
        LIMIT, Mesh, Workload,
        documents::{self, route_head},
    },
    ports,
    scenario::destination,
    server::Server,
    tcp::{LineServer, Manner, ask, read_line, self_signed, tls},
    wait::eventually,
};
use tokio::{net::TcpStream, time::Instant};

/// Services `shop`, `a` and `b` without a declared protocol, the latter two with a server each, and a client of `shop`.
async fn two_servers(mesh: &Mesh, a: &LineServer, b: &LineServer) -> Result<Workload> {
    for service in ["shop", "a", "b"] {
        mesh.apply(&format!("service-{service}.yaml"), &documents::service("default", service, 80, ""))?;
    }
    mesh.workload("a-1").account("a").serves("a", a.address()).start().await?;
    mesh.workload("b-1").account("b").serves("b", b.address()).start().await?;
    mesh.workload("client").outbound(&destination("shop")).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_routes_share_out_connections() -> Result<()> {
    let mesh = Mesh::start().await?;
    let (a, b) = (LineServer::start("a", Manner::Listens).await?, LineServer::start("b", Manner::Listens).await?);
    let client = two_servers(&mesh, &a, &b).await?;
    let rules = "  rules:
    - backendRefs: [{name: a, port: 80, weight: 1}, {name: b, port: 80, weight: 3}]
";
    mesh.apply("routes.yaml", &(route_head("TCPRoute", "shop", "shop") + rules))?;
    mesh.wait("tcproute/shop").await?;
    let mut answered_by_a = 0;
    for n in 0..200 {
        let mut stream = TcpStream::connect(client.calls(&destination("shop"))?).await?;
        let answer = ask(&mut stream, &format!("line {n}")).await?;
        let (server, line) = answer.split_once(": ").unwrap_or_default();
        ensure!(line == format!("line {n}"), "{answer}");
        answered_by_a += u32::from(server == "a");
    }
    // A quarter of 200: 50 ± 6; five standard deviations either way.
    ensure!((20..=80).contains(&answered_by_a), "of 200 connections, {answered_by_a} went to a");
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_routes_by_server_name() -> Result<()> {
    let mesh = Mesh::start().await?;
    let (server_config, client_config) = self_signed(&["one.example", "two.example", "three.example"])?;
    let a = LineServer::start("a", Manner::Tls(server_config.clone())).await?;
    let b = LineServer::start("b", Manner::Tls(server_config)).await?;
    let client = two_servers(&mesh, &a, &b).await?;
    let route = |name: &str, host: &str, backend: &str| {
        let rules =
            format!("  hostnames: [\"{host}\"]\n  rules:\n    - backendRefs: [{{name: {backend}, port: 80}}]\n");
        route_head("TLSRoute", name, "shop") + &rules
    };
    mesh.apply("routes.yaml", &documents::file(&[route("one", "one.example", "a"), route("two", "two.example", "b")]))?;
    mesh.wait("tlsroute/one").await?;
    mesh.wait("tlsroute/two").await?;
    for (name, server) in [("one.example", "a"), ("two.example", "b")] {
        let mut stream = tls(client.calls(&destination("shop"))?, name, client_config.clone()).await?;
        let answer = ask(&mut stream, "over TLS").await?;
        ensure!(answer == format!("{server}: over TLS"), "{name} was answered with {answer:?}");
    }
    for (name, route) in [("one.example", "one"), ("two.example", "two")] {
        let told = mesh.leno(&["explain", "client", "https://shop.default:80", "--server-name", name]).await?;
        let taken = format!("✓ rule         TLS for {name}  [TLSRoute default/{route}, rule ");
        ensure!(told.contains(&taken), "{name}:\n{told}");
    }
    let told = mesh.leno(&["explain", "client", "https://shop.default:80"]).await?;
    ensure!(told.contains("no route takes the server name"), "{told}");
    let unknown = tls(client.calls(&destination("shop"))?, "three.example", client_config).await;
    ensure!(unknown.is_err(), "a server name without a route was connected");
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undeclared_protocols_are_found_out() -> Result<()> {
    let mesh = Mesh::start().await?;
    let (server_config, client_config) = self_signed(&["app.example"])?;
    let http = Server::start("http").await?;
    let first = LineServer::start("first", Manner::SpeaksFirst).await?;
    let lines = LineServer::start("lines", Manner::Listens).await?;
    let encrypted = LineServer::start("encrypted", Manner::Tls(server_config)).await?;
    let servers = [
        ("http", http.address()),
        ("first", first.address()),
        ("lines", lines.address()),
        ("encrypted", encrypted.address()),
    ];
    let mut client = mesh.workload("client");
    for (name, address) in servers {
        mesh.apply(&format!("service-{name}.yaml"), &documents::service("default", name, 80, ""))?;
        mesh.workload(&format!("{name}-1")).account(name).serves(name, address).start().await?;
        client = client.outbound(&destination(name));
    }
    let client = client.start().await?;

    let seen = client::get(client.calls(&destination("http"))?, "http", "/").await?.seen()?;
    ensure!(seen.instance == "http" && seen.version == "HTTP/1.1", "{seen:?}");
    let request = http::Request::get("http://http/").body(bytes::Bytes::new())?;
    let seen = client::http2(client.calls(&destination("http"))?, request).await?.seen()?;
    ensure!(seen.instance == "http" && seen.version == "HTTP/2.0", "{seen:?}");

    let mut stream = TcpStream::connect(client.calls(&destination("lines"))?).await?;
    ensure!(ask(&mut stream, "plain").await? == "lines: plain", "lines");
    let mut stream = tls(client.calls(&destination("encrypted"))?, "app.example", client_config).await?;
    ensure!(ask(&mut stream, "secret").await? == "encrypted: secret", "encrypted");

    // The first connection may have to find out; from then on the wait must not show, but where the machine stalls.
    let mut took = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let mut stream = TcpStream::connect(client.calls(&destination("first"))?).await?;
        ensure!(read_line(&mut stream).await? == "hello from first", "no greeting");
        took.push(began.elapsed());
        ensure!(ask(&mut stream, "second").await? == "first: second", "first");
    }
    took.sort();
    ensure!(took.get(5).is_some_and(|median| *median < Duration::from_millis(500)), "the greetings took {took:?}");
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_backend_whose_circuit_is_open_are_closed_at_once() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply("service.yaml", &documents::service("default", "lines", 80, "tcp"))?;
    let dead = ports::free_on(ports::loopback_ip())?;
    let endpoints = documents::file(&[
        documents::pod("default", "dead", "lines", &[ports::loopback_ip().to_string()]),
        documents::endpoint_slice("default", "lines", Some("dead"), dead, true),
    ]);
    mesh.apply("dead.yaml", &endpoints)?;
    let breaks = "  circuitBreaker: {consecutiveFailures: 1, openTime: 10m}\n";
    mesh.apply("policy.yaml", &documents::backend_policy("lines", "lines", breaks))?;
    let client = mesh.workload("client").outbound(&destination("lines")).start().await?;
    for reason in ["connect", "circuit-open"] {
        let mut stream = TcpStream::connect(client.calls(&destination("lines"))?).await?;
        ensure!(ask(&mut stream, "anybody?").await.is_err(), "somebody answers");
        eventually(&format!("{reason} is counted"), LIMIT, async || {
            let labels = [("reason", reason)];
            let count = client.metrics().await?.sum("leno_tcp_connection_failures_total", &labels);
            ensure!(count == 1.0, "{count}");
            Ok(())
        })
        .await?;
    }
    mesh.end().await
}
