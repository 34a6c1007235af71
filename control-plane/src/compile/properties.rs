//! What holds for any configuration.

use leno_proto::{
    spiffe::SpiffeId,
    v1::{Destination, Resource, ResourceKind, ResourceName, destination::Target, resource::Body},
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{Subscriber, compile};
use crate::model::{Document, FileContent, Generations, MeshSettings, Topic, World};

const NAMES: [&str; 3] = ["a", "b", "c"];
const NAMESPACES: [&str; 2] = ["x", "y"];
const KINDS: [(&str, &str); 8] = [
    ("v1", "Namespace"),
    ("v1", "Service"),
    ("v1", "Pod"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"),
    ("gateway.networking.k8s.io/v1alpha2", "TLSRoute"),
    ("gateway.networking.k8s.io/v1", "TCPRoute"),
];

fn name() -> impl Strategy<Value = Value> {
    proptest::sample::select(&NAMES[..]).prop_map(Value::from)
}

fn namespace() -> impl Strategy<Value = Value> {
    proptest::sample::select(&NAMESPACES[..]).prop_map(Value::from)
}

fn ip() -> impl Strategy<Value = Value> {
    proptest::sample::select(&["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2", "fd00::1"][..]).prop_map(Value::from)
}

fn port() -> impl Strategy<Value = Value> {
    proptest::sample::select(&[80, 81][..]).prop_map(Value::from)
}

fn backend() -> impl Strategy<Value = Value> {
    (name(), namespace(), port(), 0..3u32).prop_map(
        |(name, namespace, port, weight)| json!({"name": name, "namespace": namespace, "port": port, "weight": weight}),
    )
}

fn http_match() -> impl Strategy<Value = Value> {
    proptest::sample::select(
        &[
            r#"{}"#,
            r#"{"path":{"value":"/a"}}"#,
            r#"{"path":{"type":"Exact","value":"/a"}}"#,
            r#"{"path":{"type":"RegularExpression","value":"/.*"}}"#,
            r#"{"method":"GET"}"#,
            r#"{"headers":[{"name":"h","value":"1"}]}"#,
            r#"{"queryParams":[{"name":"q","value":"1"}]}"#,
        ][..],
    )
    .prop_map(|text| serde_json::from_str(text).unwrap())
}

fn parent() -> impl Strategy<Value = Value> {
    (name(), namespace(), proptest::option::of(port())).prop_map(|(name, namespace, port)| {
        json!({"group": "", "kind": "Service", "name": name, "namespace": namespace, "port": port})
    })
}

fn route_spec(kind: &'static str) -> BoxedStrategy<Value> {
    let backends = proptest::collection::vec(backend(), 1..3);
    // A parent that is there twice makes a document bad, and what is in force then depends on what was before.
    let parents = proptest::collection::vec(parent(), 0..3).prop_map(|mut parents| {
        parents.dedup();
        parents
    });
    if matches!(kind, "TLSRoute" | "TCPRoute") {
        let spec = (parents, backends).prop_map(|(parents, backends)| {
            json!({"parentRefs": parents, "hostnames": ["a.example", "*.example"], "rules": [{"backendRefs": backends}]})
        });
        return spec.boxed();
    }
    let matches = proptest::collection::vec(http_match(), 0..3);
    let rules = proptest::collection::vec((matches, backends), 0..3);
    let spec = (parents, rules).prop_map(move |(parents, rules)| {
        let rule = |(matches, backends): (Vec<Value>, Vec<Value>)| match kind {
            "GRPCRoute" => json!({"backendRefs": backends}),
            _ => json!({"matches": matches, "backendRefs": backends}),
        };
        json!({"parentRefs": parents, "rules": rules.into_iter().map(rule).collect::<Vec<_>>()})
    });
    spec.boxed()
}

/// A document that means something, if mostly nothing sensible.
fn document() -> impl Strategy<Value = Value> {
    proptest::sample::select(&KINDS[..]).prop_flat_map(|(version, kind)| {
        let body: BoxedStrategy<Value> = match kind {
            "Namespace" => Just(json!({})).boxed(),
            "Service" => (ip(), proptest::collection::vec(port(), 0..2))
                .prop_map(|(ip, ports)| {
                    let ports: Vec<Value> =
                        ports.into_iter().zip(0..).map(|(port, n)| json!({"name": format!("p{n}"), "port": port})).collect();
                    json!({"spec": {"clusterIP": ip, "ports": ports}})
                })
                .boxed(),
            "Pod" => (ip(), name())
                .prop_map(|(ip, account)| json!({"spec": {"serviceAccountName": account}, "status": {"podIP": ip}}))
                .boxed(),
            "EndpointSlice" => (ip(), proptest::option::of(name()), any::<bool>())
                .prop_map(|(ip, pod, ready)| {
                    json!({
                        "addressType": "IPv4", "ports": [{"name": "p0", "port": 8080}],
                        "endpoints": [{"addresses": [ip], "hostname": "h", "conditions": {"ready": ready, "serving": true, "terminating": !ready},
                            "targetRef": pod.map(|pod| json!({"kind": "Pod", "name": pod}))}],
                    })
                })
                .boxed(),
            kind => route_spec(kind).prop_map(|spec| json!({"spec": spec})).boxed(),
        };
        (name(), namespace(), name(), body).prop_map(move |(name, namespace, service, body)| {
            let mut document = json!({
                "apiVersion": version, "kind": kind,
                "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
            });
            if let (Some(document), Value::Object(body)) = (document.as_object_mut(), body) {
                document.extend(body);
            }
            document
        })
    })
}

/// One document per object: of two for one, which is in force depends on their order.
fn configuration() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(document(), 0..24).prop_map(|documents| {
        let mut seen = std::collections::HashSet::new();
        let id = |document: &Value| {
            let namespace =
                if document["kind"] == "Namespace" { Value::Null } else { document["metadata"]["namespace"].clone() };
            format!("{} {} {}", document["kind"], namespace, document["metadata"]["name"])
        };
        documents.into_iter().filter(|document| seen.insert(id(document))).collect()
    })
}

fn documents(contents: &[Value]) -> Vec<Document> {
    let document =
        |(content, index): (&Value, u32)| Document { file: "f".into(), index, content: content.clone().into() };
    contents.iter().zip(1..).map(document).collect()
}

fn empty() -> World {
    World::empty(MeshSettings::strict("cluster.local"), Generations::default())
}

/// Every name that might mean something.
fn every_name() -> Vec<ResourceName> {
    let mut names = Vec::new();
    let mut add = |kind: ResourceKind, key: String| names.push(ResourceName { kind: kind.into(), key });
    add(ResourceKind::Settings, String::new());
    add(ResourceKind::Inbound, String::new());
    for port in [80, 81, 8080] {
        for ip in ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2", "[fd00::1]"] {
            add(ResourceKind::Destination, format!("{ip}:{port}"));
        }
        for (name, namespace) in NAMES.iter().flat_map(|name| NAMESPACES.map(|namespace| (name, namespace))) {
            add(ResourceKind::Destination, format!("{name}.{namespace}:{port}"));
            add(ResourceKind::Endpoints, format!("{namespace}/{name}:{port}"));
            add(ResourceKind::Endpoints, format!("{namespace}/pod/{name}:{port}"));
            add(ResourceKind::Endpoints, format!("{namespace}/pod/{name}/10.0.1.1:{port}"));
            add(ResourceKind::Endpoints, format!("{namespace}/host/{name}/h:{port}"));
            add(ResourceKind::Destination, format!("h.{name}.{namespace}:{port}"));
        }
    }
    names
}

