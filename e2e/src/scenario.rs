//! The usual cast: services with real servers behind sidecars, and one client that calls them all.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Request;

use crate::{
    client::{self, Answer},
    mesh::{Mesh, Options, Workload, documents},
    server::Server,
};

/// A server behind a sidecar.
#[derive(Debug)]
pub struct Instance {
    pub server: Server,
    pub sidecar: Workload,
}

impl Instance {
    /// `kill -9`: sidecar and server at once, as when a machine goes down.
    pub async fn kill(&mut self) -> Result<()> {
        self.sidecar.process()?.kill()?;
        self.server.kill().await;
        Ok(())
    }

    /// Both again, where they were.
    pub async fn restart(&mut self, mesh: &Mesh) -> Result<()> {
        self.server = Server::listen(self.server.name(), self.server.address()).await?;
        self.sidecar.restart(mesh).await
    }
}

/// A mesh with services of `instances` each, and a client. The first service is the one that is mostly called.
#[derive(Debug)]
pub struct Scenario {
    pub mesh: Mesh,
    pub client: Workload,
    pub instances: Vec<Instance>,
    services: Vec<String>,
}

impl Scenario {
    /// Services of one instance each, on port 80.
    pub async fn start(services: &[&str]) -> Result<Self> {
        Self::with(Options::default(), services, 1, "http").await
    }

    /// `protocol`: the services' `appProtocol`; empty: none declared.
    pub async fn with(options: Options, services: &[&str], instances: usize, protocol: &str) -> Result<Self> {
        let mesh = Mesh::with(options).await?;
        for service in services {
            let document = documents::service(documents::NAMESPACE, service, 80, protocol);
            mesh.apply(&format!("service-{service}.yaml"), &document)?;
        }
        // Asked for before they exist, destinations would be looked up anew by the first request only: until then policies
        // would be in force at nobody who calls them.
        for service in services {
            mesh.wait(&format!("service/{service}")).await?;
        }
        let mut client = mesh.workload("client");
        for service in services {
            client = client.outbound(&destination(service));
        }
        let client = client.start().await?;
        let mut scenario =
            Self { mesh, client, instances: Vec::new(), services: services.iter().map(|&name| name.into()).collect() };
        for service in services {
            for n in 1..=instances {
                scenario.add(service, &format!("{service}-{n}")).await?;
            }
        }
        Ok(scenario)
    }

    /// One more instance of a service; its server and its Pod are called `name`.
    pub async fn add(&mut self, service: &str, name: &str) -> Result<()> {
        let server = Server::start(name).await?;
        let workload = self.mesh.workload(name).account(service).serves(service, server.address());
        let sidecar = workload.start().await?;
        self.instances.push(Instance { server, sidecar });
        Ok(())
    }

    /// An instance by name.
    pub fn instance(&self, name: &str) -> Result<&Instance> {
        self.instances
            .iter()
            .find(|instance| instance.server.name() == name)
            .with_context(|| format!("instance {name}"))
    }

    /// Where the client reaches a service through its sidecar.
    pub fn address(&self, service: &str) -> Result<SocketAddr> {
        self.client.calls(&destination(service))
    }

    /// The first service.
    pub fn first(&self) -> Result<&str> {
        self.services.first().map(String::as_str).context("a service")
    }

    /// GET from the first service.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Request::get(path)).await
    }

    /// A request without a body to the first service.
    pub async fn send(&self, request: http::request::Builder) -> Result<Answer> {
        let service = self.first()?;
        let request = request.header("host", service).body(Bytes::new())?;
        client::http1(self.address(service)?, request).await
    }

    /// Which instance answers a GET of `path` from the first service, or the status if none does.
    pub async fn answered_by(&self, request: http::request::Builder) -> Result<String> {
        let answer = self.send(request).await?;
        Ok(if answer.status == 200 { answer.seen()?.instance } else { answer.status.as_u16().to_string() })
    }

    /// How many of so many GETs from the first service, one after the other, each instance answered, or which status there was.
    pub async fn answers(&self, requests: usize) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for _ in 0..requests {
            *counts.entry(self.answered_by(Request::get("/")).await?).or_default() += 1;
        }
        Ok(counts)
    }

    /// Writes the BackendPolicy of the first service anew, with these sections, and waits until it is in force.
    pub async fn backend(&self, sections: &str) -> Result<()> {
        let service = self.first()?;
        let document = documents::backend_policy(service, service, sections);
        self.mesh.change("backend.yaml", &document, &format!("backendpolicy/{service}")).await
    }

    /// Writes new routes, of which `object` ("httproute/shop") is one, and waits until they are in force.
    pub async fn route(&self, content: &str, object: &str) -> Result<()> {
        self.mesh.change("routes.yaml", content, object).await
    }
}

/// The destination key of port 80 of a service.
pub fn destination(service: &str) -> String {
    format!("{service}.{}:80", documents::NAMESPACE)
}
