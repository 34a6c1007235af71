use super::*;
use crate::model::ObjectKey;

const NOW: &str = "2026-03-01T12:00:00Z";
const BEFORE: &str = "2026-02-01T12:00:00Z";

fn route(parents: Value, status: Value) -> Value {
    json!({
        "metadata": { "name": "cart", "namespace": "shop", "generation": 3, "resourceVersion": "77" },
        "spec": { "parentRefs": parents },
        "status": { "parents": status },
    })
}

fn service(name: &str) -> Value {
    json!({ "group": "", "kind": "Service", "name": name })
}

fn condition(kind: &'static str, status: bool, parent: Option<&str>) -> Condition {
    let (reason, parent) = (kind.to_owned(), parent.map(str::to_owned));
    Condition { kind, status, reason, message: String::new(), parent }
}

fn accepted(parent: &str) -> Vec<Condition> {
    vec![condition("Accepted", true, Some(parent)), condition("ResolvedRefs", true, Some(parent))]
}

fn info(generation: u64, conditions: Vec<Condition>) -> ObjectInfo {
    ObjectInfo {
        key: ObjectKey { kind: Kind::HttpRoute, namespace: "shop".into(), name: "cart".into() },
        generation,
        uid: Arc::default(),
        source: String::new(),
        held_over: false,
        conditions,
    }
}

fn all_run_it() -> Standing {
    Standing { subscribed: 2, programmed: 2, settled: true, ..Standing::default() }
}

fn laggard(name: &str, reason: &str) -> Laggard {
    Laggard { proxy: name.to_owned(), generation: 2, reason: reason.to_owned(), message: String::new() }
}

fn cart() -> Verdict {
    Verdict::in_force(&info(3, accepted("Service shop/cart")), &all_run_it())
}

/// Type, status and reason of each condition of the entry.
fn told(patch: &Value, list: &str, index: usize) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let conditions = patch["status"][list][index]["conditions"].as_array().unwrap();
    conditions.iter().map(|c| (text(&c["type"]), text(&c["status"]), text(&c["reason"]))).collect()
}

fn says(kind: &str, status: &str, reason: &str) -> (String, String, String) {
    (kind.to_owned(), status.to_owned(), reason.to_owned())
}

#[test]
fn a_route_is_told_of_each_of_its_parents_and_then_nothing_more() {
    let parents = json!([service("cart"), {"name": "edge"}]);
    let first = patch(Kind::HttpRoute, &route(parents.clone(), json!(null)), &cart(), NOW).unwrap();
    assert_eq!(first["metadata"]["resourceVersion"], "77", "a change in between makes it fail");
    let list = first["status"]["parents"].as_array().unwrap();
    assert_eq!(list.len(), 1, "the Gateway is another's to serve");
    assert_eq!(list[0]["parentRef"], service("cart"), "as it was stated");
    assert_eq!(list[0]["conditions"][0]["observedGeneration"], 3);
    let expected = [
        says("Accepted", "True", "Accepted"),
        says("ResolvedRefs", "True", "ResolvedRefs"),
        says(PROGRAMMED, "True", "Programmed"),
    ];
    assert_eq!(told(&first, "parents", 0), expected);
    assert_eq!(list[0]["conditions"][2]["message"], "2 of 2 subscribed proxies run generation 3");
    // As the API server has it afterwards.
    let after = route(parents, first["status"]["parents"].clone());
    assert_eq!(patch(Kind::HttpRoute, &after, &cart(), "2026-04-01T00:00:00Z"), None);
}

#[test]
fn entries_of_others_stay_as_and_where_they_are() {
    let other = json!({ "parentRef": service("cart"), "controllerName": "example.org/mesh", "conditions": [] });
    let gateway = json!({ "parentRef": {"name": "edge"}, "controllerName": "example.org/gateway", "conditions": [] });
    let ours = patch(Kind::HttpRoute, &route(json!([service("cart")]), json!(null)), &cart(), BEFORE).unwrap();
    let ours = ours["status"]["parents"][0].clone();
    let mut stale = ours.clone();
    stale["parentRef"]["name"] = json!("former");
    let status = json!([other, ours, stale, gateway]);
    let patch = patch(Kind::HttpRoute, &route(json!([service("cart")]), status), &cart(), NOW).unwrap();
    let expected = json!([other, ours, gateway]);
    assert_eq!(patch["status"]["parents"], expected, "only what is ours, and is stated no more, went");
}

