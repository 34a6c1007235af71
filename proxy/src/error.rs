//! What can go wrong inside the proxy with a request or connection. Each error has one [`Reason`], and one answer.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use crate::{
    config::limits,
    reason::{GrpcCode, Reason},
};

/// What went wrong, by what the answer to the client is. Where a cause exists it is kept for the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed or ambiguous (RFC 9112, RFC 9113).
    #[error("malformed request: {0}")]
    BadRequest(&'static str),
    /// Routes exist, and none matches.
    #[error("no rule matches the request")]
    NoRule,
    /// The chosen backend or filter cannot be resolved (Gateway API: 500 for its share).
    #[error("{0}")]
    InvalidBackend(String),
    /// The control plane does not know the destination, or could not be asked in time.
    #[error("destination {0} could not be discovered")]
    Discovery(String),
    /// The backend has no endpoint that may be used.
    #[error("backend {0} has no ready endpoint")]
    NoEndpoint(String),
    /// No connection to the endpoint could be made.
    #[error("cannot connect to {endpoint}: {reason}")]
    Connect { endpoint: String, reason: String },
    /// The peer's identity is not what policy expects, or the handshake failed.
    #[error("TLS with {endpoint}: {reason}")]
    Tls { endpoint: String, reason: String },
    /// The endpoint closed or broke the connection before it answered.
    #[error("{endpoint} reset the exchange: {reason}")]
    Reset { endpoint: String, reason: String },
    /// The route's request timeout passed.
    #[error("request timeout")]
    RequestTimeout,
    /// No answer's head came in the time that the route allows for it.
    #[error("response timeout")]
    ResponseTimeout,
    /// The last try's timeout passed.
    #[error("backend request timeout")]
    TryTimeout,
    /// The exchange did not move for the longest time allowed.
    #[error("not one byte moved for the longest time allowed")]
    Idle,
    /// The client's deadline passed before the request was worked on.
    #[error("the request's deadline has passed")]
    Deadline,
    /// The request's head is larger than the port's policy allows.
    #[error("the request's head has {bytes} bytes, and may have {most}")]
    HeadTooLarge { bytes: usize, most: usize },
    /// The same, than any head may be.
    #[error("the request's head has more than {} bytes or {} fields", limits::HEAD_BYTES, limits::HEADERS)]
    HeadBeyondLimits,
    /// The same of its body.
    #[error("the request's body has more than {most} bytes")]
    BodyTooLarge { most: u64 },
    /// The client has used up a rate limit.
    #[error("{0}")]
    RateLimited(Box<RateLimited>),
    /// A limit of the proxy was reached.
    #[error("limit reached: {0}")]
    Overload(&'static str),
    /// A limit that a policy sets for calls of a backend was reached.
    #[error("limit reached: {limit} of {backend}")]
    Limit { limit: &'static str, backend: Arc<str> },
    /// A try failed, and the backend's retry budget is spent, of which policy says that it is told (GEP-3388).
    #[error("the retry budget of {0} is spent")]
    RetryBudget(Arc<str>),
    /// The backend's circuit breaker is open.
    #[error("the circuit breaker of {backend} is open")]
    CircuitOpen { backend: Arc<str>, retry_after: Duration },
    /// Policy refuses the peer (strict mode).
    #[error("refused: {0}")]
    Refused(&'static str),
}

/// Which limit a client has used up, and what it is told.
#[derive(Debug, thiserror::Error)]
#[error("rate limit {limit} of {origin} reached; try again in {retry_after} s")]
pub struct RateLimited {
    /// "InboundPolicy shop/cart"
    pub origin: Arc<str>,
    pub limit: Arc<str>,
    /// Seconds.
    pub retry_after: u64,
    /// The fields `RateLimit-Policy` and `RateLimit`.
    pub policy: String,
    pub standing: String,
}

impl Error {
    /// Why, from the closed list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadRequest(_) => Reason::BadRequest,
            Self::NoRule => Reason::NoRule,
            Self::InvalidBackend(_) => Reason::InvalidBackend,
            Self::Discovery(_) => Reason::Discovery,
            Self::NoEndpoint(_) => Reason::NoEndpoint,
            Self::Connect { .. } => Reason::Connect,
            Self::Tls { .. } => Reason::Tls,
            Self::Reset { .. } => Reason::Reset,
            Self::RequestTimeout => Reason::RequestTimeout,
            Self::ResponseTimeout => Reason::ResponseTimeout,
            Self::TryTimeout => Reason::TryTimeout,
            Self::Idle => Reason::Idle,
            Self::Deadline => Reason::Deadline,
            Self::Overload(_) | Self::Limit { .. } => Reason::Overload,
            Self::HeadTooLarge { .. } | Self::HeadBeyondLimits => Reason::HeadTooLarge,
            Self::BodyTooLarge { .. } => Reason::BodyTooLarge,
            Self::RetryBudget(_) => Reason::RetryBudget,
            Self::RateLimited(_) => Reason::RateLimit,
            Self::CircuitOpen { .. } => Reason::CircuitOpen,
            Self::Refused(_) => Reason::Refused,
        }
    }

    /// The status a client that speaks HTTP gets.
    pub fn status(&self) -> StatusCode {
        self.reason().status().unwrap_or(StatusCode::BAD_GATEWAY)
    }

    /// The code a gRPC client gets.
    pub fn grpc(&self) -> GrpcCode {
        self.reason().grpc().unwrap_or(GrpcCode::Unavailable)
    }

    /// When the client may try again, in whole seconds; None: nobody knows.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited(limited) => Some(limited.retry_after),
            Self::CircuitOpen { retry_after, .. } => Some(retry_after.as_secs_f64().ceil().max(1.0) as u64),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => Some(1),
            _ => None,
        }
    }
}
