//! Sends a request that is not answered in time to another endpoint too: the first good answer wins, and the other try is
//! cancelled. Inside the retry budget, as breaker and bulkheads allow, and only what can be sent whole.

use std::{cell::Cell, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Instant};

use super::{
    Body,
    attempt::{self, Try},
    exchange::{Exchange, grpc_status},
    guarded::{Guarded, Second},
    head::{Name, RequestHead, ResponseHead},
    headers, notes,
    request_body::RequestBody,
    retry::Tries,
    told, verdict,
    watch::Watch,
};
use crate::{
    error::Error,
    policy::{hedging::Hedge, says::By},
    upstream::{
        Backend, Outcome, Pick,
        breaker::Permit,
        pool::{Carry, Extras, HttpConnection, Reply, SendError},
    },
    worker::Context,
};

/// What both tries are made of.
pub(super) struct Twice<'a> {
    pub(super) hedge: &'a Hedge,
    /// Who asks for it.
    pub(super) by: By<'a>,
    pub(super) backend: &'a Arc<Backend>,
    pub(super) guarded: &'a Guarded<'a>,
    pub(super) head: &'a RequestHead,
    pub(super) body: Option<&'a Rc<RequestBody>>,
    pub(super) carry: Carry,
    /// Endpoints that failed the request before.
    pub(super) tried: &'a [SocketAddr],
    /// The number of the second, as its head tells it.
    pub(super) attempt: u32,
    /// What both must be answered by, as their heads tell it.
    pub(super) deadline: Option<Instant>,
    pub(super) grpc: bool,
    /// Where the second is on its way to.
    pub(super) sent_to: Cell<Option<SocketAddr>>,
}

/// The second endpoint's try, once it has ended.
struct Elsewhere {
    pick: Pick,
    leave: Second,
    /// The outer error: no connection could be made.
    sent: Result<Result<Reply, SendError>, Error>,
}

impl Elsewhere {
    fn is_good(&self) -> bool {
        self.sent.as_ref().is_ok_and(is_good)
    }
}

/// How the tries ended: at least one of them did. Who is missing was never begun, or was cancelled because the other won.
struct Ended {
    first: Option<Result<Reply, SendError>>,
    second: Option<Elsewhere>,
    second_won: bool,
}

impl Ended {
    fn with_first(first: Result<Reply, SendError>, second: Option<Elsewhere>) -> Self {
        Self { first: Some(first), second, second_won: false }
    }

    fn with_second(first: Option<Result<Reply, SendError>>, second: Elsewhere) -> Self {
        Self { first, second: Some(second), second_won: true }
    }
}

/// Sends on `connection` to the first endpoint, and to another if it does not answer in time; the try that counts, how it
/// ended, and where the other failed, if it did. The other is judged by the same rules, if it has ended; if it was cancelled, it says nothing of the backend, and of
/// its endpoint only that it was slower.
pub(super) async fn send(
    exchange: &mut Exchange,
    deadline: Option<Instant>,
    (pick, permit): (Pick, Option<Permit>),
    connection: HttpConnection,
    message: (Body, Extras),
    twice: Twice<'_>,
    tries: &mut Tries,
) -> (Try, Result<Result<Reply, SendError>, Error>, Option<SocketAddr>) {
    let number = tries.sent;
    let ended = race(exchange, deadline, (pick.endpoint.address, connection), message, &twice).await;
    if let Some(other) = twice.sent_to.get() {
        exchange.metrics.retried();
        exchange.may_be_processed = true;
        tries.sent += 1;
        exchange.record.attempts = tries.sent;
        let second = tries.sent;
        let text = || format!("not answered in time: sent to {other}, too, as try {second}");
        exchange.tell_said("hedging", true, twice.by, text);
    }
    let first = Try { pick, permit, number };
    let Ended { first: of_first, second, second_won } = match ended {
        Ok(ended) => ended,
        Err(error) => return (first, Err(error), None),
    };
    let (second, of_second) = match second {
        Some(Elsewhere { pick, leave, sent }) => {
            if second_won {
                exchange.places.extend(leave.place);
                exchange.is_retrying = true;
            }
            (Some(Try { pick, permit: leave.permit, number: number + 1 }), Some(sent))
        }
        None => (None, None),
    };
    match (second, of_first, of_second) {
        (Some(second), of_first, Some(Ok(sent))) if second_won => {
            exchange.record.endpoint = Some(second.pick.endpoint.address);
            let failed = of_first.is_some().then_some(first.pick.endpoint.address);
            lose(exchange, twice.guarded, first, of_first.map(Ok));
            (second, Ok(sent), failed)
        }
        (second, Some(sent), of_second) => {
            let failed = second.as_ref().map(|second| second.pick.endpoint.address);
            if let Some(second) = second {
                lose(exchange, twice.guarded, second, of_second);
            } else if twice.sent_to.get().is_some() {
                exchange
                    .tell("try", false, || format!("try {} was cancelled: the other was answered first", number + 1));
            }
            (first, Ok(sent), failed)
        }
        // Neither ended, which a race has no word for.
        (_, None, _) => (first, Err(Error::RequestTimeout), None),
    }
}

