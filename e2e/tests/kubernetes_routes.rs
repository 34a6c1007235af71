//! Routes in a real cluster, in what the Gateway API's conformance suite never looks at: requests as they arrive, and what
//! routes are told. `e2e/cluster/test` runs these; see e2e/README.md.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;
use leno_e2e::{
    kubernetes::{Cluster, Injection, LIMIT, Namespace, request::Answer, status::conditions},
    metrics::Metrics,
    wait::eventually,
};
use serde_json::{Value, json};

/// Requests on one connection of which a share is counted.
const COUNTED: u32 = 400;

/// A route of a kind for a port of a Service.
fn route(kind: &str, name: &str, service: &str, port: u16, rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": service, "port": port }],
            "rules": rules,
        },
    })
}

fn prefix(path: &str) -> Value {
    json!([{ "path": { "type": "PathPrefix", "value": path } }])
}

fn to(service: &str) -> Value {
    json!([{ "name": service, "port": 80 }])
}

/// A route that is in force.
async fn in_force(namespace: &Namespace, name: &str, service: &str, rules: &Value) -> Result<()> {
    namespace.apply(route("HTTPRoute", name, service, 80, rules)).await?;
    // A proxy asks for a Service when it is first called.
    namespace.request("client", &format!("http://{service}/")).await?;
    let object = format!("httproute/{name}");
    namespace.cluster().leno(&["wait", &object, "-n", namespace.name(), "--timeout", "60s"]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn routes_do_with_requests_what_they_say() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "routes", Injection::Enabled).await?;
    for version in ["one", "two"] {
        namespace.service(version, json!({ "app": "echo", "version": version })).await?;
        namespace.serve("echo", version, 1).await?;
    }
    namespace.service("mirror", json!({ "app": "mirror" })).await?;
    namespace.serve("mirror", "mirror", 1).await?;
    // Each part has a Service of its own.
    for service in ["rewritten", "timed", "mirrored", "merged", "weighted", "removed"] {
        namespace.service(service, json!({ "app": "echo" })).await?;
    }
    namespace.client("client").await?;
    for name in ["one", "two", "mirror", "client"] {
        namespace.rolled_out(name).await?;
    }
    redirects_and_rewrites(&namespace).await.context("redirects and rewrites")?;
    timeouts_and_what_nobody_answers(&namespace).await.context("timeouts")?;
    mirrors(&namespace).await.context("mirrors")?;
    precedence(&namespace).await.context("precedence")?;
    weights(&namespace).await.context("weights")?;
    removal(&namespace).await.context("removal")
}

