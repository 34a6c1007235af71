//! What the charts say and make, in all their forms, on a real cluster. `e2e/cluster/test` runs these; see e2e/README.md.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use leno_e2e::{
    kubernetes::{APPLICATIONS, Cluster, Injection, LIMIT, Namespace, SYSTEM},
    wait::eventually,
};
use serde_json::{Value, json};

/// What no image of Leno's has.
const SHELLS: [&str; 3] = ["sh", "bash", "busybox"];
/// What a namespace is labelled with for its Pods to be restricted.
const LEVEL: &str = "pod-security.kubernetes.io/enforce";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart(name: &str) -> String {
    root().join("charts").join(name).display().to_string()
}

/// What Helm makes of the chart with these arguments.
async fn rendered(cluster: &Cluster, arguments: &[&str]) -> Result<Vec<Value>> {
    let leno = chart("leno");
    let mut words = vec!["template", "leno", &leno, "--namespace", SYSTEM, "--kube-version", "1.34.0"];
    words.extend(arguments);
    let printed = cluster.helm(&words).await?;
    let documents = printed.split("\n---\n").map(|part| serde_saphyr::from_str::<Value>(part).context(part.to_owned()));
    Ok(documents.collect::<Result<Vec<_>>>()?.into_iter().filter(Value::is_object).collect())
}

fn of_kind<'d>(documents: &'d [Value], kind: &str) -> Vec<&'d Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

/// What the control plane may do with objects of this name.
fn rights(documents: &[Value], resource: &str, name: &str) -> Value {
    let roles = documents.iter().filter(|document| document["metadata"]["name"] == "leno");
    let rules = roles.filter_map(|role| role["rules"].as_array()).flatten();
    let has = |list: &Value, word: &str| list.as_array().is_some_and(|list| list.iter().any(|one| one == word));
    let rules = rules.filter(|rule| has(&rule["resources"], resource) && has(&rule["resourceNames"], name));
    rules.filter_map(|rule| rule["verbs"].as_array()).flatten().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn the_charts_are_clean_in_all_their_forms() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let (leno, ha) = (chart("leno"), root().join("charts/leno/values-ha.yaml").display().to_string());
    cluster.helm(&["lint", "--strict", &chart("leno-crds")]).await?;
    for form in [
        &[][..],
        &["--values", &ha],
        &["--set", "webhooks.certificates=cert-manager"],
        &["--set", "redirect.mode=external"],
    ] {
        let words = [&["lint", "--strict", &leno, "--namespace", SYSTEM, "--kube-version", "1.34.0"], form].concat();
        cluster.helm(&words).await?;
    }
    let documents = rendered(&cluster, &["--values", &ha]).await?;
    let deployments = of_kind(&documents, "Deployment");
    ensure!(deployments.len() == 1 && deployments[0]["spec"]["replicas"] == 2, "{deployments:?}");
    ensure!(of_kind(&documents, "PodDisruptionBudget").len() == 1, "no disruption budget: {documents:#?}");
    // The API server's word on it, too.
    let upgrade = ["upgrade", "leno", &leno, "--namespace", SYSTEM, "--values", &ha, "--dry-run=server"];
    cluster.helm(&upgrade).await?;

    let ours = rendered(&cluster, &[]).await?;
    ensure!(of_kind(&ours, "Certificate").is_empty(), "cert-manager is asked by default");
    let theirs = rendered(&cluster, &["--set", "webhooks.certificates=cert-manager"]).await?;
    let secrets: Vec<_> = of_kind(&theirs, "Certificate").iter().map(|one| one["spec"]["secretName"].clone()).collect();
    ensure!(secrets == ["leno-webhook", "leno-webhook-ca"], "{secrets:?}");
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        for configuration in of_kind(&theirs, kind) {
            let from = &configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
            ensure!(from == "leno-system/leno-webhook", "{configuration:#?}");
        }
    }
    // What only Leno's own certificates need is granted with them alone.
    for (documents, configurations, secret) in
        [(&ours, json!(["get", "patch"]), json!(["get", "update"])), (&theirs, json!([]), json!(["get", "watch"]))]
    {
        let granted = rights(documents, "mutatingwebhookconfigurations", "leno");
        ensure!(granted == configurations, "to webhook configurations: {granted}");
        let granted = rights(documents, "secrets", "leno-webhook");
        ensure!(granted == secret, "to the Secret leno-webhook: {granted}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn what_is_installed_is_found_well() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    for words in [&["check", "--pre"][..], &["check"]] {
        println!("{}", cluster.leno(words).await?);
    }
    let tested = cluster.helm(&["test", "leno", "--namespace", SYSTEM, "--timeout", "2m"]).await?;
    ensure!(tested.contains("Succeeded"), "{tested}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn images_have_no_shell() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "shell").await?;
    let pod = namespace.pod("echo").await?;
    namespace.exec(&pod, "leno-proxy", &["leno-proxy", "--version"], LIMIT).await.context("its own program")?;
    let control_plane = format!("kubectl --namespace {SYSTEM} exec deployment/leno -- ");
    let asked = async |words: &str| cluster.script(&root(), &format!("{control_plane}{words}"), LIMIT).await;
    asked("leno --version").await.context("its own program")?;
    for shell in SHELLS {
        let ran = namespace.exec(&pod, "leno-proxy", &[shell, "-c", "true"], LIMIT).await;
        ensure!(ran.is_err(), "the sidecar has {shell}");
        ensure!(asked(&format!("{shell} -c true")).await.is_err(), "the control plane has {shell}");
    }
    redirect_has_no_shell(&namespace).await
}

/// The redirect's container has ended by the time its Pod can be looked into: its image is tried in a Pod of its own.
async fn redirect_has_no_shell(namespace: &Namespace) -> Result<()> {
    let pods: Api<Pod> = namespace.api();
    let injected = pods.get(&namespace.pod("echo").await?).await?.spec.and_then(|spec| spec.init_containers);
    let redirect = injected.into_iter().flatten().find(|container| container.name == "leno-redirect");
    let image = redirect.and_then(|container| container.image).context("no container leno-redirect")?;
    let container = |name: &str, command: &[&str]| json!({ "name": name, "image": image, "command": command });
    let shells = SHELLS.iter().map(|shell| container(shell, &[shell, "-c", "true"]));
    let all: Vec<_> = [container("program", &["leno-proxy", "--version"])].into_iter().chain(shells).collect();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "redirect", "labels": { "leno.dev/inject": "disabled" } },
        "spec": { "restartPolicy": "Never", "containers": all },
    });
    namespace.apply(pod).await?;
    let ended = eventually("the containers of the redirect's image have ended", LIMIT, async || {
        let status = pods.get("redirect").await?.status.unwrap_or_default();
        let statuses = status.container_statuses.unwrap_or_default();
        let states = statuses.iter().map(|one| Some((one.name.clone(), one.state.clone()?.terminated?)));
        let ended: Option<BTreeMap<_, _>> = states.collect();
        ended.filter(|ended| ended.len() == all.len()).with_context(|| format!("{statuses:?}"))
    })
    .await?;
    for (name, state) in ended {
        match name.as_str() {
            "program" => ensure!(state.exit_code == 0, "its own program: {state:?}"),
            shell => ensure!(state.reason.as_deref() == Some("StartError"), "the redirect has {shell}: {state:?}"),
        }
    }
    Ok(())
}

