//! Certificates that the control plane would not have issued, and clients that show them.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::mesh::Mesh;

/// Holds an issuer's key.
pub struct Forger {
    issuer: Issuer<'static, KeyPair>,
    /// Of the issuer, up to but without the root.
    chain: Vec<CertificateDer<'static>>,
}

impl Forger {
    /// Has stolen the issuer's key of this mesh.
    pub fn of(mesh: &Mesh) -> Result<Self> {
        let read = |name: &str| fs::read_to_string(mesh.state().join(name)).with_context(|| format!("read {name}"));
        let certificate = read("issuer.pem")?;
        let key = KeyPair::from_pem(&read("issuer.key")?)?;
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
        Ok(Self { issuer: Issuer::from_ca_cert_pem(&certificate, key)?, chain })
    }

    /// Is an authority that nobody knows.
    pub fn stranger() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { chain: vec![certificate.der().clone()], issuer: Issuer::new(params, key) })
    }

    /// A client with a certificate for this URI, valid for so long.
    pub fn signed(&self, uri: &str, lifetime: Duration) -> Result<ClientConfig> {
        let now = SystemTime::now();
        self.between(uri, now - Duration::from_secs(60), now + lifetime)
    }

    /// A client whose certificate expired a minute ago.
    pub fn expired(&self, uri: &str) -> Result<ClientConfig> {
        let now = SystemTime::now();
        self.between(uri, now - Duration::from_secs(600), now - Duration::from_secs(60))
    }

    fn between(&self, uri: &str, from: SystemTime, to: SystemTime) -> Result<ClientConfig> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (from.into(), to.into());
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = [vec![certificate.der().clone()], self.chain.clone()].concat();
        trusting_client(Some((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())))
    }
}

/// A mesh client over HTTP/1.1 that trusts any server, with this certificate and key, or none.
pub fn trusting_client(
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig> {
    trusting_client_with(aws_lc_rs::default_provider(), identity)
}

/// The same, with its own choice of cryptography.
pub fn trusting_client_with(
    provider: CryptoProvider,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig> {
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![leno_proto::alpn::HTTP1.to_vec()];
    config.enable_sni = false;
    Ok(config)
}

/// Takes any server for the right one: what is under test is the server's judgement.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
