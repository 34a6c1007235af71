//! What would be done with a request, and why: the decisions of its way, made by the same policy and the same matches as a
//! real one's, and put into words. Nothing is sent, and nothing changes by it.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use http::{Method, Version};
use leno_proto::v1::{Decision, RequestToExplain};

use super::{
    Destination, DestinationKey, HttpAction, RuleOrigin, ServicePort, Store, Target,
    fault::Faults,
    http_route::{Fallback, HttpBackend, HttpRoutes},
    says::{self, By, Caller, Part, Said},
    share::percent,
    store::Snapshot,
};
use crate::{
    config::{OutboundListener, limits},
    http::{
        filter::{Filters, PathChange},
        head::RequestHead,
        headers,
    },
    upstream::{Backend, Endpoint, EndpointSet, bulkhead::What, outlier::Health},
};

mod inbound;
mod key;
mod session;
mod tcp;

/// Rules that are told of, beside the one that holds; of the others, how many there are.
const RULES_TOLD: usize = 32;
/// The same of the endpoints of a backend.
const ENDPOINTS_TOLD: usize = 32;

/// Asks the control plane if the destination was never called. `workload` and `listeners`: the proxy's own; the latter stand
/// for destinations.
///
/// # Errors
/// If the question makes no sense, or the destination is not known.
pub(super) async fn explain(
    store: &Store,
    workload: &str,
    listeners: &[OutboundListener],
    question: &RequestToExplain,
) -> Result<Told, String> {
    if question.inbound_port != 0 {
        return inbound::explain(store, workload, question, Instant::now());
    }
    let listener = listener_at(&question.destination, listeners);
    let called = listener.map_or(question.destination.as_str(), |listener| listener.destination.as_str());
    let key: DestinationKey = called.into();
    let head = head(question)?;
    let destination = store.resolve(&key).await.map_err(|error| error.to_string())?;
    // Who asks first asks for the endpoints, too.
    let known = async {
        for backend in destination.backends() {
            backend.known().await;
        }
    };
    let _ = tokio::time::timeout(limits::CONNECT_TIMEOUT, known).await;
    let snapshot = store.snapshot();
    let mut explanation = Explainer { snapshot: &snapshot, workload, now: Instant::now(), decisions: Vec::new() };
    if let Some(OutboundListener { listen, destination }) = listener {
        explanation.add("listener", true, format!("{listen} is the proxy's own, and stands for {destination}"));
    }
    let asked = match question.server_name.as_str() {
        "" => Asked::Request(&head),
        name => Asked::Tls(name),
    };
    explanation.destination(&destination, asked);
    Ok(explanation.told())
}

/// The listener that a connection to `called` ("127.0.0.1:8001") comes to: by its address is how an application in explicit mode calls it.
fn listener_at<'a>(called: &str, listeners: &'a [OutboundListener]) -> Option<&'a OutboundListener> {
    let addresses: Vec<SocketAddr> = match called.strip_prefix("localhost:").map(str::parse) {
        Some(Ok(port)) => vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()],
        _ => called.parse().into_iter().collect(),
    };
    let takes = |listen: SocketAddr, address: SocketAddr| {
        let any = listen.ip().is_unspecified() && listen.is_ipv4() == address.is_ipv4() && address.ip().is_loopback();
        listen.port() == address.port() && (listen.ip() == address.ip() || any)
    };
    listeners.iter().find(|listener| addresses.iter().any(|address| takes(listener.listen, *address)))
}

/// Decisions, and the mesh-wide generation by which they were made.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) decisions: Vec<Decision>,
    pub(super) generation: u64,
}

/// What comes from the application.
#[derive(Clone, Copy)]
enum Asked<'a> {
    /// In plaintext.
    Request(&'a RequestHead),
    /// A connection of its own TLS, for this server name.
    Tls(&'a str),
}

fn head(question: &RequestToExplain) -> Result<RequestHead, String> {
    let method = match question.method.as_str() {
        "" => Method::GET,
        text => Method::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is not a method"))?,
    };
    let target = if question.target.is_empty() { "/" } else { question.target.as_str() };
    if !target.starts_with('/') {
        return Err(format!("{target:?} does not begin with a slash"));
    }
    let mut head = RequestHead::new(Version::HTTP_11, method, target);
    head.set_authority(if question.authority.is_empty() { &question.destination } else { &question.authority });
    for header in question.headers.iter().take(limits::HEADERS) {
        head.fields.push(header.name.as_bytes(), header.value.as_bytes());
    }
    Ok(head)
}

impl<'a> Asked<'a> {
    /// By no rule.
    fn caller(self) -> Caller<'static> {
        match self {
            Self::Request(_) => Caller::Request(None),
            Self::Tls(_) => Caller::Connection,
        }
    }

    fn head(self) -> Option<&'a RequestHead> {
        match self {
            Self::Request(head) => Some(head),
            Self::Tls(_) => None,
        }
    }
}

