//! How a backend is called: what a BackendPolicy says of it, with defaults for what it does not.

use std::{sync::Arc, time::Duration};

use crate::config::limits;

/// In force for all requests that begin while it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendPolicy {
    /// "BackendPolicy shop/cart"; None: defaults.
    pub origin: Option<Arc<str>>,
    /// To make a connection, TLS included.
    pub connect_timeout: Duration,
}

impl Default for BackendPolicy {
    fn default() -> Self {
        Self { origin: None, connect_timeout: limits::CONNECT_TIMEOUT }
    }
}
