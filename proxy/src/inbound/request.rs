//! One inbound request: who sent it is written down, the rest is the application's.

use std::{rc::Rc, sync::Arc, time::Instant};

use super::{Application, Client, PLAINTEXT, STRICT, concurrency::adaptive::Sample, rate_limit::Standing, told};
use crate::{
    config::limits,
    error::{Error, RateLimited},
    http::{
        Body,
        exchange::{Exchange, grpc_status},
        forward::{self, Answer, Outgoing, Plan, To},
        head::{Name, RequestHead, names},
        headers, notes,
        serve::{Answering, Begun, Received},
    },
    policy::{Protocol, RuleOrigin},
    telemetry::Direction,
    worker::Context,
};

/// The reasons counted for requests beyond a limit; the errors' own.
const OVERLOAD: &str = "overload";
/// See [`OVERLOAD`].
const RATE_LIMIT: &str = "rate-limit";
/// What a client hears that came when the application had all the requests that it can have at a time.
const CROWDED: &str = "the application has as many requests as it can answer in time";
/// The reason counted for a client that names its own identity.
const FORGED_IDENTITY: &str = "forged-identity";

/// Answers one request to the workload.
pub(super) fn serve(ctx: Context, client: Rc<Client>, application: Rc<Application>, received: Received) -> Answering {
    Box::pin(async move {
        let Begun { mut head, body, mut exchange, upgrade } =
            received.begin(&ctx, Direction::Inbound, client.identity.clone(), &application.requests);
        let grpc = headers::is_grpc(&head.fields);
        exchange.underway = application.load.begin(exchange.started);
        let answer = answer(&client, &application, &mut exchange, &mut head, body).await;
        if let (Some(underway), Ok(answer)) = (&exchange.underway, &answer)
            && !answer.response.head.status.is_server_error()
        {
            underway.answered(Instant::now());
        }
        exchange.respond(answer, upgrade, grpc)
    })
}

async fn answer(
    client: &Client,
    application: &Application,
    exchange: &mut Exchange,
    head: &mut RequestHead,
    body: Body,
) -> Result<Answer, Error> {
    let upgrade = exchange.receive(head)?;
    let ctx = exchange.ctx();
    // The connection may be older than the policy. What became opaque bytes cannot be looked at again, and goes on.
    if client.identity.is_none() && ctx.policy.inbound().strict {
        ctx.telemetry.refused(Direction::Inbound, PLAINTEXT, client.address, &STRICT);
        exchange.fails(Some(&head));
        return Err(Error::Refused(STRICT));
    }
    let asked = client.identity.as_ref().and_then(|_| notes::read_id(&head.fields));
    identify(client, exchange, head);
    exchange.join_trace(&mut head.fields);
    exchange.limit(headers::grpc_timeout(&head.fields));
    exchange.begin_hop(headers::attempt(&head.fields));
    let http2 = match application.protocol {
        Protocol::Http1 => Some(false),
        Protocol::Http2 => Some(true),
        _ => None,
    };
    exchange.may_be_noted(head, asked);
    told::begin(exchange, client, application, head);
    is_within_size(application, exchange, head, &body)?;
    let told = admit(client, application, exchange, head)?;
    let Ok(permit) = application.protection.concurrency.enter(exchange.started) else {
        exchange.fails(Some(&head));
        exchange.ctx().telemetry.refused(Direction::Inbound, OVERLOAD, client.address, &CROWDED);
        return Err(Error::Overload(CROWDED));
    };
    let plan = Plan { to: To::Application(application.address), http2, action: None, source: None };
    let outgoing = Outgoing { head, body, upgrade, host: &application.address };
    let mut answer = forward::forward(exchange, plan, outgoing).await;
    if let Some(permit) = permit {
        permit.answered(sample(&answer, exchange), Instant::now());
    }
    if let (Some(told), Ok(answer)) = (told, &mut answer) {
        told.write(&mut answer.response.head.fields);
    }
    answer
}

