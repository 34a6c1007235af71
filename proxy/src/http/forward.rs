//! Sends a request to an endpoint, again to another if that is safe, and takes the answer.

use std::{
    fmt::Display,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header::RETRY_AFTER, request::Parts};
use hyper::{
    body::Incoming,
    ext::Protocol as ConnectProtocol,
    upgrade::{OnUpgrade, on as on_upgrade},
};

use super::{
    Body,
    exchange::{CLIENT_LEFT, Exchange, grpc_status},
    headers,
    request_body::{ContinueGate, RequestBody},
    retry::{self, Failure, Tries},
    watch::Watch,
};
use crate::{
    error::Error,
    policy::http_route::Retry,
    upstream::{Backend, Outcome, Pick},
    worker::Context,
};

/// Where to and how a request is sent.
pub(crate) struct Plan<'a> {
    pub(crate) to: To<'a>,
    /// Carried as HTTP/2 whatever the client speaks, or as HTTP/1; None: as the client speaks.
    pub(crate) http2: Option<bool>,
    pub(crate) try_timeout: Option<Duration>,
    pub(crate) retry: Option<&'a Retry>,
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
    pub(crate) head: Parts,
    pub(crate) body: Incoming,
    /// The protocol the client wants to change to (HTTP/1.1).
    pub(crate) upgrade: Option<HeaderValue>,
    /// The authority for clients that named none.
    pub(crate) host: &'a dyn Display,
}

/// A response on its way to the client.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// The server changed protocols: its side of the connection.
    pub(crate) upgraded: Option<OnUpgrade>,
}

/// What every try of a request is made from.
struct Template<'a> {
    head: Parts,
    body: Option<Rc<RequestBody>>,
    upgrade: Option<HeaderValue>,
    connect_protocol: Option<ConnectProtocol>,
    host: &'a dyn Display,
    expects_continue: bool,
    grpc: bool,
}

/// A try that gave no answer.
struct Failed {
    failure: Failure,
    error: Error,
    /// A response that may still be passed on if there is no further try.
    response: Option<Response<Incoming>>,
    /// Never written: can be sent as it is.
    unsent: Option<Request<Body>>,
}

