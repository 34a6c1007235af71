//! HTTPRoute and GRPCRoute: both become HTTP rules, since gRPC is HTTP/2 with a fixed form of path.

use std::{cell::RefCell, cmp::Reverse, collections::HashSet, sync::Arc, time::Duration};

use leno_proto::pattern::Patterns;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    FieldError, Wrong,
    filter::{self, Place, RawFilter},
    persistence::persistence,
    refuse,
    route::{self, Context, RawBackendRef, RawParentRef},
    typed, value,
};
use crate::{
    api::{NamedValue, PathValue, RequestMatch, SessionPersistenceSpec},
    model::object::{Backend, HttpFilter, HttpMatch, HttpRule, PathMatch, PathRank, Precedence, Retry, ValueMatch},
};

/// As Gateway API limits them.
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_MATCHES_OF_ALL: usize = 128;
const MAX_VALUES: usize = 16;
/// Bytes of a query parameter's name, and of what a header or parameter is compared with.
const MAX_PARAMETER: usize = 256;
const MAX_VALUE: usize = 4096;
/// Of a retry that does not say how often.
const DEFAULT_ATTEMPTS: i64 = 1;
/// Longest wait between two tries, whoever asks for it; the proxy waits no longer.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(10);

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

// ---- HTTPRoute ----------------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawHttpSpec {
    #[serde(default)]
    pub(super) parent_refs: Vec<RawParentRef>,
    /// Of no meaning for a Service (GEP-1294).
    #[serde(default, rename = "hostnames")]
    _hostnames: Vec<String>,
    pub(super) rules: Option<Vec<RawHttpRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawHttpRule {
    name: Option<String>,
    #[serde(default)]
    matches: Vec<RequestMatch>,
    #[serde(default)]
    filters: Vec<RawFilter>,
    #[serde(default)]
    backend_refs: Vec<RawBackendRef>,
    timeouts: Option<RawTimeouts>,
    retry: Option<RawRetry>,
    session_persistence: Option<SessionPersistenceSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTimeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Deserialize)]
struct RawRetry {
    #[serde(default)]
    codes: Vec<i64>,
    attempts: Option<i64>,
    backoff: Option<String>,
}

pub(super) fn http_rules(context: &mut Context<'_>, raw: Option<Vec<RawHttpRule>>) -> Result<Vec<HttpRule>, Wrong> {
    // Absent rules: one that matches everything, and has no backend (HTTPRouteSpec).
    let raw = raw.unwrap_or_else(|| {
        let everything = RawHttpRule {
            name: None,
            matches: vec![],
            filters: vec![],
            backend_refs: vec![],
            timeouts: None,
            retry: None,
            session_persistence: None,
        };
        vec![everything]
    });
    value::at_most("spec.rules", raw.len(), MAX_RULES)?;
    let rules = Wrong::each(raw.iter().enumerate().map(|(index, rule)| http_rule(context, index, rule)))?;
    whole(rules, raw.iter().map(|rule| rule.name.as_deref()))
}

/// Rules in place of those of an HTTPRoute that is bad: see [`stand_ins`].
pub(super) fn http_stand_ins(spec: &Value, backends: &[Backend]) -> Vec<HttpRule> {
    let patterns = RefCell::new(value::patterns());
    let parse = |at: &str, raw: &RequestMatch| http_match(at, raw, &mut patterns.borrow_mut());
    stand_ins(spec, backends, &RequestMatch::default(), parse, || patterns.borrow().exceeded())
}

/// The same of a GRPCRoute.
pub(super) fn grpc_stand_ins(spec: &Value, backends: &[Backend]) -> Vec<HttpRule> {
    let patterns = RefCell::new(value::patterns());
    let parse = |at: &str, raw: &RawGrpcMatch| grpc_match(at, raw, &mut patterns.borrow_mut());
    stand_ins(spec, backends, &RawGrpcMatch::default(), parse, || patterns.borrow().exceeded())
}

