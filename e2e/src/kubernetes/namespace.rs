//! A namespace of a test's own: its workloads, and commands run in their Pods.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace as NamespaceObject, Pod},
};
use kube::{
    Api,
    api::{AttachParams, DeleteParams, ListParams},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::{APPLICATIONS, CALL, Cluster, LIMIT, summary::Summary};
use crate::{
    server::Seen,
    wait::{eventually, within},
};

/// Largest output of a command in a Pod that is kept.
const OUTPUT: u64 = 4 << 20;
/// Longest wait for load, which may have to outlast several changes of [`LIMIT`] each.
const LOAD: Duration = Duration::from_secs(900);
/// The file by which load is held while a change goes on.
const CHANGING: &str = "/tmp/changing";
/// The container of the application, in Pods made here.
const APPLICATION: &str = "application";

/// Whether Pods of a namespace get a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    Enabled,
    /// Enabled, and from outside the mesh they take nothing.
    Strict,
    Disabled,
}

impl Injection {
    fn labels(self) -> Value {
        match self {
            Self::Enabled => json!({ "leno.dev/inject": "enabled" }),
            Self::Strict => json!({ "leno.dev/inject": "enabled", "leno.dev/inbound": "strict" }),
            Self::Disabled => json!({ "leno.dev/inject": "disabled" }),
        }
    }
}

/// Deleted, with all in it, when dropped.
pub struct Namespace {
    cluster: Cluster,
    name: String,
}

