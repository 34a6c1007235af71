//! Injection, probes and validation in a real cluster. `e2e/cluster/test` runs these; see e2e/README.md.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use leno_e2e::{
    kubernetes::{APPLICATIONS, Cluster, Injection, LIMIT, Namespace, SYSTEM},
    metrics::Metrics,
    wait::eventually,
};
use serde_json::{Value, json};

/// The init container that is a sidecar.
const PROXY: &str = "leno-proxy";
/// Answers a kubelet's gRPC probe: SERVING.
const HEALTH: &str = "
import grpc
from concurrent import futures
class Health(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == '/grpc.health.v1.Health/Check':
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b'\\x08\\x01')
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Health(),))
server.add_insecure_port('0.0.0.0:9000')
server.start()
server.wait_for_termination()
";

fn pod(name: &str, spec: Value) -> Pod {
    let pod = json!({ "metadata": { "name": name }, "spec": spec });
    serde_json::from_value(pod).unwrap_or_default()
}

fn plain() -> Pod {
    pod("plain", json!({ "containers": [application(json!({}))] }))
}

fn application(more: Value) -> Value {
    let mut container = json!({ "name": "application", "image": APPLICATIONS, "command": ["sleep", "infinity"] });
    if let (Some(fields), Value::Object(more)) = (container.as_object_mut(), more) {
        fields.extend(more);
    }
    container
}

/// What the API server says to a Pod that it refuses.
async fn refused(namespace: &Namespace, pod: Pod) -> Result<String> {
    let pods: Api<Pod> = namespace.api();
    match pods.create(&PostParams::default(), &pod).await {
        Ok(_) => anyhow::bail!("it was made"),
        Err(error) => Ok(error.to_string()),
    }
}

fn has_sidecar(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.init_containers.as_ref()).is_some_and(|init| init.iter().any(|one| one.name == PROXY))
}

async fn strict(cluster: &Cluster, namespace: &Namespace) -> Result<()> {
    let labels = json!({ "leno.dev/inject": "enabled", "leno.dev/inbound": "strict" });
    let document = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": namespace.name(), "labels": labels },
    });
    cluster.apply(None, document).await.map(drop)
}

