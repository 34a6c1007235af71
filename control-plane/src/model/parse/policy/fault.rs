//! FaultPolicy.

use std::time::Duration;

use leno_proto::pattern::Patterns;

use super::{
    super::{FieldError, Wrong, http::http_match, refuse, value},
    duration_within, static_answer,
};
use crate::{
    api::{FaultAbort, FaultDelay, FaultPolicySpec, RequestMatch},
    model::policy::{FaultCondition, FaultPolicy, StaticAnswer},
};

/// Shortest and longest delay.
const DELAY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(120));
const MAX_MATCHES: usize = 16;
/// What shares are of.
const MILLION: f64 = 1_000_000.0;

pub(super) fn fault_policy(raw: &FaultPolicySpec) -> Result<FaultPolicy, Wrong> {
    let mut wrong = Wrong::default();
    if raw.delay.is_none() && raw.abort.is_none() {
        wrong.add("spec", "says neither delay nor abort: it does nothing");
    }
    let mut patterns = value::patterns();
    let delay = wrong.note(raw.delay.as_ref().map(|raw| delay(raw, &mut patterns)).transpose());
    let abort = wrong.note(raw.abort.as_ref().map(|raw| abort(raw, &mut patterns)).transpose());
    wrong.or(FaultPolicy { delay, abort })
}

fn delay(raw: &FaultDelay, patterns: &mut Patterns) -> Result<(FaultCondition, Duration), Wrong> {
    let mut wrong = Wrong::default();
    let duration = wrong.note(duration_within("spec.delay.duration", &raw.duration, DELAY));
    match condition("spec.delay", raw.percentage, &raw.matches, patterns) {
        Ok(condition) => wrong.or((condition, duration)),
        Err(other) => {
            wrong.note::<()>(Err(other));
            Err(wrong)
        }
    }
}

fn abort(raw: &FaultAbort, patterns: &mut Patterns) -> Result<(FaultCondition, StaticAnswer), Wrong> {
    let mut wrong = Wrong::default();
    if raw.http_status.is_none() && raw.grpc_status.is_none() {
        wrong.add("spec.abort", "needs httpStatus, grpcStatus or both");
    }
    let at = |field: &str| format!("spec.abort.{field}");
    let named = raw.grpc_status.as_deref();
    let grpc_status = named.map(|name| wrong.note(static_answer::grpc_status(&at("grpcStatus"), name)));
    let status = raw.http_status.map(|status| wrong.note(static_answer::status(&at("httpStatus"), status)));
    let answer = StaticAnswer {
        status: status.or_else(|| grpc_status.map(leno_proto::grpc::to_http)).unwrap_or(500),
        grpc_status: grpc_status.or_else(|| status.map(leno_proto::grpc::of_http)).unwrap_or(2),
        headers: Vec::new(),
        body: "leno: a fault made on purpose\n".into(),
    };
    match condition("spec.abort", raw.percentage, &raw.matches, patterns) {
        Ok(condition) => wrong.or((condition, answer)),
        Err(other) => {
            wrong.note::<()>(Err(other));
            Err(wrong)
        }
    }
}

fn condition(
    at: &str,
    percentage: Option<f64>,
    matches: &[RequestMatch],
    patterns: &mut Patterns,
) -> Result<FaultCondition, Wrong> {
    let mut wrong = Wrong::default();
    let share = wrong.note(share(&format!("{at}.percentage"), percentage.unwrap_or(100.0)));
    wrong.note(value::at_most(&format!("{at}.matches"), matches.len(), MAX_MATCHES));
    let matches = matches.iter().enumerate();
    let matches = matches.map(|(index, one)| http_match(&format!("{at}.matches[{index}]"), one, patterns));
    let matches = wrong.note(Wrong::each(matches));
    wrong.or(FaultCondition { share, matches })
}

/// A percentage as a share of a million: to four places.
fn share(field: &str, percentage: f64) -> Result<u32, FieldError> {
    let share = (percentage / 100.0 * MILLION).round();
    if !(0.0..=MILLION).contains(&share) {
        return refuse(field, format!("{percentage} is not between 0 and 100"));
    }
    if (share - percentage / 100.0 * MILLION).abs() > 1e-3 {
        return refuse(field, format!("{percentage} has more than four places after the point"));
    }
    // Checked above: a whole number up to a million.
    Ok(share as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_four_places() {
        for (percentage, expected) in [(0.0, 0), (100.0, 1_000_000), (0.0001, 1), (33.3333, 333_333), (12.5, 125_000)] {
            assert_eq!(share("f", percentage).unwrap(), expected, "{percentage}");
        }
        for percentage in [-1.0, 100.1, 0.00005, f64::NAN, f64::INFINITY] {
            assert!(share("f", percentage).is_err(), "{percentage}");
        }
    }
}
