//! Sends a request that is not answered in time to another endpoint too: the first good answer wins, and the other try is
//! cancelled. Inside the retry budget, as breaker and bulkheads allow, and only what can be sent whole.

use std::{net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Instant};

use super::{
    Body,
    exchange::{Exchange, grpc_status},
    guarded::{Guarded, Second},
    head::{Name, RequestHead, ResponseHead},
    headers,
    request_body::RequestBody,
};
use crate::{
    error::Error,
    policy::hedging::Hedge,
    upstream::{
        Backend, Pick,
        pool::{Carry, Extras, HttpConnection, Reply, SendError},
    },
    worker::Context,
};

/// What both tries are made of.
pub(super) struct Twice<'a> {
    pub(super) hedge: &'a Hedge,
    pub(super) backend: &'a Arc<Backend>,
    pub(super) guarded: &'a Guarded<'a>,
    pub(super) head: &'a RequestHead,
    pub(super) body: Option<&'a Rc<RequestBody>>,
    pub(super) carry: Carry,
    /// The number of the first.
    pub(super) attempt: u32,
}

/// How the first to answer ended, and which endpoint that was if not the first; whether there were two.
pub(super) type Won = (Option<Pick>, Result<Reply, SendError>, bool);

/// Sends on `connection` to `first` and, in time, to another endpoint.
///
/// # Errors
/// If time runs out.
pub(super) async fn send(
    exchange: &mut Exchange,
    deadline: Option<Instant>,
    (first, connection): (SocketAddr, HttpConnection),
    (body, extras): (Body, Extras),
    twice: Twice<'_>,
) -> Result<Won, Error> {
    let ctx = Rc::clone(exchange.ctx());
    let wait = twice.hedge.wait();
    let race = async {
        let mut sent = pin!(connection.send(twice.head, body, extras));
        let Some(wait) = wait else { return Ok((None, sent.await, false)) };
        if let Ok(done) = tokio::time::timeout(wait, &mut sent).await {
            return Ok((None, done, false));
        }
        // None of it may be missing, or still be on its way from the client.
        let copy = twice.body.map_or_else(|| Some(Body::empty()), |body| body.whole());
        let leave = copy.and_then(|copy| Some((copy, twice.guarded.second(Instant::now())?)));
        let Some((copy, leave)) = leave else {
            return Ok((None, sent.await, false));
        };
        let mut second = pin!(elsewhere(&ctx, &twice, copy, first, leave));
        Ok(tokio::select! {
            biased;
            done = &mut sent => {
                if is_good(&done) {
                    return Ok((None, done, true));
                }
                match second.await {
                    Some((pick, other)) if is_good(&other) => (Some(pick), other, true),
                    _ => (None, done, true),
                }
            }
            other = &mut second => match other {
                Some((pick, other)) if is_good(&other) => (Some(pick), other, true),
                _ => (None, sent.await, true),
            },
        })
    };
    exchange.within(deadline, pin!(race)).await
}

/// The second try; None: there is no other endpoint, or it cannot be reached.
async fn elsewhere(
    ctx: &Context,
    twice: &Twice<'_>,
    body: Body,
    first: SocketAddr,
    leave: Second,
) -> Option<(Pick, Result<Reply, SendError>)> {
    let pick = ctx.upstreams.pick(twice.backend, &[first], |_| None).await.ok()?;
    if pick.endpoint.address == first {
        return None;
    }
    let connection = twice.guarded.waiting(pin!(pick.http(twice.carry))).await.ok()?;
    let mut head = twice.head.clone();
    if connection.is_http1() {
        headers::for_http1(&mut head);
    }
    head.fields.set(Name::LenoAttempt, twice.attempt.saturating_add(1).to_string().as_bytes());
    let sent = connection.send(&head, body, Extras::default()).await;
    leave.answered(is_good(&sent), Instant::now());
    Some((pick, sent))
}

fn is_good(sent: &Result<Reply, SendError>) -> bool {
    sent.as_ref().is_ok_and(|reply| is_good_answer(&reply.head))
}

/// Neither a server's fault nor one of gRPC's codes for such: CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED,
/// INTERNAL, UNAVAILABLE, DATA_LOSS.
fn is_good_answer(head: &ResponseHead) -> bool {
    !head.status.is_server_error() && !matches!(grpc_status(&head.fields), Some(1 | 2 | 4 | 8 | 13 | 14 | 15))
}
