use serde_json::{Value, json};

use super::*;

fn pod(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "status": {"podIP": ip}})
}

fn service(name: &str, port: i64) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": port}]}})
}

fn route(name: &str, parent: &str, backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": parent}],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
        },
    })
}

fn documents(file: &str, contents: &[Value]) -> Vec<Document> {
    let document =
        |(content, index): (&Value, u32)| Document { file: file.into(), index, content: Arc::new(content.clone()) };
    contents.iter().zip(1..).map(document).collect()
}

fn empty() -> World {
    World::empty(MeshSettings::strict("cluster.local"), Generations::default())
}

fn apply(before: &World, contents: &[Value]) -> World {
    before.apply(documents("a.yaml", contents), Vec::new())
}

fn generations(world: &World) -> Vec<(String, u64)> {
    world.objects().into_iter().map(|object| (object.key.name.to_string(), object.generation)).collect()
}

fn touched(before: &World, after: &World, topic: &Topic) -> bool {
    after.changed_since(&[topic.id()], before.generation())
}

#[test]
fn the_same_documents_are_the_same_generation() {
    let first = apply(&empty(), &[service("a", 80), pod("p", "10.0.0.1")]);
    assert_eq!(first.generation(), 1);
    let again = apply(&first, &[pod("p", "10.0.0.1"), service("a", 80)]);
    assert_eq!((again.generation(), generations(&again)), (1, vec![("a".into(), 1), ("p".into(), 1)]));
    assert!(!again.changed_since(&[Topic::Service("default/a".into()).id()], 1));
}

#[test]
fn a_change_counts_for_its_object_and_touches_its_topics_only() {
    let first = apply(&empty(), &[service("a", 80), service("b", 80)]);
    let second = apply(&first, &[service("a", 81), service("b", 80)]);
    assert_eq!((second.generation(), generations(&second)), (2, vec![("a".into(), 2), ("b".into(), 1)]));
    assert!(touched(&first, &second, &Topic::Service("default/a".into())));
    assert!(!touched(&first, &second, &Topic::Service("default/b".into())));
    assert!(!second.changed_since(&[Topic::Service("default/a".into()).id()], 2));
    // Who has never looked is told that everything changed.
    assert!(second.changed_since(&[Topic::Service("default/b".into()).id()], 0));
}

#[test]
fn a_route_touches_the_service_it_left_and_the_one_it_came_to() {
    let services = [service("a", 80), service("b", 80), service("c", 80)];
    let with = |parent| services.iter().cloned().chain([route("r", parent, "c")]).collect::<Vec<_>>();
    let first = apply(&empty(), &with("a"));
    let second = apply(&first, &with("b"));
    for (service, expected) in [("a", true), ("b", true), ("c", false)] {
        assert_eq!(
            touched(&first, &second, &Topic::Service(format!("default/{service}").into())),
            expected,
            "{service}"
        );
    }
}

