//! Sections about calls that fail or take long.

use std::time::Duration;

use leno_proto::grpc;

use super::{
    super::{FieldError, Wrong, http::MAX_WAIT, persistence::persistence, refuse, value},
    duration_within,
};
use crate::{
    api::{self, DurationText, Methods, RetryCause},
    model::{
        policy::TrafficPolicy,
        resilience::{BackendLimits, CircuitBreaker, Hedging, RetryBudget, RetryPolicy, SlidingBudget},
    },
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A whole number within bounds, both included.
fn whole(field: &str, number: i64, least: u32, most: u32) -> Result<u32, FieldError> {
    match u32::try_from(number) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => refuse(field, format!("{number} is not between {least} and {most}")),
    }
}

/// Optional fields of one section, noting what is wrong.
struct Section<'a> {
    at: &'a str,
    wrong: Wrong,
}

impl Section<'_> {
    fn number(&mut self, field: &str, number: Option<i64>, (least, most): (u32, u32)) -> Option<u32> {
        let parsed = number.map(|number| whole(&format!("{}.{field}", self.at), number, least, most));
        self.wrong.note(parsed.transpose())
    }

    fn duration(&mut self, field: &str, text: Option<&DurationText>, bounds: (Duration, Duration)) -> Option<Duration> {
        let parsed = text.map(|text| duration_within(&format!("{}.{field}", self.at), text, bounds));
        self.wrong.note(parsed.transpose())
    }
}

pub(super) fn retry(raw: &api::RouteRetry) -> Result<RetryPolicy, Wrong> {
    let mut section = Section { at: "spec.retry", wrong: Wrong::default() };
    let attempts = section.number("attempts", raw.attempts, (0, 10)).unwrap_or(2);
    let backoff = raw.backoff.clone().unwrap_or_default();
    let base = section.duration("backoff.base", backoff.base.as_ref(), (MS, MAX_WAIT)).unwrap_or(25 * MS);
    let max =
        section.duration("backoff.max", backoff.max.as_ref(), (base, MAX_WAIT)).unwrap_or_else(|| SECOND.max(base));
    let Section { mut wrong, .. } = section;
    let statuses = wrong.note(statuses(raw.statuses.as_deref()));
    let grpc_codes = wrong.note(grpc_codes(raw.grpc_codes.as_deref()));
    let has = |cause: RetryCause| raw.on.as_ref().is_none_or(|on| on.contains(&cause));
    wrong.or(RetryPolicy {
        attempts,
        statuses,
        grpc_codes,
        connect_failure: has(RetryCause::ConnectFailure),
        reset: has(RetryCause::Reset),
        try_timeout: has(RetryCause::TryTimeout),
        any_method: raw.methods == Some(Methods::Any),
        base,
        max,
    })
}

fn statuses(raw: Option<&[api::StatusText]>) -> Result<Vec<u16>, Wrong> {
    let gateway_error = || vec![502, 503, 504];
    let Some(raw) = raw else { return Ok(gateway_error()) };
    value::at_most("spec.retry.statuses", raw.len(), 32)?;
    let codes = Wrong::each(raw.iter().enumerate().map(|(index, text)| {
        let wrong = |reason: String| refuse(format!("spec.retry.statuses[{index}]"), reason).map_err(FieldError::into);
        match text.0.as_str() {
            "5xx" => Ok((500..600).collect()),
            "gateway-error" => Ok(gateway_error()),
            text => match text.parse::<u16>() {
                Ok(code) if value::is_clients_fault(code) => {
                    wrong(format!("{code} is the client's own fault: it is never tried again"))
                }
                Ok(code) if (400..600).contains(&code) => Ok(vec![code]),
                _ => wrong(format!("{text:?} is not a status from 400 to 599, 5xx or gateway-error")),
            },
        }
    }))?;
    let mut codes = codes.concat();
    codes.sort_unstable();
    codes.dedup();
    Ok(codes)
}

fn grpc_codes(raw: Option<&[String]>) -> Result<Vec<u32>, Wrong> {
    let Some(raw) = raw else { return Ok(vec![14]) };
    value::at_most("spec.retry.grpcCodes", raw.len(), 16)?;
    let mut codes = Wrong::each(raw.iter().enumerate().map(|(index, name)| {
        let wrong = |reason: String| refuse(format!("spec.retry.grpcCodes[{index}]"), reason).map_err(FieldError::into);
        match grpc::code(name) {
            Some(0) => wrong("OK is no failure".to_owned()),
            Some(3 | 5 | 7 | 16) => wrong(format!("{name} is the client's own fault: it is never tried again")),
            Some(code) => Ok(code.into()),
            None => wrong(format!("{name:?} is not the name of a gRPC code, such as UNAVAILABLE")),
        }
    }))?;
    codes.sort_unstable();
    codes.dedup();
    Ok(codes)
}

