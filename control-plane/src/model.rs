//! The configuration as facts: typed, validated, indexed, immutable. No I/O, no clock.
//!
//! A [`World`] is built from documents ([`World::apply`]); what does not parse is reported and its last good
//! version stays, across restarts too ([`World::restored`]). Each object has a generation, which grows when its spec does.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use ipnet::IpNet;

pub mod check;
mod hash;
mod index;
mod intake;
mod networks;
mod object;
pub(crate) mod parse;
mod policies;
pub mod policy;
pub mod resilience;
mod routes;
mod shared_map;
mod topics;
mod world;

pub(crate) use index::{
    EndpointUse, InboundPort, missing_pod, namespace, pod, policy, route, service, slice, target_number,
};
pub use intake::FileContent;
pub use object::*;
pub(crate) use routes::{backend_service, resolve};
pub use topics::{ByTopicId, TopicId};
pub use world::{Touched, World};

/// Hash of content, as versions and generations use it.
pub(crate) fn content_hash(bytes: &[u8]) -> String {
    hash::ContentHash::of_bytes(bytes).to_string()
}

/// Names an object as Kubernetes does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The namespace that it is in; of a Namespace, itself.
    pub(crate) fn own_namespace(&self) -> &Arc<str> {
        if self.kind == Kind::Namespace { &self.name } else { &self.namespace }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            // A Namespace is in none.
            "" => write!(f, "{} {}", self.kind.as_str(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
        }
    }
}

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Service,
    EndpointSlice,
    Pod,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    BackendPolicy,
    FaultPolicy,
    InboundPolicy,
    RoutePolicy,
    /// Of Gateway API, experimental.
    BackendTrafficPolicy,
}

impl Kind {
    pub(crate) const ALL: [Self; 13] = [
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::BackendPolicy,
        Self::FaultPolicy,
        Self::InboundPolicy,
        Self::RoutePolicy,
        Self::BackendTrafficPolicy,
    ];

    /// Whether it routes traffic.
    pub fn is_route(self) -> bool {
        matches!(self, Self::HttpRoute | Self::GrpcRoute | Self::TlsRoute | Self::TcpRoute)
    }

    /// Whether it is a policy, attached by `targetRefs`.
    pub fn is_policy(self) -> bool {
        matches!(
            self,
            Self::BackendPolicy
                | Self::FaultPolicy
                | Self::InboundPolicy
                | Self::RoutePolicy
                | Self::BackendTrafficPolicy
        )
    }

    /// As in the document: "HTTPRoute".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::BackendPolicy => "BackendPolicy",
            Self::FaultPolicy => "FaultPolicy",
            Self::InboundPolicy => "InboundPolicy",
            Self::RoutePolicy => "RoutePolicy",
            Self::BackendTrafficPolicy => "XBackendTrafficPolicy",
        }
    }
}

/// One document as a source read it: where it came from, and its content as JSON.
#[derive(Debug, Clone)]
pub struct Document {
    /// "shop.yaml"
    pub file: Arc<str>,
    /// 1-based within the file.
    pub index: u32,
    /// Shared: a document that did not change is recognised by its address, and not parsed again.
    pub content: Arc<serde_json::Value>,
}

/// Why a document (or a file: index 0) is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    pub file: Arc<str>,
    pub document: u32,
    pub object: Option<ObjectKey>,
    /// "spec.rules[0].backendRefs[0].port"; empty: the document as a whole.
    pub field: String,
    pub reason: String,
    /// Of the object, as the API server counts: what is wrong may be mended by now. None: it is not numbered.
    pub generation: Option<u64>,
    /// Of the object, as the API server names it; empty: not said.
    pub uid: Arc<str>,
}

impl DocumentError {
    /// Said of a whole folder of documents.
    pub(crate) fn of_all(folder: &Path, reason: String) -> Self {
        let (field, uid) = (String::new(), Arc::default());
        Self { file: Self::file_of_all(folder), document: 0, object: None, field, reason, generation: None, uid }
    }

    /// The name that stands for a whole folder; no file's ends like it.
    pub(crate) fn file_of_all(folder: &Path) -> Arc<str> {
        format!("{}/", folder.display().to_string().trim_end_matches('/')).into()
    }

    /// Whether it is said of a whole folder, by the name that is told.
    pub(crate) fn is_of_all(file: &str) -> bool {
        file.ends_with('/')
    }
}

/// A fact about an object, as Kubernetes words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// "Accepted", "ResolvedRefs", "PartiallyInvalid" or "leno.dev/PartiallySupported"
    pub kind: &'static str,
    pub status: bool,
    pub reason: String,
    pub message: String,
    /// The parent it holds for, if any: "Service shop/cart:80".
    pub parent: Option<String>,
}

/// What `leno get` shows of an object, without what proxies say.
#[derive(Debug, Clone)]
pub struct ObjectInfo {
    pub key: ObjectKey,
    pub generation: u64,
    /// Another for an object that was deleted and made again, whose generations begin anew. Empty: from a folder.
    pub uid: Arc<str>,
    /// "shop.yaml#2"
    pub source: String,
    /// Its document no longer holds: what is described is the last good version.
    pub held_over: bool,
    pub conditions: Vec<Condition>,
}

/// Something a compiled resource was made from; [`World::changed_since`] tells whether it moved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    Settings,
    /// Everything about a Service (itself, its slices, routes attached to it, policies for any of these): "namespace/name".
    Service(Arc<str>),
    /// A Pod, and the ports that Services name: "namespace/name".
    Workload(Arc<str>),
    /// What a Namespace says about its workloads.
    Namespace(Arc<str>),
    /// Whether anything is, or was, in a namespace.
    Known(Arc<str>),
    /// Who owns an IP address now.
    Address(Arc<str>),
}

/// Where nobody says otherwise.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// What holds for the whole mesh, as options of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSettings {
    /// "cluster.local"
    pub trust_domain: Arc<str>,
    /// Of the cluster's DNS: "cluster.local".
    pub cluster_domain: Arc<str>,
    /// Addresses that belong to the mesh: one inside them that nobody owns does not exist, one outside is passed
    /// through without a look-up. Empty: private addresses, and public ones near those of Services and Pods, are looked up, and
    /// passed through if nobody owns them ([`World::mesh_networks`]).
    pub mesh_networks: Vec<IpNet>,
    /// For workloads whose Pod and Namespace do not say (`leno.dev/inbound`). Strict from a folder.
    pub inbound: InboundMode,
    /// What proxies seal session tokens with (32 bytes). None: they keep no sessions.
    pub session_key: Option<Arc<[u8]>>,
    /// Of which requests proxies keep what they decided.
    pub explain: Explain,
}

/// Of which requests proxies keep what they decided, beside those that fail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explain {
    /// Not of those that are sampled by trace.
    pub ignore_sampled: bool,
    /// Of those that have one of these headers; in lower case.
    pub headers: Vec<String>,
}

impl MeshSettings {
    /// Settings for a folder: strict inbound.
    pub fn strict(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.into(),
            mesh_networks: Vec::new(),
            inbound: InboundMode::Strict,
            session_key: None,
            explain: Explain::default(),
        }
    }
}

/// Generations as the state folder remembers them, so that they survive a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Generations {
    pub mesh: u64,
    /// "HTTPRoute shop/cart" → (generation, hash of the spec).
    pub objects: BTreeMap<String, (u64, String)>,
}
