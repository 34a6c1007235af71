use leno_proto::v1::{
    Destination, Endpoint, Endpoints, HttpRoutes, Inbound, Protocol, Resource, ResourceKind, ResourceName,
    ServiceTarget, destination::Target, inbound::Mode, resource::Body, weighted_backend,
};

use super::*;
use crate::{
    model::{Generations, MeshSettings},
    sources::yaml,
};

mod addressed;
mod inbound_policy;
mod mesh_binding;
mod policy;
mod refused;

pub(crate) fn world(yaml: &str) -> World {
    world_with(MeshSettings::strict("cluster.local"), yaml)
}

fn world_with(settings: MeshSettings, text: &str) -> World {
    let yaml::Contents { documents, unreadable, .. } = yaml::documents(&"test.yaml".into(), text, &yaml::Known::new());
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
fn hints_say_which_zone_an_endpoint_serves_if_all_that_are_ready_have_one() {
    let hinted = |last: &str| {
        let slice = format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: shop-v2-1, namespace: web, labels: {{kubernetes.io/service-name: shop-v2}}}}
addressType: IPv4
ports: [{{name: '', port: 8080}}]
endpoints:
- {{addresses: [10.1.0.5], zone: z1, hints: {{forZones: [{{name: z2}}]}}}}
- {{addresses: [10.1.0.6], zone: z1, hints: {{forZones: [{{name: z3}}, {{name: z1}}], forNodes: [{{name: n}}]}}}}
- {{addresses: [10.1.0.7], zone: z4, conditions: {{ready: false, serving: true, terminating: true}}}}
- {last}
"
        );
        let found = endpoints(&shop(&slice), "web/shop-v2:80").endpoints;
        found.iter().map(|endpoint| endpoint.zone.clone()).collect::<Vec<_>>()
    };
    assert_eq!(hinted("{addresses: [10.1.0.8], zone: z2, hints: {forZones: [{name: z5}]}}"), ["z2", "z1", "z4", "z5"]);
    assert_eq!(hinted("{addresses: [10.1.0.8], zone: z2}"), ["z1", "z1", "z4", "z2"]);
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
    let of_pod = inbound(&world, "web", "shop-b");
    assert_eq!((of_pod.mode(), of_pod.mode_origin.unwrap().kind.as_str()), (Mode::Permissive, "Pod"));
    assert_eq!(own.mode_origin, None, "the mesh's default");
    let unknown = inbound(&world, "web", "nobody");
    assert_eq!((unknown.mode(), unknown.ports.len()), (Mode::Strict, 0));
}

/// An HTTPRoute in `namespace`, on Service web/shop, with rules as YAML flow.
fn route(namespace: &str, name: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: shop, namespace: web, port: 80}}]\n  rules: {rules}\n"
    )
}

fn to(weight: u32) -> String {
    format!("backendRefs: [{{name: shop, namespace: web, port: 80, weight: {weight}}}]")
}

fn shop_rules(world: &World, namespace: &str) -> Vec<String> {
    rules(service(world, namespace, "10.0.0.1:80").http.as_ref().unwrap())
}

#[test]
fn matches_stand_in_the_order_of_precedence() {
    let matches = [
        "{}",
        "{headers: [{name: a, value: x}, {name: b, value: x}]}",
        "{path: {type: RegularExpression, value: /r.*}}",
        "{path: {value: /a}}",
        "{path: {value: /a/b}}",
        "{path: {value: /a}, queryParams: [{name: q, value: x}]}",
        "{path: {value: /a/}, headers: [{name: h, value: x}]}",
        "{path: {value: /a}, method: GET}",
        "{path: {type: Exact, value: /a}}",
        "{path: {type: Exact, value: /}}",
        "{path: {value: /}, method: GET}",
    ];
    let expected = [
        r#"Exact("/a") -> web/shop:80=8"#,
        r#"Exact("/") -> web/shop:80=9"#,
        r#"Prefix("/a/b") -> web/shop:80=4"#,
        r#"Prefix("/a") GET -> web/shop:80=7"#,
        r#"Prefix("/a") h -> web/shop:80=6"#,
        r#"Prefix("/a") ?q -> web/shop:80=5"#,
        r#"Prefix("/a") -> web/shop:80=3"#,
        r#"Regex("/r.*") -> web/shop:80=2"#,
        "GET -> web/shop:80=10",
        "a b -> web/shop:80=1",
        "-> web/shop:80=0",
    ];
    let rules: Vec<String> =
        matches.iter().zip(0..).map(|(one, weight)| format!("{{matches: [{one}], {}}}", to(weight))).collect();
    let one_route = shop(&route("web", "r", &format!("[{}]", rules.join(", "))));
    assert_eq!(shop_rules(&one_route, "any"), expected);
    // The same from many routes.
    let many: String =
        rules.iter().zip(0..).map(|(rule, n): (_, u32)| route("web", &format!("r{n}"), &format!("[{rule}]"))).collect();
    assert_eq!(shop_rules(&shop(&many), "any"), expected);
}

