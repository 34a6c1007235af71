//! DESTINATION: what clients of one namespace get for an address.

use std::net::IpAddr;

use leno_proto::v1::{
    BackendRef, Destination, Outside, Protocol, RuleOrigin, ServiceTarget, TcpRoute, TlsRoutes, TlsRule,
    WeightedBackend, destination::Target, weighted_backend,
};

use super::{
    Sources,
    address::{self, Addressed},
    http, object_ref, policy,
};
use crate::model::{self, Backend, BackendTarget, Kind, ObjectKey, Rules};

pub(super) fn destination(sources: &mut Sources<'_>, namespace: &str, key: &str) -> Option<Destination> {
    let target = match address::resolve(sources, namespace, key) {
        Addressed::Service(service, port) => Target::Service(service_target(sources, namespace, &service, port)),
        Addressed::Workload(pod, ip, port) => {
            let usual = sources.world.index.addresses_of(&sources.world.objects, &pod).next() == Some(ip);
            Target::Workload(workload_backend(&pod, (!usual).then_some(ip), port))
        }
        Addressed::Hostname(service, hostname, port) => Target::Workload(hostname_backend(&service, &hostname, port)),
        Addressed::Outside => Target::Outside(Outside {}),
        Addressed::Nobody => return None,
    };
    Some(Destination { target: Some(target) })
}

/// Key of the ENDPOINTS of one workload's port, at an address other than its first.
fn workload_backend(pod: &ObjectKey, ip: Option<IpAddr>, port: u16) -> BackendRef {
    let at = ip.map(|ip| format!("/{ip}")).unwrap_or_default();
    BackendRef { key: format!("{}/pod/{}{at}:{port}", pod.namespace, pod.name) }
}

/// Key of the ENDPOINTS of one endpoint that no Pod is behind.
fn hostname_backend(service: &ObjectKey, hostname: &str, port: u16) -> BackendRef {
    BackendRef { key: format!("{}/host/{}/{hostname}:{port}", service.namespace, service.name) }
}

fn service_backend(service: &ObjectKey, port: u16) -> BackendRef {
    BackendRef { key: format!("{}/{}:{port}", service.namespace, service.name) }
}

fn service_target(sources: &mut Sources<'_>, namespace: &str, service: &ObjectKey, port: u16) -> ServiceTarget {
    let world = sources.world;
    let declared = model::service(&world.objects, service)
        .and_then(|service| service.port(port))
        .map_or(Protocol::Detect, |port| port.protocol);
    let mut target = ServiceTarget {
        service: Some(object_ref(service)),
        port: u32::from(port),
        protocol: declared.into(),
        http: None,
        tls: None,
        tcp: None,
    };
    let Some(attached) = world.routes.at(service, port, namespace) else {
        default_routes(sources, &mut target, service, port);
        return target;
    };
    for route in &attached.routes {
        sources.origin(route);
    }
    match attached.kind {
        Kind::HttpRoute | Kind::GrpcRoute => {
            // A route of these kinds declares what is spoken; the port may know it more closely.
            let protocol = match (attached.kind, declared) {
                (Kind::GrpcRoute, _) => Protocol::Http2,
                (_, Protocol::Http1 | Protocol::Http2) => declared,
                _ => Protocol::Http,
            };
            target.protocol = protocol.into();
            target.http = Some(http::routes(sources, &attached.routes));
        }
        Kind::TlsRoute => {
            target.protocol = Protocol::Tls.into();
            target.tls = Some(tls_routes(sources, &attached.routes));
        }
        _ => {
            target.protocol = Protocol::Tcp.into();
            let route = attached.routes.first();
            target.tcp = route.and_then(|key| plain_route(sources, key));
        }
    }
    target
}

