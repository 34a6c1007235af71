//! The CORS filter of HTTPRoute: fields and rules as Gateway API 1.6 has them (GEP-1767).

use std::sync::Arc;

use serde::Deserialize;

use crate::model::{
    object::Cors,
    parse::{FieldError, Wrong, refuse, value},
};

/// As Gateway API limits them.
const MAX_ORIGINS: usize = 64;
const MAX_METHODS: usize = 9;
const MAX_HEADERS: usize = 64;
const MAX_ORIGIN_BYTES: usize = 253;
/// Seconds a preflight may be kept, where the filter does not say.
const DEFAULT_MAX_AGE: u32 = 5;

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawCors {
    #[serde(default)]
    allow_origins: Vec<String>,
    #[serde(default)]
    allow_credentials: bool,
    #[serde(default)]
    allow_methods: Vec<String>,
    #[serde(default)]
    allow_headers: Vec<String>,
    #[serde(default)]
    expose_headers: Vec<String>,
    max_age: Option<i64>,
}

pub(super) fn parse(at: &str, raw: &RawCors) -> Result<Cors, Wrong> {
    let mut wrong = Wrong::default();
    let field = |name: &str| format!("{at}.{name}");
    let method = |field: &str, text: &str| match METHODS.contains(&text) {
        true => Ok(()),
        false => refuse(field, format!("{text:?} is not * or one of {}", METHODS.join(", "))),
    };
    let header = |field: &str, text: &str| value::header_name(field, text).map(|_| ());
    let allow_origins = wrong.note(list(&field("allowOrigins"), &raw.allow_origins, MAX_ORIGINS, origin));
    let allow_methods = wrong.note(list(&field("allowMethods"), &raw.allow_methods, MAX_METHODS, method));
    let allow_headers = wrong.note(list(&field("allowHeaders"), &raw.allow_headers, MAX_HEADERS, header));
    let expose_headers = wrong.note(list(&field("exposeHeaders"), &raw.expose_headers, MAX_HEADERS, header));
    let max_age = match raw.max_age.map(u32::try_from) {
        None => DEFAULT_MAX_AGE,
        Some(Ok(seconds)) if seconds > 0 => seconds,
        Some(_) => {
            wrong.add(field("maxAge"), "not a number of seconds (1 or more)");
            DEFAULT_MAX_AGE
        }
    };
    let allow_credentials = raw.allow_credentials;
    wrong.or(Cors { allow_origins, allow_credentials, allow_methods, allow_headers, expose_headers, max_age })
}

/// Each once; "*" only alone.
fn list(
    field: &str,
    raw: &[String],
    most: usize,
    check: impl Fn(&str, &str) -> Result<(), FieldError>,
) -> Result<Vec<Arc<str>>, Wrong> {
    value::at_most(field, raw.len(), most)?;
    let mut wrong = Wrong::default();
    let mut entries: Vec<Arc<str>> = Vec::with_capacity(raw.len());
    for (index, text) in raw.iter().enumerate() {
        if text == "*" {
            if raw.len() > 1 {
                wrong.add(format!("{field}[{index}]"), "\"*\" is for all, and stands alone");
            }
        } else {
            wrong.note(check(&format!("{field}[{index}]"), text));
        }
        if !entries.iter().any(|known| **known == **text) {
            entries.push(text.as_str().into());
        }
    }
    wrong.or(entries)
}

/// `<scheme>://<host>(:<port>)`, in which the host is a name, `*`, or `*.` and a name.
fn origin(field: &str, text: &str) -> Result<(), FieldError> {
    let wrong =
        |why: &str| refuse(field, format!("{text:?} is not an origin: {why} (like https://*.example.com:8443)"));
    if text.len() > MAX_ORIGIN_BYTES {
        return wrong("it is longer than 253 characters");
    }
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return wrong("it does not begin with http:// or https://");
    };
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    if port.is_some_and(|port| !is_port(port)) {
        return wrong("its port is not between 1 and 65535");
    }
    let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host == "*" || name.split('.').all(label) { Ok(()) } else { wrong("its host is no name") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        for text in
            ["https://www.foo.com", "http://*", "https://*.bar.com:8443", "http://localhost:3000", "http://10.0.0.1"]
        {
            assert!(origin("f", text).is_ok(), "{text}");
        }
        for text in [
            "",
            "foo.com",
            "ftp://foo.com",
            "https://",
            "https://foo.com/",
            "https://foo.com:0",
            "https://*foo.com",
            "https://a..b",
            "https://foo.com:+1",
            "https://*.*.com",
        ] {
            assert!(origin("f", text).is_err(), "{text}");
        }
    }
}