/// Labels a namespace, and no other way.
async fn labelled(cluster: &Cluster, name: &str, labels: Value) -> Result<()> {
    let document = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
    cluster.apply(None, document).await.map(drop)
}

/// As Pod Security `restricted` wants it.
fn restricted(mut document: Value) -> Value {
    let pod = &mut document["spec"]["template"]["spec"];
    pod["securityContext"] = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    for container in pod["containers"].as_array_mut().into_iter().flatten() {
        container["securityContext"] =
            json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    }
    document
}

/// Stands for an agent of the node, which installs the redirect of Pods, from a namespace that allows it to.
async fn redirected(agents: &Namespace, pods: &[String]) -> Result<()> {
    let words = format!("python3 /programs/node_agent.py {}", pods.join(" "));
    println!("{}", agents.run("agent", &words).await?);
    Ok(())
}

/// Such an agent, started.
async fn node_agent(cluster: &Cluster) -> Result<Namespace> {
    let agents = Namespace::create(cluster, "agents", Injection::Disabled).await?;
    let container = json!({
        "name": "application",
        "image": APPLICATIONS,
        "command": ["sleep", "infinity"],
        "securityContext": { "privileged": true, "runAsUser": 0 },
    });
    let mut agent = agents.server("agent", "agent", 1);
    agent["spec"]["template"]["spec"] =
        json!({ "hostPID": true, "terminationGracePeriodSeconds": 1, "containers": [container] });
    agents.apply(agent).await?;
    agents.rolled_out("agent").await?;
    Ok(agents)
}