struct Explainer<'a> {
    snapshot: &'a Snapshot,
    workload: &'a str,
    now: Instant,
    decisions: Vec<Decision>,
}

impl Explainer<'_> {
    fn told(self) -> Told {
        Told { decisions: self.decisions, generation: self.snapshot.generation }
    }

    fn add(&mut self, subject: &str, applies: bool, text: String) {
        self.add_by(subject, applies, text, String::new(), 0);
    }

    fn add_by(&mut self, subject: &str, applies: bool, text: String, origin: String, generation: u64) {
        self.decisions.push(Decision {
            subject: subject.to_owned(),
            text,
            applies,
            origin,
            generation,
            ..Decision::default()
        });
    }

    /// The generation of an object ("HTTPRoute shop/cart") by which a resource was compiled.
    fn generation(&self, object: &str) -> u64 {
        self.snapshot.generation_of(object)
    }

    fn by(&mut self, subject: &str, applies: bool, text: String, origin: &RuleOrigin) {
        let generation = self.generation(&origin.route);
        self.add_by(subject, applies, text, By::Rule(origin).text(), generation);
    }

    fn said(&mut self, all: Vec<Said<'_>>) {
        for Said { subject, applies, text, by } in all {
            let generation = match by {
                By::Rule(rule) => self.generation(&rule.route),
                By::Object(object) => self.generation(object),
                By::Nobody => 0,
            };
            self.add_by(subject, applies, text, by.text(), generation);
        }
    }

    fn destination(&mut self, destination: &Destination, asked: Asked<'_>) {
        let key = &destination.key;
        match &destination.target {
            Target::Outside => {
                self.add("destination", true, format!("{key} is outside the mesh: passed through unchanged"));
            }
            Target::Workload(backend) => {
                self.add("destination", true, format!("{key} is one workload: no route applies"));
                self.backend(backend, (asked.caller(), asked.head()), None, None);
            }
            Target::Service(port) => {
                let text = format!("{key} is Service {} port {}, {}", port.service, port.port, port.protocol.spoken());
                self.add("destination", true, text);
                self.service(port, asked);
            }
        }
    }

    fn service(&mut self, port: &ServicePort, asked: Asked<'_>) {
        let (Some(routes), Asked::Request(head)) = (&port.http, asked) else {
            return self.connection(port, asked);
        };
        match self.rule(routes, head) {
            Some(action) => self.action(&action, head),
            None => {
                let status = if headers::is_grpc(&head.fields) { "UNIMPLEMENTED" } else { "404" };
                self.add("answer", true, format!("{status}: no rule matches the request (leno-reason: no-rule)"));
            }
        }
    }

    /// The first rule that holds; those before it are told of.
    fn rule(&mut self, routes: &HttpRoutes, head: &RequestHead) -> Option<Arc<HttpAction>> {
        for (place, rule) in routes.rules.iter().enumerate() {
            let Err(why) = rule.matches.fits(head) else {
                self.by("rule", true, "matches".to_owned(), &rule.action.origin);
                return Some(Arc::clone(&rule.action));
            };
            if place < RULES_TOLD {
                self.by("rule", false, why, &rule.action.origin);
            }
        }
        let untold = routes.rules.len().saturating_sub(RULES_TOLD);
        if untold > 0 {
            self.add("rule", false, format!("{untold} more do not match"));
        }
        None
    }

    fn action(&mut self, action: &HttpAction, head: &RequestHead) {
        let origin = &action.origin;
        if let Some(name) = &action.filters.unsupported {
            return self.by("answer", true, format!("500: the filter {name} is not supported"), origin);
        }
        if let Some(preflight) = action.filters.cors.as_ref().and_then(|cors| cors.preflight(head)) {
            let text = match preflight {
                Ok(_) => "204: the proxy answers the preflight",
                Err(()) => "403: the route does not allow this origin (leno-reason: cors)",
            };
            return self.by("answer", true, text.to_owned(), origin);
        }
        if let Some(faults) = &action.faults {
            self.faults(faults, head);
        }
        self.said(says::of_rule(action, head));
        if action.filters.redirect.is_some() || action.direct_response.is_some() {
            return;
        }
        self.changes(&action.filters, origin);
        let total = action.backends.iter().map(|(weight, _)| u64::from(*weight)).sum::<u64>();
        if let Some(stays) = self.session(action, head) {
            return self.of_session(&stays, total, action, head);
        }
        if total == 0 {
            return self.by("answer", true, "500: the rule has no backend".to_owned(), origin);
        }
        for (weight, backend) in action.backends.iter() {
            self.weighted(*weight, total, backend, action, head);
        }
        if let Some(Fallback::Backend(to, _)) = action.fallback.as_deref() {
            let text = format!("{} gets what could be sent to none of those", to.key);
            self.said(vec![Said { subject: "backend", applies: true, text, by: action.by(Part::OfPolicy) }]);
            let head = changed(head, &[&action.filters]);
            self.backend(to, (Caller::Request(Some(action)), Some(&head)), None, None);
        }
    }

    fn faults(&mut self, faults: &Faults, head: &RequestHead) {
        let generation = self.generation(&faults.origin);
        let grpc = headers::is_grpc(&head.fields);
        let delay = faults.delay.as_ref().map(|(when, delay)| (when, format!("held up for {delay:?}")));
        let abort = faults
            .abort
            .as_ref()
            .map(|(when, answer)| (when, format!("answered with {} (leno-reason: fault)", answer.name(grpc))));
        for (when, what) in delay.into_iter().chain(abort) {
            let matches = when.matches(head);
            let text = match matches {
                true => format!("{} of these requests are {what}", when.share.percent()),
                false => format!("{what}: only what its matches hold for"),
            };
            let meets = matches && !when.share.is_none();
            self.add_by("fault", meets, text, faults.origin.to_string(), generation);
        }
    }

    fn weighted(&mut self, weight: u32, total: u64, backend: &HttpBackend, action: &HttpAction, head: &RequestHead) {
        let origin = &action.origin;
        let share = percent(weight.into(), total);
        match &backend.backend {
            Ok(to) => {
                self.by("backend", weight > 0, format!("{} gets {share} of these requests", to.key), origin);
                self.changes(&backend.filters, origin);
                let head = changed(head, &[&action.filters, &backend.filters]);
                self.backend(to, (Caller::Request(Some(action)), Some(&head)), action.fallback.as_deref(), None);
            }
            Err(reason) => self.by("backend", weight > 0, format!("{share} is answered with 500: {reason}"), origin),
        }
    }

    /// What filters change.
    fn changes(&mut self, filters: &Filters, origin: &RuleOrigin) {
        self.said(says::of_filters(filters, origin));
        if let Some(rewrite) = &filters.rewrite {
            let host = rewrite.hostname.as_deref().unwrap_or("the same host");
            let path = match &rewrite.path {
                None => "the same path".to_owned(),
                Some(PathChange::ReplaceFull(path)) => path.clone(),
                Some(PathChange::ReplacePrefix(prefix)) => format!("{prefix} in place of the prefix"),
            };
            self.by("filter", true, format!("rewritten to {host}, {path}"), origin);
        }
    }

    /// `head`: that of the request as it is sent. `fallback`: what becomes of requests that cannot be sent to it. `session`: the
    /// endpoint that the request's is with.
    fn backend(
        &mut self,
        backend: &Backend,
        (caller, head): (Caller<'_>, Option<&RequestHead>),
        fallback: Option<&Fallback>,
        session: Option<SocketAddr>,
    ) {
        let set = backend.endpoints.load_full();
        self.said(says::of_backend(backend, &set.policy, caller, self.now));
        if session.is_none() {
            self.said(key::of(&set, head, self.workload, self.now).into_iter().collect());
        }
        let obstacle = obstacle(backend, &set, caller, self.now);
        if !backend.is_known() {
            self.add("endpoint", false, format!("the endpoints of {} are not known yet", backend.key));
        } else if let Some(why) = &obstacle {
            let grpc = head.is_some_and(|head| headers::is_grpc(&head.fields));
            // Too many requests are no reason to send them to others.
            let text = match (caller, fallback.filter(|_| !matches!(why, Obstacle::Requests))) {
                (Caller::Connection, _) => format!("the connection is closed: {} {why}", backend.key),
                (_, None) if grpc => format!("UNAVAILABLE: {} {why}", backend.key),
                (_, None) => format!("503: {} {why}", backend.key),
                (_, Some(Fallback::Answer(answer))) => {
                    format!("{}, the fallback's: {} {why}", answer.name(grpc), backend.key)
                }
                (_, Some(Fallback::Backend(to, _))) => {
                    format!("that of the fallback {}: {} {why}", to.key, backend.key)
                }
            };
            self.add("answer", true, text);
        }
        // Workers forget what was kept for long enough when they next look.
        let endpoints: &[Arc<Endpoint>] = if set.is_stale(self.now) { &[] } else { set.endpoints.as_slice() };
        for endpoint in endpoints.iter().take(ENDPOINTS_TOLD) {
            let (applies, text) = endpoint_text(endpoint, set.kept_until, self.now);
            let applies = session.map_or(applies, |address| endpoint.address == address);
            self.add("endpoint", applies && obstacle.is_none(), text);
            if let (Some(identity), Some(told)) = (&endpoint.identity, self.decisions.last_mut()) {
                told.workload = format!("{}/{}", identity.namespace(), endpoint.workload);
                told.port = endpoint.address.port().into();
            }
        }
        let untold = endpoints.len().saturating_sub(ENDPOINTS_TOLD);
        if untold > 0 {
            self.add("endpoint", session.is_none(), format!("{untold} more of {}", backend.key));
        }
    }
}