pub(super) fn hedging(raw: &api::RouteHedging) -> Result<Hedging, Wrong> {
    let mut section = Section { at: "spec.hedging", wrong: Wrong::default() };
    let delay = section.duration("delay", raw.delay.as_ref(), (MS, MINUTE));
    let percentile = section.number("percentile", raw.percentile, (50, 99));
    let percentile = if raw.delay.is_none() { percentile.or(Some(95)) } else { percentile };
    section.wrong.or(Hedging { delay, percentile, any_method: raw.methods == Some(Methods::Any) })
}

pub(super) fn circuit_breaker(raw: &api::CircuitBreaker) -> Result<CircuitBreaker, Wrong> {
    let mut section = Section { at: "spec.circuitBreaker", wrong: Wrong::default() };
    let consecutive_failures = section.number("consecutiveFailures", raw.consecutive_failures, (1, 1000));
    let failure_percent = section.number("failurePercent", raw.failure_percent, (1, 100));
    let neither = raw.consecutive_failures.is_none() && raw.failure_percent.is_none();
    let failure_percent = if neither { Some(50) } else { failure_percent };
    let window = section.duration("window", raw.window.as_ref(), (SECOND, 10 * MINUTE)).unwrap_or(10 * SECOND);
    let minimum_volume = section.number("minimumVolume", raw.minimum_volume, (1, 100_000)).unwrap_or(20);
    let open_time = section.duration("openTime", raw.open_time.as_ref(), (10 * MS, 10 * MINUTE)).unwrap_or(5 * SECOND);
    let max_open_time = section.duration("maxOpenTime", raw.max_open_time.as_ref(), (open_time, 60 * MINUTE));
    let probes = section.number("probes", raw.probes, (1, 100)).unwrap_or(1);
    let successes = section.number("successesToClose", raw.successes_to_close, (1, 100)).unwrap_or(1);
    section.wrong.or(CircuitBreaker {
        consecutive_failures,
        failure_percent,
        window,
        minimum_volume,
        open_time,
        max_open_time: max_open_time.unwrap_or_else(|| MINUTE.max(open_time)),
        probes,
        successes,
    })
}

pub(super) fn limits(raw: &api::BackendLimits) -> Result<BackendLimits, Wrong> {
    let mut section = Section { at: "spec.limits", wrong: Wrong::default() };
    let some = (1, 1_000_000);
    let connections = section.number("connections", raw.connections, some);
    let pending_requests = section.number("pendingRequests", raw.pending_requests, some);
    let requests = section.number("requests", raw.requests, some);
    let retries = section.number("retries", raw.retries, (0, 1_000_000));
    section.wrong.or(BackendLimits { connections, pending_requests, requests, retries })
}

pub(super) fn retry_budget(raw: &api::RetryBudget) -> Result<RetryBudget, Wrong> {
    let mut section = Section { at: "spec.retryBudget", wrong: Wrong::default() };
    let percent = section.number("percent", raw.percent, (0, 1000)).unwrap_or(20);
    let per_second = section.number("minPerSecond", raw.min_per_second, (0, 1_000_000)).unwrap_or(10);
    let burst = section.number("burst", raw.burst, (1, 1_000_000)).unwrap_or_else(|| per_second.max(100));
    section.wrong.or(RetryBudget { percent, per_second, burst, answer_unavailable: false, sliding: None })
}

/// Gateway API's XBackendTrafficPolicy.
pub(super) fn traffic_policy(raw: &api::BackendTrafficPolicySpec) -> Result<TrafficPolicy, Wrong> {
    let mut wrong = Wrong::default();
    let retry_budget = wrong.note(raw.retry_constraint.as_ref().map(retry_constraint).transpose());
    let session = raw.session_persistence.as_ref().map(|raw| persistence("spec.sessionPersistence", raw));
    let session_persistence = wrong.note(session.transpose());
    wrong.or(TrafficPolicy { retry_budget, session_persistence })
}

