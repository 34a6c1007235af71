//! What becomes of a route that is refused beside others that are good.

use super::*;

/// Like [`shop`], with a document that is wrong.
fn with_a_bad_one(more: &str) -> World {
    let text = format!("{SHOP}---\n{more}");
    let yaml::Contents { documents, unreadable, .. } = yaml::documents(&"test.yaml".into(), &text, &yaml::Known::new());
    let settings = MeshSettings::strict("cluster.local");
    let world = World::empty(settings, Generations::default()).apply(documents, unreadable);
    assert!(!world.errors().is_empty());
    world
}

fn on(day: u32, route: String) -> String {
    route.replace("metadata: {", &format!("metadata: {{creationTimestamp: '2026-01-{day:02}T00:00:00Z', "))
}

/// What is matched, and "500" or the good backend's weight.
fn told(world: &World) -> Vec<String> {
    told_in("any", world)
}

fn told_in(namespace: &str, world: &World) -> Vec<String> {
    let short = |rule: String| match rule.split_once("-> invalid(") {
        Some((matched, _)) => format!("{matched}-> 500"),
        None => rule,
    };
    shop_rules(world, namespace).into_iter().map(short).collect()
}

const BAD: &str = "{path: {type: RegularExpression, value: '/(?=x)'}}";

#[test]
fn a_rule_that_cannot_be_read_takes_only_what_nobody_else_does() {
    let good = on(2, route("web", "good", &format!("[{{matches: [{{path: {{value: /}}}}], {}}}]", to(1))));
    let unreadable = on(1, route("web", "bad", &format!("[{{matches: [{BAD}], {}}}]", to(2))));
    for documents in [unreadable.clone() + &good, good.clone() + &unreadable] {
        assert_eq!(told(&with_a_bad_one(&documents)), ["-> web/shop:80=1", "-> 500"]);
    }
    // Alone it does: nothing goes past it.
    assert_eq!(told(&with_a_bad_one(&unreadable)), ["-> 500"]);
    for rules in ["none", "[{matches: none}]", "[none]"] {
        let nothing = on(1, route("web", "bad", rules));
        let all = told(&with_a_bad_one(&(nothing + &good)));
        assert_eq!(all.first().map(String::as_str), Some("-> web/shop:80=1"), "{rules}: {all:?}");
    }
}

#[test]
fn a_refused_rule_that_takes_everything_stands_below_every_good_one() {
    let good = on(2, route("web", "good", &format!("[{{matches: [{{path: {{value: /}}}}], {}}}]", to(1))));
    // An API server writes the second where an author wrote the first.
    for matches in ["", "matches: [{path: {type: PathPrefix, value: /}}], ", "matches: [], ", "matches: [{}], "] {
        let bad = on(1, route("web", "bad", &format!("[{{{matches}timeouts: {{request: soon}}, {}}}]", to(2))));
        assert_eq!(told(&with_a_bad_one(&(bad.clone() + &good))), ["-> web/shop:80=1", "-> 500"], "{matches}");
        assert_eq!(told(&with_a_bad_one(&bad)), ["-> 500"], "{matches}");
    }
    // What it says of some requests is its own, as it would be if the rest of it were right.
    let some = "matches: [{method: POST}], timeouts: {request: soon}";
    let bad = on(1, route("web", "bad", &format!("[{{{some}, {}}}]", to(2))));
    assert_eq!(told(&with_a_bad_one(&(bad + &good))), ["POST -> 500", "-> web/shop:80=1"]);
}

