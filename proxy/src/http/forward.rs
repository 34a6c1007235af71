//! Sends a request to an endpoint, again to another if that is safe, and takes the answer.

use std::{
    cell::RefCell,
    fmt::Display,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;

use super::{
    Body, Response,
    affinity::Affinity,
    attempt::{self, Failed, Template, Tried},
    exchange::Exchange,
    guarded::Guarded,
    head::{Name, RequestHead, ResponseHead},
    headers,
    persistence::Session,
    request_body::RequestBody,
    retry::{self, Failure, Next, NoRetry, Tries},
    told,
    upgrade::Upgraded,
    verdict,
};
use crate::{
    error::Error,
    policy::HttpAction,
    reason::Reason,
    upstream::{Backend, Outcome, Pick, budget::RetryBudget, pool::Reply},
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
    /// The local application: one address, no balancing, nobody to verify. With what may be sent to it again.
    Application(SocketAddr, &'a RetryBudget),
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
    }
    if !noted {
        told::policy(exchange, &plan, template.head);
    }
    if let Err(error) = &answer {
        told::refused(exchange, &plan, error);
    }
    answer
}

async fn make_tries(exchange: &mut Exchange, plan: &Plan<'_>, template: &mut Template<'_>) -> Result<Answer, Error> {
    let ctx = Rc::clone(exchange.ctx());
    exchange.still_awaited()?;
    let guarded = Guarded::enter(exchange, plan).await?;
    let mut tries = Tries {
        repeatable: retry::repeatable(&template.head.method, &template.head.fields),
        of_retry: exchange.serves_attempt > 1,
        ..Tries::default()
    };
    let mut tried = Vec::new();
    let mut latest = None;
    let mut affinity = Affinity::new(plan.source, &ctx.config.workload);
    loop {
        let permit = match guarded.admit() {
            Ok(permit) => permit,
            Err(error) => return no_try(exchange, plan, template, latest, error),
        };
        let session = exchange.session.as_ref().filter(|_| tried.is_empty()).map(|session| **session);
        let why = exchange.is_told().then(RefCell::default);
        let picked = {
            let choice = Choosing { ctx: &ctx, to: plan.to, tried: &tried, session, why: why.as_ref() };
            let picked = async { Ok(choice.choose(&mut affinity, template.head).await) };
            exchange.within(None, pin!(picked)).await?
        };
        let pick = match picked {
            Ok(pick) => pick,
            Err(error) => return no_try(exchange, plan, template, latest, error),
        };
        exchange.record.endpoint = Some(pick.endpoint.address);
        told::picked(exchange, &pick, why);
        let ended = attempt::once(exchange, plan, &guarded, template, (pick, permit), &tried, &mut tries).await;
        let Tried { pick, permit, number, result, other } = ended;
        let now = Instant::now();
        exchange.tried_at = Some(now);
        let Failed { failure, error, reply } = match result {
            Ok(reply) => {
                let verdict = verdict::outcome(&reply.head, &pick, exchange);
                told::answered(exchange, template.head, (&reply.head, number), &pick, verdict);
                guarded.report(permit, &pick, verdict, now);
                let failed = matches!(verdict, Outcome::Failure | Outcome::Refused);
                // An application's other instances may do better.
                if failed && !tried.is_empty() && matches!(plan.to, To::Backend(_)) {
                    exchange.in_vain = true;
                }
                return accept(exchange, pick, template, &affinity, reply);
            }
            Err(failed) => failed,
        };
        told::failed(exchange, template.head, &pick, (&error, number), reply.as_ref().map(|reply| &reply.head));
        if let Some(error) = template.body.as_ref().and_then(|body| broken_by_client(body, exchange)) {
            pick.report(Outcome::Neutral, now);
            return Err(error);
        }
        let verdict = match &reply {
            Some(reply) => verdict::outcome(&reply.head, &pick, exchange),
            None => verdict::blame(&error, exchange),
        };
        guarded.report(permit, &pick, verdict, now);
        if tried.is_empty() && !verdict::was_reached(number, reply.as_ref(), &pick) {
            // The session goes with who answers in its endpoint's place.
            exchange.session = None;
        }
        let may_be_processed = number.is_some() && failure != Failure::NotProcessed;
        exchange.may_be_processed |= may_be_processed;
        let wanted = next_try(exchange, plan, template, failure, tries, now);
        let next = match wanted.and_then(|next| guarded.may_retry(exchange, now).map(|()| next)) {
            Ok(next) => next,
            Err(why) => {
                told::no_further(exchange, plan, why);
                if is_in_vain(plan.to, failure, wanted.is_ok(), !tried.is_empty()) {
                    exchange.in_vain = true;
                }
                return match reply {
                    _ if tries.spent_budget(why) && guarded.answers_unavailable() => Err(guarded.budget_spent(error)),
                    Some(reply) => accept(exchange, pick, template, &affinity, reply),
                    None if is_unsent(failure, &error) => as_it_ended(exchange, template, latest, error),
                    None => Err(error),
                };
            }
        };
        told::again(exchange, plan.action, next, failure);
        tracing::debug!(endpoint = %pick.endpoint.address, %error, ?failure, "trying again");
        exchange.metrics.retried();
        tries.by_policy += u32::from(matches!(next, Next::ByPolicy(_)));
        tried.push(pick.endpoint.address);
        tried.extend(other);
        // A hedged one may have been, however the try that counts ended.
        if may_be_processed || (exchange.may_be_processed && latest.is_none()) {
            latest = Some(Latest::of(error, reply.as_ref(), &pick));
        }
        drop((pick, reply));
        if !next.wait().is_zero() {
            pause(exchange, next.wait()).await?;
        }
    }
}

/// How the latest try ended that may have been processed: that is what became of the request, if none of the next ones is
/// sent.
enum Latest {
    Failed(Error),
    /// What is kept of its answer while a better one is looked for.
    Answered(ResponseHead),
}

impl Latest {
    fn of(error: Error, reply: Option<&Reply>, pick: &Pick) -> Self {
        let Some(reply) = reply else { return Self::Failed(error) };
        let mut head = ResponseHead::new(reply.head.status);
        let mut keep = |name| {
            if let Some(value) = reply.head.fields.get(name) {
                head.fields.push_known(name, value);
            }
        };
        keep(Name::RetryAfter);
        if pick.endpoint.identity.is_some() {
            keep(Name::LenoReason);
        }
        if reply.head.fields.has(Name::GrpcStatus) {
            [Name::ContentType, Name::GrpcStatus, Name::GrpcMessage].into_iter().for_each(keep);
        }
        Self::Answered(head)
    }
}

/// There is no further try, since `error`.
fn no_try(
    exchange: &mut Exchange,
    plan: &Plan<'_>,
    template: &Template<'_>,
    latest: Option<Latest>,
    error: Error,
) -> Result<Answer, Error> {
    if latest.is_some() {
        exchange.tell("retry", false, || format!("no further try: {error}"));
        if matches!(plan.to, To::Backend(_)) {
            exchange.in_vain = true;
        }
    }
    as_it_ended(exchange, template, latest, error)
}

/// The answer to a request whose last try was not sent, because of `error`: if an earlier one may have been processed, that
/// is not what became of it.
fn as_it_ended(
    exchange: &mut Exchange,
    template: &Template<'_>,
    latest: Option<Latest>,
    error: Error,
) -> Result<Answer, Error> {
    match latest {
        None => Err(error),
        Some(Latest::Failed(earlier)) => Err(earlier),
        Some(Latest::Answered(head)) => {
            template.body.iter().for_each(|body| body.settle());
            exchange.answered(&head);
            Ok(Answer { response: Response { head, body: Body::empty() }, upgraded: None })
        }
    }
}

/// Whether a try ended before its request was sent, and not because its time was up.
fn is_unsent(failure: Failure, error: &Error) -> bool {
    failure == Failure::NotConnected || matches!(error, Error::Limit { .. })
}

/// Waits before the next try. Idleness counts anew from the failure, and from the next try on: the wait alone is none.
async fn pause(exchange: &mut Exchange, wait: Duration) -> Result<(), Error> {
    exchange.watch().moved(1);
    let waited = async {
        tokio::time::sleep(wait).await;
        Ok(())
    };
    exchange.within(None, pin!(waited)).await?;
    exchange.watch().moved(1);
    Ok(())
}

/// Whether whoever called us would only do the same again. `wanted`: there was no leave for a further try; `again`: there was one.
fn is_in_vain(to: To<'_>, failure: Failure, wanted: bool, again: bool) -> bool {
    match to {
        To::Backend(_) => wanted || again || failure == Failure::InVain,
        // Its other instances may do better: this one may just be ending, and break off what comes on new connections, too.
        To::Application(..) => false,
    }
}

/// What stands in for a try's failure if it was the client's doing: its request broke off, or is larger than it may be.
fn broken_by_client(body: &RequestBody, exchange: &mut Exchange) -> Option<Error> {
    if !body.failed() {
        return None;
    }
    if let Some(most) = body.too_large() {
        return Some(Error::BodyTooLarge { most });
    }
    exchange.record.reason = Some(Reason::ClientLeft);
    Some(Error::BadRequest("the request's body broke off"))
}

/// The try after a failed one, as far as request, route and deadline allow it.
fn next_try(
    exchange: &Exchange,
    plan: &Plan<'_>,
    template: &Template<'_>,
    failure: Failure,
    tries: Tries,
    now: Instant,
) -> Result<Next, NoRetry> {
    if template.body.as_ref().is_some_and(|body| !body.replayable()) {
        return Err(NoRetry::BodyGone);
    }
    match plan.to {
        To::Backend(_) => {
            let policy = plan.action.and_then(|action| action.retry.as_ref());
            let next = retry::next_try(failure, tries, policy, exchange.ctx().random.next())?;
            let in_time = exchange.ends_by().is_none_or(|deadline| now + next.wait() < deadline);
            let may_rest = exchange.watch().policy_idle().is_none_or(|idle| next.wait() < idle);
            match (in_time, may_rest) {
                (true, true) => Ok(next),
                (false, _) => Err(NoRetry::Deadline),
                (true, false) => Err(NoRetry::Idle),
            }
        }
        To::Application(..) => retry::once_more(failure, tries),
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
            && let Some(pick) = ctx.upstreams.pick_of_session(backend, &session).await?
        {
            why.iter().for_each(|why| "its session is with it".clone_into(&mut why.borrow_mut()));
            return Ok(pick);
        }
        match self.to {
            To::Backend(backend) => {
                let key = |by: &_| affinity.key(by, head, || ctx.random.next());
                ctx.upstreams.pick_and_tell(backend, tried, key, *why).await
            }
            To::Application(address, _) => Ok(ctx.upstreams.plain(address)),
        }
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

fn broken(pick: &Pick, reason: &str) -> Error {
    Error::Reset { endpoint: pick.endpoint.address.to_string(), reason: reason.to_owned() }
}