/// One rule for each, with nothing but those of its matches that can be read. One of which none is left, or that takes everything, matches
/// what no author's rule does: whatever it was about is not served as if it were not there, and nobody else's traffic is taken for it.
fn stand_ins<R: DeserializeOwned>(
    spec: &Value,
    backends: &[Backend],
    any: &R,
    parse: impl Fn(&str, &R) -> Result<HttpMatch, Wrong> + Copy,
    too_much: impl Fn() -> bool,
) -> Vec<HttpRule> {
    let rule = |index: usize, matches: Vec<HttpMatch>| HttpRule {
        name: index.to_string().into(),
        matches,
        filters: Vec::new(),
        backends: backends.to_vec(),
        request_timeout: None,
        backend_request_timeout: None,
        retry: None,
        session_persistence: None,
    };
    let below_all = |mut one: HttpMatch| {
        if one.takes_everything() {
            one.precedence.kind = PathRank::Rest;
        }
        one
    };
    let the_rest = || -> Vec<HttpMatch> { parse("", any).map(below_all).into_iter().collect() };
    let raw = spec.get("rules").and_then(Value::as_array).filter(|rules| rules.len() <= MAX_RULES);
    let Some(raw) = raw else { return vec![rule(0, the_rest())] };
    let readable = |raw: &Value| -> Vec<HttpMatch> {
        let one = |stated: &Value| typed::<R>(stated).ok().and_then(|(raw, _)| parse("", &raw).ok()).map(below_all);
        match raw.get("matches") {
            Some(Value::Array(stated)) if stated.len() <= MAX_MATCHES => stated.iter().filter_map(one).collect(),
            Some(_) | None => Vec::new(),
        }
    };
    let matches = |raw: &Value| Some(readable(raw)).filter(|matches| !matches.is_empty()).unwrap_or_else(the_rest);
    let rules: Vec<HttpRule> = raw.iter().enumerate().map(|(index, raw)| rule(index, matches(raw))).collect();
    match rules.iter().map(|rule| rule.matches.len()).sum::<usize>() {
        // Of matches that could be read, some were not: nobody is to pass by them.
        0..=MAX_MATCHES_OF_ALL if !too_much() => rules,
        _ => vec![rule(0, the_rest())],
    }
}

/// What holds for the rules of a route together.
fn whole<'a>(rules: Vec<HttpRule>, names: impl Iterator<Item = Option<&'a str>>) -> Result<Vec<HttpRule>, Wrong> {
    let mut wrong = Wrong::default();
    let mut known = HashSet::new();
    for (index, name) in names.enumerate() {
        if let Some(name) = name.filter(|name| !known.insert(*name)) {
            wrong.add(format!("spec.rules[{index}].name"), format!("{name:?} is the name of an earlier rule"));
        }
    }
    let matches: usize = rules.iter().map(|rule| rule.matches.len()).sum();
    if matches > MAX_MATCHES_OF_ALL {
        wrong.add("spec.rules", format!("{matches} matches in all; at most {MAX_MATCHES_OF_ALL} are allowed"));
    }
    wrong.or(rules)
}

fn http_rule(context: &mut Context<'_>, index: usize, raw: &RawHttpRule) -> Result<HttpRule, Wrong> {
    let at = |field: &str| format!("spec.rules[{index}].{field}");
    let mut wrong = Wrong::default();
    let patterns = &mut context.patterns;
    let matches = wrong
        .note(matches(&at("matches"), &raw.matches, &RequestMatch::default(), |at, raw| http_match(at, raw, patterns)));
    let one_prefix = match matches.as_slice() {
        // No path at all is the prefix "/" (HTTPRouteMatch).
        [only] => matches!(only.path, None | Some(PathMatch::Prefix(_))),
        // Wrong by itself: nothing is to be said of what depends on it.
        [] => true,
        _ => false,
    };
    let place = Place { one_prefix, redirects: true, rewrites: true, cors: true };
    let filters = wrong.note(filter::filters(context, &at("filters"), &raw.filters, place));
    let backends =
        wrong.note(route::backends(context, &at("backendRefs"), &raw.backend_refs, |context, field, raw| {
            filter::filters(context, field, raw, Place { redirects: false, cors: false, ..place })
        }));
    if filters.iter().any(|filter| matches!(filter, HttpFilter::Redirect(_))) && !backends.is_empty() {
        wrong.add(at("backendRefs"), "a rule that redirects has no backends");
    }
    let mut timeout = |field: &str, text: Option<&String>| -> Option<Duration> {
        // Zero switches it off, whatever a policy says.
        text.map(|text| wrong.note(value::duration(&at(field), text)))
    };
    let timeouts = raw.timeouts.as_ref();
    let request_timeout = timeout("timeouts.request", timeouts.and_then(|raw| raw.request.as_ref()));
    let backend_request_timeout =
        timeout("timeouts.backendRequest", timeouts.and_then(|raw| raw.backend_request.as_ref()));
    if let (Some(request), Some(backend)) = (request_timeout, backend_request_timeout)
        && !request.is_zero()
        && backend > request
    {
        wrong.add(at("timeouts.backendRequest"), "longer than timeouts.request");
    }
    let retry = wrong.note(raw.retry.as_ref().map(|raw| retry(context, &at("retry"), raw)).transpose());
    let session = raw.session_persistence.as_ref().map(|raw| persistence(&at("sessionPersistence"), raw));
    let session_persistence = wrong.note(session.transpose());
    let name = wrong.note(rule_name(&at("name"), raw.name.as_deref(), index));
    wrong.or(HttpRule {
        name,
        matches,
        filters,
        backends,
        request_timeout,
        backend_request_timeout,
        retry,
        session_persistence,
    })
}