/// The other try of a hedged request was better. `sent`: how this one ended; None: it was cancelled.
fn lose(
    exchange: &mut Exchange,
    guarded: &Guarded<'_>,
    loser: Try,
    sent: Option<Result<Result<Reply, SendError>, Error>>,
) {
    let Try { pick, permit, number } = loser;
    told::lost(exchange, &pick, number, sent.as_ref());
    let verdict = match sent {
        None => {
            pick.report(Outcome::GivenUp, Instant::now());
            return;
        }
        Some(Ok(Ok(reply))) => verdict::outcome(&reply.head, &pick, exchange),
        Some(Ok(Err(error))) => verdict::blame(&attempt::unanswered(&pick, error).error, exchange),
        Some(Err(error)) => verdict::blame(&error, exchange),
    };
    guarded.report(permit, &pick, verdict, Instant::now());
}

/// Sends on `connection` to `first` and, in time, to another endpoint; who of both is first.
///
/// # Errors
/// If time runs out.
async fn race(
    exchange: &mut Exchange,
    deadline: Option<Instant>,
    (first, connection): (SocketAddr, HttpConnection),
    (body, extras): (Body, Extras),
    twice: &Twice<'_>,
) -> Result<Ended, Error> {
    let (ctx, watch) = (Rc::clone(exchange.ctx()), Rc::clone(exchange.watch()));
    let wait = twice.hedge.wait();
    let both = async {
        let mut sent = pin!(connection.send(twice.head, body, extras));
        let Some(wait) = wait else { return Ok(Ended::with_first(sent.await, None)) };
        if let Ok(done) = tokio::time::timeout(wait, &mut sent).await {
            return Ok(Ended::with_first(done, None));
        }
        // None of it may be missing, or still be on its way from the client.
        let copy = twice.body.map_or_else(|| Some(Body::empty()), |body| body.whole());
        let Some(copy) = copy else { return Ok(Ended::with_first(sent.await, None)) };
        let mut second = pin!(elsewhere(&ctx, twice, copy, first, &watch));
        Ok(tokio::select! {
            biased;
            done = &mut sent => {
                if is_good(&done) {
                    return Ok(Ended::with_first(done, None));
                }
                match second.await {
                    Some(second) if second.is_good() => Ended::with_second(Some(done), second),
                    second => Ended::with_first(done, second),
                }
            }
            second = &mut second => match second {
                Some(second) if second.is_good() => Ended::with_second(None, second),
                second => Ended::with_first(sent.await, second),
            },
        })
    };
    exchange.within(deadline, pin!(both)).await
}

/// The second try; None: there is no endpoint that has not been tried, or no leave for it.
async fn elsewhere(
    ctx: &Context,
    twice: &Twice<'_>,
    body: Body,
    first: SocketAddr,
    watch: &Watch,
) -> Option<Elsewhere> {
    let tried = [&[first], twice.tried].concat();
    let pick = ctx.upstreams.pick(twice.backend, &tried, |_| None).await.ok()?;
    if tried.contains(&pick.endpoint.address) {
        return None;
    }
    let leave = twice.guarded.second(Instant::now())?;
    // Its body is there as a whole.
    pick.asks(None);
    let connected = twice.guarded.waiting(pin!(pick.http(twice.carry))).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => return Some(Elsewhere { pick, leave, sent: Err(error) }),
    };
    let mut head = twice.head.clone();
    if connection.is_http1() {
        headers::for_http1(&mut head);
    }
    if pick.endpoint.identity.is_none() {
        head.fields.remove_named(notes::HEADER);
        headers::set_idle(&mut head.fields, None);
    }
    head.fields.set(Name::LenoAttempt, twice.attempt.to_string().as_bytes());
    if let Some(deadline) = twice.deadline {
        headers::set_timeout(&mut head.fields, deadline.saturating_duration_since(Instant::now()), twice.grpc);
    }
    twice.sent_to.set(Some(pick.endpoint.address));
    watch.informational().stop();
    let sent = connection.send(&head, body, Extras::default()).await;
    Some(Elsewhere { pick, leave, sent: Ok(sent) })
}

fn is_good(sent: &Result<Reply, SendError>) -> bool {
    sent.as_ref().is_ok_and(|reply| is_good_answer(&reply.head))
}

/// Neither a server's fault nor one of gRPC's codes for such: CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED,
/// INTERNAL, UNAVAILABLE, DATA_LOSS.
fn is_good_answer(head: &ResponseHead) -> bool {
    !head.status.is_server_error() && !matches!(grpc_status(&head.fields), Some(1 | 2 | 4 | 8 | 13 | 14 | 15))
}
