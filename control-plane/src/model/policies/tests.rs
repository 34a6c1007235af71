use crate::{
    compile::tests::world,
    model::{Condition, Generations, Kind, MeshSettings, ObjectKey, World},
    sources::yaml::{self, Contents},
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
    assert_eq!(accepted(&world, "a-new")[0].2, "BackendPolicy default/z-old is older, and is in force");
    let told = &accepted(&world, "of-a-folder")[0].2;
    assert_eq!(told, "BackendPolicy default/z-old alone has a creationTimestamp, and is in force");
}

#[test]
fn where_no_time_decides_the_name_is_said_to() {
    let yesterday = backend_policy("c", Some("yesterday"), None);
    let world =
        world(&[SERVICE, &backend_policy("b", None, None), &backend_policy("a", None, None), &yesterday].concat());
    assert_eq!(accepted(&world, "b")[0].2, "BackendPolicy default/a goes first by its name, and is in force");
    let told = accepted(&world, "c");
    assert_eq!(told[0].2, "BackendPolicy default/a goes first by its name, and is in force");
    assert!(told[1].2.ends_with("metadata.creationTimestamp (\"yesterday\" is no time)"), "{told:?}");
}

#[test]
fn what_a_route_says_itself_is_told_to_its_policy() {
    let policy = |section: &str| {
        format!(
            "---\napiVersion: leno.dev/v1alpha1\nkind: RoutePolicy\nmetadata: {{name: p}}\n\
             spec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop{section}}}], \
             retry: {{}}, timeouts: {{request: 2s, backendRequest: 1s}}}}\n"
        )
    };
    let own = SERVICE.replace(
        "    - name: cart\n",
        "    - name: plain\n    - name: cart\n      retry: {codes: [503]}\n      timeouts: {request: 5s}\n",
    );
    let told = |text: &str| {
        let Contents { documents, unreadable, .. } = yaml::documents(&"a.yaml".into(), text, &yaml::Known::new());
        let world = World::empty(MeshSettings::strict("cluster.local"), Generations::default());
        accepted(&world.apply(documents, unreadable), "p").remove(0)
    };
    let said = (true, "Accepted".to_owned(), "the route says itself: rule cart: retry, timeouts.request".to_owned());
    assert_eq!(told(&format!("{own}{}", policy(""))), said);
    assert_eq!(told(&format!("{own}{}", policy(", sectionName: cart"))), said);
    assert_eq!(told(&format!("{own}{}", policy(", sectionName: plain"))).2, "");
    // A refused route's rules are not known.
    let refused = own.replace("request: 5s", "request: soon");
    let (status, reason, message) = told(&format!("{refused}{}", policy(", sectionName: cart")));
    assert_eq!((status, &*reason), (false, "TargetNotFound"));
    assert!(message.starts_with("HTTPRoute default/shop is refused: spec.rules[1].timeouts.request"), "{message}");
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