/// The head as filters make it, a rule's first and then a backend's; its path is not asked for any more.
fn changed(head: &RequestHead, filters: &[&Filters]) -> RequestHead {
    let mut head = head.clone();
    filters.iter().for_each(|filters| filters.request.apply(&mut head.fields));
    let mut rewrites = filters.iter().rev().filter_map(|filters| filters.rewrite.as_ref());
    if let Some(host) = rewrites.find_map(|rewrite| rewrite.hostname.as_deref()) {
        head.set_authority(host);
    }
    head
}

/// Why nothing is sent to a backend now.
enum Obstacle {
    Requests,
    Circuit,
    NoEndpoint,
    Connections,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "has as many requests as its limits allow (leno-reason: overload)",
            Self::Circuit => "has an open circuit (leno-reason: circuit-open)",
            Self::NoEndpoint => "has no endpoint (leno-reason: no-endpoint)",
            // `bulkhead::Counts::take_of`; who has none is known to the workers alone.
            Self::Connections => {
                "has as many connections as its limits allow, unless it is the first to its endpoint (leno-reason: overload)"
            }
        })
    }
}

/// What a request, or a connection that carries none, meets first, in its order.
fn obstacle(backend: &Backend, set: &EndpointSet, caller: Caller<'_>, now: Instant) -> Option<Obstacle> {
    let full = |what: What| {
        let limit = set.policy.limits.set().find(|(limited, _)| *limited == what);
        limit.is_some_and(|(_, limit)| backend.shield.counts.held(what) >= limit)
    };
    match caller {
        Caller::Request(_) if full(What::Request) => Some(Obstacle::Requests),
        _ if set.policy.breaker.is_some() && backend.shield.breaker.is_open(now) => Some(Obstacle::Circuit),
        _ if set.endpoints.is_empty() || set.is_stale(now) => Some(Obstacle::NoEndpoint),
        Caller::Connection if full(What::Connection) => Some(Obstacle::Connections),
        _ => None,
    }
}

