//! What a request's notes are told of its way into the workload; see [`crate::http::notes`]. Nothing, for a request without notes.

use std::{
    fmt::Display,
    net::SocketAddr,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use leno_proto::v1::{CarriedRequest, Decision};

use super::{Application, Client, Refusal};
use crate::{
    http::{exchange::Exchange, head::RequestHead, headers},
    telemetry::kept::Cause,
    worker::Context,
};

/// Who calls, what is let in, and how full the port's limits are.
pub(super) fn begin(exchange: &mut Exchange, client: &Client, application: &Application, head: &RequestHead) {
    if !exchange.is_told() {
        return;
    }
    let address = client.address;
    match &client.identity {
        Some(identity) => {
            exchange.tell("client", true, || format!("{identity} at {address}, proven by its certificate"));
        }
        None => {
            let origin = exchange.ctx().policy.inbound().mode_origin.clone().unwrap_or_default();
            exchange.tell_by("client", true, &origin, || format!("{address}, in plaintext: the port is permissive"));
        }
    }
    exchange.tell("port", true, || format!("{}, {}", application.address.port(), application.protocol.declared()));
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
    let origin = application.protection.origin().unwrap_or_default();
    exchange.tell_by("concurrency", true, &origin, || limiter.to_string());
}

/// The client is not of the mesh, and its connection older than the mode that refuses it.
pub(super) fn unmeshed(exchange: &mut Exchange, client: &Client) {
    if exchange.is_told() {
        let origin = exchange.ctx().policy.inbound().mode_origin.clone().unwrap_or_default();
        let address = client.address;
        exchange.tell_by("client", false, &origin, || format!("{address}, in plaintext: the port is strict by now"));
    }
}

/// A connection that was not let in is kept for whoever looks for its reason, as a request would be.
pub(super) fn not_let_in(
    ctx: &Context,
    client: SocketAddr,
    application: SocketAddr,
    refusal: &Refusal,
    accepted: Instant,
) {
    let (kept, now) = (&ctx.telemetry.kept, Instant::now());
    if !kept.allows(Cause::Connection, now) {
        return;
    }
    let lasted = now.saturating_duration_since(accepted);
    let began = SystemTime::now().checked_sub(lasted).and_then(|began| began.duration_since(UNIX_EPOCH).ok());
    let micros = |duration: std::time::Duration| duration.as_micros();
    let decision = |subject: &str, applies, text: String, origin: &str| Decision {
        subject: subject.to_owned(),
        applies,
        text,
        origin: origin.to_owned(),
        after_us: micros(lasted).try_into().unwrap_or(u64::MAX),
        ..Decision::default()
    };
    let id = u128::from(ctx.random.next()) << 64 | u128::from(ctx.random.next());
    let origin = refusal.origin.as_deref().unwrap_or_default();
    let request = CarriedRequest {
        id: id.max(1).to_be_bytes().to_vec(),
        inbound: true,
        connection: true,
        began_us: began.map_or(0, |began| micros(began).try_into().unwrap_or(i64::MAX)),
        duration_us: micros(lasted).try_into().unwrap_or(u64::MAX),
        reason: refusal.reason.to_owned(),
        kept_because: "not let in".to_owned(),
        decisions: vec![
            decision("port", true, application.port().to_string(), ""),
            decision("client", false, format!("{client}: {}", refusal.detail), origin),
        ],
        ..CarriedRequest::default()
    };
    kept.put(request, Cause::Connection, now);
}

/// The port refuses the request, by its policy if there is one.
pub(super) fn refused(exchange: &mut Exchange, application: &Application, subject: &str, why: &dyn Display) {
    if exchange.is_told() {
        let origin = application.protection.origin().unwrap_or_default();
        exchange.tell_by(subject, false, &origin, || why.to_string());
    }
}
