//! Sends a request to an endpoint, again to another if that is safe, and takes the answer.

use std::{
    cell::{Cell, RefCell},
    fmt::Display,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};

use super::{
    Body, Response,
    affinity::Affinity,
    exchange::{Exchange, grpc_status},
    guarded::Guarded,
    head::{Name, RequestHead, ResponseHead},
    headers,
    hedge::{self, Elsewhere, Ended, Twice},
    notes,
    persistence::Session,
    request_body::{ContinueGate, RequestBody},
    retry::{self, Failure, Next, NoRetry, Tries},
    told,
    upgrade::Upgraded,
    watch::Watch,
};
use crate::{
    error::Error,
    policy::{HttpAction, retry_policy::Retry},
    reason::Reason,
    upstream::{
        Backend, Outcome, Pick,
        breaker::Permit,
        pool::{Carry, Extras, HttpConnection, Reply, SendError},
    },
    worker::Context,
};

/// Where to and how a request is sent.
pub(crate) struct Plan<'a> {
    pub(crate) to: To<'a>,
    /// Carried as HTTP/2 whatever the client speaks, or as HTTP/1; None: as the client speaks.
    pub(crate) http2: Option<bool>,
    /// What the route says of retries, timeouts and hedging.
    pub(crate) action: Option<&'a HttpAction>,
    /// Where the client's connection came from.
    pub(crate) source: Option<SocketAddr>,
}

/// Who serves the request.
#[derive(Clone, Copy)]
pub(crate) enum To<'a> {
    Backend(&'a Arc<Backend>),
    /// The local application: one address, no balancing, nobody to verify.
    Application(SocketAddr),
}

/// A request whose head is settled ([`headers::receive`]) and filtered.
pub(crate) struct Outgoing<'a> {
    /// Its tries write into it what they need.
    pub(crate) head: &'a mut RequestHead,
    pub(crate) body: Body,
    /// The protocol the client wants to change to (HTTP/1.1).
    pub(crate) upgrade: Option<Box<[u8]>>,
    /// The authority for clients that named none.
    pub(crate) host: &'a dyn Display,
}

/// A response on its way to the client.
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// The server changed protocols: its side of the connection.
    pub(crate) upgraded: Option<Upgraded>,
}

/// What every try of a request is made from.
struct Template<'a> {
    head: &'a mut RequestHead,
    body: Option<Rc<RequestBody>>,
    upgrade: Option<Box<[u8]>>,
    host: &'a dyn Display,
    expects_continue: bool,
    grpc: bool,
}

/// A try that gave no answer.
struct Failed {
    failure: Failure,
    error: Error,
    /// A response that may still be passed on if there is no further try.
    reply: Option<Reply>,
}

/// A try that ended: where, by whose leave, and which of the request's it was (None: it found no connection).
struct Tried {
    pick: Pick,
    permit: Option<Permit>,
    number: Option<u32>,
    result: Result<Reply, Failed>,
}

/// Sends the request and waits for the head of an answer that is to be passed on.
///
/// # Errors
/// If no try got an answer.
pub(crate) async fn forward(exchange: &mut Exchange, plan: Plan<'_>, outgoing: Outgoing<'_>) -> Result<Answer, Error> {
    let mut template = Template::new(outgoing, exchange.watch());
    exchange.request.clone_from(&template.body);
    template.body.iter().for_each(|body| body.limit(exchange.most_body));
    let noted = exchange.is_told();
    let answer = make_tries(exchange, &plan, &mut template).await;
    if let Err(error) = &answer {
        exchange.fails_for(Some(error.reason()), Some(template.head));
        if let To::Backend(backend) = plan.to {
            told::refused(exchange, backend, error, noted);
        }
    }
    answer
}

