use std::{collections::VecDeque, time::SystemTime};

use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::codegen::http::{Request, Response};

use super::{resources::Resource, *};
use crate::model::{InboundMode, Object, ProxyLife};

fn settings() -> MeshSettings {
    MeshSettings { inbound: InboundMode::Permissive, ..MeshSettings::strict("cluster.local") }
}

fn pod(name: &str, version: u64, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": "u", "resourceVersion": version.to_string(), "generation": 1,
            "labels": {"app": "cart", "leno.dev/inject": "enabled"},
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {
            "serviceAccountName": "cart",
            "initContainers": [{"name": "leno-proxy", "restartPolicy": "Always"}],
            "containers": [{"name": "app", "env": [{"name": "A", "value": "b"}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]},
    });
    change(&mut pod);
    pod
}

fn service(name: &str, version: u64) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string()},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "selector": {"app": "cart"},
            "ports": [{"port": 80, "targetPort": "http", "nodePort": null}]},
        "status": {"loadBalancer": {}},
    })
}

fn route(generation: u64, version: u64, path: &str) -> Value {
    json!({
        "metadata": {"name": "cart", "namespace": "shop", "resourceVersion": version.to_string(), "generation": generation},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": path}}], "newerField": true,
                "backendRefs": [{"name": "cart", "port": 80}]}]},
        "status": {"parents": []},
    })
}

fn seen(kind: Kind, object: Value) -> Seen {
    let resource = Resource::of(kind).unwrap();
    trim::seen(kind, &resource.api_version(resource.versions[0]), object).unwrap()
}

#[test]
fn of_a_pod_what_the_model_reads_is_kept() {
    let (file, version, kept) = trim::trimmed(Kind::Pod, "v1", pod("a", 7, |_| {})).unwrap();
    assert_eq!((&*file, version), ("Pod shop/a", 7));
    let expected = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 1,
            "labels": {}, "annotations": {"leno.dev/inject": "enabled"}},
        "spec": {"serviceAccountName": "cart"},
        "status": {"podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]},
    });
    assert_eq!(kept, expected);
}

#[test]
fn of_a_service_what_has_no_effect_is_kept_to_be_said() {
    let kept = |affinity: &str, policy: &str| {
        let mut object = service("a", 7);
        object["spec"]["sessionAffinity"] = affinity.into();
        object["spec"]["internalTrafficPolicy"] = policy.into();
        trim::trimmed(Kind::Service, "v1", object).unwrap().2["spec"].clone()
    };
    let plain = json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
        "ports": [{"port": 80, "targetPort": "http", "nodePort": null}]});
    assert_eq!(kept("None", "Cluster"), plain);
    let mut said = plain;
    said["sessionAffinity"] = json!("ClientIP");
    said["internalTrafficPolicy"] = json!("Local");
    assert_eq!(kept("ClientIP", "Local"), said);
}

#[test]
fn of_an_endpoint_what_the_model_reads_is_kept() {
    let slice = |node: &str| {
        let object = json!({
            "metadata": {"name": "cart-1", "namespace": "shop", "resourceVersion": "7", "generation": 3,
                "labels": {"kubernetes.io/service-name": "cart"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": ["10.0.0.7"], "conditions": {"ready": true}, "zone": "a", "hostname": "cart-0", "newer": 1,
                "nodeName": node, "hints": {"forZones": [{"name": "b"}]}, "deprecatedTopology": {"n": node},
                "targetRef": {"kind": "Pod", "name": "cart-0", "namespace": "shop", "uid": node},
            }],
        });
        trim::trimmed(Kind::EndpointSlice, "discovery.k8s.io/v1", object).unwrap().2
    };
    let expected = json!([{
        "addresses": ["10.0.0.7"], "conditions": {"ready": true}, "zone": "a", "hostname": "cart-0", "newer": 1,
        "hints": {"forZones": [{"name": "b"}]}, "targetRef": {"kind": "Pod", "name": "cart-0"},
    }]);
    assert_eq!(slice("one")["endpoints"], expected);
    assert_eq!(slice("one"), slice("two"));
}

