//! Two control planes: both serve, they agree on what they say, and either may go.

use anyhow::{Context as _, Result, ensure};
use http::Request;
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use leno_e2e::{
    kubernetes::{Cluster, LIMIT, Namespace, SYSTEM},
    wait::eventually,
};
use serde_json::{Value, json};

/// On a cluster of one node the two share it, which values-ha.yaml would not allow.
const TWO: [&str; 4] = ["--set", "replicas=2", "--set", "podDisruptionBudget.enabled=true"];
const CLIENTS: usize = 6;

/// A Service `echo` with servers, and clients enough that both control planes have some of their proxies.
async fn many(cluster: &Cluster, prefix: &str) -> Result<Namespace> {
    cluster.install(&TWO).await?;
    let namespace = Namespace::echo(cluster, prefix).await?;
    for n in 0..CLIENTS {
        namespace.client(&format!("client-{n}")).await?;
    }
    for n in 0..CLIENTS {
        namespace.rolled_out(&format!("client-{n}")).await?;
        namespace.run(&format!("client-{n}"), "curl -sS --fail -m 10 http://echo/").await?;
    }
    Ok(namespace)
}

/// A route to `echo` that adds this header to requests.
fn route(value: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "echo" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "echo", "port": 80 }],
            "rules": [{
                "filters": [{
                    "type": "RequestHeaderModifier",
                    "requestHeaderModifier": { "set": [{ "name": "x-version", "value": value }] },
                }],
                "backendRefs": [{ "name": "echo", "port": 80 }],
            }],
        },
    })
}

/// How many proxies each control plane serves.
async fn connected(cluster: &Cluster) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for name in control_planes(cluster).await? {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{name}:4193/proxy/metrics");
        let metrics = cluster.client().request_text(Request::get(path).body(Vec::new())?).await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("leno_control_plane_proxies_connected "));
        counts.push(line.context("no count of connected proxies")?.trim().parse()?);
    }
    Ok(counts)
}

async fn control_planes(cluster: &Cluster) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), SYSTEM);
    let found = pods.list(&ListParams::default().labels("app.kubernetes.io/component=control-plane")).await?;
    let running = found.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(running.filter_map(|pod| pod.metadata.name).collect())
}

async fn leader(cluster: &Cluster) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(cluster.client().clone(), SYSTEM);
    let lease = leases.get("leno").await?;
    lease.spec.and_then(|spec| spec.holder_identity).filter(|holder| !holder.is_empty()).context("nobody leads")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn status_counts_the_proxies_of_both_and_survives_the_leader() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = many(&cluster, "replicas").await?;
    let all = format!("{CLIENTS} of {CLIENTS} ");
    let agreed = async |what: &str| {
        eventually(what, LIMIT, async || {
            let condition = namespace.condition("HTTPRoute", "echo", "leno.dev/Programmed").await?;
            let message = condition["message"].as_str().unwrap_or_default();
            ensure!(condition["status"] == "True" && message.starts_with(&all), "{condition}");
            Ok(())
        })
        .await
    };
    namespace.apply(route("one")).await?;
    cluster.leno(&["wait", "httproute/echo", "-n", namespace.name(), "--timeout", "60s"]).await?;
    let counts = connected(&cluster).await?;
    println!("proxies of each control plane: {counts:?}");
    ensure!(counts.len() == 2 && counts.iter().all(|count| *count > 0), "one serves all: {counts:?}");
    agreed("status counts every client").await?;

    let first = leader(&cluster).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), SYSTEM);
    pods.delete(&first, &DeleteParams::default().grace_period(0)).await?;
    namespace.apply(route("two")).await?;
    cluster.leno(&["wait", "httproute/echo", "-n", namespace.name(), "--timeout", "60s"]).await?;
    let printed = namespace.run("client-0", "curl -sS --fail -m 10 http://echo/").await?;
    ensure!(printed.contains("\"x-version\":\"two\""), "leno wait came back too early: {printed}");
    eventually("another leads", LIMIT, async || {
        let now = leader(&cluster).await?;
        ensure!(now != first, "{now} still does");
        Ok(())
    })
    .await?;
    agreed("the new leader's status counts every client").await?;
    cluster.install(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn pods_are_made_while_the_control_plane_is_rolled_out() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = many(&cluster, "upgrade").await?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().clone(), SYSTEM);
    let restarted = json!({ "spec": { "template": { "metadata": { "annotations": {
        "leno.dev/e2e": namespace.name(),
    } } } } });
    deployments.patch("leno", &PatchParams::default(), &Patch::Merge(restarted)).await?;
    for replicas in [5, 2, 5] {
        namespace.serve("echo", "echo", replicas).await?;
        namespace.rolled_out("echo").await?;
    }
    for pod in namespace.pods("echo").await? {
        let injected = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        ensure!(injected.into_iter().any(|one| one.name == "leno-proxy"), "not injected: {:?}", pod.metadata.name);
    }
    let summary = namespace.load("client-0", "echo:80", "--seconds 5 --rate 200 --at-least 500").await?;
    summary.unharmed(500)?;
    cluster.install(&[]).await
}
