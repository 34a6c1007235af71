//! How a backend is called: what a BackendPolicy says of it, with defaults for what it does not.

use std::{sync::Arc, time::Duration};

use crate::{
    config::limits,
    upstream::{balance::LoadBalancing, outlier::OutlierDetection},
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
}

impl Default for BackendPolicy {
    fn default() -> Self {
        Self {
            origin: None,
            connect_timeout: limits::CONNECT_TIMEOUT,
            load_balancing: LoadBalancing::default(),
            outlier_detection: OutlierDetection::default(),
        }
    }
}
