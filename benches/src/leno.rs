//! Leno as a contender: a control plane that reads a folder, and the sidecars as shipped.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use leno_e2e::{
    client,
    mesh::{Mesh, Workload, documents, write_atomically},
    process::{Process, run as run_to_end},
};
use tokio::task::JoinHandle;

use crate::{
    certificates::Authority,
    contender::Kind,
    rig::{LOAD_CPU, MeshEnd, PROXY_CPU},
    work::Protocol,
};

const DESTINATION: &str = "shop.default:80";
/// How often the route changes.
const CHURN: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(20);

/// The client's sidecar and, unless it is a hop, the server's.
pub(crate) struct Pair {
    pub address: SocketAddr,
    pub mesh_end: Option<MeshEnd>,
    pub proxies: Vec<Process>,
    /// From the start of the client's sidecar until it was ready, with its certificate.
    pub ready: Duration,
    mesh: Mesh,
    churn: Option<JoinHandle<()>>,
}

impl Pair {
    pub(crate) async fn start(
        kind: Kind,
        churn: bool,
        upstream: SocketAddr,
        protocol: Protocol,
        folder: &Path,
    ) -> Result<Self> {
        let mesh = Mesh::start().await?;
        pin(LOAD_CPU, mesh.control_plane().pid()).await?;
        let app_protocol = match protocol {
            Protocol::H1 => "http",
            Protocol::H2 => "kubernetes.io/h2c",
            Protocol::Tcp => "tcp",
        };
        for service in if churn { ["shop", "shop-v1"].as_slice() } else { &["shop"] } {
            let document = documents::service(documents::NAMESPACE, service, 80, app_protocol);
            mesh.apply(&format!("service-{service}.yaml"), &document)?;
        }
        let (mut proxies, mut mesh_end) = (Vec::new(), None);
        if kind == Kind::Pair {
            let mut server = mesh.workload("shop").serves("shop", upstream);
            if churn {
                server = server.serves("shop-v1", upstream);
            }
            let server = server.start().await?;
            pin(PROXY_CPU, server.process()?.pid()).await?;
            proxies.push(server.process()?.clone());
            mesh_end = Some(end(&mesh, &server, protocol, folder)?);
        } else {
            let slice = documents::endpoint_slice(documents::NAMESPACE, "shop", None, upstream, true);
            mesh.apply("outside.yaml", &slice)?;
        }
        if churn {
            mesh.apply("route.yaml", &route(0))?;
            mesh.wait("httproute/shop").await?;
        }
        let client = mesh.workload("web").outbound(DESTINATION).launch().await?;
        let ready = ready(&client).await?;
        pin(PROXY_CPU, client.process()?.pid()).await?;
        client.join(&mesh).await?;
        proxies.insert(0, client.process()?.clone());
        let churn = churn.then(|| tokio::spawn(change_for_ever(mesh.config().join("route.yaml"))));
        Ok(Self { address: client.calls(DESTINATION)?, mesh_end, proxies, ready, mesh, churn })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        if let Some(churn) = &self.churn {
            churn.abort();
        }
        // The measured ones need not wait for connections that nobody uses.
        self.proxies.iter().try_for_each(Process::kill)?;
        self.mesh.end().await
    }
}

/// The server's sidecar as a client with a certificate of the mesh sees it.
fn end(mesh: &Mesh, server: &Workload, protocol: Protocol, folder: &Path) -> Result<MeshEnd> {
    let authority = Authority::of_mesh(&mesh.state())?;
    let client = authority.issue(folder, "client", "spiffe://cluster.local/ns/default/sa/client")?;
    let alpn = match protocol {
        Protocol::H1 => leno_proto::alpn::HTTP1,
        Protocol::H2 => leno_proto::alpn::HTTP2,
        Protocol::Tcp => leno_proto::alpn::TCP,
    };
    Ok(MeshEnd { address: server.listener(0)?, client, alpn: String::from_utf8_lossy(alpn).into_owned() })
}

/// Looks every millisecond; the process was started the moment before.
async fn ready(workload: &Workload) -> Result<Duration> {
    let started = Instant::now();
    loop {
        if let Ok(answer) = client::get(workload.admin_address(), "localhost", "/ready").await
            && answer.status.is_success()
        {
            return Ok(started.elapsed());
        }
        if started.elapsed() > LIMIT {
            bail!("{} is not ready after {LIMIT:?}", workload.name());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// All threads of a process, and those it will start.
pub(crate) async fn pin(cpu: &str, pid: u32) -> Result<()> {
    let mut command = Command::new("taskset");
    command.args(["-a", "-c", "-p", cpu, &pid.to_string()]);
    run_to_end(command, LIMIT).await.context("pin a process")?;
    Ok(())
}

/// Until it is aborted.
async fn change_for_ever(file: std::path::PathBuf) {
    let mut interval = tokio::time::interval(CHURN);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for change in 1.. {
        interval.tick().await;
        if let Err(error) = write_atomically(&file, &route(change)) {
            eprintln!("the route is no longer changed: {error:#}");
            return;
        }
    }
}

/// Both backends are the same server; the weights differ with each change.
fn route(change: u32) -> String {
    documents::http_route("shop", "shop", &[("shop", 100 + change % 100), ("shop-v1", 100)])
}
