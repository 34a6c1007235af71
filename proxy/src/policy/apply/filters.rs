//! Filters: header changes, redirects, rewrites, mirrors, CORS. What would let policy break the framing of messages is
//! refused.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, uri};
use leno_proto::{headers, v1};

use super::{Backends, Invalid};
use crate::{
    http::{
        cors::{Cors, Listed, Origin, Origins},
        filter::{Filters, HeaderChanges, PathChange, Redirect, Rewrite},
        mirror::Mirror,
    },
    policy::{RuleOrigin, share::Share},
    telemetry::MirrorMetrics,
};

/// Seconds that a preflight may be kept, if it is not said (Gateway API).
const MAX_AGE: u32 = 5;

/// The filters of a rule of `service`, or of a backend in it.
pub(super) fn parse(
    service: &str,
    origin: &RuleOrigin,
    filters: Vec<v1::HttpFilter>,
    backends: &mut Backends<'_>,
) -> Result<Filters, Invalid> {
    let mut parsed = Filters::default();
    for (index, filter) in filters.into_iter().enumerate() {
        let at = |invalid: Invalid| invalid.within(format!("filters[{index}]"));
        match filter.kind {
            Some(v1::http_filter::Kind::Mirror(mirror)) => {
                let mirror = parse_mirror(service, origin, mirror, backends);
                match mirror.map_err(|invalid| at(invalid.within("mirror")))? {
                    Ok(mirror) => parsed.mirrors.push(Arc::new(mirror)),
                    Err(reason) => parsed.unmirrored.push(reason),
                }
            }
            _ => parse_filter(filter, &mut parsed).map_err(at)?,
        }
    }
    Ok(parsed)
}

fn parse_filter(filter: v1::HttpFilter, into: &mut Filters) -> Result<(), Invalid> {
    use v1::http_filter::Kind;
    match filter.kind {
        Some(Kind::RequestHeaders(changes)) => {
            parse_headers(changes, &mut into.request).map_err(|invalid| invalid.within("request_headers"))
        }
        Some(Kind::ResponseHeaders(changes)) => {
            parse_headers(changes, &mut into.response).map_err(|invalid| invalid.within("response_headers"))
        }
        Some(Kind::Redirect(redirect)) => {
            into.redirect = Some(parse_redirect(redirect).map_err(|invalid| invalid.within("redirect"))?);
            Ok(())
        }
        Some(Kind::Rewrite(rewrite)) => {
            into.rewrite = Some(parse_rewrite(rewrite).map_err(|invalid| invalid.within("rewrite"))?);
            Ok(())
        }
        Some(Kind::Cors(cors)) => {
            into.cors = Some(Arc::new(parse_cors(&cors).map_err(|invalid| invalid.within("cors"))?));
            Ok(())
        }
        Some(Kind::Unsupported(name)) => {
            into.unsupported = Some(name);
            Ok(())
        }
        // A filter newer than this proxy: leaving it out could let through what it is there to stop.
        Some(Kind::Mirror(_)) | None => {
            into.unsupported = Some("unknown".to_owned());
            Ok(())
        }
    }
}

/// Inner Err: what it names is nothing that could be mirrored to, as the route's status says, too.
fn parse_mirror(
    service: &str,
    origin: &RuleOrigin,
    mirror: v1::Mirror,
    backends: &mut Backends<'_>,
) -> Result<Result<Mirror, String>, Invalid> {
    let share = Share::new(mirror.numerator, mirror.denominator).ok_or_else(|| {
        Invalid::new("numerator", format!("{} of {} is no share", mirror.numerator, mirror.denominator))
    })?;
    match mirror.kind {
        Some(v1::mirror::Kind::Backend(reference)) => {
            let backend = backends.get(reference).map_err(|invalid| invalid.within("backend"))?;
            let metrics = MirrorMetrics::new(service, &origin.route, &origin.rule, &backend.key);
            Ok(Ok(Mirror { backend, share, metrics }))
        }
        Some(v1::mirror::Kind::Invalid(reason)) => Ok(Err(reason)),
        None => Err(Invalid::new("kind", "neither a backend nor a reason why not")),
    }
}

