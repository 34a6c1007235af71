//! InboundPolicy.

use leno_proto::{pattern::Patterns, rate_limit};

use super::super::{FieldError, Wrong, http::http_match, refuse, value};
use crate::{
    api::{ConcurrencySpec, DurationText, InboundPolicySpec, RateLimitKeySpec, RateLimitSpec},
    model::policy::{Concurrency, InboundPolicy, RateLimit, RateLimitKey},
};

/// Rate limits of a policy, and matches of a limit.
const MAX_LIMITS: usize = 16;
const MAX_MATCHES: usize = 16;
/// Requests or connections at a time.
const MAX_AT_A_TIME: i64 = 1_000_000;
/// A request's head, of which the proxy itself takes no larger ones, and its body.
const HEAD_BYTES: (i64, i64) = (1024, 64 * 1024);
const BODY_BYTES: (i64, i64) = (1, 1 << 40);
/// The proxy's own bounds of the adaptive limit, where a policy says only one.
const DEFAULT_MIN: u32 = 100;
const DEFAULT_MAX: u32 = 10_000;

pub(super) fn inbound_policy(raw: &InboundPolicySpec) -> Result<InboundPolicy, Wrong> {
    let mut wrong = Wrong::default();
    wrong.note(value::at_most("spec.rateLimits", raw.rate_limits.len(), MAX_LIMITS));
    let mut patterns = value::patterns();
    let limits = raw.rate_limits.iter().take(MAX_LIMITS).enumerate();
    let limits = limits.map(|(index, one)| rate_limit(&format!("spec.rateLimits[{index}]"), one, &mut patterns));
    let rate_limits = wrong.note(Wrong::each(limits));
    for (index, one) in raw.rate_limits.iter().enumerate() {
        if raw.rate_limits.iter().take(index).any(|earlier| earlier.name == one.name) {
            wrong.add(format!("spec.rateLimits[{index}].name"), format!("{:?} is there twice", one.name));
        }
    }
    let concurrency = wrong.note(raw.concurrency.as_ref().map(|raw| concurrency("spec.concurrency", raw)).transpose());
    let max_connections =
        wrong.note(raw.max_connections.map(|most| at_a_time("spec.maxConnections", most)).transpose());
    let size = raw.request_size.as_ref();
    let number = |field: &str, given: Option<i64>, bounds: (i64, i64)| {
        given.map(|bytes| bytes_within(&format!("spec.requestSize.{field}"), bytes, bounds)).transpose()
    };
    let max_head = wrong.note(number("headBytes", size.and_then(|size| size.head_bytes), HEAD_BYTES));
    let max_body = wrong.note(number("bodyBytes", size.and_then(|size| size.body_bytes), BODY_BYTES));
    let max_head = max_head.and_then(|bytes| u32::try_from(bytes).ok());
    let quiet = !raw.rate_limit_headers.unwrap_or(true);
    wrong.or(InboundPolicy { rate_limits, quiet, concurrency, max_connections, max_head, max_body })
}

fn bytes_within(field: &str, bytes: i64, (least, most): (i64, i64)) -> Result<u64, FieldError> {
    match u64::try_from(bytes) {
        Ok(number) if (least..=most).contains(&bytes) => Ok(number),
        _ => refuse(field, format!("{bytes} is not between {least} and {most} bytes")),
    }
}

fn rate_limit(at: &str, raw: &RateLimitSpec, patterns: &mut Patterns) -> Result<RateLimit, Wrong> {
    let mut wrong = Wrong::default();
    wrong.note(value::label(&format!("{at}.name"), &raw.name));
    let requests = wrong.note(count(&format!("{at}.requests"), raw.requests).map(Some));
    let per = wrong.note(raw.per.as_ref().map_or(Ok(1), |text| seconds(&format!("{at}.per"), text)).map(Some));
    let burst = wrong.note(raw.burst.map_or(Ok(requests), |burst| count(&format!("{at}.burst"), burst).map(Some)));
    wrong.note(value::at_most(&format!("{at}.matches"), raw.matches.len(), MAX_MATCHES));
    let matches = raw.matches.iter().take(MAX_MATCHES).enumerate();
    let matches = matches.map(|(index, one)| http_match(&format!("{at}.matches[{index}]"), one, patterns));
    let matches = wrong.note(Wrong::each(matches));
    let key = wrong.note(raw.key.as_ref().map(|raw| key(&format!("{at}.key"), raw)).transpose());
    let (requests, per, burst) = (requests.unwrap_or(1), per.unwrap_or(1), burst.unwrap_or(1));
    if wrong.is_empty()
        && let Err((field, reason)) = rate_limit::rate(requests, per, burst)
    {
        wrong.add(format!("{at}.{field}"), reason);
    }
    wrong.or(RateLimit { name: raw.name.as_str().into(), requests, per, burst, matches, key })
}