async fn runs_where_pods_are_restricted(cluster: &Cluster) -> Result<()> {
    cluster.install(&["--set", "redirect.mode=external"]).await?;
    let roll = format!(
        "kubectl --namespace {SYSTEM} rollout restart deployment/leno
         kubectl --namespace {SYSTEM} rollout status deployment/leno --timeout 100s"
    );
    cluster.script(&root(), &roll, LIMIT).await.context("the control plane's Pods are restricted")?;
    cluster
        .helm(&["test", "leno", "--namespace", SYSTEM, "--timeout", "2m"])
        .await
        .context("the test's Pod is, too")?;

    let namespace = Namespace::create(cluster, "restricted", Injection::Strict).await?;
    let labels = json!({ "leno.dev/inject": "enabled", "leno.dev/inbound": "strict", LEVEL: "restricted" });
    labelled(cluster, namespace.name(), labels).await?;
    namespace.service("echo", json!({ "app": "echo" })).await?;
    namespace.apply(restricted(namespace.server("echo", "echo", 1))).await?;
    let mut client = namespace.server("client", "client", 1);
    client["spec"]["template"]["spec"]["containers"] =
        json!([{ "name": "application", "image": APPLICATIONS, "command": ["sleep", "infinity"] }]);
    namespace.apply(restricted(client)).await?;
    for name in ["echo", "client"] {
        namespace.rolled_out(name).await?;
        namespace.ensure_meshed(&format!("app={name}")).await?;
    }
    let agents = node_agent(cluster).await?;
    redirected(&agents, &[namespace.pod("echo").await?, namespace.pod("client").await?]).await?;
    let seen = namespace.ask("http://echo/").await?;
    let wanted = format!("/ns/{}/sa/default", namespace.name());
    let identity = seen.headers.get("leno-client-id").cloned().unwrap_or_default();
    ensure!(identity.ends_with(&wanted), "not by the mesh: {seen:?}");
    let (host, hello) = (format!("echo.{}", namespace.name()), "GET / HTTP/1.1\\r\\nhost: echo\\r\\n\\r\\n");
    ensure!(!agents.stranger_is_answered("agent", &host, 80, hello).await?, "a stranger was answered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn everything_runs_where_pod_security_is_restricted() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    labelled(&cluster, SYSTEM, json!({ LEVEL: "restricted" })).await?;
    let tried = runs_where_pods_are_restricted(&cluster).await;
    labelled(&cluster, SYSTEM, json!({})).await?;
    cluster.install(&[]).await?;
    tried
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn the_mesh_says_what_it_is_in_an_xmesh() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let kind = GroupVersionKind::gvk("gateway.networking.x-k8s.io", "v1alpha1", "XMesh");
    let resource = ApiResource::from_gvk_with_plural(&kind, "xmeshes");
    let meshes: Api<DynamicObject> = Api::all_with(cluster.client().clone(), &resource);
    eventually("the XMesh is accepted, and lists its features", LIMIT, async || {
        let mesh = meshes.get("leno").await?;
        ensure!(mesh.data["spec"]["controllerName"] == "leno.dev/control-plane", "{:?}", mesh.data);
        let conditions = mesh.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let accepted = conditions.iter().any(|one| one["type"] == "Accepted" && one["status"] == "True");
        let features = mesh.data["status"]["supportedFeatures"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = features.iter().filter_map(|one| one["name"].as_str()).collect();
        ensure!(accepted && names.contains(&"Mesh") && names.contains(&"MeshConsumerRoute"), "{:?}", mesh.data);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn kubectl_waits_as_the_documentation_says() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::echo(&cluster, "waits").await?;
    let mut route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "cart" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "echo", "port": 80 }],
            "rules": [{ "backendRefs": [{ "name": "echo", "port": 80 }] }],
        },
    });
    namespace.ask("http://echo/").await?;
    let page = std::fs::read_to_string(root().join("docs/status.md"))?;
    // Between fences is every second part.
    let given = page.split("```").skip(1).step_by(2).find(|block| block.contains("kubectl -n shop wait"));
    let given = given.context("docs/status.md gives no commands for kubectl wait")?;
    let commands =
        given.trim_start_matches(|c: char| c != '\n').replace("-n shop", &format!("-n {}", namespace.name()));
    for timeout in ["2s", "3s"] {
        route["spec"]["rules"][0]["timeouts"] = json!({ "request": timeout });
        namespace.apply(route.clone()).await?;
        println!("{}", cluster.script(&root(), &commands, LIMIT).await?);
        let now = namespace.programmed("HTTPRoute", "cart").await?;
        ensure!(now["reason"] == "Programmed", "the client's proxy is not among those that use it: {now}");
    }
    Ok(())
}
