//! What stands between requests and a backend by policy: circuit breaker, bulkheads, timeouts. A backend without such a
//! policy costs one load to know so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;

use super::{
    Outcome,
    breaker::{self, Breaker, Permit},
    bulkhead::{Counts, Limits, Place, What},
};
use crate::{error::Error, policy::BackendPolicy};

/// What the policy in force says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub breaker: Option<Arc<breaker::Settings>>,
    pub limits: Limits,
    /// All tries of a request, unless its route says.
    pub request_timeout: Option<Duration>,
    /// The same until the head of the answer.
    pub response_timeout: Option<Duration>,
    /// One try, unless the route says.
    pub try_timeout: Option<Duration>,
    /// Without a byte moved.
    pub stream_idle: Option<Duration>,
}

impl Rules {
    fn of(policy: &BackendPolicy) -> Option<Self> {
        let rules = Self {
            breaker: policy.breaker.clone(),
            limits: policy.limits,
            request_timeout: policy.request_timeout,
            response_timeout: policy.response_timeout,
            try_timeout: policy.try_timeout,
            stream_idle: policy.stream_idle,
        };
        (rules != Self::default()).then_some(rules)
    }
}

/// A backend's, shared by all workers; what it has counted outlives its policy's versions.
#[derive(Debug, Default)]
pub struct Shield {
    /// The backend was heard of, and whether there is a policy.
    told: AtomicBool,
    up: AtomicBool,
    rules: ArcSwapOption<Rules>,
    pub breaker: Arc<Breaker>,
    pub counts: Arc<Counts>,
}

impl Shield {
    /// Takes over what the policy says.
    pub fn under(&self, policy: &BackendPolicy) {
        let rules = Rules::of(policy);
        if rules.as_ref().is_none_or(|rules| rules.breaker.is_none()) {
            self.breaker.reset();
        }
        self.up.store(rules.is_some(), Ordering::Relaxed);
        self.rules.store(rules.map(Arc::new));
        self.told.store(true, Ordering::Release);
    }

    /// Whether it is known what policy says. Before that, nothing may be sent: it would be under no policy at all.
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// None: there is nothing to keep to.
    pub fn rules(&self) -> Option<Arc<Rules>> {
        if !self.up.load(Ordering::Relaxed) {
            return None;
        }
        self.rules.load_full()
    }

    /// Leave for one try of `backend`, if the breaker gives it; None if there is no breaker.
    ///
    /// # Errors
    /// [`Error::CircuitOpen`].
    pub fn admit(&self, rules: &Rules, backend: &Arc<str>, now: Instant) -> Result<Option<Permit>, Error> {
        let Some(settings) = &rules.breaker else { return Ok(None) };
        let open = |retry_after| Error::CircuitOpen { backend: Arc::clone(backend), retry_after };
        self.breaker.admit(settings, now).map(Some).map_err(open)
    }

    /// How a try that had leave ended. A try that says nothing of the backend gives back its leave.
    pub fn report(&self, permit: Option<Permit>, outcome: Outcome, backend: &Arc<str>, now: Instant) {
        let Some(permit) = permit else { return };
        let success = match outcome {
            Outcome::Success => Some(true),
            Outcome::Failure => Some(false),
            Outcome::Refused | Outcome::GivenUp | Outcome::Neutral => None,
        };
        if permit.report(success, now) {
            tracing::warn!(%backend, "circuit breaker opened");
        }
    }

    /// A place for a request, a retry, or whatever waits for a connection; None if there is no such limit.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn place(&self, rules: &Rules, what: What, backend: &Arc<str>) -> Result<Option<Place>, Error> {
        let limit = match what {
            What::Connection => rules.limits.connections,
            What::Pending => rules.limits.pending,
            What::Request => rules.limits.requests,
            What::Retry => rules.limits.retries,
        };
        let Some(limit) = limit else { return Ok(None) };
        let full = || Error::Limit { limit: what.as_str(), backend: Arc::clone(backend) };
        self.counts.take(what, limit).map(Some).ok_or_else(full)
    }
}
