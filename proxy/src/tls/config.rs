//! How TLS is spoken in the mesh: the rustls configurations, every choice spelled out.

use std::sync::Arc;

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};

use super::{
    MeshProtocol,
    verify::{Anchors, TrustBundle, Verifier},
};

/// AWS-LC with a post-quantum hybrid first (the first group is the one whose share is sent, so it is
/// what two proxies use), and AES-128-GCM first, the fastest where there is AES in hardware.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}

/// Client configurations and the server's, for one certificate under one trust bundle.
pub(super) struct Configs {
    pub(super) http1: Arc<ClientConfig>,
    pub(super) http1_mux: Arc<ClientConfig>,
    pub(super) http2: Arc<ClientConfig>,
    pub(super) tcp: Arc<ClientConfig>,
    pub(super) tcp_ready: Arc<ClientConfig>,
    pub(super) control_plane: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

impl Configs {
    pub(super) fn new(key: &Arc<CertifiedKey>, bundle: &TrustBundle) -> Result<Self, rustls::Error> {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let workloads = Verifier::workloads(bundle, algorithms);
        let control_plane = Verifier::control_plane(bundle, algorithms);
        let own = Arc::new(SingleCertAndKey::from(key.clone()));
        let client = |protocol: MeshProtocol| {
            let offered: Vec<&[u8]> = protocol.offered().iter().map(|protocol| protocol.alpn()).collect();
            client(&provider, workloads.clone(), Some(own.clone()), &offered)
        };
        let http1 = client(MeshProtocol::Http1)?;
        let http1_mux = client(MeshProtocol::Http1Mux)?;
        let http2 = client(MeshProtocol::Http2)?;
        let tcp = client(MeshProtocol::Tcp)?;
        let tcp_ready = client(MeshProtocol::TcpReady)?;
        let control_plane = self::client(&provider, control_plane, Some(own.clone()), &[CONTROL_PLANE_ALPN])?;

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(workloads.clone())
            .with_cert_resolver(own);
        server.alpn_protocols = leno_proto::alpn::ALL.iter().map(|protocol| protocol.to_vec()).collect();
        // A resumed session would not verify the peer's certificate anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        // For `TlsStream`, which seals and opens records itself.
        server.enable_secret_extraction = true;
        Ok(Self { http1, http1_mux, http2, tcp, tcp_ready, control_plane, server: Arc::new(server) })
    }
}

/// gRPC with the control plane is ordinary HTTP/2.
const CONTROL_PLANE_ALPN: &[u8] = b"h2";

/// For the first contact with the control plane, before there is a certificate.
pub(super) fn first_contact(anchors: Anchors) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = provider();
    let verifier = Verifier::first_contact(anchors, provider.signature_verification_algorithms);
    client(&provider, verifier, None, &[CONTROL_PLANE_ALPN])
}

fn client(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
    own: Option<Arc<SingleCertAndKey>>,
    offered: &[&[u8]],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    // For `TlsStream`, which seals and opens records itself.
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn post_quantum_and_aes_128_come_first() {
        let provider = provider();
        assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(provider.cipher_suites[0].suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}
