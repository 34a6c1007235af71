//! The control protocol, `leno.v1`: generated code, and what both sides must spell the same way: a
//! workload's identity, the protocols spoken between proxies, and which headers and patterns policy may use.

pub mod alpn;
pub mod capability;
pub mod grpc;
pub mod headers;
pub mod pattern;
pub mod rate_limit;
pub mod spiffe;

/// Generated from `leno/v1/*.proto`; the comments there are the documentation.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("leno.v1");
}

/// The identity of the control plane, within the trust domain.
pub const CONTROL_PLANE_NAMESPACE: &str = "leno-system";
/// See [`CONTROL_PLANE_NAMESPACE`].
pub const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "leno";
