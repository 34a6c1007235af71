//! What policy says of balancing (BackendPolicy `loadBalancing`), with defaults for what it does not.

use std::time::Duration;

use super::prequal;

/// How a backend's endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancing {
    pub algorithm: Algorithm,
    /// Time in which an endpoint that came later than the backend itself grows from a tenth of its share to all of it.
    pub slow_start: Option<Duration>,
    /// Whether endpoints of the proxy's own zone go first while they have room.
    pub prefer_zone: bool,
}

/// See [`super`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Algorithm {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    ConsistentHash(ConsistentHash),
    Prequal(prequal::Settings),
}

/// Requests with the same key go to the same endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsistentHash {
    pub key: HashKey,
    /// An endpoint's share of the requests in flight, in percent of what it were if all had the same, beyond which the next
    /// goes elsewhere.
    pub most_load: u32,
}

/// What of a request is its key. Without it any endpoint will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// A header's first value; the name in lower case.
    Header(Box<[u8]>),
    Cookie(HashCookie),
    /// A query parameter's first value, as it was sent.
    Query(Box<str>),
    /// The address that the client's connection came from.
    SourceAddress,
}

/// A cookie that names the endpoint's key. Made if the client has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashCookie {
    pub name: Box<str>,
    /// None: as long as the client's session.
    pub ttl: Option<Duration>,
    pub path: Box<str>,
}

impl Algorithm {
    /// As it is written in policy, and in what is shown to people.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::PeakEwma => "PeakEwma",
            Self::LeastRequest => "LeastRequest",
            Self::RoundRobin => "RoundRobin",
            Self::Random => "Random",
            Self::ConsistentHash(_) => "ConsistentHash",
            Self::Prequal(_) => "Prequal",
        }
    }
}

impl Default for LoadBalancing {
    fn default() -> Self {
        Self { algorithm: Algorithm::PeakEwma, slow_start: None, prefer_zone: true }
    }
}
