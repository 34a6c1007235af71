//! Requests that failed: when, and by whose word.

use std::{fmt, io, net::IpAddr, time::Instant};

use bytes::Bytes;
use http::StatusCode;

/// A request that was not answered by a server, or not well.
#[derive(Debug, Clone)]
pub struct Failure {
    pub began: Instant,
    pub ended: Instant,
    /// `leno-reason` of the answer; without one, "status 503" or "grpc Unavailable"; "broken": there was no answer.
    pub reason: String,
    /// No connection could be made: nobody was sent anything. Told of HTTP/1.1 alone.
    pub unsent: bool,
    /// Where its connection came from. Told of opaque connections alone.
    pub source: Option<IpAddr>,
    /// All that is known.
    pub error: String,
}

impl Failure {
    pub(super) fn new(began: Instant, error: &anyhow::Error) -> Self {
        let reason = error.chain().find_map(|cause| {
            if let Some(refused) = cause.downcast_ref::<Refused>() {
                let status = || format!("status {}", refused.status.as_u16());
                return Some(if refused.reason.is_empty() { status() } else { refused.reason.clone() });
            }
            let status = cause.downcast_ref::<tonic::Status>()?;
            let reason = status.metadata().get("leno-reason").and_then(|reason| reason.to_str().ok());
            Some(reason.map_or_else(|| format!("grpc {:?}", status.code()), str::to_owned))
        });
        let reason = reason.unwrap_or_else(|| "broken".to_owned());
        let unsent = error.is::<NotConnected>();
        let source = error.downcast_ref::<Source>().map(|source| source.0);
        Self { began, ended: Instant::now(), reason, unsent, source, error: format!("{error:#}") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {:?}: {}", self.reason, self.ended - self.began, self.error)
    }
}

/// Why no connection could be made.
#[derive(Debug)]
pub(super) struct NotConnected(pub(super) io::Error);

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connect: {}", self.0)
    }
}

impl std::error::Error for NotConnected {}

/// An answer that is not 200, or not a server's.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) reason: String,
    pub(super) body: Bytes,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leno-reason={:?} {:?}", self.status, self.reason, self.body)
    }
}

impl std::error::Error for Refused {}

/// Of an opaque connection: where it came from.
#[derive(Debug)]
pub(super) struct Source(pub(super) IpAddr);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.0)
    }
}
