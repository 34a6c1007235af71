//! Whether a try that failed is made again: a pure decision.
//!
//! Safe without asking anyone: what was provably not processed (never sent, refused by the peer before any
//! processing), and what may be repeated (idempotent methods, RFC 9110 9.2.2, or an `Idempotency-Key`). Statuses, gRPC
//! codes and timeouts are tried again only if policy says so. Never past the budget, never if the body is gone, and
//! nothing that was tried again in vain further on.

use std::time::Duration;

use http::Method;

use super::head::{Fields, Name};
use crate::{config::limits, policy::retry_policy::Retry};

/// Tries of one request that were sent, without a policy.
const TRIES: u32 = 3;
/// Endpoints that may fail to be connected to, for one request.
const CONNECTS: u32 = 5;

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection could be made.
    NotConnected,
    /// Sent, perhaps, but provably not processed.
    NotProcessed,
    /// Broken off before an answer: may have been processed.
    Reset,
    /// Answered with this status, which asks for so long a wait.
    Status(u16, Option<Duration>),
    /// Answered with this gRPC code.
    Grpc(u16, Option<Duration>),
    /// Answered with this gRPC code by a server that says when to try again (`grpc-retry-pushback-ms`, gRPC proposal A6);
    /// None: not at all.
    PushedBack(u16, Option<Duration>),
    /// The time for one try passed.
    TryTimeout,
    /// A hop further on has tried again, and failed all the same.
    InVain,
    /// The time for the whole request passed, or it cannot be sent at all.
    Final,
}

/// What is known of the request and its tries so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tries {
    /// Method or header say that it may be repeated.
    pub(crate) repeatable: bool,
    /// It was made to serve a request that is itself a try made again.
    pub(crate) of_retry: bool,
    /// Tries that were sent.
    pub(crate) sent: u32,
    /// Tries that found no connection.
    pub(crate) unconnected: u32,
    /// Retries that the policy asked for.
    pub(crate) by_policy: u32,
    /// The latest broke off on a connection that had been used before, which its server may just have closed as idle.
    pub(crate) on_reused: bool,
}

impl Tries {
    /// Whether it is for want of budget alone that an answer is not tried again: something was sent.
    pub(crate) fn spent_budget(self, why: NoRetry) -> bool {
        why == NoRetry::Budget && self.sent > 0
    }
}

/// A further try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It needs nobody's leave.
    AtOnce,
    /// The policy asks for it, after a wait.
    ByPolicy(Duration),
}

impl Next {
    pub(crate) fn wait(self) -> Duration {
        match self {
            Self::AtOnce => Duration::ZERO,
            Self::ByPolicy(wait) => wait,
        }
    }
}

/// Whether the request may be repeated by what it is.
pub(crate) fn repeatable(method: &Method, fields: &Fields) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
        || fields.has(Name::IdempotencyKey)
}

/// Why there is no further try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRetry {
    #[error("it is the request that cannot be sent, or its time is up")]
    Final,
    #[error("a hop further on has tried again, in vain")]
    InVain,
    #[error("no connection in {CONNECTS} tries")]
    Unconnected,
    #[error("it may have been processed, and its method must not be repeated")]
    NotRepeatable,
    #[error("no policy asks for it")]
    NoPolicy,
    #[error("it serves a request that is itself a retry")]
    OfRetry,
    #[error("all tries are used up")]
    UsedUp,
    #[error("the policy does not name this failure")]
    NotNamed,
    #[error("status {0} is never tried again: it is the request that is at fault")]
    NeverRetried(u16),
    #[error("the server asks for a longer wait than {:?} (Retry-After)", limits::RETRY_WAIT)]
    LongWait,
    #[error("the server asks for no further try (grpc-retry-pushback-ms)")]
    PushedBack,
    #[error("the request's body is no longer there to be sent again")]
    BodyGone,
    #[error("the deadline comes before it")]
    Deadline,
    #[error("the exchange may not rest for as long as the wait before it (streamIdle)")]
    Idle,
    #[error("there is only this application")]
    OneApplication,
    #[error("the application broke off on a connection made for it: its client's proxy decides")]
    BrokenOff,
    #[error("the backend's circuit breaker is open")]
    CircuitOpen,
    #[error("the backend has as many retries in flight as its policy allows")]
    Limit,
    #[error("the backend's retry budget is used up")]
    Budget,
}

