//! What a client addresses: an IP address and port, or a name and port, resolved to an object.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Sources, service_key};
use crate::model::{self, Kind, ObjectKey, World};

/// What an address stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Addressed {
    Service(ObjectKey, u16),
    Workload(ObjectKey, u16),
    /// Nobody the mesh knows: passed through.
    Outside,
    /// Belongs to the mesh, and nobody is there.
    Nobody,
}

/// Cluster DNS appends these to a Service's name.
const NAME_ENDINGS: [&str; 2] = [".svc.cluster.local", ".svc"];

/// Resolves a destination key for clients in `namespace`.
pub(super) fn resolve(sources: &mut Sources<'_>, namespace: &str, key: &str) -> Addressed {
    if let Ok(address) = key.parse::<SocketAddr>() {
        return by_ip(sources, address.ip().to_canonical(), address.port());
    }
    let Some((host, port)) = key.rsplit_once(':') else { return Addressed::Outside };
    match port.parse::<u16>() {
        Ok(port) if port > 0 => by_name(sources, namespace, host, port),
        _ => Addressed::Outside,
    }
}

fn by_ip(sources: &mut Sources<'_>, ip: IpAddr, port: u16) -> Addressed {
    sources.address(ip);
    let world = sources.world;
    if let Some(service) = world.index.cluster_ips.get(&ip) {
        sources.service(service);
        let known = model::service(&world.objects, service).is_some_and(|service| service.port(port).is_some());
        return if known { Addressed::Service(service.clone(), port) } else { Addressed::Nobody };
    }
    if let Some(pod) = pod_at(sources, ip, port) {
        sources.workload(&pod);
        return Addressed::Workload(pod, port);
    }
    let known = world.index.pod_ips.contains_key(&ip) || world.index.endpoint_ips.contains_key(&ip);
    let ours = world.settings.mesh_networks.iter().any(|network| network.contains(&ip));
    if ours && !known { Addressed::Nobody } else { Addressed::Outside }
}

/// The Pod at an address; where several share it, the one whose endpoint has that port.
fn pod_at(sources: &mut Sources<'_>, ip: IpAddr, port: u16) -> Option<ObjectKey> {
    let world = sources.world;
    if let Some(only) = world.index.only_pod_at(ip) {
        return Some(only.clone());
    }
    let uses = world.index.endpoint_ips.get(&ip)?;
    for used in uses {
        sources.service(&used.service);
        let Some(pod) = used.pod.as_ref().filter(|pod| model::pod(&world.objects, pod).is_some()) else { continue };
        let ports = model::slice(&world.objects, &used.slice).and_then(|slice| slice.ports.as_ref());
        if ports.is_some_and(|ports| ports.iter().any(|slice_port| slice_port.number == port)) {
            return Some(pod.clone());
        }
    }
    None
}

/// "service.namespace", with or without cluster DNS's endings; "service" in the client's own namespace; and
/// "hostname.service.namespace" for one endpoint of a headless Service.
fn by_name(sources: &mut Sources<'_>, namespace: &str, host: &str, port: u16) -> Addressed {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let stripped = NAME_ENDINGS.iter().find_map(|ending| host.strip_suffix(ending));
    let (cluster_name, host) = (stripped.is_some(), stripped.unwrap_or(&host));
    let labels: Vec<&str> = host.split('.').collect();
    let key = match labels.as_slice() {
        [name] => service_key(namespace, name),
        [name, namespace] | [_, name, namespace] => service_key(namespace, name),
        _ => return Addressed::Outside,
    };
    sources.service(&key);
    let world = sources.world;
    let Some(service) = model::service(&world.objects, &key) else {
        // A name in a namespace of the mesh is the mesh's: without its Service, it is nobody, and no matter for DNS.
        sources.services_of(&key.namespace);
        let ours = cluster_name || labels.len() > 1 && has_services(world, namespace, &key.namespace);
        return if ours { Addressed::Nobody } else { Addressed::Outside };
    };
    if let [hostname, _, _] = labels.as_slice() {
        return match pod_by_hostname(sources, &key, hostname) {
            Some(pod) => {
                sources.workload(&pod);
                Addressed::Workload(pod, port)
            }
            None => Addressed::Outside,
        };
    }
    let external = matches!(service.kind, model::ServiceKind::ExternalName(_)) && service.ports.is_empty();
    if service.port(port).is_some() || external { Addressed::Service(key, port) } else { Addressed::Nobody }
}

/// Whether a namespace is one of the mesh: the client's own, or one with Services.
fn has_services(world: &World, own: &str, namespace: &Arc<str>) -> bool {
    let first = ObjectKey { kind: Kind::Service, namespace: Arc::clone(namespace), name: "".into() };
    let next = world.objects.range(first..).next().map(|(key, _)| key);
    own == &**namespace || next.is_some_and(|key| key.kind == Kind::Service && key.namespace == *namespace)
}

fn pod_by_hostname(sources: &Sources<'_>, service: &ObjectKey, hostname: &str) -> Option<ObjectKey> {
    let world = sources.world;
    let slices = world.index.slices.get(service)?;
    slices.iter().find_map(|key| {
        let slice = model::slice(&world.objects, key)?;
        let named = |name: &Option<Arc<str>>| name.as_deref() == Some(hostname);
        let endpoint = slice.endpoints.iter().find(|endpoint| named(&endpoint.hostname))?;
        let name = endpoint.pod.clone()?;
        let pod = ObjectKey { kind: Kind::Pod, namespace: key.namespace.clone(), name };
        model::pod(&world.objects, &pod).map(|_| pod)
    })
}
