//! Certificates for contenders that come without a control plane, and for clients that speak to inbound proxies
//! directly: P-256, as all that Leno issues.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// PEM of what lies between the certificates and the root.
    intermediates: String,
}

/// Files of one certificate.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// PEM, the certificate first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

impl Authority {
    /// A new one; its certificate is written to `folder/ca.pem`.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("bench CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        fs::write(folder.join("ca.pem"), certificate.pem()).context("write ca.pem")?;
        Ok(Self { issuer: Issuer::new(params, key), intermediates: String::new() })
    }

    /// That of a Leno control plane, from its state folder.
    pub(crate) fn of_mesh(state: &Path) -> Result<Self> {
        let read = |name: &str| fs::read_to_string(state.join(name)).with_context(|| format!("read {name}"));
        let certificate = read("issuer.pem")?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&read("issuer.key")?)?)?;
        Ok(Self { issuer, intermediates: certificate })
    }

    /// Writes `NAME.pem`, `NAME.key` and, as HAProxy wants them, both in `NAME.both.pem`.
    pub(crate) fn issue(&self, folder: &Path, name: &str, spiffe: &str) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = self::name(name);
        params.subject_alt_names = vec![SanType::URI(spiffe.try_into()?), SanType::DnsName(name.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let chain = params.signed_by(&key, &self.issuer)?.pem() + &self.intermediates;
        let file = |suffix: &str| folder.join(format!("{name}{suffix}"));
        let identity = Identity { certificate: file(".pem"), key: file(".key") };
        fs::write(&identity.certificate, &chain).context("write a certificate")?;
        fs::write(&identity.key, key.serialize_pem()).context("write a key")?;
        fs::write(file(".both.pem"), chain + &key.serialize_pem()).context("write certificate and key")?;
        Ok(identity)
    }
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
