//! Header modifiers, redirects and rewrites, in runtime form: names and values parsed when policy was compiled.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, uri::Scheme};

use super::{
    cors::Cors,
    head::{Fields, RequestHead},
    mirror::Mirror,
};
use crate::error::Error;

/// What a rule (or a backend of it) changes. Applied in this order: CORS, redirect, request headers, rewrite, mirrors,
/// response headers.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    pub request: HeaderChanges,
    pub response: HeaderChanges,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<Arc<Mirror>>,
    /// Why mirrors that policy names get nothing.
    pub unmirrored: Vec<String>,
    /// Only of a rule.
    pub cors: Option<Arc<Cors>>,
    /// A filter Leno does not know: the request is answered with 500. Holds its name.
    pub unsupported: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct HeaderChanges {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Debug, Clone)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<String>,
    pub port: Option<u16>,
    pub status: http::StatusCode,
    pub path: Option<PathChange>,
}

#[derive(Debug, Clone)]
pub struct Rewrite {
    pub hostname: Option<String>,
    pub path: Option<PathChange>,
}

#[derive(Debug, Clone)]
pub enum PathChange {
    ReplaceFull(String),
    ReplacePrefix(String),
}

impl HeaderChanges {
    /// Set, then add, then remove.
    pub(crate) fn apply(&self, fields: &mut Fields) {
        for (name, value) in &self.set {
            fields.set_named(name.as_str().as_bytes(), value.as_bytes());
        }
        for (name, value) in &self.add {
            fields.push(name.as_str().as_bytes(), value.as_bytes());
        }
        for name in &self.remove {
            fields.remove_named(name.as_str().as_bytes());
        }
    }
}

impl HeaderChanges {
    /// Of all headers that are set, added or removed.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let given = self.set.iter().chain(&self.add).map(|(name, _)| name);
        given.chain(&self.remove).map(HeaderName::as_str)
    }
}

/// Changes host and path; the query stays. `rewrites`: the backend's and the rule's, of which the former counts: both are of
/// the request as it came. `prefix_len`: how much of the path the rule's match was for.
///
/// # Errors
/// If the new path is no path.
pub(crate) fn rewrite(rewrites: [Option<&Rewrite>; 2], head: &mut RequestHead, prefix_len: usize) -> Result<(), Error> {
    let rewrites = || rewrites.into_iter().flatten();
    if let Some(host) = rewrites().find_map(|rewrite| rewrite.hostname.as_ref()) {
        head.set_authority(host);
    }
    if let Some(change) = rewrites().find_map(|rewrite| rewrite.path.as_ref()) {
        let target = change.path_and_query(head, prefix_len);
        if !is_target(&target) {
            return Err(unusable("path"));
        }
        head.set_target(&target);
    }
    Ok(())
}

impl Redirect {
    /// Where the client is sent. `port`: the one it called.
    ///
    /// # Errors
    /// If what comes out is no URI.
    pub(crate) fn location(&self, head: &RequestHead, port: u16, prefix_len: usize) -> Result<HeaderValue, Error> {
        let (called, called_port) = host_and_port(head.authority().unwrap_or_default());
        let host = self.hostname.as_deref().unwrap_or(called);
        let scheme = self.scheme.as_ref().map_or(head.scheme.as_str(), Scheme::as_str);
        let well_known = if scheme == "https" { 443 } else { 80 };
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => port,
            (None, Some(_)) => well_known,
            // Where clients call a listener of the proxy's, it has another port than the Service.
            (None, None) if self.hostname.is_none() => called_port.unwrap_or(port),
            (None, None) => port,
        };
        let mut location = format!("{scheme}://{host}");
        if port != well_known {
            location.push_str(&format!(":{port}"));
        }
        match &self.path {
            Some(change) => location.push_str(&change.path_and_query(head, prefix_len)),
            // Of "*" (OPTIONS) there is no path to keep.
            None => location.push_str(if head.target().starts_with('/') { head.target() } else { "/" }),
        }
        HeaderValue::try_from(location).map_err(|_| unusable("redirect"))
    }
}

impl PathChange {
    /// The new path with the request's query.
    fn path_and_query(&self, head: &RequestHead, prefix_len: usize) -> String {
        let mut target = match self {
            Self::ReplaceFull(path) if path.is_empty() => "/".to_owned(),
            Self::ReplaceFull(path) => path.clone(),
            Self::ReplacePrefix(with) => replace_prefix(head.path(), prefix_len, with),
        };
        if let Some(query) = head.query() {
            target.push('?');
            target.push_str(query);
        }
        target
    }
}

/// Gateway API, HTTPPathModifier: whole segments are replaced, and no slash is doubled or lost.
fn replace_prefix(path: &str, prefix_len: usize, with: &str) -> String {
    let prefix = path.get(..prefix_len).unwrap_or(path).trim_end_matches('/');
    let rest = path.get(prefix.len()..).unwrap_or_default();
    let target = format!("{}{rest}", with.trim_end_matches('/'));
    if target.is_empty() { "/".to_owned() } else { target }
}

/// Origin form (RFC 9112 3.2.1), as far as a rewrite could spoil it.
fn is_target(target: &str) -> bool {
    target.starts_with('/') && target.bytes().all(|byte| byte > b' ' && byte != 0x7f && byte != b'#')
}

/// The parts of `host[:port]`; an IPv6 address keeps its brackets.
fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

