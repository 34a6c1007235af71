use leno_proto::v1::{
    Destination, Endpoints, HttpRoutes, Inbound, Protocol, Resource, ResourceKind, ResourceName, ServiceTarget,
    destination::Target, inbound::Mode, resource::Body, weighted_backend,
};

use super::*;
use crate::{
    model::{Generations, MeshSettings},
    sources::yaml,
};

pub(crate) fn world(yaml: &str) -> World {
    world_with(MeshSettings::strict("cluster.local"), yaml)
}

fn world_with(settings: MeshSettings, text: &str) -> World {
    let (documents, unreadable) = yaml::documents(&"test.yaml".into(), text);
    let world = World::empty(settings, Generations::default()).apply(documents, unreadable);
    assert_eq!(world.errors(), []);
    world
}

fn client(namespace: &str) -> Subscriber {
    Subscriber { identity: SpiffeId::new("cluster.local", namespace, "client").unwrap(), workload: "client".to_owned() }
}

fn get(world: &World, namespace: &str, kind: ResourceKind, key: &str) -> (Option<Resource>, Vec<Topic>) {
    compile(world, &client(namespace), &ResourceName { kind: kind.into(), key: key.to_owned() })
}

fn destination(world: &World, namespace: &str, key: &str) -> Option<Destination> {
    match get(world, namespace, ResourceKind::Destination, key).0?.body {
        Some(Body::Destination(destination)) => Some(destination),
        other => panic!("{other:?}"),
    }
}

fn service(world: &World, namespace: &str, key: &str) -> ServiceTarget {
    match destination(world, namespace, key).unwrap().target {
        Some(Target::Service(target)) => target,
        other => panic!("{other:?}"),
    }
}

fn endpoints(world: &World, key: &str) -> Endpoints {
    match get(world, "any", ResourceKind::Endpoints, key).0.unwrap().body {
        Some(Body::Endpoints(endpoints)) => endpoints,
        other => panic!("{other:?}"),
    }
}

fn inbound(world: &World, namespace: &str, workload: &str) -> Inbound {
    let subscriber = Subscriber { workload: workload.to_owned(), ..client(namespace) };
    let name = ResourceName { kind: ResourceKind::Inbound.into(), key: String::new() };
    match compile(world, &subscriber, &name).0.unwrap().body {
        Some(Body::Inbound(inbound)) => inbound,
        other => panic!("{other:?}"),
    }
}

/// "backend=weight" of each rule, by what it matches.
fn rules(routes: &HttpRoutes) -> Vec<String> {
    routes
        .rules
        .iter()
        .map(|rule| {
            let action = &routes.actions[rule.action as usize];
            let backends: Vec<_> = action
                .backends
                .iter()
                .map(|backend| match &backend.kind {
                    Some(weighted_backend::Kind::Backend(to)) => format!("{}={}", to.key, backend.weight),
                    Some(weighted_backend::Kind::Invalid(why)) => format!("invalid({why})={}", backend.weight),
                    None => "?".to_owned(),
                })
                .collect();
            let one = rule.r#match.clone().unwrap();
            let path = one.path.and_then(|path| path.kind).map(|kind| format!("{kind:?} ")).unwrap_or_default();
            let method = if one.method.is_empty() { String::new() } else { format!("{} ", one.method) };
            let headers: Vec<_> = one.headers.iter().map(|header| format!("{} ", header.name)).collect();
            let query: Vec<_> = one.query.iter().map(|query| format!("?{} ", query.name)).collect();
            format!("{path}{method}{}{}-> {}", headers.concat(), query.concat(), backends.join(" "))
        })
        .collect()
}

const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: web}
spec:
  clusterIP: 10.0.0.1
  clusterIPs: [10.0.0.1, "fd00::1"]
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: metrics, port: 9090, targetPort: metrics, appProtocol: http}
---
apiVersion: v1
kind: Service
metadata: {name: shop-v2, namespace: web}
spec: {clusterIP: 10.0.0.2, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: shop-1, namespace: web, labels: {kubernetes.io/service-name: shop}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: metrics, port: 9999}]
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: shop-a}, zone: z1}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: shop-b}, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.1.0.3], conditions: {ready: false}}
- {addresses: [10.1.0.4]}
---
apiVersion: v1
kind: Pod
metadata: {name: shop-a, namespace: web}
spec: {serviceAccountName: shop}
status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: "fd01::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shop-b, namespace: web, annotations: {leno.dev/inbound: permissive}}
status: {podIPs: [{ip: 10.1.0.2}]}
"#;

