//! The API server's questions: is this Pod to be injected, and is this object of ours right.
//!
//! [`inject`] decides what becomes of a Pod (pure), by [`settings`]; [`validate`] reads an object as the [`crate::model`] does.
//! [`serve`] answers over HTTPS with a certificate that [`certificates`] makes, renews and makes known.
//!
//! Both need neither the control plane's world nor its authority to answer. They are asked once it is ready, as the
//! Service leads to what is ready only.

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

    /// Connections at once; for one more, another is closed.
    pub const CONNECTIONS: usize = 256;
    /// A question: an object (etcd takes 1.5 MiB), twice when it is an update.
    pub const REQUEST_BYTES: usize = 7 << 20;
    /// KiB of questions that are being read at once.
    pub const BODIES_KIB: usize = 64 * 1024;
    /// A client's part of the TLS handshake.
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
    /// From the moment a question is waited for to the end of its head.
    pub const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
    /// A question, from the end of its head to its last byte: API servers send it at once.
    pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
    /// Between looks at the certificate, its Secret and the webhook configurations.
    pub const CERTIFICATE_CHECK: Duration = Duration::from_secs(30);
    /// Wait after a failure to accept.
    pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
    /// The same as long as there is no certificate.
    pub const CERTIFICATE_RETRY: Duration = Duration::from_secs(1);
    /// Names of Pods' containers, ports and probes that are read of one Pod, in bytes of what the proxy is told of them.
    pub const PROBES_BYTES: usize = 64 * 1024;
}
