//! What a request's notes are told of its way to a backend; see [`crate::http::notes`]. Each does nothing for a request without notes.

use std::{net::SocketAddr, time::Instant};

use crate::{
    error::Error,
    http::{exchange::Exchange, head::RequestHead},
    policy::{
        Destination, DestinationKey, HttpAction, HttpRoutes, ServicePort, Target,
        http_route::HttpBackend,
        says::{self, By, Part},
    },
};

/// Rules passed over that are told of, beside the one that holds.
const RULES_TOLD: usize = 8;

/// Who calls whom.
pub(super) fn begin(exchange: &mut Exchange, client: SocketAddr, destination: &Destination) {
    if !exchange.is_told() {
        return;
    }
    came(exchange, client);
    exchange.tell("destination", true, || destination_text(destination));
}

/// If its notes began only when it failed: where it was to go, by which alone it is known what a listener stands for.
pub(super) fn began_late(exchange: &mut Exchange, destination: &Destination) {
    exchange.tell_first("destination", || destination_text(destination));
}

fn destination_text(destination: &Destination) -> String {
    let key = &destination.key;
    match &destination.target {
        Target::Outside => format!("{key} is outside the mesh"),
        Target::Workload(_) => format!("{key} is one workload: no route applies"),
        Target::Service(port) => service_text(key, port),
    }
}

fn came(exchange: &mut Exchange, client: SocketAddr) {
    exchange.tell("client", true, || client.to_string());
    if exchange.serves_attempt > 0 {
        let attempt = exchange.serves_attempt;
        exchange.tell("hop", true, || format!("serves a request that is its client's try {attempt}, by its trace"));
    }
    if let Some(deadline) = exchange.deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        exchange.tell("deadline", true, || format!("{left:.1?} are left, by what it serves or by its own headers"));
    }
}

fn service_text(key: &DestinationKey, port: &ServicePort) -> String {
    format!("{key} is Service {} port {}, {}", port.service, port.port, port.protocol.spoken())
}

/// The rule is known, and its policy may want the request kept, from its beginning.
pub(super) fn wanted(
    exchange: &mut Exchange,
    (client, key): (SocketAddr, &DestinationKey),
    service: &ServicePort,
    action: &HttpAction,
    head: &RequestHead,
) {
    if !action.explain_headers.is_empty() && exchange.may_be_noted_by(&action.explain_headers, head) {
        came(exchange, client);
        exchange.tell("destination", true, || service_text(key, service));
    }
}

/// The rule that holds, if any, and those that were passed over.
pub(super) fn rule(exchange: &mut Exchange, service: &ServicePort, head: &RequestHead, matched: Option<&HttpAction>) {
    if !exchange.is_told() {
        return;
    }
    let rules = service.http.iter().flat_map(HttpRoutes::rules);
    let passed = rules.map_while(|rule| rule.matches.fits(head).err().map(|why| (&rule.action.origin, why)));
    let mut untold = 0_usize;
    for (place, (origin, why)) in passed.enumerate() {
        if place < RULES_TOLD {
            exchange.tell_by_rule("rule", false, origin, || why);
        } else {
            untold += 1;
        }
    }
    if untold > 0 {
        exchange.tell("rule", false, || format!("{untold} more do not match"));
    }
    if let Some(action) = matched {
        exchange.tell_by_rule("rule", true, &action.origin, || "matches".to_owned());
        exchange.tell_all(says::of_rule(action, head));
    }
}

/// The backend that was drawn.
pub(super) fn backend(exchange: &mut Exchange, action: &HttpAction, chosen: Option<&HttpBackend>, by_session: bool) {
    if !exchange.is_told() {
        return;
    }
    let Some(chosen) = chosen else { return };
    let total: u64 = action.backends.iter().map(|(weight, _)| u64::from(*weight)).sum();
    let weight = action.backends.iter().find(|(_, entry)| std::ptr::eq(entry, chosen)).map_or(0, |(weight, _)| *weight);
    let how = if by_session { "by its session".to_owned() } else { format!("drawn with weight {weight} of {total}") };
    let by = if by_session { action.session_by(chosen) } else { By::Rule(&action.origin) };
    exchange.tell_said("backend", chosen.backend.is_ok(), by, || match &chosen.backend {
        Ok(to) => format!("{}, {how}", to.key),
        Err(reason) => format!("{how}, and cannot be used: {reason}"),
    });
}

/// What filters made of the request; values of headers are left out.
pub(super) fn filtered(exchange: &mut Exchange, action: &HttpAction, chosen: &HttpBackend, head: &RequestHead) {
    if !exchange.is_told() {
        return;
    }
    for filters in [&action.filters, &chosen.filters] {
        exchange.tell_all(says::of_filters(filters, &action.origin));
    }
    if [&action.filters, &chosen.filters].iter().any(|filters| filters.rewrite.is_some()) {
        let host = head.authority().unwrap_or("the same host");
        exchange.tell_by_rule("filter", true, &action.origin, || format!("rewritten to {} at {host}", head.path()));
    }
}

/// What was chosen could not be reached any more, and yet gave way to no fallback.
pub(super) fn no_fallback(exchange: &mut Exchange, action: &HttpAction) {
    exchange.tell_by_rule("fallback", false, &action.origin, || "an earlier try may have been processed".to_owned());
}

/// What was chosen gave way to a fallback.
pub(super) fn fallback(exchange: &mut Exchange, action: &HttpAction, to: &str, error: &Error) {
    if exchange.is_told() {
        exchange.tell_said("fallback", true, action.by(Part::OfPolicy), || format!("{to}, because {error}"));
    }
}
