//! What a request's notes are told of its way into the workload; see [`crate::http::notes`]. Nothing, for a request without notes.

use std::{fmt::Display, time::Instant};

use super::{Application, Client};
use crate::http::{exchange::Exchange, head::RequestHead, headers};

/// Who calls, what is let in, and how full the port's limits are.
pub(super) fn begin(exchange: &mut Exchange, client: &Client, application: &Application, head: &RequestHead) {
    if !exchange.is_told() {
        return;
    }
    let strict = exchange.ctx().policy.inbound().strict;
    exchange.tell("client", true, || match &client.identity {
        Some(identity) => format!("{identity} at {}, proven by its certificate", client.address),
        None if strict => format!("{}, in plaintext, which the port refuses: it is strict", client.address),
        None => format!("{}, in plaintext: the port is permissive", client.address),
    });
    exchange
        .tell("port", true, || format!("{}, declared {}", application.address.port(), application.protocol.as_str()));
    let attempt = headers::attempt(&head.fields);
    if attempt > 1 {
        exchange.tell("hop", true, || format!("the client's try {attempt}"));
    }
    if let Some(deadline) = exchange.deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        exchange.tell("deadline", true, || format!("{left:.1?} are left, as the client says"));
    }
    let limits = application.protection.rate_limits();
    if let Some(limits) = &*limits {
        for fill in limits.fills(head, client.identity.as_ref(), Some(client.address.ip()), exchange.started) {
            exchange.tell_by("rate-limit", fill.matches, &limits.origin, || fill.to_string());
        }
    }
    let limiter = &application.protection.concurrency;
    exchange.tell("concurrency", true, || limiter.to_string());
}

/// The port refuses the request, by its policy if there is one.
pub(super) fn refused(exchange: &mut Exchange, application: &Application, subject: &str, why: &dyn Display) {
    let origin = application.protection.origin().unwrap_or_default();
    exchange.tell_by(subject, false, &origin, || why.to_string());
}