#[test]
fn endpoints_that_stay_are_not_touched() {
    let slice = |ips: &[(&str, bool)]| {
        let endpoint = |(ip, ready): &(&str, bool)| json!({"addresses": [ip], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": format!("p-{ip}")}});
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "a"}}, "ports": [{"port": 80}],
            "endpoints": ips.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    let first = apply(&empty(), &[service("a", 80), slice(&[("10.0.0.1", true), ("10.0.0.2", true)])]);
    let second = apply(&first, &[service("a", 80), slice(&[("10.0.0.1", true), ("10.0.0.2", false)])]);
    assert!(touched(&first, &second, &Topic::Service("default/a".into())));
    assert!(touched(&first, &second, &Topic::Workload("default/p-10.0.0.2".into())));
    assert!(!touched(&first, &second, &Topic::Workload("default/p-10.0.0.1".into())));
    // A Pod that appears gives its endpoint an identity.
    let third = apply(
        &second,
        &[service("a", 80), slice(&[("10.0.0.1", true), ("10.0.0.2", false)]), pod("p-10.0.0.1", "10.0.0.1")],
    );
    assert!(touched(&second, &third, &Topic::Service("default/a".into())));
    assert!(touched(&second, &third, &Topic::Address("10.0.0.1".into())));
}

#[test]
fn a_bad_document_leaves_its_last_good_version() {
    let first = apply(&empty(), &[service("a", 80), service("b", 80)]);
    let second = apply(&first, &[service("a", 0), service("b", 81)]);
    assert_eq!(generations(&second), [("a".into(), 1), ("b".into(), 2)]);
    assert_eq!(second.errors().len(), 1);
    assert_eq!(second.errors()[0].field, "spec.ports[0].port");
    // A document that cannot even be named: everything its file held.
    let broken = DocumentError {
        file: "a.yaml".into(),
        document: 1,
        object: None,
        field: String::new(),
        reason: "not YAML".into(),
        generation: None,
        uid: Arc::default(),
    };
    let third = second.apply(documents("b.yaml", &[service("c", 80)]), vec![broken]);
    assert_eq!(generations(&third), [("a".into(), 1), ("b".into(), 2), ("c".into(), 1)]);
    // Repaired, as it was: nothing changed.
    let fourth = third.apply(documents("a.yaml", &[service("a", 80), service("b", 81)]), Vec::new());
    assert_eq!(generations(&fourth), [("a".into(), 1), ("b".into(), 2)]);
    assert_eq!(fourth.errors(), []);
}

#[test]
fn of_two_documents_for_one_object_the_one_in_force_stays() {
    let first = empty().apply(documents("b.yaml", &[service("a", 80)]), Vec::new());
    let mut both = documents("a.yaml", &[service("a", 1)]);
    both.extend(documents("b.yaml", &[service("a", 80)]));
    let second = first.apply(both.clone(), Vec::new());
    assert_eq!(second.generation(), 1);
    assert_eq!(second.errors()[0].reason, "Service default/a is also in a.yaml#1: remove one of the two");
    assert_eq!(&*second.errors()[0].file, "b.yaml");
    // At the start there is nothing to stay with: the first by name.
    let fresh = empty().apply(both, Vec::new());
    assert_eq!(fresh.objects()[0].source, "a.yaml#1");
}

#[test]
fn generations_go_on_after_removal_and_restart() {
    let first = apply(&empty(), &[service("a", 80), pod("p", "10.0.0.1")]);
    let second = apply(&first, &[service("a", 81), pod("p", "10.0.0.1")]);
    let third = apply(&second, &[pod("p", "10.0.0.1")]);
    let fourth = apply(&third, &[service("a", 81), pod("p", "10.0.0.1")]);
    assert_eq!((fourth.generation(), generations(&fourth)), (4, vec![("a".into(), 3), ("p".into(), 1)]));
    let text = serde_json::to_string(&fourth.generations()).unwrap();
    let restart = || World::empty(MeshSettings::strict("cluster.local"), serde_json::from_str(&text).unwrap());
    let same = apply(&restart(), &[service("a", 81), pod("p", "10.0.0.1")]);
    assert_eq!((same.generation(), generations(&same)), (4, generations(&fourth)));
    let changed = apply(&restart(), &[service("a", 82), pod("p", "10.0.0.1")]);
    assert_eq!((changed.generation(), generations(&changed)), (5, vec![("a".into(), 4), ("p".into(), 1)]));
    let removed = apply(&restart(), &[pod("p", "10.0.0.1")]);
    assert_eq!(removed.generation(), 5);
}

/// What another process would make of it, had it been given `documents` next.
fn restarted(world: &World, documents: Vec<Document>, unreadable: Vec<DocumentError>) -> World {
    let last_good = world.last_good().collect();
    World::restored(world.settings.clone(), world.generations(), last_good).apply(documents, unreadable)
}

fn not_yaml(file: &str) -> DocumentError {
    let reason = "not YAML".into();
    let (generation, uid) = (None, Arc::default());
    DocumentError { file: file.into(), document: 2, object: None, field: String::new(), reason, generation, uid }
}

#[test]
fn a_document_that_is_bad_after_a_restart_leaves_its_last_good_version() {
    let mut good = documents("a.yaml", &[service("a", 80), service("b", 80)]);
    good.extend(documents("c.yaml", &[service("c", 80), service("d", 80)]));
    let before = empty().apply(good, Vec::new());
    let mut now = documents("a.yaml", &[service("a", 0), service("b", 81)]);
    now.extend(documents("c.yaml", &[service("c", 80)]));
    // The same whether the process ended in between or not.
    for after in
        [before.apply(now.clone(), vec![not_yaml("c.yaml")]), restarted(&before, now.clone(), vec![not_yaml("c.yaml")])]
    {
        assert_eq!(
            generations(&after),
            [("a".into(), 1), ("b".into(), 2), ("c".into(), 1), ("d".into(), 1)],
            "{:?}",
            after.errors()
        );
        assert_eq!(after.generation(), 2);
        let held_over: Vec<bool> = after.objects().iter().map(|object| object.held_over).collect();
        assert_eq!((held_over, after.held_over()), (vec![true, false, false, true], 2));
        assert_eq!(index::service(&after.objects, &after.objects()[0].key).unwrap().ports[0].number, 80);
        assert!(after.index == Index::default() && after.changed_since(&[Topic::Settings.id()], 0));
        // And after another one.
        let again = restarted(&after, now.clone(), vec![not_yaml("c.yaml")]);
        assert_eq!((again.generation(), generations(&again)), (2, generations(&after)));
        // Mended as it was: nothing changed.
        let mended = documents("c.yaml", &[service("c", 80), service("d", 80)]);
        let mut documents = documents("a.yaml", &[service("a", 80), service("b", 81)]);
        documents.extend(mended);
        let mended = again.apply(documents, Vec::new());
        assert_eq!((mended.generation(), generations(&mended), mended.held_over()), (2, generations(&after), 0));
    }
}

#[test]
fn what_was_removed_while_nobody_looked_is_gone() {
    let before = apply(&empty(), &[service("a", 80), service("b", 80)]);
    let after = restarted(&before, documents("a.yaml", &[service("b", 0)]), Vec::new());
    assert_eq!((after.generation(), generations(&after)), (2, vec![("b".into(), 1)]));
    assert_eq!(restarted(&after, documents("a.yaml", &[service("b", 0)]), Vec::new()).generation(), 2);
    // The whole file, with another broken one about.
    let after = restarted(&before, Vec::new(), vec![not_yaml("b.yaml")]);
    assert!(after.objects().is_empty());
    assert_eq!(restarted(&after, Vec::new(), vec![not_yaml("b.yaml")]).generation(), after.generation());
}

#[test]
fn of_two_documents_for_one_object_the_one_in_force_stays_after_a_restart() {
    let before = empty().apply(documents("b.yaml", &[service("a", 80)]), Vec::new());
    let mut both = documents("a.yaml", &[service("a", 1)]);
    both.extend(documents("b.yaml", &[service("a", 80)]));
    let after = restarted(&before, both, Vec::new());
    assert_eq!((after.generation(), after.objects()[0].source.as_str()), (1, "b.yaml#1"));
}

#[test]
fn a_last_good_version_that_is_older_than_the_generations_counts_as_a_change() {
    let first = apply(&empty(), &[service("a", 80)]);
    let second = apply(&first, &[service("a", 81)]);
    let bad = documents("a.yaml", &[service("a", 0)]);
    let behind = World::restored(first.settings.clone(), second.generations(), first.last_good().collect());
    let after = behind.apply(bad.clone(), Vec::new());
    assert_eq!((after.generation(), generations(&after)), (3, vec![("a".into(), 3)]));
    // Removed since: it does not come back.
    let third = apply(&second, &[]);
    let behind = World::restored(first.settings.clone(), third.generations(), first.last_good().collect());
    assert!(behind.apply(bad.clone(), Vec::new()).objects().is_empty());
    // Without any generations, it is the first.
    let lost = World::restored(first.settings.clone(), Generations::default(), first.last_good().collect());
    assert_eq!(generations(&lost.apply(bad, Vec::new())), [("a".into(), 1)]);
}

#[test]
fn an_item_of_a_list_is_kept_by_itself() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [service("a", 80), service("b", 80)]});
    let before = apply(&empty(), &[list]);
    let kept: Vec<Document> = before.last_good().collect();
    assert_eq!(
        kept.iter().map(|document| &*document.content).collect::<Vec<_>>(),
        [&service("a", 80), &service("b", 80)]
    );
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [service("a", 0), service("b", 81)]});
    assert_eq!(
        generations(&restarted(&before, documents("a.yaml", &[list]), Vec::new())),
        [("a".into(), 1), ("b".into(), 2)]
    );
}