#[test]
fn among_equals_the_older_route_then_its_name_then_its_order() {
    let dated = |name: &str, created: &str, weight: u32| {
        route("web", name, &format!("[{{{}}}, {{{}}}]", to(weight), to(weight + 1)))
            .replace("namespace: web}\n", &format!("namespace: web{created}}}\n"))
    };
    let routes = [
        dated("d", "", 40),
        dated("c", "", 30),
        dated("b", ", creationTimestamp: 2026-02-01T00:00:00Z", 20),
        dated("a", ", creationTimestamp: 2026-03-01T00:00:00Z", 10),
    ]
    .concat();
    let expected = [20, 21, 10, 11, 30, 31, 40, 41].map(|weight| format!("-> web/shop:80={weight}"));
    assert_eq!(shop_rules(&shop(&routes), "any"), expected);
}

#[test]
fn a_consumer_route_holds_for_its_own_namespace_and_alone() {
    let producer = route("web", "producer", &format!("[{{{}}}]", to(1)));
    let consumer = route("front", "consumer", &format!("[{{matches: [{{path: {{value: /x}}}}], {}}}]", to(2)));
    let world = shop(&(producer + &consumer));
    assert_eq!(shop_rules(&world, "other"), ["-> web/shop:80=1"]);
    assert_eq!(shop_rules(&world, "web"), ["-> web/shop:80=1"]);
    assert_eq!(shop_rules(&world, "front"), [r#"Prefix("/x") -> web/shop:80=2"#]);
}

#[test]
fn kinds_exclude_each_other_on_a_port() {
    let http = route("web", "http", &format!("[{{{}}}]", to(1)));
    let all_ports = route("web", "all", &format!("[{{{}}}]", to(2))).replace(", port: 80}]\n", "}]\n");
    let grpc = route("web", "grpc", "[{backendRefs: [{name: shop-v2, port: 80}]}]").replace("HTTPRoute", "GRPCRoute");
    let world = shop(&(http + &grpc + &all_ports));
    let target = service(&world, "any", "10.0.0.1:80");
    assert_eq!(target.protocol(), Protocol::Http2);
    assert_eq!(rules(target.http.as_ref().unwrap()), ["-> web/shop-v2:80=1"]);
    assert!(target.http.unwrap().rules[0].r#match.as_ref().unwrap().grpc);
    // What its backends speak is for them to say: gRPC's clients speak HTTP/2, and others of the same port may not.
    assert_eq!(endpoints(&world, "web/shop-v2:80").protocol(), Protocol::Detect);
    assert_eq!(endpoints(&world, "web/shop:80").protocol(), Protocol::Detect);
    let accepted = |name: &str| {
        let object = world.objects().into_iter().find(|object| &*object.key.name == name).unwrap();
        let condition = object.conditions.into_iter().find(|condition| condition.kind == "Accepted").unwrap();
        format!("{} {} {}", condition.status, condition.reason, condition.message)
    };
    assert_eq!(accepted("http"), "false Conflicted port 80: GRPCRoute web/grpc takes precedence");
    assert_eq!(accepted("all"), "true Accepted not in force on port 80: GRPCRoute web/grpc takes precedence");
    assert_eq!(accepted("grpc"), "true Accepted ");
    assert_eq!(rules(&service(&world, "any", "10.0.0.1:9090").http.unwrap()), ["-> web/shop:80=2"]);
}

#[test]
fn grpc_methods_become_paths_in_order() {
    let methods = [
        "{method: {method: Get}}",
        "{}",
        "{method: {service: a.B}}",
        "{method: {type: RegularExpression, service: 'a.*', method: 'G.t'}}",
        "{method: {service: a.B, method: Get}}",
        "{method: {service: a.B, method: Get}, headers: [{name: X-Y, value: z}]}",
    ];
    let rules_text: Vec<String> =
        methods.iter().zip(0..).map(|(one, weight)| format!("{{matches: [{one}], {}}}", to(weight))).collect();
    let grpc = route("web", "g", &format!("[{}]", rules_text.join(", "))).replace("HTTPRoute", "GRPCRoute");
    assert_eq!(
        shop_rules(&shop(&grpc), "any"),
        [
            r#"Exact("/a.B/Get") x-y -> web/shop:80=5"#,
            r#"Exact("/a.B/Get") -> web/shop:80=4"#,
            r#"Prefix("/a.B") -> web/shop:80=2"#,
            r#"Regex("/[^/]+/Get") -> web/shop:80=0"#,
            r#"Regex("/(?:a.*)/(?:G.t)") -> web/shop:80=3"#,
            "-> web/shop:80=1",
        ]
    );
}

#[test]
fn what_cannot_be_resolved_has_its_share() {
    let backends = "[{backendRefs: [{name: shop, port: 80}, {name: none, port: 80, weight: 2}, {name: shop, port: 81}, \
                    {group: x.io, kind: Bucket, name: b}, {name: shop, namespace: other, port: 80}]}]";
    let world = shop(&route("web", "r", backends));
    assert_eq!(
        shop_rules(&world, "any"),
        ["-> web/shop:80=1 invalid(BackendNotFound: Service web/none does not exist)=2 \
          invalid(BackendNotFound: Service web/shop has no port 81)=1 \
          invalid(InvalidKind: x.io/Bucket cannot be a backend)=1 \
          invalid(BackendNotFound: Service other/shop does not exist)=1"]
    );
    // It comes into being: whoever holds the destination must look again.
    let (_, topics) = get(&world, "any", ResourceKind::Destination, "10.0.0.1:80");
    assert!(topics.contains(&Topic::Service("web/none".into())));
}

#[test]
fn routes_without_rules_that_match_leave_no_default() {
    let world = shop(&route("web", "r", "[]"));
    let routes = service(&world, "any", "10.0.0.1:80").http.unwrap();
    assert_eq!((routes.rules.len(), routes.actions.len()), (0, 0));
}

#[test]
fn tls_names_and_tcp() {
    let tls = |name: &str, hosts: &str, backend: &str| {
        route("web", name, &format!("[{{backendRefs: [{{name: {backend}, port: 80}}]}}]\n  hostnames: {hosts}"))
            .replace("HTTPRoute", "TLSRoute")
    };
    let world = shop(
        &(tls("a", "['*.example.com', b.example.com]", "shop")
            + &tls("b", "['*.b.example.com', b.example.com]", "shop-v2")),
    );
    let target = service(&world, "any", "10.0.0.1:80");
    assert_eq!(target.protocol(), Protocol::Tls);
    assert!(target.http.is_none() && target.tcp.is_none());
    let told: Vec<_> = target
        .tls
        .unwrap()
        .rules
        .into_iter()
        .map(|rule| {
            let route = rule.route.unwrap().origin.unwrap().route.unwrap().name;
            format!("{} {route}", rule.server_names.join(","))
        })
        .collect();
    assert_eq!(told, ["b.example.com a", "b.example.com b", "*.b.example.com b", "*.example.com a"]);

    let tcp = |name: &str| {
        route("web", name, "[{backendRefs: [{name: shop-v2, port: 80}]}]").replace("HTTPRoute", "TCPRoute")
    };
    let world = shop(&(tcp("first") + &tcp("second")));
    let target = service(&world, "any", "10.0.0.1:80");
    assert_eq!(target.protocol(), Protocol::Tcp);
    assert_eq!(target.tcp.unwrap().origin.unwrap().route.unwrap().name, "first");
}

#[test]
fn addresses_of_pods_are_workloads_and_strangers_are_outside() {
    let settings =
        MeshSettings { mesh_networks: vec!["10.0.0.0/8".parse().unwrap()], ..MeshSettings::strict("cluster.local") };
    let world = world_with(settings, SHOP);
    let at = |key: &str| destination(&world, "any", key).map(|destination| destination.target.unwrap());
    let workload = |key: &str| match at(key) {
        Some(Target::Workload(backend)) => backend.key,
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(workload("10.1.0.1:8080"), "web/pod/shop-a:8080");
    assert_eq!(workload("[fd01::1]:1234"), "web/pod/shop-a/fd01::1:1234");
    assert_eq!(workload("[::ffff:10.1.0.1]:8080"), "web/pod/shop-a:8080");
    let own = endpoints(&world, "web/pod/shop-a:8080");
    assert_eq!(own.endpoints[0].address, "10.1.0.1:8080");
    assert_eq!(own.endpoints[0].identity, "spiffe://cluster.local/ns/web/sa/shop");
    assert_eq!(endpoints(&world, "web/pod/shop-a:9999").protocol(), Protocol::Http);
    // Nobody there, inside the mesh; a port that the Service does not have.
    assert_eq!(at("10.9.9.9:80"), None);
    assert_eq!(at("10.0.0.1:81"), None);
    assert_eq!(at("shop.web:81"), None);
    for outside in
        ["192.0.2.1:443", "example.com:443", "a.b.c.d:80", "10.1.0.4:8080", "nonsense", ":", "x:0", "shop.web:99999"]
    {
        assert!(matches!(at(outside), Some(Target::Outside(_))), "{outside}");
    }
}

#[test]
fn pods_that_share_an_address_are_told_apart_by_port() {
    let pod = |name: &str, port: u16| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: 127.0.0.1}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: s}}}}\n\
             addressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{{addresses: [127.0.0.1], targetRef: {{kind: Pod, name: {name}}}}}]\n"
        )
    };
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n";
    let world = world(&format!("{text}{}{}", pod("a", 1001), pod("b", 1002)));
    let told: Vec<_> =
        endpoints(&world, "default/s:80").endpoints.into_iter().map(|e| (e.address, e.workload)).collect();
    assert_eq!(told, [("127.0.0.1:1001".into(), "a".into()), ("127.0.0.1:1002".into(), "b".into())]);
    let at = |key: &str| destination(&world, "any", key).unwrap().target.unwrap();
    assert!(matches!(at("127.0.0.1:1002"), Target::Workload(backend) if backend.key == "default/pod/b:1002"));
    assert!(matches!(at("127.0.0.1:1003"), Target::Outside(_)));
    let ports: Vec<_> = inbound(&world, "default", "b").ports.iter().map(|port| port.port).collect();
    assert_eq!(ports, [1002]);
}