/// The next try, if there is to be one. `random`: a uniformly random number. The caller asks the budget afterwards.
pub(crate) fn next_try(failure: Failure, tries: Tries, policy: Option<&Retry>, random: u64) -> Result<Next, NoRetry> {
    let at_once = match failure {
        Failure::NotConnected => tries.unconnected < CONNECTS,
        Failure::NotProcessed => tries.sent < TRIES,
        Failure::Reset => tries.repeatable && tries.sent < TRIES,
        Failure::PushedBack(_, None) => return Err(NoRetry::PushedBack),
        Failure::Status(..) | Failure::Grpc(..) | Failure::PushedBack(..) | Failure::TryTimeout => false,
        Failure::Final => return Err(NoRetry::Final),
        Failure::InVain => return Err(NoRetry::InVain),
    };
    if at_once {
        return Ok(Next::AtOnce);
    }
    let policy = match policy {
        None => return Err(without_policy(failure, tries)),
        Some(_) if tries.of_retry => return Err(NoRetry::OfRetry),
        Some(policy) if tries.by_policy >= policy.attempts => return Err(NoRetry::UsedUp),
        // What was sent again without asking the policy is among the tries that it allows.
        Some(policy) if was_sent(failure) && tries.sent > policy.attempts => return Err(NoRetry::UsedUp),
        Some(policy) => policy,
    };
    let asked_for = match failure {
        Failure::NotConnected | Failure::NotProcessed if policy.connect => None,
        Failure::Reset if policy.reset.includes(tries.repeatable) => None,
        Failure::TryTimeout if policy.try_timeout.includes(tries.repeatable) => None,
        Failure::Status(status, asked_for) if by_status(policy, status, tries.repeatable) => asked_for,
        Failure::Grpc(code, asked_for) if by_code(policy, code) => asked_for,
        // In place of the backoff.
        Failure::PushedBack(code, Some(wait)) if by_code(policy, code) => return within_bounds(wait),
        _ => return Err(unasked_for(failure, tries.repeatable, policy)),
    };
    let wait = policy.backoff.wait(tries.by_policy, random).max(asked_for.unwrap_or_default());
    // A server that asks for more (`Retry-After`) gets no further try.
    within_bounds(wait)
}

/// The same at the server's proxy, which has but one application to ask. Everything else is for its client's proxy to decide,
/// which has other endpoints: what either did again the other would multiply.
pub(crate) fn once_more(failure: Failure, tries: Tries) -> Result<Next, NoRetry> {
    match failure {
        // It does not listen: another try now is in vain.
        Failure::NotConnected => Err(NoRetry::OneApplication),
        Failure::NotProcessed if tries.sent < TRIES => Ok(Next::AtOnce),
        Failure::Reset if tries.repeatable && !tries.on_reused => Err(NoRetry::BrokenOff),
        Failure::Reset if tries.repeatable && tries.sent < 2 => Ok(Next::AtOnce),
        failure => Err(without_policy(failure, tries)),
    }
}

/// Whether it is a failure after which a request may be sent again without a policy, too.
fn was_sent(failure: Failure) -> bool {
    matches!(failure, Failure::NotProcessed | Failure::Reset)
}

fn within_bounds(wait: Duration) -> Result<Next, NoRetry> {
    if wait <= limits::RETRY_WAIT { Ok(Next::ByPolicy(wait)) } else { Err(NoRetry::LongWait) }
}

/// What `grpc-retry-pushback-ms` says: so long, or (negative, or no number) never.
pub(crate) fn pushback(value: &[u8]) -> Option<Duration> {
    let millis: i64 = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    u64::try_from(millis).ok().map(Duration::from_millis)
}

