//! What an exchange's notes are told, if it has any: see [`super::notes`].

use std::{
    cell::RefCell,
    fmt::Display,
    time::{Instant, SystemTime},
};

use super::{
    exchange::{Exchange, grpc_status},
    forward::{Plan, To},
    head::{Fields, Name, RequestHead, ResponseHead},
    notes::{self, Because, HEADER, Id, Notes},
    retry::{Failure, Next, NoRetry},
};
use crate::{
    error::Error,
    policy::{
        HttpAction, RuleOrigin,
        says::{self, By, Caller, Part, Said},
    },
    reason::Reason,
    telemetry::{
        Direction, RequestRecord,
        kept::{Cause, Kept},
    },
    upstream::{
        Backend, Outcome, Pick,
        pool::{Carry, HttpConnection, Reply, SendError},
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
        let cause = if because == Because::Header { Cause::Header } else { Cause::Other };
        self.take_notes(because, asked, Some(head), cause);
    }

    /// The rule is known, whose policy wants requests kept that have one of these headers. True: notes are taken from here on.
    pub(crate) fn may_be_noted_by(&mut self, names: &[Box<str>], head: &RequestHead) -> bool {
        if !names.iter().any(|name| head.fields.values(name.as_bytes()).next().is_some()) {
            return false;
        }
        let begins = self.notes.is_none();
        if begins {
            self.take_notes(Because::Header, None, Some(head), Cause::Header);
        }
        let Some(notes) = &mut self.notes else { return false };
        notes.wanted_by(head, names);
        begins
    }

    fn take_notes(&mut self, because: Because, asked: Option<Id>, head: Option<&RequestHead>, cause: Cause) {
        let kept = &self.ctx().telemetry.kept;
        if !kept.allows(cause, self.started) {
            return;
        }
        let id = identify(&self.record, asked, &self.ctx().random);
        let mut notes = Notes::begin(because, id, self.started, head, &kept.headers());
        if let Some(target) = self.asked_for.take() {
            let (path, authority) = *target;
            notes.asked_for(&path, authority.as_deref());
        }
        self.notes = Some(notes);
    }

    /// A decision. What it says is only made if it is read.
    pub(crate) fn tell(&mut self, subject: &str, applies: bool, text: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.add(subject, applies, text(), String::new(), Instant::now());
        }
    }

    /// What came before the failure that the notes began with, if they did.
    pub(crate) fn tell_first(&mut self, subject: &str, text: impl FnOnce() -> String) {
        if let Some(notes) = self.notes.as_mut().filter(|notes| notes.began_with_failure()) {
            notes.add_first(subject, text(), Instant::now());
        }
    }

    /// As [`Self::tell`], by a rule. Of which generation it is, is not said: the store may hold a newer one than decided.
    pub(crate) fn tell_by_rule(
        &mut self,
        subject: &str,
        applies: bool,
        rule: &RuleOrigin,
        text: impl FnOnce() -> String,
    ) {
        if self.notes.is_some() {
            self.note(subject, applies, By::Rule(rule).text(), text());
        }
    }

    /// As [`Self::tell`], by an object ("BackendPolicy shop/cart").
    pub(crate) fn tell_by(&mut self, subject: &str, applies: bool, object: &str, text: impl FnOnce() -> String) {
        if self.notes.is_some() {
            self.note(subject, applies, object.to_owned(), text());
        }
    }

    /// As [`Self::tell`], by whoever says so.
    pub(crate) fn tell_said(&mut self, subject: &str, applies: bool, by: By<'_>, text: impl FnOnce() -> String) {
        if self.notes.is_some() {
            self.note(subject, applies, by.text(), text());
        }
    }

    /// What policy says of it, but for defaults.
    pub(crate) fn tell_all(&mut self, all: Vec<Said<'_>>) {
        for Said { subject, applies, text, by } in all {
            if !matches!(by, By::Nobody) {
                self.note(subject, applies, by.text(), text);
            }
        }
    }

    fn note(&mut self, subject: &str, applies: bool, origin: String, text: String) {
        if let Some(notes) = &mut self.notes {
            notes.add(subject, applies, text, origin, Instant::now());
        }
    }

    /// The request is about to be rewritten: should it fail, it is to be known by what its client asked for.
    pub(crate) fn remember_target(&mut self, head: &RequestHead) {
        if self.notes.is_none() {
            self.asked_for = Some(Box::new((head.path().to_owned(), head.authority().map(str::to_owned))));
        }
    }

    /// Something went wrong: from here on notes are taken, of what was decided already too. `head`: None if it is gone.
    pub(crate) fn fails(&mut self, head: Option<&RequestHead>) {
        self.fails_for(None, head);
    }

    /// As [`Self::fails`], if it is known for which reason.
    pub(crate) fn fails_for(&mut self, reason: Option<Reason>, head: Option<&RequestHead>) {
        if self.notes.is_some() {
            return;
        }
        self.take_notes(Because::Failed, None, head, notes::cause(reason));
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

    /// Whether the latest answer refused it; see [`is_refusal`].
    fn latest_refused(&mut self, refused: bool) {
        if let Some(notes) = &mut self.notes {
            notes.answered(refused);
        }
    }

    /// Writes the id into a failure's head, for whoever is to ask why.
    pub(crate) fn name_failure(&self, answer: &mut Fields) {
        let refused = self.notes.as_ref().is_some_and(|notes| notes.was_refused());
        if (refused || notes::failed(&self.record))
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
    (answer, number): (&ResponseHead, Option<u32>),
    pick: &Pick,
    verdict: Outcome,
) {
    let grpc = grpc_status(&answer.fields);
    let refused = is_refusal(answer, pick);
    if refused || answer.status.is_server_error() || grpc.is_some_and(notes::is_fault) {
        exchange.fails_for(refused.then_some(Reason::Refused), Some(request));
        if pick.endpoint.identity.is_some() {
            exchange.known_as(&answer.fields);
        }
    }
    exchange.latest_refused(refused);
    exchange.tell("try", verdict == Outcome::Success, || try_text(number, pick, answer_text(answer, pick)));
}

/// Whether the server's proxy refuses the request for what it is: too many, too large. Nothing is broken then, but who looks for
/// what failed at its client finds it.
fn is_refusal(answer: &ResponseHead, pick: &Pick) -> bool {
    answer.status.is_client_error() && pick.endpoint.identity.is_some() && answer.fields.has(Name::LenoReason)
}

/// "try 2, 10.0.0.1:80 (shop-0): 200 OK"
fn try_text(number: Option<u32>, pick: &Pick, ended: impl Display) -> String {
    match number {
        Some(number) => format!("try {number}, {}: {ended}", name(pick)),
        None => format!("not sent to {}: {ended}", name(pick)),
    }
}

/// The other try of a hedged request was better; None: this one was cancelled.
pub(super) fn lost(
    exchange: &mut Exchange,
    pick: &Pick,
    number: u32,
    sent: Option<&Result<Result<Reply, SendError>, Error>>,
) {
    exchange.tell("try", false, || match sent {
        None => try_text(Some(number), pick, "cancelled: the other was answered first"),
        Some(Ok(Ok(reply))) => try_text(Some(number), pick, answer_text(&reply.head, pick)),
        Some(Ok(Err(error))) => try_text(Some(number), pick, &error.reason),
        Some(Err(error)) => try_text(None, pick, error),
    });
}

/// A try failed, or was answered in a way that asks for another.
pub(super) fn failed(
    exchange: &mut Exchange,
    request: &RequestHead,
    pick: &Pick,
    (error, number): (&Error, Option<u32>),
    answer: Option<&ResponseHead>,
) {
    exchange.fails(Some(request));
    if let Some(answer) = answer.filter(|_| pick.endpoint.identity.is_some()) {
        exchange.known_as(&answer.fields);
    }
    exchange.latest_refused(answer.is_some_and(|answer| is_refusal(answer, pick)));
    exchange.tell("try", false, || match answer {
        Some(answer) => try_text(number, pick, answer_text(answer, pick)),
        None => try_text(number, pick, error),
    });
}

/// "503 Service Unavailable, leno-reason overload, grpc-status 14". What servers outside the mesh say in our name is nothing.
fn answer_text(answer: &ResponseHead, pick: &Pick) -> String {
    let meshed = pick.endpoint.identity.is_some();
    let mut text = answer.status.to_string();
    if let Some(reason) = answer.fields.text(Name::LenoReason).filter(|_| meshed) {
        text += &format!(", leno-reason {reason}");
    }
    if let Some(code) = grpc_status(&answer.fields) {
        text += &format!(", grpc-status {code}");
    }
    if meshed && answer.fields.has(Name::LenoRetried) {
        text += ", tried again in vain further on";
    }
    text
}

/// There is to be another try after this failure.
pub(super) fn again(exchange: &mut Exchange, action: Option<&HttpAction>, next: Next, failure: Failure) {
    let by = match next {
        Next::AtOnce => By::Nobody,
        Next::ByPolicy(_) => retry_by(action),
    };
    exchange.tell_said("retry", true, by, || match next {
        Next::AtOnce => {
            let why = match failure {
                Failure::NotConnected => "nothing was sent",
                Failure::NotProcessed => "the application has not seen it",
                _ => "its method may be repeated",
            };
            format!("tried again at once: {why}")
        }
        Next::ByPolicy(wait) => format!("tried again after {wait:.1?}, as the policy asks"),
    });
}

/// There is to be no other try.
pub(super) fn no_further(exchange: &mut Exchange, plan: &Plan<'_>, why: NoRetry) {
    if !exchange.is_told() {
        return;
    }
    let text = || format!("no further try: {why}");
    let of_backend = match (plan.to, why) {
        (To::Backend(backend), NoRetry::CircuitOpen | NoRetry::Limit | NoRetry::Budget) => {
            Some(backend.endpoints.load_full())
        }
        _ => None,
    };
    match of_backend.as_ref().map(|set| &*set.policy) {
        Some(policy) => {
            let budget = policy.budget_origin.as_ref().filter(|_| why == NoRetry::Budget);
            let by = budget.or(policy.origin.as_ref()).map_or(By::Nobody, By::Object);
            exchange.tell_said("retry", false, by, text);
        }
        None => match why {
            NoRetry::UsedUp | NoRetry::NotNamed => exchange.tell_said("retry", false, retry_by(plan.action), text),
            _ => exchange.tell("retry", false, text),
        },
    }
}

/// Who says what is tried again.
fn retry_by(action: Option<&HttpAction>) -> By<'_> {
    let action = action.filter(|action| action.retry.is_some());
    action.map_or(By::Nobody, |action| action.by(Part::Retry))
}