const HEADLESS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: ext}
spec: {type: ExternalName, externalName: api.example.com, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: any}
spec: {type: ExternalName, externalName: api.example.com.}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{port: 5432, appProtocol: postgresql}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: "", port: 5432}]
endpoints: [{addresses: [10.1.0.1], hostname: db-0, targetRef: {kind: Pod, name: db-0}}]
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, annotations: {leno.dev/inject: disabled}}
status: {podIP: 10.1.0.1}
"#;

#[test]
fn names_outside_and_headless() {
    let world = world(HEADLESS);
    let host = |key: &str| endpoints(&world, key).host_name.map(|name| format!("{}:{}", name.host, name.port));
    assert_eq!(host("default/ext:80").as_deref(), Some("api.example.com:8080"));
    assert_eq!(host("default/any:443").as_deref(), Some("api.example.com:443"));
    assert_eq!(service(&world, "default", "any:443").port, 443);
    let target = service(&world, "default", "db:5432");
    assert_eq!(target.protocol(), Protocol::Tcp);
    assert!(target.http.is_none());
    let one = destination(&world, "x", "db-0.db.default.svc.cluster.local:5432").unwrap().target.unwrap();
    assert!(matches!(one, Target::Workload(backend) if backend.key == "default/pod/db-0:5432"));
    // Not injected: no identity to prove.
    assert_eq!(endpoints(&world, "default/db:5432").endpoints[0].identity, "");
    let limits = "---\napiVersion: leno.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {name: p}\n\
                  spec: {targetRefs: [{group: \"\", kind: Service, name: db}], limits: {connections: 5}}\n";
    assert_eq!(endpoints(&world, "default/pod/db-0:5432").policy, None);
    // Names of it lead to its Pods, at ports of theirs, as they do in DNS.
    for name in ["db", "db-0.db"] {
        let alias = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: alias}}\n\
             spec: {{type: ExternalName, externalName: {name}.default.svc.cluster.local}}\n"
        );
        let found = endpoints(&self::world(&format!("{HEADLESS}{alias}")), "default/alias:15432").endpoints;
        assert_eq!(found.iter().map(|one| one.address.as_str()).collect::<Vec<_>>(), ["10.1.0.1:15432"], "{name}");
    }
    let world = self::world(&format!("{HEADLESS}{limits}"));
    let policy = endpoints(&world, "default/pod/db-0:5432").policy.unwrap();
    assert_eq!(policy.limits.unwrap().connections, Some(5));
    assert_eq!(endpoints(&world, "default/pod/db-0:5433").policy, None, "no port of the Service's");
}

