//! Two hosts with transparent sidecars, in a sandbox: a client's, and a server's that nobody reaches but through the mesh.
//!
//! With `LENO_E2E_DIRECT=1` there is no mesh between them, which tells whether a failure is the mesh's.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    binaries,
    mesh::{Mesh, Options, Workload, documents},
    netns::{GATEWAY, Host, Network, name_hosts},
    process::{Process, run},
    wait::eventually,
};

/// Longest wait for a program under test.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The addresses of the Service, which the author of a folder configuration chooses.
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1);

/// See the module.
pub struct TwoHosts {
    pub mesh: Mesh,
    pub client: Host,
    pub server: Host,
    /// A host without a sidecar.
    pub stranger: Host,
    /// The sidecars: client's, server's. None: direct.
    pub sidecars: Option<(Workload, Workload)>,
}

impl TwoHosts {
    /// The server's host is called `name` by the client. `ports`: its Service's (number, `appProtocol` or "").
    pub async fn start(name: &str, ports: &[(u16, &str)]) -> Result<Self> {
        let network = Network::new().await?;
        let (client, server) = (network.host("client").await?, network.host("server").await?);
        let stranger = network.host("stranger").await?;
        let listen = Some(SocketAddr::from((GATEWAY, 4190)));
        let mesh = Mesh::with(Options { listen, ..Options::default() }).await?;
        let direct = std::env::var_os("LENO_E2E_DIRECT").is_some();
        let service_ips = [IpAddr::from(SERVICE_V4), IpAddr::from(SERVICE_V6)];
        let ips = if direct { server.addresses() } else { &service_ips };
        name_hosts(mesh.folder(), &ips.iter().map(|ip| (name, *ip)).collect::<Vec<_>>()).await?;
        let mut two = Self { mesh, client, server, stranger, sidecars: None };
        if !direct {
            two.mesh.apply("service.yaml", &service(name, ports, two.server.addresses()))?;
            let serving = two.sidecar(&two.server).await?;
            two.sidecars = Some((two.sidecar(&two.client).await?, serving));
            two.mesh.wait("endpointslice/v4").await?;
            two.mesh.wait("endpointslice/v6").await?;
        }
        Ok(two)
    }

    async fn sidecar(&self, host: &Host) -> Result<Workload> {
        let workload = self.mesh.workload(host.name()).transparent(host).start().await?;
        let mut install = host.command(&binaries::leno_proxy()?.display().to_string());
        // The sidecar's own metrics are read from outside the host.
        install.args(["redirect", "install", "--exclude-inbound-ports", "4191"]);
        run(install, LIMIT).await?;
        Ok(workload)
    }

    /// Starts a server program on the server's host, as an ordinary user, and waits until `port` is listened on.
    pub async fn serve(&self, port: u16, command: Command) -> Result<Process> {
        let process = self.mesh.processes().spawn("application", command)?;
        eventually(&format!("something listens on port {port}"), LIMIT, async || {
            ensure!(process.ended()?.is_none(), "it ended: {}", process.log()?);
            let listening = self.server.shell(&format!("ss -Hltn 'sport = :{port}'"), LIMIT).await?;
            ensure!(!listening.is_empty(), "nothing does");
            Ok(())
        })
        .await?;
        Ok(process)
    }

    /// Runs a shell script on the client's host, and returns what it prints.
    pub async fn shell(&self, script: &str) -> Result<String> {
        self.client.shell(script, LIMIT).await
    }

    /// Resident memory of both sidecars, bytes; 0 if there are none.
    pub fn resident(&self) -> Result<u64> {
        let Some((client, server)) = &self.sidecars else { return Ok(0) };
        Ok(client.process()?.resident()? + server.process()?.resident()?)
    }

    /// That all of it went over mTLS: the server's sidecar saw the client's identity, and strangers get nothing.
    pub async fn end(self, port: u16) -> Result<()> {
        if let Some((_, serving)) = &self.sidecars {
            let metrics = serving.metrics().await?;
            let inbound = [("direction", "inbound")];
            let count = metrics.sum("leno_requests_total", &[inbound[0], ("mtls", "true")])
                + metrics.sum("leno_tcp_connections_total", &inbound);
            ensure!(count > 0.0, "nothing came through the server's sidecar: {:?}", metrics.samples());
            let address = SocketAddr::new(*self.server.addresses().first().context("an address")?, port);
            let probe = format!("curl -s --max-time 20 --http0.9 http://{address}/ || true");
            let plain = self.stranger.shell(&probe, LIMIT).await?;
            ensure!(plain.is_empty(), "a stranger without mTLS got an answer: {plain}");
            let counted = serving.metrics().await?.sum("leno_refused_total", &inbound);
            ensure!(counted > 0.0, "nobody was refused");
        }
        self.mesh.end().await
    }
}

/// A program of `e2e/programs`.
pub fn program(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name).display().to_string()
}

fn service(name: &str, ports: &[(u16, &str)], addresses: &[IpAddr]) -> String {
    let mut service = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: {SERVICE_V4}
  clusterIPs: [\"{SERVICE_V4}\", \"{SERVICE_V6}\"]
  ports:
"
    );
    let mut slice_ports = String::new();
    for (port, protocol) in ports {
        let declared = if protocol.is_empty() { String::new() } else { format!(", appProtocol: {protocol}") };
        service.push_str(&format!("    - {{name: p{port}, port: {port}{declared}}}\n"));
        slice_ports.push_str(&format!("  - {{name: p{port}, port: {port}}}\n"));
    }
    let slice = |ip: &IpAddr| {
        let (suffix, family) = if ip.is_ipv4() { ("v4", "IPv4") } else { ("v6", "IPv6") };
        format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {suffix}
  namespace: default
  labels: {{kubernetes.io/service-name: {name}}}
addressType: {family}
ports:
{slice_ports}endpoints:
  - addresses: [\"{ip}\"]
    conditions: {{ready: true}}
    targetRef: {{kind: Pod, name: server, namespace: default}}
"
        )
    };
    documents::file(&[vec![service], addresses.iter().map(slice).collect()].concat())
}
