//! HTTP rules: matches and actions.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, Method, StatusCode};
use leno_proto::{
    pattern::{self, Pattern, Patterns},
    v1,
};

use super::{
    Backends, Invalid,
    destination::{object_text, parse_origin},
    filters, parse_duration, parse_kept_headers, resilience, rule_policy,
};
use crate::{
    policy::{
        HttpAction, HttpRoutes, WeightedBackends,
        http_match::{HeaderMatch, HttpMatch, PathMatch, QueryMatch, ValueMatch},
        http_route::{HttpBackend, HttpRule, RulePolicy},
        retry_policy::Retry,
    },
    telemetry::RouteMetrics,
};

/// Wait before the first retry, if the route does not say.
const BACKOFF: Duration = Duration::from_millis(25);

/// `before`: the port's rules in force.
pub(super) fn parse(
    service: &str,
    routes: v1::HttpRoutes,
    before: Option<&HttpRoutes>,
    backends: &mut Backends<'_>,
) -> Result<HttpRoutes, Invalid> {
    let mut patterns = Patterns::within(pattern::OF_RESOURCE);
    let mut actions = Vec::with_capacity(routes.actions.len());
    for (index, action) in routes.actions.into_iter().enumerate() {
        let action = parse_action(service, action, before, backends, &mut patterns);
        actions.push(Arc::new(action.map_err(|invalid| invalid.within(format!("actions[{index}]")))?));
    }
    let mut rules = Vec::with_capacity(routes.rules.len());
    for (index, rule) in routes.rules.into_iter().enumerate() {
        let rule = parse_rule(rule, &actions, &mut patterns);
        rules.push(rule.map_err(|invalid| invalid.within(format!("rules[{index}]")))?);
    }
    Ok(HttpRoutes { rules: rules.into() })
}

fn parse_rule(rule: v1::HttpRule, actions: &[Arc<HttpAction>], patterns: &mut Patterns) -> Result<HttpRule, Invalid> {
    let action = usize::try_from(rule.action).ok().and_then(|index| actions.get(index));
    let action = action.ok_or_else(|| Invalid::new("action", format!("there is no action {}", rule.action)))?;
    let wanted = rule.r#match.unwrap_or_default();
    let matches = parse_match(wanted, patterns).map_err(|invalid| invalid.within("match"))?;
    Ok(HttpRule { matches, action: action.clone() })
}

pub(super) fn parse_match(wanted: v1::HttpMatch, patterns: &mut Patterns) -> Result<HttpMatch, Invalid> {
    let path = parse_path(wanted.path, patterns).map_err(|invalid| invalid.within("path"))?;
    let mut headers = Vec::with_capacity(wanted.headers.len());
    for (index, header) in wanted.headers.into_iter().enumerate() {
        let at = |invalid: Invalid| invalid.within(format!("headers[{index}]"));
        let name = HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_| at(Invalid::new("name", format!("{:?} is not a header name", header.name))))?;
        headers.push(HeaderMatch { name, value: parse_value(header, patterns).map_err(at)? });
    }
    let mut query = Vec::with_capacity(wanted.query.len());
    for (index, parameter) in wanted.query.into_iter().enumerate() {
        let name = parameter.name.as_str().into();
        let value = parse_value(parameter, patterns).map_err(|invalid| invalid.within(format!("query[{index}]")))?;
        query.push(QueryMatch { name, value });
    }
    let method = match wanted.method.as_str() {
        "" => None,
        text => Some(
            Method::from_bytes(text.as_bytes())
                .map_err(|_| Invalid::new("method", format!("{text:?} is not a method")))?,
        ),
    };
    Ok(HttpMatch { path, headers: headers.into(), query: query.into(), method, grpc: wanted.grpc })
}

fn parse_path(path: Option<v1::PathMatch>, patterns: &mut Patterns) -> Result<PathMatch, Invalid> {
    use v1::path_match::Kind;
    let Some(path) = path else { return Ok(PathMatch::Any) };
    let absolute = |field: &str, text: &str| match text.starts_with('/') {
        true => Ok(()),
        false => Err(Invalid::new(field, format!("{text:?} does not begin with a slash"))),
    };
    match path.kind {
        Some(Kind::Exact(text)) => {
            absolute("exact", &text)?;
            Ok(PathMatch::Exact(text.into()))
        }
        Some(Kind::Prefix(text)) => {
            absolute("prefix", &text)?;
            Ok(PathMatch::prefix(&text))
        }
        Some(Kind::Regex(text)) => Ok(PathMatch::Regex(parse_regex(&text, patterns)?)),
        None => Err(unknown_kind()),
    }
}

fn parse_value(wanted: v1::NamedMatch, patterns: &mut Patterns) -> Result<ValueMatch, Invalid> {
    use v1::named_match::Kind;
    match wanted.kind {
        Some(Kind::Exact(text)) => Ok(ValueMatch::Exact(text.into_bytes().into())),
        Some(Kind::Regex(text)) => Ok(ValueMatch::Regex(parse_regex(&text, patterns)?)),
        None => Err(unknown_kind()),
    }
}

fn parse_regex(text: &str, patterns: &mut Patterns) -> Result<Arc<Pattern>, Invalid> {
    patterns.whole(text).map_err(|error| Invalid::new("regex", error))
}

