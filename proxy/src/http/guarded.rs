//! What a request meets on its way to a backend by policy: budget, breaker, bulkheads, timeouts. Without such a policy, and
//! toward the local application, it is a few branches.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{
    exchange::Exchange,
    forward::{Plan, To},
    retry::NoRetry,
    told,
};
use crate::{
    error::Error,
    upstream::{
        Backend, Outcome, Pick,
        breaker::Permit,
        budget::RetryBudget,
        bulkhead::{Place, What},
        shield::Rules,
    },
};

/// One request's.
pub(super) struct Guarded<'a> {
    /// None: the local application.
    backend: Option<&'a Arc<Backend>>,
    /// Of the backend or the application.
    budget: &'a RetryBudget,
    /// What the backend's policy says, if anything.
    rules: Option<Arc<Rules>>,
    /// For one try.
    pub(super) try_timeout: Option<Duration>,
}

/// Leave for a second endpoint's try, and its place among the retries. Dropped: it says nothing of the backend.
#[derive(Default)]
pub(super) struct Second {
    pub(super) permit: Option<Permit>,
    pub(super) place: Option<Place>,
}

impl<'a> Guarded<'a> {
    /// Takes the request's place, and sets its times.
    ///
    /// # Errors
    /// If there is no place, nobody waits for an answer any longer, or it is not known what policy says.
    pub(super) async fn enter(exchange: &mut Exchange, plan: &Plan<'a>) -> Result<Self, Error> {
        let action = plan.action;
        let try_timeout = action.and_then(|action| action.try_timeout);
        let stream_idle = action.and_then(|action| action.stream_idle);
        let (backend, budget) = match plan.to {
            To::Backend(backend) => (Some(backend), &backend.budget),
            To::Application(_, budget) => (None, budget),
        };
        if let Some(backend) = backend.filter(|backend| !backend.shield.is_told()) {
            // The first to call it. Seldom: not a part of every exchange.
            let ctx = Rc::clone(exchange.ctx());
            let mut told = Box::pin(ctx.upstreams.await_policy(backend));
            exchange.within(None, told.as_mut()).await?;
        }
        if let Some(backend) = backend {
            told::called(exchange, backend, action);
        }
        let rules = backend.and_then(|backend| backend.shield.rules());
        let (Some(backend), Some(rules)) = (backend, rules) else {
            stream_idle.into_iter().for_each(|idle| exchange.watch().limit_idle(idle));
            return Ok(Self { backend, budget, rules: None, try_timeout });
        };
        if action.is_none_or(|action| action.request_timeout.is_none()) && rules.request_timeout.is_some() {
            exchange.limit_by_route(rules.request_timeout);
        }
        if action.is_none_or(|action| action.response_timeout.is_none()) {
            exchange.limit_answer(rules.response_timeout);
        }
        stream_idle.or(rules.stream_idle).into_iter().for_each(|idle| exchange.watch().limit_idle(idle));
        exchange.places.extend(backend.shield.place(&rules, What::Request, &backend.key)?);
        let try_timeout = try_timeout.or(rules.try_timeout);
        Ok(Self { backend: Some(backend), budget, rules: Some(rules), try_timeout })
    }

    /// The breaker's leave for a try.
    ///
    /// # Errors
    /// If it is open.
    pub(super) fn admit(&self) -> Result<Option<Permit>, Error> {
        match (self.backend, &self.rules) {
            (Some(backend), Some(rules)) => backend.shield.admit(rules, &backend.key, Instant::now()),
            _ => Ok(None),
        }
    }

    /// Waits for a connection: in a place among those who do, if it is not at hand.
    ///
    /// # Errors
    /// Those of the connection; or there is no place.
    pub(super) async fn waiting<T>(
        &self,
        connecting: Pin<&mut impl Future<Output = Result<T, Error>>>,
    ) -> Result<T, Error> {
        match (self.backend, &self.rules) {
            (Some(backend), Some(rules)) => waiting_in_place(backend, rules, connecting).await,
            _ => connecting.await,
        }
    }

    /// Whether a retry that the budget refuses is answered with 503, whatever the try got, once one was sent: who was never
    /// reached is not spoken for by the budget, and may have a fallback.
    pub(super) fn answers_unavailable(&self) -> bool {
        self.backend.is_some_and(|backend| backend.endpoints.load().policy.retry_budget.answer_unavailable)
    }

    /// The answer then; `error`, if there is no budget.
    pub(super) fn budget_spent(&self, error: Error) -> Error {
        self.backend.map_or(error, |backend| Error::RetryBudget(Arc::clone(&backend.key)))
    }

    /// Leave for sending the request to a second endpoint while the first has not answered: of the breaker, the bulkheads and
    /// the budget, as for a retry. None: one of them refuses.
    pub(super) fn second(&self, now: Instant) -> Option<Second> {
        let backend = self.backend?;
        let mut second = Second::default();
        if let Some(rules) = &self.rules {
            second.permit = backend.shield.admit(rules, &backend.key, now).ok()?;
            second.place = backend.shield.place(rules, What::Retry, &backend.key).ok()?;
        }
        self.budget.withdraw(now).then_some(second)
    }