#[test]
fn a_pod_is_in_the_mesh_exactly_if_it_has_a_proxy() {
    let injected = |change: fn(&mut Value)| {
        let (_, _, kept) = trim::trimmed(Kind::Pod, "v1", pod("a", 7, change)).unwrap();
        (kept["metadata"]["annotations"]["leno.dev/inject"] == "enabled", kept["status"]["podIP"].is_string())
    };
    assert_eq!(injected(|_| {}), (true, true));
    // What it was marked with does not count.
    assert_eq!(injected(|pod| pod["spec"]["initContainers"] = json!([])), (false, true));
    assert_eq!(injected(|pod| pod["metadata"]["labels"]["leno.dev/inject"] = json!("disabled")), (true, true));
    let (_, _, kept) = trim::trimmed(
        Kind::Pod,
        "v1",
        pod("a", 7, |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-03-01T12:00:00Z")),
    )
    .unwrap();
    assert_eq!(kept["metadata"]["deletionTimestamp"], "2026-03-01T12:00:00Z");
    // An address that is the node's, or another Pod's by now.
    let on_host = |pod: &mut Value| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["initContainers"] = json!([]);
    };
    assert_eq!(injected(on_host), (false, false));
    assert_eq!(injected(|pod| pod["status"]["phase"] = json!("Succeeded")), (true, false));
}

#[test]
fn of_a_proxys_container_is_kept_whether_it_may_serve() {
    let running = json!({"running": {"startedAt": "2026-03-01T12:00:00Z"}});
    let of = |list: &str, status: Value| {
        let world = World::of_api_server(settings());
        let pod = pod("a", 7, |pod| pod["status"][list] = json!([{"name": "leno-redirect", "started": false}, status]));
        let world = world.change([seen(Kind::Pod, pod).content]);
        assert_eq!(world.errors(), []);
        world.proxy_of("shop", "a", Duration::ZERO, SystemTime::now())
    };
    let proxy = |started: bool, state: &Value| json!({"name": "leno-proxy", "started": started, "state": state});
    assert_eq!(of("initContainerStatuses", proxy(true, &running)), Some(ProxyLife::Started));
    assert_eq!(of("containerStatuses", proxy(true, &running)), Some(ProxyLife::Started));
    assert_eq!(of("initContainerStatuses", proxy(false, &running)), Some(ProxyLife::Starting));
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    assert_eq!(of("initContainerStatuses", proxy(false, &waiting)), Some(ProxyLife::Down));
    assert_eq!(of("containerStatuses", json!({"name": "app", "started": true})), Some(ProxyLife::Down));
}

#[test]
fn routes_keep_what_tells_them_from_others_of_their_name() {
    let mut made = route(1, 7, "/");
    made["metadata"]["uid"] = json!("u");
    let (_, _, kept) = trim::trimmed(Kind::HttpRoute, "gateway.networking.k8s.io/v1", made).unwrap();
    assert_eq!(kept["metadata"]["uid"], "u");
}

#[test]
fn routes_of_gateways_are_others() {
    let of = |parents: Value| {
        let mut object = route(1, 2, "/a");
        object["spec"]["parentRefs"] = parents;
        trim::seen(Kind::HttpRoute, "gateway.networking.k8s.io/v1", object).is_some()
    };
    let (gateway, service) = (json!({"name": "front"}), json!({"group": "core", "kind": "Service", "name": "cart"}));
    assert!(of(json!([gateway, service])) && of(json!([service])));
    assert!(!of(json!([gateway])) && !of(json!([])) && !of(Value::Null));
    // It has left, and must be told so.
    let mut left = route(1, 2, "/a");
    left["spec"]["parentRefs"] = json!([gateway]);
    left["status"]["parents"] = json!([{"controllerName": "leno.dev/control-plane"}]);
    assert!(trim::seen(Kind::HttpRoute, "gateway.networking.k8s.io/v1", left).is_some());
}

#[tokio::test]
async fn marks_that_cannot_be_read_take_no_pod_out_of_the_mesh() {
    let mut running = running().await;
    let marked = pod("a", 7, |pod| {
        pod["metadata"]["annotations"] = json!({"leno.dev/inbound": "stirct", "leno.dev/weight": "heavy"});
    });
    let world = running.tell(Kind::Pod, 7, Update::Is(Kind::Pod, seen(Kind::Pod, marked))).await;
    let Some(Object::Pod(found)) = world.object(&key(Kind::Pod, "a")) else { panic!("{:?}", world.errors()) };
    assert_eq!((found.inbound, found.weight, found.meshed), (Some(InboundMode::Strict), 1, true));
    let told = &world.info(&key(Kind::Pod, "a")).unwrap().conditions[0].message;
    assert!(told.contains("leno.dev/inbound=stirct") && told.contains("leno.dev/weight=heavy"), "{told}");
}

