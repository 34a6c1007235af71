//! A sidecar, and the documents that make its workload known.

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{LIMIT, Mesh, documents};
use crate::{
    binaries, client,
    metrics::Metrics,
    netns::Host,
    ports,
    process::{Process, run},
    wait::eventually,
};

/// What a workload is; see [`Mesh::workload`].
#[derive(Debug)]
pub struct WorkloadBuilder<'m> {
    mesh: &'m Mesh,
    name: String,
    namespace: String,
    account: String,
    ips: Vec<IpAddr>,
    /// Service (empty: none), application.
    inbound: Vec<(String, SocketAddr)>,
    outbound: Vec<String>,
    host: Option<Host>,
    flags: Vec<String>,
    access_log: &'static str,
    /// See [`WorkloadBuilder::finds_control_plane_at`].
    control_plane_name: Option<String>,
}

impl<'m> WorkloadBuilder<'m> {
    pub(super) fn new(mesh: &'m Mesh, name: &str) -> Self {
        Self {
            mesh,
            name: name.to_owned(),
            namespace: documents::NAMESPACE.to_owned(),
            account: name.to_owned(),
            ips: vec![ports::loopback_ip()],
            inbound: Vec::new(),
            outbound: Vec::new(),
            host: None,
            flags: Vec::new(),
            access_log: "off",
            control_plane_name: None,
        }
    }

    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Its service account; default: its name.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// Explicit mode: calls `destination` through a local listener ([`Workload::outbound`]).
    #[must_use]
    pub fn outbound(mut self, destination: &str) -> Self {
        self.outbound.push(destination.to_owned());
        self
    }

    /// Explicit mode: a mesh listener in front of `application`, in no Service.
    #[must_use]
    pub fn inbound(mut self, application: SocketAddr) -> Self {
        self.inbound.push((String::new(), application));
        self
    }

    /// Explicit mode: a mesh listener in front of `application`, which is an endpoint of `service`. The same listener
    /// for each Service of one application.
    #[must_use]
    pub fn serves(mut self, service: &str, application: SocketAddr) -> Self {
        self.inbound.push((service.to_owned(), application));
        self
    }

    /// Transparent mode, on a host of its own (`leno-proxy redirect install` is run there).
    #[must_use]
    pub fn transparent(mut self, host: &Host) -> Self {
        self.ips = host.addresses().to_vec();
        self.host = Some(host.clone());
        self
    }

    /// A flag and its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// It is told the control plane's name, in place of its address.
    #[must_use]
    pub fn finds_control_plane_at(mut self, name: &str) -> Self {
        self.control_plane_name = Some(name.to_owned());
        self
    }

    /// Writes a JSON line for each request to the log.
    #[must_use]
    pub fn access_log(mut self) -> Self {
        self.access_log = "json";
        self
    }

    /// Starts its sidecar, waits until that is ready, and makes it an endpoint.
    pub async fn start(self) -> Result<Workload> {
        let mesh = self.mesh;
        let workload = self.launch().await?;
        workload.join(mesh).await?;
        Ok(workload)
    }

    /// Writes its Pod, gets it a token, and starts its sidecar, without waiting for it: [`Workload::join`] does.
    pub async fn launch(self) -> Result<Workload> {
        let mut workload = self.described()?;
        self.mesh.apply(&workload.file(), &workload.pod())?;
        // Who asks for one object is answered when all that was written before is read, and a token asks for none: without
        // this its sidecar could be told of a mesh without the Services and policies that were written for it.
        self.mesh.wait(&format!("pod/{}/{}", self.namespace, self.name)).await?;
        let whose = ["--namespace", &self.namespace, "--service-account", &self.account];
        let token = self.mesh.leno(&[&["token", "--lifetime", "1h"], whose.as_slice()].concat()).await?;
        self.write_token(token.trim()).context("write a token")?;
        workload.spawn(self.mesh)?;
        Ok(workload)
    }

    fn token_file(&self) -> PathBuf {
        self.mesh.folder().join("tokens").join(format!("{}.{}", self.namespace, self.name))
    }

    /// Readable by its owner only.
    fn write_token(&self, token: &str) -> Result<()> {
        let path = self.token_file();
        fs::create_dir_all(path.parent().context("a folder for tokens")?)?;
        let mut file = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        Ok(file.write_all(token.as_bytes())?)
    }

    fn described(&self) -> Result<Workload> {
        let ip = *self.ips.first().context("an address")?;
        let mut arguments = vec!["run".to_owned()];
        let mut flag = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        let control_plane = self.mesh.address();
        let by_name = self.control_plane_name.as_ref().map(|name| format!("{name}:{}", control_plane.port()));
        flag("--control-plane", by_name.unwrap_or_else(|| control_plane.to_string()));
        flag("--trust-bundle", self.mesh.state().join("trust-bundle.pem").display().to_string());
        flag("--token-file", self.token_file().display().to_string());
        flag("--workload", self.name.clone());
        flag("--drain-timeout", "5s".to_owned());
        flag("--access-log", self.access_log.to_owned());
        let admin = if self.host.is_some() { SocketAddr::from(([127, 0, 0, 1], 4191)) } else { ports::free_on(ip)? };
        flag("--admin", admin.to_string());
        let mut endpoints = Vec::new();
        let mut listeners = HashMap::new();
        for (service, application) in &self.inbound {
            let listen = match listeners.get(application) {
                Some(known) => *known,
                None => ports::free_on(ip)?,
            };
            if listeners.insert(application, listen).is_none() {
                flag("--inbound", format!("{listen}={application}"));
            }
            endpoints.push((service.clone(), listen));
        }
        let mut outbound = HashMap::new();
        for destination in &self.outbound {
            let listen = ports::free_on(ip)?;
            flag("--outbound", format!("{listen}={destination}"));
            outbound.insert(destination.clone(), listen);
        }
        arguments.extend(self.flags.iter().cloned());
        if self.host.is_some() {
            arguments.push("--transparent".to_owned());
        }
        Ok(Workload {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            account: self.account.clone(),
            ips: self.ips.clone(),
            arguments,
            admin,
            endpoints,
            outbound,
            host: self.host.clone(),
            process: None,
        })
    }
}

