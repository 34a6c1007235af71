//! Services of opaque bytes and of TLS, and a client that calls them, whose proxy tells why a connection failed: nothing that
//! the client itself sees does.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    load::{Load, Report, Running},
    mesh::{
        LIMIT, Mesh, Workload,
        documents::{self, NAMESPACE, endpoint_slice, pod, service},
    },
    ports,
    scenario::destination,
    tcp::{LineServer, Manner, self_signed},
    wait::eventually,
};
use rustls::ClientConfig;
use serde_json::Value;

const NAMES: &[&str] = &["one.example", "two.example"];

/// `tcp` with three endpoints, of which one cannot be connected to, `tls`, and a `-next` of both.
pub(crate) struct Opaque {
    /// With an access log.
    pub(crate) caller: Workload,
    pub(crate) servers: Vec<Workload>,
    tls: Arc<ClientConfig>,
    _applications: Vec<LineServer>,
}

impl Opaque {
    pub(crate) async fn start(mesh: &Mesh) -> Result<Self> {
        for (name, protocol) in [("tcp", "tcp"), ("tcp-next", "tcp"), ("tls", "tls"), ("tls-next", "tls")] {
            let named = service(NAMESPACE, name, 80, protocol).replacen("- port:", "- name: main\n      port:", 1);
            mesh.apply(&format!("service-{name}.yaml"), &named)?;
            mesh.wait(&format!("service/{name}")).await?;
        }
        let (server_config, tls) = self_signed(NAMES)?;
        let (mut servers, mut applications) = (Vec::new(), Vec::new());
        for (workload, services) in [("opaque-1", &["tcp", "tls"][..]), ("opaque-2", &["tcp", "tcp-next", "tls-next"])]
        {
            let mut described = mesh.workload(workload).account("opaque");
            for service in services {
                let encrypted = service.starts_with("tls");
                let manner = if encrypted { Manner::Tls(server_config.clone()) } else { Manner::Listens };
                let application = LineServer::start(workload, manner).await?;
                described = described.serves(service, application.address());
                applications.push(application);
            }
            servers.push(described.start().await?);
        }
        let dead = ports::free_on(ports::loopback_ip())?;
        let documents = documents::file(&[
            pod(NAMESPACE, "dead", "opaque", &[dead.ip().to_string()]),
            endpoint_slice(NAMESPACE, "tcp", Some("dead"), dead, true),
        ]);
        mesh.apply("dead.yaml", &documents)?;
        mesh.wait("endpointslice/tcp-dead").await?;
        let caller = mesh.workload("caller").outbound(&destination("tcp")).outbound(&destination("tls"));
        let caller = caller.access_log().start().await?;
        Ok(Self { caller, servers, tls, _applications: applications })
    }

    /// Connections that come and go, to the service that each load is named for.
    pub(crate) fn loads(&self) -> Result<Vec<(&'static str, Running)>> {
        let to = |service: &str| {
            let key = destination(service);
            anyhow::Ok(Load::new(self.caller.calls(&key)?, &key).connections(0).lines(4))
        };
        Ok(vec![
            ("tcp", to("tcp")?.rate(10.0).start()),
            ("tcp", to("tcp")?.pausing(Duration::from_millis(150)).rate(8.0).start()),
            ("tls", to("tls")?.tls(NAMES, self.tls.clone()).rate(10.0).start()),
        ])
    }

    /// Gives each connection that failed the reason that the caller's proxy has for it, which must have told of each.
    pub(crate) async fn tell(&self, reports: &mut [(&'static str, Report)]) -> Result<()> {
        let told = eventually("the caller's proxy tells of each connection", LIMIT, async || {
            let told = told(&self.caller.process()?.log()?)?;
            let metrics = self.caller.metrics().await?;
            let all = metrics.sum("leno_tcp_connections_total", &[("direction", "outbound")]);
            ensure!(told.len() as f64 == all, "{} lines of {all} connections", told.len());
            Ok(told)
        })
        .await?;
        for failure in reports.iter_mut().flat_map(|(_, report)| &mut report.failures) {
            match failure.source.map(|source| told.get(&source)) {
                Some(Some(Some(reason))) => failure.reason.clone_from(reason),
                // As far as the proxy knows both sides were done.
                Some(Some(None)) | None => {}
                Some(None) => anyhow::bail!("a connection without a line: {failure:?}"),
            }
        }
        Ok(())
    }
}

/// The client and the reason of each connection in an access log.
fn told(log: &str) -> Result<HashMap<IpAddr, Option<String>>> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_connections = lines.filter(|line| line.get("protocol") == Some(&"TCP".into()));
    let of = |line: Value| {
        let text = |name: &str| line.get(name).and_then(Value::as_str).map(str::to_owned);
        let client: SocketAddr = text("client").context("its client")?.parse()?;
        Ok((client.ip(), text("reason")))
    };
    of_connections.map(of).collect()
}
