//! HTTP routing as Gateway API defines it. Rules come sorted by precedence; the first match decides.

use std::{sync::Arc, time::Duration};

use super::{
    RuleOrigin, WeightedBackends, fault::Faults, hedging::Hedge, http_match::HttpMatch, retry_policy::Retry,
    static_answer::StaticAnswer,
};
use crate::{
    http::{filter::Filters, head::RequestHead, persistence::Persistence},
    telemetry::RouteMetrics,
    upstream::Backend,
};

/// The rules of a service port.
pub struct HttpRoutes {
    pub(super) rules: Box<[HttpRule]>,
}

/// A match, and what to do. A route's rule with several matches is several of these, with one action.
pub(crate) struct HttpRule {
    pub(crate) matches: HttpMatch,
    pub(crate) action: Arc<HttpAction>,
}

/// What a rule does.
pub struct HttpAction {
    pub origin: RuleOrigin,
    pub filters: Filters,
    pub backends: WeightedBackends<HttpBackend>,
    /// First byte of the request to last byte of the response, all tries. None: the backend's; `Duration::MAX`: none,
    /// whatever that is.
    pub request_timeout: Option<Duration>,
    /// First byte of the request to the head of the response, all tries. None and `Duration::MAX`: as above.
    pub response_timeout: Option<Duration>,
    /// One try. None and `Duration::MAX`: as above.
    pub try_timeout: Option<Duration>,
    pub retry: Option<Retry>,
    pub hedge: Option<Hedge>,
    /// An exchange without a byte moved. None: the backend's.
    pub stream_idle: Option<Duration>,
    pub faults: Option<Box<Faults>>,
    /// In place of any backend.
    pub direct_response: Option<Box<StaticAnswer>>,
    pub fallback: Option<Box<Fallback>>,
    pub persistence: Option<Box<Persistence>>,
    /// Requests with one of these headers, in lower case, are kept for who asks why they went as they did.
    pub explain_headers: Box<[Box<str>]>,
    /// The RoutePolicy that has a part in this.
    pub policy: Option<Box<RulePolicy>>,
    /// Handles for (service, route, rule) of answers that no backend had a part in.
    pub metrics: RouteMetrics,
}

/// What of an action a RoutePolicy says, where the route might have said it.
pub struct RulePolicy {
    /// "RoutePolicy shop/patience"
    pub origin: Arc<str>,
    pub request_timeout: bool,
    pub try_timeout: bool,
    pub retry: bool,
}

/// What becomes of requests that could not be sent to the backend that was chosen.
pub enum Fallback {
    Backend(Arc<Backend>, RouteMetrics),
    Answer(StaticAnswer),
}

/// A backend of an HTTP rule.
pub struct HttpBackend {
    /// Err: the reference cannot be resolved, its share is answered with 500; says why.
    pub backend: Result<Arc<Backend>, String>,
    pub filters: Filters,
    /// Its own, for rules that say nothing of sessions.
    pub persistence: Option<Box<Persistence>>,
    /// The policy that says so, "XBackendTrafficPolicy shop/cart".
    pub session_policy: Option<Arc<str>>,
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

impl HttpAction {
    /// Every backend that is named, also to mirror to, or to fall back on.
    fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let entries = || self.backends.iter().map(|(_, entry)| entry);
        let filters = std::iter::once(&self.filters).chain(entries().map(|entry| &entry.filters));
        let mirrors = filters.flat_map(|filters| &filters.mirrors).map(|mirror| &mirror.backend);
        let fallback = self.fallback.as_deref().and_then(|fallback| match fallback {
            Fallback::Backend(backend, _) => Some(backend),
            Fallback::Answer(_) => None,
        });
        entries().filter_map(|entry| entry.backend.as_ref().ok()).chain(mirrors).chain(fallback)
    }
}

impl HttpRoutes {
    /// In the order in which they are looked at.
    pub(crate) fn rules(&self) -> &[HttpRule] {
        &self.rules
    }

    /// Every backend that an action names.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.rules.iter().flat_map(|rule| rule.action.backends())
    }

    /// The hedging of the rule of that name, if it has any.
    pub(super) fn hedge(&self, origin: &RuleOrigin) -> Option<&Hedge> {
        self.rules.iter().find(|rule| rule.action.origin == *origin)?.action.hedge.as_ref()
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
