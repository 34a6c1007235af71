//! Policies of ours, where they are sent to proxies: with the backend, the rule or the inbound port that they hold for.

use std::{collections::BTreeSet, sync::Arc};

use leno_proto::v1::{self, HttpAction, concurrency::Mode, rate_limit};

use super::{
    Sources, balancing, destination,
    http::{duration, match_of, session_of},
    object_ref, resilience,
};
use crate::model::{
    self, Header, Kind, ObjectKey,
    policy::{
        Concurrency, Fallback, FaultCondition, FaultPolicy, InboundPolicy, PolicySpec, RateLimit, RateLimitKey,
        StaticAnswer, TrafficPolicy,
    },
};

/// How a Service's port is called, if a policy says.
pub(super) fn of_backend(sources: &mut Sources<'_>, service: &ObjectKey, port: &str) -> Option<v1::BackendPolicy> {
    let own = of_backend_policy(sources, service, port);
    let traffic = sources.policy(Kind::BackendTrafficPolicy, service, port);
    let Some((key, PolicySpec::Traffic(TrafficPolicy { retry_budget: Some(budget), .. }))) = traffic else {
        return own;
    };
    // What our own policy says of the budget comes first.
    let mut sent = own.unwrap_or_else(|| v1::BackendPolicy { origin: Some(object_ref(key)), ..Default::default() });
    let by = (sent.origin != Some(object_ref(key))).then(|| object_ref(key));
    let of_traffic = || v1::RetryBudget { origin: by, ..resilience::retry_budget(budget) };
    sent.retry_budget.get_or_insert_with(of_traffic);
    Some(sent)
}

/// How a Service's port keeps sessions, if a policy says.
pub(super) fn session_of_backend(
    sources: &mut Sources<'_>,
    service: &ObjectKey,
    port: u16,
) -> Option<v1::SessionPersistence> {
    let known = model::service(&sources.world.objects, service)?.port(port);
    let port_name = known.map_or("", |port| &port.name);
    let traffic = sources.policy(Kind::BackendTrafficPolicy, service, port_name);
    let Some((key, PolicySpec::Traffic(TrafficPolicy { session_persistence: Some(session), .. }))) = traffic else {
        return None;
    };
    let origin = Some(object_ref(key));
    Some(v1::SessionPersistence { origin, ..session_of(&format!("{service}:{port}"), session) })
}

fn of_backend_policy(sources: &mut Sources<'_>, service: &ObjectKey, port: &str) -> Option<v1::BackendPolicy> {
    let (key, PolicySpec::Backend(policy)) = sources.policy(Kind::BackendPolicy, service, port)? else { return None };
    Some(v1::BackendPolicy {
        origin: Some(object_ref(key)),
        connect_timeout: policy.connect_timeout.map(duration),
        load_balancing: policy.load_balancing.as_ref().map(balancing::load_balancing),
        outlier_detection: policy.outlier_detection.as_ref().map(balancing::outlier_detection),
        request_timeout: policy.request_timeout.map(duration),
        backend_request_timeout: policy.backend_request_timeout.map(duration),
        response_timeout: policy.response_timeout.map(duration),
        stream_idle_timeout: policy.stream_idle.map(duration),
        connection_idle_timeout: policy.connection_idle.map(duration),
        retry_budget: policy.retry_budget.as_ref().map(resilience::retry_budget),
        circuit_breaker: policy.circuit_breaker.as_ref().map(resilience::circuit_breaker),
        limits: policy.limits.as_ref().map(resilience::limits),
    })
}