/// Without routes: everything goes to the Service's own endpoints.
fn default_routes(sources: &mut Sources<'_>, target: &mut ServiceTarget, service: &ObjectKey, port: u16) {
    let declared = target.protocol();
    let own = WeightedBackend {
        weight: 1,
        kind: Some(weighted_backend::Kind::Backend(service_backend(service, port))),
        filters: Vec::new(),
        session_persistence: None,
    };
    let tcp = TcpRoute { origin: Some(RuleOrigin::default()), backends: vec![own.clone()] };
    if !matches!(declared, Protocol::Tls | Protocol::Tcp) {
        let session_persistence = policy::session_of_backend(sources, service, port);
        target.http = Some(http::default_routes(vec![WeightedBackend { session_persistence, ..own }]));
    }
    match declared {
        Protocol::Tls => {
            target.tls =
                Some(TlsRoutes { rules: vec![TlsRule { server_names: Vec::new(), route: Some(tcp.clone()) }] });
            target.tcp = Some(tcp);
        }
        Protocol::Detect | Protocol::Tcp => target.tcp = Some(tcp),
        Protocol::Http | Protocol::Http1 | Protocol::Http2 => {}
    }
}

/// Exact names before wildcards, longer wildcards before shorter, any name last; among equals the older route. Any name of one that is
/// refused, which may mean that its names cannot be read, comes after all others.
fn tls_routes(sources: &mut Sources<'_>, routes: &[ObjectKey]) -> TlsRoutes {
    let mut rules = Vec::new();
    for (age, key) in routes.iter().enumerate() {
        let Some(route) = model::route(&sources.world.objects, key) else { continue };
        let Rules::Tls { server_names, .. } = &route.rules else { continue };
        let names: Vec<&str> = match server_names.as_slice() {
            [] => vec![""],
            names => names.iter().map(AsRef::as_ref).collect(),
        };
        for name in names {
            let rank = match name {
                "" if route.refused.is_some() => 3,
                "" => 2,
                name if name.starts_with("*.") => 1,
                _ => 0,
            };
            rules.push(((rank, usize::MAX - name.len(), age, name.to_owned()), key));
        }
    }
    rules.sort();
    let rules = rules
        .into_iter()
        .map(|((.., name), key)| TlsRule {
            server_names: if name.is_empty() { Vec::new() } else { vec![name] },
            route: plain_route(sources, key),
        })
        .collect();
    TlsRoutes { rules }
}

fn plain_route(sources: &mut Sources<'_>, key: &ObjectKey) -> Option<TcpRoute> {
    let (Rules::Tls { backends, .. } | Rules::Tcp { backends }) = &model::route(&sources.world.objects, key)?.rules
    else {
        return None;
    };
    let backends = backends.iter().map(|backend| weighted(sources, backend)).collect();
    Some(TcpRoute { origin: Some(origin(key, "0")), backends })
}

pub(super) fn origin(route: &ObjectKey, rule: &str) -> RuleOrigin {
    RuleOrigin { route: Some(object_ref(route)), rule: rule.to_owned() }
}

/// A backend by key, or why it cannot be one.
pub(super) fn weighted(sources: &mut Sources<'_>, backend: &Backend) -> WeightedBackend {
    let kind = match self::backend(sources, &backend.target) {
        Ok(backend) => weighted_backend::Kind::Backend(backend),
        Err(reason) => weighted_backend::Kind::Invalid(reason),
    };
    let filters = backend.filters.iter().map(|filter| http::filter(sources, filter)).collect();
    WeightedBackend { weight: backend.weight, kind: Some(kind), filters, session_persistence: None }
}

/// The key of what is named, or why it cannot be a backend.
pub(super) fn backend(sources: &mut Sources<'_>, target: &BackendTarget) -> Result<BackendRef, String> {
    if let Some((service, _)) = model::backend_service(target) {
        sources.service(&service);
    }
    match model::resolve(&sources.world.objects, target) {
        Ok((service, port)) => Ok(service_backend(&service, port)),
        Err((reason, message)) => Err(format!("{reason}: {message}")),
    }
}