async fn make_tries(exchange: &mut Exchange, plan: &Plan<'_>, template: &mut Template<'_>) -> Result<Answer, Error> {
    let ctx = Rc::clone(exchange.ctx());
    exchange.still_awaited()?;
    let guarded = Guarded::enter(exchange, plan)?;
    let mut tries = Tries {
        repeatable: retry::repeatable(&template.head.method, &template.head.fields),
        of_retry: exchange.serves_attempt > 1,
        ..Tries::default()
    };
    let policy = plan.action.and_then(|action| action.retry.as_ref());
    let mut tried = Vec::new();
    let mut affinity = Affinity::new(plan.source, &ctx.config.workload);
    loop {
        let permit = guarded.admit()?;
        let session = exchange.session.as_ref().filter(|_| tried.is_empty()).map(|session| **session);
        let why = exchange.is_told().then(RefCell::default);
        let pick = {
            let choice = Choosing { ctx: &ctx, to: plan.to, tried: &tried, session, why: why.as_ref() };
            let picked = async { Ok(choice.choose(&mut affinity, template.head).await) };
            exchange.within(None, pin!(picked)).await??
        };
        exchange.record.endpoint = Some(pick.endpoint.address);
        told::picked(exchange, &pick, why);
        let ended = try_once(exchange, plan, &guarded, template, (pick, permit), &mut tries).await;
        let Tried { pick, permit, number, result } = ended;
        let now = Instant::now();
        let failed = match result {
            Ok(reply) => {
                let verdict = outcome(&reply.head, &pick, exchange);
                told::answered(exchange, template.head, (&reply.head, number), &pick, verdict);
                guarded.report(permit, &pick, verdict, now);
                if matches!(verdict, Outcome::Failure | Outcome::Refused) && !tried.is_empty() {
                    exchange.retried_in_vain();
                }
                return accept(exchange, pick, template, &affinity, reply);
            }
            Err(failed) => failed,
        };
        let Failed { failure, error, reply } = failed;
        told::failed(exchange, template.head, &pick, (&error, number), reply.as_ref().map(|reply| &reply.head));
        if let Some(body) = template.body.as_ref().filter(|body| body.failed()) {
            pick.report(Outcome::Neutral, now);
            if let Some(most) = body.too_large() {
                return Err(Error::BodyTooLarge { most });
            }
            exchange.record.reason = Some(Reason::ClientLeft);
            return Err(Error::BadRequest("the request's body broke off"));
        }
        let verdict = match &reply {
            Some(reply) => outcome(&reply.head, &pick, exchange),
            None => blame(&error, exchange),
        };
        guarded.report(permit, &pick, verdict, now);
        let wanted = match plan.to {
            _ if template.body.as_ref().is_some_and(|body| !body.replayable()) => Err(NoRetry::BodyGone),
            To::Backend(_) => retry::next_try(failure, tries, policy, ctx.random.next()).and_then(|next| {
                let in_time = exchange.deadline.is_none_or(|deadline| now + next.wait() < deadline);
                if in_time { Ok(next) } else { Err(NoRetry::Deadline) }
            }),
            // There is only one application: if it does not listen, another try now is in vain.
            To::Application(_) if failure == Failure::NotConnected => Err(NoRetry::OneApplication),
            To::Application(_) => retry::next_try(failure, tries, None, 0),
        };
        let next = match wanted.and_then(|next| guarded.may_retry(exchange, now).map(|()| next)) {
            Ok(next) => next,
            Err(why) => {
                exchange.tell("retry", false, || format!("no further try: {why}"));
                // Whoever called us would only do the same again.
                let in_vain = wanted.is_ok() || !tried.is_empty() || failure == Failure::InVain;
                if matches!(plan.to, To::Backend(_)) && in_vain {
                    exchange.retried_in_vain();
                }
                return match reply {
                    _ if tries.spent_budget(why) && guarded.answers_unavailable() => Err(guarded.budget_spent(error)),
                    Some(reply) => accept(exchange, pick, template, &affinity, reply),
                    None => Err(error),
                };
            }
        };
        told::again(exchange, next);
        tracing::debug!(endpoint = %pick.endpoint.address, %error, ?failure, "trying again");
        exchange.metrics.retried();
        tries.by_policy += u32::from(matches!(next, Next::ByPolicy(_)));
        tried.push(pick.endpoint.address);
        drop((pick, reply));
        if !next.wait().is_zero() {
            tokio::time::sleep(next.wait()).await;
        }
    }
}

/// What an endpoint is chosen by for one try.
struct Choosing<'a> {
    ctx: &'a Context,
    to: To<'a>,
    tried: &'a [SocketAddr],
    session: Option<Session>,
    /// Where it is said why, if anybody wants to know.
    why: Option<&'a RefCell<String>>,
}