#[test]
fn documents_that_did_not_change_are_not_parsed_again() {
    let documents = documents("a.yaml", &[service("a", 80), service("b", 80)]);
    let first = empty().apply(documents.clone(), Vec::new());
    let second = first.apply(documents, Vec::new());
    for (was, is) in first.intake.read().zip(second.intake.read()) {
        assert!(Arc::ptr_eq(&was.items, &is.items));
    }
}

fn conditions(world: &World, name: &str) -> Vec<String> {
    let object = world.objects().into_iter().find(|object| &*object.key.name == name).unwrap();
    let told = |condition: Condition| {
        let parent = condition.parent.map(|parent| format!(" @{parent}")).unwrap_or_default();
        format!("{}={} {}{parent} {}", condition.kind, condition.status, condition.reason, condition.message)
    };
    object.conditions.into_iter().map(told).collect()
}

#[test]
fn a_route_is_told_what_became_of_it() {
    let world =
        apply(&empty(), &[service("a", 80), service("b", 80), route("r", "a", "b"), route("lost", "none", "gone")]);
    assert_eq!(
        conditions(&world, "r"),
        ["Accepted=true Accepted @Service default/a ", "ResolvedRefs=true ResolvedRefs @Service default/a "]
    );
    assert_eq!(
        conditions(&world, "lost"),
        [
            "Accepted=false NoMatchingParent @Service default/none Service default/none does not exist",
            "ResolvedRefs=false BackendNotFound @Service default/none Service default/gone does not exist",
        ]
    );
}

