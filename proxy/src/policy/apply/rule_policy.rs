//! What policies add to a rule: faults, answers that are spelled out, fallbacks, sessions.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use leno_proto::{headers, pattern::Patterns, v1};

use super::{Backends, Invalid, destination::object_text, http::parse_match, parse_duration};
use crate::{
    config::limits,
    http::persistence::{Carrier, Persistence},
    policy::{
        RuleOrigin,
        fault::{Faults, When},
        http_route::Fallback,
        share::Share,
        static_answer::StaticAnswer,
    },
    telemetry::RouteMetrics,
};

/// What shares of faults are of.
const MILLION: u32 = 1_000_000;
/// The last status code of gRPC.
const GRPC_LAST: u32 = 16;

pub(super) fn faults(faults: v1::Faults, patterns: &mut Patterns) -> Result<Faults, Invalid> {
    let delay = faults.delay.map(|delay| {
        let duration = parse_duration("duration", delay.duration)?.unwrap_or(Duration::ZERO);
        Ok((when(delay.when, patterns)?, duration))
    });
    let abort = faults.abort.map(|abort| {
        let answer = abort.answer.ok_or_else(|| Invalid::new("answer", "missing"))?;
        Ok((when(abort.when, patterns)?, static_answer(answer).map_err(|invalid: Invalid| invalid.within("answer"))?))
    });
    Ok(Faults {
        origin: object_text(&faults.origin.unwrap_or_default()),
        delay: delay.transpose().map_err(|invalid: Invalid| invalid.within("delay"))?,
        abort: abort.transpose().map_err(|invalid: Invalid| invalid.within("abort"))?,
    })
}

fn when(condition: Option<v1::FaultCondition>, patterns: &mut Patterns) -> Result<When, Invalid> {
    let condition = condition.ok_or_else(|| Invalid::new("when", "missing"))?;
    let share = Share::new(condition.share, MILLION)
        .ok_or_else(|| Invalid::new("when.share", format!("{} is more than a million", condition.share)))?;
    let matches = condition.matches.into_iter().enumerate().map(|(index, one)| {
        parse_match(one, patterns).map_err(|invalid| invalid.within(format!("when.matches[{index}]")))
    });
    Ok(When { share, matches: matches.collect::<Result<_, _>>()? })
}

pub(super) fn static_answer(answer: v1::StaticAnswer) -> Result<StaticAnswer, Invalid> {
    let status = u16::try_from(answer.status).ok().filter(|status| (200..=599).contains(status));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.ok_or_else(|| Invalid::new("status", format!("{} is not 200 to 599", answer.status)))?;
    let grpc_status = u16::try_from(answer.grpc_status).ok().filter(|code| u32::from(*code) <= GRPC_LAST);
    let grpc_status = grpc_status
        .ok_or_else(|| Invalid::new("grpc_status", format!("{} is no status of gRPC", answer.grpc_status)))?;
    if answer.body.len() > limits::STATIC_BODY_BYTES {
        return Err(Invalid::new("body", format!("larger than {} bytes", limits::STATIC_BODY_BYTES)));
    }
    let mut fields = Vec::with_capacity(answer.headers.len());
    for (index, header) in answer.headers.into_iter().enumerate() {
        let at = |field: &str, reason: &str| Invalid::new(format!("headers[{index}].{field}"), reason);
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| at("name", "not a header name"))?;
        if headers::is_reserved(name.as_str()) {
            return Err(at("name", "the proxy's to set"));
        }
        let value = HeaderValue::from_bytes(header.value.as_bytes());
        fields.push((name, value.map_err(|_| at("value", "holds characters that no header may hold"))?));
    }
    Ok(StaticAnswer { status, grpc_status, headers: fields, body: answer.body.into() })
}

/// None: what it names cannot be resolved, which the policy's status says.
pub(super) fn fallback(
    service: &str,
    origin: &RuleOrigin,
    fallback: v1::Fallback,
    backends: &mut Backends<'_>,
) -> Result<Option<Fallback>, Invalid> {
    use v1::fallback::Kind;
    match fallback.kind {
        Some(Kind::Backend(reference)) => {
            let backend = backends.get(reference).map_err(|invalid| invalid.within("backend"))?;
            let metrics = RouteMetrics::outbound(service, &origin.route, &origin.rule, &backend.key);
            Ok(Some(Fallback::Backend(backend, metrics)))
        }
        Some(Kind::Answer(answer)) => {
            let answer = static_answer(answer).map_err(|invalid| invalid.within("answer"))?;
            Ok(Some(Fallback::Answer(answer)))
        }
        Some(Kind::Invalid(_)) => Ok(None),
        None => Err(Invalid::new("kind", "neither a backend nor an answer")),
    }
}

/// `scope`: the rule, or the backend, whose sessions they are.
pub(super) fn persistence(scope: &str, session: v1::SessionPersistence) -> Result<Persistence, Invalid> {
    let invalid = |field: &str, reason: String| Invalid::new(field, reason);
    let name = HeaderName::from_bytes(session.name.as_bytes())
        .map_err(|_| invalid("name", format!("{:?} is no name of a cookie or header", session.name)))?;
    let path = if session.path.is_empty() { "/".to_owned() } else { session.path };
    if path.bytes().any(|byte| !(b'!'..=b'~').contains(&byte) || byte == b';') {
        return Err(invalid("path", format!("{path:?} is no path of a cookie")));
    }
    let carrier = if session.header {
        if headers::is_reserved(name.as_str()) {
            return Err(invalid("name", format!("{name} is the proxy's to set")));
        }
        Carrier::Header(name.as_str().into())
    } else {
        // Of a cookie, letters in either case are different.
        Carrier::Cookie { name: session.name.into(), path: path.into(), permanent: session.permanent }
    };
    let lasting = |duration: Option<Duration>| duration.filter(|duration| !duration.is_zero());
    Ok(Persistence {
        carrier,
        absolute: lasting(parse_duration("absolute_timeout", session.absolute_timeout)?),
        idle: lasting(parse_duration("idle_timeout", session.idle_timeout)?),
        scope: scope.as_bytes().into(),
    })
}
