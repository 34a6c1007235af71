//! Filters of HTTPRoute and GRPCRoute. What is not supported is kept by name, and answered with 500: a filter is never skipped.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{
    FieldError, Wrong, refuse,
    route::{self, Context, RawBackendObjectRef},
    value,
};
use crate::model::object::{Header, HeaderModifier, HttpFilter, Mirror, PathModifier, Redirect};

mod cors;

/// As Gateway API limits them.
const MAX_FILTERS: usize = 16;
const MAX_HEADERS: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawFilter {
    #[serde(rename = "type")]
    kind: String,
    request_header_modifier: Option<RawHeaderModifier>,
    response_header_modifier: Option<RawHeaderModifier>,
    request_redirect: Option<RawRedirect>,
    url_rewrite: Option<RawRewrite>,
    request_mirror: Option<RawMirror>,
    cors: Option<cors::RawCors>,
    // Known, not supported; read so that it is not reported a second time as unknown.
    #[serde(rename = "externalAuth")]
    _external_auth: Option<Value>,
    extension_ref: Option<Value>,
}

#[derive(Deserialize)]
struct RawHeaderModifier {
    #[serde(default)]
    set: Vec<RawHeader>,
    #[serde(default)]
    add: Vec<RawHeader>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Deserialize)]
struct RawHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRedirect {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<RawPathModifier>,
    port: Option<i64>,
    status_code: Option<i64>,
}

