//! BackendPolicy.

use std::time::Duration;

use super::{super::Wrong, balancing, duration_within, resilience};
use crate::{
    api::{BackendPolicySpec, DurationText},
    model::policy::BackendPolicy,
};

/// Shortest and longest time to make a connection.
const CONNECT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(60));
/// Of a request, or one try of it.
pub(super) const REQUEST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(24 * 3600));
/// Of an exchange in which nothing moves.
pub(super) const STREAM_IDLE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));
/// Of a pooled connection.
const CONNECTION_IDLE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

pub(super) fn backend_policy(raw: &BackendPolicySpec) -> Result<BackendPolicy, Wrong> {
    let mut wrong = Wrong::default();
    let timeouts = raw.timeouts.clone().unwrap_or_default();
    let connect = timeouts.connect.as_ref();
    let connect_timeout =
        wrong.note(connect.map(|text| duration_within("spec.timeouts.connect", text, CONNECT)).transpose());
    let load_balancing = wrong.note(raw.load_balancing.as_ref().map(balancing::load_balancing).transpose());
    let outlier_detection = wrong.note(raw.outlier_detection.as_ref().map(balancing::outlier_detection).transpose());
    let mut timeout = |field: &str, text: Option<&DurationText>, bounds| {
        let parsed = text.map(|text| duration_within(&format!("spec.timeouts.{field}"), text, bounds));
        wrong.note(parsed.transpose())
    };
    let request_timeout = timeout("request", timeouts.request.as_ref(), REQUEST);
    let response_timeout = timeout("response", timeouts.response.as_ref(), REQUEST);
    let backend_request_timeout = timeout("backendRequest", timeouts.backend_request.as_ref(), REQUEST);
    let stream_idle = timeout("streamIdle", timeouts.stream_idle.as_ref(), STREAM_IDLE);
    let connection_idle = timeout("connectionIdle", timeouts.connection_idle.as_ref(), CONNECTION_IDLE);
    in_order(&mut wrong, request_timeout, response_timeout, backend_request_timeout);
    let circuit_breaker = raw.circuit_breaker.as_ref().map(resilience::circuit_breaker).transpose();
    let circuit_breaker = wrong.note(circuit_breaker);
    let limits = wrong.note(raw.limits.as_ref().map(resilience::limits).transpose());
    let retry_budget = wrong.note(raw.retry_budget.as_ref().map(resilience::retry_budget).transpose());
    wrong.or(BackendPolicy {
        connect_timeout,
        load_balancing,
        outlier_detection,
        request_timeout,
        response_timeout,
        backend_request_timeout,
        stream_idle,
        connection_idle,
        circuit_breaker,
        limits,
        retry_budget,
    })
}

/// What lasts no longer than something else: a try, all tries until the answer's head, all of the request. Zero: switched off.
pub(super) fn in_order(
    wrong: &mut Wrong,
    request: Option<Duration>,
    response: Option<Duration>,
    backend_request: Option<Duration>,
) {
    let longer = |one: Option<Duration>, other: Option<Duration>| {
        one.zip(other.filter(|other| !other.is_zero())).is_some_and(|(one, other)| one > other)
    };
    if longer(backend_request, request) {
        wrong.add("spec.timeouts.backendRequest", "longer than timeouts.request");
    } else if longer(backend_request, response) {
        wrong.add("spec.timeouts.backendRequest", "longer than timeouts.response");
    }
    if longer(response, request) {
        wrong.add("spec.timeouts.response", "longer than timeouts.request");
    }
}