fn count(field: &str, number: i64) -> Result<u32, FieldError> {
    match u32::try_from(number) {
        Ok(count) if count > 0 => Ok(count),
        _ => refuse(field, format!("{number} is not a number of requests (1 to {})", u32::MAX)),
    }
}

fn at_a_time(field: &str, number: i64) -> Result<u32, FieldError> {
    match u32::try_from(number) {
        Ok(count) if (1..=MAX_AT_A_TIME).contains(&number) => Ok(count),
        _ => refuse(field, format!("{number} is not between 1 and {MAX_AT_A_TIME}")),
    }
}

fn seconds(field: &str, text: &DurationText) -> Result<u32, FieldError> {
    let duration = value::duration(field, &text.0)?;
    let whole = duration.subsec_nanos() == 0 && (1..=u64::from(rate_limit::MAX_PER)).contains(&duration.as_secs());
    match u32::try_from(duration.as_secs()) {
        Ok(seconds) if whole => Ok(seconds),
        _ => refuse(
            field,
            format!("{:?} is not whole seconds from 1s to 24h; for less than a second write the number per 1s", text.0),
        ),
    }
}

fn key(at: &str, raw: &RateLimitKeySpec) -> Result<RateLimitKey, Wrong> {
    let header = format!("{at}.header");
    match raw.kind.as_str() {
        "ClientIdentity" | "SourceAddress" if raw.header.is_some() => {
            refuse(header, format!("only a key of type Header has one, not {:?}", raw.kind))
        }
        "ClientIdentity" => Ok(RateLimitKey::ClientIdentity),
        "SourceAddress" => Ok(RateLimitKey::SourceAddress),
        "Header" => match raw.header.as_deref() {
            None => refuse(header, "required: the name of the header that a key of type Header is"),
            Some(name) => match value::header_name(&header, name)? {
                name if name == "host" => refuse(header, "Host cannot be a key; a limit's matches can compare it"),
                name => Ok(RateLimitKey::Header(name.into())),
            },
        },
        other => refuse(format!("{at}.type"), format!("{other:?} is not one of ClientIdentity, SourceAddress, Header")),
    }
}

fn concurrency(at: &str, raw: &ConcurrencySpec) -> Result<Concurrency, Wrong> {
    let mut wrong = Wrong::default();
    let mode = raw.mode.as_deref().unwrap_or("Adaptive");
    let fields = [("limit", raw.limit, "Fixed"), ("min", raw.min, "Adaptive"), ("max", raw.max, "Adaptive")];
    for (field, given, of) in fields {
        if given.is_some() && mode != of {
            wrong.add(format!("{at}.{field}"), format!("only mode {of} has it, not {mode:?}"));
        }
    }
    let mut number = |field: &str, given: Option<i64>| {
        wrong.note(given.map(|number| at_a_time(&format!("{at}.{field}"), number)).transpose())
    };
    let (limit, min, max) = (number("limit", raw.limit), number("min", raw.min), number("max", raw.max));
    match mode {
        "Off" => wrong.or(Concurrency::Off),
        "Fixed" => {
            if raw.limit.is_none() {
                wrong.add(format!("{at}.limit"), "required: how many requests mode Fixed allows at a time");
            }
            wrong.or(Concurrency::Fixed(limit.unwrap_or(1)))
        }
        "Adaptive" => {
            let (least, most) = (min.unwrap_or(DEFAULT_MIN), max.unwrap_or(DEFAULT_MAX));
            // A bound that is left out gives way to the one that is said.
            let (least, most) = match (min, max) {
                (Some(_), None) => (least, most.max(least)),
                (None, Some(_)) => (least.min(most), most),
                _ => (least, most),
            };
            if least > most {
                wrong.add(format!("{at}.min"), format!("{least} is more than max, {most}"));
            }
            wrong.or(Concurrency::Adaptive { min: least, max: most })
        }
        other => {
            wrong.add(format!("{at}.mode"), format!("{other:?} is not one of Adaptive, Fixed, Off"));
            wrong.or(Concurrency::Off)
        }
    }
}
