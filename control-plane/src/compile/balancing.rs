//! The sections of a BackendPolicy about endpoints, as they are sent.

use leno_proto::v1::{self, consistent_hash::Key, load_balancing::Algorithm as Sent};

use super::http::duration;
use crate::model::policy::{Algorithm, ConsistentHash, HashKey, LoadBalancing, OutlierDetection};

pub(super) fn load_balancing(policy: &LoadBalancing) -> v1::LoadBalancing {
    let algorithm = match &policy.algorithm {
        Algorithm::PeakEwma => Sent::PeakEwma(v1::PeakEwma {}),
        Algorithm::LeastRequest => Sent::LeastRequest(v1::LeastRequest {}),
        Algorithm::RoundRobin => Sent::RoundRobin(v1::RoundRobin {}),
        Algorithm::Random => Sent::Random(v1::Random {}),
        Algorithm::ConsistentHash(hash) => Sent::ConsistentHash(consistent_hash(hash)),
        Algorithm::Prequal(prequal) => Sent::Prequal(v1::Prequal {
            probes_percent: prequal.probes_percent.unwrap_or_default(),
            maximum_age: prequal.maximum_age.map(duration),
            cold_percent: prequal.cold_percent.unwrap_or_default(),
        }),
    };
    v1::LoadBalancing {
        algorithm: Some(algorithm),
        slow_start: policy.slow_start.map(duration),
        ignore_zone: !policy.prefer_zone,
    }
}

fn consistent_hash(hash: &ConsistentHash) -> v1::ConsistentHash {
    let key = match &hash.key {
        HashKey::Header(name) => Key::Header(name.to_string()),
        HashKey::Query(name) => Key::Query(name.to_string()),
        HashKey::SourceAddress => Key::SourceAddress(v1::SourceAddress {}),
        HashKey::Cookie { name, ttl, path } => {
            Key::Cookie(v1::HashCookie { name: name.to_string(), ttl: ttl.map(duration), path: path.to_string() })
        }
    };
    v1::ConsistentHash { key: Some(key), maximum_load_percent: hash.maximum_load_percent.unwrap_or_default() }
}

pub(super) fn outlier_detection(policy: &OutlierDetection) -> v1::OutlierDetection {
    v1::OutlierDetection {
        consecutive_failures: policy.consecutive_failures,
        failure_share: policy.failure_share.map(|share| v1::FailureShare {
            percent: share.percent,
            window: Some(duration(share.window)),
            minimum_requests: share.minimum_requests,
        }),
        base_ejection: policy.base_ejection.map(duration),
        maximum_ejection: policy.maximum_ejection.map(duration),
        jitter_percent: policy.jitter_percent,
        maximum_ejected_percent: policy.maximum_ejected_percent,
        probes: policy.probes,
        successes: policy.successes,
        maximum_rest: policy.maximum_rest.map(duration),
    }
}
