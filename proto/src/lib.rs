//! The control protocol, `leno.v1`: generated code, and the two words both sides must spell the
//! same way: a workload's identity and the protocols spoken between proxies.

pub mod alpn;
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