/// What policy says of a request to a backend, for notes that began only when it failed.
pub(super) fn policy(exchange: &mut Exchange, plan: &Plan<'_>, head: &RequestHead) {
    let (To::Backend(backend), true) = (plan.to, exchange.is_told()) else { return };
    plan.action.into_iter().for_each(|action| exchange.tell_all(says::of_rule(action, head)));
    called(exchange, backend, plan.action);
}

/// The request failed on its way to a backend.
pub(super) fn refused(exchange: &mut Exchange, plan: &Plan<'_>, error: &Error) {
    let (To::Backend(backend), true) = (plan.to, exchange.is_told()) else { return };
    let subject = match error {
        Error::CircuitOpen { .. } => "circuit",
        Error::Limit { .. } => "limit",
        Error::RetryBudget(_) => "budget",
        _ => return,
    };
    let origin = backend.endpoints.load().policy.origin.clone().unwrap_or_default();
    exchange.tell_by(subject, false, &origin, || error.to_string());
}

/// What policy says of how the backend is called.
pub(super) fn called(exchange: &mut Exchange, backend: &Backend, action: Option<&HttpAction>) {
    if exchange.is_told() {
        let set = backend.endpoints.load_full();
        exchange.tell_all(says::of_backend(backend, &set.policy, Caller::Request(action), Instant::now()));
    }
}

