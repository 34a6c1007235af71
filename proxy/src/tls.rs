//! Mesh TLS: TLS 1.3 with both sides' SPIFFE ids verified, and the credentials it runs on.
//!
//! [`CredentialStore`] holds the current [`Credentials`] behind arc-swap: every rotation builds the
//! rustls configurations once; connections made before it live on.

pub mod identity;
pub mod verify;

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;
use leno_proto::spiffe::SpiffeId;
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::net::Prefixed;

/// What a mesh connection carries, told by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    Http1,
    Http2,
    Tcp,
}

/// Why a mesh connection could not be made or accepted. `reason()` is a metric label.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no certificate yet: the control plane has not issued one")]
    NoCredentials,
    #[error("the peer is {actual}, expected {expected}")]
    WrongIdentity { expected: String, actual: String },
    #[error("the peer's trust domain is {0}")]
    WrongTrustDomain(String),
    #[error("the peer's certificate is expired or not yet valid")]
    Expired,
    #[error("the peer's certificate is not from the trust bundle")]
    UnknownIssuer,
    #[error("the peer's certificate is not a mesh identity: {0}")]
    NotAnIdentity(String),
    #[error("the peer presented no certificate")]
    NoCertificate,
    #[error("handshake: {0}")]
    Handshake(#[from] std::io::Error),
    #[error("handshake timed out")]
    Timeout,
}

/// One certificate and what was built from it. Immutable.
pub struct Credentials {
    pub id: SpiffeId,
    /// Counts rotations; pooled connections made under an older epoch are not reused.
    pub epoch: u64,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    // transport: rustls client configs per MeshProtocol, server config, chain + key for the control-plane connection
}

impl Credentials {
    /// TLS over `tcp` to an endpoint that must prove to be `expected`. Bounded by CONNECT_TIMEOUT by the caller.
    pub async fn connect(
        &self,
        _tcp: TcpStream,
        _expected: &SpiffeId,
        _protocol: MeshProtocol,
    ) -> Result<client::TlsStream<TcpStream>, TlsError> {
        todo!("transport")
    }

    /// Accepts mesh TLS within HANDSHAKE_TIMEOUT; a client certificate of the same trust domain is required.
    pub async fn accept(
        &self,
        _stream: Prefixed<TcpStream>,
    ) -> Result<(server::TlsStream<Prefixed<TcpStream>>, SpiffeId, MeshProtocol), TlsError> {
        todo!("transport")
    }
}

/// The credentials in force. Read without a lock.
#[derive(Default)]
pub struct CredentialStore {
    current: ArcSwapOption<Credentials>,
}

impl CredentialStore {
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.load_full()
    }
}
