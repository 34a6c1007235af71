//! One try of a request: a connection to the endpoint that was chosen, the request, the head of the answer.

use std::{
    cell::Cell,
    fmt::Display,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use http::Method;

use super::{
    Body,
    exchange::Exchange,
    forward::{Outgoing, Plan, To},
    guarded::Guarded,
    head::{Name, RequestHead},
    headers,
    hedge::{self, Twice},
    informational::Informed,
    notes,
    request_body::{ContinueGate, RequestBody},
    retry::{Failure, Tries},
    told, verdict,
    watch::Watch,
};
use crate::{
    error::Error,
    policy::says::{By, Part},
    upstream::{
        Outcome, Pick,
        breaker::Permit,
        pool::{Carry, Extras, Reply, SendError},
    },
};

/// What every try of a request is made from.
pub(super) struct Template<'a> {
    pub(super) head: &'a mut RequestHead,
    pub(super) body: Option<Rc<RequestBody>>,
    pub(super) upgrade: Option<Box<[u8]>>,
    host: &'a dyn Display,
    expects_continue: bool,
    grpc: bool,
}

/// Notes at an endpoint that it is waited for, once the whole request is there; at the latest when nobody waits any longer.
struct Asking<'a> {
    pick: &'a Pick,
    body: Option<&'a RequestBody>,
}

impl Asking<'_> {
    fn note(&self) {
        let is_sent = |body: &RequestBody| !body.awaited() && !body.failed();
        if !self.pick.is_asked() && self.body.is_none_or(is_sent) {
            self.pick.asks(Some(Instant::now()));
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.note();
    }
}

/// A try that was sent: where, by whose leave, and which of the request's it is.
pub(super) struct Try {
    pub(super) pick: Pick,
    pub(super) permit: Option<Permit>,
    pub(super) number: u32,
}

/// A try that gave no answer.
pub(super) struct Failed {
    pub(super) failure: Failure,
    pub(super) error: Error,
    /// A response that may still be passed on if there is no further try.
    pub(super) reply: Option<Reply>,
}

/// A try that ended: where, by whose leave, and which of the request's it was (None: it found no connection).
pub(super) struct Tried {
    pub(super) pick: Pick,
    pub(super) permit: Option<Permit>,
    pub(super) number: Option<u32>,
    pub(super) result: Result<Reply, Failed>,
    /// Where the other of a hedged request's tries failed.
    pub(super) other: Option<SocketAddr>,
}

/// One try: a connection, the request, the head of the response; and the endpoint that it came from. `tried`: endpoints that failed the
/// request before. If it was hedged, what is
/// said is of the one of both that counts.
pub(super) async fn once(
    exchange: &mut Exchange,
    plan: &Plan<'_>,
    guarded: &Guarded<'_>,
    template: &mut Template<'_>,
    (pick, permit): (Pick, Option<Permit>),
    tried: &[SocketAddr],
    tries: &mut Tries,
) -> Tried {
    let carry = template.carry(plan.http2);
    if template.body.is_none() {
        pick.asks(None);
    }
    // Pinned where they are made: what is as large as a try is moved nowhere.
    let connected = exchange.within(None, pin!(guarded.waiting(pin!(pick.http(carry))))).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            tries.unconnected += 1;
            exchange.found_no_room = pick.has_no_room(carry);
            let for_good =
                matches!(error, Error::RequestTimeout | Error::ResponseTimeout | Error::Idle | Error::Limit { .. });
            let failure = if for_good { Failure::Final } else { Failure::NotConnected };
            let result = Err(Failed { failure, error, reply: None });
            return Tried { pick, permit, number: None, result, other: None };
        }
    };
    tries.sent += 1;
    let number = Some(tries.sent);
    exchange.record.attempts = tries.sent;
    told::connected(exchange, &connection, carry);
    let meshed = pick.endpoint.identity.is_some();
    let (body, extras) = match template.prepare(connection.is_http1(), meshed, tries.sent, exchange) {
        Ok(prepared) => prepared,
        Err(error) => return Tried { pick, permit, number, result: Err(Failed::for_good(error)), other: None },
    };
    let hedge = plan.action.and_then(|action| action.hedge.as_ref());
    // The time is read only for who wants to know.
    let started = (hedge.is_some() || guarded.try_timeout.is_some()).then(Instant::now);
    // From here on: a connection that was cut off for it would never be made.
    let deadline = started.zip(guarded.try_timeout).and_then(|(started, timeout)| started.checked_add(timeout));
    // Who holds a session's state answers it, however long that takes.
    let of_session = exchange.session.as_ref().is_some_and(|session| session.address == pick.endpoint.address);
    let (won, sent, other) = match (hedge, plan.to) {
        (Some(hedge), To::Backend(backend))
            if carry != Carry::Alone && !of_session && (tries.repeatable || hedge.any_method) =>
        {
            let twice = Twice {
                hedge,
                by: plan.action.map_or(By::Nobody, |action| action.by(Part::OfPolicy)),
                backend,
                guarded,
                head: template.head,
                body: template.body.as_ref(),
                carry,
                tried,
                attempt: attempt_told(tries.sent.saturating_add(1), exchange),
                deadline: exchange.deadline,
                grpc: template.grpc,
                sent_to: Cell::new(None),
            };
            // As large as two tries, and seldom wanted.
            Box::pin(hedge::send(exchange, deadline, (pick, permit), connection, (body, extras), twice, tries)).await
        }
        _ => {
            let asking = Asking { pick: &pick, body: template.body.as_deref() };
            let sent = async {
                let mut sending = pin!(connection.send(template.head, body, extras));
                let sent = poll_fn(|cx| {
                    let polled = sending.as_mut().poll(cx);
                    if polled.is_pending() {
                        asking.note();
                    }
                    polled
                });
                Ok(sent.await)
            };
            let sent = exchange.within(deadline, pin!(sent)).await;
            drop(asking);
            (Try { pick, permit, number: tries.sent }, sent, None)
        }
    };
    let Try { pick, permit, number } = won;
    let result = match sent {
        Ok(Ok(reply)) => {
            if let Some((hedge, started)) = hedge.zip(started) {
                hedge.observe(started.elapsed());
            }
            let policy = plan.action.and_then(|action| action.retry.as_ref());
            match verdict::refused(&reply.head, &pick, policy, template.grpc) {
                Some(failure) => {
                    let reason = reply.head.status.to_string();
                    let error = Error::Reset { endpoint: pick.endpoint.address.to_string(), reason };
                    Err(Failed { failure, error, reply: Some(reply) })
                }
                None => Ok(reply),
            }
        }
        Ok(Err(error)) => {
            tries.on_reused = error.reused;
            Err(unanswered(&pick, error))
        }
        Err(error) => {
            let failure = if matches!(error, Error::TryTimeout) { Failure::TryTimeout } else { Failure::Final };
            Err(Failed { failure, error, reply: None })
        }
    };
    Tried { pick, permit, number: Some(number), result, other }
}

