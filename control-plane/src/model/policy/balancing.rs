//! How an endpoint is chosen, and when it is ejected. What is None has the proxy's default.

use std::{sync::Arc, time::Duration};

/// BackendPolicy `loadBalancing`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadBalancing {
    pub algorithm: Algorithm,
    pub slow_start: Option<Duration>,
    pub prefer_zone: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Algorithm {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    ConsistentHash(ConsistentHash),
    Prequal(Prequal),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConsistentHash {
    pub key: HashKey,
    pub maximum_load_percent: Option<u32>,
}

/// What of a request is its key.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum HashKey {
    /// Lower case.
    Header(Arc<str>),
    Cookie {
        name: Arc<str>,
        ttl: Option<Duration>,
        path: Arc<str>,
    },
    Query(Arc<str>),
    #[default]
    SourceAddress,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Prequal {
    pub probes_percent: Option<u32>,
    pub maximum_age: Option<Duration>,
    pub cold_percent: Option<u32>,
}

/// BackendPolicy `outlierDetection`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutlierDetection {
    pub consecutive_failures: Option<u32>,
    pub failure_share: Option<FailureShare>,
    pub base_ejection: Option<Duration>,
    pub maximum_ejection: Option<Duration>,
    pub jitter_percent: Option<u32>,
    pub maximum_ejected_percent: Option<u32>,
    pub probes: Option<u32>,
    pub successes: Option<u32>,
    pub maximum_rest: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FailureShare {
    pub percent: u32,
    pub window: Duration,
    pub minimum_requests: u32,
}