#[test]
fn which_ports_are_skipped_stands_in_the_spec_whatever_annotations_say() {
    let skipped = |containers: Value, annotations: Value| {
        let changed = pod("a", 7, |pod| {
            pod["spec"]["initContainers"] = containers;
            pod["metadata"]["annotations"] = annotations;
        });
        let (_, _, kept) = trim::trimmed(Kind::Pod, "v1", changed).unwrap();
        let annotations = &kept["metadata"]["annotations"];
        assert!(annotations.get("leno.dev/redirect").is_none(), "{annotations}");
        annotations["leno.dev/skip-inbound-ports"].as_str().map(str::to_owned)
    };
    let container = |name: &str, env: &[(&str, &str)]| {
        let env: Vec<_> = env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        json!({ "name": name, "env": env })
    };
    let probes = ("LENO_PROBE_PORT", "4195");
    let proxy = |ports| container("leno-proxy", &[probes, ("LENO_EXCLUDE_INBOUND_PORTS", ports)]);
    let old_proxy = container("leno-proxy", &[probes]);
    let redirect = container("leno-redirect", &[("LENO_EXCLUDE_INBOUND_PORTS", "4195,23")]);
    let bare = json!([{ "name": "leno-proxy" }]);
    let redirected = r#"{"proxyUid":2102,"excludeInboundPorts":["80"]}"#;
    for annotations in [
        json!(null),
        json!({}),
        json!({"leno.dev/skip-inbound-ports": "80"}),
        json!({"leno.dev/redirect": redirected, "leno.dev/skip-inbound-ports": "80"}),
    ] {
        for (containers, expected) in [
            (json!([proxy("4195,22")]), Some("4195,22")),
            (json!([redirect, proxy("4195,22")]), Some("4195,22")),
            // Injected by an older release, with the redirect's init container, and without.
            (json!([redirect, old_proxy]), Some("4195,23")),
            (json!([old_proxy]), Some("4195")),
            // With a sidecar that nobody injected.
            (bare.clone(), None),
            (json!([proxy("ssh")]), None),
            (
                json!([{ "name": "leno-proxy", "env": [{ "name": "LENO_EXCLUDE_INBOUND_PORTS", "valueFrom": {} }] }]),
                None,
            ),
        ] {
            assert_eq!(
                skipped(containers.clone(), annotations.clone()).as_deref(),
                expected,
                "{containers} {annotations}"
            );
        }
    }
}

struct Running {
    updates: mpsc::Sender<Update>,
    world: watch::Receiver<Arc<World>>,
    versions: watch::Receiver<Versions>,
}

/// With everything listed, and nothing there.
async fn running() -> Running {
    let (updates, taken) = mpsc::channel(limits::QUEUE);
    let (first, world) = oneshot::channel();
    let versions = watch::Sender::new(Versions::new());
    let seen = versions.subscribe();
    let mut intake = Intake {
        updates: taken,
        world: World::of_api_server(settings()),
        held: HashMap::new(),
        missing: resources::ALL.iter().map(|resource| resource.kind).collect(),
        versions,
    };
    std::thread::spawn(move || intake.run(first, |_| {}));
    for resource in resources::ALL {
        updates.send(Update::Listed(resource.kind, Vec::new(), 0)).await.unwrap();
    }
    Running { updates, world: world.await.unwrap(), versions: seen }
}

impl Running {
    async fn tell(&mut self, kind: Kind, version: u64, update: Update) -> Arc<World> {
        self.updates.send(update).await.unwrap();
        self.versions.wait_for(|versions| versions[&kind] >= version).await.unwrap();
        Arc::clone(&self.world.borrow())
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: "shop".into(), name: name.into() }
}

