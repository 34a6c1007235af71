//! One outbound request: policy → filters → backend → answer.

use std::{
    mem,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::StatusCode;

use super::{destination, no_backend, told};
use crate::{
    error::Error,
    http::{
        Body, Response,
        cors::Asked,
        exchange::{Exchange, Limits},
        filter::{self, Filters},
        forward::{self, Answer, Outgoing, Plan, To},
        head::{Fields, Name, RequestHead, ResponseHead},
        headers, mirror,
        persistence::{Persistence, Session, SessionKey},
        serve::{Answering, Begun, Received},
    },
    policy::{
        DestinationKey, HttpAction, ServicePort, Target, WeightedBackends,
        fault::Faults,
        http_route::{Fallback, HttpBackend},
    },
    reason::Reason,
    telemetry::{Direction, RouteMetrics},
    upstream::Backend,
    worker::Context,
};

/// Answers one request of the workload.
pub(super) fn serve(ctx: Context, key: DestinationKey, client: SocketAddr, received: Received) -> Answering {
    Box::pin(async move {
        let Begun { mut head, body, mut exchange, upgrade } =
            received.begin(&ctx, Direction::Outbound, None, &ctx.undecided);
        let grpc = headers::is_grpc(&head.fields);
        let mut crossing = None;
        let request = Request { ctx: &ctx, key: &key, client, grpc, crossing: &mut crossing };
        let mut rest = Rest { body, upgrade: None };
        let answer = request.answer(&mut exchange, &mut head, &mut rest).await;
        let mut response = exchange.respond(answer, upgrade, grpc);
        if let Some(asked) = crossing {
            asked.answer(&mut response.head.fields);
        }
        response
    })
}

/// A request on its way out.
struct Request<'a> {
    ctx: &'a Context,
    key: &'a DestinationKey,
    /// Where its connection came from.
    client: SocketAddr,
    grpc: bool,
    /// Set once the rule is known, if it says what cross-origin requests may do.
    crossing: &'a mut Option<Asked>,
}

/// What goes out with the head.
struct Rest {
    body: Body,
    upgrade: Option<Box<[u8]>>,
}

impl Rest {
    /// For the tries, which need them whole.
    fn take<'a>(&mut self, head: &'a mut RequestHead, host: &'a DestinationKey) -> Outgoing<'a> {
        Outgoing { head, body: mem::take(&mut self.body), upgrade: self.upgrade.take(), host }
    }
}

