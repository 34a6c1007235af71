//! A BackendPolicy as it is sent, into runtime form.

use leno_proto::v1;

use super::{Invalid, balancing, destination::object_text, parse_duration, resilience};
use crate::policy::BackendPolicy;

pub(super) fn parse(policy: Option<v1::BackendPolicy>) -> Result<BackendPolicy, Invalid> {
    let default = BackendPolicy::default();
    let Some(policy) = policy else { return Ok(default) };
    Ok(BackendPolicy {
        origin: policy.origin.as_ref().map(object_text),
        connect_timeout: parse_duration("connect_timeout", policy.connect_timeout)?.unwrap_or(default.connect_timeout),
        load_balancing: balancing::load_balancing(policy.load_balancing)
            .map_err(|invalid| invalid.within("load_balancing"))?,
        outlier_detection: balancing::outlier_detection(policy.outlier_detection)
            .map_err(|invalid| invalid.within("outlier_detection"))?,
        request_timeout: parse_duration("request_timeout", policy.request_timeout)?,
        response_timeout: parse_duration("response_timeout", policy.response_timeout)?,
        try_timeout: parse_duration("backend_request_timeout", policy.backend_request_timeout)?,
        stream_idle: parse_duration("stream_idle_timeout", policy.stream_idle_timeout)?,
        connection_idle: parse_duration("connection_idle_timeout", policy.connection_idle_timeout)?,
        budget_origin: policy.retry_budget.as_ref().and_then(|budget| budget.origin.as_ref()).map(object_text),
        retry_budget: policy
            .retry_budget
            .map(resilience::retry_budget)
            .transpose()
            .map_err(|invalid| invalid.within("retry_budget"))?
            .unwrap_or(default.retry_budget),
        breaker: policy
            .circuit_breaker
            .map(resilience::circuit_breaker)
            .transpose()
            .map_err(|invalid| invalid.within("circuit_breaker"))?,
        limits: policy.limits.map(resilience::bulkhead).unwrap_or_default(),
    })
}