impl Choosing<'_> {
    async fn choose(&self, affinity: &mut Affinity<'_>, head: &RequestHead) -> Result<Pick, Error> {
        let Self { ctx, tried, why, .. } = self;
        if let (Some(session), To::Backend(backend)) = (self.session, self.to)
            && let Some(pick) = ctx.upstreams.pick_of_session(backend, &session).await
        {
            why.iter().for_each(|why| "its session is with it".clone_into(&mut why.borrow_mut()));
            return Ok(pick);
        }
        match self.to {
            To::Backend(backend) => {
                let key = |by: &_| affinity.key(by, head, || ctx.random.next());
                ctx.upstreams.pick_and_tell(backend, tried, key, *why).await
            }
            To::Application(address) => Ok(ctx.upstreams.plain(address)),
        }
    }
}

/// One try: a connection, the request, the head of the response; and the endpoint that it came from. If it was hedged, what is
/// said is of the one of both that counts.
async fn try_once(
    exchange: &mut Exchange,
    plan: &Plan<'_>,
    guarded: &Guarded<'_>,
    template: &mut Template<'_>,
    (pick, permit): (Pick, Option<Permit>),
    tries: &mut Tries,
) -> Tried {
    let carry = template.carry(plan.http2);
    // Pinned where they are made: what is as large as a try is moved nowhere.
    let connected = exchange.within(None, pin!(guarded.waiting(pin!(pick.http(carry))))).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            tries.unconnected += 1;
            let for_good = matches!(error, Error::RequestTimeout | Error::Limit { .. });
            let failure = if for_good { Failure::Final } else { Failure::NotConnected };
            return Tried { pick, permit, number: None, result: Err(Failed { failure, error, reply: None }) };
        }
    };
    tries.sent += 1;
    let number = Some(tries.sent);
    exchange.record.attempts = tries.sent;
    told::connected(exchange, &connection, carry);
    let meshed = pick.endpoint.identity.is_some();
    let (body, extras) = match template.prepare(connection.is_http1(), meshed, tries.sent, exchange) {
        Ok(prepared) => prepared,
        Err(error) => return Tried { pick, permit, number, result: Err(Failed::for_good(error)) },
    };
    let hedge = plan.action.and_then(|action| action.hedge.as_ref());
    // The time is read only for who wants to know.
    let started = (hedge.is_some() || guarded.try_timeout.is_some()).then(Instant::now);
    let deadline = started.zip(guarded.try_timeout).and_then(|(started, timeout)| started.checked_add(timeout));
    let (won, sent) = match (hedge, plan.to) {
        (Some(hedge), To::Backend(backend)) if carry != Carry::Alone && (tries.repeatable || hedge.any_method) => {
            let twice = Twice {
                hedge,
                backend,
                guarded,
                head: template.head,
                body: template.body.as_ref(),
                carry,
                attempt: attempt_told(tries.sent.saturating_add(1), exchange),
                sent: Cell::new(false),
            };
            // As large as two tries, and seldom wanted.
            Box::pin(hedged(exchange, deadline, (pick, permit), connection, (body, extras), twice, tries)).await
        }
        _ => {
            let sent = async { Ok(connection.send(template.head, body, extras).await) };
            let sent = exchange.within(deadline, pin!(sent)).await;
            (Won { pick, permit, number: tries.sent }, sent)
        }
    };
    let Won { pick, permit, number } = won;
    let result = match sent {
        Ok(Ok(reply)) => {
            if let Some((hedge, started)) = hedge.zip(started) {
                hedge.observe(started.elapsed());
            }
            let policy = plan.action.and_then(|action| action.retry.as_ref());
            match refused(&reply.head, &pick, policy, template.grpc) {
                Some(failure) => {
                    let reason = reply.head.status.to_string();
                    let error = Error::Reset { endpoint: pick.endpoint.address.to_string(), reason };
                    Err(Failed { failure, error, reply: Some(reply) })
                }
                None => Ok(reply),
            }
        }
        Ok(Err(error)) => Err(unanswered(&pick, error)),
        Err(error) => {
            let failure = if matches!(error, Error::TryTimeout) { Failure::TryTimeout } else { Failure::Final };
            Err(Failed { failure, error, reply: None })
        }
    };
    Tried { pick, permit, number: Some(number), result }
}

/// The one of two tries that counts.
struct Won {
    pick: Pick,
    permit: Option<Permit>,
    number: u32,
}

