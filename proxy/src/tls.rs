//! Mesh TLS: TLS 1.3 with both sides' SPIFFE ids verified, and the credentials it runs on.
//!
//! [`CredentialStore`] holds the current [`Credentials`] behind arc-swap: every rotation builds the
//! rustls configurations once; connections made before it live on. [`identity`] fills it.

mod config;
mod handshake;
pub mod identity;
mod record;
mod schedule;
mod store;
mod stream;
pub mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{fmt, io, net::IpAddr, sync::Arc, time::SystemTime};

use leno_proto::spiffe::SpiffeId;
use rustls::{
    AlertDescription, CertificateError, CommonState,
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::UnbufferedServerConnection,
    sign::CertifiedKey,
};
use tokio::net::TcpStream;

pub(crate) use self::stream::READ_BYTES;
use self::{
    config::Configs,
    handshake::Handshake,
    verify::{Anchors, Refusal},
};
pub use self::{
    store::CredentialStore,
    stream::TlsStream,
    verify::{InvalidBundle, TrustBundle},
};
use crate::{config::limits, net::Prefixed};

/// What a mesh connection carries, told by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    Http1,
    /// HTTP/1.1 requests as streams of HTTP/2.
    Http1Mux,
    Http2,
    /// Opaque bytes of peers that do not know [`MeshProtocol::TcpReady`].
    Tcp,
    /// Opaque bytes, which begin with a word of the peer: its application has taken the connection.
    TcpReady,
}

impl MeshProtocol {
    /// The protocol's name in ALPN.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => leno_proto::alpn::HTTP1,
            Self::Http1Mux => leno_proto::alpn::HTTP1_MUX,
            Self::Http2 => leno_proto::alpn::HTTP2,
            Self::Tcp => leno_proto::alpn::TCP,
            Self::TcpReady => leno_proto::alpn::TCP_READY,
        }
    }

    /// What a peer is offered by whom wants this, best first: a peer that knows nothing of streams gets one request at a time,
    /// and one that says nothing of its application is believed that it is there.
    fn offered(self) -> &'static [Self] {
        match self {
            Self::Http1 => &[Self::Http1],
            Self::Http1Mux => &[Self::Http1Mux, Self::Http1],
            Self::Http2 => &[Self::Http2],
            Self::Tcp => &[Self::Tcp],
            Self::TcpReady => &[Self::TcpReady, Self::Tcp],
        }
    }

    fn from_alpn(name: Option<&[u8]>) -> Option<Self> {
        let all = [Self::Http1, Self::Http1Mux, Self::Http2, Self::Tcp, Self::TcpReady];
        all.into_iter().find(|protocol| Some(protocol.alpn()) == name)
    }
}

/// Why a mesh connection could not be made or accepted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no certificate yet: the control plane has not issued one")]
    NoCredentials,
    /// Of our own, at this time. Peers would refuse it, and a TLS 1.3 client hears of that only as a broken connection.
    #[error("our own certificate expired at {0}: the control plane has not renewed it")]
    OwnExpired(String),
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
    /// The peer told that it refused us, with the TLS alert it gave.
    #[error("the peer refused our certificate ({0:?})")]
    Refused(AlertDescription),
    #[error("the peer speaks no mesh protocol that we do")]
    NoProtocol,
    #[error("handshake: {0}")]
    Handshake(io::Error),
    #[error("handshake timed out")]
    Timeout,
}

impl TlsError {
    /// The reason's name, from a fixed set: a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCredentials => "tls-no-credentials",
            Self::OwnExpired(_) => "tls-own-expired",
            Self::WrongIdentity { .. } => "tls-wrong-identity",
            Self::WrongTrustDomain(_) => "tls-wrong-trust-domain",
            Self::Expired => "tls-expired",
            Self::UnknownIssuer => "tls-unknown-issuer",
            Self::NotAnIdentity(_) => "tls-not-an-identity",
            Self::NoCertificate => "tls-no-certificate",
            Self::Refused(_) => "tls-refused-by-peer",
            Self::NoProtocol => "tls-no-protocol",
            Self::Handshake(_) => "tls-handshake",
            Self::Timeout => "tls-timeout",
        }
    }
}

impl From<Refusal> for TlsError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TrustDomain(domain) => Self::WrongTrustDomain(domain),
            Refusal::NotAnIdentity(reason) => Self::NotAnIdentity(reason),
            Refusal::NotControlPlane(id) => {
                Self::WrongIdentity { expected: "the control plane".to_owned(), actual: id.to_string() }
            }
        }
    }
}

