//! Header modifiers, redirects and rewrites, in runtime form: names and values parsed when policy was compiled.

use http::{HeaderName, HeaderValue};

/// What a rule (or a backend of it) changes. Applied in this order: request headers, rewrite, response headers.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    pub request: HeaderChanges,
    pub response: HeaderChanges,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
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
    pub scheme: Option<http::uri::Scheme>,
    pub hostname: Option<String>,
    pub port: Option<u16>,
    pub status: http::StatusCode,
    pub path: Option<PathChange>,
}

#[derive(Debug, Clone)]
pub struct Rewrite {
    pub hostname: Option<HeaderValue>,
    pub path: Option<PathChange>,
}

#[derive(Debug, Clone)]
pub enum PathChange {
    ReplaceFull(String),
    ReplacePrefix(String),
}
