//! Why an endpoint was chosen, in words; only for requests that notes are taken of.

use std::{collections::HashSet, time::Instant};

use super::{LocalEndpoint, Roster, Wanted};
use crate::upstream::{
    balance::{Algorithm, By, Choice, Standing},
    outlier::Role,
};

/// "PeakEwma: 1 in flight, 2.1 ms expected; drawn with 10.0.0.2:80 (4 in flight, 9.3 ms expected); 2 of 3 endpoints are ready"
pub(super) fn of(roster: &Roster, choice: Choice, role: Role, wanted: Wanted<'_>) -> String {
    let now = wanted.now;
    let algorithm = &roster.policy.load_balancing.algorithm;
    let mut text = algorithm.as_str().to_owned();
    let decided = decided_by(algorithm, choice.by, wanted.key.is_some());
    if !decided.is_empty() {
        text += &format!(": {decided}");
    }
    if matches!(algorithm, Algorithm::PeakEwma | Algorithm::LeastRequest | Algorithm::Prequal(_))
        && let Some(chosen) = roster.endpoints.get(choice.index)
    {
        text += &format!(": {}", load(chosen, now));
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
        // One may have been tried several times.
        let tried: HashSet<_> = wanted.tried.iter().collect();
        text += &format!(", {} tried before", tried.len());
    }
    text
}

/// Empty: the algorithm's name says all.
fn decided_by(algorithm: &Algorithm, by: By, has_key: bool) -> &'static str {
    match (algorithm, by) {
        (Algorithm::ConsistentHash(_), By::Place) => "the place of the request's key",
        (Algorithm::ConsistentHash(_), By::Moved) => {
            "moved from the place of the request's key, which is full or not ready"
        }
        (Algorithm::ConsistentHash(_), _) if has_key => "there is no table of places, any will do",
        (Algorithm::ConsistentHash(_), _) => "the request has no key, any will do",
        (Algorithm::Prequal(_), By::Report) => "best by the load that endpoints report",
        (Algorithm::Prequal(_), By::Start) => "in its slow start, its part of what it will get",
        (Algorithm::Prequal(_), By::Share) => {
            "it failed of late, but others have too much to do: no more than its share"
        }
        (Algorithm::Prequal(_), _) => "too little load is reported, fell back to PeakEwma",
        (Algorithm::RoundRobin, _) => "it is its turn",
        (Algorithm::Random, _) => "by weight alone",
        (Algorithm::PeakEwma | Algorithm::LeastRequest, _) => "",
    }
}

fn load(local: &LocalEndpoint, now: Instant) -> String {
    let expected = local.estimate().seconds(now) * 1e3;
    format!("{} in flight, {expected:.1} ms expected", local.in_flight())
}
