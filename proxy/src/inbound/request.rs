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
        head::{FIELD_OVERHEAD, Name, RequestHead, names},
        headers, notes,
        serve::{Answering, Begun, Received},
    },
    policy::{Protocol, RuleOrigin},
    reason::Reason,
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
        if let Some(underway) = &exchange.underway {
            let worked = answer.as_ref().is_ok_and(|answer| !answer.response.head.status.is_server_error());
            underway.answered(worked.then(|| answered_at(&exchange)));
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
    // Before anything is written into it; not at all, if the proxy's own limit leaves nothing to be refused.
    let bytes = if application.protection.max_head() < limits::HEAD_BYTES { size(head) } else { 0 };
    let ctx = exchange.ctx();
    // The connection may be older than the policy. What became opaque bytes cannot be looked at again, and goes on.
    if client.identity.is_none() && ctx.policy.inbound().strict {
        ctx.telemetry.refused(Direction::Inbound, PLAINTEXT, client.address, &STRICT);
        exchange.fails_for(Some(Reason::Refused), Some(head));
        told::unmeshed(exchange, client);
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
    is_within_size(application, exchange, (&*head, bytes), &body)?;
    let told = admit(client, application, exchange, head)?;
    let Ok(permit) = application.protection.concurrency.enter(exchange.started) else {
        exchange.fails(Some(head));
        told::refused(exchange, application, "concurrency", &CROWDED);
        exchange.ctx().telemetry.refused(Direction::Inbound, OVERLOAD, client.address, &CROWDED);
        return Err(Error::Overload(CROWDED));
    };
    let to = To::Application(application.address, &application.protection.retries);
    let plan = Plan { to, http2, action: None, source: None };
    let outgoing = Outgoing { head, body, upgrade, host: &application.address };
    let mut answer = forward::forward(exchange, plan, outgoing).await;
    if let Some(permit) = permit {
        permit.answered(sample(&answer, exchange), answered_at(exchange));
    }
    if let (Some(told), Ok(answer)) = (told, &mut answer) {
        told.write(&mut answer.response.head.fields);
    }
    answer
}

/// The clock is not read again for what has just been answered.
fn answered_at(exchange: &Exchange) -> Instant {
    exchange.tried_at.unwrap_or_else(Instant::now)
}

/// Whether the request is no larger than the port's policy allows, as far as its head tells.
fn is_within_size(
    application: &Application,
    exchange: &mut Exchange,
    (head, bytes): (&RequestHead, usize),
    body: &Body,
) -> Result<(), Error> {
    let protection = &application.protection;
    exchange.most_body = protection.max_body();
    let Some(refused) = too_large((bytes, protection.max_head()), (body.exact_length(), protection.max_body())) else {
        return Ok(());
    };
    exchange.fails_for(Some(refused.reason()), Some(head));
    told::refused(exchange, application, "size", &refused);
    Err(refused)
}

/// Bytes of a request's head as its client made it: what proxies of the mesh write into it for each other is not its own.
pub(crate) fn size(head: &RequestHead) -> usize {
    let ours = head.fields.iter_known().filter(|(name, ..)| name.is_ours());
    let ours: usize = ours.map(|(_, name, value)| name.len() + value.len() + FIELD_OVERHEAD).sum();
    (head.target().len() + head.fields.size()).saturating_sub(ours)
}

/// Each is what there is, as far as it is known, and what may be.
fn too_large(head: (usize, usize), body: (Option<u64>, u64)) -> Option<Error> {
    let ((bytes, most_head), (length, most_body)) = (head, body);
    if bytes > most_head {
        return Some(Error::HeadTooLarge { bytes, most: most_head });
    }
    length.filter(|length| *length > most_body).map(|_| Error::BodyTooLarge { most: most_body })
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
        exchange.fails_for(Some(Reason::RateLimit), Some(head));
        told::refused(exchange, application, "rate-limit", &limited);
        let RateLimited { origin, limit, .. } = &*limited;
        exchange.record.route = Some(RuleOrigin { route: Arc::clone(origin), rule: Arc::clone(limit) });
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
        Err(Error::RequestTimeout | Error::ResponseTimeout | Error::TryTimeout | Error::Idle | Error::Deadline) => {
            Some(Sample::Unanswered)
        }
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
    if let Some(idle) = headers::leno_idle(&head.fields) {
        exchange.limit_idle_as_told(idle);
    }
    head.fields.remove(names([
        Name::LenoClientId,
        Name::LenoOther,
        Name::LenoReason,
        Name::LenoRetried,
        Name::LenoTimeoutMs,
    ]));
    head.fields.push_known(Name::LenoClientId, id.as_str().as_bytes());
}

#[cfg(test)]
mod tests {
    use http::{Method, Version};

    use super::*;

    #[test]
    fn heads_and_bodies_may_be_as_large_as_the_limit_and_no_larger() {
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/cart?a=b");
        head.fields.push(b"x-long", b"0123456789");
        let bytes = size(&head);
        assert_eq!(bytes, "/cart?a=b".len() + "x-long".len() + 10 + 32);
        assert!(too_large((bytes, bytes), (None, 0)).is_none());
        assert!(matches!(too_large((bytes, bytes - 1), (None, 0)), Some(Error::HeadTooLarge { .. })));
        assert!(too_large((bytes, bytes), (Some(1000), 1000)).is_none());
        assert!(matches!(too_large((bytes, bytes), (Some(1001), 1000)), Some(Error::BodyTooLarge { most: 1000 })));
        // What its client's proxy adds takes nothing away from it.
        for (name, value) in [("leno-attempt", "2"), ("leno-timeout-ms", "250"), ("leno-request-id", "00ff")] {
            head.fields.push(name.as_bytes(), value.as_bytes());
        }
        assert_eq!(size(&head), bytes);
    }
}
