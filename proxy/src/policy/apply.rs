//! The one door from `leno.v1` resources to runtime form: parse, don't validate.
//!
//! A delta becomes a [`Change`]: the next snapshot, with every good resource in it, and a [`Rejection`] for
//! each bad one, whose last good version stays. Nothing is in force until [`Change::commit`].
//! What must outlive a version is carried over: a backend by its key, an endpoint by address and identity,
//! metric handles by their labels, the latencies by which a rule hedges by the rule's name.

mod backend_policy;
mod balancing;
mod destination;
mod endpoints;
mod filters;
mod http;
mod inbound;
mod resilience;
mod rule_policy;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use leno_proto::v1::{self, Rejection, ResourceKind, ResourceName, resource::Body};

use super::{
    DestinationKey, Explain, Protocol, Settings, Store, Target,
    store::{HeldDestination, Provenance, Snapshot},
};
use crate::{config::limits, http::persistence::SessionKey, upstream::Backend};
use endpoints::EndpointsUpdate;

/// Puts trust anchors (DER) of a trust domain in force, or says why not.
pub type Trust<'a> = dyn FnMut(&str, &[Vec<u8>]) -> Result<(), String> + 'a;

/// What a delta does.
pub struct Change {
    pub next: Snapshot,
    pub rejected: Vec<Rejection>,
    endpoints: Vec<EndpointsUpdate>,
}

/// A field that cannot be used, and why.
#[derive(Debug, PartialEq, Eq)]
struct Invalid {
    /// Path inside the resource: "http.rules[3].match.path.regex".
    field: String,
    reason: String,
}

/// Reads a delta into the snapshot that follows `current`. Resources for which `wanted` is false are ignored:
/// they were on their way when the subscription ended.
pub fn apply(
    current: &Snapshot,
    delta: v1::Delta,
    wanted: impl Fn(&ResourceName) -> bool,
    trust: &mut Trust<'_>,
) -> Change {
    let mut next = current.clone();
    next.generation = delta.generation;
    let mut change = Change { next, rejected: Vec::new(), endpoints: Vec::new() };
    // Destinations first: they make the backends that endpoints are for.
    let (destinations, others): (Vec<_>, Vec<_>) =
        delta.changed.into_iter().partition(|resource| matches!(resource.body, Some(Body::Destination(_))));
    for resource in destinations.into_iter().chain(others) {
        let v1::Resource { name, version, origins, body } = resource;
        let name = name.unwrap_or_default();
        // The endpoints of a backend that this delta brings are on their way to being wanted.
        if !wanted(&name) && !change.names_backend(&name) {
            continue;
        }
        match change.take(&name, body, trust) {
            Ok(()) => {
                change.next.provenance.insert(name, Arc::new(Provenance { version, origins }));
            }
            Err(Invalid { field, reason }) => {
                change.rejected.push(Rejection { name: Some(name), version, field, reason });
            }
        }
    }
    for name in delta.removed {
        change.remove(&name);
    }
    change.forget_unused_backends();
    change
}

impl Change {
    /// Puts the change in force for every worker: endpoints first, so that no destination is seen before what
    /// its backends are known to be.
    pub fn commit(self, store: &Store) -> Vec<Rejection> {
        for update in self.endpoints {
            update.publish();
        }
        store.swap(self.next);
        self.rejected
    }

    fn names_backend(&self, name: &ResourceName) -> bool {
        name.kind() == ResourceKind::Endpoints && self.next.backends.contains_key(name.key.as_str())
    }

