//! What fails and is replaced in a cluster under constant load of requests that are safe to retry: nobody notices.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use leno_e2e::{
    kubernetes::{APPLICATIONS, Cluster, LIMIT, Namespace, SYSTEM},
    wait::{eventually, within},
};
use serde_json::{Value, json};

/// Longest wait for one answer of an API server that was restarted.
const ANSWER: Duration = Duration::from_secs(5);

/// The control plane's Pods, once there are two, both ready, and none of those `before`.
async fn two_control_planes(cluster: &Cluster, before: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), SYSTEM);
    eventually("two control planes, both ready", LIMIT, async || {
        let all = pods.list(&ListParams::default().labels("app.kubernetes.io/component=control-plane")).await?;
        let found: Vec<Pod> = all.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        let is_ready = |pod: &Pod| {
            let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.any(|one| one.type_ == "Ready" && one.status == "True")
        };
        ensure!(found.iter().all(is_ready), "not ready: {:?}", found.iter().map(|pod| &pod.status).collect::<Vec<_>>());
        let names: BTreeSet<String> = found.into_iter().filter_map(|pod| pod.metadata.name).collect();
        ensure!(names.len() == 2 && names.is_disjoint(before), "{names:?}, before {before:?}");
        Ok(names)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn both_control_planes_are_replaced() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&["--set", "replicas=2"]).await?;
    let namespace = Namespace::echo(&cluster, "control").await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), SYSTEM);
    let before = two_control_planes(&cluster, &BTreeSet::new()).await?;
    let all_deleted = async {
        for name in &before {
            pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
        }
        two_control_planes(&cluster, &before).await.map(drop)
    };
    namespace.unharmed_by(all_deleted).await?;
    cluster.install(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn the_chart_is_upgraded() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "upgraded").await?;
    // The control plane is started anew with the one, and what is injected changes with the other.
    namespace.unharmed_by(cluster.install(&["--set", "log=debug,proxy.accessLog=json"])).await?;
    namespace.serve("echo", "echo", 3).await?;
    namespace.rolled_out("echo").await?;
    namespace.ask("http://echo/").await?;
    cluster.install(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn the_chart_is_uninstalled() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "uninstalled").await?;
    let uninstall = async {
        let words = ["uninstall", "leno", "--namespace", SYSTEM, "--wait", "--timeout", "2m"];
        cluster.helm(&words).await.map(drop)
    };
    namespace.unharmed_by(uninstall).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), SYSTEM);
    let left = pods.list(&ListParams::default().labels("app.kubernetes.io/name=leno")).await?.items;
    ensure!(left.iter().all(|pod| pod.metadata.deletion_timestamp.is_some()), "{left:?}");
    let seen = namespace.ask("http://echo/").await?;
    let identity = seen.headers.get("leno-client-id").cloned().unwrap_or_default();
    ensure!(identity.starts_with("spiffe://"), "{seen:?}");
    // Installed again it is the same mesh: its root was nobody's to delete, and those who ran on meet the new.
    cluster.install(&[]).await?;
    namespace.serve("echo", "echo", 3).await?;
    namespace.rolled_out("echo").await?;
    namespace.reaches(3).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn the_api_server_is_restarted() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "apiserver").await?;
    // Commands in Pods run through the API server: this one outlives it.
    let load = "/usr/local/bin/leno-e2e-pod load echo:80 --seconds 20 --at-least 5000";
    let start = format!("bash -c '{load} >/tmp/load 2>&1; echo end >>/tmp/load' </dev/null >/dev/null 2>&1 &");
    namespace.ask("http://echo/").await?;
    namespace.run("client", &start).await?;
    cluster.restart_api_server().await?;
    // What is asked of it while it starts may never be answered: asked anew every time.
    eventually("the API server is back", LIMIT, async || {
        let asked = Cluster::connect().await?;
        within("ask for its version", ANSWER, async { Ok(asked.client().apiserver_version().await?) }).await
    })
    .await?;
    let pod = namespace.pod("client").await?;
    let printed = eventually("the load's end", LIMIT * 3, async || {
        let printed = namespace.exec(&pod, "application", &["cat", "/tmp/load"], ANSWER).await?;
        let report = printed.trim().strip_suffix("end").map(ToOwned::to_owned);
        report.with_context(|| format!("no end yet: {printed}"))
    })
    .await?;
    let summary: leno_e2e::kubernetes::summary::Summary =
        serde_json::from_str(printed.lines().last().unwrap_or_default()).with_context(|| printed.clone())?;
    println!("{summary:?}");
    // 500/s if the machine can spare it.
    summary.unharmed(5000)?;
    // What changes afterwards is heard of.
    namespace.serve("echo", "echo", 3).await?;
    namespace.rolled_out("echo").await
}

