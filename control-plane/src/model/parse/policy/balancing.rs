//! The sections of a BackendPolicy about endpoints.

use std::time::Duration;

use leno_proto::headers;

use super::{
    super::{FieldError, Wrong, refuse},
    duration_within, number_within,
};
use crate::{
    api::{self, AlgorithmName, ZonePreference},
    model::policy::{Algorithm, ConsistentHash, FailureShare, HashKey, LoadBalancing, OutlierDetection, Prequal},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Longest name of a header, cookie or parameter.
const MAX_NAME: usize = 256;

pub(super) fn load_balancing(raw: &api::LoadBalancing) -> Result<LoadBalancing, Wrong> {
    let at = |field: &str| format!("spec.loadBalancing.{field}");
    let mut wrong = Wrong::default();
    let algorithm = match raw.algorithm {
        AlgorithmName::PeakEwma => Algorithm::PeakEwma,
        AlgorithmName::LeastRequest => Algorithm::LeastRequest,
        AlgorithmName::RoundRobin => Algorithm::RoundRobin,
        AlgorithmName::Random => Algorithm::Random,
        AlgorithmName::ConsistentHash => match &raw.consistent_hash {
            Some(hash) => Algorithm::ConsistentHash(wrong.note(consistent_hash(hash))),
            None => {
                wrong.add(at("consistentHash"), "required by the algorithm ConsistentHash: say what the key is");
                Algorithm::PeakEwma
            }
        },
        AlgorithmName::Prequal => Algorithm::Prequal(wrong.note(prequal(&raw.prequal.clone().unwrap_or_default()))),
    };
    for (field, given, of) in [
        ("consistentHash", raw.consistent_hash.is_some(), AlgorithmName::ConsistentHash),
        ("prequal", raw.prequal.is_some(), AlgorithmName::Prequal),
    ] {
        if given && raw.algorithm != of {
            wrong.add(at(field), format!("is for the algorithm {of:?}; the algorithm is {:?}", raw.algorithm));
        }
    }
    let slow_start = raw.slow_start.as_ref().map(|text| duration_within(&at("slowStart"), text, (SECOND, HOUR)));
    let slow_start = wrong.note(slow_start.transpose());
    wrong.or(LoadBalancing { algorithm, slow_start, prefer_zone: raw.zone_preference == ZonePreference::Local })
}

fn consistent_hash(raw: &api::ConsistentHash) -> Result<ConsistentHash, Wrong> {
    let at = |field: &str| format!("spec.loadBalancing.consistentHash.{field}");
    let mut wrong = Wrong::default();
    let api::HashKey { header, cookie, query, source_address } = &raw.key;
    let source_address = source_address.unwrap_or_default();
    let key = match (header, cookie, query, source_address) {
        (Some(name), None, None, false) => wrong.note(header_name(&at("key.header"), name)),
        (None, Some(cookie), None, false) => wrong.note(self::cookie(&at("key.cookie"), cookie)),
        (None, None, Some(name), false) => wrong.note(parameter(&at("key.query"), name)),
        (None, None, None, true) => HashKey::SourceAddress,
        _ => {
            wrong.add(at("key"), "exactly one of header, cookie, query and sourceAddress: true is expected");
            HashKey::SourceAddress
        }
    };
    let load = raw.maximum_load_percent;
    let load = load.map(|load| number_within(&at("maximumLoadPercent"), load, (100, 1000))).transpose();
    let maximum_load_percent = wrong.note(load);
    wrong.or(ConsistentHash { key, maximum_load_percent })
}

fn header_name(field: &str, name: &str) -> Result<HashKey, FieldError> {
    let lower = name.to_ascii_lowercase();
    if lower.is_empty() || lower.len() > MAX_NAME || !is_token(&lower) {
        return refuse(field, format!("{name:?} is not a header's name"));
    }
    if headers::is_reserved(&lower) && lower != "host" {
        return refuse(field, format!("{name:?} is a header of the proxy's own"));
    }
    Ok(HashKey::Header(lower.into()))
}

fn parameter(field: &str, name: &str) -> Result<HashKey, FieldError> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"&=#".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
        return refuse(field, format!("{name:?} is not a query parameter's name, as it is written in a URL"));
    }
    Ok(HashKey::Query(name.into()))
}

