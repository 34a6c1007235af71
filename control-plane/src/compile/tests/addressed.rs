//! Who stands behind an address or a name: a Pod, an endpoint that is said to be outside the mesh, or nobody.

use super::*;

const DB: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{port: 5432}]}
"#;

/// A slice of `db` with these endpoints.
fn db(endpoints: &str, more: &str) -> World {
    world(&format!(
        "{DB}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: db, labels: {{kubernetes.io/service-name: db}}}}\naddressType: IPv4\nports: [{{port: 9443}}]\n\
         endpoints: {endpoints}\n{more}"
    ))
}

fn pod(name: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{serviceAccountName: db}}\nstatus: {status}\n"
    )
}

/// What clients dial, and the service account that must answer there; none: nobody.
fn dialled(world: &World, key: &str) -> Option<(String, String)> {
    let backend = match destination(world, "web", key)?.target.unwrap() {
        Target::Workload(backend) => backend.key,
        other => panic!("{key}: {other:?}"),
    };
    let mut found = endpoints(world, &backend).endpoints;
    assert_eq!(found.len(), 1, "{key}");
    let Endpoint { address, identity, .. } = found.remove(0);
    Some((address, identity.rsplit('/').next().unwrap_or_default().to_owned()))
}

fn at(address: &str, account: &str) -> Option<(String, String)> {
    Some((address.to_owned(), account.to_owned()))
}

#[test]
fn a_hostname_of_the_mesh_is_never_looked_up_outside() {
    let names = ["db-0.db.default", "db-1.db.default", "nosuch.db.default.svc.cluster.local", "DB-0.db.default.svc."];
    for world in [world(DB), db("[]", ""), db("[{addresses: [10.1.0.1], hostname: other}]", "")] {
        for name in names {
            assert_eq!(destination(&world, "web", &format!("{name}:5432")), None, "{name}");
        }
    }
    for name in ["a.b.c.default.svc.cluster.local", "_http._tcp.db.default.svc"] {
        assert_eq!(destination(&world(DB), "web", &format!("{name}:5432")), None, "{name}");
    }
}

#[test]
fn an_endpoint_without_a_pod_has_its_hostname_and_no_identity() {
    let world = db("[{addresses: [10.1.0.1], hostname: db-0}, {addresses: [10.1.0.2]}]", "");
    assert_eq!(dialled(&world, "db-0.db.default:9443"), at("10.1.0.1:9443", ""));
    // A port of the Service is where the slice says; others are the endpoint's own.
    assert_eq!(dialled(&world, "DB-0.db.default.svc.cluster.local:5432"), at("10.1.0.1:9443", ""));
    assert_eq!(dialled(&world, "db-0.db.default:1234"), at("10.1.0.1:1234", ""));
}

#[test]
fn a_pod_without_addresses_has_those_of_its_endpoints() {
    let endpoints = "[{addresses: [10.1.0.1], hostname: db-0, targetRef: {kind: Pod, name: db-0}}]";
    let world = db(endpoints, &pod("db-0", "{}"));
    for key in ["db-0.db.default:5432", "10.1.0.1:9443"] {
        assert_eq!(dialled(&world, key), at("10.1.0.1:9443", "db"), "{key}");
    }
    // Also at a port that no Service names.
    assert_eq!(dialled(&world, "10.1.0.1:1234"), at("10.1.0.1:1234", "db"));
}

#[test]
fn a_pod_is_dialled_at_the_address_that_was_asked_for() {
    let endpoints = "[{addresses: [10.2.0.1], hostname: db-0, targetRef: {kind: Pod, name: db-0}}]";
    let world = db(endpoints, &pod("db-0", "{podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}"));
    for (key, address) in [
        ("10.1.0.1:9443", "10.1.0.1:9443"),
        ("[fd00::1]:9443", "[fd00::1]:9443"),
        ("[::ffff:10.1.0.1]:9443", "10.1.0.1:9443"),
        ("10.2.0.1:9443", "10.2.0.1:9443"),
        ("db-0.db.default:5432", "10.2.0.1:9443"),
    ] {
        assert_eq!(dialled(&world, key), at(address, "db"), "{key}");
    }
    // An address that is not the Pod's is not made one by asking.
    assert_eq!(get(&world, "web", ResourceKind::Endpoints, "default/pod/db-0/10.9.9.9:80").0, None);
    assert_eq!(get(&world, "web", ResourceKind::Endpoints, "default/host/db/nobody:80").0, None);
}