/// The trace's id, or the one the client's proxy made, or a new one.
fn identify(record: &RequestRecord, asked: Option<Id>, random: &Random) -> (Id, bool) {
    match &record.trace {
        Some(trace) => (trace.trace_id, true),
        None => {
            let made = u128::from(random.next()) << 64 | u128::from(random.next());
            (asked.unwrap_or_else(|| made.max(1).to_be_bytes()), false)
        }
    }
}

/// The exchange ended: what was noted is kept, and of failures without notes what the record tells.
pub(super) fn keep(ctx: &Context, notes: Option<Box<Notes>>, record: &RequestRecord, now: Instant) {
    let broken = notes::failed(record);
    let refused = notes.as_ref().is_some_and(|notes| notes.was_refused());
    let failed = broken || refused;
    let kept: &Kept = &ctx.telemetry.kept;
    let notes = match notes {
        Some(notes) => notes,
        None if failed && kept.allows(notes::cause(record.reason), now) => of_record(ctx, record, now),
        None => return,
    };
    let cause = match () {
        () if notes.is_by_header() => Cause::Header,
        () if broken => notes::cause(record.reason),
        () if refused => Cause::Refusal,
        () => Cause::Other,
    };
    kept.put(notes.end(record, failed, SystemTime::now()), cause, now);
}

fn of_record(ctx: &Context, record: &RequestRecord, now: Instant) -> Box<Notes> {
    let started = now.checked_sub(record.duration).unwrap_or(now);
    let id = identify(record, None, &ctx.random);
    let mut notes = Notes::begin(Because::Failed, id, started, None, &[]);
    let mut add = |subject: &str, text: String, origin: String| notes.add(subject, true, text, origin, now);
    if let Some(rule) = &record.route {
        add("rule", "matches".to_owned(), By::Rule(rule).text());
    }
    if let Some(backend) = &record.backend {
        add("backend", backend.to_string(), String::new());
    }
    if let Some(endpoint) = &record.endpoint {
        let server = if record.direction == Direction::Inbound { "application" } else { "endpoint" };
        add(server, format!("{endpoint}, try {}", record.attempts), String::new());
    }
    if let Some(reason) = record.reason {
        add("end", reason.meaning().to_owned(), String::new());
    }
    notes
}
