//! Where the key of a request leads, for backends that are balanced by key.

use std::time::Instant;

use crate::{
    http::{affinity, head::RequestHead},
    policy::says::{By, Said, key_name},
    upstream::{
        Endpoint, EndpointSet,
        balance::{
            Algorithm, hash,
            settings::{ConsistentHash, HashKey},
        },
        outlier::Health,
    },
};

use super::name_of;

/// What is the key of a request, and which endpoint it leads to at present; None: the backend is not balanced by key. `head`: None for a
/// connection of which no request is looked at.
pub(super) fn of<'a>(
    set: &'a EndpointSet,
    head: Option<&RequestHead>,
    workload: &str,
    now: Instant,
) -> Option<Said<'a>> {
    let Algorithm::ConsistentHash(ConsistentHash { key: by, most_load }) = &set.policy.load_balancing.algorithm else {
        return None;
    };
    let (what, key) = look_for(by, head, workload);
    let text = match key {
        None => what,
        // Without a table there are no endpoints, which is told anyway.
        Some(key) => format!("{what} {}", place(set, key, *most_load, now)?),
    };
    Some(Said {
        subject: "key",
        applies: key.is_some(),
        text,
        by: set.policy.origin.as_ref().map_or(By::Nobody, By::Object),
    })
}

/// The key, and the words for it; without one: what becomes of the request.
fn look_for(by: &HashKey, head: Option<&RequestHead>, workload: &str) -> (String, Option<u64>) {
    let name = key_name(by);
    match (by, head) {
        (HashKey::SourceAddress, _) => {
            let what =
                format!("the {name} is not known here; for calls by loopback the workload's name stands for it, and");
            (what, Some(affinity::of_workload(workload)))
        }
        (_, None) => (format!("a connection has no {name}: any endpoint will do"), None),
        (_, Some(head)) => match (affinity::value(by, head), by) {
            (Some(value), _) => (format!("the {name}, {:?},", String::from_utf8_lossy(value)), Some(hash::of(value))),
            (None, HashKey::Cookie(_)) => (
                format!("the request has no {name}: any endpoint will do, and the answer brings a cookie for it"),
                None,
            ),
            (None, _) => (format!("the request has no {name}: any endpoint will do"), None),
        },
    }
}

/// As [`crate::upstream::balance::maglev::choose`] goes, but for what workers know alone: how much is in flight.
fn place(set: &EndpointSet, key: u64, most_load: u32, now: Instant) -> Option<String> {
    let mut places = set.table.as_ref()?.places(key).filter_map(|index| set.endpoints.get(index));
    let first = places.next()?;
    let takes = |endpoint: &Endpoint| !endpoint.is_draining() && endpoint.outlier.health(now) != Health::Ejected;
    if takes(first) {
        let bound = format!("elsewhere while that has more than {most_load} % of the mean load");
        return Some(format!("leads to {}; {bound}", name_of(first)));
    }
    let moved = match places.find(|endpoint| takes(endpoint)) {
        Some(other) => name_of(other),
        None => "the one with the least to do".to_owned(),
    };
    Some(format!("leads to {}, which is not ready: to {moved} instead", name_of(first)))
}