/// Sends the request and waits for the head of an answer that is to be passed on.
///
/// # Errors
/// If no try got an answer.
pub(crate) async fn forward(exchange: &mut Exchange, plan: Plan<'_>, outgoing: Outgoing<'_>) -> Result<Answer, Error> {
    let ctx = Rc::clone(exchange.ctx());
    let template = Template::new(outgoing, exchange.watch());
    exchange.request.clone_from(&template.body);
    let mut tries = Tries {
        repeatable: retry::repeatable(&template.head.method, &template.head.headers),
        sent: 0,
        unconnected: 0,
        by_policy: 0,
    };
    let mut tried = Vec::new();
    let mut unsent = None;
    if let To::Backend(backend) = plan.to {
        backend.budget.deposit();
    }
    loop {
        let picked = async { Ok(choose(&ctx, plan.to, &tried).await) };
        let pick = exchange.within(None, picked).await??;
        exchange.record.endpoint = Some(pick.endpoint.address);
        let Failed { failure, error, response, unsent: given_back } =
            match try_once(exchange, &plan, &template, &pick, &mut tries, unsent.take()).await {
                Ok(response) => {
                    pick.report(outcome(&response, &pick, exchange), Instant::now());
                    return accept(exchange, pick, &template, response);
                }
                Err(failed) => failed,
            };
        if template.body.as_ref().is_some_and(|body| body.failed()) {
            pick.report(Outcome::Neutral, Instant::now());
            exchange.record.reason = Some(CLIENT_LEFT);
            return Err(Error::BadRequest("the request's body broke off"));
        }
        let now = Instant::now();
        let verdict = match &response {
            Some(response) => outcome(response, &pick, exchange),
            None => blame(&error, exchange),
        };
        pick.report(verdict, now);
        let replayable = given_back.is_some() || template.body.as_ref().is_none_or(|body| body.replayable());
        let again = match plan.to {
            To::Backend(backend) if replayable => retry::next_try(failure, tries, plan.retry, ctx.random.next())
                .filter(|wait| exchange.deadline.is_none_or(|deadline| now + *wait < deadline))
                .filter(|_| backend.budget.withdraw(now)),
            // There is only one application: if it does not listen, another try now is in vain.
            To::Application(_) if replayable && failure != Failure::NotConnected => {
                retry::next_try(failure, tries, None, 0)
            }
            _ => None,
        };
        let Some(wait) = again else {
            return match response {
                Some(response) => accept(exchange, pick, &template, response),
                None => Err(error),
            };
        };
        tracing::debug!(endpoint = %pick.endpoint.address, %error, ?failure, "trying again");
        exchange.metrics.retried();
        tries.by_policy += u32::from(matches!(failure, Failure::Status(..) | Failure::TryTimeout));
        tried.push(pick.endpoint.address);
        unsent = given_back;
        drop((pick, response));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

async fn choose(ctx: &Context, to: To<'_>, tried: &[SocketAddr]) -> Result<Pick, Error> {
    match to {
        To::Backend(backend) => ctx.upstreams.pick(backend, tried).await,
        To::Application(address) => Ok(ctx.upstreams.plain(address)),
    }
}

/// One try: a connection, the request, the head of the response.
async fn try_once(
    exchange: &mut Exchange,
    plan: &Plan<'_>,
    template: &Template<'_>,
    pick: &Pick,
    tries: &mut Tries,
    unsent: Option<Request<Body>>,
) -> Result<Response<Incoming>, Failed> {
    let http2 = plan.http2.unwrap_or(template.head.version == Version::HTTP_2) && template.upgrade.is_none();
    let connection = match exchange.within(None, pick.http(http2)).await {
        Ok(connection) => connection,
        Err(error) => {
            tries.unconnected += 1;
            let failure = if matches!(error, Error::RequestTimeout) { Failure::Final } else { Failure::NotConnected };
            return Err(Failed { failure, error, response: None, unsent });
        }
    };
    tries.sent += 1;
    exchange.record.attempts = tries.sent;
    let fits = |request: &Request<Body>| (request.version() == Version::HTTP_2) == connection.is_http2();
    let request = match unsent.filter(fits) {
        Some(request) => request,
        None => template.request(connection.is_http2(), tries.sent, exchange).map_err(Failed::for_good)?,
    };
    let deadline = plan.try_timeout.map(|timeout| Instant::now() + timeout);
    let sent = async { Ok(connection.send(request).await) };
    match exchange.within(deadline, sent).await {
        Ok(Ok(response)) => match refused(&response, pick, plan.retry) {
            Some(failure) => {
                let error =
                    Error::Reset { endpoint: pick.endpoint.address.to_string(), reason: response.status().to_string() };
                Err(Failed { failure, error, response: Some(response), unsent: None })
            }
            None => Ok(response),
        },
        Ok(Err(error)) => {
            if error.own {
                pick.report(Outcome::Neutral, Instant::now());
            }
            Err(Failed {
                failure: if error.not_processed { Failure::NotProcessed } else { Failure::Reset },
                error: Error::Reset { endpoint: pick.endpoint.address.to_string(), reason: error.reason },
                response: None,
                unsent: error.request,
            })
        }
        Err(error) => {
            let failure = if matches!(error, Error::TryTimeout) { Failure::TryTimeout } else { Failure::Final };
            Err(Failed { failure, error, response: None, unsent: None })
        }
    }
}

impl Failed {
    fn for_good(error: Error) -> Self {
        Self { failure: Failure::Final, error, response: None, unsent: None }
    }
}

/// Whether an answer is one to try again: the mesh peer says why the application never saw the request, or
/// the route's policy names the status.
fn refused(response: &Response<Incoming>, pick: &Pick, policy: Option<&Retry>) -> Option<Failure> {
    let status = response.status().as_u16();
    match peers_reason(response, pick) {
        Some(b"connect" | b"overload") => return Some(Failure::NotProcessed),
        Some(b"reset") => return Some(Failure::Reset),
        _ => {}
    }
    policy?.statuses.binary_search(&status).ok()?;
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Some(Failure::Status(status, retry_after.map(Duration::from_secs)))
}

/// Why the mesh peer's proxy answered itself.
fn peers_reason<'a>(response: &'a Response<Incoming>, pick: &Pick) -> Option<&'a [u8]> {
    let reason = response.headers().get(headers::LENO_REASON).map(HeaderValue::as_bytes);
    reason.filter(|_| pick.endpoint.identity.is_some())
}

