//! One request and its answer, from the first byte to the last: what is recorded about it, what it
//! holds on to, and how long it may last.
//!
//! An [`Exchange`] is recorded when it is dropped, so exactly once, however it ends: it lives in the task that
//! answers, then in the response's body ([`super::Body`]) or in the relay of an upgraded connection. Its time is kept
//! outside it ([`super::watch`]).

use std::{
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use leno_proto::spiffe::SpiffeId;

use super::{
    Response,
    body::Frame,
    forward::Answer,
    head::{Fields, Name, RequestHead, ResponseHead, Unfit},
    headers,
    notes::{self, Notes},
    persistence::Session,
    request_body::RequestBody,
    respond, told,
    trace_context::TraceContext,
    upgrade::{self, Upgraded},
    watch::{Overdue, Watch},
};
use crate::{
    error::Error,
    inbound::load::Underway,
    reason::Reason,
    telemetry::{Direction, RequestRecord, RouteMetrics},
    upstream::{Pick, bulkhead::Place},
    worker::Context,
};

/// See the module.
pub(crate) struct Exchange {
    ctx: Context,
    pub(crate) record: RequestRecord,
    /// Those of the route, once it is known.
    pub(crate) metrics: RouteMetrics,
    pub(crate) started: Instant,
    /// From when on limits count: its beginning, or that of its fallback.
    limits_from: Instant,
    /// When its last try ended, if there was one.
    pub(crate) tried_at: Option<Instant>,
    /// The whole exchange must end by then.
    pub(crate) deadline: Option<Instant>,
    /// The head of its answer must have come by then; nobody but us is told.
    answer_by: Option<Instant>,
    /// It is the route that set the deadline, not the client.
    limited_by_route: bool,
    pub(crate) request: Option<Rc<RequestBody>>,
    /// The session that the request belongs to: its endpoint is tried first, and nowhere else at the same time. None once it is
    /// known that nobody is reached there.
    pub(crate) session: Option<Box<Session>>,
    /// Counts as in flight at its endpoint until the exchange ends.
    pub(crate) pick: Option<Pick>,
    /// Inbound: counts as under way for clients that ask.
    pub(crate) underway: Option<Underway>,
    watch: Rc<Watch>,
    /// Its head is not taken: why.
    refused: Option<Unfit>,
    /// Within limits that policy sets for the backend, until the exchange ends.
    pub(crate) places: Vec<Place>,
    /// Has taken its place among the retries, if they are limited.
    pub(crate) is_retrying: bool,
    /// Its latest try found no connection, since those that there are had no room for it.
    pub(crate) found_no_room: bool,
    /// It was sent, and not provably left unprocessed: nobody but its own backend may serve it.
    pub(crate) may_be_processed: bool,
    /// Outbound: which try of its client is being served by this request, if it is known; 1: the first.
    pub(crate) serves_attempt: u32,
    /// Tried again, or not for want of budget, and failed all the same: trying once more is no use.
    pub(crate) in_vain: bool,
    /// Inbound: the trace is counted in [`super::hops`]; whether it is held there.
    hop: Option<bool>,
    /// Outbound: the deadline without what was inherited, which ends with the answer's head: streams outlive what opened them.
    own_deadline: Option<Option<Instant>>,
    complete: bool,
    /// Bytes that the request's body may have.
    pub(crate) most_body: u64,
    /// Path and host before they were rewritten, if they were and there are no notes.
    pub(super) asked_for: Option<Box<(String, Option<String>)>>,
    /// What is told of how it was decided; mostly none.
    pub(super) notes: Option<Box<Notes>>,
}

impl Exchange {
    pub(crate) fn begin(
        ctx: &Context,
        direction: Direction,
        request: &RequestHead,
        peer: Option<SpiffeId>,
        metrics: &RouteMetrics,
        watch: Rc<Watch>,
        refused: Option<Unfit>,
    ) -> Box<Self> {
        let started = Instant::now();
        watch.begin(started);
        let told = ctx.telemetry.tells_of_requests();
        Box::new(Self {
            ctx: Rc::clone(ctx),
            record: RequestRecord {
                direction,
                method: request.method.clone(),
                path: if told { request.path().to_owned() } else { String::new() },
                authority: request.authority().filter(|_| told).map(str::to_owned),
                version: request.version,
                status: None,
                grpc_status: None,
                duration: Duration::ZERO,
                request_bytes: 0,
                response_bytes: 0,
                reason: None,
                route: None,
                backend: None,
                endpoint: None,
                peer,
                attempts: 0,
                trace: None,
                fault: None,
                fallback: None,
            },
            metrics: metrics.clone(),
            started,
            limits_from: started,
            tried_at: None,
            deadline: None,
            answer_by: None,
            limited_by_route: false,
            request: None,
            session: None,
            pick: None,
            underway: None,
            watch,
            refused,
            places: Vec::new(),
            is_retrying: false,
            found_no_room: false,
            may_be_processed: false,
            serves_attempt: 0,
            in_vain: false,
            hop: None,
            own_deadline: None,
            complete: false,
            most_body: u64::MAX,
            asked_for: None,
            notes: None,
        })
    }

    pub(crate) fn ctx(&self) -> &Context {
        &self.ctx
    }

    pub(super) fn watch(&self) -> &Rc<Watch> {
        &self.watch
    }

    /// See [`headers::receive`].
    pub(crate) fn receive(&mut self, head: &mut RequestHead) -> Result<Option<Box<[u8]>>, Error> {
        match self.refused {
            Some(Unfit::Malformed(reason)) => Err(Error::BadRequest(reason)),
            Some(Unfit::TooLarge) => Err(Error::HeadBeyondLimits),
            None => headers::receive(head),
        }
    }

    /// Joins the request's trace, or begins one, if spans are exported.
    pub(crate) fn join_trace(&mut self, fields: &mut Fields) {
        let config = &self.ctx.config;
        self.record.trace = if config.otlp_endpoint.is_some() {
            Some(TraceContext::join(fields, &self.ctx.random, config.trace_sample))
        } else {
            TraceContext::read(fields, &self.ctx.random)
        };
    }

    /// Inbound: what requests of its trace are to inherit. `attempt`: which try of the client it is.
    pub(crate) fn begin_hop(&mut self, attempt: u32) {
        if let Some(trace) = &self.record.trace {
            self.hop = Some(self.ctx.hops.begin(trace.trace_id, self.deadline, attempt, self.started));
            if self.hop == Some(false) {
                self.ctx.hops.begin_plain(trace.trace_id);
            }
        }
    }

    /// Outbound: takes over what the request that is being served, if there is one of the same trace, is bound by.
    pub(crate) fn inherit(&mut self) {
        let Some(trace) = &self.record.trace else { return };
        let Some(hop) = self.ctx.hops.inherited(trace.trace_id, self.started) else { return };
        self.serves_attempt = hop.attempt;
        let own = self.deadline;
        self.limit(hop.deadline.map(|deadline| deadline.saturating_duration_since(self.started)));
        self.own_deadline = Some(own);
    }

    /// Whether a failure is to be marked as tried in vain.
    fn was_in_vain(&self, answer: &ResponseHead) -> bool {
        if self.record.direction == Direction::Outbound {
            return self.in_vain;
        }
        let of_calls = |trace: &TraceContext| self.ctx.hops.take_in_vain(trace.trace_id, self.started);
        let in_vain = self.record.trace.as_ref().is_some_and(of_calls) || self.in_vain;
        let failed = answer.status.is_server_error() || grpc_status(&answer.fields).is_some_and(|code| code != 0);
        in_vain && failed && self.record.peer.is_some()
    }

    /// Whether somebody still waits for an answer.
    ///
    /// # Errors
    /// If the deadline has passed.
    pub(crate) fn still_awaited(&self) -> Result<(), Error> {
        match self.ends_by() {
            Some(by) if by <= Instant::now() => Err(match () {
                () if self.ends_with_the_head() => Error::ResponseTimeout,
                () if self.limited_by_route => Error::RequestTimeout,
                () => Error::Deadline,
            }),
            _ => Ok(()),
        }
    }

    /// No answer is waited for after that.
    pub(super) fn ends_by(&self) -> Option<Instant> {
        sooner(self.deadline, self.answer_by)
    }

    /// Whether it is the answer's head that is to come first: the exchange as a whole may last longer.
    fn ends_with_the_head(&self) -> bool {
        self.answer_by.is_some_and(|by| self.deadline.is_none_or(|deadline| by < deadline))
    }

    /// The answer's head may take so long from the exchange's beginning.
    pub(crate) fn limit_answer(&mut self, timeout: Option<Duration>) {
        let Some(by) = timeout.and_then(|timeout| self.limits_from.checked_add(timeout)) else { return };
        self.answer_by = sooner(self.answer_by, Some(by));
        self.watch.limit(self.ends_by());
    }

    /// The exchange may last so long from its beginning, and no longer than was said before.
    pub(crate) fn limit(&mut self, timeout: Option<Duration>) {
        let deadline = timeout.and_then(|timeout| self.limits_from.checked_add(timeout));
        self.deadline = sooner(self.deadline, deadline);
        self.own_deadline = self.own_deadline.map(|own| sooner(own, deadline));
        self.watch.limit(self.ends_by());
    }

    /// The longest time without a byte moved, by the word of a client's proxy.
    pub(crate) fn limit_idle_as_told(&self, told: Duration) {
        self.watch.limit_idle_as_told(told);
    }

    /// As [`Self::limit`], by what the route allows.
    pub(crate) fn limit_by_route(&mut self, timeout: Option<Duration>) {
        self.limit(timeout);
        let deadline = timeout.and_then(|timeout| self.limits_from.checked_add(timeout));
        self.limited_by_route = deadline.is_some() && self.deadline == deadline;
    }

    /// How long it may last, as far as is known now.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            deadline: self.deadline,
            own_deadline: self.own_deadline,
            answer_by: self.answer_by,
            limited_by_route: self.limited_by_route,
            idle: self.watch.policy_idle(),
        }
    }

    /// Limits it as before, whatever was said and was overdue since then. What is said from here on counts from now.
    pub(crate) fn limit_as(&mut self, then: Limits) {
        self.limits_from = Instant::now();
        let Limits { deadline, own_deadline, answer_by, limited_by_route, idle } = then;
        (self.deadline, self.own_deadline, self.answer_by) = (deadline, own_deadline, answer_by);
        self.limited_by_route = limited_by_route;
        self.record.reason = None;
        self.watch.limit_anew(self.ends_by(), idle);
    }

    /// Whether it is the client that is waited for: it has not sent all of its request.
    pub(crate) fn awaits_client(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.awaited())
    }

    /// Whether time is up because the client wanted to wait no longer.
    pub(super) fn given_up_by_client(&self) -> bool {
        !self.limited_by_route && !self.ends_with_the_head() && self.watch.overdue() != Some(Overdue::Idle)
    }

    /// The response that goes to the client, with the exchange in its body or in the upgraded connection.
    pub(crate) fn respond(
        mut self: Box<Self>,
        answer: Result<Answer, Error>,
        client: Option<Upgraded>,
        grpc: bool,
    ) -> Response {
        let own = answer.is_err();
        let mut answer = answer.unwrap_or_else(|error| {
            tracing::debug!(%error, "answered by the proxy");
            let reason = *self.record.reason.get_or_insert_with(|| error.reason());
            let response = respond::failure(&error, reason, grpc, self.record.version);
            self.answered(&response.head);
            self.fails_for(Some(reason), None);
            self.tell("answer", true, || format!("{} by the proxy: {error}", error.status().as_u16()));
            Answer { response, upgraded: None }
        });
        self.name_failure(&mut answer.response.head.fields);
        if self.was_in_vain(&answer.response.head) {
            answer.response.head.fields.set(Name::LenoRetried, b"in-vain");
            // Who called us is told with the application's answer, too.
            if let (Direction::Outbound, Some(trace)) = (self.record.direction, &self.record.trace) {
                self.ctx.hops.mark_in_vain(trace.trace_id, Instant::now());
            }
        }
        match (answer.upgraded, client) {
            (Some(server), Some(client)) => {
                self.watch.tunnelled();
                upgrade::spawn(client, server, self);
                answer.response
            }
            _ => {
                // What held until the answer's head alone.
                if self.own_deadline.is_some() || self.answer_by.is_some() {
                    self.watch.limit(self.own_deadline.unwrap_or(self.deadline));
                }
                self.watch.answered(own);
                let Response { head, mut body } = answer.response;
                if respond::has_no_body(head.status, &self.record.method) {
                    body = body.unsaid();
                }
                Response { head, body: body.carrying(self) }
            }
        }
    }

    /// The answer's head is known.
    pub(crate) fn answered(&mut self, head: &ResponseHead) {
        self.record.status = Some(head.status);
        self.record.grpc_status = grpc_status(&head.fields);
    }

    pub(crate) fn saw_frame(&mut self, frame: &Frame) {
        match frame {
            Frame::Data(data) => self.record.response_bytes += data.len() as u64,
            Frame::Trailers(trailers) => self.record.grpc_status = grpc_status(trailers),
        }
    }

    /// An upgraded connection moved so much.
    pub(crate) fn relayed(&mut self, to_server: u64, to_client: u64) {
        self.record.request_bytes += to_server;
        self.record.response_bytes += to_client;
    }

    pub(crate) fn completed(&mut self) {
        self.complete = true;
    }

    /// The server broke off, unless the client broke its own request first.
    pub(crate) fn broke(&mut self) {
        let reason = match &self.request {
            Some(request) if request.too_large().is_some() => Reason::BodyTooLarge,
            Some(request) if request.failed() => Reason::ClientLeft,
            _ => Reason::Reset,
        };
        self.record.reason.get_or_insert(reason);
    }

    /// Waits for a step on the way to the answer, no longer than the exchange may last, nor than `try_deadline`.
    pub(crate) async fn within<T>(
        &mut self,
        try_deadline: Option<Instant>,
        mut step: Pin<&mut impl Future<Output = Result<T, Error>>>,
    ) -> Result<T, Error> {
        let mut try_timer = pin!(try_deadline.map(|deadline| tokio::time::sleep_until(deadline.into())));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if let Some(timer) = try_timer.as_mut().as_pin_mut()
                && timer.poll(cx).is_ready()
            {
                return Poll::Ready(Err(Error::TryTimeout));
            }
            match self.watch.overdue() {
                Some(Overdue::Deadline) if self.ends_with_the_head() => Poll::Ready(Err(Error::ResponseTimeout)),
                Some(overdue) => {
                    self.record.reason.get_or_insert_with(|| overdue.reason());
                    Poll::Ready(Err(match overdue {
                        Overdue::Deadline => Error::RequestTimeout,
                        Overdue::Idle => Error::Idle,
                    }))
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// See [`Exchange::limits`]. By default there are none but those that hold for every exchange.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    deadline: Option<Instant>,
    own_deadline: Option<Option<Instant>>,
    answer_by: Option<Instant>,
    limited_by_route: bool,
    idle: Option<Duration>,
}

/// The earlier of two deadlines, where there are any.
fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let overdue = self.watch.end();
        let record = &mut self.record;
        if let (Some(held), Some(trace)) = (self.hop, &record.trace) {
            if held {
                self.ctx.hops.end(trace.trace_id, Instant::now());
            } else {
                self.ctx.hops.end_plain(trace.trace_id);
            }
        }
        if let Some(request) = &self.request {
            record.request_bytes += request.received();
            request.leave();
        }
        if !self.complete {
            record.reason.get_or_insert_with(|| overdue.map_or(Reason::ClientLeft, Overdue::reason));
            // An endpoint may still be reading it.
            if let Some(request) = &self.request {
                request.abandon();
            }
        }
        record.duration = self.started.elapsed();
        self.metrics.record(record);
        self.ctx.telemetry.request_ended(record);
        if self.notes.is_some() || notes::failed(record) {
            told::keep(&self.ctx, self.notes.take(), record, self.started + record.duration);
        }
    }
}

/// The gRPC status in trailers, or in the head of a trailers-only answer.
pub(crate) fn grpc_status(fields: &Fields) -> Option<u16> {
    fields.text(Name::GrpcStatus)?.parse().ok()
}
