//! What GEP-1294 says of routes on Services, where the tests beside this one do not.

use super::*;

/// Another namespace's Service, and a headless one.
const MORE: &str = "
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: store}
spec: {clusterIP: 10.0.0.9, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: web}
spec: {clusterIP: None, ports: [{port: 80}]}
";

fn on(namespace: &str, name: &str, parent: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{parentRefs: [{{{parent}}}], {spec}}}
"
    )
}

const TO_STOCK: &str = "rules: [{backendRefs: [{name: stock, namespace: store, port: 80}]}]";

fn accepted(world: &World, name: &str) -> String {
    let object = world.objects().into_iter().find(|object| &*object.key.name == name).unwrap();
    let text = |kind: &str| {
        let of_kind = object.conditions.iter().find(|condition| condition.kind == kind).unwrap();
        format!("{kind}={} {}", of_kind.status, of_kind.reason)
    };
    format!("{} {}", text("Accepted"), text("ResolvedRefs"))
}

#[test]
fn host_names_are_ignored_and_backends_elsewhere_need_no_grant() {
    let parent = "group: core, kind: Service, name: shop, port: 80";
    let world = shop(&(MORE.to_owned() + &on("web", "r", parent, &format!("hostnames: [other.example], {TO_STOCK}"))));
    assert_eq!(shop_rules(&world, "any"), ["-> store/stock:80=1"]);
    assert_eq!(accepted(&world, "r"), "Accepted=true Accepted ResolvedRefs=true ResolvedRefs");
}

#[test]
fn a_section_is_a_port_by_its_name() {
    let at = |section: &str| format!("group: '', kind: Service, name: shop, sectionName: {section}");
    let routes = on("web", "r", &at("metrics"), TO_STOCK) + &on("web", "lost", &at("none"), TO_STOCK);
    let world = shop(&(MORE.to_owned() + &routes));
    assert_eq!(rules(&service(&world, "any", "10.0.0.1:9090").http.unwrap()), ["-> store/stock:80=1"]);
    // The other port keeps its default.
    assert_eq!(shop_rules(&world, "any"), ["-> web/shop:80=1"]);
    assert_eq!(accepted(&world, "lost"), "Accepted=false NoMatchingParent ResolvedRefs=true ResolvedRefs");
    // Both together name a port that there is not.
    let both = on("web", "r", &(at("metrics") + ", port: 80"), TO_STOCK);
    let world = shop(&(MORE.to_owned() + &both));
    assert_eq!(accepted(&world, "r"), "Accepted=false NoMatchingParent ResolvedRefs=true ResolvedRefs");
}

#[test]
fn a_consumers_kind_does_not_conflict_with_a_producers() {
    let parent = "group: '', kind: Service, namespace: web, name: shop, port: 80";
    let grpc = on("web", "producer", parent, TO_STOCK).replace("HTTPRoute", "GRPCRoute");
    let world = shop(&(MORE.to_owned() + &grpc + &on("front", "consumer", parent, TO_STOCK)));
    for name in ["producer", "consumer"] {
        assert_eq!(accepted(&world, name), "Accepted=true Accepted ResolvedRefs=true ResolvedRefs", "{name}");
    }
    assert_eq!(service(&world, "front", "10.0.0.1:80").protocol(), Protocol::Http);
    assert_eq!(service(&world, "any", "10.0.0.1:80").protocol(), Protocol::Http2);
}

#[test]
fn a_headless_service_is_no_parent_and_may_be_a_backend() {
    let to_peers = "rules: [{backendRefs: [{name: peers, port: 80}]}]";
    let routes = on("web", "r", "group: '', kind: Service, name: shop, port: 80", to_peers)
        + &on("web", "lost", "group: '', kind: Service, name: peers", to_peers);
    let world = shop(&(MORE.to_owned() + &routes));
    assert_eq!(shop_rules(&world, "any"), ["-> web/peers:80=1"]);
    assert_eq!(accepted(&world, "lost"), "Accepted=false NoMatchingParent ResolvedRefs=true ResolvedRefs");
}

#[test]
fn where_all_endpoints_are_terminating_those_that_serve_are_told_of() {
    let all = SHOP.replace(
        "- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: shop-a}, zone: z1}\n",
        "- {addresses: [10.1.0.1], conditions: {ready: false, serving: false, terminating: true}}\n",
    );
    let world = world(&all.replace("- {addresses: [10.1.0.4]}\n", ""));
    let states: Vec<_> =
        endpoints(&world, "web/shop:80").endpoints.iter().map(|one| (one.address.clone(), one.state())).collect();
    // Which proxies take as their last resort.
    assert_eq!(states, [("10.1.0.2:8080".to_owned(), v1::endpoint::State::Draining)]);
}
