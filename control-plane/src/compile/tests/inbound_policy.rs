//! InboundPolicy, at the ports of the workloads that it holds for.

use leno_proto::v1::{concurrency, rate_limit};

use super::*;

fn policy(name: &str, target: &str, created: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: leno.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: {name}, namespace: web{created}}}\n\
         spec:\n  targetRefs: [{{group: '', kind: Service, {target}}}]\n{spec}"
    )
}

/// By port: the policy in force and what it limits connections to.
fn in_force(world: &World, workload: &str) -> Vec<(u32, String, u32)> {
    let ports = inbound(world, "web", workload).ports.into_iter();
    let named = ports.filter_map(|port| {
        let policy = port.policy?;
        Some((port.port, policy.origin.unwrap_or_default().name, policy.max_connections))
    });
    named.collect()
}

#[test]
fn it_holds_at_the_workloads_own_port() {
    let spec = "  rateLimits:
  - {name: a, requests: 5, key: {type: Header, header: X-A}, matches: [{path: {value: /api}}]}
  concurrency: {mode: Fixed, limit: 7}\n";
    let world = shop(&policy("p", "name: shop, sectionName: http", "", spec));
    let ports = inbound(&world, "web", "shop-a").ports;
    let [http, metrics] = ports.as_slice() else { panic!("{ports:?}") };
    assert!(http.port == 8080 && metrics.policy.is_none());
    let policy = http.policy.as_ref().unwrap();
    let limit = &policy.rate_limits[0];
    assert_eq!((limit.requests, limit.per_seconds, limit.burst, limit.key()), (5, 1, 5, rate_limit::Key::Header));
    assert_eq!((limit.header.as_str(), limit.matches.len()), ("x-a", 1));
    let concurrency = policy.concurrency.as_ref().unwrap();
    assert_eq!((concurrency.mode(), concurrency.max), (concurrency::Mode::Fixed, 7));
    let subscriber = Subscriber { workload: "shop-a".to_owned(), ..client("web") };
    let name = ResourceName { kind: ResourceKind::Inbound.into(), key: String::new() };
    let origins = compile(&world, &subscriber, &name).0.unwrap().origins;
    assert!(origins.iter().any(|origin| origin.object.as_ref().is_some_and(|object| object.kind == "InboundPolicy")));
}

#[test]
fn the_more_specific_and_then_the_oldest_holds() {
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: v2-1, namespace: web, labels: {kubernetes.io/service-name: shop-v2}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: shop-a}}]\n";
    let (early, late) = (", creationTimestamp: '2026-01-01T00:00:00Z'", ", creationTimestamp: '2026-02-01T00:00:00Z'");
    let whole = policy("whole", "name: shop", late, "  maxConnections: 1\n");
    let port = policy("port", "name: shop, sectionName: metrics", late, "  maxConnections: 2\n");
    let other = policy("other", "name: shop-v2", early, "  maxConnections: 3\n");
    let world = shop(&[&whole, &port, slice, &other].map(|text| text.to_string()).concat());
    // 8080 is the port of both Services.
    let expected = [(8080, "other".to_owned(), 3), (9999, "port".to_owned(), 2)];
    assert_eq!(in_force(&world, "shop-a"), expected);
    assert_eq!(in_force(&world, "shop-b"), [(8080, "whole".to_owned(), 1), (9999, "port".to_owned(), 2)]);
    // Who lost at one Pod is told, and still counts, by the others.
    let told = accepted(&world, "whole");
    assert!(told.status && told.message.contains("port 8080 of Pod web/shop-a: InboundPolicy web/other"), "{told:?}");
    assert!(!told.message.contains("shop-b"), "{told:?}");
    assert_eq!(accepted(&world, "other").message, "");
}

fn accepted(world: &World, name: &str) -> model::Condition {
    let mut objects = world.objects().into_iter();
    let found = objects.find(|object| &*object.key.name == name && object.key.kind == Kind::InboundPolicy).unwrap();
    found.conditions.into_iter().find(|condition| condition.kind == "Accepted").unwrap()
}

