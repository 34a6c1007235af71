//! What `leno check` says about a set of documents, without a mesh: errors, and what will surprise.

use super::{Document, DocumentError, Generations, Kind, MeshSettings, Object, World, index, object::ServiceKind};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// These documents would not be in force.
    pub errors: Vec<DocumentError>,
    pub warnings: Vec<Warning>,
    /// Objects that are fine, or fine but for warnings.
    pub objects: usize,
}

/// Something that is allowed, and probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// "shop.yaml#2"
    pub source: String,
    /// "HTTPRoute shop/cart", or empty.
    pub object: String,
    pub message: String,
}

/// Reads documents as a control plane would that starts with them.
pub fn check(settings: MeshSettings, documents: Vec<Document>, unreadable: Vec<DocumentError>) -> Report {
    let world = World::empty(settings, Generations::default()).apply(documents, unreadable);
    let mut warnings = Vec::new();
    for ignored in world.ignored() {
        let (source, what) = ignored.split_once(": ").unwrap_or(("", ignored));
        warnings.push(Warning {
            source: source.to_owned(),
            object: String::new(),
            message: format!("{what} is of a kind that is not read"),
        });
    }
    for object in world.objects() {
        let mut warn = |message: String| {
            warnings.push(Warning { source: object.source.clone(), object: object.key.to_string(), message });
        };
        for condition in &object.conditions {
            // Of these two, true is the good one.
            let good = matches!(condition.kind, "Accepted" | "ResolvedRefs");
            if condition.status == good && condition.message.is_empty() || (condition.status == good && good) {
                continue;
            }
            let parent = condition.parent.as_ref().map(|parent| format!(" at {parent}")).unwrap_or_default();
            warn(format!("{}: {}{parent}: {}", condition.kind, condition.reason, condition.message));
        }
        for message in surprises(&world, &object.key) {
            warn(message);
        }
    }
    Report { errors: world.errors().to_vec(), objects: world.objects.len(), warnings }
}

fn surprises(world: &World, key: &super::ObjectKey) -> Vec<String> {
    let mut found = Vec::new();
    match world.object(key) {
        Some(Object::Service(service)) if !matches!(service.kind, ServiceKind::ExternalName(_)) => {
            let slices = world.index.slices.get(key).into_iter().flatten();
            let slices: Vec<_> = slices.filter_map(|slice| index::slice(&world.objects, slice)).collect();
            for port in &service.ports {
                let reachable = slices
                    .iter()
                    .any(|slice| index::target_number(service, port, slice).is_some() && !slice.endpoints.is_empty());
                if !reachable {
                    found.push(format!("port {} has no endpoints (no EndpointSlice names it)", port.number));
                }
            }
            if service.ports.is_empty() {
                found.push("has no TCP port".to_owned());
            }
        }
        Some(Object::EndpointSlice(slice)) => {
            match index::service_of_slice(key, slice) {
                None => found.push("belongs to no Service (label kubernetes.io/service-name)".to_owned()),
                Some(service) if index::service(&world.objects, &service).is_none() => {
                    found.push(format!("{service} does not exist"));
                }
                Some(_) => {}
            }
            for pod in slice.endpoints.iter().filter_map(|endpoint| index::target_ref(&key.namespace, endpoint)) {
                if index::pod(&world.objects, &pod).is_none() {
                    found.push(format!("{pod} does not exist: its endpoint is reached in plaintext"));
                }
            }
        }
        Some(Object::Route(route)) => {
            if route.parents.is_empty() {
                found.push("has no parentRefs: it is attached to nothing".to_owned());
            }
            if let super::Rules::Http(rules) = &route.rules {
                let answers = |filter: &super::HttpFilter| matches!(filter, super::HttpFilter::Redirect(_));
                for rule in rules.iter().filter(|rule| rule.backends.is_empty() && !rule.filters.iter().any(answers)) {
                    found.push(format!("rule {} has no backendRefs: requests are answered with 500", rule.name));
                }
            }
        }
        _ => {}
    }
    if key.kind != Kind::Namespace {
        return found;
    }
    found
}