#[tokio::test]
async fn generations_are_those_that_the_api_server_gives() {
    let mut running = running().await;
    let world = running.tell(Kind::Pod, 7, Update::Is(Kind::Pod, seen(Kind::Pod, pod("a", 7, |_| {})))).await;
    assert_eq!(world.info(&key(Kind::Pod, "a")).unwrap().generation, 7);
    let first = world.generation();
    // A status that nobody reads changes nothing.
    let touched = pod("a", 9, |pod| pod["status"]["conditions"] = json!([{"type": "Ready"}]));
    let world = running.tell(Kind::Pod, 9, Update::Is(Kind::Pod, seen(Kind::Pod, touched))).await;
    assert_eq!((world.info(&key(Kind::Pod, "a")).unwrap().generation, world.generation()), (7, first));
    let moved = pod("a", 11, |pod| pod["status"]["podIPs"] = json!([{"ip": "10.0.0.8"}]));
    let world = running.tell(Kind::Pod, 11, Update::Is(Kind::Pod, seen(Kind::Pod, moved))).await;
    assert_eq!((world.info(&key(Kind::Pod, "a")).unwrap().generation, world.generation()), (11, first + 1));

    let of = |generation, version, path| {
        Update::Is(Kind::HttpRoute, seen(Kind::HttpRoute, route(generation, version, path)))
    };
    let world = running.tell(Kind::HttpRoute, 20, of(3, 20, "/a")).await;
    let info = world.info(&key(Kind::HttpRoute, "cart")).unwrap();
    assert_eq!((info.generation, info.source.as_str()), (3, "API server"));
    let world = running.tell(Kind::HttpRoute, 21, of(3, 21, "/a")).await;
    assert_eq!(world.info(&key(Kind::HttpRoute, "cart")).unwrap().generation, 3);
    // Removed and made again, it begins anew.
    let gone = Update::IsNot(Kind::HttpRoute, "HTTPRoute shop/cart".into(), 22);
    assert!(running.tell(Kind::HttpRoute, 22, gone).await.info(&key(Kind::HttpRoute, "cart")).is_none());
    let world = running.tell(Kind::HttpRoute, 23, of(1, 23, "/b")).await;
    assert_eq!(world.info(&key(Kind::HttpRoute, "cart")).unwrap().generation, 1);
}

#[tokio::test]
async fn listed_again_only_differences_count() {
    let mut running = running().await;
    let services = |names: &[(&str, u64)]| {
        let seen = |(name, version): &(&str, u64)| {
            let mut object = service(name, *version);
            object["spec"]["clusterIPs"] = json!([]);
            object["spec"]["clusterIP"] = json!("");
            seen(Kind::Service, object)
        };
        Update::Listed(Kind::Service, names.iter().map(seen).collect(), 0)
    };
    let world = running.tell(Kind::Service, 6, services(&[("a", 5), ("b", 6)])).await;
    let generation = world.generation();
    let world = running.tell(Kind::Service, 7, services(&[("a", 5), ("b", 6), ("c", 7)])).await;
    assert_eq!((world.objects_in_force(), world.generation()), (3, generation + 1));
    let world = running.tell(Kind::Service, 8, services(&[("d", 8), ("b", 6)])).await;
    assert!(world.object(&key(Kind::Service, "a")).is_none() && world.object(&key(Kind::Service, "b")).is_some());
    assert_eq!(world.objects_in_force(), 2);
}

#[tokio::test]
async fn a_bad_object_keeps_its_last_good_version() {
    let mut running = running().await;
    let of = |version, path| Update::Is(Kind::HttpRoute, seen(Kind::HttpRoute, route(1, version, path)));
    running.tell(Kind::HttpRoute, 20, of(20, "/a")).await;
    let world = running.tell(Kind::HttpRoute, 21, of(21, "no path")).await;
    let info = world.info(&key(Kind::HttpRoute, "cart")).unwrap();
    assert!(info.held_over);
    assert_eq!(world.errors().len(), 1);
    assert!(world.errors()[0].field.starts_with("spec.rules[0].matches[0].path"), "{:?}", world.errors());
    let Some(Object::Route(_)) = world.object(&key(Kind::HttpRoute, "cart")) else { panic!() };
    let gone = Update::IsNot(Kind::HttpRoute, "HTTPRoute shop/cart".into(), 22);
    let world = running.tell(Kind::HttpRoute, 22, gone).await;
    assert!(world.errors().is_empty() && world.info(&key(Kind::HttpRoute, "cart")).is_none());
}

