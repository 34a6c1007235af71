use crate::{
    compile::tests::world,
    model::{Condition, Kind, ObjectKey, World},
};

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: shop}]
  rules:
    - name: cart
      backendRefs: [{name: shop, port: 80}]
";

fn backend_policy(name: &str, created: Option<&str>, section: Option<&str>) -> String {
    let created = created.map(|at| format!(", creationTimestamp: '{at}'")).unwrap_or_default();
    let section = section.map(|name| format!(", sectionName: {name}")).unwrap_or_default();
    format!(
        "---\napiVersion: leno.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: {name}{created}}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: shop{section}}}], timeouts: {{connect: 1s}}}}\n"
    )
}

fn at<'a>(world: &'a World, port: &str) -> Option<&'a str> {
    let service = ObjectKey { kind: Kind::Service, namespace: "default".into(), name: "shop".into() };
    Some(&world.policies.at(Kind::BackendPolicy, &service, port)?.name)
}

fn accepted(world: &World, name: &str) -> Vec<(bool, String, String)> {
    let told = |condition: &Condition| (condition.status, condition.reason.clone(), condition.message.clone());
    let object = world.objects().into_iter().find(|object| &*object.key.name == name && object.key.kind.is_policy());
    object.unwrap().conditions.iter().map(told).collect()
}

#[test]
fn the_oldest_policy_of_a_place_is_in_force_and_the_others_are_told() {
    let text = [
        SERVICE,
        &backend_policy("a-new", Some("2026-02-01T00:00:00Z"), None),
        &backend_policy("z-old", Some("2026-01-01T00:00:00Z"), None),
        &backend_policy("of-a-folder", None, None),
    ];
    let world = world(&text.concat());
    assert_eq!(at(&world, "http"), Some("z-old"));
    assert_eq!(accepted(&world, "z-old"), [(true, "Accepted".to_owned(), String::new())]);
    for loser in ["a-new", "of-a-folder"] {
        let told = accepted(&world, loser);
        assert!(!told[0].0 && told[0].1 == "Conflicted" && told[0].2.contains("z-old"), "{told:?}");
    }
}

#[test]
fn a_section_goes_before_the_whole() {
    let text = [SERVICE, &backend_policy("whole", None, None), &backend_policy("section", None, Some("admin"))];
    let world = world(&text.concat());
    assert_eq!((at(&world, "http"), at(&world, "admin")), (Some("whole"), Some("section")));
    let told = accepted(&world, "whole");
    assert!(told[0].0 && told[0].2.contains("admin: BackendPolicy default/section"), "{told:?}");
    assert_eq!(accepted(&world, "section"), [(true, "Accepted".to_owned(), String::new())]);
}

#[test]
fn what_is_not_there_is_said() {
    let elsewhere = "---\napiVersion: leno.dev/v1alpha1\nkind: RoutePolicy\nmetadata: {name: elsewhere}\n\
        spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: card}]}\n";
    let text = [SERVICE, &backend_policy("nowhere", None, Some("htttp")), elsewhere];
    let world = world(&text.concat());
    assert_eq!(at(&world, "htttp"), None);
    let told = |name| accepted(&world, name).remove(0);
    let missing = |what: &str| (false, "TargetNotFound".to_owned(), what.to_owned());
    assert_eq!(told("nowhere"), missing("Service default/shop has no port named \"htttp\""));
    assert_eq!(told("elsewhere"), missing("HTTPRoute default/shop has no rule named \"card\""));
}