/// Whether it may be chosen, and what is known of it. `kept_until`: the control plane says that it is gone.
fn endpoint_text(endpoint: &Endpoint, kept_until: Option<Instant>, now: Instant) -> (bool, String) {
    let (applies, state) = match endpoint.outlier.health(now) {
        _ if endpoint.is_draining() => (false, "draining: gets nothing new".to_owned()),
        Health::InService => match endpoint.outlier.rests(now) {
            None => (true, ready_text(kept_until, now)),
            Some(left) => {
                (false, format!("left alone for {left:?} more, if others are ready: it asked for that (Retry-After)"))
            }
        },
        Health::Ejected => (false, "ejected: it kept failing".to_owned()),
        Health::ProbeDue => (true, "ejected, and due for a probe".to_owned()),
    };
    let who = match &endpoint.identity {
        Some(identity) => format!("mTLS, must be {identity}"),
        None => "not in the mesh, plaintext".to_owned(),
    };
    (applies, format!("{}: {state}; {who}", name_of(endpoint)))
}

fn ready_text(kept_until: Option<Instant>, now: Instant) -> String {
    match kept_until {
        None => "ready".to_owned(),
        Some(until) => {
            let left = until.saturating_duration_since(now).as_secs();
            format!("kept for another {left} s: the control plane says that there are none")
        }
    }
}

/// "10.0.0.1:80 (shop-0)"
fn name_of(endpoint: &Endpoint) -> String {
    let workload = if endpoint.workload.is_empty() { String::new() } else { format!(" ({})", endpoint.workload) };
    format!("{}{workload}", endpoint.address)
}

#[cfg(test)]
mod tests;
