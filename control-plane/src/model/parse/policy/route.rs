//! RoutePolicy.

use super::{
    super::{Wrong, value},
    backend, duration_within, resilience,
};
use crate::{api::RoutePolicySpec, model::policy::RoutePolicy};

pub(super) fn route_policy(raw: &RoutePolicySpec) -> Result<RoutePolicy, Wrong> {
    let mut wrong = Wrong::default();
    let timeouts = raw.timeouts.clone().unwrap_or_default();
    let mut timeout = |field: &str, text: Option<&crate::api::DurationText>| {
        wrong.note(text.map(|text| value::duration(&format!("spec.timeouts.{field}"), &text.0)).transpose())
    };
    let request_timeout = timeout("request", timeouts.request.as_ref());
    let backend_request_timeout = timeout("backendRequest", timeouts.backend_request.as_ref());
    if let (Some(request), Some(backend)) = (request_timeout, backend_request_timeout)
        && !request.is_zero()
        && backend > request
    {
        wrong.add("spec.timeouts.backendRequest", "longer than timeouts.request");
    }
    let stream_idle = timeouts.stream_idle.as_ref();
    let stream_idle =
        stream_idle.map(|text| duration_within("spec.timeouts.streamIdle", text, backend::STREAM_IDLE)).transpose();
    let stream_idle = wrong.note(stream_idle);
    let retry = wrong.note(raw.retry.as_ref().map(resilience::retry).transpose());
    let hedging = wrong.note(raw.hedging.as_ref().map(resilience::hedging).transpose());
    wrong.or(RoutePolicy { request_timeout, backend_request_timeout, stream_idle, retry, hedging })
}
