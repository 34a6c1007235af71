use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use leno_proto::v1::{
    BackendRef, Delta, Destination, Endpoint, Endpoints, EndpointsDelta, HttpAction, HttpMatch, HttpRule, Outside,
    PathMatch, Resource, ServiceTarget, WeightedBackend, http_filter, path_match, weighted_backend,
};
use proptest::prelude::*;

use super::*;
use crate::policy::Target;

mod agreement;
mod inbound;

const CART: &str = "10.0.0.1:80";
const BACKEND: &str = "shop/cart:80";

pub(in crate::policy) fn name(kind: ResourceKind, key: &str) -> ResourceName {
    ResourceName { kind: kind.into(), key: key.to_owned() }
}

pub(in crate::policy) fn resource(kind: ResourceKind, key: &str, version: &str, body: Body) -> Resource {
    Resource { name: Some(name(kind, key)), version: version.to_owned(), origins: Vec::new(), body: Some(body) }
}

pub(in crate::policy) fn to_backends(weights: &[(u32, &str)]) -> Vec<WeightedBackend> {
    let backend = |(weight, key): &(u32, &str)| WeightedBackend {
        weight: *weight,
        kind: Some(weighted_backend::Kind::Backend(BackendRef { key: (*key).to_owned() })),
        filters: Vec::new(),
        session_persistence: None,
    };
    weights.iter().map(backend).collect()
}

/// A service port with one rule for every path.
pub(in crate::policy) fn service(backends: Vec<WeightedBackend>) -> Destination {
    let action = HttpAction { backends, ..HttpAction::default() };
    routed(vec![HttpRule::default()], vec![action])
}

pub(in crate::policy) fn routed(rules: Vec<HttpRule>, actions: Vec<HttpAction>) -> Destination {
    Destination {
        target: Some(v1::destination::Target::Service(ServiceTarget {
            service: Some(v1::ObjectRef { kind: "Service".into(), namespace: "shop".into(), name: "cart".into() }),
            port: 80,
            http: Some(v1::HttpRoutes { rules, actions }),
            ..ServiceTarget::default()
        })),
    }
}

pub(in crate::policy) fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.to_owned(),
        identity: "spiffe://cluster.local/ns/shop/sa/cart".to_owned(),
        weight: 1,
        state: v1::endpoint::State::Ready.into(),
        ..Endpoint::default()
    }
}

pub(in crate::policy) fn endpoints(addresses: &[&str]) -> Endpoints {
    Endpoints { endpoints: addresses.iter().map(|address| endpoint(address)).collect(), ..Endpoints::default() }
}

pub(in crate::policy) fn delta(changed: Vec<Resource>, removed: Vec<ResourceName>) -> Delta {
    Delta { nonce: 1, generation: 7, changed, removed }
}

/// Applies to `store`, everything wanted and every anchor trusted.
pub(in crate::policy) fn take(store: &Store, changed: Vec<Resource>, removed: Vec<ResourceName>) -> Vec<Rejection> {
    apply(&store.snapshot(), delta(changed, removed), |_| true, &mut |_, _| Ok(())).commit(store)
}

fn cart(version: &str, destination: Destination) -> Resource {
    resource(ResourceKind::Destination, CART, version, Body::Destination(destination))
}

fn cart_endpoints(version: &str, body: Body) -> Resource {
    resource(ResourceKind::Endpoints, BACKEND, version, body)
}

fn addresses(store: &Store) -> Vec<String> {
    let snapshot = store.snapshot();
    snapshot.backends[BACKEND].endpoints.load().endpoints.iter().map(|e| e.address.to_string()).collect()
}

