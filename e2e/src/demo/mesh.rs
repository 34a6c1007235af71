//! The demo's mesh: a folder of YAML, a control plane, and a sidecar for each workload, all on loopback.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leno_proto::v1::{ListProxiesRequest, ObjectStatus, operator_client::OperatorClient};
use tokio::net::TcpListener;
use tonic::transport::Channel;

use crate::{
    binaries, operator, ports,
    process::{Process, Processes, run},
    server::Server,
    wait::eventually,
};

/// Certificates live so long in the demo; proxies renew at two thirds of it.
pub(super) const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30);
/// For anything that a busy machine may be slow at.
const READY: Duration = Duration::from_secs(30);
const ROUTE: &str = "shop-route.yaml";

/// A workload: its application (in this process) and its sidecar (a process).
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) name: String,
    service_account: &'static str,
    /// The application's port, and the sidecar's port for the mesh; none for a mere client.
    application: Option<SocketAddr>,
    mesh: Option<SocketAddr>,
    /// Local port → destination.
    pub(super) outbound: Vec<(SocketAddr, &'static str)>,
    pub(super) admin: SocketAddr,
    /// The Services it belongs to.
    services: &'static [&'static str],
    server: Option<Server>,
    sidecar: Option<Process>,
}

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) folder: PathBuf,
    control_plane: SocketAddr,
    processes: Processes,
    pub(super) workloads: Vec<Workload>,
    pub(super) operator: OperatorClient<Channel>,
}

/// What the control plane and the sidecars say.
#[derive(Debug, Default, Clone)]
pub(super) struct Status {
    pub(super) generation: u64,
    pub(super) programmed: u32,
    pub(super) subscribed: u32,
    pub(super) connected: usize,
    /// Sidecars that have a newer certificate than their first.
    pub(super) renewed: usize,
    /// "5 ready"
    pub(super) endpoints: String,
}

impl Mesh {
    /// Starts everything, and returns when all sidecars are ready.
    pub(super) async fn start(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("clear {}", folder.display()))?;
        }
        fs::create_dir_all(folder.join("config")).with_context(|| format!("create {}", folder.display()))?;
        let processes = Processes::new(folder.join("logs"))?;
        let control_plane = ports::free()?;
        let workloads = workloads()?;
        write(&folder.join("config/services.yaml"), &services(&workloads))?;
        let operator = operator::client(&folder.join("state"));
        let mut mesh = Self { folder: folder.to_owned(), control_plane, processes, workloads, operator };
        mesh.write_route(100, 0)?;
        mesh.start_control_plane().await?;
        tokio::spawn(ledger(mesh.named("ledger-1")?.application.context("the ledger's port")?));
        for index in 0..mesh.workloads.len() {
            mesh.start_workload(index).await?;
        }
        for workload in &mesh.workloads {
            mesh.ready(workload).await?;
        }
        Ok(mesh)
    }

    async fn start_control_plane(&mut self) -> Result<()> {
        let mut command = Command::new(binaries::leno()?);
        command.arg("control-plane");
        command.arg("--config").arg(self.folder.join("config")).arg("--state").arg(self.folder.join("state"));
        command.arg("--listen").arg(self.control_plane.to_string());
        command.arg("--certificate-lifetime").arg(format!("{}s", CERTIFICATE_LIFETIME.as_secs()));
        self.processes.spawn("control-plane", command)?;
        let operator = self.operator.clone();
        eventually("the control plane answers", READY, async || {
            operator.clone().list_proxies(ListProxiesRequest {}).await.context("ask for proxies")?;
            Ok(())
        })
        .await
    }

    async fn start_workload(&mut self, index: usize) -> Result<()> {
        let (folder, control_plane) = (self.folder.clone(), self.control_plane);
        let workload = self.workloads.get_mut(index).context("no such workload")?;
        if let Some(application) = workload.application
            && workload.service_account == "shop"
        {
            workload.server = Some(Server::listen(&workload.name, application).await?);
        }
        let token = folder.join(format!("{}.token", workload.name));
        let mut command = Command::new(binaries::leno()?);
        command.arg("token").arg("--state").arg(folder.join("state"));
        command.args(["--namespace", "default", "--service-account", workload.service_account]);
        fs::write(&token, run(command, READY).await?).context("write a token")?;
        let mut command = Command::new(binaries::leno_proxy()?);
        command.arg("run").arg("--control-plane").arg(control_plane.to_string());
        command.arg("--trust-bundle").arg(folder.join("state/trust-bundle.pem")).arg("--token-file").arg(&token);
        command.arg("--workload").arg(&workload.name).arg("--admin").arg(workload.admin.to_string());
        if let (Some(mesh), Some(application)) = (workload.mesh, workload.application) {
            command.arg("--inbound").arg(format!("{mesh}={application}"));
        }
        for (listen, destination) in &workload.outbound {
            command.arg("--outbound").arg(format!("{listen}={destination}"));
        }
        workload.sidecar = Some(self.processes.spawn(&workload.name, command)?);
        Ok(())
    }

    async fn ready(&self, workload: &Workload) -> Result<()> {
        eventually(&format!("the sidecar of {} is ready", workload.name), READY, async || {
            let answer = crate::client::get(workload.admin, "localhost", "/ready").await?;
            ensure!(answer.status.is_success(), "{}", String::from_utf8_lossy(&answer.body));
            Ok(())
        })
        .await
    }

    /// `kill -9` for application and sidecar at once.
    pub(super) async fn kill(&mut self, name: &str) -> Result<()> {
        let workload = self.workloads.iter_mut().find(|workload| workload.name == name).context("no such workload")?;
        if let Some(sidecar) = workload.sidecar.take() {
            sidecar.kill()?;
        }
        if let Some(mut server) = workload.server.take() {
            server.kill().await;
        }
        Ok(())
    }

    pub(super) async fn restart(&mut self, name: &str) -> Result<()> {
        let index = self.workloads.iter().position(|workload| workload.name == name).context("no such workload")?;
        self.start_workload(index).await?;
        self.ready(self.named(name)?).await
    }

    pub(super) fn named(&self, name: &str) -> Result<&Workload> {
        self.workloads.iter().find(|workload| workload.name == name).with_context(|| format!("no workload {name}"))
    }

    pub(super) fn route_file(&self) -> PathBuf {
        self.folder.join("config").join(ROUTE)
    }

    /// Writes the canary's weights.
    pub(super) fn write_route(&self, v1: u32, v2: u32) -> Result<()> {
        let route = format!(
            "# The canary: change the weights and save; `leno wait httproute/shop` returns once they are in force.\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop, namespace: default}}\nspec:\n  \
             parentRefs: [{{group: \"\", kind: Service, name: shop, port: 80}}]\n  rules:\n  - backendRefs:\n    \
             - {{name: shop-v1, port: 80, weight: {v1}}}\n    - {{name: shop-v2, port: 80, weight: {v2}}}\n"
        );
        write(&self.route_file(), &route)
    }

    /// Follows the route's status: an item at each change of it.
    pub(super) async fn watch_route(&self) -> Result<tonic::Streaming<ObjectStatus>> {
        operator::watch_route(&self.folder.join("state"), "default", "shop").await
    }

    /// What the control plane says of its proxies.
    pub(super) async fn proxies(&self, status: &mut Status) -> Result<()> {
        let answer =
            self.operator.clone().list_proxies(ListProxiesRequest {}).await.context("ask for proxies")?.into_inner();
        let connected = || answer.proxies.iter().filter(|proxy| proxy.connected);
        status.connected = connected().count();
        let running = self.workloads.iter().filter(|workload| workload.server.is_some()).count();
        status.endpoints = format!("{running} of shop up");
        Ok(())
    }

    /// When each sidecar's certificate ends, as its admin server says (RFC 3339).
    pub(super) async fn certificates(&self) -> Result<BTreeMap<String, String>> {
        let mut ends = BTreeMap::new();
        for workload in self.workloads.iter().filter(|workload| workload.sidecar.is_some()) {
            let answer = crate::client::get(workload.admin, "localhost", "/identity").await?;
            let identity: Identity =
                serde_json::from_slice(&answer.body).with_context(|| format!("the identity of {}", workload.name))?;
            ends.insert(workload.name.clone(), identity.not_after);
        }
        Ok(ends)
    }

    /// Everything ends on SIGTERM, without a panic.
    pub(super) async fn end(&self) -> Result<()> {
        self.processes.end(READY).await
    }
}

