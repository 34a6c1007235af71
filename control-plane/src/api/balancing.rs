//! Sections of a BackendPolicy about endpoints: how one is chosen, and when it is ejected.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::DurationText;

/// How an endpoint is chosen for each request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LoadBalancing {
    /// PeakEwma: the best of a few random endpoints (five at most) by latency and requests in flight. LeastRequest: the best of a
    /// few by requests in flight. RoundRobin and Random: by weight alone. ConsistentHash: requests with the same key go to the same
    /// endpoint. Prequal: endpoints are asked for their load between requests; those without a proxy are chosen as by PeakEwma.
    /// Default: PeakEwma.
    #[schemars(example = &"LeastRequest")]
    pub(crate) algorithm: AlgorithmName,
    /// For ConsistentHash, which needs it: what the key is. Default: none.
    #[schemars(example = json!({"key": {"header": "x-user"}, "maximumLoadPercent": 150}))]
    pub(crate) consistent_hash: Option<ConsistentHash>,
    /// For Prequal: how much is asked. Default: the defaults of its fields.
    #[schemars(example = json!({"probesPercent": 200}))]
    pub(crate) prequal: Option<Prequal>,
    /// Time in which an endpoint that is new grows from a tenth of its share to all of it: 1s to 1h. Default: it has all at once.
    #[schemars(example = "30s")]
    pub(crate) slow_start: Option<DurationText>,
    /// Local: with PeakEwma and LeastRequest, endpoints of the client's own zone go first while they have room. None: zones
    /// make no difference. Default: Local.
    #[schemars(example = &"None")]
    pub(crate) zone_preference: ZonePreference,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum AlgorithmName {
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    ConsistentHash,
    Prequal,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum ZonePreference {
    #[default]
    Local,
    None,
}

/// Maglev hashing with bounded load.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConsistentHash {
    /// What of a request is its key: exactly one of header, cookie, query and sourceAddress. Requests without it go to any
    /// endpoint. Default: none, it must be said.
    #[schemars(example = json!({"header": "x-user"}))]
    pub(crate) key: HashKey,
    /// Requests in flight that an endpoint may have, in percent of the mean, before others get what it would: 100 to 1000.
    /// (Four it may always have.) Default: 125.
    #[schemars(range(min = 100, max = 1000), example = 150)]
    pub(crate) maximum_load_percent: Option<u32>,
}

/// What of a request is its key.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HashKey {
    /// Name of a header, whose first value is the key: 1 to 256 characters. Default: none.
    #[schemars(length(min = 1, max = 256), example = "x-user")]
    pub(crate) header: Option<String>,
    /// A cookie whose value is the key. A client that has none is given one. Default: none.
    #[schemars(example = json!({"name": "shop-affinity", "ttl": "1h"}))]
    pub(crate) cookie: Option<HashCookie>,
    /// Name of a query parameter, whose first value is the key as it was sent: 1 to 256 characters. Default: none.
    #[schemars(length(min = 1, max = 256), example = &"user")]
    pub(crate) query: Option<String>,
    /// True: the key is the address that the client's connection came from, which is the client's Pod. Default: false.
    #[schemars(example = true)]
    pub(crate) source_address: Option<bool>,
}

/// A cookie.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HashCookie {
    /// Its name: 1 to 256 characters.
    #[schemars(length(min = 1, max = 256), example = "shop-affinity")]
    pub(crate) name: String,
    /// How long clients keep it: 1s to 8760h. Default: as long as their session.
    #[schemars(example = "1h")]
    pub(crate) ttl: Option<DurationText>,
    /// Paths that clients send it with, by their beginning: 1 to 1024 characters. Default: `/`.
    #[schemars(length(min = 1, max = 1024), example = "/cart")]
    pub(crate) path: Option<String>,
}

/// Probes that ask endpoints for their load.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Prequal {
    /// Probes per hundred requests: 50 to 1000. Default: 300.
    #[schemars(range(min = 50, max = 1000), example = 200)]
    pub(crate) probes_percent: Option<u32>,
    /// An older answer is not used: 10ms to 60s. Default: 1s.
    #[schemars(example = "1s")]
    pub(crate) maximum_age: Option<DurationText>,
    /// Share of answers, in percent, whose requests in flight are taken for few: 1 to 99. Of endpoints with few the fastest is
    /// taken. Default: 84.
    #[schemars(range(min = 1, max = 99), example = 75)]
    pub(crate) cold_percent: Option<u32>,
}

/// When an endpoint that fails gets no more requests, and how it comes back. A failure is an answer with a status of 500 or more
/// or gRPC's UNAVAILABLE, a reset, a timeout, or a connection that cannot be made; not what the mesh turns away (`overload`).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OutlierDetection {
    /// Failures in a row that eject: 0 (never) to 10000. Default: 5.
    #[schemars(range(max = 10_000), example = 10)]
    pub(crate) consecutive_failures: Option<u32>,
    /// The share of failures that ejects, whatever comes between them. Default: any is borne.
    #[schemars(example = json!({"percent": 50, "window": "10s"}))]
    pub(crate) failure_share: Option<FailureShare>,
    /// First ejection; the second lasts twice as long, the third three times: 100ms to 1h. Default: 5s.
    #[schemars(example = "5s")]
    pub(crate) base_ejection: Option<DurationText>,
    /// No ejection is longer: 100ms to 24h. Default: 5m, or `baseEjection` if that is longer.
    #[schemars(example = "5m")]
    pub(crate) maximum_ejection: Option<DurationText>,
    /// Ejections are longer by up to so many percent, at random: 0 to 100. Default: 25.
    #[schemars(range(max = 100), example = 10)]
    pub(crate) jitter_percent: Option<u32>,
    /// Share of the endpoints, in percent, that may be ejected at a time: 0 to 100. Default: 50.
    #[schemars(range(max = 100), example = 30)]
    pub(crate) maximum_ejected_percent: Option<u32>,
    /// Requests that may find out at a time, after the ejection, whether an endpoint is well: 1 to 100. Default: 1.
    #[schemars(range(min = 1, max = 100), example = 2)]
    pub(crate) probes: Option<u32>,
    /// Successes of theirs that bring it back: 1 to 100. Default: 1.
    #[schemars(range(min = 1, max = 100), example = 3)]
    pub(crate) successes: Option<u32>,
    /// How long an endpoint is left alone at most, while there are others, when it answers 429 or 503 with Retry-After: 0s
    /// (never) to 5m. Default: 10s.
    #[schemars(example = "10s")]
    pub(crate) maximum_back_off: Option<DurationText>,
}

/// Failures in a sliding window.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailureShare {
    /// Share of failures, in percent, that ejects: 1 to 100.
    #[schemars(range(min = 1, max = 100), example = 50)]
    pub(crate) percent: u32,
    /// The window's length: 1s to 10m. Default: 10s.
    #[schemars(example = "10s")]
    pub(crate) window: Option<DurationText>,
    /// With fewer requests in the window nothing is concluded: 1 to 100000. Default: 20.
    #[schemars(range(min = 1, max = 100_000), example = 50)]
    pub(crate) minimum_requests: Option<u32>,
}