#[test]
fn only_services_with_a_cluster_ip_are_parents() {
    let mut headless = service("headless", 80);
    headless["spec"]["clusterIP"] = json!("None");
    let mut external = service("external", 80);
    external["spec"]["type"] = json!("ExternalName");
    external["spec"]["externalName"] = json!("example.com");
    for (parent, service) in [("headless", headless), ("external", external)] {
        let world = apply(&empty(), &[service, route("r", parent, parent)]);
        let conditions = conditions(&world, "r");
        assert!(conditions[0].starts_with("Accepted=false NoMatchingParent"), "{conditions:?}");
        assert!(conditions[1].starts_with("ResolvedRefs=true"), "{conditions:?}");
    }
}

#[test]
fn a_gateway_is_not_ours_to_report_on() {
    let mut both = route("r", "a", "a");
    both["spec"]["parentRefs"] =
        json!([{"name": "gateway"}, {"group": "core", "kind": "Service", "name": "a", "port": 80}]);
    let world = apply(&empty(), &[service("a", 80), both]);
    assert_eq!(conditions(&world, "r")[0], "Accepted=true Accepted @Service default/a:80 ");
    assert_eq!(conditions(&world, "r").len(), 2);
}

#[test]
fn two_services_cannot_have_one_address() {
    let with_ip = |name| {
        let mut service = service(name, 80);
        service["spec"]["clusterIP"] = json!("10.0.0.1");
        service
    };
    let world = apply(&empty(), &[with_ip("b"), with_ip("a")]);
    assert_eq!(conditions(&world, "b"), ["Accepted=false Conflicted cluster IP 10.0.0.1 belongs to Service default/a"]);
    assert!(conditions(&world, "a").is_empty());
}

