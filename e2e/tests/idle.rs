//! What idle things cost: a sidecar, many connections, a large cluster.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use leno_e2e::{
    client::LIMIT,
    mesh::{Mesh, documents},
    scenario::{Scenario, destination},
    wait::eventually,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections() -> Result<()> {
    const CONNECTIONS: u64 = 10_000;
    // This process has an end of each connection, too.
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let few = maximum.is_some_and(|maximum| maximum < CONNECTIONS + 500);
    ensure!(!few, "a process may have {maximum:?} descriptors here (ulimit -Hn), which is too few for this test");
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raise the limit of descriptors")?;
    }
    let scenario = Scenario::start(&["shop"]).await?;
    let (address, process) = (scenario.address("shop")?, scenario.client.process()?);
    request(&mut connect(address).await?).await?;
    let before = process.resident()?;
    let mut connections = Vec::new();
    for n in 0..CONNECTIONS {
        let mut connection = connect(address).await.with_context(|| format!("connection {n}"))?;
        request(&mut connection).await.with_context(|| format!("connection {n}"))?;
        connections.push(connection);
    }
    let after = process.resident()?;
    let each = after.saturating_sub(before) / CONNECTIONS;
    println!("10,000 idle keep-alive connections: {} MiB resident, {each} bytes each", after >> 20);
    ensure!(each < 40 * 1024, "an idle connection costs {each} bytes");
    // All are still there, and still good.
    for connection in connections.iter_mut().step_by(100) {
        request(connection).await?;
    }
    drop(connections);
    scenario.mesh.end().await
}

async fn connect(address: std::net::SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn request(connection: &mut SendRequest<Empty<Bytes>>) -> Result<()> {
    let exchange = async {
        connection.ready().await?;
        let request = Request::get("/").header("host", "shop").body(Empty::new())?;
        let response = connection.send_request(request).await?;
        ensure!(response.status() == 200, "{}", response.status());
        response.into_body().collect().await?;
        Ok(())
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_costs_little_however_large_the_cluster() -> Result<()> {
    const SERVICES: usize = 5000;
    let mesh = Mesh::start().await?;
    let idle = mesh.workload("idle").outbound(&destination("shop")).start().await?;
    // Soon after its start it gives back the code that only the start needed.
    let resident = eventually("an idle sidecar takes under 10 MiB", LIMIT, async || {
        let resident = idle.process()?.resident()?;
        ensure!(resident < 10 << 20, "{} KiB", resident / 1024);
        Ok(resident)
    })
    .await?;
    let held = idle.process()?.anonymous()?;
    println!("an idle sidecar: {} KiB resident, {} KiB of them its own", resident / 1024, held / 1024);
    let sent = async || mesh.proxy("idle").await?.get("bytesSent").cloned().context("bytesSent");
    let sent_before = sent().await?;

    let mut content = String::new();
    for n in 0..SERVICES {
        let service = documents::service("elsewhere", &format!("service-{n}"), 80, "http");
        let address = format!("10.{}.{}.1:80", n / 250, n % 250).parse()?;
        let slice = documents::endpoint_slice("elsewhere", &format!("service-{n}"), None, address, true);
        // Writing to a String cannot fail.
        let _ = write!(content, "{service}---\n{slice}---\n");
    }
    mesh.apply("large.yaml", &content)?;
    mesh.leno(&["wait", &format!("service/elsewhere/service-{}", SERVICES - 1), "--timeout", "60s"]).await?;
    let (after, held_after) = (idle.process()?.resident()?, idle.process()?.anonymous()?);
    println!("with {SERVICES} services that it never calls: {} KiB resident", after / 1024);
    ensure!(after < 10 << 20, "an idle sidecar takes {} KiB", after / 1024);
    ensure!(held_after <= held + (256 << 10), "{SERVICES} services cost {} KiB", (held_after - held) / 1024);
    ensure!(sent().await? == sent_before, "it was told of services that it never calls");
    mesh.end().await
}
