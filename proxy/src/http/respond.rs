//! Answers that the proxy gives itself: why, in words, in `leno-reason`, and in the client's own protocol.

use http::{Method, StatusCode, Version};

use super::{
    Body, Response,
    head::{Name, ResponseHead},
};
use crate::{error::Error, reason::Reason};

/// The answer to a request that failed with `error`, for `reason` (mostly the error's own). gRPC clients get a trailers-only answer, which is 200.
pub(crate) fn failure(error: &Error, reason: Reason, grpc: bool, version: Version) -> Response {
    let text = error.to_string();
    let (mut head, body) = if grpc {
        (grpc_status(error.grpc().number(), &text), Body::empty())
    } else {
        let mut head = ResponseHead::new(error.status());
        head.fields.push_known(Name::ContentType, b"text/plain; charset=utf-8");
        (head, Body::full(format!("leno: {text}\n")))
    };
    head.fields.push_known(Name::LenoReason, reason.as_str().as_bytes());
    if let Some(seconds) = error.retry_after() {
        head.fields.push_known(Name::RetryAfter, seconds.to_string().as_bytes());
    }
    if let Error::RateLimited(limited) = error {
        head.fields.push(b"ratelimit-policy", limited.policy.as_bytes());
        head.fields.push(b"ratelimit", limited.standing.as_bytes());
    }
    // After a bad request, what follows on the connection cannot be trusted to begin where we think; and what cannot be
    // discovered now may be found otherwise by the client's next connection, also that it is outside the mesh. Who is
    // refused must come through the mesh, on a connection of its own.
    if matches!(error, Error::BadRequest(_) | Error::Discovery(_) | Error::Refused(_)) && version != Version::HTTP_2 {
        head.fields.push_known(Name::Connection, b"close");
    }
    Response { head, body }
}

/// A trailers-only answer of gRPC. `code`: by number.
pub(crate) fn grpc_status(code: &str, message: &str) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.fields.push_known(Name::ContentType, b"application/grpc");
    head.fields.push_known(Name::GrpcStatus, code.as_bytes());
    head.fields.push_known(Name::GrpcMessage, grpc_message(message).as_bytes());
    head
}

/// Percent-encoded as gRPC over HTTP/2 demands: printable ASCII but for '%'.
fn grpc_message(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Whether a response has no body whatever its fields say (RFC 9110 6.4.1).
pub(super) fn has_no_body(status: StatusCode, method: &Method) -> bool {
    *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: &Error, grpc: bool, version: Version) -> Response {
        failure(error, error.reason(), grpc, version)
    }

    #[test]
    fn http_clients_get_status_reason_and_words() {
        let head = told(&Error::NoEndpoint("shop/cart:80".into()), false, Version::HTTP_11).head;
        assert_eq!(head.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(head.fields.text(Name::LenoReason), Some("no-endpoint"));
        assert_eq!(head.fields.text(Name::RetryAfter), Some("1"));
        assert!(!head.fields.has(Name::Connection));
        for last in [Error::BadRequest("no Host"), Error::Discovery("shop.shop:80".into()), Error::Refused("strict")] {
            let closes = |version| told(&last, false, version).head.fields.text(Name::Connection) == Some("close");
            assert!(closes(Version::HTTP_11) && !closes(Version::HTTP_2));
        }
    }

    #[test]
    fn grpc_clients_get_trailers_only() {
        let head = told(&Error::RequestTimeout, true, Version::HTTP_2).head;
        assert_eq!(head.status, StatusCode::OK);
        let told = (head.fields.text(Name::GrpcStatus), head.fields.text(Name::GrpcMessage));
        assert_eq!(told, (Some("4"), Some("request timeout")));
        assert_eq!(grpc_message("100 % größer\n"), "100 %25 gr%C3%B6%C3%9Fer%0A");
    }
}
