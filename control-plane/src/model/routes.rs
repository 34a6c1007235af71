//! Which route is in force where (GEP-1294), and what every route is told about it.
//!
//! Routes of a Service's own namespace hold for all its clients; those of another namespace for clients there, and for them
//! in place of the former, unless all are refused: those only stand beside the former. Within such a group, on one port, one kind of
//! route is in force.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use leno_proto::v1::Protocol;

use super::{
    Condition, Kind, ObjectKey,
    index::{self, Objects},
    object::{BackendTarget, ParentRef, Route, ServiceKind},
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct RouteIndex {
    in_force: Places<PortRoutes>,
    pub(crate) conditions: BTreeMap<ObjectKey, Vec<Condition>>,
}

/// None: all clients. Some: those of that namespace.
type Group = Option<Arc<str>>;
/// By Service, group and port.
type Places<T> = HashMap<ObjectKey, ByGroup<T>>;
type ByGroup<T> = BTreeMap<(Group, u16), T>;
/// Routes of one group and port.
type Candidates<'a> = Vec<(&'a ObjectKey, &'a Route)>;

/// The routes of one group, on one port of a Service.
#[derive(Debug)]
pub(crate) struct PortRoutes {
    pub(crate) kind: Kind,
    /// The oldest first.
    pub(crate) routes: Vec<ObjectKey>,
}

/// Where a parent reference leads.
enum Attachment {
    /// Ports of the Service.
    To(ObjectKey, Vec<u16>),
    /// To a parent that is another implementation's to serve, and to report on.
    Elsewhere,
    Refused {
        reason: &'static str,
        message: String,
    },
}

impl RouteIndex {
    pub(crate) fn build(objects: &Objects) -> Self {
        let routes: Vec<(&ObjectKey, &Route)> = objects
            .keys()
            .filter(|key| key.kind.is_route())
            .filter_map(|key| Some((key, index::route(objects, key)?)))
            .collect();
        let attachments: Vec<Vec<Attachment>> = routes
            .iter()
            .map(|(key, route)| route.parents.iter().map(|parent| attach(objects, key.kind, parent)).collect())
            .collect();
        let in_force = decide(&routes, &attachments);
        let mut conditions = BTreeMap::new();
        for ((key, route), attachments) in routes.iter().zip(&attachments) {
            conditions.insert((*key).clone(), conditions_of(objects, &in_force, key, route, attachments));
        }
        Self { in_force, conditions }
    }

    /// What clients in `namespace` get at a port of a Service; none: its default.
    pub(crate) fn at(&self, service: &ObjectKey, port: u16, namespace: &str) -> Option<&PortRoutes> {
        let groups = self.in_force.get(service)?;
        let consumer = groups.get(&(Some(namespace.into()), port));
        consumer.or_else(|| groups.get(&(None, port)))
    }
}

pub(crate) fn backend_service(target: &BackendTarget) -> Option<(ObjectKey, u16)> {
    match target {
        BackendTarget::Service { namespace, name, port } => {
            let key = ObjectKey { kind: Kind::Service, namespace: namespace.clone(), name: name.clone() };
            Some((key, *port))
        }
        BackendTarget::InvalidKind(_) | BackendTarget::OfRefused(_) => None,
    }
}

fn group(route: &ObjectKey, service: &ObjectKey) -> Group {
    (route.namespace != service.namespace).then(|| route.namespace.clone())
}

/// The order in which kinds exclude each other (GEP-1294); the first wins.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::GrpcRoute => 0,
        Kind::HttpRoute => 1,
        Kind::TlsRoute => 2,
        _ => 3,
    }
}

fn decide(routes: &[(&ObjectKey, &Route)], attachments: &[Vec<Attachment>]) -> Places<PortRoutes> {
    let mut candidates: Places<Candidates<'_>> = HashMap::new();
    for ((key, route), attachments) in routes.iter().zip(attachments) {
        for attachment in attachments {
            let Attachment::To(service, ports) = attachment else { continue };
            for port in ports {
                let at =
                    candidates.entry(service.clone()).or_default().entry((group(key, service), *port)).or_default();
                if !at.iter().any(|(known, _)| known == key) {
                    at.push((key, route));
                }
            }
        }
    }
    let in_force = |groups: ByGroup<Candidates<'_>>| {
        let mut chosen: ByGroup<Candidates<'_>> =
            groups.into_iter().map(|(place, candidates)| (place, choose(candidates))).collect();
        beside_own(&mut chosen);
        let port_routes = |candidates: Candidates<'_>| {
            let kind = candidates.first()?.0.kind;
            Some(PortRoutes { kind, routes: candidates.into_iter().map(|(key, _)| key.clone()).collect() })
        };
        chosen.into_iter().filter_map(|(place, candidates)| Some((place, port_routes(candidates)?))).collect()
    };
    candidates.into_iter().map(|(service, groups)| (service, in_force(groups))).collect()
}