/// Kept as it is said; a share and a trickle for proxies that know nothing else, which round up to whole retries a second.
fn retry_constraint(raw: &api::RetryConstraint) -> Result<RetryBudget, Wrong> {
    let mut section = Section { at: "spec.retryConstraint", wrong: Wrong::default() };
    let intervals = (SECOND, 60 * MINUTE);
    let budget = raw.budget.clone().unwrap_or_default();
    let percent = section.number("budget.percent", budget.percent, (0, 100)).unwrap_or(20);
    let window = section.duration("budget.interval", budget.interval.as_ref(), intervals).unwrap_or(10 * SECOND);
    let rate = raw.min_retry_rate.clone().unwrap_or_default();
    let count = section.number("minRetryRate.count", rate.count, (1, 1_000_000)).unwrap_or(10);
    let interval = section.duration("minRetryRate.interval", rate.interval.as_ref(), intervals).unwrap_or(SECOND);
    let per_second = u64::from(count).div_ceil(interval.as_secs().max(1));
    let per_second = u32::try_from(per_second).unwrap_or(u32::MAX);
    let sliding = Some(SlidingBudget { retries: count, interval, window });
    section.wrong.or(RetryBudget { percent, per_second, burst: per_second.max(100), answer_unavailable: true, sliding })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn reasons<T: std::fmt::Debug>(parsed: Result<T, Wrong>) -> Vec<String> {
        parsed.unwrap_err().0.into_iter().map(|error| format!("{}: {}", error.field, error.reason)).collect()
    }

    #[test]
    fn an_empty_section_has_the_defaults() {
        let policy = retry(&from_value(json!({})).unwrap()).unwrap();
        assert_eq!((policy.attempts, policy.statuses, policy.grpc_codes), (2, vec![502, 503, 504], vec![14]));
        assert!(policy.connect_failure && policy.reset && policy.try_timeout && !policy.any_method);
        let breaker = circuit_breaker(&from_value(json!({})).unwrap()).unwrap();
        assert_eq!((breaker.failure_percent, breaker.consecutive_failures), (Some(50), None));
        assert_eq!(hedging(&from_value(json!({})).unwrap()).unwrap().percentile, Some(95));
        let budget = retry_budget(&from_value(json!({"minPerSecond": 500})).unwrap()).unwrap();
        assert_eq!((budget.percent, budget.burst), (20, 500));
        assert_eq!(limits(&from_value(json!({})).unwrap()).unwrap(), BackendLimits::default());
        let target = json!([{"group": "", "kind": "Service", "name": "shop"}]);
        let traffic =
            json!({"targetRefs": target, "retryConstraint": {"minRetryRate": {"count": 300, "interval": "2s"}}});
        let budget = traffic_policy(&from_value(traffic).unwrap()).unwrap().retry_budget.unwrap();
        assert_eq!((budget.percent, budget.per_second, budget.burst), (20, 150, 150));
        assert!(budget.answer_unavailable);
        let seldom = json!({"targetRefs": target, "retryConstraint": {
            "budget": {"interval": "30s"}, "minRetryRate": {"count": 1, "interval": "10m"},
        }});
        let sliding = traffic_policy(&from_value(seldom).unwrap()).unwrap().retry_budget.unwrap().sliding;
        assert_eq!(sliding, Some(SlidingBudget { retries: 1, interval: 10 * MINUTE, window: 30 * SECOND }));
    }

    #[test]
    fn statuses_are_codes_and_classes() {
        let parse = |statuses: Value| retry(&from_value(json!({ "statuses": statuses })).unwrap());
        assert_eq!(parse(json!([429, "gateway-error", "503"])).unwrap().statuses, [429, 502, 503, 504]);
        assert_eq!(parse(json!(["5xx"])).unwrap().statuses.len(), 100);
        assert_eq!(parse(json!([])).unwrap().statuses, [0_u16; 0]);
        let wrong = reasons(parse(json!(["404", "200", "4xx"])));
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong[0].starts_with("spec.retry.statuses[0]: 404 is the client's own fault"), "{wrong:?}");
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        for (section, expected) in [
            (json!({"attempts": 11}), "spec.retry.attempts: 11 is not between 0 and 10"),
            (json!({"attempts": -1}), "spec.retry.attempts: -1 is not"),
            (json!({"attempts": 99999999999_i64}), "spec.retry.attempts: 99999999999 is not"),
            (
                json!({"backoff": {"base": "2s", "max": "1s"}}),
                "spec.retry.backoff.max: \"1s\" is not between 2s and 10s",
            ),
            (json!({"grpcCodes": ["NOT_FOUND"]}), "spec.retry.grpcCodes[0]: NOT_FOUND is the client's own"),
            (json!({"grpcCodes": ["unavailable"]}), "spec.retry.grpcCodes[0]: \"unavailable\" is not the name"),
        ] {
            let wrong = reasons(retry(&from_value(section).unwrap()));
            assert!(wrong[0].starts_with(expected), "{wrong:?}");
        }
        let wrong = reasons(circuit_breaker(
            &from_value(json!({"failurePercent": 101, "openTime": "0s", "window": "1h", "probes": 0})).unwrap(),
        ));
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        let wrong = reasons(limits(&from_value(json!({"requests": 0, "connections": -5})).unwrap()));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(from_value::<api::RouteRetry>(json!({"on": ["Sometimes"]})).is_err());
        assert!(from_value::<api::RouteRetry>(json!({"methods": "POST"})).is_err());
    }
}
