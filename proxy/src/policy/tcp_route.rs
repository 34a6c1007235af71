//! Routing of connections: TCP by weight, the application's TLS by SNI.

use std::{fmt, sync::Arc};

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

/// Routes by server name, in the order of precedence.
pub struct TlsRoutes {
    pub(super) rules: Box<[TlsRule]>,
}

pub(super) struct TlsRule {
    /// Empty: any, and connections without a name.
    pub(super) names: Box<[ServerName]>,
    pub(super) route: TcpRoute,
}

/// A name, or all names below one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServerName {
    Exact(Box<str>),
    /// "*.example.com" as ".example.com": one label or more in its place (Gateway API, Hostname).
    Below(Box<str>),
}

impl TcpRoute {
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.backends.iter().filter_map(|(_, entry)| entry.backend.as_ref().ok())
    }
}

impl TlsRoutes {
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.rules.iter().flat_map(|rule| rule.route.backends())
    }

    /// The route for a connection's SNI.
    pub fn decide(&self, server_name: Option<&str>) -> Option<&TcpRoute> {
        let rule = self.rules.iter().find(|rule| rule.takes(server_name))?;
        Some(&rule.route)
    }
}

impl TlsRule {
    /// Whether it is for connections with this SNI.
    pub(super) fn takes(&self, server_name: Option<&str>) -> bool {
        self.names.is_empty() || server_name.is_some_and(|name| self.names.iter().any(|one| one.holds(name)))
    }
}

impl ServerName {
    /// None if the text is no host name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, wildcard) = match text.strip_prefix('*') {
            Some(suffix) => (suffix.strip_prefix('.')?, true),
            None => (text, false),
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return None;
        }
        Some(if wildcard { Self::Below(format!(".{name}").into()) } else { Self::Exact(name.into()) })
    }

    fn holds(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        match self {
            Self::Exact(exact) => name.eq_ignore_ascii_case(exact.as_bytes()),
            Self::Below(suffix) => match name.len().checked_sub(suffix.len()).map(|at| name.split_at(at)) {
                Some((front, back)) => !front.is_empty() && back.eq_ignore_ascii_case(suffix.as_bytes()),
                None => false,
            },
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests;