/// An exchange that broke before its answer.
pub(super) fn unanswered(pick: &Pick, error: SendError) -> Failed {
    if error.own {
        pick.report(Outcome::Neutral, Instant::now());
    }
    if let Some(why) = error.unfit {
        return Failed::for_good(Error::BadRequest(why));
    }
    Failed {
        failure: if error.not_processed { Failure::NotProcessed } else { Failure::Reset },
        error: Error::Reset { endpoint: pick.endpoint.address.to_string(), reason: error.reason },
        reply: None,
    }
}

impl Failed {
    fn for_good(error: Error) -> Self {
        Self { failure: Failure::Final, error, reply: None }
    }
}

/// The number of a try as the next hop is told it: a try made to serve a try made again is one itself.
fn attempt_told(number: u32, exchange: &Exchange) -> u32 {
    number.saturating_add(exchange.serves_attempt.saturating_sub(1))
}

impl<'a> Template<'a> {
    pub(super) fn new(outgoing: Outgoing<'a>, watch: &Rc<Watch>) -> Self {
        let Outgoing { head, body, upgrade, host } = outgoing;
        let tunnel = head.method == Method::CONNECT;
        let body = (!tunnel && !body.is_end()).then(|| RequestBody::new(body, watch));
        let expects_continue = body.is_some() && headers::expects_continue(&head.fields);
        if expects_continue {
            watch.informational().await_continue();
        }
        let grpc = headers::is_grpc(&head.fields);
        Self { head, body, upgrade, host, expects_continue, grpc }
    }

    /// How the request wants to be carried; `http2`: see [`Plan`].
    fn carry(&self, http2: Option<bool>) -> Carry {
        let http2 = http2.unwrap_or_else(|| self.head.is_http2());
        let alone = self.upgrade.is_some() || self.expects_continue || self.head.method == Method::CONNECT;
        match (http2, alone) {
            _ if self.upgrade.is_some() => Carry::Alone,
            (true, _) => Carry::Http2,
            (false, true) => Carry::Alone,
            (false, false) => Carry::Http1,
        }
    }

    /// Makes the head fit for one try; its body, and what else its connection is to know.
    fn prepare(
        &mut self,
        http1: bool,
        meshed: bool,
        attempt: u32,
        exchange: &Exchange,
    ) -> Result<(Body, Extras), Error> {
        headers::settle(self.head, self.host);
        match exchange.noted_as() {
            Some(id) if meshed => self.head.fields.set_named(notes::HEADER, id.as_bytes()),
            // An earlier try may have been to a peer.
            Some(_) => self.head.fields.remove_named(notes::HEADER),
            None => {}
        }
        if let Some(idle) = exchange.watch().told_idle() {
            headers::set_idle(&mut self.head.fields, meshed.then_some(idle));
        }
        if http1 {
            if self.head.protocol.is_some() {
                return Err(Error::BadRequest("extended CONNECT to a server that speaks HTTP/1"));
            }
            headers::for_http1(self.head);
            if let Some(protocol) = &self.upgrade {
                headers::set_upgrade(&mut self.head.fields, protocol);
            }
        }
        let attempt = attempt_told(attempt, exchange);
        if attempt > 1 {
            self.head.fields.set(Name::LenoAttempt, attempt.to_string().as_bytes());
        }
        if let Some(deadline) = exchange.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            headers::set_timeout(&mut self.head.fields, left, self.grpc);
        }
        let gate = (self.expects_continue && http1).then(Arc::<ContinueGate>::default);
        let body = match &self.body {
            None => Body::empty(),
            Some(body) => {
                let reader =
                    body.reader(gate.clone()).ok_or(Error::Overload("the request body cannot be sent again"))?;
                Body::request(reader)
            }
        };
        let informed = Informed::of(exchange.watch());
        // RFC 8297 3: some clients of HTTP/1.1 take hints for the answer, which a server of HTTP/2 need not know.
        let informed = if !http1 && !self.head.is_http2() { informed.of_continue_alone() } else { informed };
        Ok((body, Extras { gate, informed }))
    }
}
