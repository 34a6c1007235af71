//! TLS to another control plane, as ourselves.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::authority::{Authority, is_control_plane, issue};

/// A connection to the control plane at `address`, each with a certificate of its own.
pub(super) async fn connect(authority: &Authority, address: SocketAddr) -> anyhow::Result<Channel> {
    let config = Arc::new(config(authority)?);
    let tcp = TcpStream::connect(address).await.context("cannot connect")?;
    // Without it, answers are late, and right.
    let _ = tcp.set_nodelay(true);
    // Neither sent (an address is no SNI) nor looked at: the certificate says who it is.
    let name = ServerName::IpAddress(address.ip().into());
    let tls = TlsConnector::from(config).connect(name, tcp).await.context("TLS handshake")?;
    let mut stream = Some(TokioIo::new(tls));
    let hand_over = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        async move { stream }
    });
    let endpoint = Endpoint::from_static("http://control-plane");
    endpoint.connect_with_connector(hand_over).await.context("HTTP/2")
}

fn config(authority: &Authority) -> anyhow::Result<ClientConfig> {
    let material = authority.material();
    let (issued, key) = authority.issue_own(SystemTime::now()).context("cannot issue a certificate")?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for anchor in &material.anchors {
        roots.add(anchor.clone()).context("a trust anchor cannot be used")?;
    }
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let verifier =
        ByIdentity { chain, provider: Arc::clone(&provider), trust_domain: authority.trust_domain().to_owned() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(issued.chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Believes whoever has the control plane's identity. Certificates of the mesh are for both sides of a connection, and have no
/// DNS name: the chain is verified as a client's is.
#[derive(Debug)]
struct ByIdentity {
    chain: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    trust_domain: String,
}

impl ByIdentity {
    fn is_control_plane(&self, leaf: &CertificateDer<'_>) -> anyhow::Result<()> {
        let (identity, _) = issue::identity(leaf)?;
        if identity.trust_domain() != self.trust_domain || !is_control_plane(&identity) {
            bail!("it is {identity}, not the control plane of {}", self.trust_domain);
        }
        Ok(())
    }
}

impl ServerCertVerifier for ByIdentity {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.chain.verify_client_cert(leaf, intermediates, now)?;
        self.is_control_plane(leaf).map_err(|error| rustls::Error::General(format!("{error:#}")))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
