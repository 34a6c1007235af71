//! How a backend is called: what a BackendPolicy says of it, with defaults for what it does not.

use std::{sync::Arc, time::Duration};

use crate::{
    config::limits,
    upstream::{balance::LoadBalancing, breaker, budget, bulkhead, outlier::OutlierDetection},
};

/// In force for all requests that begin while it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendPolicy {
    /// "BackendPolicy shop/cart"; None: defaults.
    pub origin: Option<Arc<str>>,
    /// To make a connection, TLS included.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// When an endpoint is ejected.
    pub outlier_detection: OutlierDetection,
    /// All tries of a request, unless its route says.
    pub request_timeout: Option<Duration>,
    /// The same until the head of the answer.
    pub response_timeout: Option<Duration>,
    /// One try, unless the route says.
    pub try_timeout: Option<Duration>,
    /// An exchange without a byte moved. None: STREAM_IDLE.
    pub stream_idle: Option<Duration>,
    /// A pooled connection without a request. None: POOL_IDLE or MESH_POOL_IDLE.
    pub connection_idle: Option<Duration>,
    pub retry_budget: budget::Settings,
    /// Who says the budget, if it is not `origin`.
    pub budget_origin: Option<Arc<str>>,
    pub breaker: Option<Arc<breaker::Settings>>,
    pub limits: bulkhead::Limits,
}

impl Default for BackendPolicy {
    fn default() -> Self {
        Self {
            origin: None,
            connect_timeout: limits::CONNECT_TIMEOUT,
            load_balancing: LoadBalancing::default(),
            outlier_detection: OutlierDetection::default(),
            request_timeout: None,
            response_timeout: None,
            try_timeout: None,
            stream_idle: None,
            connection_idle: None,
            retry_budget: budget::Settings::default(),
            budget_origin: None,
            breaker: None,
            limits: bulkhead::Limits::default(),
        }
    }
}
