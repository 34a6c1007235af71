//! A throw-away certificate authority for tests.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use leno_proto::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::{Credentials, MeshProtocol};

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Leno root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A leaf for `id`, valid from an hour ago for an hour more.
    pub(crate) fn issue(&self, id: &str) -> Leaf {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        self.issue_with(&[id], now - hour, now + hour, true)
    }

    pub(crate) fn issue_with(&self, uris: &[&str], from: SystemTime, to: SystemTime, client: bool) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let leaf = self.certify(uris, from, to, client, &key);
        Leaf { chain: vec![leaf], key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() }
    }

    /// A leaf for somebody else's key.
    pub(crate) fn certify(
        &self,
        uris: &[&str],
        from: SystemTime,
        to: SystemTime,
        client: bool,
        key: &impl PublicKeyData,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.not_before = from.into();
        params.not_after = to.into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        // As the control plane names a Pod: peers pass over what they do not know.
        let pod = CustomExtension::from_oid_content(&[1, 2, 840, 113_556, 1, 8000, 2554, 1], vec![0x05, 0x00]);
        params.custom_extensions = vec![pod];
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    /// Accepts as the control plane does: HTTP/2, with a client certificate or without.
    pub(crate) fn control_plane(&self) -> TlsAcceptor {
        let leaf = self.issue("spiffe://cluster.local/ns/leno-system/sa/leno");
        let provider = super::config::provider();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der().into()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(leaf.chain, leaf.key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Credentials for `id` that trust this authority.
    pub(crate) fn credentials(&self, id: &SpiffeId) -> Credentials {
        self.issue(id.as_str()).trusting(&[self])
    }
}

pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Leaf {
    pub(crate) fn trusting(self, authorities: &[&Authority]) -> Credentials {
        let anchors: Vec<_> = authorities.iter().map(|authority| authority.der()).collect();
        Credentials::new(self.chain, self.key, &anchors).unwrap()
    }
}

impl Credentials {
    /// As a proxy of another version has them, which accepts nothing else.
    pub(crate) fn knowing(mut self, protocols: &[MeshProtocol]) -> Self {
        let mut server = rustls::ServerConfig::clone(&self.configs.server);
        server.alpn_protocols = protocols.iter().map(|protocol| protocol.alpn().to_vec()).collect();
        self.configs.server = Arc::new(server);
        self
    }
}
