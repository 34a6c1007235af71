//! Answers that policy spells out: direct responses, fallbacks, aborts.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::{
    http::{
        Body, Response,
        head::{Name, ResponseHead},
        respond,
    },
    reason::{Reason, grpc_code},
};

/// An answer in the client's own protocol.
#[derive(Debug, Clone)]
pub struct StaticAnswer {
    pub status: StatusCode,
    /// In place of the status, for gRPC clients, who get the body as message.
    pub grpc_status: u16,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
}

impl StaticAnswer {
    #[cfg(test)]
    pub(crate) fn plain(status: StatusCode, grpc_status: u16, body: &'static str) -> Self {
        Self { status, grpc_status, headers: Vec::new(), body: Bytes::from_static(body.as_bytes()) }
    }

    /// Whether it tells its client that the server has failed.
    pub(crate) fn fails(&self, grpc: bool) -> bool {
        if grpc { self.grpc_status != 0 } else { self.status.is_server_error() }
    }

    /// What its client gets, in words: "429", for gRPC "RESOURCE_EXHAUSTED".
    pub(crate) fn name(&self, grpc: bool) -> String {
        if grpc { grpc_code(self.grpc_status.into()) } else { self.status.as_u16().to_string() }
    }

    /// `reason`: why it is given.
    pub(crate) fn response(&self, grpc: bool, reason: Reason) -> Response {
        if grpc {
            let message = String::from_utf8_lossy(&self.body);
            let mut head = respond::grpc_status(&self.grpc_status.to_string(), message.trim_end());
            head.fields.push_known(Name::LenoReason, reason.as_str().as_bytes());
            return Response { head, body: Body::empty() };
        }
        let mut head = ResponseHead::new(self.status);
        for (name, value) in &self.headers {
            head.fields.push(name.as_str().as_bytes(), value.as_bytes());
        }
        if !self.body.is_empty() && !head.fields.has(Name::ContentType) {
            head.fields.push_known(Name::ContentType, b"text/plain; charset=utf-8");
        }
        head.fields.push_known(Name::LenoReason, reason.as_str().as_bytes());
        Response { head, body: Body::full(self.body.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_answered_in_their_own_protocol() {
        let mut answer = StaticAnswer::plain(StatusCode::SERVICE_UNAVAILABLE, 14, "back soon\n");
        let head = answer.response(false, Reason::DirectResponse).head;
        assert_eq!(
            (head.status, head.fields.text(Name::LenoReason)),
            (StatusCode::SERVICE_UNAVAILABLE, Some("direct-response"))
        );
        assert_eq!(head.fields.text(Name::ContentType), Some("text/plain; charset=utf-8"));
        assert_eq!((answer.name(false), answer.name(true)), ("503".to_owned(), "UNAVAILABLE".to_owned()));
        let head = answer.response(true, Reason::Fault).head;
        assert_eq!((head.status, head.fields.text(Name::GrpcStatus)), (StatusCode::OK, Some("14")));
        assert_eq!(head.fields.text(Name::GrpcMessage), Some("back soon"));
        answer.headers.push((http::header::CONTENT_TYPE, HeaderValue::from_static("text/html")));
        let head = answer.response(false, Reason::Fault).head;
        assert_eq!(head.fields.all(Name::ContentType).collect::<Vec<_>>(), [b"text/html"]);
    }
}