fn unknown_kind() -> Invalid {
    Invalid::new("kind", "missing, or of a kind that this version of the proxy lacks")
}

fn parse_action(
    service: &str,
    action: v1::HttpAction,
    before: Option<&HttpRoutes>,
    backends: &mut Backends<'_>,
    patterns: &mut Patterns,
) -> Result<HttpAction, Invalid> {
    let origin = parse_origin(action.origin);
    let filters = filters::parse(service, &origin, action.filters, backends)?;
    let mut entries = Vec::with_capacity(action.backends.len());
    for (index, weighted) in action.backends.into_iter().enumerate() {
        let at = |invalid: Invalid| invalid.within(format!("backends[{index}]"));
        let backend = match weighted.kind {
            Some(v1::weighted_backend::Kind::Backend(reference)) => {
                Ok(backends.get(reference).map_err(|invalid| at(invalid.within("backend")))?)
            }
            Some(v1::weighted_backend::Kind::Invalid(reason)) => Err(reason),
            None => return Err(at(unknown_kind())),
        };
        let label = backend.as_ref().map_or("invalid", |backend| &*backend.key);
        let metrics = RouteMetrics::outbound(service, &origin.route, &origin.rule, label);
        let filters = filters::parse(service, &origin, weighted.filters, backends).map_err(at)?;
        let session_policy = weighted.session_persistence.as_ref().and_then(|session| session.origin.as_ref());
        let session_policy = session_policy.map(object_text);
        let session = weighted.session_persistence.map(|session| rule_policy::persistence(label, session));
        let persistence = session.transpose().map_err(|invalid| at(invalid.within("session_persistence")))?;
        let persistence = persistence.map(Box::new);
        entries.push((weighted.weight, HttpBackend { backend, filters, persistence, session_policy, metrics }));
    }
    let hedge = action.hedging.map(|hedging| {
        let before = before.and_then(|routes| routes.hedge(&origin));
        resilience::hedging(hedging, before)
    });
    let faults = action.faults.map(|faults| rule_policy::faults(faults, patterns));
    let direct_response = action.direct_response.map(rule_policy::static_answer);
    let fallback = action.fallback.map(|fallback| rule_policy::fallback(service, &origin, fallback, backends));
    let policy = action.policy.as_ref().map(|policy| RulePolicy {
        origin: object_text(policy),
        request_timeout: action.request_timeout_by_policy,
        try_timeout: action.backend_request_timeout_by_policy,
        retry: action.retry.is_none(),
    });
    let scope = format!("{} {}", origin.route, origin.rule);
    let persistence = action.session_persistence.map(|session| rule_policy::persistence(&scope, session));
    Ok(HttpAction {
        filters,
        backends: WeightedBackends::new(entries),
        request_timeout: parse_timeout("request_timeout", action.request_timeout)?,
        response_timeout: parse_timeout("response_timeout", action.response_timeout)?,
        try_timeout: parse_timeout("backend_request_timeout", action.backend_request_timeout)?,
        policy: policy.map(Box::new),
        retry: match (action.retry, action.retry_policy) {
            (Some(retry), _) => Some(parse_retry(retry).map_err(|invalid| invalid.within("retry"))?),
            (None, Some(policy)) => Some(resilience::retry(policy).map_err(|invalid| invalid.within("retry_policy"))?),
            (None, None) => None,
        },
        hedge: hedge.transpose().map_err(|invalid| invalid.within("hedging"))?,
        stream_idle: parse_duration("stream_idle_timeout", action.stream_idle_timeout)?.filter(|idle| !idle.is_zero()),
        faults: faults.transpose().map_err(|invalid| invalid.within("faults"))?.map(Box::new),
        direct_response: direct_response
            .transpose()
            .map_err(|invalid| invalid.within("direct_response"))?
            .map(Box::new),
        fallback: fallback.transpose().map_err(|invalid| invalid.within("fallback"))?.flatten().map(Box::new),
        persistence: persistence.transpose().map_err(|invalid| invalid.within("session_persistence"))?.map(Box::new),
        explain_headers: parse_kept_headers("explain_headers", action.explain_headers)?.into(),
        metrics: RouteMetrics::outbound(service, &origin.route, &origin.rule, ""),
        origin,
    })
}

/// Zero means none (GEP-1742), whatever else would be in force: as long as there is time.
fn parse_timeout(field: &str, duration: Option<prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    Ok(parse_duration(field, duration)?.map(|duration| if duration.is_zero() { Duration::MAX } else { duration }))
}

fn parse_retry(retry: v1::Retry) -> Result<Retry, Invalid> {
    let status = |(index, status): (usize, &u32)| {
        let known = u16::try_from(*status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let known = known.ok_or_else(|| Invalid::new(format!("statuses[{index}]"), format!("{status} is no status")));
        known.map(|status| status.as_u16())
    };
    let mut statuses = retry.statuses.iter().enumerate().map(status).collect::<Result<Vec<_>, _>>()?;
    statuses.sort_unstable();
    statuses.dedup();
    let backoff = parse_duration("backoff", retry.backoff)?.filter(|backoff| !backoff.is_zero()).unwrap_or(BACKOFF);
    Ok(Retry::of_route(statuses, retry.attempts, backoff))
}
