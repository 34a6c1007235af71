//! RoutePolicy.

use std::{sync::Arc, time::Duration};

use leno_proto::headers;

use super::{
    super::{Wrong, refuse, value},
    backend, duration_within, resilience,
    static_answer::static_answer,
};
use crate::{
    api::{self, RoutePolicySpec},
    model::{
        ObjectKey,
        object::BackendTarget,
        policy::{Fallback, RoutePolicy},
    },
};

/// Of a request, or one try of it. Zero: no limit, whatever the backend's policy says.
const REQUEST: (Duration, Duration) = (Duration::ZERO, backend::REQUEST.1);
/// By so many headers a route's requests may be kept.
const EXPLAIN_HEADERS: usize = 4;

pub(super) fn route_policy(key: &ObjectKey, raw: &RoutePolicySpec) -> Result<RoutePolicy, Wrong> {
    let mut wrong = Wrong::default();
    let timeouts = raw.timeouts.clone().unwrap_or_default();
    let mut timeout = |field: &str, text: Option<&api::DurationText>| {
        wrong.note(text.map(|text| duration_within(&format!("spec.timeouts.{field}"), text, REQUEST)).transpose())
    };
    let request_timeout = timeout("request", timeouts.request.as_ref());
    let response_timeout = timeout("response", timeouts.response.as_ref());
    let backend_request_timeout = timeout("backendRequest", timeouts.backend_request.as_ref());
    backend::in_order(&mut wrong, request_timeout, response_timeout, backend_request_timeout);
    let stream_idle = timeouts.stream_idle.as_ref();
    let stream_idle =
        stream_idle.map(|text| duration_within("spec.timeouts.streamIdle", text, backend::STREAM_IDLE)).transpose();
    let stream_idle = wrong.note(stream_idle);
    let retry = wrong.note(raw.retry.as_ref().map(resilience::retry).transpose());
    let hedging = wrong.note(raw.hedging.as_ref().map(resilience::hedging).transpose());
    let direct = raw.direct_response.as_ref().map(|raw| static_answer("spec.directResponse", raw));
    let direct_response = wrong.note(direct.transpose());
    let fallback = wrong.note(raw.fallback.as_ref().map(|raw| fallback(key, raw)).transpose());
    let explain_headers = wrong.note(raw.explain.as_ref().map(explain).transpose()).unwrap_or_default();
    wrong.or(RoutePolicy {
        request_timeout,
        response_timeout,
        backend_request_timeout,
        stream_idle,
        retry,
        hedging,
        direct_response,
        fallback,
        explain_headers,
    })
}

fn explain(raw: &api::RouteExplain) -> Result<Vec<Arc<str>>, Wrong> {
    let Some(names) = &raw.headers else { return Ok(Vec::new()) };
    if !(1..=EXPLAIN_HEADERS).contains(&names.len()) {
        return refuse("spec.explain.headers", format!("{} headers, and not 1 to {EXPLAIN_HEADERS}", names.len()));
    }
    let mut parsed: Vec<Arc<str>> = Wrong::each(names.iter().enumerate().map(|(index, name)| {
        let field = format!("spec.explain.headers[{index}]");
        let name = value::header_name(&field, name)?;
        if headers::is_secret(&name) {
            return refuse(field, format!("{name} carries secrets: name a header whose value operators may read"));
        }
        Ok(name.into())
    }))?;
    parsed.sort_unstable();
    parsed.dedup();
    Ok(parsed)
}

fn fallback(key: &ObjectKey, raw: &api::Fallback) -> Result<Fallback, Wrong> {
    match (&raw.backend_ref, &raw.answer) {
        (Some(backend), None) => {
            let mut wrong = Wrong::default();
            let at = |field: &str| format!("spec.fallback.backendRef.{field}");
            wrong.note(value::object_name(&at("name"), &backend.name));
            if let Some(namespace) = &backend.namespace {
                wrong.note(value::label(&at("namespace"), namespace));
            }
            let port = wrong.note(value::port(&at("port"), backend.port));
            let namespace = backend.namespace.as_deref().map_or_else(|| key.namespace.clone(), Into::into);
            wrong.or(Fallback::Backend(BackendTarget::Service { namespace, name: backend.name.as_str().into(), port }))
        }
        (None, Some(answer)) => Ok(Fallback::Answer(static_answer("spec.fallback.answer", answer)?)),
        _ => refuse("spec.fallback", "needs either backendRef or answer, and not both"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn headers_to_keep_requests_by_are_few_and_no_secrets() {
        let parse = |headers: Value| explain(&from_value(json!({ "headers": headers })).unwrap());
        let names = parse(json!(["X-Request-Id", "x-order", "x-order"])).unwrap();
        assert_eq!(names, [Arc::from("x-order"), Arc::from("x-request-id")]);
        let reasons = |headers: Value| {
            let wrong = parse(headers).unwrap_err().0;
            wrong.into_iter().map(|wrong| format!("{}: {}", wrong.field, wrong.reason)).collect::<Vec<_>>()
        };
        for secret in headers::SECRET {
            let told = reasons(json!(["x-order", secret.to_ascii_uppercase()]));
            assert!(told[0].starts_with(&format!("spec.explain.headers[1]: {secret} carries secrets")), "{told:?}");
        }
        assert!(reasons(json!(["no name"]))[0].contains("is not a header name"));
        assert!(reasons(json!([]))[0].contains("0 headers, and not 1 to 4"));
        assert!(reasons(json!(["a", "b", "c", "d", "e"]))[0].contains("5 headers"));
    }
}
