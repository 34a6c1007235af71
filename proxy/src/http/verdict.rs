//! What an answer, or the lack of one, says: whether the request is to be tried again, and how its endpoint does.

use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;

use super::{
    exchange::{Exchange, grpc_status},
    head::{Name, ResponseHead},
    retry::{self, Failure},
};
use crate::{
    error::Error,
    policy::retry_policy::Retry,
    upstream::{Outcome, Pick, pool::Reply},
};

/// Whether an answer is one to try again: the mesh peer says why the application never saw the request, or
/// the route's policy names the status or gRPC code (of an answer without a body: then it is in the head). Never if a hop
/// further on has tried again already.
pub(super) fn refused(response: &ResponseHead, pick: &Pick, policy: Option<&Retry>, grpc: bool) -> Option<Failure> {
    let status = response.status.as_u16();
    let peers = pick.endpoint.identity.is_some();
    if peers && response.fields.has(Name::LenoRetried) {
        return Some(Failure::InVain);
    }
    match peers_reason(response, pick) {
        Some(b"connect" | b"overload") => return Some(Failure::NotProcessed),
        Some(b"reset") => return Some(Failure::Reset),
        // It is as large next time, whatever a policy says of its status or code.
        Some(b"head-too-large" | b"body-too-large") => return None,
        _ => {}
    }
    let policy = policy?;
    let code = if grpc { grpc_status(&response.fields).filter(|code| *code != 0) } else { None };
    if code.is_none() && policy.statuses.binary_search(&status).is_err() {
        return None;
    }
    // gRPC's answers are all 200.
    let retry_after = || retry_after(response, SystemTime::now()).filter(|_| matches!(status, 200 | 429 | 503));
    let pushback = response.fields.values(b"grpc-retry-pushback-ms").next();
    Some(match code {
        Some(code) if pushback.is_some() => Failure::PushedBack(code, pushback.and_then(retry::pushback)),
        Some(code) => Failure::Grpc(code, retry_after()),
        None => Failure::Status(status, retry_after()),
    })
}

/// How long the server asks to be left alone (RFC 9110 10.2.3): for so many seconds, or up to a date; one that has passed is
/// no wait.
fn retry_after(response: &ResponseHead, now: SystemTime) -> Option<Duration> {
    let value = response.fields.text(Name::RetryAfter)?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Why the mesh peer's proxy answered itself.
fn peers_reason<'a>(response: &'a ResponseHead, pick: &Pick) -> Option<&'a [u8]> {
    response.fields.get(Name::LenoReason).filter(|_| pick.endpoint.identity.is_some())
}

/// Whether a failed try came as far as its application. `number`: None if it found no connection.
pub(super) fn was_reached(number: Option<u32>, reply: Option<&Reply>, pick: &Pick) -> bool {
    number.is_some() && reply.is_none_or(|reply| peers_reason(&reply.head, pick) != Some(b"connect"))
}

/// What an answer says about its endpoint: HTTP's server errors, and gRPC's UNAVAILABLE; 429, RESOURCE_EXHAUSTED, and the mesh's own
/// `overload`.
pub(super) fn outcome(response: &ResponseHead, pick: &Pick, exchange: &Exchange) -> Outcome {
    judged(response, pick).unwrap_or_else(|| blame(&Error::RequestTimeout, exchange))
}

/// The same without its exchange. None: the peer was told the deadline, and noticed first that it has passed.
pub(super) fn judged(response: &ResponseHead, pick: &Pick) -> Option<Outcome> {
    let (status, grpc) = (response.status, grpc_status(&response.fields));
    let failed = status.is_server_error() || grpc == Some(14);
    let refused = status == StatusCode::TOO_MANY_REQUESTS || grpc == Some(8);
    let reason = peers_reason(response, pick);
    let works_on = match reason {
        // It may be one caller's alone, and is no reason to keep all others away.
        Some(b"rate-limit") => true,
        // Who has too much to do works on: nobody would use what it can do if all stayed away.
        Some(b"overload") => pick.is_by_estimate(),
        _ => false,
    };
    if (refused || status == StatusCode::SERVICE_UNAVAILABLE)
        && !works_on
        && let Some(wait) = retry_after(response, SystemTime::now())
    {
        pick.rest(wait, Instant::now());
    }
    Some(match reason {
        // The request's own fault.
        Some(b"head-too-large" | b"body-too-large") => Outcome::Neutral,
        // What its limit lets in is answered. As a failure it would have those ejected that do all they can, and the breaker
        // open.
        Some(b"overload") => Outcome::Refused,
        _ if refused => Outcome::Refused,
        _ if !failed => Outcome::Success,
        Some(b"request-timeout") => return None,
        _ => Outcome::Failure,
    })
}

