//! What an exchange's notes are told, if it has any: see [`super::notes`].

use std::{
    cell::RefCell,
    time::{Instant, SystemTime},
};

use super::{
    exchange::{Exchange, grpc_status},
    head::{Fields, Name, RequestHead, ResponseHead},
    notes::{self, Because, HEADER, Id, Notes},
    retry::Next,
};
use crate::{
    error::Error,
    policy::RuleOrigin,
    telemetry::{
        Direction, RequestRecord,
        kept::{Cause, Kept},
    },
    upstream::{
        Backend, Outcome, Pick,
        pool::{Carry, HttpConnection},
        shield::Rules,
    },
    worker::{Context, Random},
};

impl Exchange {
    /// Whether somebody may want to know of decisions.
    pub(crate) fn is_told(&self) -> bool {
        self.notes.is_some()
    }

    /// The request's head is settled. `asked`: its client's proxy takes notes, under this id.
    pub(crate) fn may_be_noted(&mut self, head: &RequestHead, asked: Option<Id>) {
        let wanted = self.ctx().telemetry.kept.wanted();
        let sampled = wanted.sampled() && self.record.trace.as_ref().is_some_and(|trace| trace.sampled);
        if !sampled && asked.is_none() && !wanted.by_header() {
            return;
        }
        let has_header = wanted.by_header() && {
            let headers = self.ctx().telemetry.kept.headers();
            headers.iter().any(|name| head.fields.values(name.as_bytes()).next().is_some())
        };
        let because = match (has_header, asked) {
            (true, _) => Because::Header,
            (false, Some(_)) => Because::Asked,
            (false, None) if sampled => Because::Sampled,
            (false, None) => return,
        };
        self.take_notes(because, asked, Some(head));
    }

    fn take_notes(&mut self, because: Because, asked: Option<Id>, head: Option<&RequestHead>) {
        let cause = if because == Because::Failed { Cause::Failure } else { Cause::Other };
        let kept = &self.ctx().telemetry.kept;
        if !kept.allows(cause, self.started) {
            return;
        }
        let id = identify(&self.record, asked, &self.ctx().random);
        self.notes = Some(Notes::begin(because, id, self.started, head, &kept.headers()));
    }

    /// A decision. What it says is only made if it is read.
    pub(crate) fn tell(&mut self, subject: &str, applies: bool, text: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.add(subject, applies, text(), Default::default(), Instant::now());
        }
    }

    /// As [`Self::tell`], by a rule.
    pub(crate) fn tell_by_rule(
        &mut self,
        subject: &str,
        applies: bool,
        rule: &RuleOrigin,
        text: impl FnOnce() -> String,
    ) {
        if self.notes.is_some() {
            let generation = self.ctx().policy.snapshot().generation_of(&rule.route);
            let origin = (notes::origin_text(rule), generation);
            self.note(subject, applies, origin, text());
        }
    }

    /// As [`Self::tell`], by an object ("BackendPolicy shop/cart").
    pub(crate) fn tell_by(&mut self, subject: &str, applies: bool, object: &str, text: impl FnOnce() -> String) {
        if self.notes.is_some() {
            let generation = self.ctx().policy.snapshot().generation_of(object);
            self.note(subject, applies, (object.to_owned(), generation), text());
        }
    }

    fn note(&mut self, subject: &str, applies: bool, origin: (String, u64), text: String) {
        if let Some(notes) = &mut self.notes {
            notes.add(subject, applies, text, origin, Instant::now());
        }
    }

    /// Something went wrong: from here on notes are taken, of what was decided already too. `head`: None if it is gone.
    pub(crate) fn fails(&mut self, head: Option<&RequestHead>) {
        if self.notes.is_some() {
            return;
        }
        self.take_notes(Because::Failed, None, head);
        if self.notes.is_none() {
            return;
        }
        if let Some(rule) = self.record.route.clone() {
            self.tell_by_rule("rule", true, &rule, || "matches".to_owned());
        }
        if let Some(backend) = self.record.backend.clone() {
            self.tell("backend", true, || backend.to_string());
        }
        if let Some(fault) = self.record.fault.clone() {
            self.tell_by("fault", true, &fault, || "made on purpose".to_owned());
        }
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(self.started));
        if let Some(left) = left {
            self.tell("deadline", true, || format!("{left:.1?} after the request's beginning"));
        }
    }

    /// The id under which the request is found, for the next proxy; None: nobody takes notes.
    pub(crate) fn noted_as(&self) -> Option<String> {
        self.notes.as_ref().map(|notes| notes::hex(notes.id()))
    }

    /// The answer of a mesh peer says how it calls the request.
    pub(crate) fn known_as(&mut self, answer: &Fields) {
        if let Some(notes) = &mut self.notes
            && notes.began_with_failure()
            && let Some(id) = notes::read_id(answer)
        {
            notes.known_as(id);
        }
    }

    /// Writes the id into a failure's head, for whoever is to ask why.
    pub(crate) fn name_failure(&self, answer: &mut Fields) {
        if notes::failed(&self.record)
            && let Some(id) = self.noted_as()
        {
            answer.set_named(HEADER, id.as_bytes());
        }
    }
}