async fn redirects_and_rewrites(namespace: &Namespace) -> Result<()> {
    let redirect = |what: Value| json!([{ "type": "RequestRedirect", "requestRedirect": what }]);
    let rewrite = |what: Value| json!({ "type": "URLRewrite", "urlRewrite": what });
    let replaced = |with: &str| json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": with });
    let modified = json!({
        "set": [{ "name": "x-set", "value": "new" }],
        "add": [{ "name": "x-add", "value": "two" }],
        "remove": ["x-remove"],
    });
    let rules = json!([
        { "matches": prefix("/moved"), "filters": redirect(json!({
            "scheme": "https", "hostname": "shop.example", "path": replaced("/new"), "statusCode": 301,
        })) },
        { "matches": prefix("/port"), "filters": redirect(json!({ "port": 8443 })) },
        { "matches": prefix("/full"), "filters": redirect(json!({
            "path": { "type": "ReplaceFullPath", "replaceFullPath": "/other" },
        })) },
        { "matches": prefix("/a/b"), "backendRefs": to("one"), "filters": [
            rewrite(json!({ "hostname": "inner.example", "path": replaced("/c") })),
        ] },
        { "matches": prefix("/strip"), "backendRefs": to("one"), "filters": [rewrite(json!({ "path": replaced("/") }))] },
        { "matches": prefix("/whole"), "backendRefs": to("one"), "filters": [
            rewrite(json!({ "path": { "type": "ReplaceFullPath", "replaceFullPath": "/d" } })),
        ] },
        { "matches": prefix("/headers"), "backendRefs": to("one"), "filters": [
            { "type": "RequestHeaderModifier", "requestHeaderModifier": modified },
            { "type": "ResponseHeaderModifier", "responseHeaderModifier": { "set": [{ "name": "x-instance", "value": "hidden" }] } },
        ] },
    ]);
    in_force(namespace, "rewritten", "rewritten", &rules).await?;
    let ask = async |words: &str| namespace.request("client", &format!("'http://rewritten{words}")).await;
    for (url, status, location) in [
        ("/moved/x?q=1'", 301, "https://shop.example/new/x?q=1"),
        ("/moved'", 301, "https://shop.example/new"),
        ("/port/x'", 302, "http://rewritten:8443/port/x"),
        ("/full/x?q=1'", 302, "http://rewritten/other?q=1"),
    ] {
        let answer = ask(url).await?;
        ensure!((answer.status, answer.header("location")) == (status, location), "{url}: {answer:?}");
    }
    for (url, path, authority) in [
        ("/a/b/x?q=%20&r'", "/c/x?q=%20&r", "inner.example"),
        ("/a/b?q'", "/c?q", "inner.example"),
        ("/strip/x'", "/x", "rewritten"),
        ("/strip'", "/", "rewritten"),
        ("/whole/x?q=1'", "/d?q=1", "rewritten"),
    ] {
        let seen = ask(url).await?.seen()?;
        ensure!((seen.path.as_str(), seen.authority.as_str()) == (path, authority), "{url}: {seen:?}");
    }
    let answer = ask("/headers' -H 'x-set: old' -H 'x-add: one' -H 'x-remove: gone' -H 'x-kept: here'").await?;
    let seen = answer.seen()?;
    let header = |name: &str| seen.headers.get(name).map(String::as_str);
    for (name, value) in
        [("x-set", Some("new")), ("x-add", Some("one, two")), ("x-remove", None), ("x-kept", Some("here"))]
    {
        ensure!(header(name) == value, "{name}: {seen:?}");
    }
    ensure!(answer.header("x-instance") == "hidden", "{answer:?}");
    // No rule of the only route holds: the Service has no other way.
    let answer = ask("/unknown'").await?;
    ensure!(answer.status == 404, "{answer:?}");
    Ok(())
}

async fn timeouts_and_what_nobody_answers(namespace: &Namespace) -> Result<()> {
    let rules = json!([
        { "matches": prefix("/delay"), "backendRefs": to("one"), "timeouts": { "request": "3s" } },
        { "matches": prefix("/nowhere"), "backendRefs": to("nowhere") },
    ]);
    in_force(namespace, "timed", "timed", &rules).await?;
    for (path, status) in [("/delay/9000", 504), ("/delay/1", 200), ("/nowhere", 500)] {
        let answer = namespace.request("client", &format!("http://timed{path}")).await?;
        ensure!(answer.status == status, "{path}: {answer:?}");
    }
    Ok(())
}