impl Request<'_> {
    async fn answer(self, exchange: &mut Exchange, head: &mut RequestHead, rest: &mut Rest) -> Result<Answer, Error> {
        rest.upgrade = exchange.receive(head)?;
        // A workload may say how long it wants to wait, and nothing else that proxies say to each other.
        let patience = headers::leno_timeout(&head.fields);
        headers::remove_ours(&mut head.fields);
        exchange.join_trace(&mut head.fields);
        exchange.inherit();
        exchange.limit(headers::grpc_timeout(&head.fields));
        exchange.limit(patience);
        exchange.may_be_noted(head, None);
        let (ctx, key) = (self.ctx, self.key);
        let destination = match destination(ctx, key).await {
            Ok(destination) => destination,
            Err(error) => {
                exchange.fails_for(Some(error.reason()), Some(head));
                exchange.tell("destination", false, || format!("{key} is not known"));
                return Err(error);
            }
        };
        told::begin(exchange, self.client, &destination);
        let answer = match &destination.target {
            Target::Service(service) => self.routed(exchange, service, head, rest).await,
            Target::Workload(backend) => {
                exchange.metrics = unrouted(ctx, &backend.key);
                exchange.record.backend = Some(Arc::clone(&backend.key));
                let (to, source) = (To::Backend(backend), Some(self.client));
                let plan = Plan { to, http2: None, action: None, source };
                forward::forward(exchange, plan, rest.take(head, key)).await
            }
            // Was in the mesh when the connection was opened: the client's next connection goes straight.
            Target::Outside => Err(Error::Discovery(key.to_string())),
        };
        // As long as there is a head to know it by.
        if let Err(error) = &answer {
            exchange.fails_for(Some(error.reason()), Some(head));
        }
        told::began_late(exchange, &destination);
        answer
    }

    /// Does with the request what the service's routes say.
    async fn routed(
        self,
        exchange: &mut Exchange,
        service: &ServicePort,
        head: &mut RequestHead,
        rest: &mut Rest,
    ) -> Result<Answer, Error> {
        let matched = service.http.as_ref().and_then(|routes| routes.decide(head));
        if let Some(matched) = &matched {
            told::wanted(exchange, (self.client, self.key), service, matched.action, head);
        } else {
            exchange.fails_for(Some(Reason::NoRule), Some(head));
        }
        told::rule(exchange, service, head, matched.as_ref().map(|matched| &**matched.action));
        let Some(matched) = matched else {
            exchange.metrics = unrouted(self.ctx, &service.service);
            return Err(Error::NoRule);
        };
        let action: &HttpAction = matched.action;
        let prefix_len = matched.prefix_len;
        exchange.record.route = Some(action.origin.clone());
        exchange.limit_by_route(action.request_timeout);
        exchange.limit_answer(action.response_timeout);
        let (chosen, kept) = self.choose(exchange, action, &head.fields).await?;
        let by_session = kept.as_ref().is_some_and(|kept| kept.backend(&action.backends).is_some());
        told::backend(exchange, action, chosen, by_session);
        exchange.metrics = chosen.map_or(&action.metrics, |chosen| &chosen.metrics).clone();
        supported(&action.filters)?;
        if let Some(cors) = &action.filters.cors {
            if let Some(preflight) = cors.preflight(head) {
                return Ok(answer_preflight(exchange, preflight));
            }
            *self.crossing = Some(cors.asked(head));
        }
        if let Some(faults) = &action.faults
            && let Some(aborted) = self.meet_faults(exchange, faults, head).await?
        {
            return Ok(aborted);
        }
        if let Some(redirect) = &action.filters.redirect {
            let mut answer = ResponseHead::new(redirect.status);
            let location = redirect.location(head, service.port, prefix_len)?;
            answer.fields.push_known(Name::Location, location.as_bytes());
            action.filters.response.apply(&mut answer.fields);
            return Ok(own(exchange, Response { head: answer, body: Body::empty() }));
        }
        if let Some(direct) = &action.direct_response {
            let mut response = direct.response(self.grpc, Reason::DirectResponse);
            action.filters.response.apply(&mut response.head.fields);
            // What succeeds is no failure, who ever answers.
            exchange.record.reason =
                (direct.status.is_client_error() || direct.status.is_server_error()).then_some(Reason::DirectResponse);
            return Ok(own(exchange, response));
        }
        let chosen = chosen.ok_or_else(|| no_backend(&action.origin))?;
        supported(&chosen.filters)?;
        exchange.session = kept.as_ref().and_then(|kept| kept.session).map(Box::new);
        let mut answer = self.send(exchange, action, chosen, prefix_len, head, rest).await?;
        for filters in [&chosen.filters, &action.filters] {
            filters.response.apply(&mut answer.response.head.fields);
        }
        if let Some(kept) = kept {
            kept.write(exchange, action.backends.takes_new(chosen), &mut answer.response.head.fields);
        }
        Ok(answer)
    }

    /// The backend that the request is for, and what is known of its session. What the rule says of sessions goes before what
    /// its backends say; a session goes before weights, also those of 0, as long as its endpoint serves (GEP-1619).
    async fn choose<'r>(
        &self,
        exchange: &mut Exchange,
        action: &'r HttpAction,
        request: &Fields,
    ) -> Result<(Option<&'r HttpBackend>, Option<Kept<'r>>), Error> {
        if action.filters.redirect.is_some() || action.direct_response.is_some() {
            return Ok((None, None));
        }
        let read = |persistence: &'r Persistence| Kept::read(self.ctx, persistence, request);
        let draw = || action.backends.pick(self.ctx.random.next());
        if let Some(persistence) = &action.persistence {
            let mut kept = read(persistence);
            if let Some(kept) = &mut kept {
                kept.look_up(self.ctx, exchange, &action.backends).await?;
            }
            let of_session = kept.as_ref().and_then(|kept| kept.backend(&action.backends));
            return Ok((of_session.or_else(draw), kept));
        }
        for (_, backend) in action.backends.iter() {
            let Some(mut kept) = backend.persistence.as_deref().and_then(read) else { continue };
            kept.look_up(self.ctx, exchange, &action.backends).await?;
            if kept.serves && kept.is_with(backend) {
                return Ok((Some(backend), Some(kept)));
            }
        }
        let drawn = draw();
        Ok((drawn, drawn.and_then(|backend| backend.persistence.as_deref()).and_then(read)))
    }

    /// The answer, if the request is to be aborted.
    async fn meet_faults(
        &self,
        exchange: &mut Exchange,
        faults: &Faults,
        head: &RequestHead,
    ) -> Result<Option<Answer>, Error> {
        if let Some(delay) = faults.delay(head, self.ctx.random.next()) {
            exchange.record.fault = Some(Arc::clone(&faults.origin));
            exchange.tell_by("fault", true, &faults.origin, || format!("held up for {delay:?}"));
            let wait = async {
                tokio::time::sleep(delay).await;
                Ok(())
            };
            exchange.within(None, pin!(wait)).await?;
        }
        let Some(abort) = faults.abort(head, self.ctx.random.next()) else { return Ok(None) };
        exchange.record.fault = Some(Arc::clone(&faults.origin));
        exchange.record.reason = Some(Reason::Fault);
        exchange.fails_for(Some(Reason::Fault), Some(head));
        let status = abort.status.as_u16();
        exchange.tell_by("fault", true, &faults.origin, || format!("answered with {status} on purpose"));
        Ok(Some(own(exchange, abort.response(self.grpc, Reason::Fault))))
    }

    /// Sends the request to the backend that was chosen for it, or to what stands in for that.
    async fn send(
        &self,
        exchange: &mut Exchange,
        action: &HttpAction,
        chosen: &HttpBackend,
        prefix_len: usize,
        head: &mut RequestHead,
        rest: &mut Rest,
    ) -> Result<Answer, Error> {
        let to = chosen.backend.as_ref().map_err(|reason| Error::InvalidBackend(reason.clone()))?;
        exchange.record.backend = Some(Arc::clone(&to.key));
        for filters in [&action.filters, &chosen.filters] {
            filters.request.apply(&mut head.fields);
        }
        let rewrites = [chosen.filters.rewrite.as_ref(), action.filters.rewrite.as_ref()];
        if rewrites.iter().any(Option::is_some) {
            exchange.remember_target(head);
        }
        filter::rewrite(rewrites, head, prefix_len)?;
        told::filtered(exchange, action, chosen, head);
        let mirrors = [&action.filters.mirrors, &chosen.filters.mirrors];
        if rest.upgrade.is_none() && mirrors.iter().any(|mirrors| !mirrors.is_empty()) {
            rest.body = mirror::copy(self.ctx, mirrors.into_iter().flatten(), head, mem::take(&mut rest.body));
        }
        let plan = self.plan(action, to);
        let Some(fallback) = &action.fallback else {
            return forward::forward(exchange, plan, rest.take(head, self.key)).await;
        };
        let before = Before { head: head.clone(), upgrade: rest.upgrade.clone(), limits: exchange.limits() };
        match forward::forward(exchange, plan, rest.take(head, self.key)).await {
            Err(error) if is_unreached(&error, exchange) && exchange.may_be_processed => {
                told::no_fallback(exchange, action);
                Err(error)
            }
            Err(error) if is_unreached(&error, exchange) => {
                Box::pin(self.fall_back(exchange, action, fallback, before, error)).await
            }
            other => other,
        }
    }

    fn plan<'a>(&self, action: &'a HttpAction, to: &'a Arc<Backend>) -> Plan<'a> {
        Plan { to: To::Backend(to), http2: None, action: Some(action), source: Some(self.client) }
    }

    /// The backend could not be reached with `error`.
    async fn fall_back(
        &self,
        exchange: &mut Exchange,
        action: &HttpAction,
        fallback: &Fallback,
        before: Before,
        error: Error,
    ) -> Result<Answer, Error> {
        let Before { mut head, upgrade, limits } = before;
        let (to, metrics) = match fallback {
            Fallback::Backend(to, metrics) => (to, metrics),
            Fallback::Answer(answer) => {
                // It is made here, and at once.
                exchange.limit_as(Limits::default());
                exchange.metrics.fell_back(error.reason().as_str());
                exchange.record.fallback = Some(error.reason());
                exchange.record.reason = Some(error.reason());
                exchange.in_vain &= answer.fails(self.grpc);
                told::fallback(exchange, action, "answered by the proxy", &error);
                return Ok(own(exchange, answer.response(self.grpc, error.reason())));
            }
        };
        // As long as nobody was reached, the body is whole, unless an earlier try was broken off.
        let body = match exchange.request.as_ref().map(|request| request.reader(None)) {
            None => Body::empty(),
            Some(Some(reader)) => Body::request(reader),
            Some(None) => return Err(error),
        };
        // What policy says of the time of the backend that gave way ends with it; the route's and the client's holds for both.
        let reason = exchange.record.reason;
        exchange.limit_as(limits);
        if exchange.still_awaited().is_err() {
            exchange.record.reason = reason;
            return Err(error);
        }
        exchange.metrics.fell_back(error.reason().as_str());
        told::fallback(exchange, action, &to.key, &error);
        exchange.places.clear();
        (exchange.is_retrying, exchange.in_vain) = (false, false);
        exchange.record.fallback = Some(error.reason());
        exchange.record.backend = Some(Arc::clone(&to.key));
        // It was one of the other backend.
        exchange.record.endpoint = None;
        exchange.metrics = metrics.clone();
        let plan = self.plan(action, to);
        forward::forward(exchange, plan, Outgoing { head: &mut head, body, upgrade, host: self.key }).await
    }
}