/// An endpoint was chosen for a try.
pub(super) fn picked(exchange: &mut Exchange, pick: &Pick, why: Option<RefCell<String>>) {
    let Some(why) = why.map(RefCell::into_inner) else { return };
    let subject = if exchange.record.direction == Direction::Inbound { "application" } else { "endpoint" };
    let who = match &pick.endpoint.identity {
        Some(identity) => format!(", must be {identity}"),
        None if subject == "endpoint" => ", not in the mesh: plaintext".to_owned(),
        None => String::new(),
    };
    let why = if why.is_empty() { why } else { format!("; {why}") };
    exchange.tell(subject, true, || format!("{}{who}{why}", name(pick)));
}

/// "10.0.0.1:80 (shop-0)"
fn name(pick: &Pick) -> String {
    let endpoint = &pick.endpoint;
    if endpoint.workload.is_empty() {
        return endpoint.address.to_string();
    }
    format!("{} ({})", endpoint.address, endpoint.workload)
}

/// There is a connection for the try.
pub(super) fn connected(exchange: &mut Exchange, connection: &HttpConnection, carry: Carry) {
    let made = if connection.reused { "one that is open already" } else { "made for it" };
    let carried = match (connection.is_stream(), connection.is_http1(), carry) {
        (_, _, Carry::Alone) => "for itself alone",
        (true, false, _) => "a stream of HTTP/2",
        (true, true, _) => "HTTP/1.1 in a stream",
        (false, ..) => "HTTP/1.1",
    };
    exchange.tell("connection", true, || format!("{made}, {carried}"));
}

/// A try was answered, and the answer is passed on.
pub(super) fn answered(
    exchange: &mut Exchange,
    request: &RequestHead,
    answer: &ResponseHead,
    pick: &Pick,
    verdict: Outcome,
) {
    let grpc = grpc_status(&answer.fields);
    if answer.status.is_server_error() || grpc.is_some_and(notes::is_fault) {
        exchange.fails(Some(request));
        if pick.endpoint.identity.is_some() {
            exchange.known_as(&answer.fields);
        }
    }
    let tries = exchange.record.attempts;
    exchange
        .tell("try", verdict == Outcome::Success, || format!("try {tries}, {}: {}", name(pick), answer_text(answer)));
}

/// A try failed, or was answered in a way that asks for another.
pub(super) fn failed(
    exchange: &mut Exchange,
    request: &RequestHead,
    pick: &Pick,
    error: &Error,
    answer: Option<&ResponseHead>,
) {
    exchange.fails(Some(request));
    if let Some(answer) = answer.filter(|_| pick.endpoint.identity.is_some()) {
        exchange.known_as(&answer.fields);
    }
    let tries = exchange.record.attempts.max(1);
    exchange.tell("try", false, || match answer {
        Some(answer) => format!("try {tries}, {}: {}", name(pick), answer_text(answer)),
        None => format!("try {tries}, {}: {error}", name(pick)),
    });
}

