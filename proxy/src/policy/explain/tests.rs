use leno_proto::v1::{
    self, HttpMatch, HttpRule, NamedMatch, ObjectGeneration, ObjectRef, PathMatch, Resource, ResourceKind, Retry,
    RuleOrigin, named_match, path_match, resource::Body,
};

use super::*;
use crate::{
    policy::apply::tests::{endpoints, resource, routed, take, to_backends},
    upstream::breaker,
};

const CART: &str = "cart.shop:80";

fn route() -> ObjectRef {
    ObjectRef { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "cart".into() }
}

fn store() -> Arc<Store> {
    let rule = |name: &str, path: &str, headers: Vec<NamedMatch>, action| {
        let path = PathMatch { kind: Some(path_match::Kind::Prefix(path.to_owned())) };
        let action_of = v1::HttpAction {
            origin: Some(RuleOrigin { route: Some(route()), rule: name.to_owned() }),
            backends: to_backends(&[(90, "shop/cart:80"), (10, "shop/canary:80")]),
            retry: Some(Retry { statuses: vec![503], attempts: 2, backoff: None }),
            ..Default::default()
        };
        (HttpRule { r#match: Some(HttpMatch { path: Some(path), headers, ..HttpMatch::default() }), action }, action_of)
    };
    let version = NamedMatch { name: "x-version".into(), kind: Some(named_match::Kind::Exact("two".into())) };
    let (rules, actions) = [
        rule("checkout", "/checkout", vec![], 0),
        rule("two", "/", vec![version], 1),
        rule("rest", "/items", vec![], 2),
    ]
    .into_iter()
    .unzip();
    let destination = Resource {
        origins: vec![ObjectGeneration { object: Some(route()), generation: 4, ..ObjectGeneration::default() }],
        ..resource(ResourceKind::Destination, CART, "1", Body::Destination(routed(rules, actions)))
    };
    let known = endpoints(&["10.0.0.2:80", "10.0.0.3:80"]);
    let known = resource(ResourceKind::Endpoints, "shop/cart:80", "1", Body::Endpoints(known));
    let none = resource(ResourceKind::Endpoints, "shop/canary:80", "1", Body::Endpoints(endpoints(&[])));
    let (store, _) = Store::new();
    assert_eq!(take(&store, vec![destination, known, none], Vec::new()), []);
    store
}

async fn told(target: &str) -> Vec<(String, bool, String)> {
    let question = RequestToExplain { destination: CART.into(), target: target.into(), ..RequestToExplain::default() };
    let decisions = explain(&store(), "client", &[], &question).await.unwrap().decisions;
    decisions.into_iter().map(|told| (format!("{}: {}", told.subject, told.text), told.applies, told.origin)).collect()
}

#[tokio::test]
async fn each_decision_is_told_with_who_made_it() {
    let told = told("/items/7?x=1").await;
    let has = |text: &str, applies: bool, origin: &str| {
        let fits = |one: &&(String, bool, String)| one.0.contains(text) && one.1 == applies && one.2 == origin;
        assert!(told.iter().any(|one| fits(&one)), "{text} in {told:#?}");
    };
    has("Service shop/cart port 80", true, "");
    has("rule: the path is not under /checkout", false, "HTTPRoute shop/cart, rule checkout");
    has("rule: the header x-version is not \"two\"", false, "HTTPRoute shop/cart, rule two");
    has("rule: matches", true, "HTTPRoute shop/cart, rule rest");
    has("retry: up to 2 more tries", true, "HTTPRoute shop/cart, rule rest");
    has("backend: shop/cart:80 gets 90 %", true, "HTTPRoute shop/cart, rule rest");
    has("10.0.0.3:80: ready; mTLS, must be spiffe://cluster.local/ns/shop/sa/cart", true, "");
    has("503: shop/canary:80 has no endpoint", true, "");
}

#[tokio::test]
async fn what_no_rule_takes_is_told() {
    let told = told("/").await;
    assert!(told.last().is_some_and(|(text, applies, _)| text.contains("404") && *applies), "{told:#?}");
}

#[tokio::test]
async fn generations_are_those_in_force() {
    let question = RequestToExplain { destination: CART.into(), target: "/items".into(), ..Default::default() };
    let decisions = explain(&store(), "client", &[], &question).await.unwrap().decisions;
    assert!(decisions.iter().any(|told| told.subject == "rule" && told.applies && told.generation == 4));
}

#[tokio::test]
async fn nonsense_and_the_unknown_are_errors() {
    let (store, asks) = Store::new();
    let ask = |destination: &str, method: &str, target: &str| RequestToExplain {
        destination: destination.into(),
        method: method.into(),
        target: target.into(),
        ..Default::default()
    };
    assert!(
        explain(&store, "client", &[], &ask("a.b:80", "G T", "/")).await.is_err_and(|error| error.contains("method"))
    );
    assert!(explain(&store, "client", &[], &ask("a.b:80", "", "x")).await.is_err_and(|error| error.contains("slash")));
    drop(asks);
    let unknown = explain(&store, "client", &[], &ask("a.b:80", "", "/")).await;
    assert!(unknown.is_err_and(|error| error.contains("a.b:80")));
}

#[tokio::test]
async fn a_port_of_the_workload_tells_what_it_would_do() {
    let (store, _) = Store::new();
    let question = |client: &str, port| RequestToExplain {
        inbound_port: port,
        client: client.into(),
        ..RequestToExplain::default()
    };
    let told = explain(&store, "client", &[], &question("spiffe://cluster.local/ns/shop/sa/client", 8080))
        .await
        .unwrap()
        .decisions;
    let has = |text: &str| told.iter().any(|one| one.text.contains(text));
    assert!(
        has("plaintext is refused") && has("let in as spiffe://") && has("requests at a time (adaptive)"),
        "{told:#?}"
    );
    let told = explain(&store, "client", &[], &question("", 8080)).await.unwrap().decisions;
    assert!(told.iter().any(|one| one.subject == "client" && !one.applies), "{told:#?}");
    assert!(explain(&store, "client", &[], &question("", 70_000)).await.is_err());
}

#[tokio::test]
async fn the_size_of_a_request_is_held_against_the_ports_limits() {
    let policy = v1::InboundPolicy {
        origin: object("InboundPolicy", "small"),
        max_head_bytes: 200,
        max_body_bytes: 4096,
        ..v1::InboundPolicy::default()
    };
    let port = v1::InboundPort { port: 8080, protocol: v1::Protocol::Http.into(), policy: Some(policy) };
    let inbound = v1::Inbound { mode: 1, ports: vec![port], ..v1::Inbound::default() };
    let (store, _) = Store::new();
    assert_eq!(take(&store, vec![resource(ResourceKind::Inbound, "", "1", Body::Inbound(inbound))], vec![]), []);
    for (big, within) in [(1, true), (300, false)] {
        let headers = vec![v1::Header { name: "x-big".into(), value: "x".repeat(big) }];
        let question = RequestToExplain { inbound_port: 8080, headers, ..RequestToExplain::default() };
        let decisions = explain(&store, "shop", &[], &question).await.unwrap().decisions;
        let sizes: Vec<_> = decisions.iter().filter(|told| told.subject == "size").collect();
        let [head, body] = sizes.as_slice() else { panic!("{decisions:#?}") };
        assert_eq!((head.applies, head.origin.as_str()), (within, "InboundPolicy shop/small"));
        assert_eq!(head.text.contains("431 (leno-reason: head-too-large)"), !within, "{}", head.text);
        assert!(head.text.contains(" of 200 bytes") && body.text.contains("4096 bytes"), "{sizes:#?}");
    }
}

#[tokio::test]
async fn endpoints_that_are_merely_kept_are_not_called_ready() {
    let store = store();
    let backend = Arc::clone(&store.snapshot().backends["shop/cart:80"]);
    let now = Instant::now();
    let set = backend.endpoints.load_full();
    backend.publish_none(set.protocol, Arc::clone(&set.policy), now);
    let question = RequestToExplain { destination: CART.into(), target: "/items".into(), ..Default::default() };
    let told = async || explain(&store, "client", &[], &question).await.unwrap().decisions;
    let decisions = told().await;
    let of = decisions.iter().find(|told| told.text.starts_with("10.0.0.2:80")).unwrap();
    assert!(of.text.contains(": kept for another ") && of.text.contains("says that there are none"), "{of:?}");
    assert!(of.applies);

    let kept = EndpointSet::new(true, set.protocol, set.endpoints.clone());
    backend.publish(EndpointSet { kept_until: Some(now), ..kept });
    let decisions = told().await;
    assert!(decisions.iter().any(|told| told.text.starts_with("503: shop/cart:80 has no endpoint")), "{decisions:#?}");
    assert!(!decisions.iter().any(|told| told.text.starts_with("10.0.0.2:80")), "{decisions:#?}");
}

#[tokio::test]
async fn a_session_goes_where_its_token_says() {
    use crate::http::{
        head::Fields,
        persistence::{Carrier, Persistence, Session, SessionKey},
    };
    let mut backends = to_backends(&[(1, "shop/cart:80"), (1, "shop/canary:80")]);
    let header = v1::SessionPersistence { name: "x-cart".into(), header: true, ..v1::SessionPersistence::default() };
    for of_rule in [true, false] {
        let mut action = v1::HttpAction {
            origin: Some(RuleOrigin { route: Some(route()), rule: "rest".into() }),
            ..v1::HttpAction::default()
        };
        match of_rule {
            true => action.session_persistence = Some(header.clone()),
            false => backends.iter_mut().for_each(|backend| backend.session_persistence = Some(header.clone())),
        }
        action.backends = backends.clone();
        let settings =
            v1::Settings { trust_domain: "cluster.local".into(), session_key: vec![7; 32], ..v1::Settings::default() };
        let of = |key, addresses: &[&str]| {
            resource(ResourceKind::Endpoints, key, "1", Body::Endpoints(endpoints(addresses)))
        };
        let destination = Body::Destination(routed(vec![HttpRule::default()], vec![action]));
        let (store, _) = Store::new();
        let all = vec![
            resource(ResourceKind::Settings, "", "1", Body::Settings(settings)),
            resource(ResourceKind::Destination, CART, "1", destination),
            of("shop/cart:80", &["10.0.0.2:80", "10.0.0.3:80"]),
            of("shop/canary:80", &["10.0.0.4:80"]),
        ];
        assert_eq!(take(&store, all, vec![]), []);
        let snapshot = store.snapshot();
        let destination = &snapshot.destinations[&DestinationKey::from(CART)].destination;
        let Target::Service(port) = &destination.target else { unreachable!() };
        let action = &port.http.as_ref().unwrap().rules[0].action;
        let own = || action.backends.iter().find_map(|(_, entry)| entry.persistence.as_deref());
        let persistence: &Persistence = action.persistence.as_deref().or_else(own).unwrap();
        assert_eq!(persistence.carrier, Carrier::Header("x-cart".into()));
        let token = |address: &str| {
            let set = snapshot.backends["shop/cart:80"].endpoints.load_full();
            let name = set.endpoints[0].name();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let session = Session::new("shop/cart:80", &name, address.parse().unwrap(), now);
            let mut fields = Fields::new();
            persistence.write(&SessionKey::new(&[7; 32]).unwrap(), session, &mut fields);
            String::from_utf8(fields.values(b"x-cart").next().unwrap().to_vec()).unwrap()
        };
        let told = async |token: Option<String>| {
            let headers = token.into_iter().map(|value| v1::Header { name: "x-cart".into(), value }).collect();
            let question = RequestToExplain { destination: CART.into(), headers, ..RequestToExplain::default() };
            explain(&store, "client", &[], &question).await.unwrap().decisions
        };
        let applies =
            |of: &[Decision], text: &str| of.iter().find(|told| told.text.contains(text)).map(|told| told.applies);
        let stays = told(Some(token("10.0.0.3:80"))).await;
        assert_eq!(applies(&stays, "by its header x-cart this one goes to 10.0.0.3:80"), Some(true), "{stays:#?}");
        assert_eq!(applies(&stays, "shop/cart:80, by its session"), Some(true));
        assert_eq!(applies(&stays, "10.0.0.3:80: ready"), Some(true));
        assert_eq!(applies(&stays, "10.0.0.2:80: ready"), Some(false));
        assert_eq!(applies(&stays, "shop/canary:80 gets 50 % of those without a session"), Some(false));
        for (token, why) in [
            (Some("garbage".to_owned()), Some("cannot be read, or has expired: balanced anew")),
            (Some(token("10.0.0.9:80")), Some("it is with 10.0.0.9:80, which serves no backend here: balanced anew")),
            (None, None),
        ] {
            let anew = told(token).await;
            if let Some(why) = why {
                assert_eq!(applies(&anew, why), Some(false), "{anew:#?}");
            }
            assert_eq!(applies(&anew, "shop/canary:80 gets 50 % of these requests"), Some(true), "{anew:#?}");
            assert_eq!(applies(&anew, "10.0.0.2:80: ready"), Some(true));
        }
    }
}

#[tokio::test]
async fn grpc_clients_are_told_what_they_get() {
    let answer = v1::StaticAnswer { status: 429, grpc_status: 8, ..v1::StaticAnswer::default() };
    let when = |share| Some(v1::FaultCondition { share, matches: Vec::new() });
    let faults = v1::Faults {
        origin: object("FaultPolicy", "some"),
        delay: Some(v1::FaultDelay { when: when(0), duration: seconds(1) }),
        abort: Some(v1::FaultAbort { when: when(125_000), answer: Some(answer) }),
    };
    let invalid = v1::Mirror {
        kind: Some(v1::mirror::Kind::Invalid("there is no Service shop/gone".into())),
        numerator: 1,
        denominator: 1,
    };
    let action = v1::HttpAction {
        backends: to_backends(&[(1, "shop/cart:80")]),
        filters: vec![v1::HttpFilter { kind: Some(v1::http_filter::Kind::Mirror(invalid)) }],
        hedging: Some(v1::Hedging { delay: seconds(1), percentile: 95, any_method: false }),
        faults: Some(faults),
        ..v1::HttpAction::default()
    };
    let destination = Body::Destination(routed(vec![HttpRule::default()], vec![action]));
    let (store, _) = Store::new();
    assert_eq!(take(&store, vec![resource(ResourceKind::Destination, CART, "1", destination)], vec![]), []);
    store.snapshot().backends["shop/cart:80"].publish(EndpointSet::new(true, crate::policy::Protocol::Http, vec![]));
    for (kind, fault, none) in [
        ("application/json", "answered with 429 ", "503: shop/cart:80"),
        ("application/grpc", "answered with RESOURCE_EXHAUSTED ", "UNAVAILABLE: shop/cart:80"),
    ] {
        let headers = vec![v1::Header { name: "content-type".into(), value: kind.into() }];
        let question = RequestToExplain { destination: CART.into(), headers, ..RequestToExplain::default() };
        let decisions = explain(&store, "client", &[], &question).await.unwrap().decisions;
        for (text, applies) in [
            (&*format!("12.5 % of these requests are {fault}"), true),
            ("0 % of these requests are held up for 1s", false),
            ("once it is known how long answers take, after 1s at the least", true),
            ("nothing is copied: there is no Service shop/gone", false),
            (none, true),
        ] {
            let found = decisions.iter().find(|told| told.text.contains(text));
            assert_eq!(found.map(|told| told.applies), Some(applies), "{text}: {decisions:#?}");
        }
    }
}

fn object(kind: &str, name: &str) -> Option<ObjectRef> {
    Some(ObjectRef { kind: kind.into(), namespace: "shop".into(), name: name.into() })
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// A rule of which route and RoutePolicy each say a part, to one backend that has a mirror and a session of its own.
fn rule_under_policy() -> v1::HttpAction {
    let mirror = v1::Mirror {
        kind: Some(v1::mirror::Kind::Backend(v1::BackendRef { key: "shop/copy:80".into() })),
        numerator: 1,
        denominator: 2,
    };
    let cors = v1::Cors { allow_origins: vec!["https://a.example".into()], ..v1::Cors::default() };
    let session = v1::SessionPersistence {
        name: "x-cart".into(),
        header: true,
        origin: object("XBackendTrafficPolicy", "traffic"),
        ..v1::SessionPersistence::default()
    };
    let mut backends = to_backends(&[(1, "shop/cart:80")]);
    backends[0].filters = vec![v1::HttpFilter { kind: Some(v1::http_filter::Kind::Mirror(mirror)) }];
    backends[0].session_persistence = Some(session);
    let fallback = v1::fallback::Kind::Backend(v1::BackendRef { key: "shop/spare:80".into() });
    v1::HttpAction {
        origin: Some(RuleOrigin { route: Some(route()), rule: "rest".into() }),
        backends,
        filters: vec![v1::HttpFilter { kind: Some(v1::http_filter::Kind::Cors(cors)) }],
        // None, whatever the backend's policy says.
        request_timeout: seconds(0),
        backend_request_timeout: seconds(2),
        backend_request_timeout_by_policy: true,
        stream_idle_timeout: seconds(3),
        hedging: Some(v1::Hedging { delay: seconds(1), percentile: 0, any_method: false }),
        retry_policy: Some(v1::RetryPolicy {
            attempts: 2,
            statuses: vec![503],
            backoff: seconds(1),
            max_backoff: seconds(1),
            ..v1::RetryPolicy::default()
        }),
        fallback: Some(v1::Fallback { kind: Some(fallback) }),
        explain_headers: vec!["x-request-id".into(), "x-order".into()],
        policy: object("RoutePolicy", "patience"),
        ..v1::HttpAction::default()
    }
}

/// A policy that says everything there is to say of a backend, but for the budget.
fn backend_policy() -> v1::BackendPolicy {
    v1::BackendPolicy {
        origin: object("BackendPolicy", "cart"),
        connect_timeout: seconds(1),
        load_balancing: Some(v1::LoadBalancing {
            algorithm: Some(v1::load_balancing::Algorithm::LeastRequest(v1::LeastRequest {})),
            slow_start: seconds(30),
            ignore_zone: true,
        }),
        outlier_detection: Some(v1::OutlierDetection {
            consecutive_failures: Some(7),
            failure_share: Some(v1::FailureShare { percent: 40, window: seconds(10), minimum_requests: 9 }),
            maximum_rest: seconds(0),
            ..v1::OutlierDetection::default()
        }),
        request_timeout: seconds(4),
        response_timeout: seconds(3),
        backend_request_timeout: seconds(5),
        stream_idle_timeout: seconds(6),
        connection_idle_timeout: seconds(8),
        retry_budget: Some(v1::RetryBudget {
            percent: 30,
            burst: 9,
            origin: object("XBackendTrafficPolicy", "traffic"),
            ..v1::RetryBudget::default()
        }),
        circuit_breaker: Some(v1::CircuitBreaker {
            consecutive_failures: 3,
            window: seconds(10),
            open: seconds(5),
            max_open: seconds(60),
            probes: 1,
            successes_to_close: 1,
            ..v1::CircuitBreaker::default()
        }),
        limits: Some(v1::BackendLimits { requests: Some(11), ..v1::BackendLimits::default() }),
    }
}

#[tokio::test]
async fn whatever_a_policy_says_is_told_with_its_name() {
    let rules = vec![HttpRule::default()];
    let destination = Body::Destination(routed(rules, vec![rule_under_policy()]));
    let known = v1::Endpoints { policy: Some(backend_policy()), ..endpoints(&["10.0.0.2:80"]) };
    let of_spare = v1::BackendPolicy {
        origin: object("BackendPolicy", "spare"),
        connect_timeout: seconds(9),
        backend_request_timeout: seconds(7),
        ..v1::BackendPolicy::default()
    };
    let spare = v1::Endpoints { policy: Some(of_spare), ..endpoints(&["10.0.0.9:80"]) };
    let others = [("shop/copy:80", endpoints(&[])), ("shop/spare:80", spare)];
    let mut resources: Vec<Resource> = others
        .map(|(key, known)| resource(ResourceKind::Endpoints, key, "1", Body::Endpoints(known)))
        .into_iter()
        .collect();
    resources.push(resource(ResourceKind::Destination, CART, "1", destination));
    resources.push(resource(ResourceKind::Endpoints, "shop/cart:80", "1", Body::Endpoints(known)));
    let (store, _) = Store::new();
    assert_eq!(take(&store, resources, Vec::new()), []);
    let question = RequestToExplain { destination: CART.into(), ..RequestToExplain::default() };
    let decisions = explain(&store, "client", &[], &question).await.unwrap().decisions;
    let (rule, backend) = ("HTTPRoute shop/cart, rule rest", "BackendPolicy shop/cart");
    let (patience, traffic) = ("RoutePolicy shop/patience", "XBackendTrafficPolicy shop/traffic");
    let spare = "BackendPolicy shop/spare";
    for (subject, text, applies, origin) in [
        ("timeout", "the whole request: none", true, rule),
        ("timeout", "each try: 2s", true, patience),
        ("timeout", "without a byte moved: 3s", true, patience),
        ("explain", "kept with x-request-id or x-order", true, patience),
        ("retry", "up to 2 more tries after 1s, on status 503 for what may be repeated", true, patience),
        ("hedging", "after 1s, if it may be repeated", true, patience),
        ("fallback", "if nobody can be reached: shop/spare:80", true, patience),
        ("session", "one with shop/cart:80, told of by the header x-cart", true, traffic),
        ("cors", "the request names no origin", false, rule),
        ("mirror", "shop/copy:80 gets a copy of 50 %", true, rule),
        ("policy", "connect timeout 1s", true, backend),
        ("balancing", "LeastRequest, slow start over 30s, whatever the zone", true, backend),
        ("ejection", "after 7 failures in a row or at 40 % failures of at least 9 in 10s", true, backend),
        ("ejection", "Retry-After moves nothing", true, backend),
        ("budget", "30 % of what is answered well", true, traffic),
        ("timeout", "the whole request, to shop/cart:80: 4s, but the rule says otherwise", false, backend),
        ("timeout", "until the head of the answer, to shop/cart:80: 3s", true, backend),
        ("timeout", "each try, to shop/cart:80: 5s, but the rule says otherwise", false, backend),
        ("timeout", "without a byte moved, to shop/cart:80: 6s, but the rule", false, backend),
        ("timeout", "a connection without requests, to shop/cart:80: 8s", true, backend),
        ("circuit", "is closed; it opens at 3 failures in a row, for 5s to 60s", true, backend),
        ("limit", "0 of 11 requests in flight of shop/cart:80", true, backend),
        ("backend", "shop/spare:80 gets what could be sent to none of those", true, patience),
        ("policy", "shop/spare:80 is called with connect timeout 9s", true, spare),
        ("timeout", "each try, to shop/spare:80: 7s, but the rule says otherwise", false, spare),
        ("endpoint", "10.0.0.9:80: ready", true, ""),
    ] {
        let fits = |one: &&Decision| one.subject == subject && one.text.contains(text);
        let found = decisions.iter().find(fits).unwrap_or_else(|| panic!("{subject}: {text} in {decisions:#?}"));
        assert_eq!((found.applies, found.origin.as_str()), (applies, origin), "{subject}: {text}");
    }

    let cart = Arc::clone(&store.snapshot().backends["shop/cart:80"]);
    let (opens, now) = (breaker::Settings::opens_after(1), Instant::now());
    assert!(cart.shield.breaker.admit(&opens, now).unwrap().report(Some(false), now));
    let decisions = explain(&store, "client", &[], &question).await.unwrap().decisions;
    let of = |text: &str| decisions.iter().find(|told| told.text.contains(text)).unwrap();
    assert!(of("that of the fallback shop/spare:80: shop/cart:80 has an open circuit").applies);
    assert!(!of("10.0.0.2:80: ready").applies && of("10.0.0.9:80: ready").applies);
}

#[tokio::test]
async fn an_endpoint_that_asked_to_be_left_alone_is_told_of() {
    let store = store();
    let backend = Arc::clone(&store.snapshot().backends["shop/cart:80"]);
    backend.endpoints.load().endpoints[0].outlier.rest(Instant::now() + std::time::Duration::from_secs(60));
    let question = RequestToExplain { destination: CART.into(), target: "/items".into(), ..Default::default() };
    let decisions = explain(&store, "client", &[], &question).await.unwrap().decisions;
    let of = |address: &str| decisions.iter().find(|told| told.text.starts_with(address)).unwrap();
    let left_alone = of("10.0.0.2:80");
    assert!(left_alone.text.contains("it asked for that (Retry-After)") && !left_alone.applies, "{left_alone:?}");
    assert!(of("10.0.0.3:80").text.contains(": ready;"));
}

#[tokio::test]
async fn of_the_applications_tls_the_server_name_decides() {
    let rule = |name: &str, server_name: &str| v1::TlsRule {
        server_names: vec![server_name.to_owned()],
        route: Some(v1::TcpRoute {
            origin: Some(RuleOrigin { route: object("TLSRoute", name), rule: "0".into() }),
            backends: to_backends(&[(1, "shop/cart:80")]),
        }),
    };
    let target = v1::destination::Target::Service(v1::ServiceTarget {
        service: object("Service", "cart"),
        port: 443,
        protocol: v1::Protocol::Tls.into(),
        tls: Some(v1::TlsRoutes { rules: vec![rule("a", "a.example"), rule("b", "*.b.example")] }),
        ..v1::ServiceTarget::default()
    });
    let destination = Body::Destination(v1::Destination { target: Some(target) });
    let known = resource(ResourceKind::Endpoints, "shop/cart:80", "1", Body::Endpoints(endpoints(&["10.0.0.2:80"])));
    let (store, _) = Store::new();
    take(&store, vec![resource(ResourceKind::Destination, CART, "1", destination), known], Vec::new());
    for (server_name, rules, last) in [
        ("x.b.example", [("a", false), ("b", true)].as_slice(), "10.0.0.2:80: ready"),
        ("a.example", &[("a", true)], "10.0.0.2:80: ready"),
        ("c.example", &[("a", false), ("b", false)], "no route takes the server name"),
        ("", &[("a", false), ("b", false)], "the port is declared TLS, and what comes is not"),
    ] {
        let server_name = server_name.to_owned();
        let question = RequestToExplain { destination: CART.into(), server_name, ..Default::default() };
        let decisions = explain(&store, "client", &[], &question).await.unwrap().decisions;
        let of_routes = decisions.iter().filter(|told| told.subject == "rule" && !told.origin.is_empty());
        let told: Vec<(String, bool)> = of_routes.map(|told| (told.origin.clone(), told.applies)).collect();
        let expected: Vec<(String, bool)> =
            rules.iter().map(|(name, takes)| (format!("TLSRoute shop/{name}, rule 0"), *takes)).collect();
        assert_eq!(told, expected, "{decisions:#?}");
        assert!(decisions.last().is_some_and(|told| told.text.contains(last)), "{decisions:#?}");
    }
}

/// A TCP port of one backend under this policy, with two endpoints.
fn opaque(policy: v1::BackendPolicy) -> Arc<Store> {
    let route = v1::TcpRoute { origin: None, backends: to_backends(&[(1, "shop/cart:80")]) };
    let target = v1::destination::Target::Service(v1::ServiceTarget {
        service: object("Service", "cart"),
        port: 80,
        protocol: v1::Protocol::Tcp.into(),
        tcp: Some(route),
        ..v1::ServiceTarget::default()
    });
    let destination = Body::Destination(v1::Destination { target: Some(target) });
    let known = v1::Endpoints { policy: Some(policy), ..endpoints(&["10.0.0.2:80", "10.0.0.3:80"]) };
    let known = resource(ResourceKind::Endpoints, "shop/cart:80", "1", Body::Endpoints(known));
    let (store, _) = Store::new();
    assert_eq!(take(&store, vec![resource(ResourceKind::Destination, CART, "1", destination), known], vec![]), []);
    store
}

#[tokio::test]
async fn a_connection_meets_the_limits_of_connections_alone() {
    let limits = v1::BackendLimits { connections: Some(1), requests: Some(1), ..v1::BackendLimits::default() };
    let store = opaque(v1::BackendPolicy { limits: Some(limits), ..backend_policy() });
    let counts = Arc::clone(&store.snapshot().backends["shop/cart:80"].shield.counts);
    let question = RequestToExplain { destination: CART.into(), ..RequestToExplain::default() };
    let told = async || explain(&store, "client", &[], &question).await.unwrap().decisions;
    let _request = counts.take(What::Request, 1).unwrap();
    let decisions = told().await;
    assert!(!decisions.iter().any(|one| one.subject == "answer" || one.text.contains("requests in flight")));
    assert!(decisions.iter().any(|one| one.text.contains("10.0.0.2:80: ready") && one.applies), "{decisions:#?}");
    let _connection = counts.take(What::Connection, 1).unwrap();
    let decisions = told().await;
    let closed =
        "the connection is closed: shop/cart:80 has as many connections as its limits allow, unless it is the first";
    assert!(decisions.iter().any(|one| one.text.contains(closed)), "{decisions:#?}");
    assert!(decisions.iter().any(|one| one.text.contains("1 of 1 connections of shop/cart:80") && !one.applies));
}

fn by_key(kind: v1::consistent_hash::Key) -> v1::BackendPolicy {
    let hash = v1::ConsistentHash { key: Some(kind), maximum_load_percent: 0 };
    let load_balancing = v1::LoadBalancing {
        algorithm: Some(v1::load_balancing::Algorithm::ConsistentHash(hash)),
        ..v1::LoadBalancing::default()
    };
    let origin = object("BackendPolicy", "cart");
    v1::BackendPolicy { origin, load_balancing: Some(load_balancing), ..v1::BackendPolicy::default() }
}

#[tokio::test]
async fn where_a_key_leads_is_told() {
    use v1::consistent_hash::Key;
    let addresses = ["10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"];
    // The rule sets the header that is the key to "ann".
    let set = v1::HeaderModifier {
        set: vec![v1::Header { name: "x-user".into(), value: "ann".into() }],
        ..v1::HeaderModifier::default()
    };
    let rule = |sets: bool| v1::HttpAction {
        backends: to_backends(&[(1, "shop/cart:80")]),
        filters: if sets {
            vec![v1::HttpFilter { kind: Some(v1::http_filter::Kind::RequestHeaders(set.clone())) }]
        } else {
            vec![]
        },
        ..v1::HttpAction::default()
    };
    let store = |policy: v1::BackendPolicy, sets: bool| {
        let known = v1::Endpoints { policy: Some(policy), ..endpoints(&addresses) };
        let known = resource(ResourceKind::Endpoints, "shop/cart:80", "1", Body::Endpoints(known));
        let routes = Body::Destination(routed(vec![HttpRule::default()], vec![rule(sets)]));
        let (store, _) = Store::new();
        assert_eq!(take(&store, vec![resource(ResourceKind::Destination, CART, "1", routes), known], vec![]), []);
        store
    };
    let ask = |target: &str, headers: &[(&str, &str)]| RequestToExplain {
        destination: CART.into(),
        target: target.into(),
        headers: headers
            .iter()
            .map(|(name, value)| v1::Header { name: (*name).into(), value: (*value).into() })
            .collect(),
        ..RequestToExplain::default()
    };
    let key = async |store: &Store, question: &RequestToExplain| {
        let decisions = explain(store, "client", &[], question).await.unwrap().decisions;
        let key = decisions.into_iter().find(|one| one.subject == "key").unwrap();
        assert_eq!(key.origin, "BackendPolicy shop/cart");
        (key.text, key.applies)
    };
    let header = || by_key(Key::Header("x-user".into()));
    let by_header = store(header(), false);
    let (text, applies) = key(&by_header, &ask("/", &[("x-user", "ann")])).await;
    assert!(applies && text.starts_with("the header x-user, \"ann\", leads to 10.0.0."), "{text}");
    assert!(text.ends_with("; elsewhere while that has more than 125 % of the mean load"), "{text}");
    let home =
        |text: &str| addresses.into_iter().find(|address| text.contains(&format!("leads to {address}"))).unwrap();
    let of_ann = home(&text);

    // The same value is the same key, wherever it comes from.
    let set_by_the_rule = store(header(), true);
    assert!(key(&set_by_the_rule, &ask("/", &[])).await.0.contains(of_ann));
    let by_query = store(by_key(Key::Query("user".into())), false);
    assert!(key(&by_query, &ask("/?user=ann", &[])).await.0.contains(&format!("user, \"ann\", leads to {of_ann}")));
    let cookie = v1::HashCookie { name: "cart".into(), path: "/".into(), ..v1::HashCookie::default() };
    let by_cookie = store(by_key(Key::Cookie(cookie)), false);
    assert!(key(&by_cookie, &ask("/", &[("cookie", "a=b; cart=ann")])).await.0.contains(of_ann));
    let by_source = store(by_key(Key::SourceAddress(v1::SourceAddress {})), false);
    let (text, applies) = key(&by_source, &ask("/", &[])).await;
    assert!(applies && text.contains("for calls by loopback the workload's name"), "{text}");

    for (store, absent) in [
        (&by_header, "the request has no header x-user: any endpoint will do"),
        (&by_query, "the request has no query parameter user: any endpoint will do"),
        (&by_cookie, "the request has no cookie cart: any endpoint will do, and the answer brings a cookie for it"),
    ] {
        assert_eq!(key(store, &ask("/", &[])).await, (absent.to_owned(), false));
    }

    let set = by_header.snapshot().backends["shop/cart:80"].endpoints.load_full();
    let endpoint = set.endpoints.iter().find(|endpoint| endpoint.address.to_string() == of_ann).unwrap();
    endpoint.draining.store(true, std::sync::atomic::Ordering::Relaxed);
    let (text, _) = key(&by_header, &ask("/", &[("x-user", "ann")])).await;
    assert!(text.contains(&format!("leads to {of_ann}, which is not ready: to 10.0.0.")), "{text}");
}

#[tokio::test]
async fn the_address_of_a_listener_is_what_it_stands_for() {
    let listeners = ["127.45.0.9:8001", "127.0.0.1:8002", "0.0.0.0:8003", "[::1]:8004"]
        .map(|listen| OutboundListener { listen: listen.parse().unwrap(), destination: CART.into() });
    let stands_for = |called| listener_at(called, &listeners).map(|listener| listener.listen.port());
    for (called, port) in [
        ("127.45.0.9:8001", Some(8001)),
        ("localhost:8001", None),
        ("localhost:8002", Some(8002)),
        ("127.0.0.1:8003", Some(8003)),
        ("10.0.0.1:8003", None),
        ("[::1]:8003", None),
        ("localhost:8004", Some(8004)),
        ("127.45.0.9:8002", None),
        (CART, None),
    ] {
        assert_eq!(stands_for(called), port, "{called}");
    }
    let ask = |destination: &str| RequestToExplain {
        destination: destination.into(),
        target: "/items".into(),
        ..RequestToExplain::default()
    };
    let by_name = explain(&store(), "client", &listeners, &ask(CART)).await.unwrap().decisions;
    let by_address = explain(&store(), "client", &listeners, &ask("127.45.0.9:8001")).await.unwrap().decisions;
    let (listener, rest) = by_address.split_first().unwrap();
    assert_eq!(listener.text, format!("127.45.0.9:8001 is the proxy's own, and stands for {CART}"));
    let texts = |of: &[Decision]| of.iter().map(|told| told.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(rest), texts(&by_name));
}
