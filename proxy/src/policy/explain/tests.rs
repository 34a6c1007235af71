use leno_proto::v1::{
    HttpMatch, HttpRule, NamedMatch, ObjectGeneration, ObjectRef, PathMatch, Resource, ResourceKind, Retry, RuleOrigin,
    named_match, path_match, resource::Body,
};

use super::*;
use crate::policy::apply::tests::{endpoints, resource, routed, take, to_backends};

const CART: &str = "cart.shop:80";

fn route() -> ObjectRef {
    ObjectRef { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "cart".into() }
}

fn store() -> Arc<Store> {
    let rule = |name: &str, path: &str, headers: Vec<NamedMatch>, action| {
        let path = PathMatch { kind: Some(path_match::Kind::Prefix(path.to_owned())) };
        let action_of = leno_proto::v1::HttpAction {
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
    let decisions = explain(&store(), &question).await.unwrap().decisions;
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
    has("backend: shop/cart:80 gets 90.0000 %", true, "HTTPRoute shop/cart, rule rest");
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
    let decisions = explain(&store(), &question).await.unwrap().decisions;
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
    assert!(explain(&store, &ask("a.b:80", "G T", "/")).await.is_err_and(|error| error.contains("method")));
    assert!(explain(&store, &ask("a.b:80", "", "x")).await.is_err_and(|error| error.contains("slash")));
    drop(asks);
    let unknown = explain(&store, &ask("a.b:80", "", "/")).await;
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
    let told = explain(&store, &question("spiffe://cluster.local/ns/shop/sa/client", 8080)).await.unwrap().decisions;
    let has = |text: &str| told.iter().any(|one| one.text.contains(text));
    assert!(
        has("plaintext is refused") && has("let in as spiffe://") && has("requests at a time (adaptive)"),
        "{told:#?}"
    );
    let told = explain(&store, &question("", 8080)).await.unwrap().decisions;
    assert!(told.iter().any(|one| one.subject == "client" && !one.applies), "{told:#?}");
    assert!(explain(&store, &question("", 70_000)).await.is_err());
}