fn deployment(name: &str, pod: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": pod },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn probes_of_every_kind_are_answered_under_strict() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "probes", Injection::Enabled).await?;
    strict(&cluster, &namespace).await?;
    let files = application(json!({
        "command": ["python3", "-m", "http.server", "8080", "--directory", "/programs"],
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "startupProbe": { "tcpSocket": { "port": "http" }, "periodSeconds": 1 },
        "livenessProbe": { "httpGet": { "path": "/", "port": "http" }, "periodSeconds": 1 },
        "readinessProbe": { "exec": { "command": ["true"] }, "periodSeconds": 1 },
    }));
    let mut health = application(json!({
        "command": ["python3", "-c", HEALTH],
        "readinessProbe": { "grpc": { "port": 9000 }, "periodSeconds": 1 },
    }));
    health["name"] = "health".into();
    namespace.apply(deployment("well", json!({ "containers": [files.clone(), health] }))).await?;
    let mut ill = files;
    ill["readinessProbe"] = json!({ "httpGet": { "path": "/nothing-there", "port": 8080 }, "periodSeconds": 1 });
    namespace.apply(deployment("ill", json!({ "containers": [ill] }))).await?;
    namespace.rolled_out("well").await?;
    eventually("the kubelet tells of the readiness that failed", LIMIT, async || {
        let pods = namespace.pods("ill").await?;
        let status = pods.first().and_then(|pod| pod.status.clone()).context("there is no Pod yet")?;
        let ready: Vec<_> =
            status.container_statuses.into_iter().flatten().map(|one| (one.started, one.ready)).collect();
        ensure!(ready == [(Some(true), false)], "{ready:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn who_is_injected_who_not_and_who_is_refused() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "who", Injection::Enabled).await?;
    let other = Namespace::create(&cluster, "other", Injection::Disabled).await?;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let marked = |mark: &str| {
        let mut pod = plain();
        pod.metadata.annotations = Some([("leno.dev/inject".to_owned(), mark.to_owned())].into());
        pod
    };
    for (where_, pod, injected) in [
        (&namespace, plain(), true),
        (&namespace, marked("disabled"), false),
        (&other, plain(), false),
        (&other, marked("enabled"), true),
        (&namespace, pod("host", json!({ "hostNetwork": true, "containers": [application(json!({}))] })), false),
    ] {
        let pods: Api<Pod> = where_.api();
        let made = pods.create(&dry_run, &pod).await.with_context(|| format!("{:?}", pod.metadata))?;
        ensure!(has_sidecar(&made) == injected, "{:?} in {}", made.metadata, where_.name());
    }
    // Nobody's wish counts there.
    for system in [SYSTEM, "kube-system"] {
        let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), system);
        let made = pods.create(&dry_run, &marked("enabled")).await.with_context(|| system.to_owned())?;
        ensure!(!has_sidecar(&made), "{:?} in {system}", made.metadata);
    }
    let same_user = application(json!({ "securityContext": { "runAsUser": 2102 } }));
    let said = refused(&namespace, pod("same", json!({ "containers": [same_user] }))).await?;
    ensure!(said.contains("runs as user 2102"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn what_would_not_be_in_force_is_refused_by_field() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "valid", Injection::Enabled).await?;
    let policy = |max: &str| {
        json!({
            "apiVersion": "leno.dev/v1alpha1",
            "kind": "RoutePolicy",
            "metadata": { "name": "retries" },
            "spec": {
                "targetRefs": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "x" }],
                "retry": { "attempts": 3, "backoff": { "base": "5s", "max": max } },
            },
        })
    };
    let said = namespace.apply(policy("1s")).await.err().context("it was taken")?;
    ensure!(format!("{said:#}").contains("spec.retry.backoff.max: \"1s\" is not between 5s and 10s"), "{said:#}");
    namespace.apply(policy("6s")).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn a_prometheus_outside_the_mesh_reads_the_metrics_of_proxies() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "metrics").await?;
    strict(&cluster, &namespace).await?;
    let outside = Namespace::create(&cluster, "prometheus", Injection::Disabled).await?;
    outside.client("client").await?;
    outside.rolled_out("client").await?;
    namespace.ask("http://echo/").await?;
    let pod = namespace.pods("client").await?.into_iter().next().context("a Pod")?;
    let ip = pod.status.and_then(|status| status.pod_ip).context("its address")?;
    // Where a configuration of Prometheus looks, as its annotations say.
    let annotations = pod.metadata.annotations.unwrap_or_default();
    let told = |name: &str| annotations.get(&format!("prometheus.io/{name}")).cloned().unwrap_or_default();
    ensure!(told("scrape") == "true", "{annotations:?}");
    let url = format!("http://{ip}:{}{}", told("port"), told("path"));
    let page = outside.request("client", &url).await?;
    let requests = Metrics::parse(&page.body)?.sum("leno_requests_total", &[("direction", "outbound")]);
    ensure!(page.status == 200 && requests >= 1.0, "{requests} requests: {page:?}");
    // Nothing else of the admin server's is to be had there.
    for path in ["config", "identity", "log-level", "drain"] {
        let answer = outside.request("client", &format!("http://{ip}:4195/{path}")).await?;
        ensure!(answer.status == 404, "{path}: {answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn without_webhooks_running_pods_go_on_and_injected_ones_wait() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "away").await?;
    let other = Namespace::create(&cluster, "unmeshed", Injection::Disabled).await?;
    let tried = async {
        let said = refused(&namespace, plain()).await?;
        ensure!(said.contains("namespace.inject.leno.dev"), "{said}");
        let pods: Api<Pod> = other.api();
        let made = pods.create(&PostParams::default(), &plain()).await.context("a namespace outside the mesh")?;
        ensure!(!has_sidecar(&made), "{made:?}");
        Ok(())
    };
    namespace.unharmed_by(without_control_plane(&cluster, tried)).await?;
    // Now it waits no longer.
    namespace.serve("echo", "echo", 3).await?;
    namespace.rolled_out("echo").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn without_webhooks_pods_get_no_sidecar_where_that_is_chosen() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&["--set", "injection.failurePolicy=Ignore"]).await?;
    let namespace = Namespace::create(&cluster, "chosen", Injection::Enabled).await?;
    let pods: Api<Pod> = namespace.api();
    let tried = async {
        let made = pods.create(&PostParams::default(), &plain()).await.context("while no control plane answers")?;
        ensure!(!has_sidecar(&made), "{made:?}");
        Ok(())
    };
    without_control_plane(&cluster, tried).await?;
    eventually("Pods get a sidecar again", LIMIT, async || {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let mut again = plain();
        again.metadata.name = Some("again".to_owned());
        let made = pods.create(&dry_run, &again).await?;
        ensure!(has_sidecar(&made), "{made:?}");
        Ok(())
    })
    .await?;
    cluster.install(&[]).await
}