/// As [`hedge::send`]. The try that does not count is judged by the same rules, if it has ended; if it was cancelled, it says
/// nothing of the backend, and of its endpoint only that it was slower.
async fn hedged(
    exchange: &mut Exchange,
    deadline: Option<Instant>,
    (pick, permit): (Pick, Option<Permit>),
    connection: HttpConnection,
    message: (Body, Extras),
    twice: Twice<'_>,
    tries: &mut Tries,
) -> (Won, Result<Result<Reply, SendError>, Error>) {
    let number = tries.sent;
    let ended = hedge::send(exchange, deadline, (pick.endpoint.address, connection), message, &twice).await;
    if twice.sent.get() {
        exchange.metrics.retried();
        tries.sent += 1;
        exchange.record.attempts = tries.sent;
        let second = tries.sent;
        exchange
            .tell("hedging", true, || format!("not answered in time: sent to another endpoint too, as try {second}"));
    }
    let first = Won { pick, permit, number };
    let Ended { first: of_first, second, second_won } = match ended {
        Ok(ended) => ended,
        Err(error) => return (first, Err(error)),
    };
    let (second, of_second) = match second {
        Some(Elsewhere { pick, leave, sent }) => {
            if second_won {
                exchange.places.extend(leave.place);
            }
            (Some(Won { pick, permit: leave.permit, number: number + 1 }), Some(sent))
        }
        None => (None, None),
    };
    match (second, of_first, of_second) {
        (Some(second), of_first, Some(Ok(sent))) if second_won => {
            exchange.record.endpoint = Some(second.pick.endpoint.address);
            lose(exchange, twice.guarded, first, of_first.map(Ok));
            (second, Ok(sent))
        }
        (second, Some(sent), of_second) => {
            if let Some(second) = second {
                lose(exchange, twice.guarded, second, of_second);
            }
            (first, Ok(sent))
        }
        // Neither ended, which a race has no word for.
        (_, None, _) => (first, Err(Error::RequestTimeout)),
    }
}

/// The other try of a hedged request was better. `sent`: how this one ended; None: it was cancelled.
fn lose(
    exchange: &mut Exchange,
    guarded: &Guarded<'_>,
    loser: Won,
    sent: Option<Result<Result<Reply, SendError>, Error>>,
) {
    let Won { pick, permit, number } = loser;
    told::lost(exchange, &pick, number, sent.as_ref());
    let verdict = match sent {
        None => {
            pick.report(Outcome::GivenUp, Instant::now());
            return;
        }
        Some(Ok(Ok(reply))) => outcome(&reply.head, &pick, exchange),
        Some(Ok(Err(error))) => blame(&unanswered(&pick, error).error, exchange),
        Some(Err(error)) => blame(&error, exchange),
    };
    guarded.report(permit, &pick, verdict, Instant::now());
}

/// An exchange that broke before its answer.
fn unanswered(pick: &Pick, error: SendError) -> Failed {
    if error.own {
        pick.report(Outcome::Neutral, Instant::now());
    }
    if error.unfit {
        return Failed::for_good(Error::BadRequest("an invalid target"));
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

/// Whether an answer is one to try again: the mesh peer says why the application never saw the request, or
/// the route's policy names the status or gRPC code (of an answer without a body: then it is in the head). Never if a hop
/// further on has tried again already.
fn refused(response: &ResponseHead, pick: &Pick, policy: Option<&Retry>, grpc: bool) -> Option<Failure> {
    let status = response.status.as_u16();
    let peers = pick.endpoint.identity.is_some();
    if peers && response.fields.has(Name::LenoRetried) {
        return Some(Failure::InVain);
    }
    match peers_reason(response, pick) {
        Some(b"connect" | b"overload") => return Some(Failure::NotProcessed),
        Some(b"reset") => return Some(Failure::Reset),
        // It is as large next time, whatever a policy says of its status or code.
        Some(b"head-too-large" | b"body-too-large") => return None,
        _ => {}
    }
    let policy = policy?;
    let code = if grpc { grpc_status(&response.fields).filter(|code| *code != 0) } else { None };
    if code.is_none() && policy.statuses.binary_search(&status).is_err() {
        return None;
    }
    // gRPC's answers are all 200.
    let retry_after = || retry_after(response).filter(|_| matches!(status, 200 | 429 | 503));
    let pushback = response.fields.values(b"grpc-retry-pushback-ms").next();
    Some(match code {
        Some(code) if pushback.is_some() => Failure::PushedBack(code, pushback.and_then(retry::pushback)),
        Some(code) => Failure::Grpc(code, retry_after()),
        None => Failure::Status(status, retry_after()),
    })
}

/// How long the server asks to be left alone (RFC 9110 10.2.3), if it says so in seconds.
fn retry_after(response: &ResponseHead) -> Option<Duration> {
    response.fields.text(Name::RetryAfter)?.trim().parse().ok().map(Duration::from_secs)
}

/// Why the mesh peer's proxy answered itself.
fn peers_reason<'a>(response: &'a ResponseHead, pick: &Pick) -> Option<&'a [u8]> {
    response.fields.get(Name::LenoReason).filter(|_| pick.endpoint.identity.is_some())
}