/// Those of a rule, and never none: without any, it is `default`.
fn matches<R>(
    field: &str,
    raw: &[R],
    default: &R,
    mut parse: impl FnMut(&str, &R) -> Result<HttpMatch, Wrong>,
) -> Result<Vec<HttpMatch>, Wrong> {
    value::at_most(field, raw.len(), MAX_MATCHES)?;
    if raw.is_empty() {
        return Ok(vec![parse(field, default)?]);
    }
    Wrong::each(raw.iter().enumerate().map(|(index, one)| parse(&format!("{field}[{index}]"), one)))
}

fn rule_name(field: &str, name: Option<&str>, index: usize) -> Result<Arc<str>, FieldError> {
    match name {
        Some(name) => {
            value::object_name(field, name)?;
            Ok(name.into())
        }
        None => Ok(index.to_string().into()),
    }
}

fn retry(context: &mut Context<'_>, at: &str, raw: &RawRetry) -> Result<Retry, Wrong> {
    let mut wrong = Wrong::default();
    let mut statuses = Vec::with_capacity(raw.codes.len());
    for (index, code) in raw.codes.iter().enumerate() {
        match u16::try_from(*code) {
            // Gateway API allows any from 400 on, and leaves it to us which of those below 500 are tried again.
            Ok(status) if value::is_clients_fault(status) => {
                context.without_effect.push(format!("{at}.codes[{index}] ({status} is never tried again)"));
            }
            Ok(status @ 400..=599) => {
                if !statuses.contains(&status) {
                    statuses.push(status);
                }
            }
            _ => wrong.add(format!("{at}.codes[{index}]"), format!("{code} is not between 400 and 599")),
        }
    }
    let attempts = raw.attempts.unwrap_or(DEFAULT_ATTEMPTS);
    let attempts = wrong.note(match u32::try_from(attempts) {
        // Gateway API sets no least: 0 is no further try.
        Ok(attempts) => Ok(attempts),
        Err(_) => refuse::<_, FieldError>(
            format!("{at}.attempts"),
            format!("{attempts} is not a number of further tries (0 or more)"),
        ),
    });
    let backoff = raw.backoff.as_ref().map(|text| wrong.note(value::duration(&format!("{at}.backoff"), text)));
    if backoff.is_some_and(|backoff| backoff > MAX_WAIT) {
        let stated = raw.backoff.as_deref().unwrap_or_default();
        let what = format!("{at}.backoff (what is beyond {MAX_WAIT:?}, the longest wait there is: {stated})");
        context.without_effect.push(what);
    }
    wrong.or(Retry { statuses, attempts, backoff })
}

/// The match at "spec.rules[0].matches[0]"; `patterns`: those of the object.
pub(super) fn http_match(at: &str, raw: &RequestMatch, patterns: &mut Patterns) -> Result<HttpMatch, Wrong> {
    let mut wrong = Wrong::default();
    let path = raw.path.as_ref().and_then(|path| wrong.note(path_match(&format!("{at}.path"), path, patterns)));
    let headers = wrong.note(named(&format!("{at}.headers"), &raw.headers, true, patterns));
    let query = wrong.note(named(&format!("{at}.queryParams"), &raw.query_params, false, patterns));
    if let Some(method) = &raw.method
        && !METHODS.contains(&method.as_str())
    {
        wrong.add(format!("{at}.method"), format!("{method:?} is not one of {}", METHODS.join(", ")));
    }
    let (kind, longest) = match &path {
        Some(PathMatch::Exact(path)) => (PathRank::Exact, path.len()),
        Some(PathMatch::Prefix(prefix)) => (PathRank::Prefix, prefix.len()),
        Some(PathMatch::Regex(_)) => (PathRank::Regex, 0),
        None => (PathRank::Any, 0),
    };
    let precedence = Precedence {
        kind,
        longest: Reverse(longest),
        longest_method: Reverse(0),
        method: Reverse(raw.method.is_some()),
        headers: Reverse(headers.len()),
        query: Reverse(query.len()),
    };
    wrong.or(HttpMatch { path, headers, query, method: raw.method.as_deref().map(Into::into), grpc: false, precedence })
}

