//! What is in force, for people: the admin server's `/config`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue};
use leno_proto::v1::{ResourceKind, ResourceName};
use serde_json::{Map, Value, json};

use super::{
    BackendPolicy, Destination, HttpAction, InboundPort, ServicePort, Store, Target, WeightedBackends,
    apply::endpoints_name,
    http_match::{HttpMatch, PathMatch, ValueMatch},
    http_route::{HttpBackend, HttpRule},
    retry_policy::Whom,
    store::{Provenance, Snapshot},
    tcp_route::{TcpRoute, TlsRule},
};
use crate::{
    http::{
        filter::{Filters, HeaderChanges, PathChange},
        mirror::Mirror,
    },
    inbound::protection::PortPolicy,
    upstream::{
        Backend, Endpoint,
        balance::{Algorithm, LoadBalancing},
        outlier::{Health, OutlierDetection, settings::FailureShare},
    },
};

impl Store {
    /// Everything held: destinations with their rules, backends with their endpoints and the state of each.
    pub fn dump(&self) -> Value {
        let snapshot = self.snapshot();
        let now = Instant::now();
        let settings = snapshot.settings.as_ref().map(|settings| {
            let networks: Vec<_> = settings.mesh_networks.iter().map(ToString::to_string).collect();
            json!({ "trust_domain": settings.trust_domain, "mesh_networks": networks })
        });
        let inbound = snapshot.inbound.as_ref().map(|inbound| {
            let mode = if inbound.strict { "strict" } else { "permissive" };
            let name = ResourceName { kind: ResourceKind::Inbound.into(), key: String::new() };
            let (version, origins) = provenance(snapshot.provenance.get(&name));
            let ports = inbound.ports.iter().map(inbound_port).collect::<Map<_, _>>();
            json!({
                "version": version,
                "origins": origins,
                "mode": mode,
                "mode_origin": inbound.mode_origin.as_deref(),
                "zone": &*inbound.zone,
                "ports": ports,
            })
        });
        let mut destinations: Vec<_> = snapshot.destinations.values().map(|held| &held.destination).collect();
        destinations.sort_by_key(|destination| destination.key.to_string());
        let mut backends: Vec<_> = snapshot.backends.values().collect();
        backends.sort_by_key(|backend| backend.key.clone());
        pruned(json!({
            "generation": snapshot.generation,
            "ready": self.is_ready(),
            "settings": settings,
            "inbound": inbound,
            "destinations": destinations.into_iter().map(|it| destination(&snapshot, it)).collect::<Vec<_>>(),
            "backends": backends.into_iter().map(|it| backend(&snapshot, it, now)).collect::<Vec<_>>(),
        }))
    }
}

/// Without fields that are null or objects without fields: what is not there is not told.
fn pruned(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, pruned(value)));
            fields.filter(|(_, value)| !is_nothing(value)).collect::<Map<_, _>>().into()
        }
        Value::Array(values) => values.into_iter().map(pruned).collect(),
        value => value,
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The version of a resource, and the objects it was compiled from with the generation of each.
fn provenance(held: Option<&Arc<Provenance>>) -> (Value, Map<String, Value>) {
    let Some(held) = held else { return (Value::Null, Map::new()) };
    let origins = held.origins.iter().map(|origin| {
        let object = origin.object.clone().unwrap_or_default();
        (format!("{} {}/{}", object.kind, object.namespace, object.name), origin.generation.into())
    });
    (held.version.as_str().into(), origins.collect())
}

fn destination(snapshot: &Snapshot, destination: &Destination) -> Value {
    let (version, origins) = provenance(snapshot.provenance.get(&destination.key.resource()));
    let target = match &destination.target {
        Target::Outside => json!({ "outside": true }),
        Target::Workload(backend) => json!({ "workload": &*backend.key }),
        Target::Service(service) => service_port(service, &origins),
    };
    json!({ "key": destination.key.to_string(), "version": version, "origins": origins, "target": target })
}