#[test]
fn a_time_of_transition_is_kept_while_the_status_is() {
    let parents = json!([service("cart")]);
    let first = patch(Kind::HttpRoute, &route(parents.clone(), json!(null)), &cart(), BEFORE).unwrap();
    let lagging = Standing {
        subscribed: 2,
        programmed: 1,
        laggards: vec![laggard("shop/web-1", "pending")],
        settled: true,
        ..Standing::default()
    };
    let later = Verdict::in_force(&info(4, accepted("Service shop/cart")), &lagging);
    let object = route(parents, first["status"]["parents"].clone());
    let second = patch(Kind::HttpRoute, &object, &later, NOW).unwrap();
    let conditions = &second["status"]["parents"][0]["conditions"];
    assert_eq!(
        (&conditions[0]["lastTransitionTime"], &conditions[0]["observedGeneration"]),
        (&json!(BEFORE), &json!(4))
    );
    assert_eq!(
        (&conditions[2]["lastTransitionTime"], &conditions[2]["reason"]),
        (&json!(NOW), &json!("PartiallyProgrammed"))
    );
    let message = "1 of 2 subscribed proxies run generation 4; lagging: shop/web-1 (pending)";
    assert_eq!(conditions[2]["message"], message);
}

#[test]
fn programmed_is_true_only_if_it_is_known() {
    let of = |standing: Standing| {
        let Programmed { status, reason, message } = programmed(7, &standing);
        (status, reason, message)
    };
    let silent = Standing { silent: vec!["10.0.0.7".into()], ..all_run_it() };
    assert_eq!(of(silent).0, "Unknown");
    assert_eq!(of(Standing { settled: false, ..all_run_it() }).0, "Unknown");
    assert_eq!(of(Standing { settled: true, ..Standing::default() }).1, "NotSubscribed");
    let awaited = vec![laggard("shop/web-1", "disconnected")];
    let (status, reason, message) =
        of(Standing { subscribed: 3, awaited: 1, laggards: awaited.clone(), ..all_run_it() });
    assert_eq!((status, reason), ("Unknown", "ProxiesAwaited"));
    assert!(message.ends_with("not back since the control plane started: shop/web-1"), "{message}");
    // Another lags for sure.
    assert_eq!(of(Standing { subscribed: 4, awaited: 1, laggards: awaited, ..all_run_it() }).0, "False");
    let laggards = (0..13).map(|n| laggard(&format!("shop/web-{n}"), "disconnected")).collect();
    let (status, reason, message) = of(Standing { subscribed: 13, laggards, settled: true, ..Standing::default() });
    assert_eq!((status, reason), ("False", "Pending"));
    assert!(message.ends_with("shop/web-9 (disconnected), and 3 more"), "{message}");
}

#[test]
fn what_is_not_accepted_is_not_programmed() {
    let conflicted =
        Condition { reason: "Conflicted".to_owned(), ..condition("Accepted", false, Some("Service shop/cart:80")) };
    let other = accepted("Service shop/web");
    let verdict = Verdict::in_force(&info(3, [vec![conflicted], other].concat()), &all_run_it());
    let mut with_port = service("cart");
    with_port["port"] = json!(80);
    let object = route(json!([with_port, service("web")]), json!(null));
    let patch = patch(Kind::HttpRoute, &object, &verdict, NOW).unwrap();
    assert_eq!(
        told(&patch, "parents", 0),
        [says("Accepted", "False", "Conflicted"), says(PROGRAMMED, "False", "NotAccepted")]
    );
    assert_eq!(told(&patch, "parents", 1)[2], says(PROGRAMMED, "True", "Programmed"));
}

