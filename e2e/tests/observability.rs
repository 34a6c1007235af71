//! What operators see is what happened: traces, counters, log lines; and names are followed as DNS says.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use http::Request;
use leno_e2e::{
    client,
    collector::{Collector, Received},
    dns::Dns,
    load::Load,
    mesh::{LIMIT, Mesh, documents},
    ports,
    scenario::{Scenario, destination},
    server::Server,
    tcp::{LineServer, Manner, ask, read_line},
    wait::eventually,
};
use tokio::net::TcpStream;

/// A client and `shop`, both of which trace everything.
async fn traced(collector: &Collector) -> Result<(Mesh, Server, SocketAddr)> {
    let mesh = Mesh::start().await?;
    let server = Server::start("shop-1").await?;
    mesh.apply("shop.yaml", &documents::service("default", "shop", 80, "http"))?;
    let shop = mesh.workload("shop-1").account("shop").serves("shop", server.address());
    shop.flag("--otlp-endpoint", &collector.endpoint()).flag("--trace-sample", "1").start().await?;
    let client = mesh.workload("client").outbound(&destination("shop"));
    let client = client.flag("--otlp-endpoint", &collector.endpoint()).flag("--trace-sample", "1").start().await?;
    let address = client.calls(&destination("shop"))?;
    Ok((mesh, server, address))
}