#[test]
fn old_topics_are_forgotten_towards_more_work_not_less() {
    let mut world = apply(&empty(), &[]);
    world.changed_at = (0..=MAX_TOPICS as u64).map(|n| (Topic::Service(n.to_string().into()).id(), n)).collect();
    world.generation = MAX_TOPICS as u64;
    let next = apply(&world, &[service("a", 80)]);
    assert!(next.changed_at.len() <= MAX_TOPICS / 2 + 2);
    assert!(next.changed_since(&[Topic::Settings.id()], 1));
    assert!(!next.changed_since(&[Topic::Settings.id()], world.generation));
    assert!(touched(&world, &next, &Topic::Service("default/a".into())));
}

fn bad_route(parent: &str, rules: Value) -> Value {
    let mut bad = route("r", parent, "b");
    bad["spec"]["rules"] = rules;
    bad
}

/// What clients of `service` get by its routes: the refusal of each backend, if that is what it is.
fn refusals(world: &World, service: &str) -> Vec<bool> {
    let key = ObjectKey { kind: Kind::Service, namespace: "default".into(), name: service.into() };
    let Some(attached) = world.routes.at(&key, 80, "default") else { return Vec::new() };
    let routes = attached.routes.iter().filter_map(|key| index::route(&world.objects, key));
    routes
        .flat_map(|route| route.rules.targets())
        .map(|target| matches!(target, crate::model::BackendTarget::OfRefused(_)))
        .collect()
}

#[test]
fn a_bad_route_without_a_last_good_version_is_stood_in_for() {
    let services = |route: Value| [service("a", 80), service("b", 80), route];
    let bad =
        || bad_route("a", json!([{"matches": [{"path": {"value": "/x"}}], "backendRefs": [{"name": "b", "port": 0}]}]));
    let first = apply(&empty(), &services(bad()));
    assert_eq!(first.errors().len(), 1);
    assert_eq!(refusals(&first, "a"), [true]);
    assert_eq!(
        conditions(&first, "r")[0],
        format!(
            "Accepted=false UnsupportedValue @Service default/a spec.rules[0].backendRefs[0].port: 0 is not a port (1 to 65535) ({})",
            crate::model::Route::REFUSED
        )
    );
    let info = first.objects().into_iter().find(|object| &*object.key.name == "r").unwrap();
    assert!(!info.held_over);
    // Bad in another way, and of another parent: that one's traffic, and not the former's.
    let second = apply(&first, &services(bad_route("b", json!("none"))));
    assert_eq!((refusals(&second, "a"), refusals(&second, "b")), (vec![], vec![true]));
    // Mended; and from then on there is a version to stay with.
    let third = apply(&second, &services(route("r", "a", "b")));
    assert_eq!((third.errors().len(), refusals(&third, "a")), (0, vec![false]));
    let fourth = apply(&third, &services(bad()));
    assert_eq!((fourth.errors().len(), refusals(&fourth, "a"), fourth.held_over()), (1, vec![false], 1));
    // Over a restart with a state folder too.
    let after = restarted(&fourth, documents("a.yaml", &services(bad())), Vec::new());
    assert_eq!((refusals(&after, "a"), after.generation()), (vec![false], fourth.generation()));
    // It goes with its document.
    assert_eq!(refusals(&apply(&first, &[service("a", 80), service("b", 80)]), "a"), [] as [bool; 0]);
}

