//! What a client addresses: an IP address and port, or a name and port, resolved to an object.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{Sources, service_key};
use crate::model::{self, Endpoint, EndpointSlice, EndpointUse, ObjectKey, World};

/// What an address stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Addressed {
    Service(ObjectKey, u16),
    /// A Pod at one of its addresses.
    Workload(ObjectKey, IpAddr, u16),
    /// The endpoint of a Service that has this hostname, and is no Pod's.
    Hostname(ObjectKey, String, u16),
    /// Nobody the mesh knows: passed through.
    Outside,
    /// Belongs to the mesh, and nobody is there.
    Nobody,
}

/// A Service's name without what cluster DNS appends to it, ".svc" and the domain; None: it is no such name. `host`: in lower case,
/// without a last dot.
pub(super) fn in_cluster<'h>(host: &'h str, domain: &str) -> Option<&'h str> {
    let relative = host.strip_suffix(domain).and_then(|host| host.strip_suffix('.'));
    relative.unwrap_or(host).strip_suffix(".svc")
}

/// Resolves a destination key for clients in `namespace`.
pub(super) fn resolve(sources: &mut Sources<'_>, namespace: &str, key: &str) -> Addressed {
    if let Ok(address) = key.parse::<SocketAddr>()
        && address.port() > 0
    {
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
    if let Some(service) = world.index.service_at(ip) {
        sources.service(service);
        let known = model::service(&world.objects, service).is_some_and(|service| service.port(port).is_some());
        return if known { Addressed::Service(service.clone(), port) } else { Addressed::Nobody };
    }
    let uses = world.index.uses_of(ip);
    for pod in uses.clone().filter_map(|used| used.pod.as_ref()) {
        sources.topics.insert(model::Topic::Workload(format!("{}/{}", pod.namespace, pod.name).into()));
    }
    // Of a Pod that does not exist: who is there is not known, and plaintext is not for whoever it is.
    let nobody = |used: &&EndpointUse| used.pod.as_ref().is_some_and(|pod| model::pod(&world.objects, pod).is_none());
    if uses.clone().filter(nobody).any(|used| has_port(world, used, port)) {
        return Addressed::Nobody;
    }
    if let Some(pod) = pod_at(world, ip, port) {
        sources.workload(&pod);
        return Addressed::Workload(pod, ip, port);
    }
    let of_pods = world.index.pods_at(ip).next().is_some();
    let used = uses.clone().next().is_some();
    if !of_pods && used && uses.clone().all(|used| nobody(&used)) {
        return Addressed::Nobody;
    }
    let known = of_pods || used;
    let ours = world.settings.mesh_networks.iter().any(|network| network.contains(&ip));
    if ours && !known { Addressed::Nobody } else { Addressed::Outside }
}

/// The Pod at an address, its own or that of an endpoint that names it; where several share it, the one whose endpoint
/// has that port.
fn pod_at(world: &World, ip: IpAddr, port: u16) -> Option<ObjectKey> {
    let named = |used: &'_ EndpointUse| used.pod.clone().filter(|pod| model::pod(&world.objects, pod).is_some());
    let uses = world.index.uses_of(ip);
    let mut pods: BTreeSet<ObjectKey> = world.index.pods_at(ip).cloned().collect();
    pods.extend(uses.clone().filter_map(named));
    if pods.len() < 2 {
        return pods.pop_first();
    }
    uses.filter(|used| has_port(world, used, port)).find_map(named)
}

fn has_port(world: &World, used: &EndpointUse, port: u16) -> bool {
    let ports = model::slice(&world.objects, &used.slice).and_then(|slice| slice.ports.as_ref());
    ports.is_some_and(|ports| ports.iter().any(|slice_port| slice_port.number == port))
}

/// "service.namespace", with or without cluster DNS's endings; "service" in the client's own namespace; and
/// "hostname.service.namespace" for one endpoint of a headless Service.
fn by_name(sources: &mut Sources<'_>, namespace: &str, host: &str, port: u16) -> Addressed {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let stripped = in_cluster(&host, &sources.world.settings.cluster_domain);
    let (cluster_name, host) = (stripped.is_some(), stripped.unwrap_or(&host));
    let labels: Vec<&str> = host.split('.').collect();
    let key = match labels.as_slice() {
        [name] => service_key(namespace, name),
        [name, namespace] | [_, name, namespace] => service_key(namespace, name),
        // Cluster DNS may have an answer, which is no reason to go there in plaintext.
        _ if cluster_name => return Addressed::Nobody,
        _ => return Addressed::Outside,
    };
    sources.service(&key);
    let world = sources.world;
    let Some(service) = model::service(&world.objects, &key) else {
        // Without its Service it is nobody, and no matter for DNS: a name as only cluster DNS has them, or one in the client's own
        // namespace or one that the mesh has ever known. Of other names of two labels nothing tells that they are no domain's
        // (`example.com`).
        let known = labels.len() > 1 && (*namespace == *key.namespace || sources.knows(&key.namespace));
        return if cluster_name || known { Addressed::Nobody } else { Addressed::Outside };
    };
    if let [hostname, _, _] = labels.as_slice() {
        return by_hostname(sources, &key, hostname, port);
    }
    let external = matches!(service.kind, model::ServiceKind::ExternalName(_)) && service.ports.is_empty();
    if service.port(port).is_some() || external { Addressed::Service(key, port) } else { Addressed::Nobody }
}

/// One endpoint of a Service, asked for by its hostname. A port of the Service is that which its EndpointSlice says; any
/// other is the endpoint's own.
fn by_hostname(sources: &mut Sources<'_>, key: &ObjectKey, hostname: &str, port: u16) -> Addressed {
    let world = sources.world;
    let Some((slice_key, slice, endpoint)) = named_endpoint(world, key, hostname) else { return Addressed::Nobody };
    let Some(ip) = endpoint.addresses.first() else { return Addressed::Nobody };
    let service = model::service(&world.objects, key);
    let declared = service.and_then(|service| Some((service, service.port(port)?)));
    let target = declared.and_then(|(service, port)| model::target_number(service, port, slice)).unwrap_or(port);
    match world.index.pod_of(&world.objects, &slice_key.namespace, endpoint, *ip) {
        Some(pod) => {
            sources.workload(&pod);
            Addressed::Workload(pod, *ip, target)
        }
        None => Addressed::Hostname(key.clone(), hostname.to_owned(), target),
    }
}

/// The endpoint of a Service with that hostname, and its slice; not that of a Pod that does not exist.
pub(super) fn named_endpoint<'a>(
    world: &'a World,
    service: &ObjectKey,
    hostname: &str,
) -> Option<(&'a ObjectKey, &'a EndpointSlice, &'a Endpoint)> {
    world.index.slices_of(service).find_map(|key| {
        let slice = model::slice(&world.objects, key)?;
        let endpoint = slice.endpoints.iter().find(|endpoint| {
            endpoint.hostname.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(hostname))
                && !endpoint.addresses.is_empty()
                && model::missing_pod(&world.objects, &key.namespace, endpoint).is_none()
        })?;
        Some((key, slice, endpoint))
    })
}