/// The client's span and the server's, once both have arrived.
async fn both_spans(collector: &Collector, trace: &str) -> Result<(Received, Received)> {
    eventually("the spans of both sidecars arrive", LIMIT, async || {
        let spans = collector.trace(trace);
        let [one, other] = &spans[..] else { anyhow::bail!("{} spans of {trace}: {spans:?}", spans.len()) };
        let (client, server) = if other.parent_id() == one.span_id() { (one, other) } else { (other, one) };
        ensure!(server.parent_id() == client.span_id(), "they do not follow each other: {spans:?}");
        Ok((client.clone(), server.clone()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_is_one_trace() -> Result<()> {
    let collector = Collector::start().await?;
    let (mesh, _server, address) = traced(&collector).await?;

    // Begun by the mesh.
    let seen = client::get(address, "shop", "/new").await?.seen()?;
    let traceparent = seen.headers.get("traceparent").context("the application got no traceparent")?;
    let trace = traceparent.split('-').nth(1).context("a trace id")?;
    let (first, second) = both_spans(&collector, trace).await?;
    ensure!(first.parent_id().is_empty(), "the trace begins elsewhere: {first:?}");
    ensure!(traceparent.contains(&second.span_id()), "the application was told {traceparent}, not the last span");
    ensure!(second.attribute("http.response.status_code").as_deref() == Some("200"), "{second:?}");

    // Begun by the application: carried on.
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let request = Request::get("/kept")
        .header("host", "shop")
        .header("traceparent", format!("00-{trace}-{parent}-01"))
        .header("tracestate", "vendor=value")
        .header("baggage", "user=alice");
    let seen = client::http1(address, request.body(bytes::Bytes::new())?).await?.seen()?;
    let header = |name: &str| seen.headers.get(name).map(String::as_str).unwrap_or_default();
    ensure!(header("traceparent").contains(trace) && header("traceparent").ends_with("-01"), "{seen:?}");
    ensure!(header("tracestate").contains("vendor=value") && header("baggage") == "user=alice", "{seen:?}");
    let (first, _) = both_spans(&collector, trace).await?;
    ensure!(first.parent_id() == parent, "its parent is {}", first.parent_id());
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_equal_what_was_sent() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let load = Load::new(scenario.address("shop")?, &destination("shop")).connections(20).calls(5).rate(400.0);
    let load = load.start();
    load.answered(2000).await?;
    let report = load.stop().await?;
    report.unharmed(2000)?;
    for n in 0..7 {
        scenario.get(&format!("/status/{}", 500 + n % 2)).await?;
    }
    let server = &scenario.instance("shop-1")?.sidecar;
    for (sidecar, direction) in [(&scenario.client, "outbound"), (server, "inbound")] {
        eventually(&format!("{} counts right", sidecar.name()), LIMIT, async || {
            let metrics = sidecar.metrics().await?;
            let counted =
                |class: &str| metrics.sum("leno_requests_total", &[("direction", direction), ("class", class)]);
            let (well, badly) = (counted("2xx"), counted("5xx"));
            ensure!(well == report.ok as f64 && badly == 7.0, "{well} of {}, {badly} of 7", report.ok);
            let durations = metrics.sum("leno_request_duration_seconds_count", &[("direction", direction)]);
            ensure!(durations == well + badly, "{durations} durations");
            Ok(())
        })
        .await?;
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_a_line_in_the_access_log() -> Result<()> {
    let mesh = Mesh::start().await?;
    let server = Server::start("shop-1").await?;
    mesh.apply("shop.yaml", &documents::service("default", "shop", 80, "http"))?;
    let shop = mesh.workload("shop-1").account("shop").serves("shop", server.address()).access_log().start().await?;
    let client = mesh.workload("client").outbound(&destination("shop")).access_log().start().await?;
    client::get(client.calls(&destination("shop"))?, "shop", "/logged?secret=1").await?;
    for (sidecar, direction) in [(&client, "outbound"), (&shop, "inbound")] {
        let line = eventually(&format!("{} logs the request", sidecar.name()), LIMIT, async || {
            let log = sidecar.process()?.log()?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines.into_iter().find(|line| line.get("path") == Some(&"/logged".into())).context("no such line yet")
        })
        .await?;
        let is = |key: &str, value: serde_json::Value| line.get(key) == Some(&value);
        ensure!(is("direction", direction.into()) && is("status", 200.into()) && is("method", "GET".into()), "{line}");
        let peer = if direction == "outbound" { "shop" } else { "client" };
        ensure!(is("peer", format!("spiffe://cluster.local/ns/default/sa/{peer}").into()), "{line}");
    }
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_connection_of_opaque_bytes_is_a_line_in_the_access_log() -> Result<()> {
    let mesh = Mesh::start().await?;
    let server = LineServer::start("db", Manner::SpeaksFirst).await?;
    mesh.apply("db.yaml", &documents::service("default", "db", 80, "tcp"))?;
    let db = mesh.workload("db-1").account("db").serves("db", server.address()).access_log().start().await?;
    let client = mesh.workload("client").outbound(&destination("db")).access_log().start().await?;
    let mut stream = TcpStream::connect(client.calls(&destination("db"))?).await?;
    ensure!(read_line(&mut stream).await? == "hello from db", "no greeting");
    ensure!(ask(&mut stream, "x").await? == "db: x", "no answer");
    let from = stream.local_addr()?.to_string();
    drop(stream);
    for (sidecar, direction) in [(&client, "outbound"), (&db, "inbound")] {
        let line = eventually(&format!("{} logs the connection", sidecar.name()), LIMIT, async || {
            let log = sidecar.process()?.log()?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines.into_iter().find(|line| line.get("protocol") == Some(&"TCP".into())).context("no such line yet")
        })
        .await?;
        let is = |key: &str, value: serde_json::Value| line.get(key) == Some(&value);
        let bytes = is("bytes_to_server", 2.into()) && is("bytes_to_client", "hello from db\ndb: x\n".len().into());
        ensure!(is("direction", direction.into()) && is("reason", serde_json::Value::Null) && bytes, "{line}");
        let (peer, endpoint) = match direction {
            "outbound" => ("db", db.listener(0)?),
            _ => ("client", server.address()),
        };
        ensure!(is("peer", format!("spiffe://cluster.local/ns/default/sa/{peer}").into()), "{line}");
        ensure!(is("endpoint", endpoint.to_string().into()), "{line}");
        if direction == "outbound" {
            ensure!(is("client", from.clone().into()) && is("backend", "default/db:80".into()), "{line}");
            ensure!(is("destination", destination("db").into()) && is("route", "default".into()), "{line}");
        }
    }
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_answers_are_followed_by_their_ttl() -> Result<()> {
    let dns = Dns::start().await?;
    let (old_ip, new_ip): (IpAddr, IpAddr) = ("127.0.0.2".parse()?, "127.0.0.3".parse()?);
    let old_address = ports::free_on(old_ip)?;
    let port = old_address.port();
    let old = Server::listen("old", old_address).await?;
    let new = Server::listen("new", SocketAddr::new(new_ip, port)).await?;
    dns.set("outside.test", &[old_ip], 1);

    let mesh = Mesh::start().await?;
    let external = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: outside, namespace: default}}
spec:
  type: ExternalName
  externalName: outside.test
  ports: [{{port: {port}, appProtocol: http}}]
"
    );
    mesh.apply("outside.yaml", &external)?;
    // Not known yet, it would not be found: a name of that form is the mesh's.
    mesh.wait("service/outside").await?;
    let by_service = format!("outside.default:{port}");
    let client = mesh.workload("client").outbound(&by_service).flag("--dns-server", &dns.address().to_string());
    let client = client.start().await?;
    let address = client.calls(&by_service)?;
    let load = Load::new(address, "outside").connections(5).rate(100.0).start();
    load.more(100).await?;
    ensure!(old.requests() >= 100 && new.requests() == 0, "old {}, new {}", old.requests(), new.requests());

    dns.set("outside.test", &[new_ip], 1);
    let mut last = old.requests();
    eventually("all requests go to the new address", LIMIT, async || {
        load.more(20).await?;
        let (before, now) = (last, old.requests());
        last = now;
        ensure!(new.requests() > 0 && before == now, "old still answers: {before} → {now}");
        Ok(())
    })
    .await?;
    load.stop().await?.unharmed(120)?;
    ensure!(dns.queries() < 60, "{} queries: the TTL is not kept", dns.queries());
    mesh.end().await
}
