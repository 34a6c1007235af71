//! One inbound request: who sent it is written down, the rest is the application's.

use std::{rc::Rc, time::Instant};

use super::{Application, Client, PLAINTEXT, STRICT};
use crate::{
    error::Error,
    http::{
        Body,
        exchange::Exchange,
        forward::{self, Answer, Outgoing, Plan, To},
        head::{Name, RequestHead, names},
        headers,
        serve::{Answering, Begun, Received},
    },
    policy::Protocol,
    telemetry::Direction,
    worker::Context,
};

/// The reason counted for a client that names its own identity.
const FORGED_IDENTITY: &str = "forged-identity";

/// Answers one request to the workload.
pub(super) fn serve(ctx: Context, client: Rc<Client>, application: Rc<Application>, received: Received) -> Answering {
    Box::pin(async move {
        let Begun { head, body, mut exchange, upgrade } =
            received.begin(&ctx, Direction::Inbound, client.identity.clone(), &application.requests);
        let grpc = headers::is_grpc(&head.fields);
        exchange.underway = application.load.begin(exchange.started);
        let answer = answer(&client, &application, &mut exchange, head, body).await;
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
    mut head: RequestHead,
    body: Body,
) -> Result<Answer, Error> {
    let upgrade = exchange.receive(&mut head)?;
    let ctx = exchange.ctx();
    // The connection may be older than the policy. What became opaque bytes cannot be looked at again, and goes on.
    if client.identity.is_none() && ctx.policy.inbound().strict {
        ctx.telemetry.refused(Direction::Inbound, PLAINTEXT, client.address, &STRICT);
        return Err(Error::Refused(STRICT));
    }
    identify(client, exchange, &mut head);
    exchange.join_trace(&mut head.fields);
    exchange.limit(headers::grpc_timeout(&head.fields));
    exchange.begin_hop(headers::attempt(&head.fields));
    let http2 = match application.protocol {
        Protocol::Http1 => Some(false),
        Protocol::Http2 => Some(true),
        _ => None,
    };
    let plan = Plan { to: To::Application(application.address), http2, action: None, source: None };
    forward::forward(exchange, plan, Outgoing { head, body, upgrade, host: &application.address }).await
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