#[test]
fn what_stands_in_keeps_to_the_matches_that_can_be_read() {
    let rules = json!([
        {"matches": [{"path": {"value": "/x"}}], "timeouts": {"request": "soon"}},
        {"matches": [{"path": {"type": "Guess", "value": "/y"}}]},
    ]);
    let world = apply(&empty(), &[service("a", 80), bad_route("a", rules)]);
    let route = world.objects.values().find_map(|stored| match stored.object.as_ref() {
        Object::Route(route) => Some(route.clone()),
        _ => None,
    });
    let crate::model::Rules::Http(rules) = route.unwrap().rules else { panic!() };
    let paths: Vec<_> = rules.iter().map(|rule| rule.matches[0].path.clone()).collect();
    assert_eq!(paths, [Some(crate::model::PathMatch::Prefix("/x".into())), None]);
    // Nobody's traffic that can be told.
    let mut stray = bad_route("a", json!("none"));
    stray["spec"]["parentRefs"] = json!([{"name": "gateway"}]);
    assert!(apply(&empty(), &[stray]).objects().is_empty());
}

#[test]
fn what_is_made_again_under_a_name_is_another() {
    let of = |uid: &str, generation: u64| {
        let mut route = route("r", "a", "b");
        route["metadata"]["uid"] = json!(uid);
        route["metadata"]["generation"] = json!(generation);
        FileContent::object("HTTPRoute default/r".into(), route)
    };
    let first = World::of_api_server(MeshSettings::strict("cluster.local")).change([of("1", 5)]);
    let second = first.change([of("2", 1)]);
    let info = &second.objects()[0];
    assert_eq!((&*info.uid, info.generation, second.generation()), ("2", 1, first.generation() + 1));
    // There and back again, before anybody looked: the status is about the newest.
    assert_eq!(second.change([of("2", 3)]).objects()[0].generation, 3);
}

fn object_of_api_server(content: Value) -> FileContent {
    FileContent::object("HTTPRoute default/r".into(), content)
}

fn with_uid(uid: &str, generation: u64, mut content: Value) -> Value {
    content["metadata"]["uid"] = json!(uid);
    content["metadata"]["generation"] = json!(generation);
    content
}

fn services_of_api_server() -> World {
    let services =
        ["a", "b"].map(|name| FileContent::object(format!("Service default/{name}").into(), service(name, 80)));
    World::of_api_server(MeshSettings::strict("cluster.local")).change(services)
}

#[test]
fn what_is_deleted_and_made_again_badly_at_once_is_not_held_over() {
    let good = services_of_api_server().change([object_of_api_server(with_uid("1", 5, route("r", "a", "b")))]);
    assert_eq!(refusals(&good, "a"), [false]);
    let bad = || bad_route("a", json!([{"backendRefs": [{"name": "b", "port": 0}]}]));
    let same = good.change([object_of_api_server(with_uid("1", 6, bad()))]);
    assert_eq!((refusals(&same, "a"), same.held_over()), (vec![false], 1));
    // A last good version is of the object, not of its name.
    let another = good.change([object_of_api_server(with_uid("2", 1, bad()))]);
    assert_eq!((refusals(&another, "a"), another.held_over()), (vec![true], 0));
    assert_eq!(another.objects().into_iter().find(|object| &*object.key.name == "r").unwrap().generation, 1);
    let later = same.change([object_of_api_server(with_uid("2", 1, bad()))]);
    assert_eq!((refusals(&later, "a"), later.held_over()), (vec![true], 0));
}

#[test]
fn a_last_good_version_of_an_api_server_ends_with_the_process() {
    let bad = || with_uid("1", 6, bad_route("a", json!([{"backendRefs": [{"name": "b", "port": 0}]}])));
    let good = services_of_api_server().change([object_of_api_server(with_uid("1", 5, route("r", "a", "b")))]);
    let held = good.change([object_of_api_server(bad())]);
    assert_eq!((refusals(&held, "a"), held.held_over()), (vec![false], 1));
    // One that starts now has only what the API server has.
    let after = services_of_api_server().change([object_of_api_server(bad())]);
    assert_eq!((refusals(&after, "a"), after.held_over(), after.errors().len()), (vec![true], 0, 1));
}
