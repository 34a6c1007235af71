//! What protects one port of the workload, whoever calls it: rate limits, concurrency, connections. One for each port and
//! process, shared by its workers; policy is put in force in it when it changes ([`crate::policy::Store`]), so that a request
//! finds it without a look-up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::{ArcSwapOption, Guard};

use super::{
    concurrency::{Concurrency, Limiter},
    rate_limit::RateLimits,
};
use crate::upstream::budget::RetryBudget;

/// What policy says about a port.
#[derive(Debug, Clone, Default)]
pub struct PortPolicy {
    /// "InboundPolicy shop/cart"; None: defaults.
    pub origin: Option<Arc<str>>,
    pub rate_limits: Option<Arc<RateLimits>>,
    pub concurrency: Concurrency,
    /// Open at a time; None: any number.
    pub max_connections: Option<u32>,
    /// Bytes of a request's head; None: as many as the proxy itself takes.
    pub max_head: Option<u32>,
    /// Bytes of a request's body; None: any number.
    pub max_body: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Protection {
    /// Of the policy in force, if there is one.
    origin: ArcSwapOption<Arc<str>>,
    rate_limits: ArcSwapOption<RateLimits>,
    pub(crate) concurrency: Limiter,
    max_connections: AtomicU32,
    max_head: AtomicU32,
    max_body: AtomicU64,
    connections: AtomicU32,
    /// For what is sent to the application again.
    pub(crate) retries: RetryBudget,
}

/// A connection that counts, until it is dropped.
#[derive(Debug)]
pub struct Connected(Arc<Protection>);

impl Protection {
    pub fn new(port: u16, policy: &PortPolicy) -> Arc<Self> {
        let made = Self {
            origin: ArcSwapOption::empty(),
            rate_limits: ArcSwapOption::empty(),
            concurrency: Limiter::new(port, policy.concurrency, Instant::now()),
            max_connections: AtomicU32::new(u32::MAX),
            max_head: AtomicU32::new(u32::MAX),
            max_body: AtomicU64::new(u64::MAX),
            connections: AtomicU32::new(0),
            retries: RetryBudget::default(),
        };
        made.set(policy);
        Arc::new(made)
    }

    /// Puts a policy in force, for requests and connections to come.
    pub fn set(&self, policy: &PortPolicy) {
        self.origin.store(policy.origin.clone().map(Arc::new));
        self.rate_limits.store(policy.rate_limits.clone());
        self.concurrency.set(policy.concurrency, Instant::now());
        self.max_connections.store(policy.max_connections.unwrap_or(u32::MAX), Ordering::Relaxed);
        self.max_head.store(policy.max_head.unwrap_or(u32::MAX), Ordering::Relaxed);
        self.max_body.store(policy.max_body.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// "InboundPolicy shop/cart"; None: defaults.
    pub(crate) fn origin(&self) -> Option<Arc<str>> {
        self.origin.load().as_deref().cloned()
    }

    /// Bytes that a request's head may have.
    pub(crate) fn max_head(&self) -> usize {
        self.max_head.load(Ordering::Relaxed) as usize
    }

    /// Bytes that a request's body may have.
    pub(crate) fn max_body(&self) -> u64 {
        self.max_body.load(Ordering::Relaxed)
    }

    pub(crate) fn rate_limits(&self) -> Guard<Option<Arc<RateLimits>>> {
        self.rate_limits.load()
    }

    /// Connections that are open, and how many may be; None: any number.
    pub(crate) fn connections(&self) -> Option<(u32, u32)> {
        let most = self.max_connections.load(Ordering::Relaxed);
        (most != u32::MAX).then(|| (self.connections.load(Ordering::Relaxed), most))
    }

    /// Lets a connection in. None: there are as many as are allowed.
    pub(crate) fn connect(self: &Arc<Self>) -> Option<Connected> {
        let connected = Connected(Arc::clone(self));
        let open = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        (open <= self.max_connections.load(Ordering::Relaxed)).then_some(connected)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_and_limited() {
        let protection = Protection::new(80, &PortPolicy { max_connections: Some(2), ..PortPolicy::default() });
        let held: Vec<_> = (0..2).filter_map(|_| protection.connect()).collect();
        assert!(held.len() == 2 && protection.connect().is_none() && protection.connect().is_none());
        drop(held);
        assert!(protection.connect().is_some());
        protection.set(&PortPolicy::default());
        assert_eq!((0..100).map(|_| protection.connect()).filter(Option::is_some).count(), 100);
    }
}