/// None: every path, which the prefix "/" means.
fn path_match(at: &str, raw: &PathValue, patterns: &mut Patterns) -> Result<Option<PathMatch>, FieldError> {
    let field = format!("{at}.value");
    let text = raw.value.as_deref().unwrap_or("/");
    match raw.kind.as_deref().unwrap_or("PathPrefix") {
        "Exact" => {
            value::match_path(&field, text)?;
            Ok(Some(PathMatch::Exact(text.into())))
        }
        "PathPrefix" => {
            value::match_path(&field, text)?;
            // A trailing slash does not count: "/v2/" is "/v2".
            let prefix = text.trim_end_matches('/');
            Ok((!prefix.is_empty()).then(|| PathMatch::Prefix(prefix.into())))
        }
        "RegularExpression" => {
            value::regex(&field, text, patterns)?;
            Ok(Some(PathMatch::Regex(text.into())))
        }
        other => refuse(format!("{at}.type"), format!("{other:?} is not one of Exact, PathPrefix, RegularExpression")),
    }
}

/// Matches of headers or query parameters; of several for one name, only the first counts.
fn named(
    at: &str,
    raw: &[NamedValue],
    headers: bool,
    patterns: &mut Patterns,
) -> Result<Vec<(Arc<str>, ValueMatch)>, Wrong> {
    value::at_most(at, raw.len(), MAX_VALUES)?;
    let mut wrong = Wrong::default();
    let mut matches: Vec<(Arc<str>, ValueMatch)> = Vec::with_capacity(raw.len());
    for (index, one) in raw.iter().enumerate() {
        let field = |name: &str| format!("{at}[{index}].{name}");
        let name = wrong.note(match headers {
            true => value::header_name(&field("name"), &one.name),
            false if one.name.is_empty() => refuse(field("name"), "empty"),
            false => value::no_longer_than(&field("name"), &one.name, MAX_PARAMETER).map(|()| one.name.clone()),
        });
        wrong.note(value::no_longer_than(&field("value"), &one.value, MAX_VALUE));
        let value = match one.kind.as_deref().unwrap_or("Exact") {
            "RegularExpression" => {
                wrong.note(value::regex(&field("value"), &one.value, patterns));
                ValueMatch::Regex(one.value.as_str().into())
            }
            kind => {
                if kind != "Exact" {
                    wrong.add(field("type"), format!("{kind:?} is neither Exact nor RegularExpression"));
                }
                ValueMatch::Exact(one.value.as_str().into())
            }
        };
        if !matches.iter().any(|(known, _)| **known == *name) {
            matches.push((name.into(), value));
        }
    }
    wrong.or(matches)
}

// ---- GRPCRoute ----------------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawGrpcSpec {
    #[serde(default)]
    pub(super) parent_refs: Vec<RawParentRef>,
    #[serde(default, rename = "hostnames")]
    _hostnames: Vec<String>,
    #[serde(default)]
    pub(super) rules: Vec<RawGrpcRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawGrpcRule {
    name: Option<String>,
    #[serde(default)]
    matches: Vec<RawGrpcMatch>,
    #[serde(default)]
    filters: Vec<RawFilter>,
    #[serde(default)]
    backend_refs: Vec<RawBackendRef>,
    session_persistence: Option<SessionPersistenceSpec>,
}

#[derive(Deserialize, Default)]
struct RawGrpcMatch {
    method: Option<RawGrpcMethod>,
    #[serde(default)]
    headers: Vec<NamedValue>,
}