/// rustls' errors come inside `io::Error`, in the handshake and, as TLS 1.3 servers verify clients after the client's
/// handshake ended, in the first reads after it too.
impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
            return Self::Handshake(error);
        };
        match cause {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::NoProtocol,
            rustls::Error::AlertReceived(
                alert @ (AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied),
            ) => Self::Refused(*alert),
            rustls::Error::InvalidCertificate(certificate) => match certificate {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                CertificateError::Other(other) => match other.0.downcast_ref::<Refusal>() {
                    Some(refusal) => refusal.clone().into(),
                    None => Self::NotAnIdentity(certificate.to_string()),
                },
                other => Self::NotAnIdentity(other.to_string()),
            },
            _ => Self::Handshake(error),
        }
    }
}

/// One certificate and what was built from it. Immutable.
pub struct Credentials {
    pub id: SpiffeId,
    /// Counts rotations of the certificate and of the trust bundle; pooled connections made under an
    /// older epoch are not reused.
    pub epoch: u64,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    bundle: TrustBundle,
    key: Arc<CertifiedKey>,
    configs: Configs,
}

/// Why an issued certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCredentials {
    #[error("the issued certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the issued certificate does not fit our key: {0}")]
    Key(rustls::Error),
    #[error(transparent)]
    Bundle(#[from] InvalidBundle),
    #[error("TLS cannot be configured: {0}")]
    Tls(rustls::Error),
}

impl Credentials {
    /// Reads an issued chain (leaf first, DER), its key, and the anchors it came with.
    ///
    /// # Errors
    /// If the leaf is not a mesh identity or not that of `key`, or an anchor cannot be read.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        anchors: &[impl AsRef<[u8]>],
    ) -> Result<Self, InvalidCredentials> {
        let unreadable = |reason: &dyn fmt::Display| InvalidCredentials::Certificate(reason.to_string());
        let leaf = chain.first().ok_or_else(|| unreadable(&"the chain is empty"))?;
        let id = verify::identity_of(leaf).map_err(|refusal| unreadable(&refusal))?;
        let (not_before, not_after) = validity_of(leaf)?;
        let bundle = TrustBundle::new(id.trust_domain(), anchors)?;
        let key = config::provider().key_provider.load_private_key(key).map_err(InvalidCredentials::Key)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(InvalidCredentials::Key)?;
        let key = Arc::new(key);
        let configs = Configs::new(&key, &bundle).map_err(InvalidCredentials::Tls)?;
        Ok(Self { id, epoch: 0, not_before, not_after, bundle, key, configs })
    }

    /// The same certificate under another bundle.
    fn under(&self, bundle: TrustBundle) -> Result<Self, InvalidCredentials> {
        let configs = Configs::new(&self.key, &bundle).map_err(InvalidCredentials::Tls)?;
        let (id, key) = (self.id.clone(), self.key.clone());
        Ok(Self { id, epoch: 0, not_before: self.not_before, not_after: self.not_after, bundle, key, configs })
    }

    /// The workload's own certificate (DER), first of its chain.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.key.cert.first().map(AsRef::as_ref)
    }

    /// The trust bundle that peers are verified with.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// TLS over `tcp` to an endpoint that must prove to be `expected`, and what the two agreed on: `protocol`, or
    /// [`MeshProtocol::Http1`] where [`MeshProtocol::Http1Mux`] is not known, and [`MeshProtocol::Tcp`] where
    /// [`MeshProtocol::TcpReady`] is not. Bounded by CONNECT_TIMEOUT by the caller.
    ///
    /// # Errors
    /// If the handshake fails or the peer is somebody else. Nothing has been sent then.
    pub async fn connect(
        &self,
        tcp: TcpStream,
        expected: &SpiffeId,
        protocol: MeshProtocol,
    ) -> Result<(TlsStream<TcpStream>, MeshProtocol), TlsError> {
        let config = match protocol {
            MeshProtocol::Http1 => &self.configs.http1,
            MeshProtocol::Http1Mux => &self.configs.http1_mux,
            MeshProtocol::Http2 => &self.configs.http2,
            MeshProtocol::Tcp => &self.configs.tcp,
            MeshProtocol::TcpReady => &self.configs.tcp_ready,
        };
        let handshake = Done::client(config, tcp).await?;
        // Chain and trust domain held during the handshake; who it is depends on the endpoint.
        let actual = handshake.peer()?;
        if actual != *expected {
            return Err(TlsError::WrongIdentity { expected: expected.to_string(), actual: actual.to_string() });
        }
        let agreed = MeshProtocol::from_alpn(handshake.connection.alpn_protocol());
        let agreed = agreed.filter(|agreed| protocol.offered().contains(agreed)).ok_or(TlsError::NoProtocol)?;
        Ok((handshake.stream()?, agreed))
    }

    /// Accepts mesh TLS within HANDSHAKE_TIMEOUT; a client certificate of the same trust domain is required.
    ///
    /// # Errors
    /// If the handshake fails or takes too long; [`TlsError`] tells why for the log and the counter.
    pub async fn accept(
        &self,
        stream: Prefixed<TcpStream>,
    ) -> Result<(TlsStream<TcpStream>, SpiffeId, MeshProtocol), TlsError> {
        let accept = Done::server(&self.configs.server, stream);
        let handshake = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, accept).await {
            Ok(done) => done?,
            Err(_) => return Err(TlsError::Timeout),
        };
        let peer = handshake.peer()?;
        let protocol = MeshProtocol::from_alpn(handshake.connection.alpn_protocol()).ok_or(TlsError::NoProtocol)?;
        Ok((handshake.stream()?, peer, protocol))
    }

    /// TLS over `tcp` to the control plane of our trust domain, as ourselves; ALPN "h2".
    ///
    /// # Errors
    /// If the handshake fails or the peer is not the control plane.
    pub async fn connect_control_plane(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
        Done::client(&self.configs.control_plane, tcp).await?.stream()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, epoch {}, {:?})", self.id, self.epoch, self.bundle)
    }
}

