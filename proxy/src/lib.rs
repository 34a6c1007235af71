//! Leno's data plane: the proxy beside each workload.
//!
//! The life of a request, file after file:
//! [`net`] accepts and finds the original destination → [`detect`] what is spoken → [`inbound`] or
//! [`outbound`] → [`policy`] decides the rule → [`upstream`] picks an endpoint and a connection
//! ([`tls`] to its peer) → [`http`] (or [`tcp`]) carries it → [`telemetry`] records it.
//!
//! The life of a policy: [`policy::client`] receives → [`policy::apply`] parses it into runtime form →
//! [`policy::Store`] swaps → the next request sees it, the control plane gets its verdict.
//!
//! Threads: the main thread runs the control runtime (control plane, identity, admin, DNS, telemetry
//! export); each worker thread runs a single-threaded runtime with listeners, pools and balancers of
//! its own ([`worker`]), so that the request path takes no lock.

pub mod admin;
mod alarm;
pub mod app;
mod bell;
pub mod config;
pub mod detect;
pub mod drain;
pub mod error;
pub mod http;
pub mod inbound;
pub mod net;
pub mod outbound;
pub mod policy;
pub mod probes;
pub mod reason;
pub mod redirect;
#[cfg(test)]
mod request_path_tests;
mod small_server;
pub mod tcp;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod upstream;
pub mod worker;
