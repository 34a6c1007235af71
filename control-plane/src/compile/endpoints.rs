//! ENDPOINTS: who stands behind a backend.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use leno_proto::{
    spiffe::SpiffeId,
    v1::{BackendPolicy, Endpoint, Endpoints, HostName, Protocol, endpoint::State},
};

use super::{Sources, address, policy, service_key};
use crate::model::{self, EndpointSlice, EndpointState, Kind, ObjectKey, Pod, ServiceKind};

/// Most ExternalNames in a row that lead to endpoints, as many as resolvers of DNS follow.
const ALIASES: u8 = 8;

/// `key`: "namespace/service:port"; "namespace/pod/name:port" for one workload, "namespace/pod/name/address:port" at that
/// address of it; "namespace/host/service/hostname:port" for one endpoint that is no workload.
pub(super) fn endpoints(sources: &mut Sources<'_>, key: &str) -> Option<Endpoints> {
    let (path, port) = key.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    match path.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, name] => of_service(sources, &service_key(namespace, name), port, ALIASES),
        [namespace, "pod", name] => of_workload(sources, &pod_key(namespace, name), None, port),
        [namespace, "pod", name, ip] => {
            let ip: IpAddr = ip.parse().ok()?;
            of_workload(sources, &pod_key(namespace, name), Some(ip), port)
        }
        [namespace, "host", service, hostname] => {
            of_hostname(sources, &service_key(namespace, service), hostname, port)
        }
        _ => None,
    }
}

fn pod_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Pod, namespace: namespace.into(), name: name.into() }
}

/// At `ip` if that is one of its addresses, else at its first: others are the same workload again.
fn of_workload(sources: &mut Sources<'_>, key: &ObjectKey, ip: Option<IpAddr>, port: u16) -> Option<Endpoints> {
    sources.workload(key);
    let world = sources.world;
    let pod = model::pod(&world.objects, key)?;
    let ip = world.index.addresses_of(&world.objects, key).find(|known| ip.is_none_or(|ip| ip == *known))?;
    let ports = world.index.inbound(&world.objects, key);
    let endpoint = Endpoint {
        address: SocketAddr::new(ip, port).to_string(),
        identity: identity(sources, key, pod, port)?,
        zone: String::new(),
        weight: 1,
        state: State::Ready.into(),
        workload: key.name.to_string(),
    };
    let named = ports.get(&port);
    let protocol = named.map_or(Protocol::Detect, model::InboundPort::protocol);
    let policy = named.and_then(|named| of_headless(sources, named));
    Some(Endpoints { protocol: protocol.into(), endpoints: vec![endpoint], host_name: None, policy })
}

/// What policy says of the headless Services that name a Pod's port, whose clients call Pods by their own addresses: the first that
/// has one.
fn of_headless(sources: &mut Sources<'_>, port: &model::InboundPort) -> Option<BackendPolicy> {
    let world = sources.world;
    let is_headless =
        |key| model::service(&world.objects, key).is_some_and(|found| found.kind == ServiceKind::Headless);
    port.services.iter().filter(|(key, _)| is_headless(key)).find_map(|(key, name)| {
        sources.service(key);
        policy::of_backend(sources, key, name)
    })
}

fn of_hostname(sources: &mut Sources<'_>, key: &ObjectKey, hostname: &str, port: u16) -> Option<Endpoints> {
    sources.service(key);
    let world = sources.world;
    let service = model::service(&world.objects, key)?;
    let (slice_key, slice, endpoint) = address::named_endpoint(world, key, hostname)?;
    let ip = endpoint.addresses.first()?;
    // Asked for by name, it is ready enough for who asks.
    let endpoint = model::Endpoint { state: EndpointState::Ready, ..endpoint.clone() };
    let found = endpoint_at(sources, slice_key, &endpoint, *ip, port)?;
    let declared = service.ports.iter().find(|known| model::target_number(service, known, slice) == Some(port));
    let protocol = declared.map_or(Protocol::Detect, |port| port.protocol);
    Some(Endpoints { protocol: protocol.into(), endpoints: vec![found], ..Endpoints::default() })
}

/// Empty: reached in plaintext. None: it is meshed, and no identity can be made of its names.
fn identity(sources: &Sources<'_>, key: &ObjectKey, pod: &Pod, port: u16) -> Option<String> {
    // Where its redirect leaves a port alone, the application answers, which knows nothing of the mesh.
    if !pod.meshed || pod.skipped.contains(port) {
        return Some(String::new());
    }
    let trust_domain = &sources.world.settings.trust_domain;
    SpiffeId::new(trust_domain, &key.namespace, &pod.service_account).ok().map(|id| id.to_string())
}

/// `aliases`: how many names may still lead from one to the next.
fn of_service(sources: &mut Sources<'_>, key: &ObjectKey, number: u16, aliases: u8) -> Option<Endpoints> {
    sources.service(key);
    let world = sources.world;
    let service = model::service(&world.objects, key)?;
    if let ServiceKind::ExternalName(host) = &service.kind {
        let declared = service.port(number);
        if declared.is_none() && !service.ports.is_empty() {
            return None;
        }
        let port = match declared.map(|port| &port.target) {
            Some(model::TargetPort::Number(target)) => *target,
            _ => number,
        };
        let protocol = declared.map_or(Protocol::Detect, |port| port.protocol);
        let policy = policy::of_backend(sources, key, declared.map_or("", |port| &port.name));
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if let Some(name) = address::in_cluster(&name, &world.settings.cluster_domain) {
            // DNS would tell where it is, and not who.
            let mut known = of_name(sources, name, port, aliases).unwrap_or_default();
            if protocol != Protocol::Detect {
                known.protocol = protocol.into();
            }
            known.policy = policy.or(known.policy);
            return Some(known);
        }
        let host_name = Some(HostName { host: host.to_string(), port: u32::from(port) });
        return Some(Endpoints { protocol: protocol.into(), endpoints: Vec::new(), host_name, policy });
    }
    let port = service.port(number)?;
    let endpoints = of_slices(sources, key, |slice| model::target_number(service, port, slice));
    let policy = policy::of_backend(sources, key, &port.name);
    Some(Endpoints { protocol: port.protocol.into(), endpoints, host_name: None, policy })
}

