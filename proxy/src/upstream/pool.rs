//! HTTP connections to one endpoint: idle HTTP/1 connections (a stack: the warmest first), HTTP/2 connections
//! shared up to STREAMS_BEFORE_NEXT. Retired when idle for POOL_IDLE, when the peer closes, on GOAWAY, when credentials rotated.

use http::{Request, Response};
use hyper::body::Incoming;

use crate::http::Body;

/// One exchange's claim on a connection. HTTP/1: goes back to the pool when the response body was read to its end.
pub struct HttpConnection {
    /// Was taken from the pool (a failure before any response byte may be the idle race).
    pub reused: bool,
}

/// An exchange that failed on the connection.
#[derive(Debug)]
pub struct SendError {
    /// The request was provably not processed: never written, REFUSED_STREAM, or above GOAWAY's last stream.
    pub not_processed: bool,
    pub reason: String,
    /// Given back if it was never written.
    pub request: Option<Request<Body>>,
}

impl HttpConnection {
    /// Sends the request; the response's body keeps the connection claimed. Upgrades (101, CONNECT 2xx): through
    /// `hyper::upgrade::on(&mut response)` as hyper does.
    pub async fn send(self, _request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        todo!("upstream")
    }

    /// Also serves the inbound side: a pool to the local application is a pool like any other.
    pub fn is_http2(&self) -> bool {
        todo!("upstream")
    }
}
