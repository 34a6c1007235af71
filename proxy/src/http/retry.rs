//! Whether a try that failed is made again: a pure decision.
//!
//! Safe without asking anyone: what was provably not processed (never sent, refused by the peer before any
//! processing), and what may be repeated (idempotent methods, RFC 9110 9.2.2, or an `Idempotency-Key`). Statuses
//! and timeouts are tried again only if the route says so. Never past the budget, and never if the body is gone.

use std::time::Duration;

use http::Method;

use super::head::{Fields, Name};
use crate::policy::http_route::Retry;

/// Tries of one request that were sent, without a policy.
const TRIES: u32 = 3;
/// Endpoints that may fail to be connected to, for one request.
const CONNECTS: u32 = 5;
/// Longest wait between two tries; a server that asks (`Retry-After`) for more gets no second one.
const MAX_WAIT: Duration = Duration::from_secs(10);

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
    /// The time for one try passed.
    TryTimeout,
    /// The time for the whole request passed, or it cannot be sent at all.
    Final,
}

/// What is known of the request and its tries so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tries {
    /// Method or header say that it may be repeated.
    pub(crate) repeatable: bool,
    /// Tries that were sent.
    pub(crate) sent: u32,
    /// Tries that found no connection.
    pub(crate) unconnected: u32,
    /// Retries that the policy asked for.
    pub(crate) by_policy: u32,
}

/// Whether the request may be repeated by what it is.
pub(crate) fn repeatable(method: &Method, fields: &Fields) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
        || fields.has(Name::IdempotencyKey)
}

/// How long to wait before the next try; None: no next try. `jitter`: a uniformly random number. The caller asks the
/// budget afterwards.
pub(crate) fn next_try(failure: Failure, tries: Tries, policy: Option<&Retry>, jitter: u64) -> Option<Duration> {
    let at_once = match failure {
        Failure::NotConnected => tries.unconnected < CONNECTS,
        Failure::NotProcessed => tries.sent < TRIES,
        Failure::Reset => tries.repeatable && tries.sent < TRIES,
        Failure::Status(..) | Failure::TryTimeout => false,
        Failure::Final => return None,
    };
    if at_once {
        return Some(Duration::ZERO);
    }
    let policy = policy.filter(|policy| tries.by_policy < policy.attempts)?;
    let asked_for = match failure {
        // GEP-1731: connection errors are retried whatever the codes are, timeouts as the 504 they become.
        Failure::NotConnected | Failure::NotProcessed => None,
        Failure::Reset | Failure::TryTimeout if tries.repeatable || by_status(policy, 504) => None,
        Failure::Status(status, asked_for) if by_status(policy, status) => asked_for,
        _ => return None,
    };
    let wait = backoff(policy.backoff, tries.by_policy, jitter).max(asked_for.unwrap_or_default());
    (wait <= MAX_WAIT).then_some(wait)
}

fn by_status(policy: &Retry, status: u16) -> bool {
    // The client's own faults do not go away.
    !matches!(status, 400 | 401 | 403 | 404) && policy.statuses.binary_search(&status).is_ok()
}

/// Exponential, with up to as much again as jitter: `least * 2^n * [1, 2)`.
fn backoff(least: Duration, retries: u32, jitter: u64) -> Duration {
    let base = least.saturating_mul(1 << retries.min(10)).min(MAX_WAIT / 2);
    let share = (jitter >> 11) as f64 / (1u64 << 53) as f64;
    base + base.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: Tries = Tries { repeatable: true, sent: 1, unconnected: 0, by_policy: 0 };
    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    fn policy() -> Retry {
        Retry { statuses: vec![404, 503, 504], attempts: 2, backoff: Duration::from_millis(25) }
    }

    #[test]
    fn what_was_not_processed_is_always_sent_again() {
        let post = Tries { repeatable: false, ..ONCE };
        assert_eq!(next_try(Failure::NotProcessed, post, None, 0), AT_ONCE);
        assert_eq!(next_try(Failure::NotProcessed, Tries { sent: TRIES, ..post }, None, 0), None);
        assert_eq!(next_try(Failure::NotConnected, Tries { sent: 0, unconnected: 1, ..post }, None, 0), AT_ONCE);
        assert_eq!(next_try(Failure::NotConnected, Tries { sent: 0, unconnected: CONNECTS, ..post }, None, 0), None);
    }

    #[test]
    fn resets_are_for_what_may_be_repeated() {
        assert_eq!(next_try(Failure::Reset, ONCE, None, 0), AT_ONCE);
        assert_eq!(next_try(Failure::Reset, Tries { repeatable: false, ..ONCE }, None, 0), None);
        assert_eq!(next_try(Failure::Reset, Tries { sent: TRIES, ..ONCE }, None, 0), None);
    }

    #[test]
    fn statuses_and_timeouts_are_for_the_policy() {
        assert_eq!(next_try(Failure::Status(503, None), ONCE, None, 0), None);
        assert_eq!(next_try(Failure::TryTimeout, ONCE, None, 0), None);
        assert_eq!(next_try(Failure::Final, ONCE, Some(&policy()), 0), None);
        let policy = policy();
        let wait = |failure, tries| next_try(failure, tries, Some(&policy), 0);
        assert_eq!(wait(Failure::Status(503, None), ONCE), Some(Duration::from_millis(25)));
        assert_eq!(wait(Failure::TryTimeout, Tries { repeatable: false, ..ONCE }), Some(Duration::from_millis(25)));
        assert_eq!(wait(Failure::Status(500, None), ONCE), None);
        assert_eq!(wait(Failure::Status(404, None), ONCE), None, "the client's own fault");
        assert_eq!(wait(Failure::Status(503, None), Tries { by_policy: 1, ..ONCE }), Some(Duration::from_millis(50)));
        assert_eq!(wait(Failure::Status(503, None), Tries { by_policy: 2, ..ONCE }), None);
        assert_eq!(wait(Failure::Status(503, Some(Duration::from_secs(2))), ONCE), Some(Duration::from_secs(2)));
        assert_eq!(wait(Failure::Status(503, Some(Duration::from_secs(60))), ONCE), None);
    }

    #[test]
    fn waits_grow_with_jitter_and_have_an_end() {
        let least = Duration::from_millis(25);
        for (retries, base) in [(0, 25), (1, 50), (4, 400)] {
            assert_eq!(backoff(least, retries, 0), Duration::from_millis(base));
            assert!(backoff(least, retries, u64::MAX) <= Duration::from_millis(2 * base));
        }
        assert!(backoff(Duration::from_secs(3600), 30, u64::MAX) <= MAX_WAIT);
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