/// Those that are in force together: of one kind, the oldest first.
fn choose(mut candidates: Candidates<'_>) -> Candidates<'_> {
    // Without a time of creation: after those that have one.
    candidates.sort_by_key(|(key, route)| {
        (rank(key.kind), route.created.is_none(), route.created.clone(), key.namespace.clone(), key.name.clone())
    });
    // One that is refused serves nobody: it is no reason to take the port from one that does.
    let accepted = candidates.iter().find(|(_, route)| route.refused.is_none());
    let Some(kind) = accepted.or_else(|| candidates.first()).map(|(key, _)| key.kind) else { return candidates };
    candidates.retain(|(key, _)| key.kind == kind);
    if kind == Kind::TcpRoute {
        candidates.sort_by_key(|(_, route)| route.refused.is_some());
        // Nothing tells connections apart: only one can be in force.
        candidates.truncate(1);
    }
    candidates
}

/// Of a consumer's routes that are all refused none serves its clients: the Service's own go on doing so, and what can be read of the
/// refused takes its requests among them.
fn beside_own(chosen: &mut ByGroup<Candidates<'_>>) {
    if chosen.keys().all(|(group, _)| group.is_none()) {
        return;
    }
    let own: BTreeMap<u16, Candidates<'_>> = chosen
        .iter()
        .filter(|((group, _), _)| group.is_none())
        .map(|((_, port), candidates)| (*port, candidates.clone()))
        .collect();
    for ((group, port), candidates) in chosen.iter_mut() {
        let Some(own) = own.get(port).filter(|_| group.is_some()) else { continue };
        if candidates.iter().all(|(_, route)| route.refused.is_some()) {
            *candidates = choose(own.iter().chain(&*candidates).copied().collect());
        }
    }
}

fn attach(objects: &Objects, kind: Kind, parent: &ParentRef) -> Attachment {
    let refused = |reason, message| Attachment::Refused { reason, message };
    if !parent.is_service {
        if !parent.kind.ends_with("/Service") {
            return Attachment::Elsewhere;
        }
        return refused(
            "NoMatchingParent",
            format!("{} is no kind that is known: write group: \"\" for a Service", parent.kind),
        );
    }
    let key = ObjectKey { kind: Kind::Service, namespace: parent.namespace.clone(), name: parent.name.clone() };
    let Some(service) = index::service(objects, &key) else {
        return refused("NoMatchingParent", format!("{key} does not exist"));
    };
    match &service.kind {
        ServiceKind::ClusterIp => {}
        ServiceKind::Headless => {
            return refused("NoMatchingParent", format!("{key} is headless: routes need a Service with a cluster IP"));
        }
        ServiceKind::ExternalName(_) => {
            return refused(
                "NoMatchingParent",
                format!("{key} is an ExternalName: routes need a Service with a cluster IP"),
            );
        }
    }
    let named = |port: &&super::ServicePort| {
        parent.port.is_none_or(|number| port.number == number)
            && parent.section_name.as_ref().is_none_or(|name| port.name == *name)
    };
    let ports: Vec<_> = service.ports.iter().filter(named).collect();
    if ports.is_empty() {
        return refused("NoMatchingParent", format!("{key} has no such port"));
    }
    let fit: Vec<u16> = ports.iter().filter(|port| fits(kind, port.protocol)).map(|port| port.number).collect();
    if fit.is_empty() {
        let message =
            format!("appProtocol of the port of {key} says that it does not speak what a {} routes", kind.as_str());
        return refused("UnsupportedProtocol", message);
    }
    Attachment::To(key, fit)
}

/// Whether a kind of route can do anything with what a port declares to speak.
fn fits(kind: Kind, protocol: Protocol) -> bool {
    match kind {
        Kind::HttpRoute | Kind::GrpcRoute => !matches!(protocol, Protocol::Tls | Protocol::Tcp),
        Kind::TlsRoute => !matches!(protocol, Protocol::Http | Protocol::Http1 | Protocol::Http2),
        _ => true,
    }
}

fn conditions_of(
    objects: &Objects,
    in_force: &Places<PortRoutes>,
    key: &ObjectKey,
    route: &Route,
    attachments: &[Attachment],
) -> Vec<Condition> {
    let mut conditions = Vec::new();
    for (parent, attachment) in route.parents.iter().zip(attachments) {
        let parent_text = Some(parent_text(parent));
        let (status, reason, message) = match attachment {
            Attachment::Refused { reason, message } => (false, *reason, message.clone()),
            Attachment::To(..) if let Some(because) = &route.refused => {
                (false, "UnsupportedValue", format!("{because} ({})", Route::REFUSED))
            }
            Attachment::To(service, ports) => accepted(in_force, key, service, ports),
            Attachment::Elsewhere => continue,
        };
        conditions.push(Condition {
            kind: "Accepted",
            status,
            reason: reason.to_owned(),
            message,
            parent: parent_text.clone(),
        });
        let (status, reason, message) = resolved(objects, route);
        conditions.push(Condition {
            kind: "ResolvedRefs",
            status,
            reason: reason.to_owned(),
            message,
            parent: parent_text,
        });
    }
    if !route.unsupported.is_empty() {
        conditions.push(Condition {
            kind: "PartiallyInvalid",
            status: true,
            reason: "UnsupportedValue".to_owned(),
            message: format!(
                "not supported, what it applies to is answered with 500: {}",
                route.unsupported.join("; ")
            ),
            parent: None,
        });
    }
    conditions
}

fn parent_text(parent: &ParentRef) -> String {
    let mut text = format!("{} {}/{}", parent.kind, parent.namespace, parent.name);
    match (parent.port, &parent.section_name) {
        (Some(port), _) => text.push_str(&format!(":{port}")),
        (None, Some(name)) => text.push_str(&format!(":{name}")),
        (None, None) => {}
    }
    text
}

fn accepted(
    in_force: &Places<PortRoutes>,
    key: &ObjectKey,
    service: &ObjectKey,
    ports: &[u16],
) -> (bool, &'static str, String) {
    let mut lost = Vec::new();
    for port in ports {
        let winner = in_force.get(service).and_then(|groups| groups.get(&(group(key, service), *port)));
        if let Some(winner) = winner.filter(|winner| !winner.routes.contains(key))
            && let Some(first) = winner.routes.first()
        {
            lost.push(format!("port {port}: {first} takes precedence"));
        }
    }
    match lost.len() {
        0 => (true, "Accepted", String::new()),
        count if count < ports.len() => (true, "Accepted", format!("not in force on {}", lost.join("; "))),
        _ => (false, "Conflicted", lost.join("; ")),
    }
}

fn resolved(objects: &Objects, route: &Route) -> (bool, &'static str, String) {
    let mut reason = None;
    let mut messages: Vec<String> = Vec::new();
    for target in route.rules.targets() {
        if let Err((why, message)) = resolve(objects, target) {
            reason.get_or_insert(why);
            if !messages.contains(&message) {
                messages.push(message);
            }
        }
    }
    match reason {
        None => (true, "ResolvedRefs", String::new()),
        Some(reason) => (false, reason, messages.join("; ")),
    }
}

/// The Service and port that a backend names, or why it cannot be used: reason and message.
pub(crate) fn resolve(objects: &Objects, target: &BackendTarget) -> Result<(ObjectKey, u16), (&'static str, String)> {
    let (key, port) = match (backend_service(target), target) {
        (Some(service), _) => service,
        (None, BackendTarget::OfRefused(because)) => {
            return Err(("UnsupportedValue", format!("the route is refused: {because}")));
        }
        (None, BackendTarget::InvalidKind(kind)) => return Err(("InvalidKind", format!("{kind} cannot be a backend"))),
        (None, BackendTarget::Service { .. }) => return Err(("InvalidKind", "not a Service".to_owned())),
    };
    let Some(service) = index::service(objects, &key) else {
        return Err(("BackendNotFound", format!("{key} does not exist")));
    };
    let any_port = matches!(service.kind, ServiceKind::ExternalName(_)) && service.ports.is_empty();
    if service.port(port).is_none() && !any_port {
        return Err(("BackendNotFound", format!("{key} has no port {port}")));
    }
    Ok((key, port))
}