/// What a fallback needs of the request as it was before its backend was called.
struct Before {
    head: RequestHead,
    upgrade: Option<Box<[u8]>>,
    limits: Limits,
}

/// How the rule or its backend keeps sessions, and the one that the request belongs to.
struct Kept<'a> {
    persistence: &'a Persistence,
    key: Arc<SessionKey>,
    session: Option<Session>,
    /// Its endpoint still serves a backend of the rule.
    serves: bool,
    /// Unix seconds.
    now: u64,
}

impl<'a> Kept<'a> {
    /// None: the control plane gave no key to keep them with.
    fn read(ctx: &Context, persistence: &'a Persistence, request: &Fields) -> Option<Self> {
        let key = Arc::clone(ctx.policy.snapshot().settings.as_ref()?.session_key.as_ref()?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let session = persistence.read(&key, request, now);
        Some(Self { persistence, key, session, serves: false, now })
    }

    /// Finds out whether the session's endpoint still serves.
    async fn look_up(
        &mut self,
        ctx: &Context,
        exchange: &mut Exchange,
        backends: &WeightedBackends<HttpBackend>,
    ) -> Result<(), Error> {
        let with = backends.iter().map(|(_, entry)| entry).find(|entry| self.is_with(entry));
        if let (Some(session), Some(Ok(backend))) = (self.session, with.map(|entry| &entry.backend)) {
            // A set that empties all at once is more often an error than the end; where there is to be nobody, it is the end.
            let kept = with.is_some_and(|entry| backends.takes_new(entry));
            // Few requests have one: the others are not to carry what it takes.
            let mut serves = Box::pin(async { Ok(ctx.upstreams.serves(backend, &session, kept).await) });
            self.serves = exchange.within(None, serves.as_mut()).await?;
        }
        Ok(())
    }

    /// The one that the session stays with.
    fn backend<'b>(&self, backends: &'b WeightedBackends<HttpBackend>) -> Option<&'b HttpBackend> {
        backends.iter().map(|(_, entry)| entry).find(|entry| self.serves && self.is_with(entry))
    }

    fn is_with(&self, entry: &HttpBackend) -> bool {
        let with = |session: Session| entry.backend.as_ref().is_ok_and(|to| session.is_with_backend(&to.key));
        self.session.is_some_and(with)
    }

    /// Tells the client whom its session is with, if that is news to it. `takes_new`: whether new sessions may begin there.
    fn write(&self, exchange: &Exchange, takes_new: bool, answer: &mut Fields) {
        let (Some(pick), Some(backend)) = (&exchange.pick, &exchange.record.backend) else { return };
        // What a fallback served begins no session with it.
        if exchange.record.fallback.is_some() {
            return;
        }
        let served = Session::new(backend, &pick.endpoint.name(), pick.endpoint.address, self.now);
        let stays = self.session.is_some_and(|held| held.is_where(&served));
        // Who answered stood in for its endpoint once, after a try that failed: the session's state is still there.
        if !stays && self.serves && exchange.session.is_some() {
            return;
        }
        let next = self.persistence.next(self.session, served).filter(|_| stays || takes_new);
        if let Some(session) = next {
            self.persistence.write(&self.key, session, answer);
        }
    }
}