impl Namespace {
    /// A new one, whose name begins with `prefix`.
    pub async fn create(cluster: &Cluster, prefix: &str, injection: Injection) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let document = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": injection.labels() },
        });
        cluster.apply(None, document).await?;
        Ok(Self { cluster: cluster.clone(), name })
    }

    /// One with sidecars: a Service `echo` of two servers, and a client.
    pub async fn echo(cluster: &Cluster, prefix: &str) -> Result<Self> {
        Self::echo_with(cluster, prefix, Injection::Enabled).await
    }

    /// A Service `echo` of two servers, and a client.
    pub async fn echo_with(cluster: &Cluster, prefix: &str, injection: Injection) -> Result<Self> {
        let namespace = Self::create(cluster, prefix, injection).await?;
        namespace.service("echo", json!({ "app": "echo" })).await?;
        namespace.serve("echo", "echo", 2).await?;
        namespace.client("client").await?;
        namespace.rolled_out("echo").await?;
        namespace.rolled_out("client").await?;
        Ok(namespace)
    }

    /// One request from the client's Pod: what the server saw.
    pub async fn ask(&self, url: &str) -> Result<Seen> {
        let printed = self.run("client", &format!("curl -sS --fail-with-body -m 10 {url}")).await?;
        serde_json::from_str(&printed).with_context(|| format!("the server's answer: {printed}"))
    }

    /// The same for a client outside the mesh, who reaches a Service once kube-proxy knows it.
    pub async fn stranger_asks(&self, url: &str) -> Result<Seen> {
        eventually(&format!("{url} is answered outside the mesh"), LIMIT, async || self.ask(url).await).await
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub async fn apply(&self, document: Value) -> Result<()> {
        self.cluster.apply(Some(&self.name), document).await.map(drop)
    }

    /// A Deployment named `name` of `version` that answers on 8080, its Pods labelled `app: APP` and `version: NAME`.
    pub async fn serve(&self, app: &str, name: &str, replicas: u32) -> Result<()> {
        self.apply(self.server(app, name, replicas)).await
    }

    /// See [`Namespace::serve`].
    pub fn server(&self, app: &str, name: &str, replicas: u32) -> Value {
        let mut container = json!({
            "name": APPLICATION,
            "image": APPLICATIONS,
            "command": ["bash", "-c", "exec /usr/local/bin/leno-e2e-pod serve \"$POD\""],
            "env": [{ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
            "ports": [{ "name": "http", "containerPort": 8080 }],
        });
        container["readinessProbe"] = json!({ "httpGet": { "path": "/ready", "port": 8080 }, "periodSeconds": 1 });
        deployment(app, name, replicas, container)
    }

    /// A Deployment of one Pod that does nothing until [`Namespace::run`] tells it to.
    pub async fn client(&self, name: &str) -> Result<()> {
        let container = json!({ "name": APPLICATION, "image": APPLICATIONS, "command": ["sleep", "infinity"] });
        let mut document = deployment(name, name, 1, container);
        // sleep does not end when it is asked to.
        document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
        self.apply(document).await
    }

    /// A Service for Pods with these labels: port 80 to the container's 8080, HTTP.
    pub async fn service(&self, name: &str, selector: Value) -> Result<()> {
        self.apply(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name },
            "spec": {
                "selector": selector,
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http" }],
            },
        }))
        .await
    }

    /// Waits until a Deployment's Pods are those it asks for, and ready.
    pub async fn rolled_out(&self, name: &str) -> Result<()> {
        let deployments: Api<Deployment> = self.api();
        eventually(&format!("roll-out of {name} in {}", self.name), LIMIT, async || {
            let deployment = deployments.get(name).await?;
            let status = deployment.status.unwrap_or_default();
            let wanted = deployment.spec.replicas.unwrap_or(1);
            let counts = (status.updated_replicas, status.available_replicas, status.replicas);
            ensure!(
                status.observed_generation == deployment.metadata.generation
                    && [counts.0, counts.1, counts.2].into_iter().all(|n| n.unwrap_or(0) == wanted),
                "updated, available, all: {counts:?}; wanted {wanted}; {}",
                self.pods_described().await
            );
            Ok(())
        })
        .await
    }

    /// Pods whose label `app` is this, not counting those that are ending.
    pub async fn pods(&self, app: &str) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = self.api();
        let chosen = ListParams::default().labels(&format!("app={app}"));
        let found = within("list Pods", CALL, async { Ok(pods.list(&chosen).await?) }).await?;
        Ok(found.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Fails unless there are Pods with this label, and each has a sidecar.
    pub async fn ensure_meshed(&self, label: &str) -> Result<()> {
        let pods = self.api::<Pod>().list(&ListParams::default().labels(label)).await?.items;
        ensure!(!pods.is_empty(), "no Pods with {label} in {}", self.name);
        for pod in pods {
            let init = pod.spec.and_then(|spec| spec.init_containers).unwrap_or_default();
            let has_proxy = init.iter().any(|one| one.name == "leno-proxy");
            ensure!(has_proxy, "{:?} has no sidecar", pod.metadata.name);
        }
        Ok(())
    }

    /// The name of the one Pod of an application.
    pub async fn pod(&self, app: &str) -> Result<String> {
        let pods = self.pods(app).await?;
        pods.into_iter().find_map(|pod| pod.metadata.name).with_context(|| format!("{app} has no Pod in {}", self.name))
    }

    /// Runs a shell command in the one Pod of an application; its output, also of errors. Fails if it fails.
    pub async fn run(&self, app: &str, shell: &str) -> Result<String> {
        let pod = self.pod(app).await?;
        self.exec(&pod, APPLICATION, &["bash", "-c", &format!("{{ {shell}\n}} 2>&1")], LIMIT).await
    }

    /// Runs a command in a container; what it printed. Fails if it fails.
    pub async fn exec(&self, pod: &str, container: &str, words: &[&str], limit: Duration) -> Result<String> {
        let pods: Api<Pod> = self.api();
        let what = format!("{words:?} in {container} of {pod}");
        within(&what.clone(), limit, async {
            let how = AttachParams::default().container(container).stderr(false);
            let mut attached = pods.exec(pod, words.iter().copied(), &how).await.with_context(|| what.clone())?;
            let status = attached.take_status().context("no status of the command")?;
            let mut printed = String::new();
            let output = attached.stdout().context("no output of the command")?;
            output.take(OUTPUT).read_to_string(&mut printed).await?;
            let status =
                status.await.ok_or_else(|| anyhow!("the command's end was not heard of; it said {printed}"))?;
            ensure!(status.status.as_deref() == Some("Success"), "{:?}; it said:\n{printed}", status.message);
            Ok(printed)
        })
        .await
    }

    /// Whether a server answers `hello` (escaped as in Python), sent as bytes from a Pod. It must take the connection.
    pub async fn is_answered(&self, client: &str, host: &str, port: u16, hello: &str) -> Result<bool> {
        let said = self.run(client, &format!("python3 /programs/knock.py {host} {port} '{hello}'")).await?;
        match said.split(' ').next() {
            Some("answered") => Ok(true),
            Some("closed") => Ok(false),
            _ => anyhow::bail!("{said}"),
        }
    }

    /// The same for a client outside the mesh, who reaches a Service once kube-proxy knows it.
    pub async fn stranger_is_answered(&self, client: &str, host: &str, port: u16, hello: &str) -> Result<bool> {
        eventually(&format!("{host}:{port} takes connections from outside the mesh"), LIMIT, async || {
            self.is_answered(client, host, port, hello).await
        })
        .await
    }

    /// Load from a client's Pod: 500/s over 50 connections unless `options` say otherwise, to `authority` (host:port).
    pub async fn load(&self, client: &str, authority: &str, options: &str) -> Result<Summary> {
        let load = format!("/usr/local/bin/leno-e2e-pod load {authority} {options} 2>&1");
        let pod = self.pod(client).await?;
        let printed = self.exec(&pod, APPLICATION, &["bash", "-c", &load], LOAD).await?;
        let last = printed.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("the load's end; it said {printed}"))
    }

    /// Runs `change` while [`Namespace::echo`]'s client makes 500 requests per second, for so many seconds and until the change
    /// has come to its end: all must be answered.
    pub async fn unharmed_for(&self, seconds: u64, change: impl Future<Output = Result<()>>) -> Result<()> {
        // The first request finds the way; the load begins when the mesh is at rest.
        self.ask("http://echo/").await?;
        // 500/s if the machine can spare it.
        let at_least = 250 * seconds;
        let options = format!("--seconds {seconds} --at-least {at_least} --while {CHANGING}");
        let load = self.load("client", "echo:80", &options);
        let held =
            async |what: &str, shell: &str| eventually(what, LIMIT, async || self.run("client", shell).await).await;
        let change = async {
            held("the load has begun", &format!("test -e {CHANGING}")).await?;
            let changed = change.await;
            let let_go = held("the load is let go", &format!("rm -f {CHANGING}")).await;
            changed?;
            let_go.map(drop)
        };
        // To the end of both: a change that is left off half-way would be in the way of other tests.
        let (summary, changed) = tokio::join!(load, change);
        let summary = summary?;
        println!("{summary:?}");
        changed?;
        summary.unharmed(at_least)
    }

    /// [`Namespace::unharmed_for`] a minute.
    pub async fn unharmed_by(&self, change: impl Future<Output = Result<()>>) -> Result<()> {
        self.unharmed_for(60, change).await
    }

    /// Until so many servers of [`Namespace::echo`] have answered its client within five seconds; no request may fail meanwhile.
    pub async fn reaches(&self, servers: usize) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            let summary = self.load("client", "echo:80", "--seconds 5").await?;
            summary.unharmed(1)?;
            if summary.instances.len() == servers {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{servers} servers were to answer: {:?}", summary.instances);
        }
    }

    /// Objects of a kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client().clone(), &self.name)
    }

    /// How Pods are, for failures.
    async fn pods_described(&self) -> String {
        let pods: Api<Pod> = self.api();
        let Ok(found) = pods.list(&ListParams::default()).await else { return "no list of Pods".into() };
        let described = found.items.into_iter().map(|pod| {
            let status = pod.status.unwrap_or_default();
            let waiting = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
            let waiting: Vec<_> = waiting
                .filter_map(|one| Some((one.name, one.state?.waiting?)))
                .map(|(name, why)| {
                    format!("{name}: {} {}", why.reason.unwrap_or_default(), why.message.unwrap_or_default())
                })
                .collect();
            format!("{} {} {waiting:?}", pod.metadata.name.unwrap_or_default(), status.phase.unwrap_or_default())
        });
        described.collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("LENO_E2E_KEEP").is_some() {
            eprintln!("namespace {} is left for you to look at", self.name);
            return;
        }
        let (client, name) = (self.cluster.client().clone(), self.name.clone());
        // Nobody waits for it; what the runtime does not get to is deleted with the cluster.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let deleting = runtime.spawn(async move {
                let namespaces: Api<NamespaceObject> = Api::all(client);
                namespaces.delete(&name, &DeleteParams::default()).await
            });
            tokio::task::block_in_place(|| runtime.block_on(deleting)).map(drop).unwrap_or_default();
        }
    }
}

fn deployment(app: &str, name: &str, replicas: u32, container: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": app, "version": name } },
            "template": {
                "metadata": { "labels": { "app": app, "version": name } },
                "spec": { "containers": [container] },
            },
        },
    })
}