    fn take(&mut self, name: &ResourceName, body: Option<Body>, trust: &mut Trust<'_>) -> Result<(), Invalid> {
        let next = &mut self.next;
        match (name.kind(), body) {
            (ResourceKind::Settings, Some(Body::Settings(settings))) => {
                next.settings = Some(Arc::new(parse_settings(settings)?));
            }
            (ResourceKind::TrustBundle, Some(Body::TrustBundle(bundle))) => {
                trust(&bundle.trust_domain, &bundle.anchors).map_err(|reason| Invalid::new("anchors", reason))?;
                next.trusted = true;
            }
            (ResourceKind::Inbound, Some(Body::Inbound(inbound))) => {
                next.inbound = Some(Arc::new(inbound::parse(inbound, next.inbound.as_deref())?));
            }
            (ResourceKind::Destination, Some(Body::Destination(destination))) => {
                let key: DestinationKey = name.key.as_str().into();
                let mut backends = Backends { held: &next.backends, made: HashMap::new() };
                let before = next.destinations.get(&key).map(|held| &*held.destination);
                let parsed = destination::parse(key.clone(), destination, before, &mut backends)?;
                let made = backends.made;
                next.backends.extend(made);
                let was_outside = before.is_some_and(|before| matches!(before.target, Target::Outside));
                if let (DestinationKey::Name(name), Target::Outside, false) = (&key, &parsed.target, was_outside) {
                    tracing::warn!(
                        destination = %name,
                        "this destination is outside the mesh: DNS is asked for it, and it is reached in plaintext. If it is meant \
                         to be a Service, see whether its namespace is right; service.namespace.svc is never DNS's"
                    );
                }
                let used = match next.destinations.get(&key) {
                    Some(held) => held.used.clone(),
                    None => Arc::new(AtomicBool::new(true)),
                };
                next.destinations.insert(key, Arc::new(HeldDestination { destination: Arc::new(parsed), used }));
            }
            (ResourceKind::Endpoints, Some(Body::Endpoints(endpoints))) => {
                // Not named by any destination: nobody would see it.
                if let Some(backend) = next.backends.get(name.key.as_str()) {
                    self.endpoints.push(EndpointsUpdate::whole(backend, endpoints)?);
                }
            }
            (ResourceKind::Endpoints, Some(Body::EndpointsDelta(delta))) => {
                if let Some(backend) = next.backends.get(name.key.as_str()) {
                    let held = next.provenance.get(name).map(|provenance| provenance.version.as_str());
                    if held != Some(delta.base_version.as_str()) {
                        let reason = format!("it changes version {:?}, held is {held:?}", delta.base_version);
                        return Err(Invalid::new("endpoints_delta.base_version", reason));
                    }
                    if self.endpoints.iter().any(|update| update.is_of(backend)) {
                        return Err(Invalid::new("endpoints_delta", "the same delta changes the endpoints twice"));
                    }
                    self.endpoints.push(EndpointsUpdate::changed(backend, delta)?);
                }
            }
            (_, None) => return Err(Invalid::new("", "no body that this version of the proxy knows")),
            (kind, Some(_)) => {
                return Err(Invalid::new("", format!("the body is not that of a {}", kind.as_str_name())));
            }
        }
        Ok(())
    }

    fn remove(&mut self, name: &ResourceName) {
        match name.kind() {
            ResourceKind::Destination => {
                self.next.destinations.remove(&name.key.as_str().into());
            }
            ResourceKind::Endpoints => {
                if let Some(backend) = self.next.backends.get(name.key.as_str()) {
                    self.endpoints.push(EndpointsUpdate::none(backend));
                }
            }
            // A workload is served under what was last said of it, not under nothing.
            ResourceKind::Settings | ResourceKind::TrustBundle | ResourceKind::Inbound | ResourceKind::Unspecified => {
                return;
            }
        }
        self.next.provenance.remove(name);
    }

    fn forget_unused_backends(&mut self) {
        self.next.forget_unused_backends();
    }
}

impl Snapshot {
    /// Drops destinations, and the backends that only they named.
    pub fn without<'a>(&self, destinations: impl IntoIterator<Item = &'a DestinationKey>) -> Self {
        let mut next = self.clone();
        for key in destinations {
            next.destinations.remove(key);
            next.provenance.remove(&key.resource());
        }
        next.forget_unused_backends();
        next
    }

    fn forget_unused_backends(&mut self) {
        let used: HashSet<Arc<str>> =
            self.destinations.values().flat_map(|held| held.destination.backends()).map(|b| b.key.clone()).collect();
        let Self { backends, provenance, .. } = self;
        backends.retain(|key, _| {
            let keep = used.contains(key);
            if !keep {
                provenance.remove(&endpoints_name(key));
            }
            keep
        });
    }
}

/// The name of a backend's ENDPOINTS resource.
pub fn endpoints_name(key: &str) -> ResourceName {
    ResourceName { kind: ResourceKind::Endpoints.into(), key: key.to_owned() }
}

