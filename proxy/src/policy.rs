//! Policy in runtime form: what requests are decided by, and the store that hands it out.
//!
//! Immutable once built; [`Store`] swaps whole snapshots, so that a request sees one consistent policy.
//! What must survive a swap (endpoint state, budgets) is shared by `Arc` and carried over by key.

pub mod apply;
pub mod backend_policy;
pub mod client;
mod dump;
mod explain;
pub mod fault;
pub mod hedging;
pub mod http_match;
pub mod http_route;
pub mod retry_policy;
pub(crate) mod says;
pub mod session;
pub mod share;
pub mod static_answer;
pub mod store;
pub mod tcp_route;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

pub use backend_policy::BackendPolicy;
pub use http_route::{HttpAction, HttpRoutes, Matched};
use ipnet::IpNet;
use leno_proto::v1::{ResourceKind, ResourceName};
pub use store::{Store, Unavailable};
pub use tcp_route::{TcpRoute, TlsRoutes};

use crate::{http::persistence::SessionKey, inbound::protection::PortPolicy, upstream::Backend};

/// What a client addresses: the key of a DESTINATION resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DestinationKey {
    /// Transparent mode: the original destination.
    Address(SocketAddr),
    /// Explicit mode: "service.namespace:port" or "host:port".
    Name(Arc<str>),
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<&str> for DestinationKey {
    /// An address if the text is one, else a name.
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.into()), Self::Address)
    }
}

impl DestinationKey {
    /// The name of its resource.
    pub fn resource(&self) -> ResourceName {
        ResourceName { kind: ResourceKind::Destination.into(), key: self.to_string() }
    }
}

/// What policy says about a destination.
pub struct Destination {
    pub key: DestinationKey,
    pub target: Target,
}

impl Destination {
    /// Every backend that it names, some perhaps more than once.
    pub fn backends(&self) -> Vec<&Arc<Backend>> {
        match &self.target {
            Target::Outside => Vec::new(),
            Target::Workload(backend) => vec![backend],
            Target::Service(port) => {
                let http = port.http.iter().flat_map(HttpRoutes::backends);
                let tls = port.tls.iter().flat_map(TlsRoutes::backends);
                let tcp = port.tcp.iter().flat_map(TcpRoute::backends);
                http.chain(tls).chain(tcp).collect()
            }
        }
    }
}

pub enum Target {
    Service(ServicePort),
    /// One workload, by its own address: no routes; metrics are labelled by the backend.
    Workload(Arc<Backend>),
    /// Not in the mesh: bytes go on unchanged (a `Name` is resolved by DNS first).
    Outside,
}

/// One port of a Service.
pub struct ServicePort {
    /// "namespace/name"
    pub service: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    /// For clients that speak HTTP.
    pub http: Option<HttpRoutes>,
    /// For the application's own TLS, if routed by SNI.
    pub tls: Option<TlsRoutes>,
    /// For opaque bytes.
    pub tcp: Option<TcpRoute>,
}

/// What is spoken to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Detect,
    Http,
    Http1,
    Http2,
    Tls,
    Tcp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http => "http",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }

    /// What is known of what a port speaks, in words: "declared http".
    pub(crate) fn declared(self) -> String {
        match self {
            Self::Detect => "undeclared: what is spoken is found out".to_owned(),
            declared => format!("declared {}", declared.as_str()),
        }
    }

    /// The same of what a Service's port speaks: "which speaks http".
    pub(crate) fn spoken(self) -> String {
        match self {
            Self::Detect => "whose protocol is not declared: what is spoken is found out".to_owned(),
            declared => format!("which speaks {}", declared.as_str()),
        }
    }
}

/// The workload's own inbound policy.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Only mesh TLS is accepted.
    pub strict: bool,
    /// The object that says so, or that says otherwise ("Namespace shop"); None: neither Pod nor Namespace does.
    pub mode_origin: Option<Arc<str>>,
    /// The zone that the workload runs in; empty: not known.
    pub zone: Arc<str>,
    /// Sorted by port; ports not listed are detected, and have the defaults.
    pub ports: Vec<InboundPort>,
}

