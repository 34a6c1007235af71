//! Answers that the proxy gives itself: why, in words, in `leno-reason`, and in the client's own protocol.

use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};

use super::{Body, exchange::GRPC_STATUS, headers::LENO_REASON};
use crate::error::Error;

const GRPC_MESSAGE: http::HeaderName = http::HeaderName::from_static("grpc-message");

/// The answer to a request that failed with `error`. gRPC clients get a trailers-only answer, which is 200.
pub(crate) fn failure(error: &Error, grpc: bool, version: Version) -> Response<Body> {
    let mut response = Response::default();
    let text = error.to_string();
    if grpc {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(grpc_code(error)));
        headers.insert(GRPC_MESSAGE, grpc_message(&text));
    } else {
        *response.status_mut() = error.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        *response.body_mut() = Body::full(format!("leno: {text}\n"));
    }
    let headers = response.headers_mut();
    headers.insert(LENO_REASON, HeaderValue::from_static(error.reason()));
    if error.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // After a bad request, what follows on the connection cannot be trusted to begin where we think; and what cannot be
    // discovered now may be found otherwise by the client's next connection, also that it is outside the mesh. Who is
    // refused must come through the mesh, on a connection of its own.
    if matches!(error, Error::BadRequest(_) | Error::Discovery(_) | Error::Refused(_)) && version != Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// gRPC status codes, as their header says them.
fn grpc_code(error: &Error) -> &'static str {
    match error {
        Error::RequestTimeout | Error::TryTimeout => "4",
        Error::Refused(_) => "7",
        Error::NoRule => "12",
        Error::BadRequest(_) | Error::InvalidBackend(_) => "13",
        Error::Discovery(_)
        | Error::NoEndpoint(_)
        | Error::Connect { .. }
        | Error::Tls { .. }
        | Error::Reset { .. }
        | Error::Overload(_) => "14",
    }
}

/// Percent-encoded as gRPC over HTTP/2 demands: printable ASCII but for '%'.
fn grpc_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::try_from(encoded).unwrap_or_else(|_| HeaderValue::from_static("failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_clients_get_status_reason_and_words() {
        let response = failure(&Error::NoEndpoint("shop/cart:80".into()), false, Version::HTTP_11);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[LENO_REASON], "no-endpoint");
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert!(!response.headers().contains_key(CONNECTION));
        for last in [Error::BadRequest("no Host"), Error::Discovery("shop.shop:80".into()), Error::Refused("strict")] {
            assert_eq!(failure(&last, false, Version::HTTP_11).headers()[CONNECTION], "close");
            assert!(!failure(&last, false, Version::HTTP_2).headers().contains_key(CONNECTION));
        }
    }

    #[test]
    fn grpc_clients_get_trailers_only() {
        let response = failure(&Error::RequestTimeout, true, Version::HTTP_2);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            (&response.headers()[GRPC_STATUS], &response.headers()[GRPC_MESSAGE]),
            (&HeaderValue::from_static("4"), &HeaderValue::from_static("request timeout"),)
        );
        assert_eq!(grpc_message("100 % größer\n"), "100 %25 gr%C3%B6%C3%9Fer%0A");
    }
}
