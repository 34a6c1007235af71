//! What is written while requests go on: for each object what it may say, what failures that explains, and what it may say
//! that nobody can keep.

use std::time::Duration;

use leno_e2e::mesh::documents::{NAMESPACE, route_head};

/// An object with a file of its own.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) kind: &'static str,
    pub(crate) name: &'static str,
    /// Whose callers it touches.
    pub(crate) service: &'static str,
    /// Everything up to what changes.
    head: String,
    pub(crate) good: &'static [Good],
    pub(crate) bad: &'static [Bad],
}

/// What it may say, and the failures that this explains.
pub(crate) type Good = (&'static str, Why);
/// What it may say, and the field that is wrong then.
pub(crate) type Bad = (&'static str, &'static str);

/// Failures that a policy explains.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Why {
    /// See `Failure::reason`.
    pub(crate) reasons: &'static [&'static str],
    /// What breaks off has lasted so long.
    pub(crate) after: Duration,
    /// So long afterwards it may be felt: the retry budget that it used up comes back bit by bit.
    pub(crate) felt: Duration,
}

const fn gives(reasons: &'static [&'static str]) -> Why {
    Why { reasons, after: Duration::ZERO, felt: Duration::ZERO }
}

impl Why {
    const fn felt(self, felt: Duration) -> Self {
        Self { felt, ..self }
    }
}

impl Slot {
    pub(crate) fn file(&self) -> String {
        format!("churn-{}-{}.yaml", self.kind.to_ascii_lowercase(), self.name)
    }

    pub(crate) fn document(&self, says: &str) -> String {
        format!("{}{says}\n", self.head)
    }

    fn route(
        (kind, name): (&'static str, &'static str),
        service: &'static str,
        good: &'static [Good],
        bad: &'static [Bad],
    ) -> Self {
        Self { kind, name, service, head: route_head(kind, name, service), good, bad }
    }

