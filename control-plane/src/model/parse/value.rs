//! Values with rules of their own: names, durations, paths, headers, regular expressions.

use std::{net::IpAddr, time::Duration};

use leno_proto::{
    headers,
    pattern::{self, Patterns},
};

use super::{FieldError, refuse};

/// As Gateway API limits header names, and paths.
const MAX_HEADER_NAME: usize = 256;
const MAX_HEADER_VALUE: usize = 4096;
const MAX_PATH: usize = 1024;

/// Whether the status says that the request itself is at fault, which another try does not mend: no proxy tries it again.
pub(super) fn is_clients_fault(status: u16) -> bool {
    matches!(status, 400 | 401 | 403 | 404)
}

/// DNS-1123 label: a namespace, a Service's or port's name.
pub(super) fn label(field: &str, text: &str) -> Result<(), FieldError> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    let inside = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if text.len() <= 63 && inside && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(());
    }
    refuse(field, format!("{text:?} is not a name (a-z, 0-9 and - inside, at most 63 characters)"))
}

/// DNS-1123 subdomain: an object's name, a host name.
pub(super) fn object_name(field: &str, text: &str) -> Result<(), FieldError> {
    if !text.is_empty() && text.len() <= 253 && text.split('.').all(|part| label(field, part).is_ok()) {
        return Ok(());
    }
    refuse(field, format!("{text:?} is not a name (a-z, 0-9, - and . inside, at most 253 characters)"))
}

/// A host name, with `*.` in front if `wildcard`.
pub(super) fn hostname(field: &str, text: &str, wildcard: bool) -> Result<(), FieldError> {
    let name = if wildcard { text.strip_prefix("*.").unwrap_or(text) } else { text };
    if text.parse::<IpAddr>().is_ok() {
        return refuse(field, format!("{text:?} is an address; a host name is expected"));
    }
    object_name(field, name).map_err(|_| FieldError {
        field: field.into(),
        reason: format!("{text:?} is not a host name (lower case, at most 253 characters)"),
    })
}

pub(super) fn port(field: &str, number: i64) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => refuse(field, format!("{number} is not a port (1 to 65535)")),
    }
}

/// Of somebody: the unspecified address (`0.0.0.0`) cannot be called.
pub(super) fn address(field: &str, text: &str) -> Result<IpAddr, FieldError> {
    match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if ip.is_unspecified() => refuse(field, format!("{text:?} is nobody's address")),
        Ok(ip) => Ok(ip),
        Err(_) => refuse(field, format!("{text:?} is not an IP address")),
    }
}

/// GEP-2257: `^([0-9]{1,5}(h|m|s|ms)){1,4}$`.
pub(super) fn duration(field: &str, text: &str) -> Result<Duration, FieldError> {
    let wrong = || refuse(field, format!("{text:?} is not a duration (like 500ms, 10s, 1m30s)"));
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let Ok(number) = number.parse::<u32>() else { return wrong() };
        // "ms" before "m".
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let Some((tail, millis)) =
            units.into_iter().find_map(|(unit, millis)| tail.strip_prefix(unit).map(|tail| (tail, millis)))
        else {
            return wrong();
        };
        if digits > 5 {
            return wrong();
        }
        total += Duration::from_millis(u64::from(number) * millis);
        parts += 1;
        rest = tail;
    }
    if parts == 0 || parts > 4 { wrong() } else { Ok(total) }
}

/// RFC 9110: a field name.
pub(super) fn header_name(field: &str, name: &str) -> Result<String, FieldError> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > MAX_HEADER_NAME || !name.bytes().all(token) {
        return refuse(field, format!("{name:?} is not a header name"));
    }
    Ok(name.to_ascii_lowercase())
}

/// A header that policy may change.
pub(super) fn changed_header_name(field: &str, name: &str) -> Result<String, FieldError> {
    let name = header_name(field, name)?;
    if headers::is_reserved(&name) {
        let hint = if name == "host" { " (URLRewrite's hostname does)" } else { "" };
        return refuse(field, format!("{name} is the proxy's own: no header modifier changes it{hint}"));
    }
    Ok(name)
}

/// RFC 9110: a field value; nothing that could end the line.
pub(super) fn header_value(field: &str, value: &str) -> Result<(), FieldError> {
    let allowed = |b: u8| b == b'\t' || (b >= b' ' && b != 0x7f);
    if value.len() > MAX_HEADER_VALUE || !value.bytes().all(allowed) {
        return refuse(field, format!("{value:?} is not a header value"));
    }
    Ok(())
}