/// An answer that the proxy makes because policy says so.
fn own(exchange: &mut Exchange, response: Response) -> Answer {
    exchange.answered(&response.head);
    let status = response.head.status.as_u16();
    exchange.tell("answer", true, || format!("{status} by the proxy, as policy says"));
    Answer { response, upgraded: None }
}

/// `allowed`: what the page may do; Err: nothing.
fn answer_preflight(exchange: &mut Exchange, allowed: Result<ResponseHead, ()>) -> Answer {
    let response = match allowed {
        Ok(head) => Response { head, body: Body::empty() },
        Err(()) => {
            exchange.record.reason = Some(Reason::Cors);
            let mut head = ResponseHead::new(StatusCode::FORBIDDEN);
            head.fields.push_known(Name::ContentType, b"text/plain; charset=utf-8");
            head.fields.push_known(Name::LenoReason, Reason::Cors.as_str().as_bytes());
            Response { head, body: Body::full("leno: the route does not allow this origin\n") }
        }
    };
    own(exchange, response)
}

/// Whether nobody was reached: by the latest try, or before time was up.
fn is_unreached(error: &Error, exchange: &Exchange) -> bool {
    let sent = exchange.record.attempts > 0;
    match error {
        Error::NoEndpoint(_) | Error::CircuitOpen { .. } | Error::Tls { .. } | Error::Discovery(_) => true,
        Error::Connect { .. } => !exchange.found_no_room,
        Error::RequestTimeout | Error::ResponseTimeout => !exchange.found_no_room && !sent,
        _ => false,
    }
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