#[test]
fn a_destination_comes_with_its_backends_and_keeps_them() {
    let (store, _asks) = Store::new();
    let first = vec![
        cart_endpoints("e1", Body::Endpoints(endpoints(&["10.1.0.1:8080"]))),
        cart("d1", service(to_backends(&[(1, BACKEND)]))),
    ];
    assert_eq!(take(&store, first, vec![]), []);
    let backend = store.snapshot().backends[BACKEND].clone();
    assert!(backend.is_known());
    assert_eq!(store.snapshot().generation, 7);
    // A second destination and a new version share the backend and its endpoints.
    let second = vec![
        cart("d2", service(to_backends(&[(90, BACKEND), (10, "shop/new:80")]))),
        resource(
            ResourceKind::Destination,
            "cart.shop:80",
            "n1",
            Body::Destination(service(to_backends(&[(1, BACKEND)]))),
        ),
    ];
    assert_eq!(take(&store, second, vec![]), []);
    let snapshot = store.snapshot();
    assert!(Arc::ptr_eq(&snapshot.backends[BACKEND], &backend));
    assert!(!snapshot.backends["shop/new:80"].is_known());
    assert_eq!(snapshot.provenance[&name(ResourceKind::Destination, CART)].version, "d2");
    // The last destination that names a backend takes it along.
    let gone = vec![name(ResourceKind::Destination, CART), name(ResourceKind::Destination, "cart.shop:80")];
    take(&store, vec![], gone);
    let snapshot = store.snapshot();
    assert!(snapshot.backends.is_empty() && snapshot.destinations.is_empty() && snapshot.provenance.is_empty());
}

#[test]
fn regular_expressions_are_bounded_in_sum() {
    let (store, _asks) = Store::new();
    let most = leno_proto::pattern::OF_RESOURCE.count;
    let rule = |n: usize| HttpRule {
        r#match: Some(HttpMatch {
            path: Some(PathMatch { kind: Some(path_match::Kind::Regex(format!("/{n}a+"))) }),
            ..HttpMatch::default()
        }),
        action: 0,
    };
    let routes = |count: usize, different: usize| {
        routed((0..count).map(|n| rule(n % different)).collect(), vec![HttpAction::default()])
    };
    assert_eq!(take(&store, vec![cart("d1", routes(most, most))], vec![]), []);
    assert_eq!(take(&store, vec![cart("d2", routes(4 * most, 8))], vec![]), [], "each is compiled once");
    let good = store.get(&CART.into()).unwrap();
    let rejected = take(&store, vec![cart("d3", routes(most + 1, most + 1))], vec![]);
    assert_eq!(rejected[0].field, format!("service.http.rules[{most}].match.path.regex"));
    let told = format!("there are more than {most} different regular");
    assert!(rejected[0].reason.starts_with(&told), "{}", rejected[0].reason);
    assert!(Arc::ptr_eq(&store.get(&CART.into()).unwrap(), &good));
}

#[test]
fn a_bad_resource_is_told_and_the_last_good_one_stays() {
    let (store, _asks) = Store::new();
    take(&store, vec![cart("d1", service(to_backends(&[(1, BACKEND)])))], vec![]);
    let good = store.get(&CART.into()).unwrap();
    let regex = |text: &str| HttpRule {
        r#match: Some(HttpMatch {
            path: Some(PathMatch { kind: Some(path_match::Kind::Regex(text.to_owned())) }),
            ..HttpMatch::default()
        }),
        action: 0,
    };
    let bad = routed(vec![regex("/ok"), regex("/(")], vec![HttpAction::default()]);
    let settings = Body::Settings(v1::Settings { mesh_networks: vec!["10.0.0.0/8".into()], ..Default::default() });
    let rejected = take(&store, vec![cart("d2", bad), resource(ResourceKind::Settings, "", "s1", settings)], vec![]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].name, Some(name(ResourceKind::Destination, CART)));
    assert_eq!(rejected[0].version, "d2");
    assert_eq!(rejected[0].field, "service.http.rules[1].match.path.regex");
    assert!(rejected[0].reason.contains("unclosed group"), "{}", rejected[0].reason);
    assert!(Arc::ptr_eq(&store.get(&CART.into()).unwrap(), &good), "the others are in force");
    assert!(store.snapshot().settings.is_some());
    assert_eq!(store.snapshot().provenance[&name(ResourceKind::Destination, CART)].version, "d1");
}