#[test]
fn an_external_name_of_the_cluster_itself_is_the_service_that_it_names() {
    let alias = |(name, to, target): &(&str, &str, u16)| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{type: ExternalName, externalName: {to}, ports: [{{port: 8000, targetPort: {target}}}]}}\n"
        )
    };
    let aliases = [
        ("alias", "shop.web.svc.cluster.local.", 80),
        ("again", "alias.default.svc.cluster.local", 8000),
        ("nobody", "shop.elsewhere.svc.cluster.local", 80),
        ("itself", "itself.default.svc.cluster.local", 8000),
        ("other-domain", "shop.web.svc.k8s.example", 80),
    ];
    let text: String = aliases.iter().map(alias).collect();
    let world = shop(&text);
    let direct = endpoints(&world, "web/shop:80").endpoints;
    assert!(direct.iter().any(|endpoint| !endpoint.identity.is_empty()));
    assert_eq!(endpoints(&world, "default/alias:8000").endpoints, direct);
    assert_eq!(endpoints(&world, "default/again:8000").endpoints, direct);
    for nobody in ["nobody", "itself"] {
        let found = endpoints(&world, &format!("default/{nobody}:8000"));
        assert!(found.endpoints.is_empty() && found.host_name.is_none(), "{nobody}: {found:?}");
    }
    assert!(endpoints(&world, "default/other-domain:8000").host_name.is_some());
    let limits = |service: &str, most: u32| {
        format!(
            "---\napiVersion: leno.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: {service}-p, namespace: {}}}\n\
             spec: {{targetRefs: [{{group: \"\", kind: Service, name: {service}}}], limits: {{connections: {most}}}}}\n",
            if service == "shop" { "web" } else { "default" }
        )
    };
    let most = |policies: &str| {
        let policy = endpoints(&shop(&format!("{text}{policies}")), "default/again:8000").policy;
        policy.and_then(|policy| policy.limits?.connections)
    };
    assert_eq!(most(&limits("shop", 5)), Some(5), "what it leads to is what is called");
    assert_eq!(most(&(limits("shop", 5) + &limits("again", 6))), Some(6), "unless it says so itself");
    let name = ResourceName { kind: ResourceKind::Endpoints.into(), key: "default/again:8000".to_owned() };
    let (_, topics) = compile(&world, &client("web"), &name);
    assert!(topics.contains(&Topic::Service("web/shop".into())), "{topics:?}");

    let settings = MeshSettings { cluster_domain: "k8s.example".into(), ..MeshSettings::strict("cluster.local") };
    let world = world_with(settings, &format!("{SHOP}{text}"));
    assert_eq!(endpoints(&world, "default/other-domain:8000").endpoints, direct);
    assert_eq!(service(&world, "any", "shop.web.svc.k8s.example:80").service.unwrap().name, "shop");
}