async fn mirrors(namespace: &Namespace) -> Result<()> {
    let mirror =
        json!({ "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "mirror", "port": 80 } } });
    in_force(namespace, "mirrored", "mirrored", &json!([{ "backendRefs": to("one"), "filters": [mirror] }])).await?;
    let received = async || -> Result<f64> {
        let metrics = Metrics::parse(&namespace.run("mirror", "curl -sS -m 10 http://127.0.0.1:4191/metrics").await?)?;
        Ok(metrics.sum("leno_requests_total", &[("direction", "inbound")]))
    };
    let before = received().await?;
    for _ in 0..10 {
        let seen = namespace.request("client", "http://mirrored/").await?.seen()?;
        ensure!(seen.instance.starts_with("one-"), "{seen:?}");
    }
    // That which made the route known may have been on its way.
    eventually("the mirror has a copy of each", LIMIT, async || {
        let copies = received().await? - before;
        ensure!((10.0..=11.0).contains(&copies), "{copies} copies of 10 requests");
        Ok(())
    })
    .await
}

/// Several routes of a Service, and which rule holds for what.
async fn precedence(namespace: &Namespace) -> Result<()> {
    let rule = |says: &str, matches: Value| {
        let set = json!([{ "name": "x-rule", "value": says }]);
        let filters = json!([{ "type": "ResponseHeaderModifier", "responseHeaderModifier": { "set": set } }]);
        json!({ "matches": matches, "backendRefs": to("one"), "filters": filters })
    };
    let path = |kind: &str, value: &str| json!({ "type": kind, "value": value });
    in_force(
        namespace,
        "z-older",
        "merged",
        &json!([
            rule("prefix", json!([{ "path": path("PathPrefix", "/p") }])),
            rule("same-older", json!([{ "path": path("PathPrefix", "/same") }])),
            rule(
                "query",
                json!([{ "path": path("PathPrefix", "/p"), "queryParams": [{ "name": "q", "value": "1" }] }])
            ),
        ]),
    )
    .await?;
    // Times of creation are in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    in_force(
        namespace,
        "a-newer",
        "merged",
        &json!([
            rule("longer", json!([{ "path": path("PathPrefix", "/p/long") }])),
            rule("exact", json!([{ "path": path("Exact", "/p/long/exact") }])),
            rule("same-newer", json!([{ "path": path("PathPrefix", "/same") }])),
            rule("method", json!([{ "path": path("PathPrefix", "/p"), "method": "PUT" }])),
            rule("header", json!([{ "path": path("PathPrefix", "/p"), "headers": [{ "name": "x-h", "value": "1" }] }])),
        ]),
    )
    .await?;
    for (words, wanted) in [
        ("http://merged/p", "prefix"),
        ("http://merged/p/x", "prefix"),
        ("http://merged/p/long/x", "longer"),
        ("http://merged/p/longer", "prefix"),
        ("http://merged/p/long/exact", "exact"),
        ("http://merged/p/long -X PUT", "longer"),
        ("http://merged/p -X PUT -H 'x-h: 1'", "method"),
        ("'http://merged/p?q=1' -H 'x-h: 1'", "header"),
        ("'http://merged/p?q=1'", "query"),
        ("http://merged/same", "same-older"),
    ] {
        let answer = namespace.request("client", words).await?;
        ensure!(answer.header("x-rule") == wanted, "{words}: {wanted} was wanted: {answer:?}");
    }
    let answer = namespace.request("client", "http://merged/px").await?;
    ensure!(answer.status == 404, "{answer:?}");
    // Its place is the next one's.
    let gone = namespace.routes("HTTPRoute").delete("z-older", &DeleteParams::default()).await;
    gone.context("delete the older route")?;
    eventually("the newer of two that are the same", LIMIT, async || {
        let answer = namespace.request("client", "http://merged/same").await?;
        ensure!(answer.header("x-rule") == "same-newer", "{answer:?}");
        Ok(())
    })
    .await
}

/// Shares hold per request, not per connection.
async fn weights(namespace: &Namespace) -> Result<()> {
    let backends = json!([{ "name": "one", "port": 80, "weight": 3 }, { "name": "two", "port": 80, "weight": 1 }]);
    in_force(namespace, "weighted", "weighted", &json!([{ "backendRefs": backends }])).await?;
    // Six standard deviations about one in four.
    let fair = |version: &str, canary: f64, all: f64| {
        println!("{version}: {canary} of {all} at one in four");
        let deviation = 6.0 * (all * 0.25 * 0.75).sqrt();
        ensure!((canary - all / 4.0).abs() < deviation, "{version}: {canary} of {all} at one in four");
        Ok(())
    };
    let instances = namespace.on_one_connection("client", "http://weighted/", COUNTED).await?;
    let canary: u32 = instances.iter().filter(|(name, _)| name.starts_with("two-")).map(|(_, n)| n).sum();
    fair("HTTP/1.1", canary.into(), COUNTED.into())?;
    // Streams of one HTTP/2 connection.
    let options = "--connections 0 --multiplexed 1 --rate 100 --seconds 12 --at-least 600";
    let summary = namespace.load("client", "weighted:80", options).await?;
    // Half of what is asked for, as everywhere.
    summary.unharmed(600)?;
    fair("HTTP/2", summary.share("two-") * summary.ok as f64, summary.ok as f64)
}

/// A route that is deleted is out of force within a second.
async fn removal(namespace: &Namespace) -> Result<()> {
    // What the cluster has to do besides may delay one, and not each of three.
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        quickest = quickest.min(in_force_after_deletion(namespace).await?);
        if quickest < Duration::from_secs(1) {
            break;
        }
    }
    ensure!(quickest < Duration::from_secs(1), "in force for {quickest:?} after its deletion");
    let answer: Answer = namespace.request("client", "http://removed/").await?;
    ensure!(answer.status == 200, "without routes a Service has its own endpoints: {answer:?}");
    Ok(())
}

