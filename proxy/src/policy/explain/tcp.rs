//! Ports that carry bytes: routes by server name, and by weight.

use super::Explainer;
use crate::policy::{ServicePort, TcpRoute};

/// Server names that are told of.
const NAMES_TOLD: usize = 16;

impl Explainer<'_> {
    /// What becomes of a connection to a port whose requests nobody looks at.
    pub(super) fn connection(&mut self, port: &ServicePort) {
        self.add("rule", false, "the port does not speak HTTP: nothing in a request is looked at".to_owned());
        for rule in port.tls.iter().flat_map(|routes| routes.rules.iter()) {
            let names: Vec<String> = rule.names.iter().take(NAMES_TOLD).map(ToString::to_string).collect();
            let names = if names.is_empty() { "any server name, or none".to_owned() } else { names.join(", ") };
            self.by("rule", true, format!("TLS for {names}"), &rule.route.origin);
            self.tcp(&rule.route);
        }
        if let Some(route) = &port.tcp {
            self.by("rule", true, "each connection".to_owned(), &route.origin);
            self.tcp(route);
        }
        if port.tls.is_none() && port.tcp.is_none() {
            self.add("answer", true, "the connection is closed: no route takes it".to_owned());
        }
    }

    fn tcp(&mut self, route: &TcpRoute) {
        let total: u64 = route.backends.iter().map(|(weight, _)| u64::from(*weight)).sum();
        for (weight, entry) in route.backends.iter() {
            let share = f64::from(*weight) * 100.0 / total.max(1) as f64;
            match &entry.backend {
                Ok(to) => {
                    let text = format!("{} gets {share:.4} % of the connections", to.key);
                    self.by("backend", *weight > 0, text, &route.origin);
                    self.backend(to);
                }
                Err(reason) => {
                    let text = format!("{share:.4} % of the connections are closed: {reason}");
                    self.by("backend", *weight > 0, text, &route.origin);
                }
            }
        }
    }
}