#[test]
fn fields_are_named_where_they_are() {
    let rule = |action| HttpRule { action, ..HttpRule::default() };
    let filtered = |kind| HttpAction { filters: vec![v1::HttpFilter { kind: Some(kind) }], ..HttpAction::default() };
    let header = |name: &str, value: &str| v1::HeaderModifier {
        set: vec![v1::Header { name: name.into(), value: value.into() }],
        ..Default::default()
    };
    let redirect = |redirect| filtered(http_filter::Kind::Redirect(redirect));
    for (destination, field) in [
        (Destination::default(), "target"),
        (routed(vec![rule(1)], vec![HttpAction::default()]), "service.http.rules[0].action"),
        (service(to_backends(&[(1, BACKEND), (1, "cart")])), "service.http.actions[0].backends[1].backend.key"),
        (service(vec![WeightedBackend::default()]), "service.http.actions[0].backends[0].kind"),
        (
            routed(vec![], vec![filtered(http_filter::Kind::RequestHeaders(header("a b", "")))]),
            "service.http.actions[0].filters[0].request_headers.set[0].name",
        ),
        (
            routed(vec![], vec![filtered(http_filter::Kind::ResponseHeaders(header("Transfer-Encoding", "chunked")))]),
            "service.http.actions[0].filters[0].response_headers.set[0].name",
        ),
        (
            routed(vec![], vec![filtered(http_filter::Kind::RequestHeaders(header("x", "a\r\nb: c")))]),
            "service.http.actions[0].filters[0].request_headers.set[0].value",
        ),
        (
            routed(vec![], vec![redirect(v1::Redirect { status: 200, ..Default::default() })]),
            "service.http.actions[0].filters[0].redirect.status",
        ),
        (
            routed(vec![], vec![redirect(v1::Redirect { hostname: "a b".into(), ..Default::default() })]),
            "service.http.actions[0].filters[0].redirect.hostname",
        ),
        (
            routed(
                vec![],
                vec![HttpAction {
                    request_timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                    ..HttpAction::default()
                }],
            ),
            "service.http.actions[0].request_timeout",
        ),
    ] {
        let (store, _asks) = Store::new();
        let rejected = take(&store, vec![cart("d1", destination)], vec![]);
        assert_eq!(rejected.first().map(|rejection| rejection.field.as_str()), Some(field));
        assert!(store.snapshot().backends.is_empty(), "{field}: no backend is left of what was refused");
    }
}

#[test]
fn endpoints_are_carried_over_and_changed_by_deltas() {
    let (store, _asks) = Store::new();
    take(&store, vec![cart("d1", service(to_backends(&[(1, BACKEND)])))], vec![]);
    let whole = endpoints(&["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.2:8080"]);
    take(&store, vec![cart_endpoints("e1", Body::Endpoints(whole))], vec![]);
    assert_eq!(addresses(&store), ["10.1.0.1:8080", "10.1.0.2:8080"], "a duplicate counts once");
    let before = store.snapshot().backends[BACKEND].endpoints.load_full();

    let draining = Endpoint { state: v1::endpoint::State::Draining.into(), ..endpoint("10.1.0.1:8080") };
    let change = EndpointsDelta {
        base_version: "e1".into(),
        upserted: vec![draining, endpoint("10.1.0.3:8080")],
        removed: vec!["10.1.0.2:8080".into(), "10.9.9.9:1".into()],
    };
    assert_eq!(take(&store, vec![cart_endpoints("e2", Body::EndpointsDelta(change.clone()))], vec![]), []);
    assert_eq!(addresses(&store), ["10.1.0.1:8080", "10.1.0.3:8080"]);
    let after = store.snapshot().backends[BACKEND].endpoints.load_full();
    assert!(after.serial > before.serial);
    assert!(Arc::ptr_eq(&before.endpoints[0], &after.endpoints[0]), "draining is not another endpoint");
    assert!(after.endpoints[0].is_draining());

    // A delta on another version is refused, so that it is sent whole.
    let rejected = take(&store, vec![cart_endpoints("e3", Body::EndpointsDelta(change))], vec![]);
    assert_eq!(rejected[0].field, "endpoints_delta.base_version");
    assert_eq!(addresses(&store), ["10.1.0.1:8080", "10.1.0.3:8080"]);

    // What it is known for stays with it when its attributes change.
    for change in [
        Endpoint { weight: 7, ..endpoint("10.1.0.1:8080") },
        Endpoint { zone: "b".into(), ..endpoint("10.1.0.1:8080") },
        Endpoint { workload: "cart-2".into(), ..endpoint("10.1.0.1:8080") },
    ] {
        let delta = EndpointsDelta { base_version: "e2".into(), upserted: vec![change], removed: vec![] };
        assert_eq!(take(&store, vec![cart_endpoints("e2", Body::EndpointsDelta(delta))], vec![]), []);
        let changed = store.snapshot().backends[BACKEND].endpoints.load_full();
        assert!(!Arc::ptr_eq(&after.endpoints[0], &changed.endpoints[0]));
        assert!(Arc::ptr_eq(&after.endpoints[0].outlier, &changed.endpoints[0].outlier), "ejection is carried over");
        assert!(!changed.endpoints[0].is_draining());
    }

    let other = Endpoint { identity: String::new(), ..endpoint("10.1.0.1:8080") };
    let whole = Endpoints { endpoints: vec![other], ..Endpoints::default() };
    take(&store, vec![cart_endpoints("e4", Body::Endpoints(whole))], vec![]);
    let last = store.snapshot().backends[BACKEND].endpoints.load_full();
    assert!(!Arc::ptr_eq(&after.endpoints[0], &last.endpoints[0]), "another identity is another endpoint");
    assert!(!Arc::ptr_eq(&after.endpoints[0].outlier, &last.endpoints[0].outlier));
    assert!(!last.endpoints[0].is_draining());

    take(&store, vec![], vec![name(ResourceKind::Endpoints, BACKEND)]);
    let backend = store.snapshot().backends[BACKEND].clone();
    assert!(backend.is_known() && addresses(&store).is_empty());
}