/// Trust in the control plane before there is a certificate: the anchors of the bundle file.
#[derive(Debug, Clone)]
pub struct FirstContact {
    config: Arc<rustls::ClientConfig>,
}

impl FirstContact {
    /// Reads the anchors out of PEM text.
    ///
    /// # Errors
    /// If it holds no certificate, or one that cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidCredentials> {
        let anchors = CertificateDer::pem_slice_iter(pem)
            .enumerate()
            .map(|(index, der)| der.map_err(|error| InvalidBundle::Certificate { index, reason: error.to_string() }))
            .collect::<Result<Vec<_>, _>>()?;
        let config = config::first_contact(Anchors::new(&anchors)?).map_err(InvalidCredentials::Tls)?;
        Ok(Self { config })
    }

    /// TLS over `tcp` to the control plane of any trust domain under the anchors, without a certificate of ours.
    ///
    /// # Errors
    /// If the handshake fails or the peer is not a control plane.
    pub async fn connect(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
        Done::client(&self.config, tcp).await?.stream()
    }
}

/// A handshake that was made, and whose peer has yet to be looked at.
struct Done<C> {
    connection: Box<C>,
    tcp: TcpStream,
    /// Read beyond the handshake.
    rest: Vec<u8>,
}

impl Done<UnbufferedClientConnection> {
    async fn client(config: &Arc<rustls::ClientConfig>, tcp: TcpStream) -> Result<Self, TlsError> {
        // rustls asks for a name, which is neither sent (no SNI) nor looked at (the verifier reads the SPIFFE id).
        let name = ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into());
        let connection = UnbufferedClientConnection::new(config.clone(), name).map_err(broken)?;
        Self::made(connection, tcp, Vec::new()).await
    }
}

impl Done<UnbufferedServerConnection> {
    async fn server(config: &Arc<rustls::ServerConfig>, stream: Prefixed<TcpStream>) -> Result<Self, TlsError> {
        let connection = UnbufferedServerConnection::new(config.clone()).map_err(broken)?;
        let (first, tcp) = stream.into_parts();
        Self::made(connection, tcp, first.into()).await
    }
}

impl<C: Handshake> Done<C> {
    async fn made(connection: C, mut tcp: TcpStream, mut incoming: Vec<u8>) -> Result<Self, TlsError> {
        // Large, and of no use for longer than the handshake.
        let mut connection = Box::new(connection);
        handshake::make(&mut *connection, &mut tcp, &mut incoming).await?;
        Ok(Self { connection, tcp, rest: incoming })
    }

    fn stream(self) -> Result<TlsStream<TcpStream>, TlsError> {
        let keys = self.connection.finish().map_err(broken)?;
        TlsStream::new(self.tcp, keys, &self.rest).map_err(broken)
    }
}

impl<C: std::ops::Deref<Target: std::ops::Deref<Target = CommonState>>> Done<C> {
    fn peer(&self) -> Result<SpiffeId, TlsError> {
        let leaf = self.connection.peer_certificates().and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
        Ok(verify::identity_of(leaf)?)
    }
}

/// What no peer can cause.
fn broken(error: rustls::Error) -> TlsError {
    TlsError::Handshake(io::Error::other(error))
}

fn validity_of(leaf: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), InvalidCredentials> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| InvalidCredentials::Certificate(error.to_string()))?;
    let validity = certificate.validity();
    Ok((validity.not_before.to_datetime().into(), validity.not_after.to_datetime().into()))
}