/// How long a route was in force after its deletion.
async fn in_force_after_deletion(namespace: &Namespace) -> Result<Duration> {
    let mark = json!({ "set": [{ "name": "x-route", "value": "there" }] });
    let filters = json!([{ "type": "ResponseHeaderModifier", "responseHeaderModifier": mark }]);
    in_force(namespace, "removed", "removed", &json!([{ "backendRefs": to("one"), "filters": filters }])).await?;
    // Until it is gone, or for a minute; when the last answer by the route was asked for, in ms.
    let shell = "while ((SECONDS < 60)); do at=$(date +%s%3N)
        said=$(curl -sS -m 5 -o /dev/null -w '%header{x-route}' http://removed/)
        if [[ $said == there ]]; then last=$at; touch /tmp/asking; else echo $last; exit; fi
        sleep 0.02; done";
    namespace.run("client", "rm -f /tmp/asking").await?;
    let asking = namespace.run("client", shell);
    let deleting = async {
        let begun = async || namespace.run("client", "test -e /tmp/asking").await;
        eventually("the route is asked by", LIMIT, begun).await?;
        namespace.routes("HTTPRoute").delete("removed", &DeleteParams::default()).await?;
        Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
    };
    let (printed, deleted) = tokio::try_join!(asking, deleting)?;
    let last: u64 = printed.trim().parse().with_context(|| format!("it never went: {printed}"))?;
    let in_force = Duration::from_millis(last).saturating_sub(deleted);
    println!("in force for {in_force:?} after its deletion");
    Ok(in_force)
}

/// What a route is told now at its only parent: `Accepted`, then `ResolvedRefs`, each as "True Reason"; empty: nothing of its
/// newest generation.
async fn told(namespace: &Namespace, kind: &str, name: &str) -> Result<[String; 2]> {
    let route = namespace.routes(kind).get(name).await?;
    let conditions = conditions(&route, 0)?;
    let current = |one: &&Value| one["observedGeneration"].as_i64() == route.metadata.generation;
    let said = |kind: &str| {
        let found = conditions.iter().find(|one| one["type"] == kind).filter(current);
        let said = found.map(|one| [&one["status"], &one["reason"]].map(|text| text.as_str().unwrap_or_default()));
        said.map_or_else(String::new, |said| said.join(" "))
    };
    Ok([said("Accepted"), said("ResolvedRefs")])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn routes_are_told_why_they_are_not_in_force() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.install(&[]).await?;
    let namespace = Namespace::create(&cluster, "told", Injection::Enabled).await?;
    let other = Namespace::create(&cluster, "elsewhere", Injection::Disabled).await?;
    let service = |name: &str, more: Value| {
        let ports = json!([
            { "name": "http", "port": 80, "appProtocol": "http" },
            { "name": "any", "port": 81 },
            { "name": "db", "port": 5432, "appProtocol": "tcp" },
        ]);
        let mut spec = json!({ "selector": { "app": name }, "ports": ports });
        if let (Some(fields), Value::Object(more)) = (spec.as_object_mut(), more) {
            fields.extend(more);
        }
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
    };
    namespace.apply(service("echo", json!({}))).await?;
    namespace.apply(service("contested", json!({}))).await?;
    namespace.apply(service("headless", json!({ "clusterIP": "None" }))).await?;
    namespace.apply(service("outside", json!({ "type": "ExternalName", "externalName": "example.org" }))).await?;
    other.apply(service("echo", json!({}))).await?;

    let parent = |field, value: Value| ("/spec/parentRefs/0", field, value);
    let rule = |field, value: Value| ("/spec/rules/0", field, value);
    let backend = |value: Value| rule("backendRefs", json!([value]));
    let (accepted, resolved, no_parent) = ("True Accepted", "True ResolvedRefs", "False NoMatchingParent");
    let unknown =
        json!([{ "type": "ExtensionRef", "extensionRef": { "group": "example.org", "kind": "Auth", "name": "x" } }]);
    let broken = json!([{ "path": { "type": "RegularExpression", "value": "/(" } }]);
    let cases = [
        ("good", parent("port", json!(80)), accepted, resolved),
        ("by-section", parent("sectionName", json!("http")), accepted, resolved),
        ("core", parent("group", json!("core")), accepted, resolved),
        ("no-service", parent("name", json!("nowhere")), no_parent, resolved),
        ("no-port", parent("port", json!(9999)), no_parent, resolved),
        ("no-section", parent("sectionName", json!("nothing")), no_parent, resolved),
        ("headless", parent("name", json!("headless")), no_parent, resolved),
        ("external-name", parent("name", json!("outside")), no_parent, resolved),
        ("bytes", parent("port", json!(5432)), "False UnsupportedProtocol", resolved),
        ("no-backend", backend(json!({ "name": "nowhere", "port": 80 })), accepted, "False BackendNotFound"),
        ("no-backend-port", backend(json!({ "name": "echo", "port": 9999 })), accepted, "False BackendNotFound"),
        (
            "not-a-service",
            backend(json!({ "group": "example.org", "kind": "Bucket", "name": "x" })),
            accepted,
            "False InvalidKind",
        ),
        // In a mesh no ReferenceGrant is asked for: RefNotPermitted is never told.
        (
            "across-namespaces",
            backend(json!({ "name": "echo", "namespace": other.name(), "port": 80 })),
            accepted,
            resolved,
        ),
        ("unknown-filter", rule("filters", unknown), accepted, resolved),
        ("bad-expression", rule("matches", broken), "False UnsupportedValue", ""),
    ];
    for (name, (at, field, value), ..) in &cases {
        let mut document = route("HTTPRoute", name, "echo", 80, &json!([{ "backendRefs": to("echo") }]));
        document.pointer_mut(at).with_context(|| format!("{name}: {at}"))?[*field] = value.clone();
        namespace.apply(document).await.with_context(|| (*name).to_owned())?;
    }
    // What a route names may be read after it: the first that it is told need not be the last.
    eventually("each is told what it should be", LIMIT, async || {
        let mut wrong = Vec::new();
        for (name, _, accepted, resolved) in &cases {
            let said = told(&namespace, "HTTPRoute", name).await?;
            if said != [*accepted, *resolved] {
                wrong.push(format!("{name} is told {said:?}, not {accepted:?}, {resolved:?}"));
            }
        }
        ensure!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    })
    .await?;
    let partly =
        namespace.route_says("HTTPRoute", "unknown-filter", "PartiallyInvalid", "True", Some("UnsupportedValue"));
    let message = partly.await?["message"].to_string();
    ensure!(message.contains("example.org/Auth x"), "{message}");

    // Of two kinds one has the port; on another port each is alone.
    for (kind, name, port) in [("HTTPRoute", "http", 81), ("GRPCRoute", "grpc", 81), ("HTTPRoute", "alone", 80)] {
        let rules = json!([{ "backendRefs": to("echo") }]);
        namespace.apply(route(kind, name, "contested", port, &rules)).await?;
    }
    namespace.route_says("HTTPRoute", "http", "Accepted", "False", Some("Conflicted")).await?;
    namespace.route_says("GRPCRoute", "grpc", "Accepted", "True", None).await?;
    namespace.route_says("HTTPRoute", "alone", "Accepted", "True", None).await?;
    // Who lost has the port once the winner is gone.
    namespace.routes("GRPCRoute").delete("grpc", &DeleteParams::default()).await?;
    namespace.route_says("HTTPRoute", "http", "Accepted", "True", None).await.map(drop)
}