#[test]
fn bad_endpoints_leave_the_good_ones() {
    let (store, _asks) = Store::new();
    take(&store, vec![cart("d1", service(to_backends(&[(1, BACKEND)])))], vec![]);
    take(&store, vec![cart_endpoints("e1", Body::Endpoints(endpoints(&["10.1.0.1:8080"])))], vec![]);
    let with = |change: fn(&mut Endpoint)| {
        let mut bad = endpoint("10.1.0.2:8080");
        change(&mut bad);
        Endpoints { endpoints: vec![endpoint("10.1.0.3:1"), bad], ..Endpoints::default() }
    };
    for (bad, field) in [
        (with(|e| e.address = "cart:80".into()), "endpoints.endpoints[1].address"),
        (with(|e| e.address = "0.0.0.0:80".into()), "endpoints.endpoints[1].address"),
        (with(|e| e.identity = "spiffe://x".into()), "endpoints.endpoints[1].identity"),
        (with(|e| e.state = 9), "endpoints.endpoints[1].state"),
        (Endpoints { protocol: 77, ..Endpoints::default() }, "endpoints.protocol"),
        (
            Endpoints { host_name: Some(v1::HostName { host: "a b".into(), port: 1 }), ..Endpoints::default() },
            "endpoints.host_name.host",
        ),
    ] {
        let rejected = take(&store, vec![cart_endpoints("e2", Body::Endpoints(bad))], vec![]);
        assert_eq!(rejected[0].field, field);
        assert_eq!(addresses(&store), ["10.1.0.1:8080"]);
    }
}

#[test]
fn a_name_is_left_to_dns() {
    let (store, _asks) = Store::new();
    take(&store, vec![cart("d1", service(to_backends(&[(1, BACKEND)])))], vec![]);
    let named = |host: &str| {
        let host_name = Some(v1::HostName { host: host.to_owned(), port: 443 });
        Body::Endpoints(Endpoints { host_name, ..Endpoints::default() })
    };
    assert_eq!(take(&store, vec![cart_endpoints("e1", named("api.example.com"))], vec![]), []);
    let backend = store.snapshot().backends[BACKEND].clone();
    assert!(!backend.is_known(), "DNS has not answered");
    let serial = backend.endpoints.load().serial;
    take(&store, vec![cart_endpoints("e2", named("api.example.com"))], vec![]);
    assert_eq!(backend.endpoints.load().serial, serial, "the same name keeps its answer");
    let change = EndpointsDelta { base_version: "e2".into(), ..EndpointsDelta::default() };
    assert_eq!(take(&store, vec![cart_endpoints("e3", Body::EndpointsDelta(change))], vec![]).len(), 1);
    take(&store, vec![cart_endpoints("e4", Body::Endpoints(endpoints(&["10.1.0.1:8080"])))], vec![]);
    assert!(backend.is_known() && backend.host_name.load().is_none());
}

