//! What the proxy holds, for people and tools that ask why.

use std::{sync::Arc, time::Instant};

use leno_proto::v1::ResourceKind;
use serde_json::{Value, json};

use crate::{
    policy::{Destination, Protocol, Target, store::Snapshot},
    upstream::{Backend, Endpoint},
};

/// Policy in force: destinations, their backends with endpoints, and which objects it all comes from.
pub(super) fn policy(snapshot: &Snapshot) -> Value {
    let mut destinations: Vec<_> =
        snapshot.destinations.iter().map(|(key, held)| (key.to_string(), destination(&held.destination))).collect();
    destinations.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut backends: Vec<_> = snapshot.backends.values().collect();
    backends.sort_by(|one, other| one.key.cmp(&other.key));
    let now = Instant::now();
    json!({
        "generation": snapshot.generation,
        "trust_domain": snapshot.settings.as_ref().map(|settings| &settings.trust_domain),
        "mesh_networks": snapshot.settings.as_ref().map(|settings| {
            settings.mesh_networks.iter().map(ToString::to_string).collect::<Vec<_>>()
        }),
        "inbound": snapshot.inbound.as_ref().map(|inbound| json!({
            "strict": inbound.strict,
            "ports": inbound.ports.iter()
                .map(|(port, protocol)| (port.to_string(), protocol_name(*protocol).into()))
                .collect::<serde_json::Map<_, _>>(),
        })),
        "destinations": destinations.into_iter().collect::<serde_json::Map<_, _>>(),
        "backends": backends.into_iter()
            .map(|held| (held.key.to_string(), backend(held, now)))
            .collect::<serde_json::Map<_, _>>(),
        "resources": resources(snapshot),
    })
}

fn destination(destination: &Destination) -> Value {
    match &destination.target {
        Target::Service(service) => json!({
            "service": &*service.service,
            "port": service.port,
            "protocol": protocol_name(service.protocol),
        }),
        Target::Workload(backend) => json!({ "workload": &*backend.key }),
        Target::Outside => json!({ "outside": true }),
    }
}

fn backend(backend: &Backend, now: Instant) -> Value {
    let set = backend.endpoints.load();
    json!({
        "known": set.known,
        "protocol": protocol_name(set.protocol),
        "endpoints": set.endpoints.iter().map(|held| endpoint(held, now)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Arc<Endpoint>, now: Instant) -> Value {
    json!({
        "address": endpoint.address.to_string(),
        "identity": endpoint.identity.as_ref().map(|id| id.as_str()),
        "workload": &*endpoint.workload,
        "zone": &*endpoint.zone,
        "weight": endpoint.weight,
        "draining": endpoint.is_draining(),
        "health": format!("{:?}", endpoint.outlier.health(now)).to_ascii_lowercase(),
    })
}

/// What each resource in force was compiled from.
fn resources(snapshot: &Snapshot) -> Vec<Value> {
    let mut resources: Vec<_> = snapshot.provenance.iter().collect();
    resources.sort_by_key(|(name, _)| (name.kind, &name.key));
    let described = resources.into_iter().map(|(name, provenance)| {
        let origins = provenance.origins.iter().map(|origin| {
            let object = origin.object.as_ref();
            json!({
                "kind": object.map(|object| &object.kind),
                "namespace": object.map(|object| &object.namespace),
                "name": object.map(|object| &object.name),
                "generation": origin.generation,
            })
        });
        let kind = ResourceKind::try_from(name.kind).unwrap_or_default().as_str_name();
        json!({
            "kind": kind.trim_start_matches("RESOURCE_KIND_").to_ascii_lowercase(),
            "key": &name.key,
            "version": &provenance.version,
            "origins": origins.collect::<Vec<_>>(),
        })
    });
    described.collect()
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "detect",
        Protocol::Http => "http",
        Protocol::Http1 => "http/1.1",
        Protocol::Http2 => "http/2",
        Protocol::Tls => "tls",
        Protocol::Tcp => "tcp",
    }
}