#[test]
fn namespace_and_pod_decide_on_inbound() {
    let world =
        shop("apiVersion: v1\nkind: Namespace\nmetadata: {name: web, labels: {leno.dev/inbound: permissive}}\n");
    let of_namespace = inbound(&world, "web", "shop-a");
    assert_eq!((of_namespace.mode(), of_namespace.mode_origin.unwrap().kind.as_str()), (Mode::Permissive, "Namespace"));
    let name = ResourceName { kind: ResourceKind::Inbound.into(), key: String::new() };
    let (_, topics) = compile(&world, &client("web"), &name);
    assert!(topics.contains(&Topic::Namespace("web".into())));
}

#[test]
fn filters_are_never_skipped() {
    let world = shop(&route(
        "web",
        "r",
        "[{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}, \
         {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: b}], remove: [X-C]}}], \
         backendRefs: [{name: shop, port: 80}]}, \
         {matches: [{path: {value: /r}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, \
         path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]}]",
    ));
    let routes = service(&world, "any", "10.0.0.1:80").http.unwrap();
    let filters: Vec<_> =
        routes.actions.iter().flat_map(|action| &action.filters).map(|filter| filter.kind.clone().unwrap()).collect();
    use leno_proto::v1::http_filter::Kind;
    let [Kind::Unsupported(unsupported), Kind::RequestHeaders(headers), Kind::Redirect(redirect)] = filters.as_slice()
    else {
        panic!("{filters:?}")
    };
    assert_eq!(unsupported, "ExternalAuth");
    assert_eq!((headers.set[0].name.as_str(), headers.remove[0].as_str()), ("x-a", "x-c"));
    assert_eq!((redirect.scheme.as_str(), redirect.port, redirect.status), ("https", 443, 302));
}