/// A path to compare with, as Gateway API restricts it: what a client could hide behind is not allowed.
pub(super) fn match_path(field: &str, path: &str) -> Result<(), FieldError> {
    if !path.starts_with('/') {
        return refuse(field, format!("{path:?} does not start with /"));
    }
    if path.len() > MAX_PATH {
        return refuse(field, format!("longer than {MAX_PATH} characters"));
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if path.contains(part) {
            return refuse(field, format!("{path:?} contains {part:?}"));
        }
    }
    if path.ends_with("/..") || path.ends_with("/.") {
        return refuse(field, format!("{path:?} ends with a dot segment"));
    }
    path_characters(field, path)
}

/// RFC 3986: characters of a path.
pub(super) fn path_characters(field: &str, path: &str) -> Result<(), FieldError> {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let fine = match byte {
            b'%' => [bytes.next(), bytes.next()].iter().all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
        };
        if !fine {
            return refuse(field, format!("{path:?} contains a character that a path cannot hold; percent-encode it"));
        }
    }
    if path.len() > MAX_PATH { refuse(field, format!("longer than {MAX_PATH} characters")) } else { Ok(()) }
}

/// RE2 syntax, with bounded size, by itself and with all `patterns` of the object: what the proxy takes.
pub(super) fn regex(field: &str, pattern: &str, patterns: &mut Patterns) -> Result<(), FieldError> {
    match patterns.whole(pattern) {
        Ok(_) => Ok(()),
        Err(error) if error.is_of_sum() => refuse(field, error.to_string()),
        Err(error) => refuse(field, format!("{pattern:?} is not a regular expression that can be used: {error}")),
    }
}

/// What becomes part of one that is looked at as a whole.
pub(super) fn part_of_regex(field: &str, pattern: &str) -> Result<(), FieldError> {
    match pattern::parse(pattern) {
        Ok(()) => Ok(()),
        Err(error) => refuse(field, format!("{pattern:?} is not a regular expression that can be used: {error}")),
    }
}

/// Those of one object.
pub(super) fn patterns() -> Patterns {
    Patterns::within(pattern::OF_OBJECT)
}

/// In bytes.
pub(super) fn no_longer_than(field: &str, text: &str, most: usize) -> Result<(), FieldError> {
    if text.len() > most { refuse(field, format!("longer than {most} bytes")) } else { Ok(()) }
}

pub(super) fn at_most(field: &str, count: usize, most: usize) -> Result<(), FieldError> {
    if count > most { refuse(field, format!("{count} entries; at most {most} are allowed")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("0s", 0), ("500ms", 500), ("1m30s", 90_000), ("1h2m3s4ms", 3_723_004), ("99999s", 99_999_000)]
        {
            assert_eq!(duration("f", text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "1", "s", "1d", "-1s", "1.5s", "123456s", "1s1s1s1s1s", "1 s", "٣s"] {
            assert!(duration("f", text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths() {
        for path in ["/", "/a/b", "/a%20b", "/a;x=1"] {
            assert!(match_path("f", path).is_ok(), "{path}");
        }
        for path in ["", "a", "/a//b", "/a/../b", "/a/..", "/a%2Fb", "/a#b", "/a b", "/a%2", "/ü"] {
            assert!(match_path("f", path).is_err(), "{path}");
        }
    }

    #[test]
    fn regexes_compile_and_stay_inside_their_anchors() {
        let mut patterns = patterns();
        for pattern in ["/v[0-9]+/.*", r"/users/\w{36}", r"/[^/]{1,64}/\d+"] {
            assert!(regex("f", pattern, &mut patterns).is_ok(), "{pattern}");
        }
        for pattern in ["(", "a)|(b", "(?P<x", "\\p{Foo}", "((a{100}){100}){100}"] {
            assert!(regex("f", pattern, &mut patterns).is_err(), "{pattern}");
        }
    }

    #[test]
    fn names() {
        assert!(object_name("f", "a-b.c1").is_ok());
        for name in ["", "A", "a_b", "-a", "a-", "a..b", "a/b"] {
            assert!(object_name("f", name).is_err(), "{name}");
        }
        assert!(hostname("f", "*.example.com", true).is_ok());
        assert!(hostname("f", "*.example.com", false).is_err());
        assert!(hostname("f", "10.0.0.1", false).is_err());
    }
}