/// `generations`: by the route that rules are of.
fn service_port(port: &ServicePort, generations: &Map<String, Value>) -> Value {
    let http = port.http.as_ref().map(|routes| {
        let rule = |rule: &HttpRule| {
            let mut dumped = action(&rule.action, generations);
            if let Value::Object(fields) = &mut dumped {
                fields.insert("match".to_owned(), matches(&rule.matches));
            }
            dumped
        };
        routes.rules.iter().map(rule).collect::<Vec<_>>()
    });
    let tls = port.tls.as_ref().map(|routes| {
        let rule = |rule: &TlsRule| {
            let names: Vec<_> = rule.names.iter().map(ToString::to_string).collect();
            json!({ "server_names": names, "route": tcp(&rule.route, generations) })
        };
        routes.rules.iter().map(rule).collect::<Vec<_>>()
    });
    json!({
        "service": &*port.service,
        "port": port.port,
        "protocol": port.protocol.as_str(),
        "http": http,
        "tls": tls,
        "tcp": port.tcp.as_ref().map(|route| tcp(route, generations)),
    })
}

fn action(action: &HttpAction, generations: &Map<String, Value>) -> Value {
    let backend = |backend: &HttpBackend| named(&backend.backend, filters(&backend.filters));
    json!({
        "route": &*action.origin.route,
        "rule": &*action.origin.rule,
        "generation": generations.get(&*action.origin.route),
        "filters": filters(&action.filters),
        "backends": weighted(&action.backends, backend),
        "request_timeout_ms": timeout_ms(action.request_timeout),
        "response_timeout_ms": timeout_ms(action.response_timeout),
        "try_timeout_ms": timeout_ms(action.try_timeout),
        "stream_idle": shown(action.stream_idle),
        "retry": action.retry.as_ref().map(|retry| json!({
            "statuses": retry.statuses,
            "grpc_codes": (0..32).filter(|code| retry.grpc & 1 << code != 0).collect::<Vec<u32>>(),
            "connect_failure": retry.connect,
            "reset": retry.reset != Whom::None,
            "try_timeout": retry.try_timeout != Whom::None,
            "any_method": retry.any_method,
            "attempts": retry.attempts,
            "backoff_ms": retry.backoff.base.as_millis(),
            "max_backoff_ms": retry.backoff.cap.as_millis(),
        })),
        "hedging": action.hedge.as_ref().map(|hedge| json!({
            "delay": shown(hedge.delay),
            "percentile": hedge.quantile,
            "wait_now": shown(hedge.wait()),
            "any_method": hedge.any_method,
        })),
    })
}

/// 0: switched off.
fn timeout_ms(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(
        |timeout| if timeout == Duration::MAX { 0 } else { u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) },
    )
}

fn tcp(route: &TcpRoute, generations: &Map<String, Value>) -> Value {
    json!({
        "route": &*route.origin.route,
        "rule": &*route.origin.rule,
        "generation": generations.get(&*route.origin.route),
        "backends": weighted(&route.backends, |backend| named(&backend.backend, Value::Null)),
    })
}

fn weighted<T>(backends: &WeightedBackends<T>, name: impl Fn(&T) -> Value) -> Vec<Value> {
    backends.iter().map(|(weight, backend)| json!({ "weight": weight, "backend": name(backend) })).collect()
}

/// The backend's key, or why there is none.
fn named(backend: &Result<Arc<Backend>, String>, filters: Value) -> Value {
    match backend {
        Ok(backend) => json!({ "key": &*backend.key, "filters": filters }),
        Err(reason) => json!({ "invalid": reason, "filters": filters }),
    }
}

