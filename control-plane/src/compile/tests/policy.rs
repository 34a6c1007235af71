//! What policies of ours make of resources.

use super::*;
use crate::model::Kind;

const SHOP: &str = r"
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: shop, port: 80}]
  rules:
    - name: cart
      matches: [{path: {value: /cart}}]
      timeouts: {request: 3s}
      backendRefs: [{name: shop, port: 80}]
    - backendRefs: [{name: shop, port: 80}]
    - matches: [{path: {value: /stream}}]
      timeouts: {request: 0s}
      backendRefs: [{name: shop, port: 80}]
---
apiVersion: leno.dev/v1alpha1
kind: BackendPolicy
metadata: {name: call}
spec:
  targetRefs: [{group: '', kind: Service, name: shop, sectionName: http}]
  timeouts: {connect: 250ms, response: 2s}
---
apiVersion: leno.dev/v1alpha1
kind: RoutePolicy
metadata: {name: patience}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}]
  timeouts: {request: 5s, response: 4s, backendRequest: 1s}
";

fn millis(duration: Option<prost_types::Duration>) -> Option<i64> {
    duration.map(|duration| duration.seconds * 1000 + i64::from(duration.nanos) / 1_000_000)
}

fn has_origin(resource: &Resource, kind: Kind, name: &str) -> bool {
    let objects = resource.origins.iter().filter_map(|origin| origin.object.as_ref());
    objects.into_iter().any(|object| object.kind == kind.as_str() && object.name == name)
}

#[test]
fn a_backend_policy_goes_with_the_endpoints_of_its_port() {
    let world = world(SHOP);
    let policy = endpoints(&world, "default/shop:80").policy.unwrap();
    assert_eq!(policy.origin.unwrap().name, "call");
    assert_eq!((millis(policy.connect_timeout), millis(policy.response_timeout)), (Some(250), Some(2000)));
    assert_eq!(endpoints(&world, "default/shop:81").policy, None);
    let (resource, _) = get(&world, "any", ResourceKind::Endpoints, "default/shop:80");
    assert!(has_origin(&resource.unwrap(), Kind::BackendPolicy, "call"));
}

#[test]
fn a_route_policy_says_what_the_route_leaves_open() {
    let world = world(SHOP);
    let actions = service(&world, "default", "shop.default:80").http.unwrap().actions;
    let timeouts: Vec<_> =
        actions.iter().map(|action| (millis(action.request_timeout), millis(action.backend_request_timeout))).collect();
    assert_eq!(actions.iter().filter_map(|action| millis(action.response_timeout)).collect::<Vec<_>>(), [4000; 3]);
    assert_eq!(timeouts, [(Some(3000), Some(1000)), (Some(5000), Some(1000)), (Some(0), Some(1000))]);
    let (resource, _) = get(&world, "default", ResourceKind::Destination, "shop.default:80");
    assert!(has_origin(&resource.unwrap(), Kind::RoutePolicy, "patience"));
}

#[test]
fn a_policy_touches_what_it_is_attached_to_and_what_it_was() {
    let first = world(SHOP);
    let documents = |text: &str| {
        let read = yaml::documents(&"test.yaml".into(), text, &yaml::Known::new());
        read.documents
    };
    let moved = SHOP.replace("name: shop, sectionName: http}", "name: other}");
    let second = first.apply(documents(&moved), Vec::new());
    for service in ["default/shop", "default/other"] {
        assert!(second.changed_since(&[Topic::Service(service.into()).id()], first.generation()), "{service}");
    }
    let third = second.apply(documents(&moved.replace("request: 5s", "request: 6s")), Vec::new());
    let topics = |service: &str| [Topic::Service(service.into()).id()];
    assert!(third.changed_since(&topics("default/shop"), second.generation()));
    assert!(!third.changed_since(&topics("default/other"), second.generation()));
}

#[test]
fn bad_policies_are_refused_with_field_and_reason() {
    let bad = |spec: &str| {
        let text = format!("apiVersion: leno.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: p}}\nspec: {spec}\n");
        let read = yaml::documents(&"test.yaml".into(), &text, &yaml::Known::new());
        let empty = World::empty(MeshSettings::strict("cluster.local"), Generations::default());
        let world = empty.apply(read.documents, read.unreadable);
        let errors = world.errors().iter().map(|error| format!("{}: {}", error.field, error.reason));
        errors.collect::<Vec<_>>()
    };
    assert_eq!(bad("{targetRefs: []}"), ["spec.targetRefs: required: what the policy holds for"]);
    let target = "targetRefs: [{group: '', kind: Service, name: shop}]";
    for (spec, field) in [
        (format!("{{{target}, timeouts: {{connect: 0s}}}}"), "spec.timeouts.connect"),
        (format!("{{{target}, timeouts: {{connect: 61s}}}}"), "spec.timeouts.connect"),
        (format!("{{{target}, timeouts: {{connect: -1s}}}}"), "spec.timeouts.connect"),
        (format!("{{{target}, timeouts: {{connect: 5}}}}"), "spec.timeouts.connect"),
        ("{targetRefs: [{group: '', kind: Pod, name: shop}]}".to_owned(), "spec.targetRefs[0].kind"),
        ("{targetRefs: [{group: apps, kind: Service, name: shop}]}".to_owned(), "spec.targetRefs[0].group"),
        ("{targetRefs: [{group: '', kind: Service, name: Shop}]}".to_owned(), "spec.targetRefs[0].name"),
    ] {
        let errors = bad(&spec);
        assert!(errors.len() == 1 && errors[0].starts_with(&format!("{field}: ")), "{spec}: {errors:?}");
    }
}
