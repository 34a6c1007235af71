//! HTTPRoute and GRPCRoute: both become HTTP rules, since gRPC is HTTP/2 with a fixed form of path.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use serde::Deserialize;

use super::{
    FieldError,
    filter::{self, Place, RawFilter},
    refuse,
    route::{self, Context, RawBackendRef, RawParentRef},
    value,
};
use crate::model::object::{HttpFilter, HttpMatch, HttpRule, PathMatch, PathRank, Precedence, Retry, ValueMatch};

/// As Gateway API limits them.
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_VALUES: usize = 16;
/// Of a retry that does not say how often.
const DEFAULT_ATTEMPTS: i64 = 1;

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
    matches: Vec<RawHttpMatch>,
    #[serde(default)]
    filters: Vec<RawFilter>,
    #[serde(default)]
    backend_refs: Vec<RawBackendRef>,
    timeouts: Option<RawTimeouts>,
    retry: Option<RawRetry>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawHttpMatch {
    path: Option<RawValue>,
    #[serde(default)]
    headers: Vec<RawNamed>,
    #[serde(default)]
    query_params: Vec<RawNamed>,
    method: Option<String>,
}

#[derive(Deserialize)]
struct RawValue {
    #[serde(rename = "type")]
    kind: Option<String>,
    value: Option<String>,
}