/// Header values are left out: they may be credentials.
fn filters(filters: &Filters) -> Value {
    let changes = |changes: &HeaderChanges| {
        let named = |list: &[(HeaderName, HeaderValue)]| list.iter().map(|(name, _)| name.to_string()).collect();
        let (set, add): (Vec<_>, Vec<_>) = (named(&changes.set), named(&changes.add));
        let remove: Vec<_> = changes.remove.iter().map(ToString::to_string).collect();
        let any = !(set.is_empty() && add.is_empty() && remove.is_empty());
        any.then(|| json!({ "set": set, "add": add, "remove": remove }))
    };
    let path = |change: &PathChange| match change {
        PathChange::ReplaceFull(path) => json!({ "replace_full": path }),
        PathChange::ReplacePrefix(path) => json!({ "replace_prefix": path }),
    };
    let redirect = filters.redirect.as_ref().map(|redirect| {
        json!({
            "scheme": redirect.scheme.as_ref().map(ToString::to_string),
            "hostname": redirect.hostname,
            "port": redirect.port,
            "status": redirect.status.as_u16(),
            "path": redirect.path.as_ref().map(path),
        })
    });
    let rewrite = filters.rewrite.as_ref().map(|rewrite| {
        let hostname = rewrite.hostname.as_ref().map(|name| String::from_utf8_lossy(name.as_bytes()));
        json!({ "hostname": hostname, "path": rewrite.path.as_ref().map(path) })
    });
    let mirror = |mirror: &Arc<Mirror>| json!({ "key": &*mirror.backend.key, "share": mirror.share.to_string() });
    let mirrors = (!filters.mirrors.is_empty()).then(|| filters.mirrors.iter().map(mirror).collect::<Vec<_>>());
    let (request, response) = (changes(&filters.request), changes(&filters.response));
    json!({
        "request_headers": request,
        "response_headers": response,
        "redirect": redirect,
        "rewrite": rewrite,
        "mirrors": mirrors,
        "cors": filters.cors.as_ref().map(|cors| format!("{cors:?}")),
        "unsupported": filters.unsupported,
    })
}

fn matches(wanted: &HttpMatch) -> Value {
    let path = match &wanted.path {
        PathMatch::Any => json!({ "prefix": "/" }),
        PathMatch::Exact(path) => json!({ "exact": path }),
        PathMatch::Prefix(path) => json!({ "prefix": path }),
        PathMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
    };
    let value = |value: &ValueMatch| match value {
        ValueMatch::Exact(exact) => json!({ "exact": String::from_utf8_lossy(exact) }),
        ValueMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
    };
    let headers = wanted.headers.iter().map(|header| json!({ header.name.as_str(): value(&header.value) }));
    let query = wanted.query.iter().map(|parameter| json!({ &*parameter.name: value(&parameter.value) }));
    json!({
        "path": path,
        "headers": headers.collect::<Vec<_>>(),
        "query": query.collect::<Vec<_>>(),
        "method": wanted.method.as_ref().map(http::Method::as_str),
        "grpc": wanted.grpc.then_some(true),
    })
}

fn backend(snapshot: &Snapshot, backend: &Backend, now: Instant) -> Value {
    let (version, origins) = provenance(snapshot.provenance.get(&endpoints_name(&backend.key)));
    let set = backend.endpoints.load_full();
    json!({
        "key": &*backend.key,
        "version": version,
        "origins": origins,
        "known": backend.is_known(),
        "protocol": set.protocol.as_str(),
        "policy": policy(&set.policy),
        "circuit": set.policy.breaker.as_ref().map(|_| backend.shield.breaker.state()),
        "retries_left": backend.budget.left(),
        "host_name": backend.host_name.load().as_ref().map(|name| format!("{}:{}", name.host, name.port)),
        "endpoints": set.endpoints.iter().map(|it| endpoint(it, now)).collect::<Vec<_>>(),
    })
}

/// What a port speaks and accepts.
fn inbound_port(port: &InboundPort) -> (String, Value) {
    let PortPolicy { origin, rate_limits, concurrency, max_connections, max_head, max_body } = &port.policy;
    let limits = rate_limits.iter().flat_map(|held| &held.limits).map(|limit| {
        json!({
            "name": &*limit.name,
            "requests": limit.requests,
            "per_seconds": limit.per,
            "key": limit.key.as_ref().map(|key| format!("{key:?}")),
            "clients": limit.keys(),
        })
    });
    let limits: Vec<Value> = limits.collect();
    let told = json!({
        "protocol": port.protocol.as_str(),
        "policy": origin.as_deref(),
        "rate_limits": (!limits.is_empty()).then_some(limits),
        "concurrency": format!("{concurrency:?}"),
        "max_connections": max_connections,
        "max_head_bytes": max_head,
        "max_body_bytes": max_body,
    });
    (port.port.to_string(), told)
}

