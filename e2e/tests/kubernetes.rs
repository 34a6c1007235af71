//! Leno in a real cluster, as its README installs it. `e2e/cluster/test` runs these; see e2e/README.md.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    kubernetes::{APPLICATIONS, Cluster, Injection, LIMIT, Namespace},
    wait::eventually,
};
use serde_json::{Value, json};

/// A request, escaped as in Python.
const HELLO: &str = "GET / HTTP/1.1\\r\\nhost: echo\\r\\n\\r\\n";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn from_helm_install_to_the_first_meshed_request() -> Result<()> {
    let cluster = Cluster::connect().await?;
    // Whichever tests were before: nothing of it is there, and what is measured is an installation.
    cluster.uninstall().await?;
    let started = Instant::now();
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "first").await?;
    let seen = namespace.ask("http://echo/hello").await?;
    let took = started.elapsed();
    println!("helm install to first meshed request: {took:.1?}");
    ensure!(took < LIMIT, "from installation to the first request: {took:?}");
    ensure!(seen.path == "/hello", "{seen:?}");
    // Who asked, as its certificate says.
    let wanted = format!("/ns/{}/sa/default", namespace.name());
    let client = seen.headers.get("leno-client-id").cloned().unwrap_or_default();
    ensure!(client.starts_with("spiffe://") && client.ends_with(&wanted), "client's identity: {client:?}");
    cluster.leno(&["check"]).await?;
    Ok(())
}

/// Where the watcher of a Pod's network keeps what it has seen.
const SEEN: &str = "/tmp/seen";