/// A port of the workload that some Service names.
#[derive(Debug, Clone)]
pub struct InboundPort {
    pub port: u16,
    pub protocol: Protocol,
    pub policy: PortPolicy,
}

impl Inbound {
    /// What is known of a port.
    pub fn port(&self, port: u16) -> Option<&InboundPort> {
        self.ports.binary_search_by_key(&port, |known| known.port).ok().and_then(|index| self.ports.get(index))
    }
}

/// Mesh-wide settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub trust_domain: String,
    /// Addresses that the control plane knows about. Empty: every address is looked up.
    pub mesh_networks: Vec<IpNet>,
    /// What session tokens are sealed with. None: no sessions are kept.
    pub session_key: Option<Arc<SessionKey>>,
    pub explain: Explain,
}

/// Of which requests it is kept what was decided, beside those that fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explain {
    /// Those that are sampled by trace.
    pub sampled: bool,
    /// Those that have one of these; in lower case.
    pub headers: Arc<Vec<Box<str>>>,
}

impl Default for Explain {
    fn default() -> Self {
        Self { sampled: true, headers: Arc::default() }
    }
}

impl Settings {
    /// Whether the address needs no look-up.
    pub fn is_outside(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !self.mesh_networks.is_empty() && !self.mesh_networks.iter().any(|network| network.contains(&address))
    }
}

/// The rule that made a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOrigin {
    /// "HTTPRoute shop/cart"; "default" for a Service without routes.
    pub route: Arc<str>,
    /// The rule's name or index.
    pub rule: Arc<str>,
}

/// Weighted choice among backends, by request (HTTP) or connection (TCP, TLS).
pub struct WeightedBackends<T> {
    pub(crate) entries: Vec<(u32, T)>,
    pub(crate) total: u64,
}

impl<T> WeightedBackends<T> {
    pub fn new(entries: Vec<(u32, T)>) -> Self {
        let total = entries.iter().map(|(weight, _)| u64::from(*weight)).sum();
        Self { entries, total }
    }

    /// Every backend with its weight.
    pub fn iter(&self) -> impl Iterator<Item = &(u32, T)> {
        self.entries.iter()
    }

    /// Whether a backend of these gets any requests by weight.
    pub fn takes_new(&self, backend: &T) -> bool {
        self.entries.iter().any(|(weight, entry)| *weight > 0 && std::ptr::eq(entry, backend))
    }

    /// The backend at `point`, a uniformly random number. None if there is none or all weigh 0.
    pub fn pick(&self, point: u64) -> Option<&T> {
        let mut rest = point.checked_rem(self.total)?;
        for (weight, entry) in &self.entries {
            match rest.checked_sub(u64::from(*weight)) {
                None => return Some(entry),
                Some(left) => rest = left,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_addresses_if_they_can_be() {
        for text in ["10.0.0.1:80", "[fd00::1]:80"] {
            assert!(matches!(DestinationKey::from(text), DestinationKey::Address(_)));
            assert_eq!(DestinationKey::from(text).to_string(), text);
        }
        assert!(matches!(DestinationKey::from("cart.shop:80"), DestinationKey::Name(_)));
    }

    proptest! {
        #[test]
        fn weights_are_shares(weights in prop::collection::vec(prop_oneof![Just(0_u32), 0_u32..200], 0..6)) {
            let backends = WeightedBackends::new((0_usize..).zip(&weights).map(|(n, w)| (*w, n)).collect());
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let mut picked = vec![0_u32; weights.len()];
            for point in 0..total {
                // Far points are like near ones.
                let index = *backends.pick(point).unwrap();
                prop_assert_eq!(backends.pick(point + total * 1_000_003), Some(&index));
                picked[index] += 1;
            }
            prop_assert_eq!(&picked, &weights);
            prop_assert_eq!(total == 0, backends.pick(1).is_none());
        }
    }
}
