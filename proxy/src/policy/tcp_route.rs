//! Routing of connections: TCP by weight, the application's TLS by SNI.

use std::sync::Arc;

use super::{RuleOrigin, WeightedBackends};
use crate::{telemetry::ConnectionMetrics, upstream::Backend};

/// Weighted backends, picked per connection.
pub struct TcpRoute {
    pub origin: RuleOrigin,
    pub backends: WeightedBackends<TcpBackend>,
}

pub struct TcpBackend {
    /// Err: cannot be resolved: the connection is closed; says why.
    pub backend: Result<Arc<Backend>, String>,
    pub metrics: ConnectionMetrics,
}

/// Routes by server name, most specific first.
pub struct TlsRoutes {
    // policy
}

impl TlsRoutes {
    /// The route for a connection's SNI.
    pub fn decide(&self, _server_name: Option<&str>) -> Option<&TcpRoute> {
        todo!("policy")
    }
}