/// How a backend is called, defaults included.
fn policy(policy: &BackendPolicy) -> Value {
    json!({
        "origin": policy.origin.as_deref(),
        "connect_timeout": format!("{:?}", policy.connect_timeout),
        "load_balancing": load_balancing(&policy.load_balancing),
        "outlier_detection": outlier_detection(&policy.outlier_detection),
        "request_timeout": shown(policy.request_timeout),
        "response_timeout": shown(policy.response_timeout),
        "try_timeout": shown(policy.try_timeout),
        "stream_idle": shown(policy.stream_idle),
        "connection_idle": shown(policy.connection_idle),
        "retry_budget": {
            "percent": policy.retry_budget.percent,
            "per_second": policy.retry_budget.per_second,
            "burst": policy.retry_budget.burst,
        },
        "circuit_breaker": policy.breaker.as_ref().map(|breaker| json!({
            "consecutive_failures": breaker.consecutive,
            "failure_percent": breaker.percent,
            "window": format!("{:?}", breaker.window),
            "minimum_volume": breaker.minimum_volume,
            "open": format!("{:?}", breaker.open),
            "max_open": format!("{:?}", breaker.open_max),
            "probes": breaker.probes,
            "successes_to_close": breaker.successes,
        })),
        "limits": {
            "connections": policy.limits.connections,
            "pending": policy.limits.pending,
            "requests": policy.limits.requests,
            "retries": policy.limits.retries,
        },
    })
}

fn load_balancing(balancing: &LoadBalancing) -> Value {
    let details = match &balancing.algorithm {
        Algorithm::ConsistentHash(hash) => Some(format!("{hash:?}")),
        Algorithm::Prequal(settings) => Some(format!("{settings:?}")),
        _ => None,
    };
    json!({
        "algorithm": balancing.algorithm.as_str(),
        "details": details,
        "slow_start": balancing.slow_start.map(|window| format!("{window:?}")),
        "prefer_zone": balancing.prefer_zone,
    })
}

fn outlier_detection(outlier: &OutlierDetection) -> Value {
    let share = |share: FailureShare| {
        json!({
            "percent": share.percent,
            "window": format!("{:?}", share.window),
            "minimum_requests": share.least_requests,
        })
    };
    json!({
        "consecutive_failures": outlier.consecutive_failures,
        "failure_share": outlier.failure_share.map(share),
        "base_ejection": format!("{:?}", outlier.base_ejection),
        "maximum_ejection": format!("{:?}", outlier.most_ejection),
        "jitter_percent": outlier.jitter_percent,
        "maximum_ejected_percent": outlier.most_ejected_percent,
        "probes": outlier.probes,
        "successes": outlier.successes,
        "maximum_back_off": format!("{:?}", outlier.most_rest),
    })
}

fn shown(duration: Option<Duration>) -> Option<String> {
    duration.map(|duration| format!("{duration:?}"))
}

fn endpoint(endpoint: &Endpoint, now: Instant) -> Value {
    let state = if endpoint.is_draining() { "draining" } else { "ready" };
    let health = match endpoint.outlier.health(now) {
        Health::InService => "in service",
        Health::Ejected => "ejected",
        Health::ProbeDue => "probe due",
    };
    json!({
        "address": endpoint.address.to_string(),
        "identity": endpoint.identity.as_ref().map(ToString::to_string),
        "workload": &*endpoint.workload,
        "zone": &*endpoint.zone,
        "weight": endpoint.weight,
        "state": state,
        "health": health,
    })
}
