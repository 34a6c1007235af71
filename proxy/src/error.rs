//! Why a request or connection failed inside the proxy. Each reason has one name, which is the
//! `leno-reason` header, the access log's field and the metrics' label, and one answer.

use http::StatusCode;

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
    /// The last try's timeout passed.
    #[error("backend request timeout")]
    TryTimeout,
    /// A limit of the proxy was reached.
    #[error("limit reached: {0}")]
    Overload(&'static str),
    /// Policy refuses the peer (strict mode).
    #[error("refused: {0}")]
    Refused(&'static str),
}

impl Error {
    /// The reason's name, from a fixed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad-request",
            Self::NoRule => "no-rule",
            Self::InvalidBackend(_) => "invalid-backend",
            Self::Discovery(_) => "discovery",
            Self::NoEndpoint(_) => "no-endpoint",
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Reset { .. } => "reset",
            Self::RequestTimeout => "request-timeout",
            Self::TryTimeout => "try-timeout",
            Self::Overload(_) => "overload",
            Self::Refused(_) => "refused",
        }
    }

    /// The status a client that speaks HTTP gets (gRPC: see `http::respond`).
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoRule => StatusCode::NOT_FOUND,
            Self::InvalidBackend(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Connect { .. } | Self::Tls { .. } | Self::Reset { .. } => StatusCode::BAD_GATEWAY,
            Self::Discovery(_) | Self::NoEndpoint(_) | Self::Overload(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::RequestTimeout | Self::TryTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Refused(_) => StatusCode::FORBIDDEN,
        }
    }
}
