//! One request and its answer, from the first byte to the last: what is recorded about it, what it
//! holds on to, and how long it may last.
//!
//! An [`Exchange`] is recorded when it is dropped, so exactly once, however it ends: it lives in the task that
//! answers, then in the response's body ([`super::Body`]) or in the relay of an upgraded connection. Its time is kept
//! outside it ([`super::watch`]).

use std::{
    future::Future,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use leno_proto::spiffe::SpiffeId;

use super::{
    Response,
    body::Frame,
    forward::Answer,
    head::{Fields, Name, RequestHead, ResponseHead},
    headers,
    request_body::RequestBody,
    respond,
    trace_context::TraceContext,
    upgrade::{self, Upgraded},
    watch::{Overdue, Watch},
};
use crate::{
    error::Error,
    inbound::load::Underway,
    telemetry::{Direction, RequestRecord, RouteMetrics},
    upstream::Pick,
    worker::Context,
};

/// The reason recorded when the client left before the answer was complete.
pub(crate) const CLIENT_LEFT: &str = "client-left";
/// The reason recorded when the server broke off in the middle of its answer.
pub(crate) const BROKEN: &str = "reset";

/// See the module.
pub(crate) struct Exchange {
    ctx: Context,
    pub(crate) record: RequestRecord,
    /// Those of the route, once it is known.
    pub(crate) metrics: RouteMetrics,
    pub(crate) started: Instant,
    /// The whole exchange must end by then.
    pub(crate) deadline: Option<Instant>,
    /// It is the route that set the deadline, not the client.
    limited_by_route: bool,
    pub(crate) request: Option<Rc<RequestBody>>,
    /// Counts as in flight at its endpoint until the exchange ends.
    pub(crate) pick: Option<Pick>,
    /// Inbound: counts as under way for clients that ask.
    pub(crate) underway: Option<Underway>,
    watch: Rc<Watch>,
    /// Two readers could understand the head differently: how.
    refused: Option<&'static str>,
    complete: bool,
}

impl Exchange {
    pub(crate) fn begin(
        ctx: &Context,
        direction: Direction,
        request: &RequestHead,
        peer: Option<SpiffeId>,
        metrics: &RouteMetrics,
        watch: Rc<Watch>,
        refused: Option<&'static str>,
    ) -> Box<Self> {
        watch.begin();
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
            },
            metrics: metrics.clone(),
            started: Instant::now(),
            deadline: None,
            limited_by_route: false,
            request: None,
            pick: None,
            underway: None,
            watch,
            refused,
            complete: false,
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
            Some(reason) => Err(Error::BadRequest(reason)),
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

    /// The exchange may last so long from its beginning, and no longer than was said before.
    pub(crate) fn limit(&mut self, timeout: Option<Duration>) {
        let deadline = timeout.and_then(|timeout| self.started.checked_add(timeout));
        self.deadline = match (self.deadline, deadline) {
            (Some(held), Some(new)) => Some(held.min(new)),
            (held, new) => held.or(new),
        };
        self.watch.limit(self.deadline);
    }

    /// As [`Self::limit`], by what the route allows.
    pub(crate) fn limit_by_route(&mut self, timeout: Option<Duration>) {
        self.limit(timeout);
        let deadline = timeout.and_then(|timeout| self.started.checked_add(timeout));
        self.limited_by_route = deadline.is_some() && self.deadline == deadline;
    }

    /// Whether it is the client that is waited for: it has not sent all of its request.
    pub(super) fn awaits_client(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.awaited())
    }

    /// Whether time is up because the client wanted to wait no longer.
    pub(super) fn given_up_by_client(&self) -> bool {
        !self.limited_by_route && self.watch.overdue() != Some(Overdue::Idle)
    }

    /// The response that goes to the client, with the exchange in its body or in the upgraded connection.
    pub(crate) fn respond(
        mut self: Box<Self>,
        answer: Result<Answer, Error>,
        client: Option<Upgraded>,
        grpc: bool,
    ) -> Response {
        let own = answer.is_err();
        let answer = answer.unwrap_or_else(|error| {
            tracing::debug!(%error, "answered by the proxy");
            self.record.reason = self.record.reason.or_else(|| Some(error.reason()));
            let response = respond::failure(&error, grpc, self.record.version);
            self.answered(&response.head);
            Answer { response, upgraded: None }
        });
        match (answer.upgraded, client) {
            (Some(server), Some(client)) => {
                self.watch.tunnelled();
                upgrade::spawn(client, server, self);
                answer.response
            }
            _ => {
                self.watch.answered(own);
                let Response { head, body } = answer.response;
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
        let client_failed = self.request.as_ref().is_some_and(|request| request.failed());
        self.record.reason.get_or_insert(if client_failed { CLIENT_LEFT } else { BROKEN });
    }

    /// Waits for a step on the way to the answer, no longer than the exchange may last, nor than `try_deadline`.
    pub(crate) async fn within<T>(
        &mut self,
        try_deadline: Option<Instant>,
        step: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut step = pin!(step);
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
                Some(overdue) => {
                    self.record.reason.get_or_insert_with(|| overdue.reason());
                    Poll::Ready(Err(Error::RequestTimeout))
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let overdue = self.watch.end();
        let record = &mut self.record;
        if let Some(request) = &self.request {
            record.request_bytes += request.received();
        }
        if !self.complete {
            record.reason.get_or_insert_with(|| overdue.map_or(CLIENT_LEFT, Overdue::reason));
            // An endpoint may still be reading it.
            if let Some(request) = &self.request {
                request.abandon();
            }
        }
        record.duration = self.started.elapsed();
        self.metrics.record(record);
        self.ctx.telemetry.request_ended(record);
    }
}

/// The gRPC status in trailers, or in the head of a trailers-only answer.
pub(crate) fn grpc_status(fields: &Fields) -> Option<u16> {
    fields.text(Name::GrpcStatus)?.parse().ok()
}
