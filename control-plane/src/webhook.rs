//! The API server's questions: is this Pod to be injected, and is this object of ours right.
//!
//! [`inject`] decides what becomes of a Pod (pure), by [`settings`]; [`validate`] reads an object as the [`crate::model`] does.
//! [`serve`] answers over HTTPS with a certificate that [`certificates`] makes, renews and makes known.
//!
//! Both stand beside the rest of the control plane: they need neither its world nor its authority, so that Pods can be
//! made while something there is wrong.

pub(crate) mod admission;
pub mod certificates;
pub mod inject;
mod patch;
pub mod ports;
pub mod serve;
pub mod settings;
mod validate;

/// Everything that has a bound here, by name.
pub mod limits {
    use std::time::Duration;

    /// Connections of API servers at once; one more waits.
    pub const CONNECTIONS: usize = 256;
    /// A question: an object (etcd takes 1.5 MiB), twice when it is an update.
    pub const REQUEST_BYTES: usize = 7 << 20;
    /// A client's part of the TLS handshake.
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
    /// From the moment a question is waited for to the end of its head.
    pub const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
    /// A question, from its head to its answer (API servers wait 10 s unless told otherwise).
    pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
    /// Between looks at the certificate, its Secret and the webhook configurations.
    pub const CERTIFICATE_CHECK: Duration = Duration::from_secs(30);
    /// Wait after a failure to accept.
    pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
    /// The same as long as there is no certificate.
    pub const CERTIFICATE_RETRY: Duration = Duration::from_secs(1);
    /// Names of Pods' containers, ports and probes that are read of one Pod, in bytes of what the proxy is told of them.
    pub const PROBES_BYTES: usize = 64 * 1024;
}
