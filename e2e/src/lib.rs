//! What the end-to-end tests stand on: the real binaries as processes, and the world around them.
//!
//! [`mesh`] runs a control plane and sidecars; [`server`] and [`load`] are the applications on both sides of them;
//! [`netns`] gives programs hosts of their own; [`collector`] and [`dns`] are what sidecars talk to. Nothing here
//! looks inside the programs under test: it sees what an operator sees.

pub mod binaries;
pub mod client;
pub mod collector;
pub mod demo;
pub mod dns;
pub mod forge;
pub mod kubernetes;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod operator;
pub mod ports;
pub mod process;
pub mod raw;
pub mod relay;
pub mod scenario;
pub mod scripted;
pub mod server;
pub mod tcp;
pub mod transparent;
pub mod wait;

/// Generated from `proto/echo.proto`: the tests' own gRPC service.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod echo {
    tonic::include_proto!("leno.e2e");
}