#[derive(Deserialize)]
struct RawGrpcMethod {
    #[serde(rename = "type")]
    kind: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

pub(super) fn grpc_rules(context: &mut Context<'_>, raw: Vec<RawGrpcRule>) -> Result<Vec<HttpRule>, Wrong> {
    value::at_most("spec.rules", raw.len(), MAX_RULES)?;
    let rules = Wrong::each(raw.iter().enumerate().map(|(index, rule)| grpc_rule(context, index, rule)))?;
    whole(rules, raw.iter().map(|rule| rule.name.as_deref()))
}

fn grpc_rule(context: &mut Context<'_>, index: usize, raw: &RawGrpcRule) -> Result<HttpRule, Wrong> {
    let at = |field: &str| format!("spec.rules[{index}].{field}");
    let mut wrong = Wrong::default();
    let patterns = &mut context.patterns;
    let matches = wrong
        .note(matches(&at("matches"), &raw.matches, &RawGrpcMatch::default(), |at, raw| grpc_match(at, raw, patterns)));
    let place = Place { one_prefix: false, redirects: false, rewrites: false, cors: false };
    let filters = wrong.note(filter::filters(context, &at("filters"), &raw.filters, place));
    let backends =
        wrong.note(route::backends(context, &at("backendRefs"), &raw.backend_refs, |context, field, raw| {
            filter::filters(context, field, raw, place)
        }));
    let session = raw.session_persistence.as_ref().map(|raw| persistence(&at("sessionPersistence"), raw));
    let session_persistence = wrong.note(session.transpose());
    let name = wrong.note(rule_name(&at("name"), raw.name.as_deref(), index));
    wrong.or(HttpRule {
        name,
        matches,
        filters,
        backends,
        request_timeout: None,
        backend_request_timeout: None,
        retry: None,
        session_persistence,
    })
}

fn grpc_match(at: &str, raw: &RawGrpcMatch, patterns: &mut Patterns) -> Result<HttpMatch, Wrong> {
    let mut wrong = Wrong::default();
    let headers = wrong.note(named(&format!("{at}.headers"), &raw.headers, true, patterns));
    let path = raw.method.as_ref().map(|method| grpc_path(&format!("{at}.method"), method, patterns)).transpose();
    let (path, kind, service, method) = wrong.note(path).unwrap_or((None, PathRank::Any, 0, 0));
    let precedence = Precedence {
        kind,
        longest: Reverse(service),
        longest_method: Reverse(method),
        method: Reverse(false),
        headers: Reverse(headers.len()),
        query: Reverse(0),
    };
    wrong.or(HttpMatch { path, headers, query: Vec::new(), method: None, grpc: true, precedence })
}

/// `/<service>/<method>`, either of which may be left out.
fn grpc_path(
    at: &str,
    raw: &RawGrpcMethod,
    patterns: &mut Patterns,
) -> Result<(Option<PathMatch>, PathRank, usize, usize), FieldError> {
    let part = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, method) = (part(&raw.service), part(&raw.method));
    let lengths = (service.as_ref().map_or(0, String::len), method.as_ref().map_or(0, String::len));
    let ranked = |path, rank| Ok((Some(path), rank, lengths.0, lengths.1));
    let any = "[^/]+".to_owned();
    if service.is_none() && method.is_none() {
        return refuse(at, "one or both of service and method are required");
    }
    match raw.kind.as_deref().unwrap_or("Exact") {
        "Exact" => {
            let word = |text: &str| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            };
            for (field, text) in [("service", &service), ("method", &method)] {
                if let Some(text) = text.as_deref().filter(|text| !word(text)) {
                    return refuse(format!("{at}.{field}"), format!("{text:?} is not the name of a gRPC {field}"));
                }
            }
            match (service, method) {
                (Some(service), Some(method)) => {
                    ranked(PathMatch::Exact(format!("/{service}/{method}").into()), PathRank::Exact)
                }
                (Some(service), None) => ranked(PathMatch::Prefix(format!("/{service}").into()), PathRank::Exact),
                (_, method) => {
                    let path = format!("/{any}/{}", regex::escape(&method.unwrap_or_default()));
                    // A name has no limit, its expression has.
                    value::regex(&format!("{at}.method"), &path, patterns)?;
                    ranked(PathMatch::Regex(path.into()), PathRank::Exact)
                }
            }
        }
        "RegularExpression" => {
            for (field, text) in [("service", &service), ("method", &method)] {
                if let Some(text) = text {
                    value::part_of_regex(&format!("{at}.{field}"), text)?;
                }
            }
            let group = |text: Option<String>| text.map_or_else(|| any.clone(), |text| format!("(?:{text})"));
            let path = format!("/{}/{}", group(service), group(method));
            // Each alone may fit, and both together not.
            value::regex(at, &path, patterns)?;
            ranked(PathMatch::Regex(path.into()), PathRank::Regex)
        }
        other => refuse(format!("{at}.type"), format!("{other:?} is neither Exact nor RegularExpression")),
    }
}