/// Whether the request is no larger than the port's policy allows, as far as its head tells.
fn is_within_size(
    application: &Application,
    exchange: &mut Exchange,
    head: &RequestHead,
    body: &Body,
) -> Result<(), Error> {
    let (most_head, most_body) = (application.protection.max_head(), application.protection.max_body());
    // Nothing is counted that the proxy's own limit does not leave to be refused.
    let bytes = if most_head < limits::HEAD_BYTES { head.target().len() + head.fields.size() } else { 0 };
    let refused = if bytes > most_head {
        Error::HeadTooLarge { bytes, most: most_head }
    } else if body.exact_length().is_some_and(|length| length > most_body) {
        Error::BodyTooLarge { most: most_body }
    } else {
        exchange.most_body = most_body;
        return Ok(());
    };
    exchange.fails(Some(head));
    Err(refused)
}

/// Whether the port's rate limits admit the request; what its answer tells of them.
fn admit(
    client: &Client,
    application: &Application,
    exchange: &mut Exchange,
    head: &RequestHead,
) -> Result<Option<Standing>, Error> {
    let limits = application.protection.rate_limits();
    let Some(limits) = &*limits else { return Ok(None) };
    limits.admit(head, client, exchange.started).map_err(|limited| {
        let RateLimited { origin, limit, .. } = &*limited;
        exchange.record.route = Some(RuleOrigin { route: Arc::clone(origin), rule: Arc::clone(limit) });
        exchange.fails(Some(head));
        exchange.ctx().telemetry.refused(Direction::Inbound, RATE_LIMIT, client.address, &limited);
        Error::RateLimited(limited)
    })
}

/// What an answer tells of how long the application takes; None: nothing, because it is the client that was waited for
/// or that broke off, or the connection is to be another protocol's.
fn sample(answer: &Result<Answer, Error>, exchange: &Exchange) -> Option<Sample> {
    let request = exchange.request.as_ref();
    if exchange.awaits_client() || request.is_some_and(|body| body.received() > limits::REPLAY_BYTES as u64) {
        return None;
    }
    match answer {
        Ok(answer) if answer.upgraded.is_some() => None,
        Ok(answer) => {
            let head = &answer.response.head;
            // RESOURCE_EXHAUSTED, UNAVAILABLE.
            let refused = head.status.as_u16() == 429 || matches!(grpc_status(&head.fields), Some(8 | 14));
            let failed = refused || head.status.is_server_error();
            Some(if failed { Sample::Failed } else { Sample::Answered })
        }
        Err(Error::BadRequest(_) | Error::BodyTooLarge { .. }) => None,
        Err(Error::RequestTimeout | Error::TryTimeout | Error::Deadline) => Some(Sample::Unanswered),
        Err(_) => Some(Sample::Failed),
    }
}

/// Our own headers mean something only from the mesh, and the client's identity comes from its certificate alone.
fn identify(client: &Client, exchange: &mut Exchange, head: &mut RequestHead) {
    // Proxies of the mesh send no such header: this is a client that would be somebody else.
    if let Some(claimed) = head.fields.get(Name::LenoClientId) {
        let claimed = String::from_utf8_lossy(claimed);
        let detail = format_args!("it claims by header to be {claimed:?}, which is taken for nothing");
        exchange.ctx().telemetry.refused(Direction::Inbound, FORGED_IDENTITY, client.address, &detail);
    }
    let Some(id) = &client.identity else {
        headers::remove_ours(&mut head.fields);
        return;
    };
    exchange.limit(headers::leno_timeout(&head.fields));
    head.fields.remove(names([
        Name::LenoClientId,
        Name::LenoOther,
        Name::LenoReason,
        Name::LenoRetried,
        Name::LenoTimeoutMs,
    ]));
    head.fields.push_known(Name::LenoClientId, id.as_str().as_bytes());
}