#[test]
fn a_refused_consumer_route_leaves_its_clients_the_services_own_routes() {
    let own =
        on(1, route("web", "own", &format!("[{{matches: [{{path: {{value: /a}}}}], {}}}, {{{}}}]", to(1), to(2))));
    let bad = |matches: &str| {
        on(2, route("front", "bad", &format!("[{{matches: [{matches}], timeouts: {{request: soon}}, {}}}]", to(3))))
    };
    let told = |documents: String, namespace: &str| told_in(namespace, &with_a_bad_one(&documents));
    let whole = [r#"Prefix("/a") -> web/shop:80=1"#, "-> web/shop:80=2"];
    assert_eq!(told(bad("{path: {value: /}}") + &own, "web"), whole);
    assert_eq!(told(bad("{path: {value: /}}") + &own, "front"), [&whole[..], &["-> 500"]].concat());
    let exact = bad("{path: {type: Exact, value: /a/b}}");
    assert_eq!(told(exact.clone() + &own, "front"), [&[r#"Exact("/a/b") -> 500"#], &whole[..]].concat());
    // Beside a good one of its own namespace it is like any refused one, and that one displaces the Service's.
    let good = on(3, route("front", "good", &format!("[{{{}}}]", to(4))));
    let both = [r#"Exact("/a/b") -> 500"#, "-> web/shop:80=4"];
    assert_eq!(told(exact + &own + &good, "front"), both);
    // Where the Service's own are of another kind it does nothing.
    let grpc =
        bad("").replace("HTTPRoute", "GRPCRoute").replace("matches: [], timeouts: {request: soon}", "matches: none");
    assert_eq!(told(grpc.clone() + &own, "front"), whole);
    assert_eq!(told(grpc, "front"), ["-> 500"], "without any it has the port to itself");
}

#[test]
fn of_a_refused_rule_the_matches_that_can_be_read_remain_and_no_more() {
    let exact = "{path: {type: Exact, value: /a}}";
    let bad = on(1, route("web", "bad", &format!("[{{matches: [{exact}, {BAD}, 7], {}}}]", to(2))));
    let good = on(2, route("web", "good", &format!("[{{matches: [{{path: {{value: /}}}}], {}}}]", to(1))));
    assert_eq!(told(&with_a_bad_one(&(bad.clone() + &good))), ["Exact(\"/a\") -> 500", "-> web/shop:80=1"]);
    assert_eq!(told(&with_a_bad_one(&bad)), ["Exact(\"/a\") -> 500"]);
}

#[test]
fn a_refused_route_takes_no_port_from_an_accepted_one() {
    let good = on(2, route("web", "good", &format!("[{{{}}}]", to(1))));
    let bad = |kind: &str, rules: &str| on(1, route("web", "bad", rules).replace("HTTPRoute", kind));
    let grpc = || bad("GRPCRoute", "[{matches: [{method: {service: 'a b'}}], backendRefs: [{name: shop, port: 80}]}]");
    let world = with_a_bad_one(&(grpc() + &good));
    let target = service(&world, "any", "10.0.0.1:80");
    assert_eq!((target.protocol(), told(&world)), (Protocol::Http, vec!["-> web/shop:80=1".to_owned()]));
    // By itself it has the port.
    assert_eq!(told(&with_a_bad_one(&grpc())), ["-> 500"]);

    let tcp =
        on(2, route("web", "good", "[{backendRefs: [{name: shop-v2, port: 80}]}]").replace("HTTPRoute", "TCPRoute"));
    let first = |documents: String| {
        let target = service(&with_a_bad_one(&documents), "any", "10.0.0.1:80");
        target.tcp.unwrap().origin.unwrap().route.unwrap().name
    };
    let older = || bad("TCPRoute", "[{backendRefs: [{name: shop-v2, port: 0}]}]");
    assert_eq!((first(older() + &tcp), first(older())), ("good".to_owned(), "bad".to_owned()));

    let names = "[{backendRefs: [{name: shop-v2, port: 80}]}]\n  hostnames: ";
    let tls = |names: &str| on(2, route("web", "good", names).replace("HTTPRoute", "TLSRoute"));
    let order = |documents: String| -> Vec<String> {
        let rules = service(&with_a_bad_one(&documents), "any", "10.0.0.1:80").tls.unwrap().rules;
        let said = |rule: v1::TlsRule| {
            format!("{} {}", rule.server_names.join(","), rule.route.unwrap().origin.unwrap().route.unwrap().name)
        };
        rules.into_iter().map(said).collect()
    };
    let any = tls("[{backendRefs: [{name: shop-v2, port: 80}]}]");
    assert_eq!(order(bad("TLSRoute", &format!("{names}['A B']")) + &any), [" good", " bad"]);
    assert_eq!(
        order(bad("TLSRoute", &format!("{names}['A B', c.example.com]")) + &any),
        ["c.example.com bad", " good"]
    );
}
