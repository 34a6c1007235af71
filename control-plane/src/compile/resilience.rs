//! Sections about calls that fail or take long, as they are sent to proxies.

use leno_proto::v1;

use super::http::duration;
use crate::model::resilience::{BackendLimits, CircuitBreaker, Hedging, RetryBudget, RetryPolicy};

pub(super) fn retry(policy: &RetryPolicy) -> v1::RetryPolicy {
    v1::RetryPolicy {
        attempts: policy.attempts,
        statuses: policy.statuses.iter().map(|status| u32::from(*status)).collect(),
        grpc_codes: policy.grpc_codes.clone(),
        connect_failure: policy.connect_failure,
        reset: policy.reset,
        try_timeout: policy.try_timeout,
        any_method: policy.any_method,
        backoff: Some(duration(policy.base)),
        max_backoff: Some(duration(policy.max)),
    }
}

pub(super) fn hedging(hedging: &Hedging) -> v1::Hedging {
    v1::Hedging {
        delay: hedging.delay.map(duration),
        percentile: hedging.percentile.unwrap_or(0),
        any_method: hedging.any_method,
    }
}

pub(super) fn circuit_breaker(breaker: &CircuitBreaker) -> v1::CircuitBreaker {
    v1::CircuitBreaker {
        consecutive_failures: breaker.consecutive_failures.unwrap_or(0),
        failure_percent: breaker.failure_percent.unwrap_or(0),
        window: Some(duration(breaker.window)),
        minimum_volume: breaker.minimum_volume,
        open: Some(duration(breaker.open_time)),
        max_open: Some(duration(breaker.max_open_time)),
        probes: breaker.probes,
        successes_to_close: breaker.successes,
    }
}

pub(super) fn limits(limits: &BackendLimits) -> v1::BackendLimits {
    v1::BackendLimits {
        connections: limits.connections,
        pending_requests: limits.pending_requests,
        requests: limits.requests,
        retries: limits.retries,
    }
}

pub(super) fn retry_budget(budget: &RetryBudget) -> v1::RetryBudget {
    v1::RetryBudget {
        percent: budget.percent,
        per_second: budget.per_second,
        burst: budget.burst,
        answer_unavailable: budget.answer_unavailable,
        origin: None,
        sliding: budget.sliding.as_ref().map(|sliding| v1::SlidingBudget {
            retries: sliding.retries,
            interval: Some(duration(sliding.interval)),
            window: Some(duration(sliding.window)),
        }),
    }
}
