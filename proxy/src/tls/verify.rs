//! Verification of a peer: chain to the trust bundle (webpki), then its one SPIFFE URI name.
//!
//! Names are read only after the chain held. Nothing else in a certificate (common name, DNS names)
//! says who the peer is.

use std::{fmt, sync::Arc};

use leno_proto::{CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT, spiffe::SpiffeId};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

/// The mesh's trust anchors and the trust domain they stand for. Immutable, cheap to clone, never empty.
#[derive(Clone)]
pub struct TrustBundle {
    trust_domain: Arc<str>,
    anchors: Anchors,
}

/// Why a trust bundle cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBundle {
    #[error("the trust bundle holds no certificate")]
    Empty,
    #[error("certificate {index} of the trust bundle cannot be read: {reason}")]
    Certificate { index: usize, reason: String },
    #[error("the trust bundle is for trust domain {actual:?}, this workload is in {expected:?}")]
    TrustDomain { expected: String, actual: String },
}

impl TrustBundle {
    /// Reads `anchors`, DER certificates.
    ///
    /// # Errors
    /// If there is none, or one of them is not a certificate.
    pub fn new(trust_domain: &str, anchors: &[impl AsRef<[u8]>]) -> Result<Self, InvalidBundle> {
        Ok(Self { trust_domain: trust_domain.into(), anchors: Anchors::new(anchors)? })
    }

    /// "cluster.local"
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Whether both hold the same certificates in the same order.
    pub fn same_as(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.anchors.der == other.anchors.der
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({}, {} anchors)", self.trust_domain, self.anchors.der.len())
    }
}

/// Trust anchors, as certificates (to compare) and as webpki reads them.
#[derive(Clone)]
pub(super) struct Anchors {
    der: Arc<[Vec<u8>]>,
    parsed: Arc<[TrustAnchor<'static>]>,
}

impl Anchors {
    pub(super) fn new(certificates: &[impl AsRef<[u8]>]) -> Result<Self, InvalidBundle> {
        if certificates.is_empty() {
            return Err(InvalidBundle::Empty);
        }
        let mut parsed = Vec::with_capacity(certificates.len());
        for (index, der) in certificates.iter().enumerate() {
            let certificate = CertificateDer::from(der.as_ref());
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| InvalidBundle::Certificate { index, reason: error.to_string() })?;
            parsed.push(anchor.to_owned());
        }
        Ok(Self { der: certificates.iter().map(|der| der.as_ref().to_vec()).collect(), parsed: parsed.into() })
    }
}

/// Which identities a verifier lets through.
#[derive(Debug, Clone)]
enum Accepted {
    /// Any workload of the trust domain. Which one it must be is checked by who connects.
    TrustDomain(Arc<str>),
    /// The control plane; of any trust domain if none is known yet.
    ControlPlane(Option<Arc<str>>),
}

/// Why a certificate whose chain holds is refused. Travels through rustls inside [`OtherError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("trust domain {0:?} is not ours")]
    TrustDomain(String),
    #[error("{0}")]
    NotAnIdentity(String),
    #[error("{0} is not the control plane")]
    NotControlPlane(SpiffeId),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Verifies clients and servers of the mesh.
pub(super) struct Verifier {
    anchors: Anchors,
    accepted: Accepted,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn workloads(bundle: &TrustBundle, algorithms: WebPkiSupportedAlgorithms) -> Arc<Self> {
        let accepted = Accepted::TrustDomain(bundle.trust_domain.clone());
        Arc::new(Self { anchors: bundle.anchors.clone(), accepted, algorithms })
    }

    pub(super) fn control_plane(bundle: &TrustBundle, algorithms: WebPkiSupportedAlgorithms) -> Arc<Self> {
        let accepted = Accepted::ControlPlane(Some(bundle.trust_domain.clone()));
        Arc::new(Self { anchors: bundle.anchors.clone(), accepted, algorithms })
    }

    pub(super) fn first_contact(anchors: Anchors, algorithms: WebPkiSupportedAlgorithms) -> Arc<Self> {
        Arc::new(Self { anchors, accepted: Accepted::ControlPlane(None), algorithms })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let leaf = EndEntityCert::try_from(leaf).map_err(refused_by_webpki)?;
        leaf.verify_for_usage(self.algorithms.all, &self.anchors.parsed, intermediates, now, usage, None, None)
            .map_err(refused_by_webpki)?;
        let id = only_identity(&leaf)?;
        match &self.accepted {
            Accepted::TrustDomain(ours) | Accepted::ControlPlane(Some(ours)) if id.trust_domain() != &**ours => {
                Err(Refusal::TrustDomain(id.trust_domain().to_owned()).into())
            }
            Accepted::ControlPlane(_) if !is_control_plane(&id) => Err(Refusal::NotControlPlane(id).into()),
            Accepted::TrustDomain(_) | Accepted::ControlPlane(_) => Ok(()),
        }
    }
}

/// The identity in a certificate whose chain was verified by the handshake.
pub(super) fn identity_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Refusal> {
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| Refusal::NotAnIdentity(error.to_string()))?;
    only_identity(&leaf)
}

/// The one URI name, which must be an identity (SPIFFE X.509-SVID 2: exactly one URI).
fn only_identity(leaf: &EndEntityCert<'_>) -> Result<SpiffeId, Refusal> {
    let mut names = leaf.valid_uri_names();
    match (names.next(), names.next()) {
        (Some(name), None) => name.parse::<SpiffeId>().map_err(|invalid| Refusal::NotAnIdentity(invalid.to_string())),
        (None, _) => Err(Refusal::NotAnIdentity("it has no URI name".to_owned())),
        (Some(_), Some(_)) => Err(Refusal::NotAnIdentity("it has more than one URI name".to_owned())),
    }
}

fn is_control_plane(id: &SpiffeId) -> bool {
    id.namespace() == CONTROL_PLANE_NAMESPACE && id.service_account() == CONTROL_PLANE_SERVICE_ACCOUNT
}

fn refused_by_webpki(error: webpki::Error) -> Error {
    use webpki::Error as W;
    let reason = match error {
        W::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        W::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        // Another mesh's root may bear the same name as ours: then it is the signature that tells them apart.
        W::UnknownIssuer | W::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        W::BadDer | W::BadDerTime | W::TrailingData(_) => CertificateError::BadEncoding,
        other => return Refusal::NotAnIdentity(other.to_string()).into(),
    };
    Error::InvalidCertificate(reason)
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?}, {} anchors)", self.accepted, self.anchors.der.len())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Clients have one certificate: a hint would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
