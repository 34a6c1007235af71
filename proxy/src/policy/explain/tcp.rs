//! Ports that carry bytes: routes by server name, and by weight.

use super::{Asked, Explainer};
use crate::policy::{Protocol, ServicePort, TcpRoute, TlsRoutes, says::Caller, share::percent, tcp_route::TlsRule};

/// Server names that are told of.
const NAMES_TOLD: usize = 16;

impl Explainer<'_> {
    /// What becomes of a connection of whose requests nothing is looked at.
    pub(super) fn connection(&mut self, port: &ServicePort, asked: Asked<'_>) {
        let server_name = match asked {
            Asked::Request(_) => None,
            Asked::Tls(name) => Some(name),
        };
        let why = if server_name.is_some() { "TLS of the application's own" } else { "the port does not speak HTTP" };
        self.add("rule", false, format!("{why}: nothing in a request is looked at"));
        if port.http.is_some() && port.protocol != Protocol::Detect {
            let text = "400: the port is declared HTTP, and TLS comes";
            return self.add("answer", true, text.to_owned());
        }
        let Some(routes) = port.tls.as_ref().filter(|_| port.protocol == Protocol::Tls) else {
            return match &port.tcp {
                Some(route) => {
                    self.by("rule", true, "each connection".to_owned(), &route.origin);
                    self.tcp(route);
                }
                None => self.closed("no route takes it"),
            };
        };
        self.tls(routes, server_name);
    }

    /// The first route that takes the server name; the others are told of.
    fn tls(&mut self, routes: &TlsRoutes, server_name: Option<&str>) {
        let Some(name) = server_name else {
            for rule in &routes.rules {
                self.by("rule", false, names_of(rule), &rule.route.origin);
            }
            return self.closed("the port is declared TLS, and what comes is not (a URL with https asks about TLS)");
        };
        for rule in &routes.rules {
            let takes = rule.takes(Some(name));
            let not = if takes { "" } else { ", not for " };
            let asked = if takes { "" } else { name };
            self.by("rule", takes, format!("{}{not}{asked}", names_of(rule)), &rule.route.origin);
            if takes {
                return self.tcp(&rule.route);
            }
        }
        self.closed("no route takes the server name");
    }

    fn closed(&mut self, why: &str) {
        self.add("answer", true, format!("the connection is closed: {why}"));
    }

    fn tcp(&mut self, route: &TcpRoute) {
        let total: u64 = route.backends.iter().map(|(weight, _)| u64::from(*weight)).sum();
        for (weight, entry) in route.backends.iter() {
            let share = percent((*weight).into(), total);
            match &entry.backend {
                Ok(to) => {
                    let text = format!("{} gets {share} of the connections", to.key);
                    self.by("backend", *weight > 0, text, &route.origin);
                    self.backend(to, (Caller::Connection, None), None, None);
                }
                Err(reason) => {
                    let text = format!("{share} of the connections are closed: {reason}");
                    self.by("backend", *weight > 0, text, &route.origin);
                }
            }
        }
    }
}

/// "TLS for a.example.com, *.b.example.com"
fn names_of(rule: &TlsRule) -> String {
    let names: Vec<String> = rule.names.iter().take(NAMES_TOLD).map(ToString::to_string).collect();
    let names = if names.is_empty() { "any server name, or none".to_owned() } else { names.join(", ") };
    format!("TLS for {names}")
}