#[test]
fn what_is_no_longer_wanted_is_ignored() {
    let (store, _asks) = Store::new();
    let late =
        vec![cart("d1", Destination { target: None }), cart_endpoints("e1", Body::Endpoints(endpoints(&["nonsense"])))];
    let change = apply(&store.snapshot(), delta(late, vec![]), |_| false, &mut |_, _| Ok(()));
    assert_eq!(change.commit(&store), []);
    assert!(store.snapshot().provenance.is_empty());
}

fn inbound_port(port: u32, protocol: i32) -> v1::InboundPort {
    v1::InboundPort { port, protocol, policy: None }
}

#[test]
fn ready_once_settings_trust_and_inbound_are_there() {
    let (store, _asks) = Store::new();
    assert!(store.inbound().strict && !store.is_ready());
    let inbound = v1::Inbound {
        mode: v1::inbound::Mode::Permissive.into(),
        ports: vec![inbound_port(90, 5), inbound_port(80, 2)],
        ..Default::default()
    };
    let bundle = v1::TrustBundle { trust_domain: "cluster.local".into(), anchors: vec![vec![1]] };
    let all = || {
        vec![
            resource(ResourceKind::Settings, "", "1", Body::Settings(v1::Settings::default())),
            resource(ResourceKind::Inbound, "", "1", Body::Inbound(inbound.clone())),
            resource(ResourceKind::TrustBundle, "", "1", Body::TrustBundle(bundle.clone())),
        ]
    };
    let refuse = &mut |_: &str, _: &[Vec<u8>]| Err("not a certificate".to_owned());
    let rejected = apply(&store.snapshot(), delta(all(), vec![]), |_| true, refuse).commit(&store);
    assert_eq!((rejected[0].field.as_str(), rejected[0].reason.as_str()), ("anchors", "not a certificate"));
    assert!(!store.is_ready());
    assert_eq!(take(&store, all(), vec![]), []);
    assert!(store.is_ready());
    let held = store.inbound();
    assert!(!held.strict);
    let ports: Vec<_> = held.ports.iter().map(|port| (port.port, port.protocol)).collect();
    assert_eq!(ports, [(80, Protocol::Http1), (90, Protocol::Tcp)]);
    // What is said to be gone stays in force.
    take(&store, vec![], vec![name(ResourceKind::Inbound, ""), name(ResourceKind::Settings, "")]);
    assert!(store.is_ready() && !store.inbound().strict);
}

#[test]
fn what_hedging_has_learnt_outlives_the_versions_of_its_rule() {
    let hedged = |rule: &str, percentile| HttpAction {
        origin: Some(v1::RuleOrigin { route: None, rule: rule.to_owned() }),
        hedging: (percentile > 0).then_some(v1::Hedging { delay: None, percentile, any_method: false }),
        ..HttpAction::default()
    };
    let (store, _asks) = Store::new();
    let put = |version: &str, actions: Vec<HttpAction>| {
        let rules = (0..).zip(&actions).map(|(action, _)| HttpRule { action, ..HttpRule::default() }).collect();
        assert_eq!(take(&store, vec![cart(version, routed(rules, actions))], vec![]), []);
        let destination = store.get(&CART.into()).unwrap();
        let Target::Service(port) = &destination.target else { panic!("a Service") };
        let rules = port.http.as_ref().unwrap().rules();
        rules.iter().map(|rule| Arc::clone(&rule.action)).collect::<Vec<_>>()
    };
    let waits = |actions: &[Arc<crate::policy::HttpAction>]| -> Vec<Option<u128>> {
        actions.iter().map(|action| action.hedge.as_ref()?.wait().map(|wait| wait.as_millis())).collect()
    };
    let first = put("1", vec![hedged("old", 90)]);
    // One in twenty takes a second.
    for answer in 0..160 {
        let millis = if answer % 20 == 0 { 1000 } else { 10 };
        first[0].hedge.as_ref().unwrap().observe(Duration::from_millis(millis));
    }
    assert_eq!(waits(&first), [Some(10)]);
    let second = put("2", vec![hedged("new", 90), hedged("old", 90)]);
    assert_eq!(waits(&second), [None, Some(10)], "each rule learns by itself");
    let third = put("3", vec![hedged("old", 99)]);
    assert!(waits(&third)[0].is_some_and(|wait| wait >= 1000), "of the same answers, another part");
    put("4", vec![hedged("old", 0)]);
    assert_eq!(waits(&put("5", vec![hedged("old", 90)])), [None], "what nobody asks for is not kept");
}