#[test]
fn an_endpoint_whose_pod_is_missing_is_left_out_and_not_trusted_with_plaintext() {
    let endpoints_text = "[{addresses: [10.1.0.1], hostname: db-0, targetRef: {kind: Pod, name: db-0}}, \
                          {addresses: [10.1.0.2], targetRef: {kind: Node, name: node}}]";
    let missing = db(endpoints_text, "");
    let served = |world: &World| -> Vec<String> {
        endpoints(world, "default/db:5432").endpoints.into_iter().map(|endpoint| endpoint.address).collect()
    };
    assert_eq!(served(&missing), ["10.1.0.2:9443"]);
    for key in ["db-0.db.default:5432", "10.1.0.1:9443", "10.1.0.1:1234"] {
        assert_eq!(destination(&missing, "web", key), None, "{key}");
    }
    let told: Vec<_> = missing.objects().into_iter().flat_map(|object| object.conditions).collect();
    let [condition] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((condition.kind, condition.status, condition.reason.as_str()), ("ResolvedRefs", false, "PodNotFound"));
    assert_eq!(condition.message, "Pod default/db-0 does not exist: its endpoint is left out");
    // It comes into being, after the slice that names it or before.
    let there = db(endpoints_text, &pod("db-0", "{podIP: 10.1.0.1}"));
    assert_eq!(served(&there), ["10.1.0.1:9443", "10.1.0.2:9443"]);
    assert!(there.objects().iter().all(|object| object.conditions.is_empty()));
    let name = |key: &str| ResourceName { kind: ResourceKind::Destination.into(), key: key.to_owned() };
    for key in ["db-0.db.default:5432", "10.1.0.1:9443"] {
        assert_eq!(dialled(&there, key), at("10.1.0.1:9443", "db"), "{key}");
        let (_, topics) = compile(&missing, &client("web"), &name(key));
        assert!(topics.iter().any(|topic| matches!(topic, Topic::Workload(_) | Topic::Service(_))), "{topics:?}");
    }
}

#[test]
fn a_missing_pod_takes_only_its_own_port_of_an_address_that_others_share() {
    let endpoints = "[{addresses: [127.0.0.1], targetRef: {kind: Pod, name: gone}}]";
    let world = db(endpoints, &pod("other", "{podIP: 127.0.0.1}"));
    assert_eq!(destination(&world, "web", "127.0.0.1:9443"), None);
    assert_eq!(dialled(&world, "127.0.0.1:1234"), at("127.0.0.1:1234", "db"));
}

#[test]
fn a_skipped_port_is_the_applications_and_reached_in_plaintext() {
    let pod = |ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: db-0, annotations: {{leno.dev/skip-inbound-ports: \"{ports}\"}}}}\n\
             spec: {{serviceAccountName: db}}\nstatus: {{podIP: 10.1.0.1}}\n"
        )
    };
    let endpoint = "[{addresses: [10.1.0.1], hostname: db-0, targetRef: {kind: Pod, name: db-0}}]";
    let skipping = db(endpoint, &pod("22, 9400-9500"));
    for (key, address) in
        [("10.1.0.1:22", "10.1.0.1:22"), ("10.1.0.1:9443", "10.1.0.1:9443"), ("db-0.db.default:5432", "10.1.0.1:9443")]
    {
        assert_eq!(dialled(&skipping, key), at(address, ""), "{key}");
    }
    assert_eq!(endpoints(&skipping, "default/db:5432").endpoints[0].identity, "");
    // All others are the mesh's as before.
    assert_eq!(dialled(&skipping, "10.1.0.1:23"), at("10.1.0.1:23", "db"));
    let not = db(endpoint, &pod("22"));
    assert_eq!(dialled(&not, "10.1.0.1:9443"), at("10.1.0.1:9443", "db"));
    assert!(endpoints(&not, "default/db:5432").endpoints[0].identity.ends_with("/sa/db"));
}