/// Adds to a server a container that sees the Pod's packets, and looks for `markers` in them.
fn watched(mut server: Value, markers: &[&str]) -> Value {
    // If it ever fails it is not started again, as if it had seen nothing: what is waited for then never comes.
    let watch = format!("python3 /programs/capture.py 8080 {SEEN} {}; sleep infinity", markers.join(" "));
    let watcher = json!({
        "name": "watcher",
        "image": APPLICATIONS,
        "command": ["bash", "-c", watch],
        "readinessProbe": { "exec": { "command": ["cat", SEEN] }, "periodSeconds": 1 },
        "securityContext": { "runAsUser": 0, "capabilities": { "add": ["NET_RAW"] } },
    });
    if let Some(containers) = server["spec"]["template"]["spec"]["containers"].as_array_mut() {
        containers.push(watcher);
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn nothing_between_pods_can_be_read_on_the_wire() -> Result<()> {
    const SECRET: &str = "a-secret-of-the-mesh";
    const CLEAR: &str = "from-outside-in-clear";
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "wire", Injection::Enabled).await?;
    let outside = Namespace::create(&cluster, "outside", Injection::Disabled).await?;
    namespace.service("echo", json!({ "app": "echo" })).await?;
    namespace.apply(watched(namespace.server("echo", "echo", 1), &[SECRET, CLEAR])).await?;
    for namespace in [&namespace, &outside] {
        namespace.client("client").await?;
        namespace.rolled_out("client").await?;
    }
    // And with it the watcher, which is ready once it watches.
    namespace.rolled_out("echo").await?;
    for _ in 0..10 {
        namespace.ask(&format!("http://echo/{SECRET}")).await?;
    }
    // The server is permissive, as by default: that this one can be read shows that the others would have been.
    outside.stranger_asks(&format!("http://echo.{}/{CLEAR}", namespace.name())).await?;
    let pod = namespace.pod("echo").await?;
    // It came last, and frames are counted in their order.
    let seen = eventually("plaintext from outside the mesh is seen", LIMIT, async || {
        let seen: Value = serde_json::from_str(&namespace.exec(&pod, "watcher", &["cat", SEEN], LIMIT).await?)?;
        ensure!(seen[CLEAR].as_u64() > Some(0), "{seen}");
        Ok(seen)
    })
    .await?;
    ensure!(seen[SECRET] == 0, "the requests could be read: {seen}");
    ensure!(seen["tls"].as_u64() > Some(0), "no TLS was seen: {seen}");
    ensure!(seen["missed"] == 0, "not everything was looked at: {seen}");
    Ok(())
}

fn split(weights: [u32; 2]) -> Value {
    let [one, two] = weights;
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "canary" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "echo", "port": 80 }],
            "rules": [{ "backendRefs": [
                { "name": "one", "port": 80, "weight": one },
                { "name": "two", "port": 80, "weight": two },
            ] }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn a_canary_gets_its_share_once_the_route_is_said_to_be_in_force() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "canary", Injection::Enabled).await?;
    namespace.service("echo", json!({ "app": "echo" })).await?;
    for version in ["one", "two"] {
        namespace.service(version, json!({ "app": "echo", "version": version })).await?;
        namespace.serve("echo", version, 1).await?;
    }
    namespace.client("client").await?;
    for name in ["one", "two", "client"] {
        namespace.rolled_out(name).await?;
    }
    namespace.ask("http://echo/").await?;
    for (weights, wanted) in [([90, 10], 0.1_f64), ([50, 50], 0.5)] {
        namespace.apply(split(weights)).await?;
        cluster.leno(&["wait", "httproute/canary", "-n", namespace.name(), "--timeout", "30s"]).await?;
        let summary = namespace.load("client", "echo:80", "--seconds 20 --at-least 5000").await?;
        summary.unharmed(5000)?;
        let share = summary.share("two-");
        println!("weights {weights:?}: {share:.3} of {} requests to the canary", summary.ok);
        let deviation = (wanted * (1.0 - wanted) / summary.ok as f64).sqrt();
        ensure!(
            (share - wanted).abs() < 5.0 * deviation,
            "{share} of requests went to the canary, {wanted} was wanted"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn strangers_are_served_as_the_mode_says() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "modes").await?;
    let outside = Namespace::create(&cluster, "outside", Injection::Disabled).await?;
    outside.client("client").await?;
    outside.rolled_out("client").await?;
    let url = format!("http://echo.{}/", namespace.name());
    outside.stranger_asks(&url).await.context("permissive, the default")?;
    let strict = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": namespace.name(), "labels": { "leno.dev/inject": "enabled", "leno.dev/inbound": "strict" } },
    });
    cluster.apply(None, strict).await?;
    let host = format!("echo.{}", namespace.name());
    eventually("plaintext is refused, by every server", LIMIT, async || {
        for _ in 0..10 {
            ensure!(!outside.is_answered("client", &host, 80, HELLO).await?, "it was answered");
        }
        Ok(())
    })
    .await?;
    namespace.ask("http://echo/").await.context("meshed clients under strict")?;
    // Probes go on working: nothing is restarted, and new Pods become ready.
    namespace.serve("echo", "echo", 3).await?;
    namespace.rolled_out("echo").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn no_request_fails_while_servers_come_and_go() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "rolling").await?;
    let changes = async {
        for replicas in [6, 2] {
            namespace.serve("echo", "echo", replicas).await?;
            namespace.rolled_out("echo").await?;
        }
        // A new template: every Pod is replaced.
        let mut server = namespace.server("echo", "echo", 2);
        server["spec"]["template"]["metadata"]["annotations"] = json!({ "leno.dev/e2e": "second" });
        namespace.apply(server).await?;
        namespace.rolled_out("echo").await
    };
    namespace.unharmed_for(90, changes).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn jobs_complete_and_their_init_containers_reach_the_network() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    // Strict: whoever gets an answer has the mesh's identity, the init container, too.
    let namespace = Namespace::echo_with(&cluster, "jobs", Injection::Strict).await?;
    let outside = Namespace::create(&cluster, "outside", Injection::Disabled).await?;
    outside.client("client").await?;
    outside.rolled_out("client").await?;
    let host = format!("echo.{}", namespace.name());
    ensure!(!outside.stranger_is_answered("client", &host, 80, HELLO).await?, "a stranger was answered");
    let ask = json!({ "image": APPLICATIONS, "command": ["curl", "-sS", "--fail", "-m", "60", "http://echo/"] });
    let container = |name: &str| {
        let mut container = ask.clone();
        container["name"] = name.into();
        container
    };
    let job = json!({
        "backoffLimit": 0,
        "template": { "spec": {
            "restartPolicy": "Never",
            "initContainers": [container("before")],
            "containers": [container("application")],
        } },
    });
    let document = |kind: &str, spec: Value| json!({ "apiVersion": "batch/v1", "kind": kind, "metadata": { "name": "ask" }, "spec": spec });
    let every_minute = json!({ "schedule": "* * * * *", "jobTemplate": { "spec": job } });
    namespace.apply(document("CronJob", every_minute)).await?;
    namespace.apply(document("Job", job)).await?;
    let jobs = namespace.api::<k8s_openapi::api::batch::v1::Job>();
    eventually("the Job is complete", LIMIT, async || {
        let status = jobs.get("ask").await?.status.unwrap_or_default();
        ensure!(status.succeeded == Some(1), "{status:?}");
        Ok(())
    })
    .await?;
    namespace.ensure_meshed("batch.kubernetes.io/job-name=ask").await?;
    let cron_jobs = namespace.api::<k8s_openapi::api::batch::v1::CronJob>();
    eventually("a Job of the CronJob is complete", LIMIT + Duration::from_secs(60), async || {
        let status = cron_jobs.get("ask").await?.status.unwrap_or_default();
        ensure!(status.last_successful_time.is_some(), "{status:?}");
        Ok(())
    })
    .await?;
    namespace.ensure_meshed("batch.kubernetes.io/job-name").await
}