#[test]
fn timeouts_and_retries() {
    let retry = v1::Retry { statuses: vec![503, 500, 503], attempts: 2, backoff: None };
    let action = HttpAction {
        response_timeout: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
        request_timeout: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
        backend_request_timeout: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
        retry: Some(retry),
        ..HttpAction::default()
    };
    let (store, _asks) = Store::new();
    take(&store, vec![cart("d1", routed(vec![HttpRule::default()], vec![action]))], vec![]);
    let destination = store.get(&CART.into()).unwrap();
    let Target::Service(port) = &destination.target else { panic!("not a service") };
    let head = crate::http::head::RequestHead::new(::http::Version::HTTP_11, ::http::Method::GET, "/");
    let action = port.http.as_ref().unwrap().decide(&head).unwrap().action;
    assert_eq!(action.request_timeout, Some(Duration::MAX), "zero is none, whatever the backend's policy says");
    assert_eq!(action.response_timeout, Some(Duration::from_secs(3)));
    assert_eq!(action.try_timeout, Some(Duration::from_millis(1500)));
    let retry = action.retry.as_ref().unwrap();
    assert_eq!((retry.statuses.as_slice(), retry.backoff.base), ([500, 503].as_slice(), Duration::from_millis(25)));
    assert_eq!(&*action.origin.route, "default");
    assert!(action.backends.pick(3).is_none());
}

#[test]
fn outside_is_told_by_settings() {
    let settings = |networks: &[&str]| {
        let mesh_networks = networks.iter().map(|&network| network.to_owned()).collect();
        parse_settings(v1::Settings { trust_domain: "t".into(), mesh_networks, ..Default::default() }).unwrap()
    };
    let at = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    let mesh = settings(&["10.0.0.0/8", "fd00::/8"]);
    assert!(!mesh.is_outside(at(10, 1, 2, 3)));
    assert!(mesh.is_outside(at(192, 0, 2, 1)));
    assert!(!mesh.is_outside("fd00::1".parse().unwrap()));
    assert!(!mesh.is_outside("::ffff:10.0.0.1".parse().unwrap()));
    assert!(!settings(&[]).is_outside(at(192, 0, 2, 1)), "no networks: everything is looked up");
    let bad =
        parse_settings(v1::Settings { mesh_networks: vec!["10.0.0.0/8".into(), "x".into()], ..Default::default() });
    assert_eq!(bad.unwrap_err().field, "mesh_networks[1]");
}

