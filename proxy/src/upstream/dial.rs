//! Makes connections to endpoints: TCP, then mesh TLS if the endpoint has an identity, and the word of its proxy that the
//! application has taken opaque bytes, within one time for all. An endpoint with an identity is never reached in plaintext.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::io::AsyncReadExt as _;

use super::{
    Endpoint,
    bulkhead::{Place, What},
};
use crate::{
    error::Error,
    net::{self, Io},
    telemetry::access_log::rfc3339,
    tls::{CredentialStore, MeshProtocol, TlsError},
};

/// What a worker's connections are made with.
pub struct Dialer {
    mark: Option<u32>,
    credentials: Arc<CredentialStore>,
}

/// A new connection.
pub struct Dialed {
    pub io: Box<dyn Io>,
    /// What it carries: as asked, or [`MeshProtocol::Http1`] if the peer knows no [`MeshProtocol::Http1Mux`], or
    /// [`MeshProtocol::Tcp`] if it knows no [`MeshProtocol::TcpReady`].
    pub protocol: MeshProtocol,
    /// Epoch of the credentials it was made with; None: plaintext.
    pub epoch: Option<u64>,
    /// Within the backend's limit of connections, as long as this lives.
    pub place: Option<Place>,
}

/// Why a connection could not be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    #[error("{0}")]
    Connect(String),
    #[error("{0}")]
    Tls(String),
    /// The peer carries one request at a time: asked in the same way again, it is the same again.
    #[error("the peer takes no streams")]
    NoStreams,
    /// This proxy lacks what it needs to connect; the endpoint is not to blame.
    #[error("{0}")]
    Own(String),
    /// The backend has as many connections as policy lets it have.
    #[error("limit reached: {limit} of {backend}", limit = What::Connection.as_str())]
    Full { backend: Arc<str> },
}

impl Dialer {
    pub fn new(mark: Option<u32>, credentials: Arc<CredentialStore>) -> Rc<Self> {
        Rc::new(Self { mark, credentials })
    }

    /// Connects to an endpoint; `protocol` is what ALPN says to a mesh peer.
    pub async fn dial(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
        within: Duration,
    ) -> Result<Dialed, DialError> {
        match tokio::time::timeout(within, self.establish(endpoint, protocol, within)).await {
            Ok(dialed) => dialed,
            Err(_) => Err(DialError::Connect(format!("no connection within {within:?}"))),
        }
    }

    async fn establish(
        &self,
        endpoint: &Endpoint,
        protocol: MeshProtocol,
        within: Duration,
    ) -> Result<Dialed, DialError> {
        let Some(identity) = &endpoint.identity else {
            let tcp = net::connect::connect(endpoint.address, self.mark, within).await?;
            return Ok(Dialed { io: Box::new(tcp), protocol, epoch: None, place: None });
        };
        let credentials = self.credentials.current().ok_or(TlsError::NoCredentials)?;
        if credentials.not_after <= SystemTime::now() {
            return Err(TlsError::OwnExpired(rfc3339(credentials.not_after)).into());
        }
        let tcp = net::connect::connect_peer(endpoint.address, self.mark, within).await?;
        let (mut tls, protocol) = credentials.connect(tcp, identity, protocol).await?;
        if protocol == MeshProtocol::TcpReady {
            taken(&mut tls).await?;
        }
        Ok(Dialed { io: Box::new(tls), protocol, epoch: Some(credentials.epoch), place: None })
    }

    /// Whether a connection made in `epoch` may carry new requests: certificates have not been rotated since.
    pub fn is_current(&self, epoch: Option<u64>) -> bool {
        epoch.is_none_or(|epoch| self.credentials.current().is_some_and(|current| current.epoch == epoch))
    }
}

/// Waits for the peer's word that its application has taken the connection.
async fn taken(stream: &mut impl Io) -> Result<(), DialError> {
    match stream.read_u8().await {
        Ok(leno_proto::alpn::READY) => Ok(()),
        Ok(other) => Err(DialError::Tls(format!("the peer began opaque bytes with {other}"))),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(DialError::Connect("its proxy ended the connection before the application took it".to_owned()))
        }
        // An alert: that it refuses us is known only now.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err(DialError::Tls(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

impl DialError {
    /// The error of a request that needed the connection.
    pub fn at(self, endpoint: &Endpoint) -> Error {
        let endpoint = endpoint.address.to_string();
        match self {
            Self::Connect(reason) => Error::Connect { endpoint, reason },
            Self::Full { backend } => Error::Limit { limit: What::Connection.as_str(), backend },
            error => Error::Tls { endpoint, reason: error.to_string() },
        }
    }

    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_) | Self::Full { .. })
    }
}

impl From<std::io::Error> for DialError {
    fn from(error: std::io::Error) -> Self {
        Self::Connect(error.to_string())
    }
}

impl From<TlsError> for DialError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::NoCredentials | TlsError::OwnExpired(_) => Self::Own(error.to_string()),
            error => Self::Tls(error.to_string()),
        }
    }
}
