//! HTTP routing as Gateway API defines it. Rules come sorted by precedence; the first match decides.

use std::{sync::Arc, time::Duration};

use super::{RuleOrigin, WeightedBackends, hedging::Hedge, http_match::HttpMatch, retry_policy::Retry};
use crate::{
    http::{filter::Filters, head::RequestHead},
    telemetry::RouteMetrics,
    upstream::Backend,
};

/// The rules of a service port.
pub struct HttpRoutes {
    pub(super) rules: Box<[HttpRule]>,
}

/// A match, and what to do. A route's rule with several matches is several of these, with one action.
pub(super) struct HttpRule {
    pub(super) matches: HttpMatch,
    pub(super) action: Arc<HttpAction>,
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
    pub hedge: Option<Hedge>,
    /// An exchange without a byte moved. None: the backend's.
    pub stream_idle: Option<Duration>,
}

/// A backend of an HTTP rule.
pub struct HttpBackend {
    /// Err: the reference cannot be resolved, its share is answered with 500; says why.
    pub backend: Result<Arc<Backend>, String>,
    pub filters: Filters,
    /// Handles for (service, route, rule, backend), made here so that no request looks them up.
    pub metrics: RouteMetrics,
}

/// A rule that matched.
pub struct Matched<'a> {
    pub action: &'a Arc<HttpAction>,
    /// Length of the path prefix that matched, without a slash at its end (0 for "/"), for prefix rewrites; the
    /// whole path if it was not a prefix.
    pub prefix_len: usize,
}

impl HttpRoutes {
    /// Every backend that an action names.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let actions = self.rules.iter().map(|rule| &rule.action);
        actions.flat_map(|action| action.backends.iter()).filter_map(|(_, entry)| entry.backend.as_ref().ok())
    }

    /// The first rule that holds for the request.
    pub fn decide(&self, request: &RequestHead) -> Option<Matched<'_>> {
        self.rules.iter().find_map(|rule| {
            let prefix_len = rule.matches.holds(request)?;
            Some(Matched { action: &rule.action, prefix_len })
        })
    }
}

#[cfg(test)]
mod tests;
