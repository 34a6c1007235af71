//! Sections about calls that fail or take long, into runtime form. What is sent has its defaults filled in; what no
//! control plane would send is refused.

use std::{sync::Arc, time::Duration};

use leno_proto::v1;

use super::{Invalid, parse_duration};
use crate::{
    config::limits,
    policy::{
        hedging::Hedge,
        retry_policy::{Backoff, Retry, Whom},
    },
    upstream::{breaker, budget, bulkhead},
};

pub(super) fn retry(policy: v1::RetryPolicy) -> Result<Retry, Invalid> {
    let status = |(index, status): (usize, &u32)| match u16::try_from(*status) {
        Ok(code) if (400..600).contains(&code) => Ok(code),
        _ => Err(Invalid::new(format!("statuses[{index}]"), format!("{status} is not from 400 to 599"))),
    };
    let mut statuses = policy.statuses.iter().enumerate().map(status).collect::<Result<Vec<_>, _>>()?;
    statuses.sort_unstable();
    statuses.dedup();
    let mut grpc = 0_u32;
    for (index, code) in policy.grpc_codes.iter().enumerate() {
        let bit = 1_u32.checked_shl(*code).filter(|_| *code != 0);
        grpc |=
            bit.ok_or_else(|| Invalid::new(format!("grpc_codes[{index}]"), format!("{code} is no failure's code")))?;
    }
    let whom = |wanted: bool| match (wanted, policy.any_method) {
        (false, _) => Whom::None,
        (true, false) => Whom::Repeatable,
        (true, true) => Whom::Any,
    };
    let base = required("backoff", policy.backoff)?;
    let cap = required("max_backoff", policy.max_backoff)?;
    if cap < base || cap > limits::RETRY_WAIT {
        return Err(Invalid::new("max_backoff", format!("{cap:?} is not from {base:?} to {:?}", limits::RETRY_WAIT)));
    }
    Ok(Retry {
        statuses,
        any_method: policy.any_method,
        grpc,
        connect: policy.connect_failure,
        reset: whom(policy.reset),
        try_timeout: whom(policy.try_timeout),
        attempts: policy.attempts,
        backoff: Backoff { base, cap, full_jitter: true },
    })
}

/// `before`: that of the rule's version in force.
pub(super) fn hedging(hedging: v1::Hedging, before: Option<&Hedge>) -> Result<Hedge, Invalid> {
    let delay = parse_duration("delay", hedging.delay)?;
    let quantile = match hedging.percentile {
        0 => None,
        percent @ 1..=99 => Some(percent),
        other => return Err(Invalid::new("percentile", format!("{other} is not from 1 to 99"))),
    };
    if delay.is_none() && quantile.is_none() {
        return Err(Invalid::new("delay", "neither delay nor percentile"));
    }
    let new = Hedge { delay, quantile, any_method: hedging.any_method, latencies: Arc::default() };
    Ok(match before {
        Some(before) => new.taking_over(before),
        None => new,
    })
}

pub(super) fn circuit_breaker(breaker: v1::CircuitBreaker) -> Result<Arc<breaker::Settings>, Invalid> {
    let some = |number: u32| (number > 0).then_some(number);
    let settings = breaker::Settings {
        consecutive: some(breaker.consecutive_failures),
        percent: some(breaker.failure_percent),
        window: required("window", breaker.window)?,
        minimum_volume: breaker.minimum_volume,
        open: required("open", breaker.open)?,
        open_max: required("max_open", breaker.max_open)?,
        probes: breaker.probes,
        successes: breaker.successes_to_close,
    };
    if settings.consecutive.is_none() && settings.percent.is_none() {
        return Err(Invalid::new("failure_percent", "neither consecutive_failures nor failure_percent"));
    }
    if settings.percent.is_some_and(|percent| percent > 100) {
        return Err(Invalid::new("failure_percent", "more than 100"));
    }
    for (field, number) in [("probes", settings.probes), ("successes_to_close", settings.successes)] {
        some(number).ok_or_else(|| Invalid::new(field, "none"))?;
    }
    if settings.open_max < settings.open {
        return Err(Invalid::new("max_open", "shorter than open"));
    }
    Ok(Arc::new(settings))
}

pub(super) fn bulkhead(limits: v1::BackendLimits) -> bulkhead::Limits {
    bulkhead::Limits {
        connections: limits.connections,
        pending: limits.pending_requests,
        requests: limits.requests,
        retries: limits.retries,
    }
}

pub(super) fn retry_budget(budget: v1::RetryBudget) -> Result<budget::Settings, Invalid> {
    let sliding = budget.sliding.map(|sliding| {
        let (interval, window) = (required("interval", sliding.interval)?, required("window", sliding.window)?);
        Ok(budget::Sliding { retries: sliding.retries, interval, window })
    });
    Ok(budget::Settings {
        percent: budget.percent,
        per_second: budget.per_second,
        burst: budget.burst,
        answer_unavailable: budget.answer_unavailable,
        sliding: sliding.transpose().map_err(|invalid: Invalid| invalid.within("sliding"))?,
    })
}

fn required(field: &str, duration: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let duration = parse_duration(field, duration)?.filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| Invalid::new(field, "missing"))
}