fn cookie(field: &str, raw: &api::HashCookie) -> Result<HashKey, Wrong> {
    let mut wrong = Wrong::default();
    if raw.name.is_empty() || raw.name.len() > MAX_NAME || !is_token(&raw.name) {
        wrong.add(format!("{field}.name"), format!("{:?} is not a cookie's name (RFC 6265)", raw.name));
    }
    let path = raw.path.as_deref().unwrap_or("/");
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b';';
    if !path.starts_with('/') || path.len() > 1024 || !path.bytes().all(fits) {
        wrong.add(
            format!("{field}.path"),
            format!("{path:?} is not a path: it begins with / and has no blanks and no ;"),
        );
    }
    let ttl = raw.ttl.as_ref().map(|ttl| duration_within(&format!("{field}.ttl"), ttl, (SECOND, HOUR * 8760)));
    let ttl = wrong.note(ttl.transpose());
    wrong.or(HashKey::Cookie { name: raw.name.as_str().into(), ttl, path: path.into() })
}

/// RFC 9110 5.6.2.
fn is_token(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn prequal(raw: &api::Prequal) -> Result<Prequal, Wrong> {
    let at = |field: &str| format!("spec.loadBalancing.prequal.{field}");
    let mut wrong = Wrong::default();
    let probes = raw.probes_percent.map(|probes| number_within(&at("probesPercent"), probes, (50, 1000)));
    let cold = raw.cold_percent.map(|cold| number_within(&at("coldPercent"), cold, (1, 99)));
    let bounds = (Duration::from_millis(10), SECOND * 60);
    let age = raw.maximum_age.as_ref().map(|age| duration_within(&at("maximumAge"), age, bounds));
    let parsed = Prequal {
        probes_percent: wrong.note(probes.transpose()),
        maximum_age: wrong.note(age.transpose()),
        cold_percent: wrong.note(cold.transpose()),
    };
    wrong.or(parsed)
}

pub(super) fn outlier_detection(raw: &api::OutlierDetection) -> Result<OutlierDetection, Wrong> {
    let at = |field: &str| format!("spec.outlierDetection.{field}");
    let mut wrong = Wrong::default();
    let mut number = |field: &str, value: Option<u32>, bounds| {
        wrong.note(value.map(|value| number_within(&at(field), value, bounds)).transpose())
    };
    let consecutive_failures = number("consecutiveFailures", raw.consecutive_failures, (0, 10_000));
    let jitter_percent = number("jitterPercent", raw.jitter_percent, (0, 100));
    let maximum_ejected_percent = number("maximumEjectedPercent", raw.maximum_ejected_percent, (0, 100));
    let probes = number("probes", raw.probes, (1, 100));
    let successes = number("successes", raw.successes, (1, 100));
    let mut time = |field: &str, text: &Option<api::DurationText>, bounds| {
        wrong.note(text.as_ref().map(|text| duration_within(&at(field), text, bounds)).transpose())
    };
    let base_ejection = time("baseEjection", &raw.base_ejection, (SECOND / 10, HOUR));
    let maximum_ejection = time("maximumEjection", &raw.maximum_ejection, (SECOND / 10, HOUR * 24));
    let maximum_rest = time("maximumBackOff", &raw.maximum_back_off, (Duration::ZERO, SECOND * 300));
    if let (Some(base), Some(maximum)) = (base_ejection, maximum_ejection)
        && base > maximum
    {
        wrong.add(at("baseEjection"), "longer than maximumEjection");
    }
    let failure_share = wrong.note(raw.failure_share.as_ref().map(failure_share).transpose());
    wrong.or(OutlierDetection {
        consecutive_failures,
        failure_share,
        base_ejection,
        maximum_ejection,
        jitter_percent,
        maximum_ejected_percent,
        probes,
        successes,
        maximum_rest,
    })
}

fn failure_share(raw: &api::FailureShare) -> Result<FailureShare, Wrong> {
    let at = |field: &str| format!("spec.outlierDetection.failureShare.{field}");
    let mut wrong = Wrong::default();
    let percent = wrong.note(number_within(&at("percent"), raw.percent, (1, 100)));
    let window = raw.window.as_ref().map(|window| duration_within(&at("window"), window, (SECOND, SECOND * 600)));
    let window = wrong.note(window.transpose()).unwrap_or(SECOND * 10);
    let minimum = number_within(&at("minimumRequests"), raw.minimum_requests.unwrap_or(20), (1, 100_000));
    let minimum_requests = wrong.note(minimum);
    wrong.or(FailureShare { percent, window, minimum_requests })
}