    /// How a try ended, to all who count that.
    pub(super) fn report(&self, permit: Option<Permit>, pick: &Pick, outcome: Outcome, now: Instant) {
        pick.report(outcome, now);
        if outcome == Outcome::Success {
            self.budget.deposit(now);
        }
        if let Some(backend) = self.backend {
            backend.shield.report(permit, outcome, &backend.key, now);
        }
    }

    /// Whether budget, breaker and bulkhead allow one more try.
    pub(super) fn may_retry(&self, exchange: &mut Exchange, now: Instant) -> Result<(), NoRetry> {
        if let (Some(backend), Some(rules)) = (self.backend, &self.rules) {
            if rules.breaker.is_some() && backend.shield.breaker.is_open(now) {
                return Err(NoRetry::CircuitOpen);
            }
            if !exchange.is_retrying {
                match backend.shield.place(rules, What::Retry, &backend.key) {
                    Ok(place) => exchange.places.extend(place),
                    Err(_) => return Err(NoRetry::Limit),
                }
                exchange.is_retrying = true;
            }
        }
        if self.budget.withdraw(now) { Ok(()) } else { Err(NoRetry::Budget) }
    }
}

/// Waits for a connection, in a place among those who do if the backend's policy limits them.
pub(super) async fn waiting_in_place<T>(
    backend: &Backend,
    rules: &Rules,
    mut connecting: Pin<&mut impl Future<Output = Result<T, Error>>>,
) -> Result<T, Error> {
    if rules.limits.pending.is_none() {
        return connecting.await;
    }
    let mut place = None;
    poll_fn(|cx| {
        if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
            return Poll::Ready(connected);
        }
        if place.is_none() {
            match backend.shield.place(rules, What::Pending, &backend.key) {
                Ok(taken) => place = taken,
                Err(full) => return Poll::Ready(Err(full)),
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        policy::{BackendPolicy, Protocol, Target},
        testing::{Sidecar, run},
        upstream::{Endpoint, EndpointSet, breaker::Settings, bulkhead::Limits},
    };

    fn guarded<'a>(backend: &'a Arc<Backend>, breaker: Option<Arc<Settings>>, retries: Option<u32>) -> Guarded<'a> {
        let limits = Limits { retries, ..Limits::default() };
        let rules = Rules { breaker, limits, ..Rules::default() };
        Guarded { backend: Some(backend), budget: &backend.budget, rules: Some(Arc::new(rules)), try_timeout: None }
    }

    #[test]
    fn an_open_breaker_lets_no_second_try_out() {
        let (backend, now) = (Arc::new(Backend::new("shop/cart:80".into())), Instant::now());
        let settings = Settings::opens_after(1);
        let guarded = guarded(&backend, Some(Arc::clone(&settings)), None);
        assert!(guarded.second(now).is_some_and(|second| second.permit.is_some()));
        let first = guarded.admit().unwrap().unwrap();
        assert!(first.report(Some(false), now), "it has just been opened");
        assert!(guarded.second(now).is_none());
        // Half-open, with one probe at a time: the first try has its place, until it is cancelled and says nothing.
        let later = now + 2 * settings.open;
        let probe = backend.shield.breaker.admit(&settings, later).unwrap();
        assert!(guarded.second(later).is_none());
        drop(probe);
        let second = guarded.second(later).unwrap();
        second.permit.unwrap().report(Some(true), later);
        assert_eq!(backend.shield.breaker.state(), "closed", "who wins decides");
    }

    #[test]
    fn no_retries_at_a_time_are_no_second_tries() {
        let (backend, now) = (Arc::new(Backend::new("shop/cart:80".into())), Instant::now());
        assert!(guarded(&backend, None, Some(0)).second(now).is_none());
        let one = guarded(&backend, None, Some(1));
        let held = one.second(now);
        assert!(held.is_some() && one.second(now).is_none(), "its place is taken");
        drop(held);
        assert!(one.second(now).is_some());
    }

    #[test]
    fn the_first_request_to_a_backend_is_under_its_policy_too() {
        run(async {
            let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let backend = Arc::new(Backend::new("shop/shop:80".into()));
            let called = Arc::clone(&backend);
            let client = Sidecar::new("client", move || Target::Workload(Arc::clone(&called)));
            let mut stream = TcpStream::connect(client.outbound().await).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await.unwrap();
            // Until it holds the backend, and then to where it waits for what there is to know of it.
            while Arc::strong_count(&backend) < 3 {
                tokio::task::yield_now().await;
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let policy = BackendPolicy { request_timeout: Some(Duration::from_millis(50)), ..BackendPolicy::default() };
            let endpoint = Endpoint::plain(silent.local_addr().unwrap());
            backend.publish(EndpointSet::new(true, Protocol::Http, vec![endpoint]).under(Arc::new(policy)));
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("request-timeout"), "{answer}");
        });
    }
}