/// A delta that uses every message of the protocol.
fn everything() -> Delta {
    let header = v1::Header { name: "x-a".into(), value: "b".into() };
    let modifier = v1::HeaderModifier { set: vec![header.clone()], add: vec![header], remove: vec!["x-c".into()] };
    let path = |kind| Some(v1::PathModifier { kind: Some(kind) });
    let filters = [
        http_filter::Kind::RequestHeaders(modifier.clone()),
        http_filter::Kind::ResponseHeaders(modifier),
        http_filter::Kind::Redirect(v1::Redirect {
            scheme: "https".into(),
            hostname: "a.example".into(),
            port: 443,
            status: 301,
            path: path(v1::path_modifier::Kind::ReplaceFull("/x".into())),
        }),
        http_filter::Kind::Rewrite(v1::Rewrite {
            hostname: "b.example".into(),
            path: path(v1::path_modifier::Kind::ReplacePrefix("/y".into())),
        }),
        http_filter::Kind::Mirror(v1::Mirror {
            kind: Some(v1::mirror::Kind::Backend(BackendRef { key: BACKEND.into() })),
            numerator: 1,
            denominator: 3,
        }),
        http_filter::Kind::Cors(v1::Cors {
            allow_origins: vec!["https://*.example".into()],
            allow_methods: vec!["GET".into()],
            ..Default::default()
        }),
        http_filter::Kind::Unsupported("ExternalAuth".into()),
    ];
    let filters: Vec<_> = filters.into_iter().map(|kind| v1::HttpFilter { kind: Some(kind) }).collect();
    let mut backends = to_backends(&[(90, BACKEND), (10, "shop/new:80")]);
    backends.push(WeightedBackend {
        weight: 5,
        kind: Some(weighted_backend::Kind::Invalid("no such Service".into())),
        filters: filters.clone(),
        session_persistence: None,
    });
    let named = |kind| v1::NamedMatch { name: "x-a".into(), kind: Some(kind) };
    let rule = |path| HttpRule {
        r#match: Some(HttpMatch {
            path: Some(PathMatch { kind: Some(path) }),
            headers: vec![named(v1::named_match::Kind::Exact("b".into()))],
            query: vec![named(v1::named_match::Kind::Regex("b+".into()))],
            method: "GET".into(),
            grpc: true,
        }),
        action: 0,
    };
    let duration = Some(prost_types::Duration { seconds: 1, nanos: 5 });
    let when = || Some(v1::FaultCondition { share: 5, matches: vec![HttpMatch::default()] });
    let answer = || v1::StaticAnswer {
        status: 503,
        grpc_status: 14,
        headers: vec![v1::Header { name: "x-a".into(), value: "b".into() }],
        body: b"c".to_vec(),
    };
    let action = HttpAction {
        origin: Some(v1::RuleOrigin {
            route: Some(v1::ObjectRef { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "cart".into() }),
            rule: "0".into(),
        }),
        filters,
        backends: backends.clone(),
        request_timeout: duration,
        backend_request_timeout: duration,
        retry: Some(v1::Retry { statuses: vec![503], attempts: 1, backoff: duration }),
        stream_idle_timeout: duration,
        retry_policy: Some(v1::RetryPolicy {
            attempts: 1,
            statuses: vec![503],
            grpc_codes: vec![14],
            connect_failure: true,
            reset: true,
            try_timeout: true,
            any_method: true,
            backoff: duration,
            max_backoff: duration,
        }),
        hedging: Some(v1::Hedging { delay: duration, percentile: 95, any_method: true }),
        faults: Some(v1::Faults {
            origin: None,
            delay: Some(v1::FaultDelay { when: when(), duration }),
            abort: Some(v1::FaultAbort { when: when(), answer: Some(answer()) }),
        }),
        direct_response: Some(answer()),
        fallback: Some(v1::Fallback { kind: Some(v1::fallback::Kind::Answer(answer())) }),
        session_persistence: Some(v1::SessionPersistence { name: "a".into(), permanent: true, ..Default::default() }),
        policy: Some(v1::ObjectRef { kind: "RoutePolicy".into(), namespace: "shop".into(), name: "cart".into() }),
        request_timeout_by_policy: true,
        backend_request_timeout_by_policy: true,
        response_timeout: duration,
        explain_headers: vec!["x-request-id".into()],
    };
    let paths = [
        path_match::Kind::Exact("/a".into()),
        path_match::Kind::Prefix("/b".into()),
        path_match::Kind::Regex("/c[0-9]*".into()),
    ];
    let mut destination = routed(paths.into_iter().map(rule).collect(), vec![action]);
    if let Some(v1::destination::Target::Service(port)) = &mut destination.target {
        let tcp = v1::TcpRoute { origin: None, backends };
        port.tls = Some(v1::TlsRoutes {
            rules: vec![v1::TlsRule { server_names: vec!["*.example.com".into()], route: Some(tcp.clone()) }],
        });
        port.tcp = Some(tcp);
    }
    let change = EndpointsDelta { base_version: "v".into(), upserted: vec![endpoint("10.1.0.9:1")], removed: vec![] };
    let workload = v1::destination::Target::Workload(BackendRef { key: "shop/pod:80".into() });
    let outside = v1::destination::Target::Outside(Outside {});
    let inbound = v1::Inbound { mode: 1, ports: vec![inbound_port(80, 1)], ..Default::default() };
    let host_name = Some(v1::HostName { host: "a.example".into(), port: 80 });
    use ResourceKind as Kind;
    delta(
        vec![
            resource(
                Kind::Settings,
                "",
                "v",
                Body::Settings(v1::Settings {
                    trust_domain: "cluster.local".into(),
                    mesh_networks: vec!["10.0.0.0/8".into()],
                    session_key: vec![7; 32],
                    explain: None,
                }),
            ),
            resource(
                Kind::TrustBundle,
                "",
                "v",
                Body::TrustBundle(v1::TrustBundle {
                    trust_domain: "cluster.local".into(),
                    anchors: vec![vec![1, 2, 3]],
                }),
            ),
            resource(Kind::Inbound, "", "v", Body::Inbound(inbound)),
            cart("v", destination),
            resource(Kind::Destination, "10.1.0.1:80", "v", Body::Destination(Destination { target: Some(workload) })),
            resource(Kind::Destination, "a.example:80", "v", Body::Destination(Destination { target: Some(outside) })),
            cart_endpoints("v", Body::Endpoints(endpoints(&["10.1.0.1:8080", "[fd00::1]:8080"]))),
            cart_endpoints("w", Body::EndpointsDelta(change)),
            resource(
                Kind::Endpoints,
                "shop/new:80",
                "v",
                Body::Endpoints(Endpoints { host_name, ..Default::default() }),
            ),
        ],
        vec![name(Kind::Destination, "gone:80"), name(Kind::Endpoints, "shop/pod:80")],
    )
}