fn parse_cors(cors: &v1::Cors) -> Result<Cors, Invalid> {
    let origins = match cors.allow_origins.as_slice() {
        [only] if only == "*" => Origins::Any,
        origins => {
            let origin = |(index, text): (usize, &String)| {
                Origin::parse(text).ok_or_else(|| {
                    Invalid::new(format!("allow_origins[{index}]"), format!("{text:?} is not an origin"))
                })
            };
            Origins::These(origins.iter().enumerate().map(origin).collect::<Result<_, _>>()?)
        }
    };
    let listed = |field: &str, entries: &[String]| {
        Listed::parse(entries)
            .ok_or_else(|| Invalid::new(field, format!("{entries:?} is neither names nor \"*\" alone")))
    };
    Ok(Cors {
        origins,
        credentials: cors.allow_credentials,
        methods: listed("allow_methods", &cors.allow_methods)?,
        headers: listed("allow_headers", &cors.allow_headers)?,
        exposed: listed("expose_headers", &cors.expose_headers)?,
        max_age: if cors.max_age_s == 0 { MAX_AGE } else { cors.max_age_s },
    })
}

fn parse_headers(changes: v1::HeaderModifier, into: &mut HeaderChanges) -> Result<(), Invalid> {
    for (list, changes, parsed) in [("set", changes.set, &mut into.set), ("add", changes.add, &mut into.add)] {
        for (index, changed) in changes.into_iter().enumerate() {
            let at = |invalid: Invalid| invalid.within(format!("{list}[{index}]"));
            let name = parse_name(&changed.name).map_err(|reason| at(Invalid::new("name", reason)))?;
            let value = HeaderValue::from_bytes(changed.value.as_bytes());
            let value = value.map_err(|_| at(Invalid::new("value", "holds characters that no header may hold")))?;
            parsed.push((name, value));
        }
    }
    for (index, name) in changes.remove.into_iter().enumerate() {
        let name = parse_name(&name).map_err(|reason| Invalid::new(format!("remove[{index}]"), reason))?;
        into.remove.push(name);
    }
    Ok(())
}

fn parse_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is not a header name"))?;
    if headers::is_reserved(name.as_str()) {
        return Err(format!("{name} is the proxy's to set"));
    }
    Ok(name)
}

fn parse_redirect(redirect: v1::Redirect) -> Result<Redirect, Invalid> {
    let scheme = match redirect.scheme.as_str() {
        "" => None,
        text => {
            Some(text.parse::<uri::Scheme>().map_err(|_| Invalid::new("scheme", format!("{text:?} is not a scheme")))?)
        }
    };
    let port = match redirect.port {
        0 => None,
        port => Some(super::parse_port(port)?),
    };
    let status = match redirect.status {
        301 => StatusCode::MOVED_PERMANENTLY,
        // Gateway API's default.
        0 | 302 => StatusCode::FOUND,
        303 => StatusCode::SEE_OTHER,
        307 => StatusCode::TEMPORARY_REDIRECT,
        308 => StatusCode::PERMANENT_REDIRECT,
        other => return Err(Invalid::new("status", format!("{other} is not a redirect"))),
    };
    Ok(Redirect {
        scheme,
        hostname: parse_hostname(redirect.hostname)?,
        port,
        status,
        path: parse_path(redirect.path)?,
    })
}

fn parse_rewrite(rewrite: v1::Rewrite) -> Result<Rewrite, Invalid> {
    Ok(Rewrite { hostname: parse_hostname(rewrite.hostname)?, path: parse_path(rewrite.path)? })
}

/// A host, with a port or without; empty: none.
fn parse_hostname(text: String) -> Result<Option<String>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<uri::Authority>() {
        Ok(authority) if !text.contains('@') && !authority.host().is_empty() => Ok(Some(text)),
        _ => Err(Invalid::new("hostname", format!("{text:?} is not a host name"))),
    }
}

fn parse_path(path: Option<v1::PathModifier>) -> Result<Option<PathChange>, Invalid> {
    use v1::path_modifier::Kind;
    let Some(path) = path else { return Ok(None) };
    let checked = |field: &str, text: String, may_be_empty: bool| {
        let is_path = text.starts_with('/') && !text.contains(['?', '#']) && text.parse::<uri::PathAndQuery>().is_ok();
        if is_path || (may_be_empty && text.is_empty()) {
            Ok(text)
        } else {
            Err(Invalid::new(format!("path.{field}"), format!("{text:?} is not a path")))
        }
    };
    match path.kind {
        Some(Kind::ReplaceFull(text)) => Ok(Some(PathChange::ReplaceFull(checked("replace_full", text, false)?))),
        Some(Kind::ReplacePrefix(text)) => Ok(Some(PathChange::ReplacePrefix(checked("replace_prefix", text, true)?))),
        None => Err(Invalid::new("path.kind", "missing, or of a kind that this version of the proxy lacks")),
    }
}
