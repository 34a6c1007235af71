//! HTTP routing as Gateway API defines it. Rules come sorted by precedence; the first match decides.

use std::{sync::Arc, time::Duration};

use http::request::Parts;

use super::{RuleOrigin, WeightedBackends};
use crate::{http::filter::Filters, telemetry::RouteMetrics, upstream::Backend};

/// The rules of a service port.
pub struct HttpRoutes {
    // policy: compiled rules: path matcher, headers, query, method, grpc → Arc<HttpAction>
}

/// What a rule does.
pub struct HttpAction {
    pub origin: RuleOrigin,
    pub filters: Filters,
    pub backends: WeightedBackends<HttpBackend>,
    /// First byte of the request to last byte of the response, all tries.
    pub request_timeout: Option<Duration>,
    /// One try.
    pub try_timeout: Option<Duration>,
    pub retry: Option<Retry>,
}

/// A backend of an HTTP rule.
pub struct HttpBackend {
    /// Err: the reference cannot be resolved, its share is answered with 500; says why.
    pub backend: Result<Arc<Backend>, String>,
    pub filters: Filters,
    /// Handles for (service, route, rule, backend), made here so that no request looks them up.
    pub metrics: RouteMetrics,
}

/// What may be tried again besides what was provably not processed (which always may, within the budget).
#[derive(Debug, Clone)]
pub struct Retry {
    /// Sorted.
    pub statuses: Vec<u16>,
    /// Tries beyond the first.
    pub attempts: u32,
    pub backoff: Duration,
}

/// A rule that matched.
pub struct Matched<'a> {
    pub action: &'a Arc<HttpAction>,
    /// Length of the path prefix that matched, for prefix rewrites; the whole path if it was not a prefix.
    pub prefix_len: usize,
}

impl HttpRoutes {
    /// The first rule that holds for the request.
    pub fn decide(&self, _request: &Parts) -> Option<Matched<'_>> {
        todo!("policy")
    }
}
