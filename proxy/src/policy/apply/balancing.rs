//! The sections of a BackendPolicy about endpoints: how one is chosen, and when it is ejected.

use std::time::Duration;

use leno_proto::v1::{self, consistent_hash::Key, load_balancing::Algorithm as Sent};

use super::{Invalid, parse_duration};
use crate::upstream::{
    balance::{
        Algorithm, LoadBalancing, prequal,
        settings::{ConsistentHash, HashCookie, HashKey},
    },
    outlier::{OutlierDetection, settings::FailureShare},
};

/// Load of the mean, in percent, where policy does not say.
const MOST_LOAD: u32 = 125;

pub(super) fn load_balancing(sent: Option<v1::LoadBalancing>) -> Result<LoadBalancing, Invalid> {
    let Some(sent) = sent else { return Ok(LoadBalancing::default()) };
    let algorithm = match sent.algorithm {
        None | Some(Sent::PeakEwma(_)) => Algorithm::PeakEwma,
        Some(Sent::LeastRequest(_)) => Algorithm::LeastRequest,
        Some(Sent::RoundRobin(_)) => Algorithm::RoundRobin,
        Some(Sent::Random(_)) => Algorithm::Random,
        Some(Sent::ConsistentHash(hash)) => {
            let hash = consistent_hash(hash).map_err(|invalid| invalid.within("consistent_hash"))?;
            Algorithm::ConsistentHash(hash)
        }
        Some(Sent::Prequal(prequal)) => {
            Algorithm::Prequal(self::prequal(prequal).map_err(|invalid| invalid.within("prequal"))?)
        }
    };
    let slow_start = parse_duration("slow_start", sent.slow_start)?.filter(|window| !window.is_zero());
    Ok(LoadBalancing { algorithm, slow_start, prefer_zone: !sent.ignore_zone })
}

fn consistent_hash(sent: v1::ConsistentHash) -> Result<ConsistentHash, Invalid> {
    let key = match sent.key {
        Some(Key::Header(name)) if name.is_empty() => return Err(Invalid::new("header", "a name is missing")),
        Some(Key::Header(name)) => HashKey::Header(name.to_ascii_lowercase().into_bytes().into()),
        Some(Key::Query(name)) => HashKey::Query(name.into()),
        Some(Key::SourceAddress(_)) => HashKey::SourceAddress,
        Some(Key::Cookie(cookie)) => {
            let ttl = parse_duration("cookie.ttl", cookie.ttl)?;
            let path = if cookie.path.is_empty() { "/".into() } else { cookie.path };
            for (field, text) in [("cookie.name", &cookie.name), ("cookie.path", &path)] {
                if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';') {
                    return Err(Invalid::new(field, format!("{text:?} cannot stand in a cookie")));
                }
            }
            HashKey::Cookie(HashCookie { name: cookie.name.into(), ttl, path: path.into() })
        }
        None => return Err(Invalid::new("key", "no key that is known")),
    };
    let most_load = match sent.maximum_load_percent {
        0 => MOST_LOAD,
        percent if percent < 100 => {
            return Err(Invalid::new("maximum_load_percent", format!("{percent} is less than the mean, 100")));
        }
        percent => percent,
    };
    Ok(ConsistentHash { key, most_load })
}

fn prequal(sent: v1::Prequal) -> Result<prequal::Settings, Invalid> {
    let default = prequal::Settings::default();
    let given = |value: u32, default: u32| if value == 0 { default } else { value };
    Ok(prequal::Settings {
        probes_percent: given(sent.probes_percent, default.probes_percent),
        most_age: parse_duration("maximum_age", sent.maximum_age)?.unwrap_or(default.most_age),
        cold_percent: given(sent.cold_percent, default.cold_percent).min(100),
    })
}

pub(super) fn outlier_detection(sent: Option<v1::OutlierDetection>) -> Result<OutlierDetection, Invalid> {
    let default = OutlierDetection::default();
    let Some(sent) = sent else { return Ok(default) };
    let failure_share = match sent.failure_share {
        None => None,
        Some(share) => {
            let window = parse_duration("failure_share.window", share.window)?;
            let window = window.filter(|window| *window >= Duration::from_millis(10));
            let window = window.ok_or_else(|| Invalid::new("failure_share.window", "shorter than 10ms"))?;
            if share.percent == 0 || share.percent > 100 {
                return Err(Invalid::new("failure_share.percent", format!("{} is not 1 to 100", share.percent)));
            }
            Some(FailureShare { percent: share.percent, window, least_requests: share.minimum_requests.max(1) })
        }
    };
    let base = parse_duration("base_ejection", sent.base_ejection)?.unwrap_or(default.base_ejection);
    let most = parse_duration("maximum_ejection", sent.maximum_ejection)?.unwrap_or(default.most_ejection);
    Ok(OutlierDetection {
        consecutive_failures: sent.consecutive_failures.unwrap_or(default.consecutive_failures),
        failure_share,
        base_ejection: base,
        most_ejection: most.max(base),
        jitter_percent: sent.jitter_percent.unwrap_or(default.jitter_percent),
        most_ejected_percent: sent.maximum_ejected_percent.unwrap_or(default.most_ejected_percent).min(100),
        probes: sent.probes.unwrap_or(default.probes).max(1),
        successes: sent.successes.unwrap_or(default.successes).max(1),
        most_rest: parse_duration("maximum_rest", sent.maximum_rest)?.unwrap_or(default.most_rest),
    })
}