/// What policies add to a rule. What the route says itself stays.
pub(super) fn of_rule(sources: &mut Sources<'_>, route: &ObjectKey, rule: &str, action: &mut HttpAction) {
    if let Some((key, PolicySpec::Route(policy))) = sources.policy(Kind::RoutePolicy, route, rule) {
        action.policy = Some(object_ref(key));
        if action.request_timeout.is_none() {
            action.request_timeout = policy.request_timeout.map(duration);
            action.request_timeout_by_policy = action.request_timeout.is_some();
        }
        if action.backend_request_timeout.is_none() {
            action.backend_request_timeout = policy.backend_request_timeout.map(duration);
            action.backend_request_timeout_by_policy = action.backend_request_timeout.is_some();
        }
        action.response_timeout = policy.response_timeout.map(duration);
        action.stream_idle_timeout = policy.stream_idle.map(duration);
        if action.retry.is_none() {
            action.retry_policy = policy.retry.as_ref().map(resilience::retry);
        }
        action.hedging = policy.hedging.as_ref().map(resilience::hedging);
        action.direct_response = policy.direct_response.as_ref().map(static_answer);
        action.explain_headers = policy.explain_headers.iter().map(ToString::to_string).collect();
        action.fallback = policy.fallback.as_ref().map(|fallback| v1::Fallback {
            kind: Some(match fallback {
                Fallback::Answer(answer) => v1::fallback::Kind::Answer(static_answer(answer)),
                Fallback::Backend(target) => match destination::backend(sources, target) {
                    Ok(backend) => v1::fallback::Kind::Backend(backend),
                    Err(reason) => v1::fallback::Kind::Invalid(reason),
                },
            }),
        });
    }
    if let Some((key, PolicySpec::Fault(policy))) = sources.policy(Kind::FaultPolicy, route, rule) {
        action.faults = Some(faults(key, policy));
    }
}

fn faults(key: &ObjectKey, policy: &FaultPolicy) -> v1::Faults {
    let when = |condition: &FaultCondition| {
        Some(v1::FaultCondition { share: condition.share, matches: condition.matches.iter().map(match_of).collect() })
    };
    v1::Faults {
        origin: Some(object_ref(key)),
        delay: policy
            .delay
            .as_ref()
            .map(|(condition, delay)| v1::FaultDelay { when: when(condition), duration: Some(duration(*delay)) }),
        abort: policy
            .abort
            .as_ref()
            .map(|(condition, answer)| v1::FaultAbort { when: when(condition), answer: Some(static_answer(answer)) }),
    }
}

fn static_answer(answer: &StaticAnswer) -> v1::StaticAnswer {
    let header = |(name, value): &Header| v1::Header { name: name.to_string(), value: value.to_string() };
    v1::StaticAnswer {
        status: answer.status.into(),
        grpc_status: answer.grpc_status.into(),
        headers: answer.headers.iter().map(header).collect(),
        body: answer.body.as_bytes().to_vec(),
    }
}

/// What a workload's port accepts, if a policy says: of those for the Services that name it, the oldest.
pub(super) fn of_inbound(
    sources: &mut Sources<'_>,
    services: &BTreeSet<(ObjectKey, Arc<str>)>,
) -> Option<v1::InboundPolicy> {
    let world = sources.world;
    let key = world.policies.at_workload(&world.objects, services)?;
    sources.origin(key);
    let PolicySpec::Inbound(policy) = &model::policy(&world.objects, key)?.spec else { return None };
    let InboundPolicy { rate_limits, quiet, concurrency, max_connections, max_head, max_body } = policy;
    Some(v1::InboundPolicy {
        origin: Some(object_ref(key)),
        rate_limits: rate_limits.iter().map(rate_limit_of).collect(),
        quiet: *quiet,
        concurrency: concurrency.map(concurrency_of),
        max_connections: max_connections.unwrap_or_default(),
        max_head_bytes: max_head.unwrap_or_default(),
        max_body_bytes: max_body.unwrap_or_default(),
    })
}

fn rate_limit_of(limit: &RateLimit) -> v1::RateLimit {
    let (key, header) = match &limit.key {
        None => (rate_limit::Key::None, ""),
        Some(RateLimitKey::ClientIdentity) => (rate_limit::Key::ClientIdentity, ""),
        Some(RateLimitKey::SourceAddress) => (rate_limit::Key::SourceAddress, ""),
        Some(RateLimitKey::Header(name)) => (rate_limit::Key::Header, &**name),
    };
    v1::RateLimit {
        name: limit.name.to_string(),
        requests: limit.requests,
        per_seconds: limit.per,
        burst: limit.burst,
        matches: limit.matches.iter().map(match_of).collect(),
        key: key.into(),
        header: header.to_owned(),
    }
}

fn concurrency_of(concurrency: Concurrency) -> v1::Concurrency {
    let (mode, min, max) = match concurrency {
        Concurrency::Off => (Mode::Off, 0, 0),
        Concurrency::Fixed(limit) => (Mode::Fixed, 0, limit),
        Concurrency::Adaptive { min, max } => (Mode::Adaptive, min, max),
    };
    v1::Concurrency { mode: mode.into(), min, max }
}