#[test]
fn a_version_is_the_content_and_nothing_else() {
    let version = |world: &World| get(world, "any", ResourceKind::Destination, "10.0.0.1:80").0.unwrap().version;
    let plain = shop("");
    assert_eq!(version(&plain), version(&shop("# formatted otherwise\n")));
    assert_ne!(version(&plain), version(&shop(&route("web", "r", &format!("[{{{}}}]", to(1))))));
    // Pinned: it must not change with a new build, or every proxy is sent everything again.
    assert_eq!(version(&plain), "a637f1ef1d8965b32739c581d2d287bf");
}

#[test]
fn a_name_of_the_mesh_is_never_looked_up_outside() {
    let world = world(
        "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, spec: {ports: [{port: 80}]}}\n",
    );
    let found = |namespace, key| {
        let (resource, _) = get(&world, namespace, ResourceKind::Destination, key);
        match resource?.body? {
            Body::Destination(Destination { target, .. }) => target,
            _ => None,
        }
    };
    assert!(matches!(found("web", "cart.shop:80"), Some(Target::Service(_))));
    for key in ["nowhere.shop:80", "nowhere.web:80", "cart.shop.svc.cluster.local:81", "x.y.svc:80"] {
        assert_eq!(found("web", key), None, "{key}");
    }
    for key in ["example.org:443", "localhost:80", "api.example.org:443"] {
        assert_eq!(found("web", key), Some(Target::Outside(Default::default())), "{key}");
    }
}

#[test]
fn a_namespace_that_was_ever_known_stays_the_meshs() {
    let all = "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop}\nstatus: {podIP: 10.1.0.1}\n---\n\
               apiVersion: v1\nkind: Namespace\nmetadata: {name: office}\n";
    let found = |world: &World, key| get(world, "web", ResourceKind::Destination, key).0.map(|resource| resource.body);
    let up = world(all);
    let gone = up.apply(Vec::new(), Vec::new());
    let restarted = World::empty(up.settings.clone(), gone.generations()).apply(Vec::new(), Vec::new());
    for world in [&up, &gone] {
        assert_eq!((found(world, "cart.shop:80"), found(world, "cart.office:80")), (None, None));
    }
    // Of Pods that are gone nothing is on record.
    assert_eq!(found(&restarted, "cart.office:80"), None);
    // A name that could be any domain's is DNS's, unless it is written as cluster DNS has it.
    assert!(found(&gone, "cart.shpo:80").is_some());
    for key in ["cart.shpo.svc:80", "cart.shpo.svc.cluster.local:80"] {
        assert_eq!(found(&gone, key), None, "{key}");
    }
    // Who was told that it is DNS's is told when that is no longer so.
    let (_, topics) = get(&gone, "web", ResourceKind::Destination, "cart.shpo:80");
    let ids: Vec<_> = topics.iter().map(Topic::id).collect();
    let more = gone.apply(world(&all.replace("namespace: shop", "namespace: shpo")).last_good().collect(), Vec::new());
    assert!(more.changed_since(&ids, gone.generation()));
    assert_eq!(found(&more, "cart.shpo:80"), None);
}