    fn policy(
        (kind, name): (&'static str, &'static str),
        service: &'static str,
        (target, section): (&'static str, Option<&'static str>),
        good: &'static [Good],
        bad: &'static [Bad],
    ) -> Self {
        let (group, version) = match kind {
            "XBackendTrafficPolicy" => ("gateway.networking.x-k8s.io", "v1alpha1"),
            _ => ("leno.dev", "v1alpha1"),
        };
        let of = if target == "Service" { "" } else { "gateway.networking.k8s.io" };
        let section = section.map_or_else(String::new, |section| format!(", sectionName: {section}"));
        let head = format!(
            "apiVersion: {group}/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
             targetRefs: [{{group: \"{of}\", kind: {target}, name: {service}{section}}}]\n"
        );
        Self { kind, name, service, head, good, bad }
    }
}

/// Everything that changes. `harmless`: only what explains no failure at all.
pub(crate) fn slots(harmless: bool) -> Vec<Slot> {
    let (http, grpc, backend, inbound) = if harmless {
        (HTTP_HARMLESS, GRPC_HARMLESS, BACKEND_HARMLESS, INBOUND_HARMLESS)
    } else {
        (HTTP, GRPC, BACKEND, INBOUND)
    };
    let (route, fault) = if harmless { (ROUTE_HARMLESS, FAULT_HARMLESS) } else { (ROUTE, FAULT) };
    let (tcp, tls) = if harmless { (TCP_HARMLESS, TLS_HARMLESS) } else { (TCP, TLS) };
    let (opaque, door) = if harmless { (OPAQUE_HARMLESS, DOOR_HARMLESS) } else { (OPAQUE, DOOR) };
    vec![
        Slot::route(("HTTPRoute", "web"), "web", http, HTTP_BAD),
        Slot::route(("GRPCRoute", "rpc"), "rpc", grpc, GRPC_BAD),
        Slot::route(("TCPRoute", "tcp"), "tcp", tcp, TCP_BAD),
        Slot::route(("TCPRoute", "tcp-too"), "tcp", tcp, TCP_BAD),
        Slot::route(("TLSRoute", "tls"), "tls", tls, TLS_BAD),
        Slot::route(("TLSRoute", "tls-too"), "tls", tls, TLS_BAD),
        Slot::policy(("BackendPolicy", "web"), "web", ("Service", None), backend, BACKEND_BAD),
        Slot::policy(("BackendPolicy", "web-main"), "web", ("Service", Some("main")), backend, BACKEND_BAD),
        Slot::policy(("BackendPolicy", "rpc"), "rpc", ("Service", None), backend, BACKEND_BAD),
        Slot::policy(("BackendPolicy", "tcp"), "tcp", ("Service", None), opaque, BACKEND_BAD),
        Slot::policy(("BackendPolicy", "tcp-main"), "tcp", ("Service", Some("main")), opaque, BACKEND_BAD),
        Slot::policy(("BackendPolicy", "tls"), "tls", ("Service", None), opaque, BACKEND_BAD),
        Slot::policy(("RoutePolicy", "web"), "web", ("HTTPRoute", None), route, ROUTE_BAD),
        Slot::policy(("RoutePolicy", "web-too"), "web", ("HTTPRoute", None), route, ROUTE_BAD),
        Slot::policy(("RoutePolicy", "web-delay"), "web", ("HTTPRoute", Some("delay")), route, ROUTE_BAD),
        Slot::policy(("RoutePolicy", "rpc"), "rpc", ("GRPCRoute", None), route, ROUTE_BAD),
        Slot::policy(("FaultPolicy", "web"), "web", ("HTTPRoute", None), fault, FAULT_BAD),
        Slot::policy(("FaultPolicy", "rpc"), "rpc", ("GRPCRoute", None), fault, FAULT_BAD),
        Slot::policy(("InboundPolicy", "web"), "web", ("Service", None), inbound, INBOUND_BAD),
        Slot::policy(("InboundPolicy", "rpc"), "rpc", ("Service", Some("main")), inbound, INBOUND_BAD),
        Slot::policy(("InboundPolicy", "tcp"), "tcp", ("Service", None), door, INBOUND_BAD),
        Slot::policy(("InboundPolicy", "tls"), "tls", ("Service", Some("main")), door, INBOUND_BAD),
        Slot::policy(("XBackendTrafficPolicy", "web"), "web", ("Service", None), TRAFFIC, TRAFFIC_BAD),
        Slot::policy(("XBackendTrafficPolicy", "rpc"), "rpc", ("Service", None), TRAFFIC, TRAFFIC_BAD),
    ]
}

/// Reasons of a request's time that runs out: each proxy on its way knows it, and a stream may have begun its answer.
const TIME: Why = Why {
    reasons: &["request-timeout", "deadline", "broken", "grpc Cancelled", "grpc Unknown", "grpc Internal"],
    after: Duration::from_millis(20),
    felt: Duration::ZERO,
};
const TRY: Why = gives(&["try-timeout"]);
const IDLE: Why = Why {
    reasons: &["idle", "broken", "grpc Cancelled", "grpc Unknown", "grpc Internal"],
    after: Duration::from_millis(100),
    felt: Duration::ZERO,
};
const LIMITED: Why = gives(&["overload"]);
/// A stream may have begun its answer.
const LARGE: Why = gives(&["body-too-large", "broken", "grpc Cancelled", "grpc Unknown", "grpc Internal"]);
const NOTHING: Why = gives(&[]);

/// A connection that no rule, or no backend of the rule, takes.
const UNROUTED: Why = gives(&["no-rule", "invalid-backend"]);
/// A retry budget fills up by ten a second, more than are asked of it.
const REFILL: Duration = Duration::from_secs(1);

const HTTP_HARMLESS: &[Good] = &[
    (
        "  rules:
    - {name: delay, matches: [{path: {value: /delay}}], backendRefs: [{name: web, port: 80}]}
    - {name: rest, backendRefs: [{name: web, port: 80, weight: 1}, {name: next, port: 80, weight: 1}]}",
        NOTHING,
    ),
    (
        "  rules:
    - name: delay
      matches: [{path: {type: RegularExpression, value: \"/de(l|x)ay/[0-9]+\"}, method: GET}, {headers: [{name: x, value: \"y\"}]}]
      filters:
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: a}], remove: [x-gone]}}
        - {type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}, percent: 50}}
      timeouts: {request: 0s}
      backendRefs: [{name: web, port: 80}]
    - name: rest
      filters: [{type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
      backendRefs: [{name: next, port: 80}]",
        NOTHING,
    ),
    (
        "  rules:
    - name: rest
      filters: [{type: CORS, cors: {allowOrigins: [\"*\"]}}]
      retry: {codes: [503], attempts: 2, backoff: 5ms}
      sessionPersistence: {type: Header, sessionName: x-session}
      backendRefs: [{name: web, port: 80}]",
        NOTHING,
    ),
];
const HTTP: &[Good] = &[
    HTTP_HARMLESS[0],
    HTTP_HARMLESS[1],
    HTTP_HARMLESS[2],
    (
        "  rules:
    - {name: delay, matches: [{path: {value: /delay}}], timeouts: {request: 20ms}, backendRefs: [{name: web, port: 80}]}
    - {name: rest, timeouts: {backendRequest: 5s}, backendRefs: [{name: web, port: 80}]}",
        TIME,
    ),
    (
        "  rules: [{name: delay, matches: [{path: {value: /delay}}], backendRefs: [{name: web, port: 80}]}]",
        gives(&["no-rule"]),
    ),
    (
        "  rules: [{name: rest, backendRefs: [{name: web, port: 80}, {name: nowhere, port: 80}]}]",
        gives(&["invalid-backend"]),
    ),
    (
        "  rules: [{name: rest, filters: [{type: RequestRedirect, requestRedirect: {hostname: other.example}}]}]",
        gives(&["status 302"]),
    ),
];
const HTTP_BAD: &[Bad] = &[
    (
        "  rules: [{matches: [{path: {type: RegularExpression, value: \"(a{1000}){1000}\"}}]}]",
        "spec.rules[0].matches[0].path.value",
    ),
    ("  rules: [{matches: [{path: {type: RegularExpression, value: \"a(\"}}]}]", "spec.rules[0].matches[0].path.value"),
    ("  rules: [{backendRefs: [{name: web, port: 80, weight: -1}]}]", "spec.rules[0].backendRefs[0].weight"),
    ("  rules: [{timeouts: {request: soon}}]", "spec.rules[0].timeouts.request"),
    ("  rules: [{backendRefs: [{name: web, port: 99999}]}]", "spec.rules[0].backendRefs[0].port"),
    ("  rules: [{matches: [{path: {type: Sometimes, value: /}}]}]", "spec.rules[0].matches[0].path.type"),
    ("  rules: [", ""),
];

const GRPC_HARMLESS: &[Good] = &[
    ("  rules: [{backendRefs: [{name: rpc, port: 80, weight: 3}, {name: next, port: 80, weight: 1}]}]", NOTHING),
    (
        "  rules:
    - name: unary
      matches: [{method: {service: leno.e2e.Echo, method: Unary}}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-add, value: a}]}}]
      backendRefs: [{name: next, port: 80}]
    - backendRefs: [{name: rpc, port: 80}]",
        NOTHING,
    ),
];
const GRPC: &[Good] = &[
    GRPC_HARMLESS[0],
    GRPC_HARMLESS[1],
    (
        "  rules: [{matches: [{method: {service: leno.e2e.Echo, method: Unary}}], backendRefs: [{name: rpc, port: 80}]}]",
        gives(&["no-rule"]),
    ),
    ("  rules: [{backendRefs: [{name: rpc, port: 81}]}]", gives(&["invalid-backend"])),
];
const GRPC_BAD: &[Bad] = &[
    ("  rules: [{backendRefs: [{name: rpc, port: 0}]}]", "spec.rules[0].backendRefs[0].port"),
    (
        "  rules: [{matches: [{method: {type: RegularExpression, service: \"[\"}}]}]",
        "spec.rules[0].matches[0].method.service",
    ),
];

const TCP_HARMLESS: &[Good] = &[
    ("  rules: [{backendRefs: [{name: tcp, port: 80, weight: 1}, {name: tcp-next, port: 80, weight: 3}]}]", NOTHING),
    ("  rules: [{name: all, backendRefs: [{name: tcp-next, port: 80}]}]", NOTHING),
    (
        "  rules: [{backendRefs: [{name: tcp, port: 80, weight: 1000000}, {name: nowhere, port: 80, weight: 0}]}]",
        NOTHING,
    ),
];
const TCP: &[Good] = &[
    TCP_HARMLESS[0],
    TCP_HARMLESS[1],
    TCP_HARMLESS[2],
    ("  rules: [{backendRefs: [{name: tcp, port: 80}, {name: nowhere, port: 80}]}]", UNROUTED),
    ("  rules: [{backendRefs: [{name: tcp, port: 80, weight: 0}]}]", UNROUTED),
];
const TCP_BAD: &[Bad] = &[
    ("  rules: [{backendRefs: [{name: tcp, port: 80, weight: 1000001}]}]", "spec.rules[0].backendRefs[0].weight"),
    ("  rules: [{backendRefs: [{name: tcp}]}]", "spec.rules[0].backendRefs[0].port"),
    ("  rules: [{backendRefs: []}]", "spec.rules[0].backendRefs"),
    ("  rules: [{backendRefs: [{name: tcp, port: 80}]}, {backendRefs: [{name: tcp, port: 80}]}]", "spec.rules"),
    ("  rules: [", ""),
];

/// Clients name `one.example` and `two.example`: what takes only one of them turns the other away.
const TLS_HARMLESS: &[Good] = &[
    (
        "  hostnames: [\"*.example\"]
  rules: [{backendRefs: [{name: tls, port: 80, weight: 1}, {name: tls-next, port: 80, weight: 1}]}]",
        NOTHING,
    ),
    ("  hostnames: [two.example, one.example]\n  rules: [{backendRefs: [{name: tls-next, port: 80}]}]", NOTHING),
    ("  rules: [{backendRefs: [{name: tls, port: 80}]}]", NOTHING),
];
const TLS: &[Good] = &[
    TLS_HARMLESS[0],
    TLS_HARMLESS[1],
    TLS_HARMLESS[2],
    ("  hostnames: [one.example]\n  rules: [{backendRefs: [{name: tls, port: 80}]}]", UNROUTED),
    ("  hostnames: [\"*.two.example\"]\n  rules: [{backendRefs: [{name: tls-next, port: 80}]}]", UNROUTED),
    ("  hostnames: [two.example]\n  rules: [{backendRefs: [{name: nowhere, port: 80}]}]", UNROUTED),
];
const TLS_BAD: &[Bad] = &[
    ("  hostnames: [\"*.*.example\"]\n  rules: [{backendRefs: [{name: tls, port: 80}]}]", "spec.hostnames[0]"),
    ("  hostnames: [one.example, 127.0.0.1]\n  rules: [{backendRefs: [{name: tls, port: 80}]}]", "spec.hostnames[1]"),
    ("  rules: [{backendRefs: [{name: tls, port: 80, weight: -1}]}]", "spec.rules[0].backendRefs[0].weight"),
    ("  rules: []", "spec.rules"),
];

const BACKEND_HARMLESS: &[Good] = &[
    ("  loadBalancing: {algorithm: RoundRobin, zonePreference: None}", NOTHING),
    ("  loadBalancing: {algorithm: ConsistentHash, consistentHash: {key: {header: x-user}}}", NOTHING),
    ("  loadBalancing: {algorithm: ConsistentHash, consistentHash: {key: {cookie: {name: home}}}}", NOTHING),
    ("  loadBalancing: {algorithm: Prequal, prequal: {probesPercent: 100}}", NOTHING),
    ("  loadBalancing: {algorithm: LeastRequest, slowStart: 5s}", NOTHING),
    ("  timeouts: {connect: 10s, request: 1m, connectionIdle: 100ms}", NOTHING),
    ("  circuitBreaker: {failurePercent: 50, openTime: 10ms}\n  limits: {requests: 10000, retries: 0}", NOTHING),
    ("  retryBudget: {percent: 0, minPerSecond: 100, burst: 1000}", NOTHING),
    ("  outlierDetection: {consecutiveFailures: 1, baseEjection: 100ms, maximumEjectedPercent: 100}", NOTHING),
];
const BACKEND: &[Good] = &[
    BACKEND_HARMLESS[0],
    BACKEND_HARMLESS[1],
    BACKEND_HARMLESS[3],
    BACKEND_HARMLESS[4],
    BACKEND_HARMLESS[8],
    ("  timeouts: {request: 20ms}", TIME),
    ("  timeouts: {response: 20ms}", gives(&["response-timeout"])),
    ("  timeouts: {backendRequest: 20ms}", TRY),
    ("  timeouts: {streamIdle: 100ms, connectionIdle: 100ms}", IDLE),
    ("  circuitBreaker: {consecutiveFailures: 1, openTime: 200ms}", gives(&["circuit-open"])),
    ("  limits: {requests: 1}", LIMITED),
    ("  limits: {connections: 1, pendingRequests: 1}", LIMITED),
    ("  retryBudget: {percent: 0, minPerSecond: 0, burst: 1}", NOTHING),
];
const BACKEND_BAD: &[Bad] = &[
    ("  limits: {requests: 0}", "spec.limits.requests"),
    ("  circuitBreaker: {failurePercent: 101}", "spec.circuitBreaker.failurePercent"),
    ("  retryBudget: {percent: 99999999999}", "spec.retryBudget.percent"),
    ("  timeouts: {connect: -1s}", "spec.timeouts.connect"),
    ("  loadBalancing: {algorithm: Fastest}", "spec.loadBalancing.algorithm"),
    ("  outlierDetection: {baseEjection: 10s, maximumEjection: 5s}", "spec.outlierDetection.baseEjection"),
];

/// What connections of opaque bytes keep to; one of the endpoints of `tcp` cannot be connected to.
const OPAQUE_HARMLESS: &[Good] = &[
    ("  loadBalancing: {algorithm: RoundRobin, zonePreference: None}", NOTHING),
    ("  loadBalancing: {algorithm: ConsistentHash, consistentHash: {key: {sourceAddress: true}}}", NOTHING),
    ("  loadBalancing: {algorithm: ConsistentHash, consistentHash: {key: {header: x-user}}}", NOTHING),
    ("  loadBalancing: {algorithm: Prequal, prequal: {probesPercent: 100}}", NOTHING),
    ("  loadBalancing: {algorithm: LeastRequest, slowStart: 5s}", NOTHING),
    ("  timeouts: {connect: 10s, streamIdle: 1m}\n  limits: {connections: 1000, retries: 1000}", NOTHING),
    ("  circuitBreaker: {consecutiveFailures: 1000, openTime: 10ms}", NOTHING),
    ("  outlierDetection: {consecutiveFailures: 1, baseEjection: 100ms}", NOTHING),
    // One in three goes to who cannot be connected to, and is tried again.
    ("  loadBalancing: {algorithm: RoundRobin}\n  outlierDetection: {consecutiveFailures: 0}", NOTHING),
    // Of requests, which there are none.
    ("  timeouts: {request: 20ms, response: 20ms, backendRequest: 20ms}\n  limits: {requests: 1}", NOTHING),
];
const OPAQUE: &[Good] = &[
    OPAQUE_HARMLESS[0],
    OPAQUE_HARMLESS[1],
    OPAQUE_HARMLESS[3],
    OPAQUE_HARMLESS[5],
    OPAQUE_HARMLESS[7],
    OPAQUE_HARMLESS[8],
    ("  timeouts: {streamIdle: 100ms}", gives(&["idle"])),
    ("  timeouts: {connect: 1ms}", gives(&["connect", "tls"]).felt(REFILL)),
    ("  limits: {connections: 1}", LIMITED),
    (
        "  loadBalancing: {algorithm: RoundRobin}\n  outlierDetection: {consecutiveFailures: 0}\n  limits: {retries: 0}",
        gives(&["connect"]),
    ),
    (
        "  loadBalancing: {algorithm: RoundRobin}\n  outlierDetection: {consecutiveFailures: 0}
  retryBudget: {percent: 0, minPerSecond: 0, burst: 1}",
        gives(&["connect"]).felt(REFILL),
    ),
    // What opens it is not tried again.
    (
        "  loadBalancing: {algorithm: RoundRobin}\n  circuitBreaker: {consecutiveFailures: 1, openTime: 200ms}",
        gives(&["circuit-open", "connect"]),
    ),
];

const ROUTE_HARMLESS: &[Good] = &[
    (
        "  retry: {attempts: 3, statuses: [5xx], grpcCodes: [ABORTED], methods: Any, backoff: {base: 1ms, max: 5ms}}",
        NOTHING,
    ),
    ("  hedging: {delay: 1ms, methods: Any}", NOTHING),
    ("  hedging: {percentile: 50}", NOTHING),
    ("  timeouts: {request: 1m, backendRequest: 30s, streamIdle: 1m}", NOTHING),
    ("  fallback: {backendRef: {name: next, port: 80}}", NOTHING),
    ("  explain: {headers: [host, user-agent]}", NOTHING),
];
const ROUTE: &[Good] = &[
    ROUTE_HARMLESS[0],
    ROUTE_HARMLESS[1],
    ROUTE_HARMLESS[2],
    ROUTE_HARMLESS[4],
    ROUTE_HARMLESS[5],
    ("  timeouts: {request: 20ms}", TIME),
    ("  timeouts: {backendRequest: 20ms}\n  retry: {attempts: 1, on: [TryTimeout]}", TRY),
    ("  timeouts: {streamIdle: 100ms}", IDLE),
    ("  timeouts: {request: 10s, response: 20ms}", gives(&["response-timeout"])),
    ("  directResponse: {status: 418, body: short and stout}", gives(&["direct-response"])),
    ("  directResponse: {status: 503, grpcStatus: ABORTED}", gives(&["direct-response"])),
    // What it stands in for is said by the answer.
    ("  fallback: {answer: {status: 200, grpcStatus: OUT_OF_RANGE, body: stale}}", gives(&["connect", "no-endpoint"])),
];
const ROUTE_BAD: &[Bad] = &[
    ("  retry: {attempts: 11}", "spec.retry.attempts"),
    ("  retry: {statuses: [\"404\"]}", "spec.retry.statuses[0]"),
    ("  hedging: {percentile: 100}", "spec.hedging.percentile"),
    ("  directResponse: {status: 99}", "spec.directResponse.status"),
    ("  fallback: {}", "spec.fallback"),
    ("  timeouts: {request: 1s, backendRequest: 2s}", "spec.timeouts.backendRequest"),
    ("  explain: {headers: [x-order, authorization]}", "spec.explain.headers[1]"),
    ("  explain: {headers: []}", "spec.explain.headers"),
];

const FAULT_HARMLESS: &[Good] = &[
    ("  delay: {duration: 5ms, percentage: 20}", NOTHING),
    ("  abort: {httpStatus: 500, matches: [{headers: [{name: x-chaos, value: \"1\"}]}]}", NOTHING),
    ("  abort: {httpStatus: 500, percentage: 0}", NOTHING),
];
const FAULT: &[Good] = &[
    FAULT_HARMLESS[0],
    FAULT_HARMLESS[1],
    ("  abort: {httpStatus: 418, percentage: 20}", gives(&["fault"])),
    ("  delay: {duration: 30ms, percentage: 20}\n  abort: {grpcStatus: ABORTED, percentage: 20}", gives(&["fault"])),
];
const FAULT_BAD: &[Bad] = &[
    ("  abort: {httpStatus: 500, percentage: 101}", "spec.abort.percentage"),
    ("  delay: {duration: 3m}", "spec.delay.duration"),
    ("  abort: {percentage: 1}", "spec.abort"),
];

const INBOUND_HARMLESS: &[Good] = &[
    ("  rateLimits: [{name: all, requests: 1000000}]", NOTHING),
    (
        "  rateLimits: [{name: some, requests: 1, per: 1h, matches: [{headers: [{name: x-chaos, value: \"1\"}]}]}]",
        NOTHING,
    ),
    (
        "  rateLimits: [{name: client, requests: 900000, key: {type: ClientIdentity}}]\n  rateLimitHeaders: false",
        NOTHING,
    ),
    ("  concurrency: {mode: \"Off\"}", NOTHING),
    ("  concurrency: {mode: Fixed, limit: 1000}\n  maxConnections: 1000", NOTHING),
    ("  requestSize: {headBytes: 1024, bodyBytes: 1000000}", NOTHING),
];
const INBOUND: &[Good] = &[
    INBOUND_HARMLESS[0],
    INBOUND_HARMLESS[2],
    INBOUND_HARMLESS[3],
    INBOUND_HARMLESS[5],
    ("  requestSize: {bodyBytes: 5}", LARGE),
    ("  rateLimits: [{name: all, requests: 5}]", gives(&["rate-limit"])),
    ("  rateLimits: [{name: ip, requests: 1, per: 1m, burst: 20, key: {type: SourceAddress}}]", gives(&["rate-limit"])),
    ("  concurrency: {mode: Fixed, limit: 1}", LIMITED),
    ("  concurrency: {mode: Adaptive, min: 1, max: 2}", LIMITED),
    // Who is not let in may be told so in the middle of a handshake.
    ("  maxConnections: 1", gives(&["connect", "tls", "reset"])),
];
const INBOUND_BAD: &[Bad] = &[
    ("  rateLimits: [{name: all, requests: 0}]", "spec.rateLimits[0].requests"),
    ("  rateLimits: [{name: all, requests: 1, per: 1500ms}]", "spec.rateLimits[0].per"),
    ("  concurrency: {mode: Fixed}", "spec.concurrency.limit"),
    ("  maxConnections: -1", "spec.maxConnections"),
    ("  requestSize: {headBytes: 1023}", "spec.requestSize.headBytes"),
    ("  requestSize: {bodyBytes: 0}", "spec.requestSize.bodyBytes"),
];

/// The same of ports that carry opaque bytes.
const DOOR_HARMLESS: &[Good] = &[
    ("  maxConnections: 1000", NOTHING),
    // Of requests, which there are none.
    ("  rateLimits: [{name: all, requests: 1, per: 1h}]\n  requestSize: {bodyBytes: 1}", NOTHING),
    ("  concurrency: {mode: Fixed, limit: 1}", NOTHING),
];
const DOOR: &[Good] = &[
    DOOR_HARMLESS[0],
    DOOR_HARMLESS[1],
    DOOR_HARMLESS[2],
    ("  maxConnections: 1", gives(&["connect", "tls"]).felt(REFILL)),
];

/// What another policy makes fail, and a third has tried again, is answered so once too much of it was.
const SPENT: Why = gives(&["retry-budget"]);
const TRAFFIC: &[Good] = &[
    ("  retryConstraint: {budget: {percent: 50, interval: 10s}, minRetryRate: {count: 100, interval: 1s}}", SPENT),
    ("  retryConstraint: {minRetryRate: {count: 1000, interval: 10s}}", SPENT),
    ("  sessionPersistence: {type: Header, sessionName: x-home}", NOTHING),
    ("  sessionPersistence: {type: Cookie, absoluteTimeout: 1h, cookie: {lifetimeType: Permanent}}", NOTHING),
];
const TRAFFIC_BAD: &[Bad] = &[
    ("  retryConstraint: {budget: {percent: 101}}", "spec.retryConstraint.budget.percent"),
    ("  retryConstraint: {minRetryRate: {count: 0}}", "spec.retryConstraint.minRetryRate.count"),
    ("  sessionPersistence: {type: Sometimes}", "spec.sessionPersistence.type"),
];
