//! What a request's notes are told of its way to a backend; see [`crate::http::notes`]. Each does nothing for a request without notes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    error::Error,
    http::{exchange::Exchange, filter::Filters, head::RequestHead},
    policy::{Destination, HttpAction, HttpRoutes, ServicePort, Target, http_route::HttpBackend},
};

/// Rules passed over that are told of, beside the one that holds.
const RULES_TOLD: usize = 8;

/// Who calls whom.
pub(super) fn begin(exchange: &mut Exchange, client: SocketAddr, destination: &Destination) {
    if !exchange.is_told() {
        return;
    }
    exchange.tell("client", true, || client.to_string());
    if exchange.serves_attempt > 0 {
        let attempt = exchange.serves_attempt;
        exchange.tell("hop", true, || format!("serves a request that is its client's try {attempt}, by its trace"));
    }
    if let Some(deadline) = exchange.deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        exchange.tell("deadline", true, || format!("{left:.1?} are left, by what it serves or by its own headers"));
    }
    let key = &destination.key;
    exchange.tell("destination", true, || match &destination.target {
        Target::Outside => format!("{key} is outside the mesh"),
        Target::Workload(_) => format!("{key} is one workload: no route applies"),
        Target::Service(port) => {
            format!("{key} is Service {} port {}, which speaks {}", port.service, port.port, port.protocol.as_str())
        }
    });
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
        if let Some(timeout) = action.request_timeout {
            exchange.tell_by_rule("timeout", true, &action.origin, || format!("the whole request: {timeout:?}"));
        }
        if let (Some(timeout), Some(policy)) = (action.response_timeout, &action.policy)
            && timeout < Duration::MAX
        {
            exchange.tell_by("timeout", true, &policy.origin, || format!("until the head of the answer: {timeout:?}"));
        }
        if let Some(timeout) = action.try_timeout {
            exchange.tell_by_rule("timeout", true, &action.origin, || format!("each try: {timeout:?}"));
        }
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
    exchange.tell_by_rule("backend", chosen.backend.is_ok(), &action.origin, || match &chosen.backend {
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
        let Some(text) = filters_text(filters, head) else { continue };
        exchange.tell_by_rule("filter", true, &action.origin, || text);
    }
}

fn filters_text(filters: &Filters, head: &RequestHead) -> Option<String> {
    let mut parts = Vec::new();
    let named = filters.request.names().collect::<Vec<_>>();
    if !named.is_empty() {
        parts.push(format!("request headers changed: {}", named.join(", ")));
    }
    let named = filters.response.names().collect::<Vec<_>>();
    if !named.is_empty() {
        parts.push(format!("of the response to be changed: {}", named.join(", ")));
    }
    if filters.rewrite.is_some() {
        parts.push(format!("rewritten to {} at {}", head.path(), head.authority().unwrap_or("the same host")));
    }
    for mirror in &filters.mirrors {
        parts.push(format!("{} gets a copy of {} of these requests", mirror.backend.key, mirror.share));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What was chosen could not be reached any more, and yet gave way to no fallback.
pub(super) fn no_fallback(exchange: &mut Exchange, action: &HttpAction) {
    exchange.tell_by_rule("fallback", false, &action.origin, || "an earlier try may have been processed".to_owned());
}

/// What was chosen gave way to a fallback.
pub(super) fn fallback(exchange: &mut Exchange, action: &HttpAction, to: &str, error: &Error) {
    if exchange.is_told() {
        exchange.tell_by_rule("fallback", true, &action.origin, || format!("{to}, because {error}"));
    }
}