#[test]
fn everything_there_is_can_be_used_and_shown() {
    let (store, _asks) = Store::new();
    let Delta { changed, removed, .. } = everything();
    let rejected = take(&store, changed, removed);
    assert_eq!(rejected.iter().map(|rejection| rejection.field.as_str()).collect::<Vec<_>>(), ["endpoints_delta"]);
    let dump = store.dump();
    assert_eq!(dump["generation"], 7);
    assert_eq!(dump["destinations"].as_array().map(Vec::len), Some(3));
    let rule = &dump["destinations"][0]["target"]["http"][1];
    assert_eq!(rule["match"]["path"]["prefix"], "/b");
    assert_eq!(rule["backends"][0]["weight"], 90);
    assert_eq!(rule["backends"][0]["backend"]["key"], BACKEND);
    assert_eq!(dump["backends"][0]["endpoints"][1]["address"], "[fd00::1]:8080");
    assert!(!dump.to_string().contains("\"b\",\"x-a\""), "no header values");
}

/// Every text, number and byte of `everything()` may be anything.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    use prost::Message as _;
    let bytes = everything().encode_to_vec();
    let at = 0..bytes.len();
    proptest::collection::vec((at, any::<u8>(), 0_u8..4), 1..6).prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (at, value, how) in changes {
            let at = at.min(bytes.len().saturating_sub(1));
            match how {
                0 | 1 => bytes[at] = value,
                2 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_comes_nothing_breaks(first in mangled(), second in mangled()) {
        use prost::Message as _;
        let (store, _asks) = Store::new();
        for bytes in [first, second] {
            let Ok(Delta { changed, removed, .. }) = Delta::decode(bytes.as_slice()) else { continue };
            let before = store.snapshot();
            let rejected = take(&store, changed, removed.clone());
            let snapshot = store.snapshot();
            for held in snapshot.destinations.values() {
                for backend in held.destination.backends() {
                    prop_assert!(Arc::ptr_eq(backend, &snapshot.backends[&backend.key]));
                }
            }
            for rejection in rejected {
                let name = rejection.name.unwrap();
                prop_assert!(!rejection.reason.is_empty());
                let held = |snapshot: &Snapshot| snapshot.provenance.get(&name).map(|held| held.version.clone());
                // The version in force is the one before, unless the same name came twice or went.
                prop_assert!(held(&snapshot) != Some(rejection.version.clone()) || held(&before) == held(&snapshot)
                    || held(&before).is_none());
            }
            store.dump();
        }
    }
}