/// A Deployment with a container, besides its own, that sees the Pod's processes, to kill the proxy as the kernel would.
fn mortal(mut document: Value) -> Value {
    let pod = &mut document["spec"]["template"]["spec"];
    pod["shareProcessNamespace"] = true.into();
    if let Some(containers) = pod["containers"].as_array_mut() {
        containers.push(json!({
            "name": "killer",
            "image": APPLICATIONS,
            "command": ["sleep", "infinity"],
            "securityContext": { "runAsUser": 0 },
        }));
    }
    document
}

/// How often the proxy of a Pod was started again.
async fn restarts(namespace: &Namespace, pod: &str) -> Result<i32> {
    let status = namespace.api::<Pod>().get(pod).await?.status.unwrap_or_default();
    let proxy = status.init_container_statuses.into_iter().flatten().find(|one| one.name == "leno-proxy");
    Ok(proxy.with_context(|| format!("{pod} has no proxy"))?.restart_count)
}

/// Kills the proxy of a Pod that is [`mortal`], and waits until the kubelet has started it again.
async fn kill_proxy(namespace: &Namespace, pod: &str) -> Result<()> {
    let kill = "killed=0
        for p in /proc/[0-9]*; do
            [[ $(cat $p/comm) != leno-proxy ]] || { kill -KILL ${p#/proc/}; killed=$((killed + 1)); }
        done
        [[ $killed == 1 ]] || { echo \"$killed proxies\"; exit 1; }";
    let before = restarts(namespace, pod).await?;
    namespace.exec(pod, "killer", &["bash", "-c", kill], LIMIT).await?;
    eventually("the proxy that was killed is started again", LIMIT, async || {
        let now = restarts(namespace, pod).await?;
        ensure!(now == before + 1, "{now} restarts, {before} before");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn pods_are_deleted_and_proxies_killed() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "killed").await?;
    namespace.apply(mortal(namespace.server("echo", "echo", 3))).await?;
    namespace.rolled_out("echo").await?;
    let change = async {
        let pod = namespace.pod("echo").await?;
        kill_proxy(&namespace, &pod).await?;
        let pods: Api<Pod> = namespace.api();
        let victim = namespace.pods("echo").await?.into_iter().find_map(|p| p.metadata.name.filter(|n| *n != pod));
        pods.delete(&victim.context("a second Pod")?, &DeleteParams::default()).await?;
        namespace.rolled_out("echo").await
    };
    namespace.unharmed_by(change).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn a_clients_proxy_that_is_killed_loses_only_what_it_carried() -> Result<()> {
    /// Of the load, each with one request at a time.
    const CONNECTIONS: u64 = 50;
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "client-killed").await?;
    let mut client = namespace.server("mortal", "mortal", 1);
    client["spec"]["template"]["spec"]["containers"] =
        json!([{ "name": "application", "image": APPLICATIONS, "command": ["sleep", "infinity"] }]);
    client["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
    namespace.apply(mortal(client)).await?;
    namespace.rolled_out("mortal").await?;
    namespace.request("mortal", "http://echo/").await?;
    let load = namespace.load("mortal", "echo:80", "--seconds 30 --at-least 5000");
    let change = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        kill_proxy(&namespace, &namespace.pod("mortal").await?).await
    };
    let (summary, ()) = tokio::try_join!(load, change)?;
    println!("{summary:?}");
    // What was under way; while there is no proxy, connections are refused, and nothing is sent that could be lost.
    let lost = summary.failed - summary.unsent;
    ensure!(lost <= CONNECTIONS, "{lost} requests were lost: {summary:?}");
    // 500/s if the machine can spare it: those before, and those after.
    ensure!(summary.ok >= 5000, "only {} requests were answered: {summary:?}", summary.ok);
    namespace.load("mortal", "echo:80", "--seconds 5 --at-least 300").await?.unharmed(300)
}