/// What an answer says about its endpoint: HTTP's server errors, and gRPC's UNAVAILABLE.
fn outcome(response: &Response<Incoming>, pick: &Pick, exchange: &Exchange) -> Outcome {
    let failed = response.status().is_server_error() || grpc_status(response.headers()) == Some(14);
    match peers_reason(response, pick) {
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
        Error::BadRequest(_) | Error::InvalidBackend(_) | Error::Overload(_) => Outcome::Neutral,
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
    response: Response<Incoming>,
) -> Result<Answer, Error> {
    if let Some(body) = &template.body {
        body.settle();
    }
    let status = response.status();
    let tunnel = template.head.method == Method::CONNECT && status.is_success();
    let switched = status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && template.upgrade.is_none() {
        return Err(broken(&pick, "switched protocols without being asked"));
    }
    let mut response = response;
    let upgraded = (tunnel || switched).then(|| on_upgrade(&mut response));
    let (mut head, body) = response.into_parts();
    let protocol = if switched { head.headers.get(http::header::UPGRADE).cloned() } else { None };
    let meshed = pick.endpoint.identity.is_some();
    headers::receive_response(&mut head.headers, meshed).map_err(|reason| broken(&pick, reason))?;
    if let Some(protocol) = protocol {
        headers::set_upgrade(&mut head.headers, protocol);
    }
    // hyper writes the version that the client speaks.
    head.version = if exchange.record.version == Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
    head.extensions.clear();
    exchange.answered(head.status, &head.headers);
    if meshed && exchange.record.peer.is_none() {
        exchange.record.peer.clone_from(&pick.endpoint.identity);
    }
    exchange.pick = Some(pick);
    let body = if upgraded.is_some() { Body::empty() } else { Body::stream(body) };
    Ok(Answer { response: Response::from_parts(head, body), upgraded })
}

fn broken(pick: &Pick, reason: &str) -> Error {
    Error::Reset { endpoint: pick.endpoint.address.to_string(), reason: reason.to_owned() }
}

impl<'a> Template<'a> {
    fn new(outgoing: Outgoing<'a>, watch: &Rc<Watch>) -> Self {
        let Outgoing { mut head, body, upgrade, host } = outgoing;
        let connect_protocol = head.extensions.remove::<ConnectProtocol>();
        head.extensions.clear();
        let tunnel = head.method == Method::CONNECT;
        let body = (!tunnel && !http_body::Body::is_end_stream(&body)).then(|| RequestBody::new(body, watch));
        let expects_continue = body.is_some() && headers::expects_continue(&head.headers);
        let grpc = headers::is_grpc(&head.headers);
        Self { head, body, upgrade, connect_protocol, host, expects_continue, grpc }
    }

    /// The request for one try.
    fn request(&self, http2: bool, attempt: u32, exchange: &Exchange) -> Result<Request<Body>, Error> {
        let mut head = self.head.clone();
        if http2 {
            headers::for_http2(&mut head, self.host)?;
            if let Some(protocol) = &self.connect_protocol {
                head.extensions.insert(protocol.clone());
            }
        } else {
            if self.connect_protocol.is_some() {
                return Err(Error::BadRequest("extended CONNECT to a server that speaks HTTP/1"));
            }
            headers::for_http1(&mut head, self.host);
            if let Some(protocol) = &self.upgrade {
                headers::set_upgrade(&mut head.headers, protocol.clone());
            }
        }
        if attempt > 1 {
            head.headers.insert(headers::LENO_ATTEMPT, attempt.into());
        }
        if let Some(deadline) = exchange.deadline {
            headers::set_timeout(&mut head.headers, deadline.saturating_duration_since(Instant::now()), self.grpc);
        }
        let gate = (self.expects_continue && !http2).then(Arc::<ContinueGate>::default);
        let body = match &self.body {
            None => Body::empty(),
            Some(body) => {
                let reader =
                    body.reader(gate.clone()).ok_or(Error::Overload("the request body cannot be sent again"))?;
                Body::request(reader)
            }
        };
        let mut request = Request::from_parts(head, body);
        if let Some(gate) = gate {
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    gate.open();
                }
            });
        }
        Ok(request)
    }
}
