//! Which policy holds where, against a second reading of GEP-713 that takes its text literally: of all policies that name a
//! place, the one that names it most closely, and of several such the oldest.

use leno_proto::{
    spiffe::SpiffeId,
    v1::{self, ResourceKind, ResourceName, destination::Target, resource::Body},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Subscriber, compile};
use crate::model::{Document, Generations, MeshSettings, World};

const KINDS: [&str; 5] = ["BackendPolicy", "RoutePolicy", "FaultPolicy", "InboundPolicy", "XBackendTrafficPolicy"];
const OBJECTS: [&str; 3] = ["a", "b", "nobody"];
const SECTIONS: [Option<&str>; 4] = [None, Some("one"), Some("two"), Some("none")];

#[derive(Debug, Clone)]
struct Policy {
    kind: &'static str,
    /// Day of its creation; None: not known.
    created: Option<u8>,
    name: String,
    targets: Vec<(&'static str, Option<&'static str>)>,
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let target = (proptest::sample::select(&OBJECTS[..]), proptest::sample::select(&SECTIONS[..]));
    let targets = proptest::collection::hash_set(target, 1..4).prop_map(|targets| targets.into_iter().collect());
    let kind = proptest::sample::select(&KINDS[..]);
    let one = (kind, proptest::option::of(1..4_u8), targets);
    proptest::collection::vec(one, 0..14).prop_map(|all| {
        let named = all.into_iter().zip(1..);
        named.map(|((kind, created, targets), n)| Policy { kind, created, name: format!("p{n}"), targets }).collect()
    })
}

fn is_for_routes(kind: &str) -> bool {
    matches!(kind, "RoutePolicy" | "FaultPolicy")
}

impl Policy {
    fn document(&self) -> Value {
        let target = |(name, section): &(&str, Option<&str>)| {
            let (group, kind) =
                if is_for_routes(self.kind) { ("gateway.networking.k8s.io", "HTTPRoute") } else { ("", "Service") };
            let mut target = json!({"group": group, "kind": kind, "name": name});
            if let Some(section) = section {
                target["sectionName"] = (*section).into();
            }
            target
        };
        let (version, mut spec) = match self.kind {
            "BackendPolicy" => ("leno.dev/v1alpha1", json!({"timeouts": {"connect": "1s"}})),
            "RoutePolicy" => ("leno.dev/v1alpha1", json!({"timeouts": {"request": "1s"}})),
            "FaultPolicy" => ("leno.dev/v1alpha1", json!({"delay": {"duration": "1s"}})),
            "InboundPolicy" => ("leno.dev/v1alpha1", json!({"maxConnections": 1})),
            // Known by its number, since what is sent is a part of the backend's policy.
            _ => (
                "gateway.networking.x-k8s.io/v1alpha1",
                json!({"retryConstraint": {"minRetryRate": {"count": self.name[1..].parse::<u32>().unwrap()}}}),
            ),
        };
        spec["targetRefs"] = self.targets.iter().map(target).collect();
        let mut metadata = json!({"name": self.name, "namespace": "x"});
        if let Some(day) = self.created {
            metadata["creationTimestamp"] = format!("2026-01-{day:02}T00:00:00Z").into();
        }
        json!({"apiVersion": version, "kind": self.kind, "metadata": metadata, "spec": spec})
    }

    /// Those that are old come first, those of unknown age last, then by name.
    fn age(&self) -> (bool, Option<u8>, &str) {
        (self.created.is_none(), self.created, &self.name)
    }
}

/// Services `a` and `b` with ports `one` and `two`, both for the workload `w`; a route for each, with rules of these names.
fn surroundings() -> Vec<Value> {
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "w", "namespace": "x"},
        "spec": {"serviceAccountName": "w"}, "status": {"podIP": "10.0.0.1"},
    })];
    for name in ["a", "b"] {
        all.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "x"},
            "spec": {"ports": [
                {"name": "one", "port": 80, "targetPort": 8080}, {"name": "two", "port": 81, "targetPort": 8081},
            ]},
        }));
        all.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "x", "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "one", "port": 8080}, {"name": "two", "port": 8081}],
            "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "w"}}],
        }));
        let rule = |rule: &str| json!({"name": rule, "backendRefs": [{"name": name, "port": 80}]});
        all.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": "x"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": name}], "rules": [rule("one"), rule("two")],
            },
        }));
    }
    all
}