/// Backends by key: those held, and those that a destination makes.
struct Backends<'a> {
    held: &'a HashMap<Arc<str>, Arc<Backend>>,
    made: HashMap<Arc<str>, Arc<Backend>>,
}

impl Backends<'_> {
    fn get(&mut self, reference: v1::BackendRef) -> Result<Arc<Backend>, Invalid> {
        let key = reference.key.as_str();
        let is_key = key.split_once('/').is_some_and(|(namespace, service)| {
            !namespace.is_empty()
                && service.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok())
        });
        if !is_key {
            return Err(Invalid::new("key", format!("{key:?} is not namespace/service:port")));
        }
        if let Some(backend) = self.held.get(key).or_else(|| self.made.get(key)) {
            return Ok(backend.clone());
        }
        let key: Arc<str> = key.into();
        let backend = Arc::new(Backend::new(key.clone()));
        self.made.insert(key, backend.clone());
        Ok(backend)
    }
}

impl Invalid {
    fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }

    /// The same, seen from the message that holds it in `field`.
    fn within(self, field: impl fmt::Display) -> Self {
        let field = if self.field.is_empty() { field.to_string() } else { format!("{field}.{}", self.field) };
        Self { field, ..self }
    }
}

fn parse_settings(settings: v1::Settings) -> Result<Settings, Invalid> {
    let network = |(index, text): (usize, &String)| {
        text.parse().map_err(|_| Invalid::new(format!("mesh_networks[{index}]"), format!("{text:?} is not a CIDR")))
    };
    let mesh_networks = settings.mesh_networks.iter().enumerate().map(network).collect::<Result<_, _>>()?;
    let session_key = match settings.session_key.as_slice() {
        [] => None,
        bytes => Some(SessionKey::new(bytes).ok_or_else(|| Invalid::new("session_key", "not 32 bytes"))?),
    };
    let explain = match settings.explain {
        Some(explain) => parse_explain(explain).map_err(|invalid| invalid.within("explain"))?,
        None => Explain::default(),
    };
    let session_key = session_key.map(Arc::new);
    Ok(Settings { trust_domain: settings.trust_domain, mesh_networks, session_key, explain })
}

fn parse_explain(explain: v1::Explain) -> Result<Explain, Invalid> {
    let headers = parse_kept_headers("headers", explain.headers)?;
    Ok(Explain { sampled: !explain.ignore_sampled, headers: Arc::new(headers) })
}

/// Names of headers by which requests are kept.
fn parse_kept_headers(field: &str, names: Vec<String>) -> Result<Vec<Box<str>>, Invalid> {
    if names.len() > limits::KEPT_HEADERS {
        let reason = format!("{} headers; at most {} are possible", names.len(), limits::KEPT_HEADERS);
        return Err(Invalid::new(field, reason));
    }
    for (index, name) in names.iter().enumerate() {
        let at = || format!("{field}[{index}]");
        if ::http::HeaderName::from_lowercase(name.as_bytes()).is_err() {
            return Err(Invalid::new(at(), format!("{name:?} is not a header in lower case")));
        }
        if leno_proto::headers::is_secret(name) {
            return Err(Invalid::new(at(), format!("{name} carries secrets")));
        }
    }
    Ok(names.into_iter().map(String::into_boxed_str).collect())
}

/// As it was sent; None if it was not.
fn parse_duration(field: &str, duration: Option<prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    duration.map(|duration| Duration::try_from(duration).map_err(|error| Invalid::new(field, error))).transpose()
}

fn parse_port(port: u32) -> Result<u16, Invalid> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Invalid::new("port", format!("{port} is not a port")))
}

fn parse_protocol(protocol: i32) -> Result<Protocol, Invalid> {
    match v1::Protocol::try_from(protocol) {
        Ok(v1::Protocol::Detect) => Ok(Protocol::Detect),
        Ok(v1::Protocol::Http) => Ok(Protocol::Http),
        Ok(v1::Protocol::Http1) => Ok(Protocol::Http1),
        Ok(v1::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(v1::Protocol::Tls) => Ok(Protocol::Tls),
        Ok(v1::Protocol::Tcp) => Ok(Protocol::Tcp),
        Err(_) => Err(Invalid::new("protocol", format!("{protocol} is not a protocol that is known"))),
    }
}