#[derive(Deserialize)]
struct RawRewrite {
    hostname: Option<String>,
    path: Option<RawPathModifier>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMirror {
    backend_ref: RawBackendObjectRef,
    percent: Option<i64>,
    fraction: Option<RawFraction>,
}

#[derive(Deserialize)]
struct RawFraction {
    numerator: i64,
    denominator: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPathModifier {
    #[serde(rename = "type")]
    kind: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

/// Where filters stand, which decides which of them make sense.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The rule matches exactly one path prefix, which `replacePrefixMatch` needs.
    pub(super) one_prefix: bool,
    /// A redirect has no place in a backend, nor in a GRPCRoute.
    pub(super) redirects: bool,
    pub(super) rewrites: bool,
    /// Whom browsers may let in is said of a rule, before a backend is chosen, and of HTTP alone.
    pub(super) cors: bool,
}

/// For kinds whose backends have no filters.
pub(super) fn none(context: &mut Context<'_>, field: &str, raw: &[RawFilter]) -> Result<Vec<HttpFilter>, Wrong> {
    if !raw.is_empty() {
        context.unsupported.push(format!("{field}: filters have no effect in this kind of route"));
    }
    Ok(Vec::new())
}

pub(super) fn filters(
    context: &mut Context<'_>,
    field: &str,
    raw: &[RawFilter],
    place: Place,
) -> Result<Vec<HttpFilter>, Wrong> {
    value::at_most(field, raw.len(), MAX_FILTERS)?;
    let mut wrong = Wrong::default();
    let filters = wrong.note(Wrong::each(raw.iter().enumerate().map(|(index, one)| {
        let at = format!("{field}[{index}]");
        let filter = filter(context, &at, one, place)?;
        if let HttpFilter::Unsupported(name) = &filter {
            context.unsupported.push(format!("{at}: {name}"));
        } else if one.kind != "RequestMirror" && raw.iter().take(index).any(|earlier| earlier.kind == one.kind) {
            return refuse(format!("{at}.type"), format!("{} is there twice", one.kind));
        }
        Ok(filter)
    })));
    let has = |kind: &str| raw.iter().any(|filter| filter.kind == kind);
    if has("RequestRedirect") && has("URLRewrite") {
        wrong.add(field, "RequestRedirect and URLRewrite exclude each other");
    }
    wrong.or(filters)
}

fn filter(context: &Context<'_>, at: &str, raw: &RawFilter, place: Place) -> Result<HttpFilter, Wrong> {
    let unsupported = |name: String| Ok(HttpFilter::Unsupported(name.into()));
    fn required<'a, T>(at: &str, field: &str, value: Option<&'a T>) -> Result<(String, &'a T), FieldError> {
        let at = format!("{at}.{field}");
        match value {
            Some(value) => Ok((at, value)),
            None => refuse(at, "required by the filter's type"),
        }
    }
    match raw.kind.as_str() {
        "RequestHeaderModifier" => {
            let (at, modifier) = required(at, "requestHeaderModifier", raw.request_header_modifier.as_ref())?;
            Ok(HttpFilter::RequestHeaders(header_modifier(&at, modifier)?))
        }
        "ResponseHeaderModifier" => {
            let (at, modifier) = required(at, "responseHeaderModifier", raw.response_header_modifier.as_ref())?;
            Ok(HttpFilter::ResponseHeaders(header_modifier(&at, modifier)?))
        }
        "RequestRedirect" if place.redirects => {
            let (at, redirect) = required(at, "requestRedirect", raw.request_redirect.as_ref())?;
            Ok(HttpFilter::Redirect(redirect_of(&at, redirect, place)?))
        }
        "URLRewrite" if place.rewrites => {
            let (at, rewrite) = required(at, "urlRewrite", raw.url_rewrite.as_ref())?;
            let mut wrong = Wrong::default();
            let hostname = rewrite.hostname.as_deref().map(Into::into);
            if let Some(hostname) = &rewrite.hostname {
                wrong.note(value::hostname(&format!("{at}.hostname"), hostname, false));
            }
            let path = rewrite.path.as_ref().map(|path| path_modifier(&format!("{at}.path"), path, place));
            let path = wrong.note(path.transpose());
            wrong.or(HttpFilter::Rewrite { hostname, path })
        }
        "RequestMirror" => {
            let (at, mirror) = required(at, "requestMirror", raw.request_mirror.as_ref())?;
            Ok(HttpFilter::Mirror(mirror_of(context, &at, mirror)?))
        }
        "CORS" if place.cors => {
            let (at, cors) = required(at, "cors", raw.cors.as_ref())?;
            Ok(HttpFilter::Cors(cors::parse(&at, cors)?))
        }
        "ExtensionRef" => {
            let part = |name: &str| raw.extension_ref.as_ref().and_then(|value| value.get(name));
            let text = |name| match part(name) {
                None => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            // YAML 1.1 takes bare words such as Y, No and On for booleans.
            let booleans = ["group", "kind", "name"].into_iter().filter_map(|field| {
                let value = part(field)?.as_bool()?;
                Some(format!(" ({field} is read as the boolean {value}: put it in quotes)"))
            });
            let [group, kind, name] = ["group", "kind", "name"].map(text);
            unsupported(format!("ExtensionRef {group}/{kind} {name}{}", booleans.collect::<String>()))
        }
        other => unsupported(other.to_owned()),
    }
}

fn header_modifier(at: &str, raw: &RawHeaderModifier) -> Result<HeaderModifier, Wrong> {
    let headers = |field: &str, raw: &[RawHeader]| -> Result<Vec<Header>, Wrong> {
        value::at_most(&format!("{at}.{field}"), raw.len(), MAX_HEADERS)?;
        let mut wrong = Wrong::default();
        let mut headers: Vec<Header> = Vec::with_capacity(raw.len());
        for (index, header) in raw.iter().enumerate() {
            let name = wrong.note(value::changed_header_name(&format!("{at}.{field}[{index}].name"), &header.name));
            wrong.note(value::header_value(&format!("{at}.{field}[{index}].value"), &header.value));
            // Of several entries for one name only the first counts (HTTPHeaderFilter).
            if !headers.iter().any(|(known, _)| **known == *name) {
                headers.push((name.into(), header.value.as_str().into()));
            }
        }
        wrong.or(headers)
    };
    let remove = || -> Result<Vec<Arc<str>>, Wrong> {
        value::at_most(&format!("{at}.remove"), raw.remove.len(), MAX_HEADERS)?;
        let names = raw.remove.iter().enumerate();
        Wrong::each(
            names.map(|(index, name)| Ok(value::changed_header_name(&format!("{at}.remove[{index}]"), name)?.into())),
        )
    };
    let mut wrong = Wrong::default();
    let set = wrong.note(headers("set", &raw.set));
    let add = wrong.note(headers("add", &raw.add));
    let remove = wrong.note(remove());
    wrong.or(HeaderModifier { set, add, remove })
}

fn redirect_of(at: &str, raw: &RawRedirect, place: Place) -> Result<Redirect, Wrong> {
    let mut wrong = Wrong::default();
    let scheme = wrong.note(match raw.scheme.as_deref() {
        None => Ok(None),
        Some(scheme @ ("http" | "https")) => Ok(Some(Arc::from(scheme))),
        Some(other) => {
            refuse::<_, FieldError>(format!("{at}.scheme"), format!("{other:?} is neither \"http\" nor \"https\""))
        }
    });
    if let Some(hostname) = &raw.hostname {
        wrong.note(value::hostname(&format!("{at}.hostname"), hostname, false));
    }
    let status = match raw.status_code.unwrap_or(302) {
        status @ (301 | 302 | 303 | 307 | 308) => u16::try_from(status).unwrap_or(302),
        other => {
            wrong.add(format!("{at}.statusCode"), format!("{other} is not one of 301, 302, 303, 307, 308"));
            302
        }
    };
    let port = raw.port.map(|port| wrong.note(value::port(&format!("{at}.port"), port)));
    let path = raw.path.as_ref().map(|path| path_modifier(&format!("{at}.path"), path, place));
    let path = wrong.note(path.transpose());
    wrong.or(Redirect { scheme, hostname: raw.hostname.as_deref().map(Into::into), port, status, path })
}

/// Neither percent nor fraction: every request.
fn mirror_of(context: &Context<'_>, at: &str, raw: &RawMirror) -> Result<Mirror, Wrong> {
    let mut wrong = Wrong::default();
    let fraction = match (raw.percent, &raw.fraction) {
        (None, None) => (1, 1),
        (Some(percent), None) => match u32::try_from(percent) {
            Ok(percent @ 0..=100) => (percent, 100),
            _ => {
                wrong.add(format!("{at}.percent"), format!("{percent} is not between 0 and 100"));
                (0, 1)
            }
        },
        (None, Some(raw)) => wrong.note(fraction(&format!("{at}.fraction"), raw)),
        (Some(_), Some(_)) => {
            wrong.add(at, "percent and fraction exclude each other: leave one out");
            (0, 1)
        }
    };
    match route::backend_object(context, &format!("{at}.backendRef"), &raw.backend_ref) {
        Ok(target) => wrong.or(Mirror { target, fraction }),
        Err(other) => {
            wrong.note::<()>(Err(other));
            Err(wrong)
        }
    }
}

/// Numerator and denominator, which is 100 if it is not said.
fn fraction(at: &str, raw: &RawFraction) -> Result<(u32, u32), FieldError> {
    let denominator = raw.denominator.unwrap_or(100);
    match (u32::try_from(raw.numerator), u32::try_from(denominator)) {
        (_, Ok(0) | Err(_)) => refuse(format!("{at}.denominator"), format!("{denominator} is not 1 or more")),
        (Ok(numerator), Ok(denominator)) if numerator <= denominator => Ok((numerator, denominator)),
        _ => refuse(
            format!("{at}.numerator"),
            format!("{} is not between 0 and the denominator, {denominator}", raw.numerator),
        ),
    }
}

fn path_modifier(at: &str, raw: &RawPathModifier, place: Place) -> Result<PathModifier, FieldError> {
    match (raw.kind.as_str(), &raw.replace_full_path, &raw.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), None) => {
            let field = format!("{at}.replaceFullPath");
            if !path.is_empty() && !path.starts_with('/') {
                return refuse(field, format!("{path:?} does not start with /"));
            }
            value::path_characters(&field, path)?;
            Ok(PathModifier::Full(if path.is_empty() { "/" } else { path.as_str() }.into()))
        }
        ("ReplacePrefixMatch", None, Some(prefix)) => {
            let field = format!("{at}.replacePrefixMatch");
            if !place.one_prefix {
                return refuse(field, "needs a rule with exactly one match, of type PathPrefix");
            }
            if !prefix.is_empty() && !prefix.starts_with('/') {
                return refuse(field, format!("{prefix:?} does not start with /"));
            }
            value::path_characters(&field, prefix)?;
            Ok(PathModifier::Prefix(prefix.as_str().into()))
        }
        ("ReplaceFullPath", ..) => refuse(at, "type ReplaceFullPath needs replaceFullPath, and nothing else"),
        ("ReplacePrefixMatch", ..) => refuse(at, "type ReplacePrefixMatch needs replacePrefixMatch, and nothing else"),
        (other, ..) => {
            refuse(format!("{at}.type"), format!("{other:?} is neither ReplaceFullPath nor ReplacePrefixMatch"))
        }
    }
}
