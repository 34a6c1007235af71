//! Why the proxy answered a request itself, or ended an exchange: one closed list. A reason's name is the `leno-reason`
//! header, the access log's field, the metrics' label and the span's `error.type`; docs/reasons.md is this list.

use http::StatusCode;
use leno_proto::grpc;

macro_rules! reasons {
    ($($variant:ident $name:literal $status:expr, $grpc:expr, $meaning:literal;)*) => {
        /// Why. The order is that of docs/reasons.md.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $variant,)*
        }

        impl Reason {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in header, log and metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Status of an answer for this reason; None: there is no answer, the exchange or connection just ends.
            pub const fn status(self) -> Option<StatusCode> {
                match self {
                    $(Self::$variant => $status,)*
                }
            }

            /// The gRPC code of an answer for this reason.
            pub const fn grpc(self) -> Option<GrpcCode> {
                match self {
                    $(Self::$variant => $grpc,)*
                }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                }
            }
        }
    };
}

/// Codes that the proxy answers with, <https://grpc.io/docs/guides/status-codes/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcCode {
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
    Internal,
    Unavailable,
}

impl GrpcCode {
    /// As `grpc-status` says it.
    pub const fn number(self) -> &'static str {
        match self {
            Self::DeadlineExceeded => "4",
            Self::PermissionDenied => "7",
            Self::ResourceExhausted => "8",
            Self::Unimplemented => "12",
            Self::Internal => "13",
            Self::Unavailable => "14",
        }
    }

    /// As people say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// What a gRPC code is called.
pub(crate) fn grpc_code(code: u32) -> String {
    let name = usize::try_from(code).ok().and_then(|code| grpc::CODES.get(code));
    name.map_or_else(|| format!("gRPC code {code}"), ToString::to_string)
}

const BAD_REQUEST: Option<StatusCode> = Some(StatusCode::BAD_REQUEST);
const FORBIDDEN: Option<StatusCode> = Some(StatusCode::FORBIDDEN);
const NOT_FOUND: Option<StatusCode> = Some(StatusCode::NOT_FOUND);
const TOO_MANY: Option<StatusCode> = Some(StatusCode::TOO_MANY_REQUESTS);
const BODY_TOO_LARGE: Option<StatusCode> = Some(StatusCode::PAYLOAD_TOO_LARGE);
const HEAD_TOO_LARGE: Option<StatusCode> = Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
const INTERNAL: Option<StatusCode> = Some(StatusCode::INTERNAL_SERVER_ERROR);
const BAD_GATEWAY: Option<StatusCode> = Some(StatusCode::BAD_GATEWAY);
const UNAVAILABLE: Option<StatusCode> = Some(StatusCode::SERVICE_UNAVAILABLE);
const TIMEOUT: Option<StatusCode> = Some(StatusCode::GATEWAY_TIMEOUT);

reasons! {
    BadRequest "bad-request" BAD_REQUEST, Some(GrpcCode::Internal),
        "The request is malformed, or two readers could understand it differently (RFC 9112, RFC 9113).";
    Refused "refused" FORBIDDEN, Some(GrpcCode::PermissionDenied),
        "Policy refuses the client: the port is for the mesh alone.";
    NoRule "no-rule" NOT_FOUND, Some(GrpcCode::Unimplemented),
        "Routes exist for the service, and none of their rules matches.";
    InvalidBackend "invalid-backend" INTERNAL, Some(GrpcCode::Internal),
        "The rule's backend or filter cannot be resolved; the route's status says why.";
    Discovery "discovery" UNAVAILABLE, Some(GrpcCode::Unavailable),
        "The destination, or who serves it, could not be asked of the control plane in time.";
    NoEndpoint "no-endpoint" UNAVAILABLE, Some(GrpcCode::Unavailable),
        "The backend has no endpoint that may be used.";
    CircuitOpen "circuit-open" UNAVAILABLE, Some(GrpcCode::Unavailable),
        "The backend's circuit breaker is open; Retry-After says for how long.";
    RetryBudget "retry-budget" UNAVAILABLE, Some(GrpcCode::Unavailable),
        "A try failed, and the retry budget that an XBackendTrafficPolicy sets is spent (GEP-3388).";
    HeadTooLarge "head-too-large" HEAD_TOO_LARGE, Some(GrpcCode::ResourceExhausted),
        "The request's target and header fields are larger than the workload's InboundPolicy allows, or than any may be: 64 KiB, 256 \
         fields.";
    BodyTooLarge "body-too-large" BODY_TOO_LARGE, Some(GrpcCode::ResourceExhausted),
        "The request's body is larger than the workload's InboundPolicy allows.";
    RateLimit "rate-limit" TOO_MANY, Some(GrpcCode::ResourceExhausted),
        "The client has used up a rate limit of the workload; Retry-After says until when.";
    Overload "overload" UNAVAILABLE, Some(GrpcCode::Unavailable),
        "A limit was reached; the answer's text names it. The application never saw the request.";
    Connect "connect" BAD_GATEWAY, Some(GrpcCode::Unavailable),
        "No connection could be made to any endpoint that was tried.";
    Tls "tls" BAD_GATEWAY, Some(GrpcCode::Unavailable),
        "The endpoint did not prove the identity that it must have, or the handshake failed.";
    Reset "reset" BAD_GATEWAY, Some(GrpcCode::Unavailable),
        "The endpoint broke off, before its answer (then this is the answer) or in the middle of it.";
    Cors "cors" FORBIDDEN, None,
        "A preflight came from an origin that the route does not allow.";
    Fault "fault" None, None,
        "A fault made on purpose; the FaultPolicy says which status it has.";
    DirectResponse "direct-response" None, None,
        "A RoutePolicy spells the answer out, its status too.";
    Deadline "deadline" TIMEOUT, Some(GrpcCode::DeadlineExceeded),
        "The client's deadline had passed before the request was worked on: nobody waits for an answer.";
    RequestTimeout "request-timeout" TIMEOUT, Some(GrpcCode::DeadlineExceeded),
        "Time ran out for the request, all tries together.";
    ResponseTimeout "response-timeout" TIMEOUT, Some(GrpcCode::DeadlineExceeded),
        "Time ran out for the head of the answer, all tries together.";
    TryTimeout "try-timeout" TIMEOUT, Some(GrpcCode::DeadlineExceeded),
        "Time ran out for the last try.";
    Idle "idle" TIMEOUT, Some(GrpcCode::DeadlineExceeded),
        "Not one byte moved either way for the longest time allowed.";
    ClientLeft "client-left" None, None,
        "The client left before the answer was complete.";
    LateHttp "late-http" None, None,
        "A connection taken for opaque bytes turned out to be HTTP, and was cut.";
    Aborted "aborted" None, None,
        "The connection was cut because the proxy ended.";
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The table in docs/reasons.md. After a change: put what this test prints there.
    #[test]
    fn the_documentation_is_this_list() {
        let mut table = String::from("| `leno-reason` | HTTP | gRPC | Meaning |\n|---|---|---|---|\n");
        for reason in Reason::ALL {
            let status = reason.status().map_or_else(|| "–".to_owned(), |status| status.as_u16().to_string());
            let grpc = reason.grpc().map_or("–", GrpcCode::as_str);
            table.push_str(&format!("| `{reason}` | {status} | {grpc} | {} |\n", reason.meaning()));
        }
        let page = include_str!("../../docs/reasons.md");
        assert!(page.contains(&table), "put this into docs/reasons.md:\n{table}");
    }

    #[test]
    fn names_are_distinct() {
        let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(Reason::ALL.len() <= crate::telemetry::REASONS, "each is counted by its own name");
    }
}
