//! Status codes of gRPC, by number and name (<https://grpc.io/docs/guides/status-codes/>), and what they are in HTTP.

/// Names by code.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The code of a name.
pub fn code(name: &str) -> Option<u16> {
    CODES.iter().position(|known| *known == name).and_then(|code| u16::try_from(code).ok())
}

/// What a gRPC client takes an HTTP status for (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>);
/// a success is one.
pub fn of_http(status: u16) -> u16 {
    match status {
        200..=299 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The HTTP status that comes nearest (google.rpc.Code).
pub fn to_http(code: u16) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!((code("OK"), code("UNAVAILABLE"), code("UNAUTHENTICATED")), (Some(0), Some(14), Some(16)));
        assert_eq!((code("unavailable"), code("")), (None, None));
        assert_eq!((of_http(503), of_http(418), of_http(204)), (14, 2, 0));
        assert_eq!((to_http(14), to_http(13), to_http(99)), (503, 500, 500));
    }
}
