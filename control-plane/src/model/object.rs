//! The objects after the door: validated, defaulted, in the form that indexing and compilation want.

use std::{
    cmp::Reverse,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leno_proto::v1::Protocol;

use super::{ObjectKey, policy::Policy};
use crate::webhook::ports::PortSet;

/// One object of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
    Route(Route),
    /// Larger than most, and seldom.
    Policy(Box<Policy>),
}

impl Object {
    /// See [`Pod::life`].
    pub(crate) fn life(&self) -> PodLife {
        match self {
            Self::Pod(pod) => pod.life,
            _ => PodLife::default(),
        }
    }
}

/// What plaintext gets at a workload's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboundMode {
    /// Only mesh mTLS is accepted.
    Strict,
    /// Mesh mTLS, and plaintext or the application's own TLS untouched.
    Permissive,
}

/// Only what it says about its Pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    pub inbound: Option<InboundMode>,
    /// `leno.dev/inject: enabled`: Pods made in it get a proxy, unless they say otherwise.
    pub injects: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub kind: ServiceKind,
    /// Both families of a dual-stack Service.
    pub cluster_ips: Vec<IpAddr>,
    /// TCP only.
    pub ports: Vec<ServicePort>,
}

impl Service {
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceKind {
    /// Also without an address, where clients call it by name.
    ClusterIp,
    /// `clusterIP: None`
    Headless,
    /// Another name, mostly outside the mesh.
    ExternalName(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty if the only port.
    pub name: Arc<str>,
    pub number: u16,
    pub target: TargetPort,
    /// By `appProtocol`; DETECT if it does not say.
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service it belongs to, in its own namespace. None: none, it is not used.
    pub service: Option<Arc<str>>,
    /// None: all ports, as the Service numbers them.
    pub ports: Option<Vec<SlicePort>>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// That of the Service's port; empty if it has none.
    pub name: Arc<str>,
    pub number: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Interchangeable.
    pub addresses: Vec<IpAddr>,
    pub state: EndpointState,
    pub zone: Arc<str>,
    /// The zone that it is to serve (`hints.forZones`): its own, if that is one of several. Empty: none is said.
    pub for_zone: Arc<str>,
    pub hostname: Option<Arc<str>>,
    /// Name of the Pod (`targetRef`), in the slice's namespace.
    pub pod: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    Ready,
    /// Terminating, and still serving what it has.
    Draining,
    /// Gets no traffic.
    NotReady,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub service_account: Arc<str>,
    pub ips: Vec<IpAddr>,
    pub inbound: Option<InboundMode>,
    /// False: `leno.dev/inject: disabled`, reached in plaintext.
    pub meshed: bool,
    /// `leno.dev/skip-inbound-ports`: reached without its proxy, in plaintext; of no meaning unless `meshed`.
    pub skipped: PortSet,
    /// Of its endpoints, relative to others: 1 unless `leno.dev/weight` says otherwise.
    pub weight: u32,
    /// `topology.kubernetes.io/zone`, for Pods that no EndpointSlice names; empty: not known.
    pub zone: Arc<str>,
    pub life: PodLife,
}

/// How far a Pod's life has come. Shapes nothing that proxies get, and so counts for no change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodLife {
    /// When it is, or was, to be gone at the latest, once somebody has asked for that.
    pub ending: Option<SystemTime>,
    pub proxy: ProxyLife,
}

/// What the kubelet says of the proxy's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ProxyLife {
    /// Not there yet, or not any more, or between two starts.
    #[default]
    Down,
    /// It has not said yet that it is ready, since it was started last: it has no policy, and the application waits for it.
    Starting,
    /// It has been ready: it may serve, whoever it is connected to.
    Started,
}

/// A route of any kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// RFC 3339 in UTC, as the API server writes it: older routes win ties. A folder has none.
    pub created: Option<Arc<str>>,
    pub parents: Vec<ParentRef>,
    pub rules: Rules,
    /// Parts that are not supported, and answered with 500: "spec.rules[0].filters[1]: ExternalAuth".
    pub unsupported: Vec<String>,
    /// Why its document is bad: this stands in for it, answers with 500, and takes nothing from routes that are good but for what its
    /// readable matches take by the usual order.
    pub refused: Option<Arc<str>>,
}

