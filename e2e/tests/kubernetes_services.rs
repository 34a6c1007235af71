//! Services of all sorts in a real cluster, each called from a Pod in the mesh. `e2e/cluster/test` runs these; see
//! e2e/README.md.

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    kubernetes::{APPLICATIONS, Cluster, Injection, Namespace},
    server::Seen,
};
use serde_json::{Value, json};

/// How a request is to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Over mTLS: the server learns who asks.
    Mesh,
    /// In plaintext, or as bytes that nobody looks into.
    Plain,
}

fn service(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
}

/// A Service of one port 80, with a selector for the application.
fn selecting(name: &str, app: &str, target: Value, protocol: Option<&str>) -> Value {
    let mut port = json!({ "name": "http", "port": 80, "targetPort": target });
    if let Some(protocol) = protocol {
        port["appProtocol"] = protocol.into();
    }
    service(name, json!({ "selector": { "app": app }, "ports": [port] }))
}

/// The slice of a Service without selector: one endpoint at `ip`, a Pod or a stranger.
fn slice(service: &str, ip: &str, pod: Option<&str>) -> Value {
    let mut endpoint = json!({ "addresses": [ip], "conditions": { "ready": true } });
    if let Some(pod) = pod {
        endpoint["targetRef"] = json!({ "kind": "Pod", "name": pod });
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [endpoint],
    })
}

/// Two Pods with names of their own, behind a headless Service.
async fn peers(namespace: &Namespace) -> Result<()> {
    let ports = json!([{ "name": "http", "port": 8080 }]);
    let spec = json!({ "clusterIP": "None", "selector": { "app": "peer" }, "ports": ports });
    namespace.apply(service("peers", spec)).await?;
    let mut set = namespace.server("peer", "peer", 2);
    set["kind"] = "StatefulSet".into();
    set["spec"]["serviceName"] = "peers".into();
    set["spec"]["podManagementPolicy"] = "Parallel".into();
    namespace.apply(set).await
}

/// A server whose port `http` is another number than its sister's.
async fn on_port(namespace: &Namespace, name: &str, port: u16) -> Result<()> {
    let shell = format!("exec /usr/local/bin/leno-e2e-pod serve {name} --port {port}");
    let container = json!({
        "name": "application",
        "image": APPLICATIONS,
        "command": ["bash", "-c", shell],
        "ports": [{ "name": "http", "containerPort": port }],
        "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" }, "periodSeconds": 1 },
    });
    let mut server = namespace.server("named", name, 1);
    server["spec"]["template"]["spec"]["containers"] = json!([container]);
    namespace.apply(server).await
}

/// The name of an application's one Pod, and its addresses, that of IPv4 first.
async fn addresses(namespace: &Namespace, app: &str) -> Result<(String, Vec<String>)> {
    let pod = namespace.pods(app).await?.into_iter().next().with_context(|| format!("{app} has no Pod"))?;
    let ips = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
    ensure!(!ips.is_empty(), "{app}: a Pod without address");
    Ok((pod.metadata.name.context("a Pod without name")?, ips.into_iter().map(|one| one.ip).collect()))
}

