//! A real Kubernetes cluster with Leno in it: what tests do there, by its API alone.
//!
//! Told by the environment: `KUBECONFIG`; `LENO_E2E_HELM`, the helm to use (default `helm`); `LENO_E2E_RESTART`, a command
//! that takes the name of a component and restarts it. Images are there already: `e2e/cluster/test` or `e2e/kind/test`
//! loaded them.

pub mod namespace;
pub mod request;
pub mod status;
pub mod summary;

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::core::v1::{Namespace as NamespaceObject, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    discovery,
};
use serde_json::{Value, json};
use tokio::process::Command;

pub use namespace::{Injection, Namespace};

use crate::{
    binaries,
    wait::{eventually, within},
};

/// Longest wait for something that a cluster does: a Pod to start, a roll-out to end.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for one call of the API.
const CALL: Duration = Duration::from_secs(20);
/// Where Leno is installed.
pub const SYSTEM: &str = "leno-system";
/// The image that e2e/cluster/images/applications makes.
pub const APPLICATIONS: &str = "leno.dev/e2e/applications:1";

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// The one that `KUBECONFIG` names.
    pub async fn connect() -> Result<Self> {
        let config = Config::infer().await.context("read the kubeconfig: e2e/cluster/up says what to export")?;
        let client = Client::try_from(config).context("a client of the cluster's API")?;
        within("reach the cluster's API", CALL, async { Ok(client.apiserver_version().await?) }).await?;
        Ok(Self { client })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Leno installed by Helm as the README says, its webhooks answering; with these arguments, and with none of those of an
    /// earlier call. Does nothing if it is there already.
    pub async fn install(&self, arguments: &[&str]) -> Result<()> {
        let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts");
        let (crds, leno) = (charts.join("leno-crds").display().to_string(), charts.join("leno").display().to_string());
        self.helm(&["upgrade", "--install", "leno-crds", &crds, "--namespace", SYSTEM, "--create-namespace"]).await?;
        let mut all = vec!["upgrade", "--install", "leno", &leno, "--namespace", SYSTEM, "--wait", "--timeout", "2m"];
        // Without arguments Helm otherwise takes those of the release before.
        all.push("--reset-values");
        all.extend(arguments);
        self.helm(&all).await?;
        self.rolled_out().await?;
        self.admitted().await
    }

    /// Helm returns when new replicas are ready. Old ones, with the settings before, may go on answering for a moment.
    async fn rolled_out(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let replicas = ListParams::default().labels("app.kubernetes.io/component=control-plane");
        eventually("no replica of the control plane is left of those before", LIMIT, async || {
            let metadata: Vec<_> = pods.list(&replicas).await?.items.into_iter().map(|pod| pod.metadata).collect();
            let template = |of: &ObjectMeta| of.labels.as_ref()?.get("pod-template-hash").cloned();
            let first = metadata.first().context("there is none at all")?;
            for pod in &metadata {
                let old = pod.deletion_timestamp.is_some() || template(pod) != template(first);
                ensure!(!old, "{:?} beside {:?}", pod.name, first.name);
            }
            Ok(())
        })
        .await
    }

    /// A new replica is ready a moment before the API server's node knows the way to it.
    async fn admitted(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let pod = serde_json::from_value(json!({
            "metadata": { "name": "dry-run", "labels": { "leno.dev/inject": "enabled" } },
            "spec": { "containers": [{ "name": "none", "image": "none" }] },
        }))?;
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        eventually("the webhooks are reached", LIMIT, async || Ok(pods.create(&dry_run, &pod).await.map(drop)?)).await
    }

    /// As if Leno had never been there: neither releases nor its namespace, and with it neither root nor issuer.
    pub async fn uninstall(&self) -> Result<()> {
        for release in ["leno", "leno-crds"] {
            let words =
                ["uninstall", release, "--namespace", SYSTEM, "--ignore-not-found", "--wait", "--timeout", "2m"];
            self.helm(&words).await?;
        }
        self.delete_namespace(SYSTEM).await?;
        let left = self.helm(&["list", "--all", "--all-namespaces", "--short"]).await?;
        ensure!(!left.lines().any(|release| release.starts_with("leno")), "releases are left: {left}");
        Ok(())
    }

    /// Deletes a namespace, if there is one of that name, and waits for its end.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<NamespaceObject> = Api::all(self.client.clone());
        eventually(&format!("the namespace {name} is gone"), LIMIT, async || {
            let Some(found) = namespaces.get_opt(name).await? else { return Ok(()) };
            if found.metadata.deletion_timestamp.is_none() {
                namespaces.delete(name, &DeleteParams::default()).await?;
            }
            anyhow::bail!("{:?}", found.status)
        })
        .await
    }

    /// Runs Helm; its output.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let helm = std::env::var_os("LENO_E2E_HELM").unwrap_or_else(|| "helm".into());
        command(Command::new(helm).args(arguments), LIMIT * 2).await
    }

    /// Kills the API server, which is then started again.
    pub async fn restart_api_server(&self) -> Result<()> {
        let restart =
            std::env::var_os("LENO_E2E_RESTART").context("LENO_E2E_RESTART: a command that restarts a component")?;
        command(Command::new(restart).arg("kube-apiserver"), LIMIT).await.map(drop)
    }

    /// Runs `leno` as an operator does, from outside the cluster; its output.
    pub async fn leno(&self, arguments: &[&str]) -> Result<String> {
        command(Command::new(binaries::leno()?).args(arguments), LIMIT).await
    }

    /// Runs a script as an operator does, at the head of the repository's folder or in one that looks like it; what it printed.
    pub async fn script(&self, folder: &Path, shell: &str, limit: Duration) -> Result<String> {
        let words = ["-euo", "pipefail", "-c", &format!("exec 2>&1\n{shell}")];
        command(Command::new("bash").args(words).current_dir(folder), limit).await
    }

    /// Server-side apply of a document; it may name its namespace, or `namespace` is it.
    pub async fn apply(&self, namespace: Option<&str>, document: Value) -> Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(document).context("a document of Kubernetes")?;
        let types = object.types.clone().context("a document without kind")?;
        let name = object.metadata.name.clone().context("a document without name")?;
        let namespace = object.metadata.namespace.clone().or_else(|| namespace.map(ToOwned::to_owned));
        let what = format!("apply {} {name}", types.kind);
        let kind = GroupVersionKind::try_from(&types).with_context(|| format!("{what}: its apiVersion"))?;
        within(&what.clone(), CALL, async {
            let (resource, capabilities) = discovery::oneshot::pinned_kind(&self.client, &kind).await?;
            let api: Api<DynamicObject> = match (namespace, capabilities.scope) {
                (Some(namespace), discovery::Scope::Namespaced) => {
                    Api::namespaced_with(self.client.clone(), &namespace, &resource)
                }
                _ => Api::all_with(self.client.clone(), &resource),
            };
            let force = PatchParams::apply("leno-e2e").force();
            api.patch(&name, &force, &Patch::Apply(&object)).await.with_context(|| what.clone())
        })
        .await
    }
}

/// Runs a program to its end; what it printed, which a failure shows too.
async fn command(command: &mut Command, limit: Duration) -> Result<String> {
    let what = format!("{:?}", command.as_std());
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within(&what, limit, async { Ok(running.await?) }).await?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{what} ended with {}:\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}