fn unusable(what: &str) -> Error {
    Error::InvalidBackend(format!("the route's {what} makes no valid URI for this request"))
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, Version};

    use super::*;

    fn head(target: &str, host: &str) -> RequestHead {
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, target);
        head.set_authority(host);
        head
    }

    #[test]
    fn prefixes_are_replaced_as_the_gateway_api_tables_it() {
        for (path, prefix, with, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "", "/xyz", "/xyz/foo"),
            ("/", "", "/xyz", "/xyz/"),
        ] {
            assert_eq!(replace_prefix(path, prefix.len(), with), expected, "{path} {prefix} → {with}");
        }
    }

    #[test]
    fn rewrites_keep_the_query() {
        let mut request = head("/foo/bar?a=b", "old");
        let full = Rewrite { hostname: Some("new".into()), path: Some(PathChange::ReplaceFull("/x".into())) };
        rewrite([None, Some(&full)], &mut request, 4).unwrap();
        assert_eq!((request.target(), request.authority()), ("/x?a=b", Some("new")));

        let mut request = head("/foo/bar?a=b", "shop");
        let prefix = Rewrite { hostname: None, path: Some(PathChange::ReplacePrefix("/y".into())) };
        rewrite([None, Some(&prefix)], &mut request, 4).unwrap();
        assert_eq!((request.target(), request.authority()), ("/y/bar?a=b", Some("shop")));

        // A backend's goes before the rule's, part by part, and starts from the request as it came.
        let mut request = head("/foo/bar?a=b", "shop");
        rewrite([Some(&prefix), Some(&full)], &mut request, 4).unwrap();
        assert_eq!((request.target(), request.authority()), ("/y/bar?a=b", Some("new")));

        let broken = Rewrite { hostname: None, path: Some(PathChange::ReplaceFull("no path".into())) };
        assert!(rewrite([Some(&broken), None], &mut head("/", "a"), 0).is_err());
    }

    #[test]
    fn redirects_name_a_port_only_where_it_is_not_the_schemes_own() {
        let location = |scheme: Option<Scheme>, hostname: Option<&str>, port, called: u16, host: &str| {
            let redirect =
                Redirect { scheme, hostname: hostname.map(str::to_owned), port, status: StatusCode::FOUND, path: None };
            redirect.location(&head("/a?b=c", host), called, 0).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(location(None, None, None, 80, "shop"), "http://shop/a?b=c");
        assert_eq!(location(None, None, None, 8080, "shop:8080"), "http://shop:8080/a?b=c");
        assert_eq!(location(Some(Scheme::HTTPS), None, None, 8080, "shop:8080"), "https://shop/a?b=c");
        assert_eq!(location(Some(Scheme::HTTPS), None, Some(443), 80, "shop"), "https://shop/a?b=c");
        assert_eq!(location(Some(Scheme::HTTPS), None, Some(8443), 80, "shop"), "https://shop:8443/a?b=c");
        assert_eq!(location(Some(Scheme::HTTP), Some("other"), None, 8080, "shop"), "http://other/a?b=c");
        assert_eq!(location(None, Some("other"), Some(80), 8080, "shop"), "http://other/a?b=c");
        assert_eq!(location(None, None, None, 80, "127.0.0.9:8001"), "http://127.0.0.9:8001/a?b=c", "a listener's");
        assert_eq!(location(None, Some("other"), None, 80, "127.0.0.9:8001"), "http://other/a?b=c");
        assert_eq!(location(None, None, None, 8080, "[fd00::1]:8080"), "http://[fd00::1]:8080/a?b=c");
        assert_eq!(location(None, None, None, 80, "[fd00::1]"), "http://[fd00::1]/a?b=c");

        // The scheme that the client named is kept, as is the path; "*" is none.
        let redirect = |path, host: &str| {
            let (scheme, port) = (None, None);
            Redirect { scheme, hostname: Some(host.to_owned()), port, status: StatusCode::FOUND, path }
        };
        let mut secure = head("/a?b=c", "shop");
        secure.scheme = crate::http::head::Scheme::Https;
        assert_eq!(redirect(None, "a").location(&secure, 443, 0).unwrap(), "https://a/a?b=c");
        assert_eq!(redirect(None, "a").location(&secure, 80, 0).unwrap(), "https://a:80/a?b=c");
        assert_eq!(redirect(None, "a").location(&head("*", "shop"), 80, 0).unwrap(), "http://a/");
        let prefix = |with: &str| Some(PathChange::ReplacePrefix(with.to_owned()));
        assert_eq!(redirect(prefix("/"), "a").location(&head("/old?x", "shop"), 80, 4).unwrap(), "http://a/?x");
        assert_eq!(redirect(prefix("/"), "a").location(&head("/old/b?x", "shop"), 80, 4).unwrap(), "http://a/b?x");
    }

    #[test]
    fn headers_are_set_added_and_removed() {
        let pair = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut fields = Fields::from_iter([("x-a", "1"), ("x-b", "1"), ("x-c", "1")]);
        let changes = HeaderChanges {
            set: vec![pair("x-a", "2")],
            add: vec![pair("x-b", "2")],
            remove: vec![HeaderName::from_static("x-c")],
        };
        changes.apply(&mut fields);
        assert_eq!(fields, Fields::from_iter([("x-b", "1"), ("x-a", "2"), ("x-b", "2")]));
    }
}
