//! One outbound request: policy → filters → backend → answer.

use std::{net::SocketAddr, sync::Arc};

use super::{destination, no_backend};
use crate::{
    error::Error,
    http::{
        Body, Response,
        exchange::Exchange,
        filter::Filters,
        forward::{self, Answer, Outgoing, Plan, To},
        head::{Name, RequestHead, ResponseHead},
        headers,
        serve::{Answering, Begun, Received},
    },
    policy::{DestinationKey, HttpAction, ServicePort, Target},
    telemetry::{Direction, RouteMetrics},
    upstream::Backend,
    worker::Context,
};

/// Answers one request of the workload.
pub(super) fn serve(ctx: Context, key: DestinationKey, client: SocketAddr, received: Received) -> Answering {
    Box::pin(async move {
        let Begun { head, body, mut exchange, upgrade } =
            received.begin(&ctx, Direction::Outbound, None, &ctx.undecided);
        let grpc = headers::is_grpc(&head.fields);
        let answer = answer(&ctx, &key, client, &mut exchange, head, body).await;
        exchange.respond(answer, upgrade, grpc)
    })
}

async fn answer(
    ctx: &Context,
    key: &DestinationKey,
    client: SocketAddr,
    exchange: &mut Exchange,
    mut head: RequestHead,
    body: Body,
) -> Result<Answer, Error> {
    let upgrade = exchange.receive(&mut head)?;
    // An application names no identity and no deadline but by its certificate and its own headers.
    headers::remove_ours(&mut head.fields);
    exchange.join_trace(&mut head.fields);
    exchange.inherit();
    exchange.limit(headers::grpc_timeout(&head.fields));
    let destination = destination(ctx, key).await?;
    let outgoing = |head| Outgoing { head, body, upgrade, host: key };
    match &destination.target {
        Target::Service(service) => routed(ctx, exchange, service, client, head, outgoing).await,
        Target::Workload(backend) => {
            exchange.metrics = unrouted(ctx, &backend.key);
            exchange.record.backend = Some(Arc::clone(&backend.key));
            let plan = Plan { to: To::Backend(backend), http2: None, action: None, source: Some(client) };
            forward::forward(exchange, plan, outgoing(head)).await
        }
        // Was in the mesh when the connection was opened: the client's next connection goes straight.
        Target::Outside => Err(Error::Discovery(key.to_string())),
    }
}

/// Sends the request where the service's routes say.
async fn routed<'a>(
    ctx: &Context,
    exchange: &mut Exchange,
    service: &ServicePort,
    client: SocketAddr,
    mut head: RequestHead,
    outgoing: impl FnOnce(RequestHead) -> Outgoing<'a>,
) -> Result<Answer, Error> {
    let matched = service.http.as_ref().and_then(|routes| routes.decide(&head));
    let Some(matched) = matched else {
        exchange.metrics = unrouted(ctx, &service.service);
        return Err(Error::NoRule);
    };
    let action: &HttpAction = matched.action;
    let prefix_len = matched.prefix_len;
    exchange.record.route = Some(action.origin.clone());
    exchange.limit_by_route(action.request_timeout);
    let backend = match &action.filters.redirect {
        None => action.backends.pick(ctx.random.next()),
        Some(_) => None,
    };
    exchange.metrics = backend.map_or_else(|| unrouted(ctx, &service.service), |backend| backend.metrics.clone());
    supported(&action.filters)?;
    if let Some(redirect) = &action.filters.redirect {
        let mut answer = ResponseHead::new(redirect.status);
        let location = redirect.location(&head, service.port, prefix_len)?;
        answer.fields.push_known(Name::Location, location.as_bytes());
        action.filters.response.apply(&mut answer.fields);
        exchange.answered(&answer);
        return Ok(Answer { response: Response { head: answer, body: Body::empty() }, upgraded: None });
    }
    let chosen = backend.ok_or_else(|| no_backend(&action.origin))?;
    supported(&chosen.filters)?;
    let to: &Arc<Backend> = chosen.backend.as_ref().map_err(|reason| Error::InvalidBackend(reason.clone()))?;
    exchange.record.backend = Some(Arc::clone(&to.key));
    for filters in [&action.filters, &chosen.filters] {
        filters.request.apply(&mut head.fields);
        if let Some(rewrite) = &filters.rewrite {
            rewrite.apply(&mut head, prefix_len)?;
        }
    }
    let plan = Plan { to: To::Backend(to), http2: None, action: Some(action), source: Some(client) };
    let mut answer = forward::forward(exchange, plan, outgoing(head)).await?;
    for filters in [&chosen.filters, &action.filters] {
        filters.response.apply(&mut answer.response.head.fields);
    }
    Ok(answer)
}

/// A filter that is not known must fail the request, never be skipped (Gateway API).
fn supported(filters: &Filters) -> Result<(), Error> {
    match &filters.unsupported {
        None => Ok(()),
        Some(name) => Err(Error::InvalidBackend(format!("the filter {name} is not supported"))),
    }
}

/// Handles for requests that no route's backend counts: one set for each service or workload called.
fn unrouted(ctx: &Context, name: &Arc<str>) -> RouteMetrics {
    let mut held = ctx.unrouted.borrow_mut();
    if let Some(metrics) = held.get(name) {
        return metrics.clone();
    }
    let metrics = RouteMetrics::outbound(name, "", "", "");
    if held.len() >= crate::config::limits::DESTINATIONS {
        held.clear();
    }
    held.insert(Arc::clone(name), metrics.clone());
    metrics
}