#[test]
fn who_is_in_force_nowhere_is_not_accepted_and_is_no_origin() {
    let (early, late) = (", creationTimestamp: '2026-01-01T00:00:00Z'", ", creationTimestamp: '2026-02-01T00:00:00Z'");
    let headless = "---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: web}
spec: {clusterIP: None, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: headless-1, namespace: web, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: shop-a}}]\n";
    let winner = policy("winner", "name: shop", early, "  maxConnections: 1\n");
    let loser = policy("loser", "name: headless", late, "  maxConnections: 2\n");
    let world = shop(&[headless, &winner, &loser].concat());
    assert_eq!(in_force(&world, "shop-a")[0], (8080, "winner".to_owned(), 1));
    let told = accepted(&world, "loser");
    assert!(!told.status && told.reason == "Conflicted", "{told:?}");
    assert!(told.message.contains("port 8080 of Pod web/shop-a: InboundPolicy web/winner"), "{told:?}");
    assert!(accepted(&world, "winner").status);
    let subscriber = Subscriber { workload: "shop-a".to_owned(), ..client("web") };
    let name = ResourceName { kind: ResourceKind::Inbound.into(), key: String::new() };
    let origins = compile(&world, &subscriber, &name).0.unwrap().origins;
    let policies: Vec<String> = origins
        .into_iter()
        .filter_map(|origin| origin.object.filter(|object| object.kind == "InboundPolicy"))
        .map(|object| object.name)
        .collect();
    assert_eq!(policies, ["winner"]);
}

/// A Service of namespace "evil" that lists addresses by hand.
fn evil(addresses: &str) -> String {
    let policy = policy("evil", "name: shop", ", creationTimestamp: '2025-01-01T00:00:00Z'", "  maxConnections: 1\n");
    let policy = policy.replace("namespace: web", "namespace: evil");
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: shop, namespace: evil}}
spec: {{clusterIP: None, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: shop-1, namespace: evil, labels: {{kubernetes.io/service-name: shop}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: {addresses}, zone: far}}]
{policy}"
    )
}

#[test]
fn services_of_other_namespaces_have_no_say_in_what_a_pod_accepts() {
    let victim = policy("victim", "name: shop", "", "  maxConnections: 2\n");
    let plain = shop(&victim);
    let told = |world: &World| {
        let own = inbound(world, "web", "shop-a");
        (in_force(world, "shop-a"), own.zone, own.ports.into_iter().map(|port| port.protocol).collect::<Vec<_>>())
    };
    let world = shop(&[&*evil("[10.1.0.1]"), &victim].concat());
    assert_eq!(in_force(&world, "shop-a")[0], (8080, "victim".to_owned(), 2));
    assert_eq!(told(&world), told(&plain));
    let victims = accepted(&world, "victim");
    assert!(victims.status && victims.message.is_empty(), "{victims:?}");
    let others = accepted(&world, "evil");
    assert!(!others.status && others.reason == "Invalid", "{others:?}");
    assert_eq!(others.message, "not in force at Pods of other namespaces: 10.1.0.1");
    // Also where the Pod's own Services have no policy.
    assert!(in_force(&shop(&evil("[10.1.0.1]")), "shop-a").is_empty());
    // It is in force at Pods of its own namespace.
    let own = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: own, namespace: evil}\nspec: {serviceAccountName: own}\n\
               status: {podIP: 10.1.9.9}\n";
    let both = shop(&[&*evil("[10.1.0.1, 10.1.9.9]"), own, &victim].concat());
    let subscriber = inbound(&both, "evil", "own");
    assert_eq!(subscriber.ports[0].policy.as_ref().map(|policy| policy.max_connections), Some(1));
    let others = accepted(&both, "evil");
    assert!(others.status && others.message.ends_with("of other namespaces: 10.1.0.1"), "{others:?}");
}