fn without_policy(failure: Failure, tries: Tries) -> NoRetry {
    match failure {
        Failure::NotConnected => NoRetry::Unconnected,
        Failure::Reset if !tries.repeatable => NoRetry::NotRepeatable,
        Failure::NotProcessed | Failure::Reset => NoRetry::UsedUp,
        Failure::Final => NoRetry::Final,
        _ => NoRetry::NoPolicy,
    }
}

/// Why a policy asks for no further try after this failure: a method that stands in the way is said to.
fn unasked_for(failure: Failure, repeatable: bool, policy: &Retry) -> NoRetry {
    let for_others = match failure {
        Failure::Status(status, _) if is_clients(status) => return NoRetry::NeverRetried(status),
        Failure::Status(status, _) => by_status(policy, status, true),
        Failure::Reset => policy.reset.includes(true),
        Failure::TryTimeout => policy.try_timeout.includes(true),
        _ => false,
    };
    if for_others && !repeatable { NoRetry::NotRepeatable } else { NoRetry::NotNamed }
}

fn by_status(policy: &Retry, status: u16, repeatable: bool) -> bool {
    !is_clients(status) && (policy.any_method || repeatable) && policy.statuses.binary_search(&status).is_ok()
}

/// The client's own faults do not go away.
fn is_clients(status: u16) -> bool {
    matches!(status, 400 | 401 | 403 | 404)
}

