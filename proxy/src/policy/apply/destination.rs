//! Destinations: what a client's address stands for, and the routes of connections.

use std::sync::Arc;

use leno_proto::v1;

use super::{Backends, Invalid, http, parse_port, parse_protocol};
use crate::{
    policy::{
        Destination, DestinationKey, RuleOrigin, ServicePort, Target, TcpRoute, TlsRoutes, WeightedBackends,
        tcp_route::{ServerName, TcpBackend, TlsRule},
    },
    telemetry::ConnectionMetrics,
};

/// `before`: what is in force.
pub(super) fn parse(
    key: DestinationKey,
    destination: v1::Destination,
    before: Option<&Destination>,
    backends: &mut Backends<'_>,
) -> Result<Destination, Invalid> {
    use v1::destination::Target as From;
    let target = match destination.target {
        Some(From::Service(service)) => {
            let before = before.and_then(|before| match &before.target {
                Target::Service(port) => Some(port),
                Target::Workload(_) | Target::Outside => None,
            });
            Target::Service(parse_service(service, before, backends).map_err(|invalid| invalid.within("service"))?)
        }
        Some(From::Workload(reference)) => {
            Target::Workload(backends.get(reference).map_err(|invalid| invalid.within("workload"))?)
        }
        Some(From::Outside(v1::Outside {})) => Target::Outside,
        None => return Err(Invalid::new("target", "missing, or of a kind that this version of the proxy lacks")),
    };
    Ok(Destination { key, target })
}

fn parse_service(
    service: v1::ServiceTarget,
    before: Option<&ServicePort>,
    backends: &mut Backends<'_>,
) -> Result<ServicePort, Invalid> {
    let reference = service.service.unwrap_or_default();
    if reference.name.is_empty() {
        return Err(Invalid::new("service", "has no name"));
    }
    let name = format!("{}/{}", reference.namespace, reference.name);
    // An address may have come to stand for another Service.
    let before = before.filter(|before| *before.service == *name).and_then(|before| before.http.as_ref());
    let http = service.http.map(|routes| http::parse(&name, routes, before, backends));
    let tls = service.tls.map(|routes| parse_tls(&name, routes, backends));
    let tcp = service.tcp.map(|route| parse_tcp(&name, route, backends));
    Ok(ServicePort {
        port: parse_port(service.port)?,
        protocol: parse_protocol(service.protocol)?,
        http: http.transpose().map_err(|invalid| invalid.within("http"))?,
        tls: tls.transpose().map_err(|invalid| invalid.within("tls"))?,
        tcp: tcp.transpose().map_err(|invalid| invalid.within("tcp"))?,
        service: name.into(),
    })
}

fn parse_tls(service: &str, routes: v1::TlsRoutes, backends: &mut Backends<'_>) -> Result<TlsRoutes, Invalid> {
    let mut rules = Vec::with_capacity(routes.rules.len());
    for (index, rule) in routes.rules.into_iter().enumerate() {
        let rule = parse_tls_rule(service, rule, backends);
        rules.push(rule.map_err(|invalid| invalid.within(format!("rules[{index}]")))?);
    }
    Ok(TlsRoutes { rules: rules.into() })
}

fn parse_tls_rule(service: &str, rule: v1::TlsRule, backends: &mut Backends<'_>) -> Result<TlsRule, Invalid> {
    let name = |(index, text): (usize, &String)| {
        ServerName::parse(text)
            .ok_or_else(|| Invalid::new(format!("server_names[{index}]"), format!("{text:?} is not a host name")))
    };
    let names = rule.server_names.iter().enumerate().map(name).collect::<Result<_, _>>()?;
    let route = rule.route.ok_or_else(|| Invalid::new("route", "missing"))?;
    let route = parse_tcp(service, route, backends).map_err(|invalid| invalid.within("route"))?;
    Ok(TlsRule { names, route })
}

fn parse_tcp(service: &str, route: v1::TcpRoute, backends: &mut Backends<'_>) -> Result<TcpRoute, Invalid> {
    let origin = parse_origin(route.origin);
    let mut entries = Vec::with_capacity(route.backends.len());
    for (index, weighted) in route.backends.into_iter().enumerate() {
        let at = |invalid: Invalid| invalid.within(format!("backends[{index}]"));
        let backend = match weighted.kind {
            Some(v1::weighted_backend::Kind::Backend(reference)) => {
                Ok(backends.get(reference).map_err(|invalid| at(invalid.within("backend")))?)
            }
            Some(v1::weighted_backend::Kind::Invalid(reason)) => Err(reason),
            None => return Err(at(Invalid::new("kind", "neither a backend nor a reason why not"))),
        };
        let label = backend.as_ref().map_or("invalid", |backend| &*backend.key);
        let metrics = ConnectionMetrics::outbound(service, &origin.route, label);
        entries.push((weighted.weight, TcpBackend { backend, metrics }));
    }
    Ok(TcpRoute { origin, backends: WeightedBackends::new(entries) })
}

/// "HTTPRoute shop/cart"
pub(super) fn object_text(v1::ObjectRef { kind, namespace, name }: &v1::ObjectRef) -> Arc<str> {
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }.into()
}

/// "HTTPRoute shop/cart"; "default" for what no route says.
pub(super) fn parse_origin(origin: Option<v1::RuleOrigin>) -> RuleOrigin {
    let origin = origin.unwrap_or_default();
    let route = match origin.route {
        Some(route) => object_text(&route),
        None => "default".into(),
    };
    RuleOrigin { route, rule: origin.rule.into() }
}