/// What is asked for, by path and the part of the query that matters, and what is answered, in this order.
type Script = Arc<Mutex<VecDeque<(&'static str, u16, String)>>>;

/// An API server that answers by a script, then keeps silent.
fn scripted(script: &Script) -> Client {
    let script = Arc::clone(script);
    let answer = tower::service_fn(move |request: Request<Body>| {
        let next = script.lock().pop_front();
        async move {
            let Some((expected, status, body)) = next else { return std::future::pending().await };
            let asked = request.uri().to_string();
            assert!(asked.contains(expected), "{asked} is not {expected}");
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap(),
            )
        }
    });
    Client::new(answer, "default")
}

fn list(version: &str, more: &str, items: &[Value]) -> String {
    json!({"metadata": {"resourceVersion": version, "continue": more}, "items": items}).to_string()
}

fn events(events: &[(&str, Value)]) -> String {
    events.iter().map(|(kind, object)| format!("{}\n", json!({"type": kind, "object": object}))).collect()
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code})
}

async fn next(found: &mut mpsc::Receiver<Update>) -> String {
    match found.recv().await.unwrap() {
        Update::Listed(_, objects, _) => {
            let files: Vec<String> = objects.iter().map(|seen| format!("{}@{}", seen.file, seen.version)).collect();
            format!("listed {}", files.join(" "))
        }
        Update::Is(_, seen) => format!("is {}@{}", seen.file, seen.version),
        Update::IsNot(_, file, version) => format!("is not {file}@{version}"),
    }
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_and_lists_again_when_it_must() {
    let bookmark = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": "12"}});
    let script: Script = Arc::new(Mutex::new(VecDeque::from([
        ("/api/v1/services?&limit=500", 200, list("10", "page2", &[service("a", 3)])),
        ("continue=page2", 200, list("10", "", &[service("b", 4)])),
        ("resourceVersion=10", 200, events(&[("MODIFIED", service("a", 11)), ("BOOKMARK", bookmark)])),
        // It ended; then the API server is away, and comes back.
        ("resourceVersion=12", 503, status(503, "ServiceUnavailable").to_string()),
        ("resourceVersion=12", 200, events(&[("DELETED", service("b", 13)), ("ERROR", status(410, "Expired"))])),
        ("limit=500", 200, list("20", "", &[service("a", 11)])),
    ])));
    let (sender, mut found) = mpsc::channel(8);
    let reflector =
        tokio::spawn(reflector::run(scripted(&script), Resource::of(Kind::Service).unwrap(), Arc::default(), sender));
    assert_eq!(next(&mut found).await, "listed Service shop/a@3 Service shop/b@4");
    assert_eq!(next(&mut found).await, "is Service shop/a@11");
    assert_eq!(next(&mut found).await, "is not Service shop/b@13");
    assert_eq!(next(&mut found).await, "listed Service shop/a@11");
    drop(found);
    reflector.await.unwrap();
}

#[tokio::test]
async fn kinds_come_when_they_are_installed_and_older_versions_will_do() {
    let versions = |versions: &[&str]| {
        let versions: Vec<Value> = versions.iter().map(|version| json!({"version": version})).collect();
        json!({"kind": "APIGroup", "name": "gateway.networking.k8s.io", "versions": versions}).to_string()
    };
    let served = |names: &[&str]| {
        let names: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"kind": "APIResourceList", "resources": names}).to_string()
    };
    let script: Script = Arc::new(Mutex::new(VecDeque::from([
        ("/apis/gateway.networking.k8s.io", 404, status(404, "NotFound").to_string()),
        ("/apis/gateway.networking.k8s.io", 200, versions(&["v1", "v1alpha2"])),
        ("/apis/gateway.networking.k8s.io/v1?", 200, served(&["httproutes", "httproutes/status"])),
        ("/apis/gateway.networking.k8s.io/v1alpha2?", 200, served(&["tcproutes"])),
    ])));
    let (client, resource) = (scripted(&script), Resource::of(Kind::TcpRoute).unwrap());
    assert_eq!(resource.served(&client).await.unwrap(), None);
    assert_eq!(resource.served(&client).await.unwrap(), Some("v1alpha2"));
    assert!(script.lock().is_empty());
}
