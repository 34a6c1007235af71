//! Why an endpoint was chosen, in words; only for requests that notes are taken of.

use std::time::Instant;

use super::{LocalEndpoint, Roster, Wanted};
use crate::upstream::{
    balance::{Algorithm, Choice, Standing},
    outlier::Role,
};

/// "PeakEwma: 1 in flight, 2.1 ms expected; drawn with 10.0.0.2:80 (4 in flight, 9.3 ms expected); 2 of 3 endpoints are ready"
pub(super) fn of(roster: &Roster, choice: Choice, role: Role, wanted: Wanted<'_>) -> String {
    let now = wanted.now;
    let mut text = roster.policy.load_balancing.algorithm.as_str().to_owned();
    match &roster.policy.load_balancing.algorithm {
        Algorithm::ConsistentHash(_) if wanted.key.is_none() => text += ": the request has no key, any will do",
        Algorithm::ConsistentHash(_) => text += ": by the request's key",
        Algorithm::RoundRobin => text += ": it is its turn",
        Algorithm::Random => text += ": by weight alone",
        Algorithm::PeakEwma | Algorithm::LeastRequest | Algorithm::Prequal(_) => {
            if let Some(chosen) = roster.endpoints.get(choice.index) {
                text += &format!(": {}", load(chosen, now));
            }
        }
    }
    if let Some(over) = choice.over.and_then(|over| roster.endpoints.get(over)) {
        text += &format!("; drawn with {} ({})", over.endpoint.address, load(over, now));
    }
    match role {
        Role::Ordinary => {}
        Role::Probe => text += "; as a probe, after it was ejected",
        Role::LastResort => text += "; though it is ejected, for want of better",
    }
    let ready = roster.endpoints.iter().filter(|local| local.standing(&[], now) == Standing::Ready).count();
    text += &format!("; {ready} of {} endpoints are ready", roster.endpoints.len());
    if !wanted.tried.is_empty() {
        text += &format!(", {} were tried", wanted.tried.len());
    }
    text
}

fn load(local: &LocalEndpoint, now: Instant) -> String {
    let expected = local.estimate().seconds(now) * 1e3;
    format!("{} in flight, {expected:.1} ms expected", local.in_flight())
}