/// Part of the admin server's `/identity`.
#[derive(Debug, serde::Deserialize)]
struct Identity {
    not_after: String,
}

fn workloads() -> Result<Vec<Workload>> {
    let server = |name: &str, service_account, services| -> Result<Workload> {
        Ok(Workload {
            name: name.into(),
            service_account,
            application: Some(ports::free()?),
            mesh: Some(ports::free()?),
            outbound: Vec::new(),
            admin: ports::free()?,
            services,
            server: None,
            sidecar: None,
        })
    };
    let mut all = Vec::new();
    for n in 1..=3 {
        all.push(server(&format!("shop-v1-{n}"), "shop", &["shop", "shop-v1"])?);
    }
    for n in 1..=2 {
        all.push(server(&format!("shop-v2-{n}"), "shop", &["shop", "shop-v2"])?);
    }
    all.push(server("ledger-1", "ledger", &["ledger"])?);
    for n in 1..=2 {
        all.push(Workload {
            application: None,
            mesh: None,
            outbound: vec![(ports::free()?, "shop.default:80"), (ports::free()?, "ledger.default:7000")],
            ..server(&format!("web-{n}"), "web", &[])?
        });
    }
    Ok(all)
}

/// Pods, Services and EndpointSlices, as Kubernetes has them.
fn services(workloads: &[Workload]) -> String {
    let mut documents = Vec::new();
    for (name, port) in [("shop", 80), ("shop-v1", 80), ("shop-v2", 80), ("ledger", 7000)] {
        let protocol = if name == "ledger" { ", appProtocol: tcp" } else { "" };
        documents.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  ports: [{{name: main, port: {port}{protocol}}}]\n"
        ));
    }
    for workload in workloads {
        let (name, account) = (&workload.name, workload.service_account);
        documents.push(format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec: {{serviceAccountName: {account}}}\n"
        ));
        let Some(mesh) = workload.mesh else { continue };
        for service in workload.services {
            documents.push(format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{name}\n  namespace: default\n  \
                 labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nports: [{{name: main, port: {}}}]\nendpoints:\n\
                 - addresses: [\"{}\"]\n  targetRef: {{kind: Pod, name: {name}}}\n",
                mesh.port(),
                mesh.ip()
            ));
        }
    }
    documents.join("---\n")
}

/// A plain TCP service: sends every byte back.
async fn ledger(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.context("listen for the ledger")?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            // The client may leave at any time.
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

/// Writes as an editor does: beside, then renamed.
fn write(path: &Path, content: &str) -> Result<()> {
    let beside = path.with_extension("tmp");
    fs::write(&beside, content).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("rename to {}", path.display()))
}