fn documents(policies: &[Policy]) -> Vec<Document> {
    let contents = surroundings().into_iter().chain(policies.iter().map(Policy::document));
    let numbered = contents.zip(1..);
    numbered.map(|(content, index)| Document { file: "f".into(), index, content: content.into() }).collect()
}

/// Word for word.
fn literally<'a>(policies: &'a [Policy], kind: &str, object: &str, section: &str) -> Option<&'a Policy> {
    let naming = |wanted: Option<&str>| {
        let all = policies.iter().filter(|policy| {
            policy.kind == kind && policy.targets.iter().any(|(name, of)| *name == object && *of == wanted)
        });
        all.min_by_key(|policy| policy.age())
    };
    naming(Some(section)).or_else(|| naming(None))
}

fn body(world: &World, kind: ResourceKind, key: &str) -> Option<Body> {
    let client = Subscriber { identity: SpiffeId::new("cluster.local", "x", "w").unwrap(), workload: "w".to_owned() };
    compile(world, &client, &ResourceName { kind: kind.into(), key: key.to_owned() }).0?.body
}

fn backend_policy(world: &World, service: &str, port: u16) -> Option<v1::BackendPolicy> {
    match body(world, ResourceKind::Endpoints, &format!("x/{service}:{port}")) {
        Some(Body::Endpoints(endpoints)) => endpoints.policy,
        other => panic!("{other:?}"),
    }
}

fn action(world: &World, service: &str, rule: &str) -> v1::HttpAction {
    match body(world, ResourceKind::Destination, &format!("{service}.x:80")) {
        Some(Body::Destination(v1::Destination { target: Some(Target::Service(target)) })) => {
            let mut actions = target.http.unwrap().actions.into_iter();
            actions.find(|action| action.origin.as_ref().is_some_and(|origin| origin.rule == rule)).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

fn inbound_policy(world: &World, port: u32) -> Option<String> {
    match body(world, ResourceKind::Inbound, "") {
        Some(Body::Inbound(inbound)) => {
            let policy = inbound.ports.into_iter().find(|known| known.port == port)?.policy?;
            Some(policy.origin?.name)
        }
        other => panic!("{other:?}"),
    }
}

/// Whatever was in force before, now it is what the text says.
fn agrees(world: &World, policies: &[Policy]) -> Result<(), TestCaseError> {
    let name = |policy: Option<&Policy>| policy.map(|policy| policy.name.clone());
    for object in ["a", "b"] {
        for (section, port) in [("one", 80), ("two", 81)] {
            let at = |kind: &str| literally(policies, kind, object, section);
            let sent = backend_policy(world, object, port);
            let own = at("BackendPolicy");
            if own.is_some() {
                let origin = sent.as_ref().and_then(|sent| sent.origin.as_ref());
                prop_assert_eq!(origin.map(|origin| origin.name.clone()), name(own), "{} {}", object, section);
            }
            let traffic = at("XBackendTrafficPolicy");
            let budget = sent.and_then(|sent| sent.retry_budget).map(|budget| format!("p{}", budget.per_second));
            prop_assert_eq!(budget, name(traffic), "{} {}", object, section);

            let action = action(world, object, section);
            prop_assert_eq!(action.policy.map(|origin| origin.name), name(at("RoutePolicy")), "{} {}", object, section);
            let faults = action.faults.and_then(|faults| faults.origin).map(|origin| origin.name);
            prop_assert_eq!(faults, name(at("FaultPolicy")), "{} {}", object, section);
        }
    }
    for (section, port) in [("one", 8080), ("two", 8081)] {
        let both = ["a", "b"].map(|object| literally(policies, "InboundPolicy", object, section));
        let oldest = both.into_iter().flatten().min_by_key(|policy| policy.age());
        prop_assert_eq!(inbound_policy(world, port), name(oldest), "{}", port);
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_policy_that_holds_is_the_one_that_the_text_names(before in policies(), after in policies()) {
        let world = World::empty(MeshSettings::strict("cluster.local"), Generations::default());
        let world = world.apply(documents(&before), Vec::new());
        prop_assert_eq!(world.errors(), []);
        agrees(&world, &before)?;
        agrees(&world.apply(documents(&after), Vec::new()), &after)?;
    }
}