/// "503 Service Unavailable, leno-reason overload, grpc-status 14"
fn answer_text(answer: &ResponseHead) -> String {
    let mut text = answer.status.to_string();
    if let Some(reason) = answer.fields.text(Name::LenoReason) {
        text += &format!(", leno-reason {reason}");
    }
    if let Some(code) = grpc_status(&answer.fields) {
        text += &format!(", grpc-status {code}");
    }
    if answer.fields.has(Name::LenoRetried) {
        text += ", tried again in vain further on";
    }
    text
}

/// There is to be another try.
pub(super) fn again(exchange: &mut Exchange, next: Next) {
    exchange.tell("retry", true, || match next {
        Next::AtOnce => "tried again at once: it was not processed, or may be repeated".to_owned(),
        Next::ByPolicy(wait) => format!("tried again after {wait:.1?}, as the policy asks"),
    });
}

/// What policy puts before a backend let the request in.
pub(super) fn shielded(exchange: &mut Exchange, backend: &Backend, rules: &Rules) {
    if !exchange.is_told() {
        return;
    }
    let origin = backend.endpoints.load().policy.origin.clone().unwrap_or_default();
    if let Some(timeout) = rules.request_timeout {
        exchange.tell_by("timeout", true, &origin, || format!("the whole request, unless its rule says: {timeout:?}"));
    }
    if let Some(timeout) = rules.try_timeout {
        exchange.tell_by("timeout", true, &origin, || format!("each try, unless the rule says: {timeout:?}"));
    }
    if rules.breaker.is_some() {
        let state = backend.shield.breaker.state();
        exchange.tell_by("circuit", true, &origin, || format!("the circuit breaker of {} is {state}", backend.key));
    }
    for (what, limit) in rules.limits.set() {
        let held = backend.shield.counts.held(what);
        exchange.tell_by("limit", true, &origin, || format!("{held} of {limit} {} are taken", what.as_str()));
    }
}

/// The trace's id, or the one the client's proxy made, or a new one.
fn identify(record: &RequestRecord, asked: Option<Id>, random: &Random) -> (Id, bool) {
    match &record.trace {
        Some(trace) => (trace.trace_id, true),
        None => {
            let made = u128::from(random.next()) << 64 | u128::from(random.next());
            (asked.unwrap_or(made.max(1).to_be_bytes()), false)
        }
    }
}

/// The exchange ended: what was noted is kept, and of failures without notes what the record tells.
pub(super) fn keep(ctx: &Context, notes: Option<Box<Notes>>, record: &RequestRecord, now: Instant) {
    let failed = notes::failed(record);
    let kept: &Kept = &ctx.telemetry.kept;
    let notes = match notes {
        Some(notes) => notes,
        None if failed && kept.allows(Cause::Failure, now) => of_record(ctx, record, now),
        None => return,
    };
    kept.put(notes.end(record, failed, SystemTime::now()), now);
}

fn of_record(ctx: &Context, record: &RequestRecord, now: Instant) -> Box<Notes> {
    let started = now.checked_sub(record.duration).unwrap_or(now);
    let id = identify(record, None, &ctx.random);
    let mut notes = Notes::begin(Because::Failed, id, started, None, &[]);
    let mut add = |subject: &str, text: String, origin: (String, u64)| notes.add(subject, true, text, origin, now);
    if let Some(rule) = &record.route {
        let generation = ctx.policy.snapshot().generation_of(&rule.route);
        add("rule", "matches".to_owned(), (notes::origin_text(rule), generation));
    }
    if let Some(backend) = &record.backend {
        add("backend", backend.to_string(), Default::default());
    }
    if let Some(endpoint) = &record.endpoint {
        let server = if record.direction == Direction::Inbound { "application" } else { "endpoint" };
        add(server, format!("{endpoint}, try {}", record.attempts), Default::default());
    }
    if let Some(reason) = record.reason {
        add("end", reason.meaning().to_owned(), Default::default());
    }
    notes
}