#[test]
fn a_document_that_is_refused_says_so_at_the_generation_that_it_has() {
    let error = DocumentError {
        file: "".into(),
        document: 1,
        object: None,
        field: "spec.rules[0]".to_owned(),
        reason: "is wrong".to_owned(),
        generation: Some(3),
        uid: Arc::default(),
    };
    let held_over = ObjectInfo { held_over: true, ..info(2, Vec::new()) };
    let verdict = Verdict::refused(&[&error], Some(&held_over));
    assert_eq!(verdict.generation, Some(3), "of the document that is wrong, whichever the live one is");
    let patch = patch(Kind::HttpRoute, &route(json!([service("cart")]), json!(null)), &verdict, NOW).unwrap();
    let accepted = &patch["status"]["parents"][0]["conditions"][0];
    assert_eq!((&accepted["status"], &accepted["observedGeneration"]), (&json!("False"), &json!(3)));
    assert_eq!(
        accepted["message"],
        "spec.rules[0]: is wrong (generation 2 stays in force until the control plane starts anew)"
    );
    let message = |verdict: Verdict| verdict.conditions[0].message.clone();
    assert_eq!(
        message(Verdict::refused(&[&error], Some(&info(3, Vec::new())))),
        format!("spec.rules[0]: is wrong ({})", Route::REFUSED)
    );
    assert_eq!(message(Verdict::refused(&[&error], None)), "spec.rules[0]: is wrong (nothing of it is in force)");
}

#[test]
fn a_policy_is_told_of_each_target() {
    let object = json!({
        "metadata": { "name": "limits", "namespace": "shop", "generation": 1, "resourceVersion": "5" },
        "spec": { "targetRefs": [
            { "group": "", "kind": "Service", "name": "cart", "sectionName": "http" },
            { "group": "", "kind": "Service", "name": "gone" },
        ] },
    });
    let missing =
        Condition { reason: "TargetNotFound".to_owned(), ..condition("Accepted", false, Some("Service shop/gone")) };
    let conditions = vec![condition("Accepted", true, Some("Service shop/cart:http")), missing];
    let verdict = Verdict::in_force(&info(1, conditions), &all_run_it());
    let patch = patch(Kind::InboundPolicy, &object, &verdict, NOW).unwrap();
    let refer = json!({ "group": "", "kind": "Service", "namespace": "shop", "name": "cart", "sectionName": "http" });
    assert_eq!(patch["status"]["ancestors"][0]["ancestorRef"], refer);
    assert_eq!(told(&patch, "ancestors", 0)[1], says(PROGRAMMED, "True", "Programmed"));
    assert_eq!(told(&patch, "ancestors", 1)[0], says("Accepted", "False", "TargetNotFound"));
}

#[test]
fn a_full_list_is_not_made_longer() {
    let other = |n: usize| json!({ "ancestorRef": service(&format!("s{n}")), "controllerName": "example.org/x", "conditions": [] });
    let full: Vec<Value> = (0..ANCESTORS).map(other).collect();
    let object = json!({
        "metadata": { "name": "limits", "namespace": "shop", "generation": 1 },
        "spec": { "targetRefs": [{ "group": "", "kind": "Service", "name": "cart" }] },
        "status": { "ancestors": full },
    });
    let verdict = Verdict::in_force(&info(1, accepted("Service shop/cart")), &all_run_it());
    assert_eq!(patch(Kind::BackendPolicy, &object, &verdict, NOW), None);
}

#[test]
fn what_was_told_is_taken_back_from_what_is_no_longer_ours() {
    let first = patch(Kind::HttpRoute, &route(json!([service("cart")]), json!(null)), &cart(), NOW).unwrap();
    let other = json!({ "parentRef": {"name": "edge"}, "controllerName": "example.org/gateway", "conditions": [] });
    let status = json!([first["status"]["parents"][0], other]);
    let moved = route(json!([{"name": "edge"}]), status);
    let taken_back = patch(Kind::HttpRoute, &moved, &Verdict::withdrawn(), NOW).unwrap();
    assert_eq!(taken_back["status"]["parents"], json!([other]));
}
