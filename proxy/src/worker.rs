//! One worker thread: a single-threaded runtime, listeners of its own (SO_REUSEPORT), pools and
//! balancers of its own. Everything in [`Worker`] is reached through `Rc`; nothing in it locks.

use std::{rc::Rc, sync::Arc};

use crate::{config::Config, drain::Drain, policy, telemetry, tls, upstream};

/// What the tasks of one worker share.
pub struct Worker {
    /// Process configuration and limits.
    pub config: Arc<Config>,
    /// Policy, shared with the control runtime; read without a lock.
    pub policy: Arc<policy::Store>,
    /// Certificates, shared with the control runtime; read without a lock.
    pub credentials: Arc<tls::CredentialStore>,
    /// Metric handles, access log, tracer.
    pub telemetry: Arc<telemetry::Telemetry>,
    /// Tells connections when to finish.
    pub drain: Drain,
    /// Balancers and pools: this worker's alone.
    pub upstreams: upstream::Upstreams,
}

/// A worker's context, as its tasks hold it.
pub type Context = Rc<Worker>;