async fn asked(namespace: &Namespace, words: &str, way: Way) -> Result<Seen> {
    let answer = namespace.request("client", words).await?;
    let seen = answer.seen().with_context(|| words.to_owned())?;
    let identity = seen.headers.get("leno-client-id").map(String::as_str).unwrap_or_default();
    let wanted = format!("/ns/{}/sa/default", namespace.name());
    match way {
        Way::Mesh => ensure!(identity.ends_with(&wanted), "{words}: not by the mesh: {seen:?}"),
        Way::Plain => ensure!(identity.is_empty(), "{words}: {seen:?}"),
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn services_of_all_sorts_are_reached() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "services", Injection::Enabled).await?;
    let outside = Namespace::create(&cluster, "outside", Injection::Disabled).await?;
    peers(&namespace).await?;
    for name in ["echo", "bytes"] {
        namespace.serve(name, name, 1).await?;
    }
    outside.serve("echo", "echo", 1).await?;
    for (name, port) in [("named-a", 8081), ("named-b", 8082)] {
        on_port(&namespace, name, port).await?;
    }
    namespace.client("client").await?;
    for name in ["echo", "bytes", "named-a", "named-b", "client"] {
        namespace.rolled_out(name).await?;
    }
    outside.rolled_out("echo").await?;
    let (pod, ips) = addresses(&namespace, "echo").await?;
    let (_, strangers) = addresses(&outside, "echo").await?;
    let (ip, stranger) = (&ips[0], &strangers[0]);
    let full = format!("echo.{}.svc.cluster.local", namespace.name());
    for document in [
        selecting("echo", "echo", json!(8080), Some("http")),
        selecting("named", "named", json!("http"), None),
        selecting("h2c", "echo", json!(8080), Some("kubernetes.io/h2c")),
        selecting("http1", "echo", json!(8080), Some("http1")),
        selecting("undeclared", "echo", json!(8080), None),
        selecting("bytes", "bytes", json!(8080), Some("tcp")),
        service("alias", json!({ "type": "ExternalName", "externalName": full })),
        // Nobody's own: only its route leads anywhere.
        selecting("fronted", "nobody", json!(8080), Some("http")),
        to_alias("fronted"),
        service("by-hand", json!({ "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] })),
        slice("by-hand", ip, Some(&pod)),
        service("foreign", json!({ "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] })),
        slice("foreign", stranger, None),
    ] {
        namespace.apply(document).await?;
    }
    let elsewhere = format!("http://{stranger}:8080/");
    let direct = format!("http://{ip}:8080/");
    let version_2 = "--http2-prior-knowledge";
    for (words, server, way) in [
        ("http://peer-0.peers:8080/", "peer-0", Way::Mesh),
        ("http://peer-1.peers:8080/", "peer-1", Way::Mesh),
        ("http://peers:8080/", "peer-", Way::Mesh),
        ("http://alias/", "echo-", Way::Mesh),
        ("http://fronted/", "echo-", Way::Mesh),
        ("http://by-hand/", "echo-", Way::Mesh),
        ("http://foreign/", "echo-", Way::Plain),
        (direct.as_str(), "echo-", Way::Mesh),
        (elsewhere.as_str(), "echo-", Way::Plain),
        ("http://undeclared/", "echo-", Way::Mesh),
        ("http://http1/", "echo-", Way::Mesh),
        (&format!("{version_2} http://h2c/"), "echo-", Way::Mesh),
        (&format!("{version_2} http://undeclared/"), "echo-", Way::Mesh),
        ("http://bytes/", "bytes-", Way::Plain),
    ] {
        let seen = retried(&namespace, words, way).await?;
        ensure!(seen.instance.starts_with(server), "{words}: {server} was wanted: {seen:?}");
        let version = if words.starts_with(version_2) { "HTTP/2.0" } else { "HTTP/1.1" };
        ensure!(seen.version == version, "{words}: {seen:?}");
    }
    // Each Pod by the number that its own port has.
    let summary = namespace.load("client", "named:80", "--rate 100 --seconds 5 --at-least 250").await?;
    summary.unharmed(250)?;
    ensure!(summary.instances.len() == 2, "{:?}", summary.instances);
    let ([_, ip], [_, stranger]) = (&ips[..], &strangers[..]) else {
        let wanted = std::env::var_os("LENO_CLUSTER_DUAL_STACK").is_some();
        ensure!(!wanted, "Pods have addresses of one family, two were wanted: {ips:?}");
        println!(
            "Pods have addresses of one family: nothing is tried of the other; e2e/cluster/test --dual-stack does"
        );
        return Ok(());
    };
    let mut dual = selecting("dual", "echo", json!(8080), Some("http"));
    dual["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    namespace.apply(dual).await?;
    for (words, way) in [
        (format!("'http://[{ip}]:8080/'"), Way::Mesh),
        (format!("'http://[{stranger}]:8080/'"), Way::Plain),
        ("-6 http://dual/".to_owned(), Way::Mesh),
        ("-4 http://dual/".to_owned(), Way::Mesh),
    ] {
        retried(&namespace, &words, way).await?;
    }
    Ok(())
}

/// A route that sends what is for a Service to the ExternalName `alias`.
fn to_alias(service: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": { "name": service },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": service, "port": 80 }],
            "rules": [{ "backendRefs": [{ "name": "alias", "port": 80 }] }],
        },
    })
}

/// A name is known to the cluster's DNS some seconds after its Service was made, and bytes to `tcp` are served when kube-proxy knows.
async fn retried(namespace: &Namespace, words: &str, way: Way) -> Result<Seen> {
    leno_e2e::wait::eventually(words, leno_e2e::kubernetes::LIMIT, async || asked(namespace, words, way).await).await
}