/// A Service's endpoints, at the port that `target` says for each of its slices. By address, since slices may overlap while endpoints
/// move from one to another: ready wins.
fn of_slices(
    sources: &mut Sources<'_>,
    key: &ObjectKey,
    mut target: impl FnMut(&EndpointSlice) -> Option<u16>,
) -> Vec<Endpoint> {
    let world = sources.world;
    let hinted = is_hinted(sources, key);
    let mut found: BTreeMap<(IpAddr, u16), Endpoint> = BTreeMap::new();
    for slice_key in world.index.slices_of(key) {
        let Some(slice) = model::slice(&world.objects, slice_key) else { continue };
        sources.origin(slice_key);
        let Some(target) = target(slice) else { continue };
        for endpoint in &slice.endpoints {
            for ip in &endpoint.addresses {
                let Some(mut compiled) = endpoint_at(sources, slice_key, endpoint, *ip, target) else { continue };
                if hinted && !endpoint.for_zone.is_empty() {
                    compiled.zone = endpoint.for_zone.to_string();
                }
                let known = found.entry((*ip, target)).or_insert_with(|| compiled.clone());
                if compiled.state() == State::Ready && known.state() != State::Ready {
                    *known = compiled;
                }
            }
        }
    }
    found.into_values().collect()
}

/// Whether the EndpointSlices' hints count: every ready endpoint has one (KEP-2433); else they are about to be made, or given up.
fn is_hinted(sources: &Sources<'_>, service: &ObjectKey) -> bool {
    let world = sources.world;
    let slices = world.index.slices_of(service).filter_map(|key| model::slice(&world.objects, key));
    let mut ready = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.state == EndpointState::Ready);
    ready.all(|endpoint| !endpoint.for_zone.is_empty())
}

/// Who an ExternalName of the cluster's own DNS leads to: "service.namespace", or "hostname.service.namespace".
fn of_name(sources: &mut Sources<'_>, name: &str, port: u16, aliases: u8) -> Option<Endpoints> {
    let aliases = aliases.checked_sub(1)?;
    match name.split('.').collect::<Vec<_>>().as_slice() {
        [name, namespace] => {
            let key = service_key(namespace, name);
            of_service(sources, &key, port, aliases).or_else(|| of_addresses(sources, &key, port))
        }
        [hostname, name, namespace] => of_hostname(sources, &service_key(namespace, name), hostname, port),
        _ => None,
    }
}

/// Endpoints of a headless Service at a port that it does not name: DNS gives their addresses, and the port is their own.
fn of_addresses(sources: &mut Sources<'_>, key: &ObjectKey, port: u16) -> Option<Endpoints> {
    let world = sources.world;
    let service = model::service(&world.objects, key).filter(|service| service.kind == ServiceKind::Headless)?;
    let mut named = None;
    let endpoints = of_slices(sources, key, |slice| {
        let is_it = |known: &&model::ServicePort| model::target_number(service, known, slice) == Some(port);
        named = named.or_else(|| service.ports.iter().find(is_it));
        Some(port)
    });
    let protocol = named.map_or(Protocol::Detect, |port| port.protocol);
    let policy = policy::of_backend(sources, key, named.map_or("", |port| &port.name));
    Some(Endpoints { protocol: protocol.into(), endpoints, host_name: None, policy })
}

fn endpoint_at(
    sources: &Sources<'_>,
    slice: &ObjectKey,
    endpoint: &model::Endpoint,
    ip: IpAddr,
    port: u16,
) -> Option<Endpoint> {
    let state = match endpoint.state {
        EndpointState::Ready => State::Ready,
        EndpointState::Draining => State::Draining,
        EndpointState::NotReady => return None,
    };
    let world = sources.world;
    // Without its Pod nobody knows who it is: left out, not trusted with plaintext.
    if model::missing_pod(&world.objects, &slice.namespace, endpoint).is_some() {
        return None;
    }
    let pod = world.index.pod_of(&world.objects, &slice.namespace, endpoint, ip);
    let pod = pod.and_then(|key| model::pod(&world.objects, &key).map(|pod| (key, pod)));
    Some(Endpoint {
        address: SocketAddr::new(ip, port).to_string(),
        identity: match &pod {
            Some((key, pod)) => identity(sources, key, pod, port)?,
            None => String::new(),
        },
        zone: match &pod {
            Some((_, pod)) if endpoint.zone.is_empty() => pod.zone.to_string(),
            _ => endpoint.zone.to_string(),
        },
        weight: pod.as_ref().map_or(1, |(_, pod)| pod.weight),
        state: state.into(),
        workload: pod.map(|(key, _)| key.name.to_string()).unwrap_or_default(),
    })
}