/// Does something while there is no control plane, which is there again afterwards.
async fn without_control_plane(cluster: &Cluster, tried: impl Future<Output = Result<()>>) -> Result<()> {
    let tried = match scale_control_plane(cluster, 0).await {
        Ok(()) => tried.await,
        Err(error) => Err(error),
    };
    scale_control_plane(cluster, 1).await?;
    tried
}

async fn scale_control_plane(cluster: &Cluster, replicas: i32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().clone(), SYSTEM);
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    deployments.patch("leno", &PatchParams::default(), &patch).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), SYSTEM);
    eventually("the control plane has as many replicas", LIMIT, async || {
        let status = deployments.get("leno").await?.status.unwrap_or_default();
        let of_it = kube::api::ListParams::default().labels("app.kubernetes.io/component=control-plane");
        let there = pods.list(&of_it).await?.items.len();
        let ready = status.ready_replicas.unwrap_or(0);
        ensure!(ready == replicas && there as i64 == i64::from(replicas), "{ready} ready, {there} there");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn what_leno_inject_prints_runs_in_the_mesh() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "printed", Injection::Disabled).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), namespace.server("echo", "echo", 1).to_string())?;
    let path = file.path().display().to_string();
    let printed = cluster.leno(&["inject", "-f", &path, "--installed"]).await?;
    let document: Value = serde_saphyr::from_str(&printed)?;
    namespace.apply(document).await?;
    // Of a namespace without injection the control plane learns by the Pod.
    namespace.rolled_out("echo").await?;
    let pods = namespace.pods("echo").await?;
    ensure!(pods.iter().all(has_sidecar) && !pods.is_empty(), "{pods:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn a_skipped_port_is_the_applications_for_clients_inside_and_outside_the_mesh() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "skipped", Injection::Enabled).await?;
    strict(&cluster, &namespace).await?;
    let outside = Namespace::create(&cluster, "stranger", Injection::Disabled).await?;
    for (name, ports) in [("skipping", "22,8000-8080"), ("whole", "22")] {
        let mut server = namespace.server(name, name, 1);
        server["spec"]["template"]["metadata"]["annotations"] = json!({ "leno.dev/skip-inbound-ports": ports });
        namespace.apply(server).await?;
        namespace.service(name, json!({ "app": name })).await?;
    }
    for from in [&namespace, &outside] {
        from.client("client").await?;
        from.rolled_out("client").await?;
    }
    namespace.rolled_out("skipping").await?;
    namespace.rolled_out("whole").await?;
    // By the Service and by the Pod's own address; the whole one is reached by mTLS alone.
    for (name, skips) in [("skipping", true), ("whole", false)] {
        let pod = namespace.pods(name).await?.into_iter().next().context("a Pod")?;
        let ip = pod.status.and_then(|status| status.pod_ip).context("its address")?;
        let by_name = format!("{name}.{}", namespace.name());
        for authority in [by_name, format!("{ip}:8080")] {
            let url = format!("http://{authority}/");
            let inside = namespace.request("client", &url).await?;
            let told = inside.seen()?.headers.contains_key("leno-client-id");
            ensure!(inside.status == 200 && told != skips, "{url} from inside: {inside:?}");
            if skips {
                outside.stranger_asks(&url).await?;
                continue;
            }
            let printed = outside.run("client", &format!("curl -sS -m 10 --fail {url} || echo refused")).await?;
            ensure!(printed.contains("refused"), "{url} from outside: {printed}");
        }
        // A Prometheus in the mesh reads the proxy's metrics as one outside does.
        let page = namespace.request("client", &format!("http://{ip}:4195/metrics")).await?;
        ensure!(page.status == 200 && page.body.contains("leno_"), "{page:?}");
    }
    Ok(())
}
