//! The demo's cast: `shop` in two versions, a plain TCP service, and two clients that call both, each with a sidecar.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use leno_proto::v1::{ObjectStatus, operator_client::OperatorClient};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::traffic::Traffic;
use crate::{
    mesh::{LIMIT, Mesh, Options, Workload, documents},
    operator,
    scenario::{Instance, destination},
    server::Server,
    tcp::{LineServer, Manner},
    wait::within,
};

/// Certificates live so long in the demo; proxies renew at two thirds of it.
pub(super) const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30);
/// The Services: name, port, `appProtocol` (empty: found out by the sidecars).
const SERVICES: [(&str, u16, &str); 4] =
    [("shop", 80, ""), ("shop-v1", 80, ""), ("shop-v2", 80, ""), (LEDGER, 7000, "tcp")];
/// Backends of the canary, and how many instances each has.
const VERSIONS: [(&str, u32); 2] = [("shop-v1", 3), ("shop-v2", 2)];
pub(super) const LEDGER: &str = "ledger";
const CLIENTS: [&str; 2] = ["web-1", "web-2"];
const ROUTE: &str = "shop-route.yaml";
/// Between attempts to follow the route's status, while the control plane is away.
const RETRY: Duration = Duration::from_millis(200);

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) mesh: Mesh,
    pub(super) shops: Vec<Instance>,
    /// The server lives as long as this does.
    ledger: (LineServer, Workload),
    pub(super) clients: Vec<Workload>,
    pub(super) operator: OperatorClient<Channel>,
    /// The route's status, as the control plane last told it.
    pub(super) route: watch::Receiver<ObjectStatus>,
}

impl Cast {
    /// Starts everything, all sidecars at once, and returns when all are ready and known to the control plane.
    pub(super) async fn start(folder: &Path) -> Result<Self> {
        let folder = Some(folder.to_owned());
        let mesh =
            Mesh::with(Options { certificate_lifetime: CERTIFICATE_LIFETIME, folder, ..Options::default() }).await?;
        let services =
            SERVICES.map(|(name, port, protocol)| documents::service(documents::NAMESPACE, name, port, protocol));
        mesh.apply("services.yaml", &documents::file(&services))?;
        let mut shops = Vec::new();
        for (version, count) in VERSIONS {
            for n in 1..=count {
                let server = Server::start(&format!("{version}-{n}")).await?;
                let workload = mesh.workload(server.name()).account("shop");
                let workload = workload.serves("shop", server.address()).serves(version, server.address());
                shops.push(Instance { sidecar: workload.launch().await?, server });
            }
        }
        let server = LineServer::start(LEDGER, Manner::Listens).await?;
        let workload = mesh.workload("ledger-1").account(LEDGER).serves(LEDGER, server.address()).launch().await?;
        let ledger = (server, workload);
        let mut clients = Vec::new();
        for name in CLIENTS {
            let workload = mesh.workload(name).account("web").outbound(&destination("shop")).outbound(&ledger_key());
            clients.push(workload.launch().await?);
        }
        let operator = operator::client(&mesh.state());
        let route = follow(mesh.state());
        let mut cast = Self { mesh, shops, ledger, clients, operator, route };
        cast.write_route(100, 0)?;
        for sidecar in cast.sidecars() {
            sidecar.join(&cast.mesh).await?;
        }
        let known = cast.route.wait_for(|status| status.generation > 0);
        within("the route is known", LIMIT, async { Ok(known.await.map(drop)?) }).await?;
        Ok(cast)
    }

    /// Makes both clients call: `rate` requests a second to `shop`, and lines to the ledger.
    pub(super) fn traffic(&self, rate: u32) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        for client in &self.clients {
            traffic.http(client.calls(&destination("shop"))?, 16, rate / 2);
            traffic.tcp(LEDGER, client.calls(&ledger_key())?, 20);
        }
        Ok(traffic)
    }

    pub(super) fn sidecars(&self) -> impl Iterator<Item = &Workload> {
        self.shops.iter().map(|shop| &shop.sidecar).chain([&self.ledger.1]).chain(&self.clients)
    }

    pub(super) async fn kill(&mut self, name: &str) -> Result<()> {
        named(&mut self.shops, name)?.kill().await
    }

    pub(super) async fn restart(&mut self, name: &str) -> Result<()> {
        named(&mut self.shops, name)?.restart(&self.mesh).await
    }

    pub(super) fn route_file(&self) -> PathBuf {
        self.mesh.config().join(ROUTE)
    }

    /// Writes the canary's weights.
    pub(super) fn write_route(&self, v1: u32, v2: u32) -> Result<()> {
        let route = documents::http_route("shop", "shop", &[("shop-v1", v1), ("shop-v2", v2)]);
        let hint =
            "# The canary: change the weights and save; `leno wait httproute/shop` returns once they are in force.\n";
        self.mesh.apply(ROUTE, &format!("{hint}{route}"))
    }
}

fn named<'a>(shops: &'a mut [Instance], name: &str) -> Result<&'a mut Instance> {
    shops.iter_mut().find(|shop| shop.server.name() == name).with_context(|| format!("no instance {name}"))
}

fn ledger_key() -> String {
    format!("{LEDGER}.{}:7000", documents::NAMESPACE)
}

/// Follows the route's status, also across restarts of the control plane.
fn follow(state: PathBuf) -> watch::Receiver<ObjectStatus> {
    let (sender, receiver) = watch::channel(ObjectStatus::default());
    tokio::spawn(async move {
        while !sender.is_closed() {
            if let Ok(mut updates) = operator::watch(&state, "HTTPRoute", documents::NAMESPACE, "shop").await {
                while let Ok(Some(status)) = updates.message().await {
                    sender.send_replace(status);
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    });
    receiver
}