fn everything(world: &World) -> Vec<Option<Resource>> {
    let clients = NAMESPACES.map(|namespace| Subscriber {
        identity: SpiffeId::new("cluster.local", namespace, "a").unwrap(),
        workload: "a".to_owned(),
    });
    let names = every_name();
    clients.iter().flat_map(|client| names.iter().map(|name| compile(world, client, name).0)).collect()
}

fn garbage() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/*.:{}\\\\\u{0}é-]{0,6}".prop_map(Value::from),
        proptest::sample::select(
            &["Service", "Exact", "RegularExpression", "PathPrefix", "None", "10s", "/", "URLRewrite"][..]
        )
        .prop_map(Value::from),
    ];
    let key = proptest::sample::select(
        &[
            "metadata",
            "name",
            "namespace",
            "labels",
            "spec",
            "status",
            "rules",
            "matches",
            "path",
            "type",
            "value",
            "headers",
            "filters",
            "backendRefs",
            "parentRefs",
            "port",
            "ports",
            "clusterIP",
            "endpoints",
            "addresses",
            "hostnames",
            "timeouts",
            "request",
            "retry",
            "items",
            "podIPs",
            "ip",
            "weight",
            "method",
            "urlRewrite",
            "conditions",
        ][..],
    );
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key.clone(), inner), 0..6).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_documents_does_not_matter(
        (contents, shuffled) in configuration().prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle())),
    ) {
        let world = empty().apply(documents(&contents), Vec::new());
        let other = empty().apply(documents(&shuffled), Vec::new());
        prop_assert_eq!(everything(&world), everything(&other));
    }

    #[test]
    fn the_same_again_changes_nothing(contents in configuration()) {
        let world = empty().apply(documents(&contents), Vec::new());
        let again = world.apply(documents(&contents), Vec::new());
        prop_assert_eq!(world.generation(), again.generation());
        prop_assert_eq!(everything(&world), everything(&again));
    }

    /// File by file, whatever stood in the others meanwhile.
    #[test]
    fn what_grew_by_files_is_as_if_it_had_been_read_at_once(
        steps in proptest::collection::vec((0usize..3, configuration()), 1..12),
    ) {
        const FILES: [&str; 3] = ["a", "b", "c"];
        let of_file = |file: usize, contents: &[Value]| {
            let mut documents = documents(contents);
            documents.iter_mut().for_each(|document| document.file = FILES[file].into());
            documents
        };
        let mut files = [const { Vec::new() }; FILES.len()];
        let mut world = empty().apply(Vec::new(), Vec::new());
        for (file, contents) in steps {
            files[file] = of_file(file, &contents);
            let content = FileContent::of(FILES[file].into(), files[file].clone(), Vec::new());
            world = world.change([content]);
        }
        let fresh = empty().apply(files.concat(), Vec::new());
        prop_assert_eq!(world.errors(), fresh.errors());
        prop_assert_eq!(world.ignored(), fresh.ignored());
        // Of an object in two files, what was in force stays.
        if fresh.errors().is_empty() {
            prop_assert_eq!(&world.index, &fresh.index);
            let content = |world: &World| everything(world).into_iter().map(|r| r.map(|r| r.version)).collect::<Vec<_>>();
            // But for namespaces that something was in meanwhile.
            let mut fresh = fresh;
            fresh.namespaces = world.namespaces.clone();
            prop_assert_eq!(content(&world), content(&fresh));
        }
    }

    /// The promise that serving rests on: what no topic says has changed, has not.
    #[test]
    fn topics_tell_of_every_change(before in configuration(), after in configuration(), keep in any::<u32>()) {
        // Some of the one, and then the other.
        let mut mixed: Vec<Value> = after;
        mixed.truncate(keep as usize % 3);
        let id = |document: &Value| (document["kind"].clone(), document["metadata"]["namespace"].clone(), document["metadata"]["name"].clone());
        let taken: Vec<_> = mixed.iter().map(id).collect();
        mixed.extend(before.iter().filter(|document| !taken.contains(&id(document))).cloned());
        let old = empty().apply(documents(&before), Vec::new());
        let new = old.apply(documents(&mixed), Vec::new());
        // Built as it grew, and built at once: the same.
        let mut fresh = empty().apply(documents(&mixed), Vec::new());
        fresh.namespaces = new.namespaces.clone();
        for namespace in NAMESPACES {
            let client = Subscriber {
                identity: SpiffeId::new("cluster.local", namespace, "a").unwrap(),
                workload: "a".to_owned(),
            };
            for name in every_name() {
                let (was, topics) = compile(&old, &client, &name);
                let (is, _) = compile(&new, &client, &name);
                let ids: Vec<_> = topics.iter().map(Topic::id).collect();
                if !new.changed_since(&ids, old.generation()) {
                    prop_assert_eq!(&was, &is, "{:?} changed, and none of {:?}", name, topics);
                }
                let (at_once, _) = compile(&fresh, &client, &name);
                prop_assert_eq!(is.map(|r| r.version), at_once.map(|r| r.version));
            }
        }
    }

    /// Of configurations in which no Pod is outside the mesh: plaintext goes only to endpoints that name no Pod, and no
    /// name of a Service is left to DNS.
    #[test]
    fn plaintext_is_what_an_author_asked_for(contents in configuration()) {
        let world = empty().apply(documents(&contents), Vec::new());
        let slices = contents.iter().filter(|document| document["kind"] == "EndpointSlice");
        let unmeshed: Vec<_> = slices
            .map(|slice| &slice["endpoints"][0])
            .filter(|endpoint| endpoint["targetRef"].is_null())
            .map(|endpoint| endpoint["addresses"][0].as_str().unwrap().parse::<std::net::IpAddr>().unwrap())
            .collect();
        let service = |namespace: &str, name: &str| {
            contents.iter().any(|document| {
                let metadata = &document["metadata"];
                document["kind"] == "Service" && metadata["namespace"] == namespace && metadata["name"] == name
            })
        };
        for resource in everything(&world).into_iter().flatten() {
            match resource.body.unwrap() {
                Body::Endpoints(endpoints) => {
                    for endpoint in endpoints.endpoints.iter().filter(|endpoint| endpoint.identity.is_empty()) {
                        let address: std::net::SocketAddr = endpoint.address.parse().unwrap();
                        prop_assert!(unmeshed.contains(&address.ip()), "{endpoint:?}");
                    }
                }
                Body::Destination(Destination { target: Some(Target::Outside(_)) }) => {
                    let key = resource.name.unwrap().key;
                    let (host, _) = key.rsplit_once(':').unwrap();
                    let labels: Vec<&str> = host.split('.').collect();
                    let known = match labels.as_slice() {
                        ["h", name, namespace] | [name, namespace] => service(namespace, name),
                        _ => false,
                    };
                    prop_assert!(!known, "{key}");
                }
                _ => {}
            }
        }
    }

    #[test]
    fn garbage_is_an_error_and_no_panic(
        contents in proptest::collection::vec((proptest::sample::select(&KINDS[..]), garbage()), 0..6),
    ) {
        let contents: Vec<Value> = contents
            .into_iter()
            .map(|((version, kind), mut content)| {
                if let Some(fields) = content.as_object_mut() {
                    fields.insert("apiVersion".to_owned(), version.into());
                    fields.insert("kind".to_owned(), kind.into());
                    fields.insert("metadata".to_owned(), json!({"name": "a", "namespace": "x"}));
                }
                content
            })
            .collect();
        let world = empty().apply(documents(&contents), Vec::new());
        everything(&world);
        world.objects();
    }
}
