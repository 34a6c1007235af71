//! What `leno check` says about a set of documents, without a mesh: errors, and what will surprise.

use super::{
    Document, DocumentError, EndpointSlice, Generations, HttpFilter, HttpRule, Kind, MeshSettings, Object, ObjectKey,
    Route, Rules, Service, ServiceKind, World, index,
    policy::{PolicySpec, RoutePolicy},
};

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
    /// See [`is_wrong`].
    pub wrong: bool,
    /// "shop.yaml#2"
    pub source: String,
    /// "HTTPRoute shop/cart", or empty.
    pub object: String,
    pub message: String,
}

/// Whether a condition says that something of its object is not in force; one that is bad and not wrong is to be looked at.
pub fn is_wrong(kind: &str, status: bool) -> bool {
    match kind {
        "Accepted" | "ResolvedRefs" => !status,
        "PartiallyInvalid" => status,
        _ => false,
    }
}

/// Reads documents as a control plane would that starts with them.
pub fn check(settings: MeshSettings, documents: Vec<Document>, unreadable: Vec<DocumentError>) -> Report {
    let world = World::empty(settings, Generations::default()).apply(documents, unreadable);
    let mut warnings = Vec::new();
    for ignored in world.ignored() {
        let (source, what) = ignored.split_once(": ").unwrap_or(("", &ignored));
        warnings.push(Warning {
            wrong: false,
            source: source.to_owned(),
            object: String::new(),
            message: format!("{what} is of a kind that is not read"),
        });
    }
    let stands_in = |key: &ObjectKey| world.objects.get(key).is_some_and(|stored| stored.stands_in());
    let objects: Vec<_> = world.objects().into_iter().filter(|object| !stands_in(&object.key)).collect();
    for object in &objects {
        let mut warn = |wrong: bool, message: String| {
            let (source, object) = (object.source.clone(), object.key.to_string());
            warnings.push(Warning { wrong, source, object, message });
        };
        for condition in &object.conditions {
            // Of these two, true is the good one; it may still have something to say.
            let good = matches!(condition.kind, "Accepted" | "ResolvedRefs");
            if condition.status == good && condition.message.is_empty() {
                continue;
            }
            let status = if condition.status { "True" } else { "False" };
            let parent = condition.parent.as_ref().map(|parent| format!(" at {parent}")).unwrap_or_default();
            warn(
                is_wrong(condition.kind, condition.status),
                format!("{}={status} ({}){parent}: {}", condition.kind, condition.reason, condition.message),
            );
        }
        for message in surprises(&world, &object.key) {
            warn(false, message);
        }
    }
    Report { errors: world.errors().to_vec(), objects: objects.len(), warnings }
}

fn surprises(world: &World, key: &ObjectKey) -> Vec<String> {
    match world.object(key) {
        Some(Object::Service(service)) => service_surprises(world, key, service),
        Some(Object::EndpointSlice(slice)) => slice_surprises(world, key, slice),
        Some(Object::Route(route)) => route_surprises(world, key, route),
        _ => Vec::new(),
    }
}

fn service_surprises(world: &World, key: &ObjectKey, service: &Service) -> Vec<String> {
    if matches!(service.kind, ServiceKind::ExternalName(_)) {
        return Vec::new();
    }
    if service.ports.is_empty() {
        return vec!["has no TCP port".to_owned()];
    }
    let slices: Vec<_> = world.index.slices_of(key).filter_map(|slice| index::slice(&world.objects, slice)).collect();
    let reachable = |port| {
        slices.iter().any(|slice| index::target_number(service, port, slice).is_some() && !slice.endpoints.is_empty())
    };
    let lonely = service.ports.iter().filter(|port| !reachable(port));
    lonely.map(|port| format!("port {} has no endpoints (no EndpointSlice has some for it)", port.number)).collect()
}

fn slice_surprises(world: &World, key: &ObjectKey, slice: &EndpointSlice) -> Vec<String> {
    let mut found = Vec::new();
    match index::service_of_slice(key, slice) {
        None => found.push("belongs to no Service (label kubernetes.io/service-name)".to_owned()),
        Some(service) if index::service(&world.objects, &service).is_none() => {
            found.push(format!("{service} does not exist"));
        }
        Some(_) => {}
    }
    found
}

fn route_surprises(world: &World, key: &ObjectKey, route: &Route) -> Vec<String> {
    let mut found = Vec::new();
    if !route.parents.iter().any(|parent| parent.is_service) {
        found.push("no parentRef is a Service (group: \"\", kind: Service): it is attached to nothing".to_owned());
    }
    if let Rules::Http(rules) = &route.rules {
        let answers = |filter: &HttpFilter| matches!(filter, HttpFilter::Redirect(_));
        let answered = |rule: &HttpRule| {
            let policy = world.policies.at(Kind::RoutePolicy, key, &rule.name);
            let spec = policy.and_then(|policy| Some(&index::policy(&world.objects, policy)?.spec));
            matches!(spec, Some(PolicySpec::Route(RoutePolicy { direct_response: Some(_), .. })))
        };
        let lonely = |rule: &&HttpRule| rule.backends.is_empty() && !rule.filters.iter().any(answers);
        for rule in rules.iter().filter(lonely).filter(|rule| !answered(rule)) {
            found.push(format!("rule {} has no backendRefs: requests are answered with 500", rule.name));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::yaml;

    fn warnings(text: &str) -> Vec<String> {
        let yaml::Contents { documents, unreadable, .. } = yaml::documents(&"a.yaml".into(), text, &yaml::Known::new());
        let report = check(MeshSettings::strict("cluster.local"), documents, unreadable);
        assert_eq!(report.errors, []);
        report
            .warnings
            .into_iter()
            .map(|warning| {
                let sign = if warning.wrong { "×" } else { "‼" };
                format!("{sign} {} {} {}", warning.source, warning.object, warning.message)
            })
            .collect()
    }

    #[test]
    fn says_what_is_probably_not_meant() {
        let found = warnings(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
---
apiVersion: v1
kind: Service
metadata: {name: a, annotations: {leno.dev/inbond: strict}}
spec: {ports: [{port: 80, targetport: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: b}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {parentRefs: [{kind: Service, name: a}], rules: [{backendRefs: []}]}
"#,
        );
        assert_eq!(
            found,
            [
                "‼ a.yaml#1  apps/v1 Deployment is of a kind that is not read",
                "‼ a.yaml#2 Service default/a leno.dev/PartiallySupported=True (UnknownFields): these fields are not known or \
                 not supported, and have no effect: spec.ports[0].targetport, metadata.annotations[leno.dev/inbond]",
                "‼ a.yaml#2 Service default/a port 80 has no endpoints (no EndpointSlice has some for it)",
                "× a.yaml#3 EndpointSlice default/s ResolvedRefs=False (PodNotFound): Pod default/p does not exist: its \
                 endpoint is left out",
                "‼ a.yaml#3 EndpointSlice default/s Service default/b does not exist",
                "× a.yaml#4 HTTPRoute default/r Accepted=False (NoMatchingParent) at gateway.networking.k8s.io/Service \
                 default/a: gateway.networking.k8s.io/Service is no kind that is known: write group: \"\" for a Service",
                "‼ a.yaml#4 HTTPRoute default/r no parentRef is a Service (group: \"\", kind: Service): it is attached to \
                 nothing",
                "‼ a.yaml#4 HTTPRoute default/r rule 0 has no backendRefs: requests are answered with 500",
            ]
        );
    }
}
