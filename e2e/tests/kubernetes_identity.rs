//! Certificates, roots, replicas and status of Leno in a real cluster. `e2e/cluster/test` runs these; see e2e/README.md.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{ConfigMap, ContainerStateWaiting, Pod, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use leno_e2e::{
    kubernetes::{APPLICATIONS, Cluster, LIMIT, Namespace, SYSTEM},
    metrics::Metrics,
    wait::eventually,
};
use serde_json::{Value, json};

fn in_system<K>(cluster: &Cluster) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(cluster.client().clone(), SYSTEM)
}

fn route(header: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "echo" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "echo", "port": 80 }],
            "rules": [{
                "filters": [{
                    "type": "ResponseHeaderModifier",
                    "responseHeaderModifier": { "set": [{ "name": "x-generation", "value": header }] },
                }],
                "backendRefs": [{ "name": "echo", "port": 80 }],
            }],
        },
    })
}

async fn leader(cluster: &Cluster) -> Result<String> {
    let lease = in_system::<Lease>(cluster).get("leno").await?;
    lease.spec.and_then(|spec| spec.holder_identity).filter(|name| !name.is_empty()).context("nobody leads")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn status_counts_the_proxies_of_all_replicas_and_outlives_the_leader() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&["--set", "replicas=2"]).await?;
    let namespace = Namespace::echo(&cluster, "status").await?;
    let routes = namespace.routes("HTTPRoute");
    namespace.apply(route("first")).await?;
    namespace.run("client", "curl -sS --fail -m 10 http://echo/").await?;
    let first = namespace.programmed("HTTPRoute", "echo").await?;
    namespace.route_says("HTTPRoute", "echo", "Accepted", "True", None).await?;
    println!("{}", first["message"]);

    // Another controller's entry is nobody else's.
    let foreign = json!({
        "parentRef": { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" },
        "controllerName": "example.org/gateway",
        "conditions": [{
            "type": "Accepted",
            "status": "True",
            "reason": "Accepted",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    let now = routes.get("echo").await?;
    let mut parents = now.data["status"]["parents"].as_array().cloned().unwrap_or_default();
    parents.insert(0, foreign.clone());
    let patch = json!({ "status": { "parents": parents } });
    routes.patch_status("echo", &PatchParams::default(), &Patch::Merge(&patch)).await?;

    let before = leader(&cluster).await?;
    in_system::<Pod>(&cluster).delete(&before, &DeleteParams::default()).await?;
    namespace.apply(route("second")).await?;
    eventually("another leads", LIMIT, async || {
        let now = leader(&cluster).await?;
        ensure!(now != before, "{now} still does");
        Ok(())
    })
    .await?;
    namespace.programmed("HTTPRoute", "echo").await?;
    let parents = routes.get("echo").await?.data["status"]["parents"].clone();
    ensure!(parents[0] == foreign && parents.as_array().map(Vec::len) == Some(2), "{parents}");
    let answered = namespace.run("client", "curl -sS -D - -o /dev/null -m 10 http://echo/").await?;
    ensure!(answered.contains("x-generation: second"), "{answered}");

    // A route for a Service that is not there says so.
    let mut lost = route("third");
    lost["spec"]["parentRefs"][0]["name"] = json!("nowhere");
    namespace.apply(lost).await?;
    namespace.route_says("HTTPRoute", "echo", "Accepted", "False", Some("NoMatchingParent")).await.map(drop)
}

/// All its Pods are deleted, and others there.
async fn replace_control_plane(cluster: &Cluster) -> Result<()> {
    let pods = in_system::<Pod>(cluster);
    for pod in pods.list(&ListParams::default().labels("app.kubernetes.io/name=leno")).await? {
        let name = pod.metadata.name.context("a Pod without name")?;
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    }
    cluster.install(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn a_pod_whose_proxy_never_starts_holds_up_nobody() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "stuck").await?;
    namespace.client("stuck").await?;
    // Nobody has that image: the Pod has an address, and no proxy.
    let annotations = json!({ "leno.dev/proxy-image": "127.0.0.1:1/nowhere:1" });
    let patch = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
    let deployments: Api<Deployment> = namespace.api();
    deployments.patch("stuck", &PatchParams::default(), &Patch::Merge(patch)).await?;
    eventually("a Pod whose proxy waits for its image", LIMIT, async || {
        let pods = namespace.pods("stuck").await?;
        let waits = |pod: &Pod| {
            let Some(status) = &pod.status else { return false };
            let mut containers = status.init_container_statuses.iter().flatten();
            let proxy = containers.find(|one| one.name == "leno-proxy").and_then(|one| one.state.as_ref());
            status.pod_ip.is_some() && proxy.and_then(|state| state.waiting.as_ref()).is_some_and(is_without_image)
        };
        ensure!(pods.iter().any(waits), "{:?}", pods.iter().map(|pod| &pod.status).collect::<Vec<_>>());
        Ok(())
    })
    .await?;
    replace_control_plane(&cluster).await?;
    namespace.apply(route("first")).await?;
    namespace.request("client", "http://echo/").await?;
    cluster.leno(&["wait", "httproute/echo", "-n", namespace.name(), "--timeout", "60s"]).await?;
    namespace.programmed("HTTPRoute", "echo").await.map(drop)
}

fn is_without_image(waiting: &ContainerStateWaiting) -> bool {
    matches!(waiting.reason.as_deref(), Some("ErrImagePull" | "ImagePullBackOff"))
}

/// A client's Pod with a container that may filter its packets.
async fn client_that_can_be_cut_off(namespace: &Namespace, name: &str) -> Result<()> {
    namespace.client(name).await?;
    let filter = json!({
        "name": "filter",
        "image": APPLICATIONS,
        "command": ["sleep", "infinity"],
        "securityContext": { "runAsUser": 0, "capabilities": { "add": ["NET_ADMIN"] } },
    });
    let deployments: Api<Deployment> = namespace.api();
    let patch = json!({ "spec": { "template": { "spec": { "containers": [filter] } } } });
    deployments.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    namespace.rolled_out(name).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn a_proxy_that_is_cut_off_from_the_control_plane_is_named() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "cut").await?;
    client_that_can_be_cut_off(&namespace, "far").await?;
    let pod = namespace.pod("far").await?;
    let filter = async |rules: &str| {
        namespace.exec(&pod, "filter", &["nft", rules], LIMIT).await.with_context(|| rules.to_owned())
    };
    let wait =
        async |limit: &str| cluster.leno(&["wait", "httproute/echo", "-n", namespace.name(), "--timeout", limit]).await;
    let generation = async |client: &str| -> Result<String> {
        Ok(namespace.request(client, "http://echo/").await?.header("x-generation").to_owned())
    };
    namespace.apply(route("first")).await?;
    for client in ["client", "far"] {
        namespace.request(client, "http://echo/").await?;
    }
    wait("60s").await?;

    filter(
        "table inet cut {
            chain out { type filter hook output priority 0; tcp dport 4190 drop; }
            chain in { type filter hook input priority 0; tcp sport 4190 drop; }
        }",
    )
    .await?;
    namespace.apply(route("second")).await?;
    let said = wait("10s").await.err().context("leno wait says that it is in force")?;
    ensure!(format!("{said:#}").contains(&pod), "leno wait does not name {pod}: {said:#}");
    let condition = namespace.route_says("HTTPRoute", "echo", "leno.dev/Programmed", "False", None).await?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("1 of 2 ") && message.contains(&pod), "{condition}");
    println!("{message}");
    // Each goes by what it has.
    ensure!(generation("client").await? == "second" && generation("far").await? == "first");
    // A control plane that has never heard of it names it, too.
    replace_control_plane(&cluster).await?;
    let said = wait("20s").await.err().context("leno wait says that it is in force, after a restart")?;
    ensure!(format!("{said:#}").contains(&pod), "leno wait does not name {pod} after a restart: {said:#}");

    filter("delete table inet cut").await?;
    wait("90s").await?;
    ensure!(generation("far").await? == "second");
    let condition = namespace.programmed("HTTPRoute", "echo").await?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("2 of 2 ") && !message.contains(&pod), "{condition}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn short_certificates_and_a_changed_root_roll_under_load_without_a_failed_request() -> Result<()> {
    // A third of it is left for renewal: more than a busy machine's API server takes for an answer.
    const LIFETIME: Duration = Duration::from_secs(60);
    let cluster = Cluster::connect().await?;
    let lifetime = format!("certificateLifetime={}s", LIFETIME.as_secs());
    // A root under which longer certificates were issued would be trusted for as long as they live.
    cluster.uninstall().await?;
    cluster.install(&["--set", &lifetime]).await?;
    let namespace = Namespace::echo(&cluster, "rotation").await?;
    let (secrets, maps) = (in_system::<Secret>(&cluster), in_system::<ConfigMap>(&cluster));
    let bundle = Api::<ConfigMap>::namespaced(cluster.client().clone(), namespace.name());
    let certificates = async || -> Result<usize> {
        let map = bundle.get("leno-trust-bundle").await?;
        let pem = map.data.and_then(|mut data| data.remove("trust-bundle.pem")).unwrap_or_default();
        Ok(pem.matches("BEGIN CERTIFICATE").count())
    };
    let changes = async {
        let (certificate, key) = root()?;
        let data = json!({ "data": null, "stringData": { "tls.crt": certificate, "tls.key": key } });
        secrets.patch("leno-root", &PatchParams::default(), &Patch::Merge(&data)).await?;
        eventually("both roots are trusted", LIMIT, async || {
            let count = certificates().await?;
            ensure!(count == 2, "{count} are");
            Ok(())
        })
        .await?;
        let record = maps.get("leno-roots").await?.data.unwrap_or_default();
        ensure!(record.contains_key("roots.json"), "{record:?}");
        // One lifetime until it is issued under, one until the last of the old ones has ended, and a minute for clocks.
        eventually("only the new root is trusted", LIFETIME * 2 + LIMIT, async || {
            let count = certificates().await?;
            ensure!(count == 1, "{count} are");
            Ok(())
        })
        .await
    };
    let load = async {
        // As long as a change of root takes, in parts that a command may take.
        for _ in 0..3 {
            let summary = namespace.load("client", "echo:80", "--seconds 90 --rate 200 --at-least 9000").await?;
            println!("{summary:?}");
            summary.unharmed(9_000)?;
        }
        Ok(())
    };
    tokio::try_join!(load, changes)?;
    // Three minutes at least, in which each was renewed every forty seconds or so.
    for workload in ["client", "echo"] {
        for pod in namespace.pods(workload).await? {
            let ip = pod.status.and_then(|status| status.pod_ip).context("its address")?;
            let page = namespace.request("client", &format!("http://{ip}:4195/metrics")).await?;
            let issued = Metrics::parse(&page.body)?.sum("leno_certificates_issued_total", &[]);
            ensure!(issued >= 4.0, "{workload} at {ip} got {issued} certificates");
        }
    }
    // Whoever is new knows the new root alone.
    namespace.serve("echo", "echo", 3).await?;
    namespace.rolled_out("echo").await?;
    namespace.reaches(3).await?;
    let seen = namespace.run("client", "curl -sS --fail -m 10 http://echo/").await?;
    ensure!(seen.contains("spiffe://"), "{seen}");
    cluster.install(&[]).await
}

/// A self-signed authority as anybody would make one: certificate and key.
fn root() -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "another root");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