fn shop(more: &str) -> World {
    world(&format!("{SHOP}---\n{more}"))
}

#[test]
fn a_service_without_routes_sends_everything_to_its_own_endpoints() {
    let world = shop("");
    for key in ["10.0.0.1:80", "[fd00::1]:80", "shop.web:80", "shop.web.svc:80", "shop.web.svc.cluster.local.:80"] {
        let target = service(&world, "other", key);
        assert_eq!((target.port, target.protocol()), (80, Protocol::Detect), "{key}");
        assert_eq!(rules(target.http.as_ref().unwrap()), ["-> web/shop:80=1"], "{key}");
        assert_eq!(target.tcp.unwrap().backends.len(), 1, "{key}");
    }
    assert_eq!(service(&world, "web", "shop:80").port, 80);
    let metrics = service(&world, "other", "shop.web:9090");
    assert_eq!(metrics.protocol(), Protocol::Http);
    assert!(metrics.tcp.is_none());
}

#[test]
fn endpoints_have_state_identity_and_the_port_of_their_slice() {
    let world = shop("");
    let found = endpoints(&world, "web/shop:80");
    let told: Vec<_> = found
        .endpoints
        .iter()
        .map(|e| format!("{} {:?} {} {} {}", e.address, e.state(), e.identity, e.zone, e.workload))
        .collect();
    assert_eq!(
        told,
        [
            "10.1.0.1:8080 Ready spiffe://cluster.local/ns/web/sa/shop z1 shop-a",
            "10.1.0.2:8080 Draining spiffe://cluster.local/ns/web/sa/default  shop-b",
            "10.1.0.4:8080 Ready   ",
        ]
    );
    assert_eq!(endpoints(&world, "web/shop:9090").endpoints[0].address, "10.1.0.1:9999");
    assert_eq!(endpoints(&world, "web/shop:9090").protocol(), Protocol::Http);
    assert_eq!(endpoints(&world, "web/shop-v2:80").endpoints, []);
    for key in ["web/shop:81", "web/none:80", "web/shop", "shop:80", "a/b/c:1", ":1", ""] {
        assert_eq!(get(&world, "web", ResourceKind::Endpoints, key).0, None, "{key}");
    }
}

#[test]
fn an_http_route_takes_the_place_of_the_default() {
    let world = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: web}
spec:
  parentRefs: [{group: "", kind: Service, name: shop, port: 80}]
  rules:
  - matches: [{path: {value: /api}}]
    backendRefs: [{name: shop, port: 80, weight: 90}, {name: shop-v2, port: 80, weight: 10}]
    timeouts: {request: 1s500ms}
"#,
    );
    let target = service(&world, "other", "10.0.0.1:80");
    assert_eq!(target.protocol(), Protocol::Http);
    assert!(target.tcp.is_none());
    let routes = target.http.unwrap();
    assert_eq!(rules(&routes), [r#"Prefix("/api") -> web/shop:80=90 web/shop-v2:80=10"#]);
    let timeout = routes.actions[0].request_timeout.unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (1, 500_000_000));
    // The other port keeps its default.
    assert_eq!(rules(&service(&world, "other", "10.0.0.1:9090").http.unwrap()), ["-> web/shop:9090=1"]);
    let (resource, _) = get(&world, "other", ResourceKind::Destination, "10.0.0.1:80");
    let origins: Vec<_> = resource.unwrap().origins.into_iter().map(|origin| origin.object.unwrap().name).collect();
    assert_eq!(origins, ["shop", "shop-v2", "split"]);
}

#[test]
fn inbound_says_mode_and_ports() {
    let world = shop("");
    let own = inbound(&world, "web", "shop-a");
    let ports: Vec<_> = own.ports.iter().map(|port| (port.port, port.protocol())).collect();
    assert_eq!((own.mode(), ports), (Mode::Strict, vec![(8080, Protocol::Detect), (9999, Protocol::Http)]));
    assert_eq!(inbound(&world, "web", "shop-b").mode(), Mode::Permissive);
    let unknown = inbound(&world, "web", "nobody");
    assert_eq!((unknown.mode(), unknown.ports.len()), (Mode::Strict, 0));
}