/// A workload with a running sidecar. The process is the mesh's: it lives until [`Mesh::end`].
#[derive(Debug)]
pub struct Workload {
    name: String,
    namespace: String,
    account: String,
    ips: Vec<IpAddr>,
    arguments: Vec<String>,
    admin: SocketAddr,
    /// Service (empty: none), the sidecar's listener.
    endpoints: Vec<(String, SocketAddr)>,
    outbound: HashMap<String, SocketAddr>,
    host: Option<Host>,
    process: Option<Process>,
}

impl Workload {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sidecar's process.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} was not started", self.name))
    }

    /// Explicit mode: the local listener for a destination.
    pub fn calls(&self, destination: &str) -> Result<SocketAddr> {
        self.outbound.get(destination).copied().with_context(|| format!("{} does not call {destination}", self.name))
    }

    /// Explicit mode: the mesh listener of the n-th inbound.
    pub fn listener(&self, n: usize) -> Result<SocketAddr> {
        self.endpoints.get(n).map(|(_, listen)| *listen).with_context(|| format!("{} has no inbound {n}", self.name))
    }

    /// Starts the sidecar again, and waits until it is ready.
    pub async fn restart(&mut self, mesh: &Mesh) -> Result<()> {
        self.spawn(mesh)?;
        self.ready().await
    }

    fn spawn(&mut self, mesh: &Mesh) -> Result<()> {
        let program = binaries::leno_proxy()?;
        let mut command = match &self.host {
            Some(host) => host.command(&program.display().to_string()),
            None => Command::new(program),
        };
        command.args(&self.arguments);
        self.process = Some(mesh.processes().spawn(&self.name, command)?);
        Ok(())
    }

    async fn ready(&self) -> Result<()> {
        let process = self.process()?;
        eventually(&format!("{} is ready", self.name), LIMIT, async || {
            let ended = process.ended()?;
            ensure!(ended.is_none(), "it ended: {ended:?}");
            self.admin("/ready").await.map(drop)
        })
        .await
    }

    /// Waits until the sidecar is ready, and makes the workload an endpoint of its Services.
    pub async fn join(&self, mesh: &Mesh) -> Result<()> {
        self.ready().await?;
        self.declare(mesh, true)?;
        for object in self.slices() {
            mesh.wait(&object).await?;
        }
        Ok(())
    }

    /// Writes its Pod and, for each Service it serves, its EndpointSlice: ready, or draining.
    pub fn declare(&self, mesh: &Mesh, ready: bool) -> Result<()> {
        let mut documents = vec![self.pod()];
        for (service, listen) in self.endpoints.iter().filter(|(service, _)| !service.is_empty()) {
            documents.push(documents::endpoint_slice(&self.namespace, service, Some(&self.name), *listen, ready));
        }
        mesh.apply(&self.file(), &documents::file(&documents))
    }

    /// Removes its documents.
    pub fn withdraw(&self, mesh: &Mesh) -> Result<()> {
        mesh.remove(&self.file())
    }

    /// "endpointslice/shop-shop-1" for each Service it serves.
    fn slices(&self) -> Vec<String> {
        let services = self.endpoints.iter().map(|(service, _)| service).filter(|service| !service.is_empty());
        services.map(|service| format!("endpointslice/{}/{service}-{}", self.namespace, self.name)).collect()
    }

    fn pod(&self) -> String {
        let ips: Vec<_> = self.ips.iter().map(ToString::to_string).collect();
        documents::pod(&self.namespace, &self.name, &self.account, &ips)
    }

    fn file(&self) -> String {
        format!("workload-{}-{}.yaml", self.namespace, self.name)
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(&self, limit: Duration) -> Result<()> {
        self.process()?.terminate(limit).await
    }

    /// Scrapes its metrics.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.admin("/metrics").await?)
    }

    /// Its admin server.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// GET from its admin server, which must answer well.
    pub async fn admin(&self, path: &str) -> Result<String> {
        if let Some(host) = &self.host {
            // Its loopback is not ours.
            let mut command = host.command("curl");
            command.args(["-sS", "--fail-with-body", "--max-time", "20", &format!("http://{}{path}", self.admin)]);
            return run(command, LIMIT).await;
        }
        let answer = client::get(self.admin, "localhost", path).await?;
        ensure!(answer.status.is_success(), "{path}: {} {:?}", answer.status, answer.body);
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }
}
