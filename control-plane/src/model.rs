//! The configuration as facts: typed, validated, indexed, immutable. No I/O, no clock.
//!
//! A [`World`] is built from documents ([`World::apply`]); what does not parse is reported and its last good
//! version stays. Each object has a generation, which grows when its spec does.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// Names an object as Kubernetes does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
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
}

impl Kind {
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
    pub content: serde_json::Value,
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
}

/// A fact about an object, as Kubernetes words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// "Accepted" or "ResolvedRefs"
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
    /// "shop.yaml#2"
    pub source: String,
    pub conditions: Vec<Condition>,
}

/// Something a compiled resource was made from; [`World::changed_since`] tells whether it moved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    Settings,
    /// Everything about a Service (itself, its slices, routes attached to it): "namespace/name".
    Service(Arc<str>),
    /// A Pod: "namespace/name".
    Workload(Arc<str>),
    /// Who owns an IP address or a host name now.
    Address(Arc<str>),
}

/// Generations as the state folder remembers them, so that they survive a restart.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Generations {
    pub mesh: u64,
    /// "HTTPRoute shop/cart" → (generation, hash of the spec).
    pub objects: BTreeMap<String, (u64, String)>,
}

/// All facts at one mesh-wide generation. Cheap to share (`Arc<World>`), never changed.
pub struct World {
    // model: services, slices, pods, routes by parent, addresses, objects, errors, changed_at: HashMap<Topic, u64>
}

impl World {
    /// The world before anything was read.
    pub fn empty(_trust_domain: &str, _generations: Generations) -> Self {
        todo!("model")
    }

    /// The next world from a complete set of documents. Objects whose document is bad keep their last good version (from
    /// `self`); errors say what is wrong. Same documents: same generation.
    pub fn apply(&self, _documents: Vec<Document>, _unreadable: Vec<DocumentError>) -> Self {
        todo!("model")
    }

    /// Mesh-wide; grows with each change.
    pub fn generation(&self) -> u64 {
        todo!("model")
    }

    /// To be kept in the state folder.
    pub fn generations(&self) -> Generations {
        todo!("model")
    }

    /// Whether any of `topics` changed after mesh generation `since`.
    pub fn changed_since(&self, _topics: &[Topic], _since: u64) -> bool {
        todo!("model")
    }

    pub fn errors(&self) -> &[DocumentError] {
        todo!("model")
    }

    /// Every object in force.
    pub fn objects(&self) -> Vec<ObjectInfo> {
        todo!("model")
    }

    /// The service account of a Pod, to check that a workload is who its certificate says.
    pub fn service_account(&self, _namespace: &str, _pod: &str) -> Option<Arc<str>> {
        todo!("model")
    }
}