fn by_code(policy: &Retry, code: u16) -> bool {
    1_u32.checked_shl(code.into()).is_some_and(|bit| policy.grpc & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::retry_policy::{Backoff, Whom};

    const ONCE: Tries =
        Tries { repeatable: true, of_retry: false, sent: 1, unconnected: 0, by_policy: 0, on_reused: false };
    /// As the function itself; why not is not asked here.
    fn next_try(failure: Failure, tries: Tries, policy: Option<&Retry>, random: u64) -> Option<Next> {
        super::next_try(failure, tries, policy, random).ok()
    }

    const AT_ONCE: Option<Next> = Some(Next::AtOnce);

    fn after(millis: u64) -> Option<Next> {
        Some(Next::ByPolicy(Duration::from_millis(millis)))
    }

    fn route() -> Retry {
        Retry::of_route(vec![404, 503, 504], 2, Duration::from_millis(25))
    }

    /// A RoutePolicy for 503 and UNAVAILABLE alone.
    fn policy() -> Retry {
        Retry {
            statuses: vec![503],
            any_method: false,
            grpc: 1 << 14,
            connect: false,
            reset: Whom::None,
            try_timeout: Whom::None,
            attempts: 2,
            backoff: Backoff { base: Duration::from_millis(20), cap: Duration::from_secs(1), full_jitter: true },
        }
    }

    #[test]
    fn what_was_not_processed_is_always_sent_again() {
        let post = Tries { repeatable: false, ..ONCE };
        assert_eq!(next_try(Failure::NotProcessed, post, None, 0), AT_ONCE);
        assert_eq!(next_try(Failure::NotProcessed, Tries { sent: TRIES, ..post }, None, 0), None);
        assert_eq!(next_try(Failure::NotConnected, Tries { sent: 0, unconnected: 1, ..post }, None, 0), AT_ONCE);
        let all = Tries { sent: 0, unconnected: CONNECTS, ..post };
        assert_eq!(next_try(Failure::NotConnected, all, None, 0), None);
        assert_eq!(next_try(Failure::NotConnected, all, Some(&route()), 0), after(25));
        assert_eq!(next_try(Failure::NotConnected, Tries { by_policy: 2, ..all }, Some(&route()), 0), None);
        assert_eq!(next_try(Failure::NotConnected, all, Some(&policy()), 0), None);
    }

    #[test]
    fn resets_are_for_what_may_be_repeated() {
        assert_eq!(next_try(Failure::Reset, ONCE, None, 0), AT_ONCE);
        let post = Tries { repeatable: false, ..ONCE };
        assert_eq!(next_try(Failure::Reset, post, None, 0), None);
        assert_eq!(next_try(Failure::Reset, Tries { sent: TRIES, ..ONCE }, None, 0), None);
        assert_eq!(next_try(Failure::Reset, post, Some(&policy()), 0), None);
        let any = Retry { reset: Whom::Any, ..policy() };
        assert_eq!(next_try(Failure::Reset, post, Some(&any), 0), after(0));
        let sent = Tries { sent: TRIES, ..ONCE };
        assert_eq!(next_try(Failure::Reset, sent, Some(&any), 0), None, "two tries beyond the first, in all");
        let more = Retry { attempts: 3, ..any };
        assert_eq!(next_try(Failure::Reset, sent, Some(&more), 0), after(0));
    }

    #[test]
    fn statuses_and_timeouts_are_for_the_policy() {
        assert_eq!(next_try(Failure::Status(503, None), ONCE, None, 0), None);
        assert_eq!(next_try(Failure::TryTimeout, ONCE, None, 0), None);
        assert_eq!(next_try(Failure::Final, ONCE, Some(&route()), 0), None);
        let policy = route();
        let wait = |failure, tries| next_try(failure, tries, Some(&policy), 0);
        assert_eq!(wait(Failure::Status(503, None), ONCE), after(25));
        assert_eq!(wait(Failure::TryTimeout, Tries { repeatable: false, ..ONCE }), after(25));
        assert_eq!(wait(Failure::Status(500, None), ONCE), None);
        assert_eq!(wait(Failure::Status(404, None), ONCE), None, "the client's own fault");
        assert_eq!(wait(Failure::Status(503, None), Tries { by_policy: 1, ..ONCE }), after(50));
        assert_eq!(wait(Failure::Status(503, None), Tries { by_policy: 2, ..ONCE }), None);
        assert_eq!(wait(Failure::Status(503, Some(Duration::from_secs(2))), ONCE), after(2000));
        assert_eq!(wait(Failure::Status(503, Some(Duration::from_secs(60))), ONCE), None);
    }

    #[test]
    fn a_policy_keeps_to_what_may_be_repeated_unless_it_says_any() {
        let (policy, post) = (policy(), Tries { repeatable: false, ..ONCE });
        assert_eq!(next_try(Failure::Status(503, None), ONCE, Some(&policy), 0), after(0));
        assert_eq!(next_try(Failure::Status(503, None), post, Some(&policy), 0), None);
        let any = Retry { any_method: true, ..policy.clone() };
        assert_eq!(next_try(Failure::Status(503, None), post, Some(&any), 0), after(0));
        assert_eq!(next_try(Failure::TryTimeout, ONCE, Some(&policy), 0), None, "not asked for");
        assert_eq!(next_try(Failure::Grpc(14, None), post, Some(&policy), 0), after(0), "named codes are explicit");
        assert_eq!(next_try(Failure::Grpc(8, None), post, Some(&policy), 0), None);
        assert_eq!(next_try(Failure::Grpc(77, None), post, Some(&policy), 0), None);
    }

    #[test]
    fn no_retry_is_retried() {
        let served = Tries { of_retry: true, ..ONCE };
        assert_eq!(next_try(Failure::Status(503, None), served, Some(&route()), 0), None);
        assert_eq!(next_try(Failure::NotProcessed, served, Some(&route()), 0), AT_ONCE, "this multiplies nothing");
        assert_eq!(next_try(Failure::InVain, ONCE, Some(&route()), 0), None);
    }

    #[test]
    fn a_server_that_pushes_back_is_obeyed() {
        let policy = policy();
        let wait = Some(Duration::from_millis(7));
        assert_eq!(next_try(Failure::PushedBack(14, wait), ONCE, Some(&policy), u64::MAX), after(7), "no backoff");
        assert_eq!(next_try(Failure::PushedBack(8, wait), ONCE, Some(&policy), 0), None, "not a code that is named");
        assert_eq!(super::next_try(Failure::PushedBack(14, None), ONCE, Some(&policy), 0), Err(NoRetry::PushedBack));
        let long = Some(limits::RETRY_WAIT + Duration::from_millis(1));
        assert_eq!(super::next_try(Failure::PushedBack(14, long), ONCE, Some(&policy), 0), Err(NoRetry::LongWait));
        assert_eq!(pushback(b"250"), Some(Duration::from_millis(250)));
        assert_eq!((pushback(b"-1"), pushback(b"soon"), pushback(b"")), (None, None, None));
    }

    #[test]
    fn it_is_said_why_not() {
        let post = Tries { repeatable: false, ..ONCE };
        let (policy, route, status) = (policy(), route(), Failure::Status(503, None));
        let idempotent = Retry { reset: Whom::Repeatable, try_timeout: Whom::Repeatable, ..policy.clone() };
        for (failure, tries, policy, why) in [
            (Failure::Reset, post, None, NoRetry::NotRepeatable),
            (status, ONCE, None, NoRetry::NoPolicy),
            (Failure::Status(500, None), ONCE, Some(&policy), NoRetry::NotNamed),
            (Failure::Status(500, None), post, Some(&policy), NoRetry::NotNamed),
            (status, post, Some(&policy), NoRetry::NotRepeatable),
            (Failure::Reset, post, Some(&idempotent), NoRetry::NotRepeatable),
            (Failure::TryTimeout, post, Some(&idempotent), NoRetry::NotRepeatable),
            (Failure::TryTimeout, post, Some(&policy), NoRetry::NotNamed),
            (Failure::Status(400, None), ONCE, Some(&policy), NoRetry::NeverRetried(400)),
            (Failure::Status(401, None), post, Some(&route), NoRetry::NeverRetried(401)),
            (Failure::Status(403, None), ONCE, Some(&route), NoRetry::NeverRetried(403)),
            (Failure::Status(404, None), ONCE, Some(&route), NoRetry::NeverRetried(404)),
            (Failure::Grpc(8, None), post, Some(&policy), NoRetry::NotNamed),
            (status, Tries { by_policy: 2, ..ONCE }, Some(&policy), NoRetry::UsedUp),
            (status, Tries { of_retry: true, ..ONCE }, Some(&policy), NoRetry::OfRetry),
            (Failure::Status(503, Some(Duration::from_secs(60))), ONCE, Some(&policy), NoRetry::LongWait),
            (Failure::InVain, ONCE, Some(&policy), NoRetry::InVain),
        ] {
            assert_eq!(super::next_try(failure, tries, policy, 0), Err(why));
        }
    }

    #[test]
    fn an_application_is_asked_again_after_what_may_be_the_end_of_an_idle_connection() {
        let reused = Tries { on_reused: true, ..ONCE };
        let twice = Tries { sent: 2, ..reused };
        for (failure, tries, next) in [
            (Failure::Reset, reused, Ok(Next::AtOnce)),
            (Failure::Reset, twice, Err(NoRetry::UsedUp)),
            (Failure::Reset, ONCE, Err(NoRetry::BrokenOff)),
            (Failure::Reset, Tries { repeatable: false, ..reused }, Err(NoRetry::NotRepeatable)),
            (Failure::NotProcessed, twice, Ok(Next::AtOnce)),
            (Failure::NotProcessed, Tries { sent: 3, ..ONCE }, Err(NoRetry::UsedUp)),
            (Failure::NotConnected, reused, Err(NoRetry::OneApplication)),
            (Failure::Final, reused, Err(NoRetry::Final)),
        ] {
            assert_eq!(once_more(failure, tries), next, "{failure:?} {tries:?}");
        }
    }

    #[test]
    fn the_budget_does_not_speak_for_who_was_never_reached() {
        assert!(ONCE.spent_budget(NoRetry::Budget));
        assert!(!Tries { sent: 0, unconnected: 1, ..ONCE }.spent_budget(NoRetry::Budget), "a fallback is left");
        assert!(!ONCE.spent_budget(NoRetry::UsedUp));
    }

    #[test]
    fn methods_that_may_be_repeated() {
        let none = Fields::new();
        assert!(repeatable(&Method::GET, &none) && repeatable(&Method::DELETE, &none));
        assert!(!repeatable(&Method::POST, &none) && !repeatable(&Method::PATCH, &none));
        let keyed = Fields::from_iter([("idempotency-key", "1")]);
        assert!(repeatable(&Method::POST, &keyed));
    }
}