/// What an answer says about its endpoint: HTTP's server errors, and gRPC's UNAVAILABLE; 429 and RESOURCE_EXHAUSTED.
fn outcome(response: &ResponseHead, pick: &Pick, exchange: &Exchange) -> Outcome {
    let (status, grpc) = (response.status, grpc_status(&response.fields));
    let failed = status.is_server_error() || grpc == Some(14);
    let refused = status == StatusCode::TOO_MANY_REQUESTS || grpc == Some(8);
    if (refused || status == StatusCode::SERVICE_UNAVAILABLE)
        && let Some(wait) = retry_after(response)
    {
        pick.rest(wait, Instant::now());
    }
    match peers_reason(response, pick) {
        // The request's own fault.
        Some(b"head-too-large" | b"body-too-large") => Outcome::Neutral,
        _ if refused => Outcome::Refused,
        _ if !failed => Outcome::Success,
        // The peer was told the deadline, and noticed first.
        Some(b"request-timeout") => blame(&Error::RequestTimeout, exchange),
        _ => Outcome::Failure,
    }
}

/// What a try without an answer says about its endpoint: nothing, if the request was not fit to be sent, or the client is
/// still sending it, or wanted to wait no longer. Clients must not be able to have healthy endpoints ejected.
fn blame(error: &Error, exchange: &Exchange) -> Outcome {
    match error {
        Error::BadRequest(_) | Error::InvalidBackend(_) | Error::Overload(_) | Error::Limit { .. } => Outcome::Neutral,
        Error::RequestTimeout | Error::TryTimeout if exchange.awaits_client() => Outcome::Neutral,
        Error::RequestTimeout if exchange.given_up_by_client() => Outcome::GivenUp,
        _ => Outcome::Failure,
    }
}

/// The response is passed on: no further try.
fn accept(
    exchange: &mut Exchange,
    pick: Pick,
    template: &Template<'_>,
    affinity: &Affinity<'_>,
    reply: Reply,
) -> Result<Answer, Error> {
    if let Some(body) = &template.body {
        body.settle();
    }
    let Reply { mut head, body, upgraded } = reply;
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && template.upgrade.is_none() {
        return Err(broken(&pick, "switched protocols without being asked"));
    }
    let protocol = if switched { head.fields.get(Name::Upgrade).map(Box::<[u8]>::from) } else { None };
    let meshed = pick.endpoint.identity.is_some();
    headers::receive_response(&mut head.fields, meshed).map_err(|reason| broken(&pick, reason))?;
    if let Some(protocol) = protocol {
        headers::set_upgrade(&mut head.fields, &protocol);
    }
    affinity.tell(&mut head);
    exchange.answered(&head);
    if meshed && exchange.record.peer.is_none() {
        exchange.record.peer.clone_from(&pick.endpoint.identity);
    }
    exchange.pick = Some(pick);
    let body = if upgraded.is_some() { Body::empty() } else { body };
    Ok(Answer { response: Response { head, body }, upgraded })
}

/// The number of a try as the next hop is told it: a try made to serve a try made again is one itself.
fn attempt_told(number: u32, exchange: &Exchange) -> u32 {
    number.saturating_add(exchange.serves_attempt.saturating_sub(1))
}

fn broken(pick: &Pick, reason: &str) -> Error {
    Error::Reset { endpoint: pick.endpoint.address.to_string(), reason: reason.to_owned() }
}

impl<'a> Template<'a> {
    fn new(outgoing: Outgoing<'a>, watch: &Rc<Watch>) -> Self {
        let Outgoing { head, body, upgrade, host } = outgoing;
        let tunnel = head.method == Method::CONNECT;
        let body = (!tunnel && !body.is_end()).then(|| RequestBody::new(body, watch));
        let expects_continue = body.is_some() && headers::expects_continue(&head.fields);
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
        Ok((body, Extras { gate }))
    }
}