#[derive(Deserialize)]
struct RawNamed {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    value: String,
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

pub(super) fn http_rules(
    context: &mut Context<'_>,
    raw: Option<Vec<RawHttpRule>>,
) -> Result<Vec<HttpRule>, FieldError> {
    // Absent rules: one that matches everything, and has no backend (HTTPRouteSpec).
    let raw = raw.unwrap_or_else(|| {
        let everything = RawHttpRule {
            name: None,
            matches: vec![],
            filters: vec![],
            backend_refs: vec![],
            timeouts: None,
            retry: None,
        };
        vec![everything]
    });
    value::at_most("spec.rules", raw.len(), MAX_RULES)?;
    let mut rules = Vec::with_capacity(raw.len());
    for (index, rule) in raw.iter().enumerate() {
        rules.push(http_rule(context, index, rule)?);
    }
    Ok(rules)
}

fn http_rule(context: &mut Context<'_>, index: usize, raw: &RawHttpRule) -> Result<HttpRule, FieldError> {
    let at = |field: &str| format!("spec.rules[{index}].{field}");
    value::at_most(&at("matches"), raw.matches.len(), MAX_MATCHES)?;
    let mut matches = Vec::with_capacity(raw.matches.len().max(1));
    for (place, one) in raw.matches.iter().enumerate() {
        matches.push(http_match(&at(&format!("matches[{place}]")), one)?);
    }
    if matches.is_empty() {
        matches.push(http_match("", &RawHttpMatch::default())?);
    }
    // No path at all is the prefix "/" (HTTPRouteMatch).
    let one_prefix = matches!(matches.as_slice(), [only] if matches!(only.path, None | Some(PathMatch::Prefix(_))));
    let place = Place { one_prefix, redirects: true, rewrites: true };
    let filters = filter::filters(context, &at("filters"), &raw.filters, place)?;
    let backends = route::backends(context, &at("backendRefs"), &raw.backend_refs, |context, field, raw| {
        filter::filters(context, field, raw, Place { redirects: false, ..place })
    })?;
    if filters.iter().any(|filter| matches!(filter, HttpFilter::Redirect(_))) && !backends.is_empty() {
        return refuse(at("backendRefs"), "a rule that redirects has no backends");
    }
    let timeout = |field: &str, text: Option<&String>| -> Result<Option<Duration>, FieldError> {
        let timeout = text.map(|text| value::duration(&at(field), text)).transpose()?;
        // Zero switches it off.
        Ok(timeout.filter(|timeout| !timeout.is_zero()))
    };
    let raw_timeouts = raw.timeouts.as_ref();
    let request_timeout = timeout("timeouts.request", raw_timeouts.and_then(|raw| raw.request.as_ref()))?;
    let backend_request_timeout =
        timeout("timeouts.backendRequest", raw_timeouts.and_then(|raw| raw.backend_request.as_ref()))?;
    if let (Some(request), Some(backend)) = (request_timeout, backend_request_timeout)
        && backend > request
    {
        return refuse(at("timeouts.backendRequest"), "longer than timeouts.request");
    }
    let retry = raw.retry.as_ref().map(|raw| retry(&at("retry"), raw)).transpose()?;
    let name = rule_name(&at("name"), raw.name.as_deref(), index)?;
    Ok(HttpRule { name, matches, filters, backends, request_timeout, backend_request_timeout, retry })
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

fn retry(at: &str, raw: &RawRetry) -> Result<Retry, FieldError> {
    let mut statuses = Vec::with_capacity(raw.codes.len());
    for (index, code) in raw.codes.iter().enumerate() {
        match u16::try_from(*code) {
            Ok(status @ 400..=599) => {
                if !statuses.contains(&status) {
                    statuses.push(status);
                }
            }
            _ => return refuse(format!("{at}.codes[{index}]"), format!("{code} is not between 400 and 599")),
        }
    }
    let attempts = raw.attempts.unwrap_or(DEFAULT_ATTEMPTS);
    let Some(attempts) = u32::try_from(attempts).ok().filter(|attempts| *attempts > 0) else {
        return refuse(format!("{at}.attempts"), format!("{attempts} is not a number of tries (1 or more)"));
    };
    let backoff = raw.backoff.as_ref().map(|text| value::duration(&format!("{at}.backoff"), text)).transpose()?;
    Ok(Retry { statuses, attempts, backoff })
}

fn http_match(at: &str, raw: &RawHttpMatch) -> Result<HttpMatch, FieldError> {
    let path = raw.path.as_ref().map(|path| path_match(&format!("{at}.path"), path)).transpose()?.flatten();
    let headers = named(&format!("{at}.headers"), &raw.headers, true)?;
    let query = named(&format!("{at}.queryParams"), &raw.query_params, false)?;
    if let Some(method) = &raw.method
        && !METHODS.contains(&method.as_str())
    {
        return refuse(format!("{at}.method"), format!("{method:?} is not one of {}", METHODS.join(", ")));
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
    Ok(HttpMatch { path, headers, query, method: raw.method.as_deref().map(Into::into), grpc: false, precedence })
}

/// None: every path, which the prefix "/" means.
fn path_match(at: &str, raw: &RawValue) -> Result<Option<PathMatch>, FieldError> {
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
            value::regex(&field, text)?;
            Ok(Some(PathMatch::Regex(text.into())))
        }
        other => refuse(format!("{at}.type"), format!("{other:?} is not one of Exact, PathPrefix, RegularExpression")),
    }
}

/// Matches of headers or query parameters; of several for one name, only the first counts.
fn named(at: &str, raw: &[RawNamed], headers: bool) -> Result<Vec<(Arc<str>, ValueMatch)>, FieldError> {
    value::at_most(at, raw.len(), MAX_VALUES)?;
    let mut matches: Vec<(Arc<str>, ValueMatch)> = Vec::with_capacity(raw.len());
    for (index, one) in raw.iter().enumerate() {
        let field = |name: &str| format!("{at}[{index}].{name}");
        let name = if headers {
            value::header_name(&field("name"), &one.name)?
        } else if one.name.is_empty() {
            return refuse(field("name"), "empty");
        } else {
            one.name.clone()
        };
        let value = match one.kind.as_deref().unwrap_or("Exact") {
            "Exact" => ValueMatch::Exact(one.value.as_str().into()),
            "RegularExpression" => {
                value::regex(&field("value"), &one.value)?;
                ValueMatch::Regex(one.value.as_str().into())
            }
            other => return refuse(field("type"), format!("{other:?} is neither Exact nor RegularExpression")),
        };
        if !matches.iter().any(|(known, _)| **known == *name) {
            matches.push((name.into(), value));
        }
    }
    Ok(matches)
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
}

#[derive(Deserialize, Default)]
struct RawGrpcMatch {
    method: Option<RawGrpcMethod>,
    #[serde(default)]
    headers: Vec<RawNamed>,
}

#[derive(Deserialize)]
struct RawGrpcMethod {
    #[serde(rename = "type")]
    kind: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

pub(super) fn grpc_rules(context: &mut Context<'_>, raw: Vec<RawGrpcRule>) -> Result<Vec<HttpRule>, FieldError> {
    value::at_most("spec.rules", raw.len(), MAX_RULES)?;
    let mut rules = Vec::with_capacity(raw.len());
    for (index, rule) in raw.iter().enumerate() {
        let at = |field: &str| format!("spec.rules[{index}].{field}");
        value::at_most(&at("matches"), rule.matches.len(), MAX_MATCHES)?;
        let mut matches = Vec::with_capacity(rule.matches.len().max(1));
        for (place, one) in rule.matches.iter().enumerate() {
            matches.push(grpc_match(&at(&format!("matches[{place}]")), one)?);
        }
        if matches.is_empty() {
            matches.push(grpc_match("", &RawGrpcMatch::default())?);
        }
        let place = Place { one_prefix: false, redirects: false, rewrites: false };
        let filters = filter::filters(context, &at("filters"), &rule.filters, place)?;
        let backends = route::backends(context, &at("backendRefs"), &rule.backend_refs, |context, field, raw| {
            filter::filters(context, field, raw, place)
        })?;
        let name = rule_name(&at("name"), rule.name.as_deref(), index)?;
        rules.push(HttpRule {
            name,
            matches,
            filters,
            backends,
            request_timeout: None,
            backend_request_timeout: None,
            retry: None,
        });
    }
    Ok(rules)
}

fn grpc_match(at: &str, raw: &RawGrpcMatch) -> Result<HttpMatch, FieldError> {
    let headers = named(&format!("{at}.headers"), &raw.headers, true)?;
    let (path, kind, service, method) = match &raw.method {
        None => (None, PathRank::Any, 0, 0),
        Some(method) => grpc_path(&format!("{at}.method"), method)?,
    };
    let precedence = Precedence {
        kind,
        longest: Reverse(service),
        longest_method: Reverse(method),
        method: Reverse(false),
        headers: Reverse(headers.len()),
        query: Reverse(0),
    };
    Ok(HttpMatch { path, headers, query: Vec::new(), method: None, grpc: true, precedence })
}

/// `/<service>/<method>`, either of which may be left out.
fn grpc_path(at: &str, raw: &RawGrpcMethod) -> Result<(Option<PathMatch>, PathRank, usize, usize), FieldError> {
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
                    let method = regex::escape(&method.unwrap_or_default());
                    ranked(PathMatch::Regex(format!("/{any}/{method}").into()), PathRank::Exact)
                }
            }
        }
        "RegularExpression" => {
            for (field, text) in [("service", &service), ("method", &method)] {
                if let Some(text) = text {
                    value::regex(&format!("{at}.{field}"), text)?;
                }
            }
            let group = |text: Option<String>| text.map_or_else(|| any.clone(), |text| format!("(?:{text})"));
            let path = format!("/{}/{}", group(service), group(method));
            // Each alone may fit, and both together not.
            value::regex(at, &path)?;
            ranked(PathMatch::Regex(path.into()), PathRank::Regex)
        }
        other => refuse(format!("{at}.type"), format!("{other:?} is neither Exact nor RegularExpression")),
    }
}