/// What a try without an answer says about its endpoint: nothing, if the request was not fit to be sent, or the client is
/// still sending it, or wanted to wait no longer. Clients must not be able to have healthy endpoints ejected.
pub(super) fn blame(error: &Error, exchange: &Exchange) -> Outcome {
    match error {
        Error::BadRequest(_) | Error::InvalidBackend(_) | Error::Overload(_) | Error::Limit { .. } => Outcome::Neutral,
        Error::RequestTimeout | Error::ResponseTimeout | Error::TryTimeout | Error::Idle
            if exchange.awaits_client() =>
        {
            Outcome::Neutral
        }
        Error::RequestTimeout if exchange.given_up_by_client() => Outcome::GivenUp,
        _ => Outcome::Failure,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        policy::{BackendPolicy, Protocol, Target},
        testing::{Sidecar, run, server_id},
        upstream::{
            Backend, Endpoint, EndpointSet,
            Outcome::*,
            balance::{Algorithm, LoadBalancing},
        },
    };

    #[test]
    fn who_has_too_much_to_do_is_neither_failing_nor_to_be_left_alone() {
        run(async {
            let sidecar = Sidecar::new("client", || Target::Outside);
            // What is answered 503 or gRPC's UNAVAILABLE: its reason, by a peer of the mesh or by anybody. By turns it would get as many as
            // the others next.
            for (algorithm, grpc, reason, meshed, expected) in [
                (Algorithm::PeakEwma, false, "overload", true, (Refused, false)),
                (Algorithm::PeakEwma, true, "overload", true, (Refused, false)),
                (Algorithm::RoundRobin, false, "overload", true, (Refused, true)),
                (Algorithm::LeastRequest, false, "overload", true, (Refused, true)),
                (Algorithm::RoundRobin, false, "rate-limit", true, (Failure, false)),
                (Algorithm::PeakEwma, false, "overload", false, (Failure, true)),
                (Algorithm::PeakEwma, false, "connect", true, (Failure, true)),
                (Algorithm::PeakEwma, false, "", true, (Failure, true)),
            ] {
                let identity = meshed.then(server_id);
                let endpoints =
                    [1, 2].map(|n| Endpoint::new(([127, 0, 0, n], 80).into(), identity.clone(), "w", "", 1));
                let backend = Arc::new(Backend::new("shop/shop:80".into()));
                let load_balancing = LoadBalancing { algorithm, ..LoadBalancing::default() };
                let policy = BackendPolicy { load_balancing, ..BackendPolicy::default() };
                backend.publish(EndpointSet::new(true, Protocol::Http1, endpoints.to_vec()).under(Arc::new(policy)));
                let pick = sidecar.ctx.upstreams.pick(&backend, &[], |_| None).await.unwrap();
                let status = if grpc { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let mut response = ResponseHead::new(status);
                response.fields.push_known(Name::RetryAfter, b"1");
                response.fields.push_known(Name::LenoReason, reason.as_bytes());
                if grpc {
                    response.fields.push_known(Name::GrpcStatus, b"14");
                }
                let judged = judged(&response, &pick).unwrap();
                let rests = pick.endpoint.outlier.rests(Instant::now()).is_some();
                assert_eq!((judged, rests), expected, "{reason}, gRPC: {grpc}, of the mesh: {meshed}");
            }
        });
    }

    #[test]
    fn a_wait_is_asked_for_in_seconds_or_until_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT, of RFC 9110 5.6.7.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |value: &str| {
            let mut response = ResponseHead::new(StatusCode::SERVICE_UNAVAILABLE);
            response.fields.push_known(Name::RetryAfter, value.as_bytes());
            retry_after(&response, now).map(|wait| wait.as_secs())
        };
        assert_eq!((wait("7"), wait(" 120 "), wait("0")), (Some(7), Some(120), Some(0)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:44 GMT"), Some(7));
        assert_eq!(wait("Sunday, 06-Nov-94 08:50:37 GMT"), Some(60), "RFC 850");
        assert_eq!(wait("Sun Nov  6 08:49:38 1994"), Some(1), "asctime");
        assert_eq!(wait("Sat, 05 Nov 1994 08:49:37 GMT"), Some(0), "it has passed");
        for neither in ["", "soon", "-1", "1.5", "Sun, 06 Nov 1994"] {
            assert_eq!(wait(neither), None, "{neither:?}");
        }
    }
}