impl Route {
    /// What becomes of one that is refused, and has no earlier version.
    pub const REFUSED: &str = "nothing of it is in force: what its readable matches take is answered with 500, and what those take \
         that cannot be read goes to whatever else takes it; a rule that matches everything, or of which no match can be read, answers \
         with 500 what no other route takes; where a good route of another kind, or another TCPRoute, is in force it does nothing";
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentRef {
    /// False for parents that are another implementation's to serve (a Gateway).
    pub is_service: bool,
    /// "Service", "gateway.networking.k8s.io/Gateway"; for people.
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: Option<u16>,
    /// Name of the Service's port.
    pub section_name: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Rules {
    /// HTTPRoute and GRPCRoute.
    Http(Vec<HttpRule>),
    /// TLSRoute.
    Tls {
        /// Lower case; empty: any, and connections without SNI.
        server_names: Vec<Arc<str>>,
        backends: Vec<Backend>,
    },
    /// TCPRoute.
    Tcp { backends: Vec<Backend> },
}

impl Rules {
    /// Everything that is named as a backend, or as one to mirror to.
    pub fn targets(&self) -> impl Iterator<Item = &BackendTarget> {
        let (rules, plain) = match self {
            Self::Http(rules) => (rules.as_slice(), [].as_slice()),
            Self::Tls { backends, .. } | Self::Tcp { backends } => ([].as_slice(), backends.as_slice()),
        };
        let backends = rules.iter().flat_map(|rule| &rule.backends).chain(plain);
        let filters = rules
            .iter()
            .flat_map(|rule| rule.filters.iter().chain(rule.backends.iter().flat_map(|backend| &backend.filters)));
        let mirrors = filters.filter_map(|filter| match filter {
            HttpFilter::Mirror(mirror) => Some(&mirror.target),
            _ => None,
        });
        backends.map(|backend| &backend.target).chain(mirrors)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpRule {
    /// Its name if it has one, else its index.
    pub name: Arc<str>,
    /// Any of them; never empty.
    pub matches: Vec<HttpMatch>,
    pub filters: Vec<HttpFilter>,
    pub backends: Vec<Backend>,
    pub request_timeout: Option<Duration>,
    pub backend_request_timeout: Option<Duration>,
    pub retry: Option<Retry>,
    pub session_persistence: Option<SessionPersistence>,
}

/// How requests of a session stay with the endpoint that served its first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPersistence {
    /// Of the cookie or header; None: one that no other rule has.
    pub name: Option<Arc<str>>,
    /// A header, in place of a cookie.
    pub header: bool,
    pub absolute_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// The cookie is kept for the absolute timeout.
    pub permanent: bool,
    /// The cookie's.
    pub path: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    /// Names in lower case, each once.
    pub headers: Vec<(Arc<str>, ValueMatch)>,
    pub query: Vec<(Arc<str>, ValueMatch)>,
    pub method: Option<Arc<str>>,
    pub grpc: bool,
    pub precedence: Precedence,
}

impl HttpMatch {
    /// Whether it says nothing of requests, but maybe that they are gRPC.
    pub(crate) fn takes_everything(&self) -> bool {
        self.path.is_none() && self.headers.is_empty() && self.query.is_empty() && self.method.is_none()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Regex(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(Arc<str>),
    Regex(Arc<str>),
}

/// Where Gateway API puts a match among others: the least is tried first. Compared field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence {
    /// HTTPRoute: exact, then prefix, then regular expression (implementation-specific), then any path.
    /// GRPCRoute: exact, then regular expression, then any.
    pub kind: PathRank,
    /// HTTPRoute: characters of the path. GRPCRoute: of the service.
    pub longest: Reverse<usize>,
    /// GRPCRoute: characters of the method.
    pub longest_method: Reverse<usize>,
    /// HTTPRoute: matches with a method first.
    pub method: Reverse<bool>,
    pub headers: Reverse<usize>,
    pub query: Reverse<usize>,
}

/// See [`Precedence::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathRank {
    Exact,
    Prefix,
    Regex,
    Any,
    /// Whatever no author's rule takes: see [`Route::refused`].
    Rest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub statuses: Vec<u16>,
    /// Tries beyond the first.
    pub attempts: u32,
    pub backoff: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFilter {
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Redirect(Redirect),
    Rewrite {
        hostname: Option<Arc<str>>,
        path: Option<PathModifier>,
    },
    /// May be there several times.
    Mirror(Mirror),
    Cors(Cors),
    /// Holds its name.
    Unsupported(Arc<str>),
}

/// Where a copy of some requests goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub target: BackendTarget,
    /// The share of requests: the first of the second, which is at least 1.
    pub fraction: (u32, u32),
}

/// What cross-origin requests may do. Lists may be the one entry "*": any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    pub allow_origins: Vec<Arc<str>>,
    pub allow_credentials: bool,
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    /// Seconds.
    pub max_age: u32,
}

/// Name, in lower case, and value.
pub type Header = (Arc<str>, Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderModifier {
    pub set: Vec<Header>,
    pub add: Vec<Header>,
    pub remove: Vec<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    pub hostname: Option<Arc<str>>,
    pub port: Option<u16>,
    pub status: u16,
    pub path: Option<PathModifier>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathModifier {
    Full(Arc<str>),
    Prefix(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub weight: u32,
    pub target: BackendTarget,
    pub filters: Vec<HttpFilter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendTarget {
    Service {
        namespace: Arc<str>,
        name: Arc<str>,
        port: u16,
    },
    /// A kind that cannot be a backend: "example.org/Bucket".
    InvalidKind(Arc<str>),
    /// There is none: the route is not in force, for this reason.
    OfRefused(Arc<str>),
}

/// An object with what the model knows about it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: ObjectKey,
    pub(crate) object: Arc<Object>,
    pub(crate) generation: u64,
    /// As [`super::parse::Parsed::uid`].
    pub(crate) uid: Arc<str>,
    /// Of what counts as its spec.
    pub(crate) hash: Arc<str>,
    /// File, and place in it.
    pub(crate) place: (Arc<str>, u32),
    /// What it was read from; shared with the document.
    pub(crate) content: Arc<serde_json::Value>,
    /// Fields that have no effect.
    pub(crate) unknown: Arc<[String]>,
}

impl Stored {
    /// It is no author's version, but what is done in place of one that is bad.
    pub(crate) fn stands_in(&self) -> bool {
        matches!(self.object.as_ref(), Object::Route(Route { refused: Some(_), .. }))
    }
}
