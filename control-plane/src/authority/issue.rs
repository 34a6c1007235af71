//! Makes certificates. No files, no clock: `now` is given.
//!
//! Workloads' certificates follow the X.509-SVID standard: one URI SAN, no subject, key usage digital signature,
//! extended usage client and server.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use leno_proto::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, CertificateSigningRequestDer, UnixTime},
    server::WebPkiClientVerifier,
};
use time::OffsetDateTime;
use x509_parser::asn1_rs::SerializeError;

use super::bound_pod::BoundPod;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The life of a root made here.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The life of an issuer made here.
pub const ISSUER_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates are valid from a little before they are made, for clocks that are behind; at most this much.
const SKEW: Duration = Duration::from_secs(60);
/// Largest certificate request accepted, in bytes.
const MAX_CSR: usize = 16 * 1024;

/// Root and issuer, loaded and checked. Immutable.
pub struct Material {
    /// Trusted; the first is the root of the issuer.
    pub anchors: Vec<CertificateDer<'static>>,
    pub anchors_not_after: SystemTime,
    pub root_key: Option<KeyPair>,
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// The issuer and its intermediates, without the root; empty: the root signs workloads' certificates itself.
    pub chain: Vec<CertificateDer<'static>>,
    pub issuer_not_before: SystemTime,
    pub issuer_not_after: SystemTime,
}

impl Material {
    /// Of certificates that come with the key of one of them: `chain` is the issuer, which the key belongs to, and its
    /// intermediates; `anchors` are what is trusted, the issuer's root first. An issuer that is an anchor signs as the root.
    ///
    /// # Errors
    /// If the key is not the issuer's, or a certificate cannot be read.
    pub fn of(
        anchors: Vec<CertificateDer<'static>>,
        mut chain: Vec<CertificateDer<'static>>,
        key: KeyPair,
    ) -> anyhow::Result<Self> {
        let certificate = chain.first().context("there is no issuer's certificate")?.clone();
        super::files::check_belongs(&key, &certificate)?;
        let root = anchors.first().context("there is no trust anchor")?;
        let (_, anchors_not_after) = validity(root).context("the root")?;
        let (issuer_not_before, issuer_not_after) = validity(&certificate).context("the issuer's certificate")?;
        chain.retain(|certificate| !anchors.contains(certificate));
        let issuer = Issuer::from_ca_cert_der(&certificate, key).context("the issuer's certificate")?;
        Ok(Self { anchors, anchors_not_after, root_key: None, issuer, chain, issuer_not_before, issuer_not_after })
    }

    /// Whether it trusts and signs as the other does.
    pub fn is(&self, other: &Self) -> bool {
        let key = |material: &Self| material.issuer.key().public_key_raw().to_vec();
        self.anchors == other.anchors && self.chain == other.chain && key(self) == key(other)
    }
}

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("the certificate request is larger than {MAX_CSR} bytes")]
    TooLarge,
    #[error("the certificate request cannot be used: {0}")]
    BadRequest(rcgen::Error),
    #[error("the issuer's certificate expired at {}: renew it (see `leno check`)", display(*.0))]
    IssuerExpired(SystemTime),
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("cannot name the Pod in the certificate: {0}")]
    Pod(#[from] SerializeError),
    #[error("no random numbers")]
    Random,
}

/// A workload's certificate: only the public key of `csr` is used, once its signature is checked.
pub(super) fn workload(
    material: &Material,
    csr: &[u8],
    identity: &SpiffeId,
    pod: Option<&BoundPod>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Issued, IssueError> {
    if csr.len() > MAX_CSR {
        return Err(IssueError::TooLarge);
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(IssueError::BadRequest)?;
    leaf(material, &request.public_key, identity, pod, lifetime, now)
}

/// A certificate for `identity`, bound to `pod`, over `key`, never longer than the issuer's.
pub(super) fn leaf(
    material: &Material,
    key: &impl PublicKeyData,
    identity: &SpiffeId,
    pod: Option<&BoundPod>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Issued, IssueError> {
    if now >= material.issuer_not_after {
        return Err(IssueError::IssuerExpired(material.issuer_not_after));
    }
    // Seconds are all that a certificate can say: whole ones outward, so that its life is never shorter than asked.
    let not_before = whole_seconds(now - (lifetime / 4).min(SKEW)).max(material.issuer_not_before);
    let not_after = whole_seconds(now + lifetime + Duration::from_millis(999)).min(material.issuer_not_after);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
    params.not_before = offset(not_before);
    params.not_after = offset(not_after);
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = pod.map(BoundPod::extension).transpose()?.into_iter().collect();
    let certificate = params.signed_by(key, &material.issuer)?;
    let mut chain = vec![certificate.der().clone()];
    chain.extend(material.chain.iter().cloned());
    Ok(Issued { chain, not_before, not_after })
}

/// A self-signed root for `trust_domain`.
pub(crate) fn root(trust_domain: &str, key: &KeyPair, now: SystemTime) -> anyhow::Result<CertificateDer<'static>> {
    // The path below the root: the issuer, and room for one more authority between them.
    let params = authority_params(trust_domain, "root", 2, now, now + ROOT_LIFETIME)?;
    Ok(params.self_signed(key).context("cannot sign the root certificate")?.der().clone())
}

/// An issuer's certificate for `key`, signed by the root.
pub(super) fn issuer(
    trust_domain: &str,
    key: &KeyPair,
    root: &CertificateDer<'_>,
    root_key: &KeyPair,
    now: SystemTime,
) -> anyhow::Result<CertificateDer<'static>> {
    let (_, root_not_after) = validity(root)?;
    if now >= root_not_after {
        bail!(
            "the root certificate expired at {}: add a new root as the first in root.pem, keep the old one after it \
             until every proxy has the new bundle, and replace root.key",
            display(root_not_after)
        );
    }
    let not_after = (now + ISSUER_LIFETIME).min(root_not_after);
    let params = authority_params(trust_domain, "issuer", 0, now, not_after)?;
    let signer = Issuer::from_ca_cert_der(root, root_key).context("cannot read the root certificate")?;
    Ok(params.signed_by(key, &signer).context("cannot sign the issuer's certificate")?.der().clone())
}

fn authority_params(
    trust_domain: &str,
    what: &str,
    path_len: u8,
    now: SystemTime,
    not_after: SystemTime,
) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Leno");
    name.push(DnType::CommonName, format!("{what}.{trust_domain}"));
    params.distinguished_name = name;
    // X.509-SVID 3.1: a signing certificate's SPIFFE id is the trust domain's.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").as_str().try_into()?)];
    params.not_before = offset(whole_seconds(now - SKEW));
    params.not_after = offset(whole_seconds(not_after));
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// That what is issued now will be believed: signatures, order, constraints and dates, all as a peer checks them.
pub(crate) fn check(material: &Material, now: SystemTime) -> anyhow::Result<()> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for anchor in &material.anchors {
        roots.add(anchor.clone()).context("a trust anchor cannot be used")?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    let identity = SpiffeId::new("check", "check", "check")?;
    let issued = leaf(material, &key, &identity, None, Duration::from_secs(60), now)?;
    let (leaf, intermediates) = issued.chain.split_first().context("no certificate")?;
    verifier
        .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(unix(now))))
        .context("what the issuer signs does not verify against the root")?;
    Ok(())
}

/// Whether the issuer is past two thirds of its life.
pub fn renewal_due(material: &Material, now: SystemTime) -> bool {
    let life = material.issuer_not_after.duration_since(material.issuer_not_before).unwrap_or_default();
    now >= material.issuer_not_before + life.mul_f64(2.0 / 3.0)
}

/// How urgent the end of a certificate is: the number of days of the nearest threshold (90, 30, 7, 0) it is within.
pub fn alarm(not_after: SystemTime, now: SystemTime) -> Option<u32> {
    let left = not_after.duration_since(now).unwrap_or_default();
    if left.is_zero() {
        return Some(0);
    }
    [7, 30, 90].into_iter().find(|days| left <= DAY * *days)
}

/// "not before" and "not after" of a certificate.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> anyhow::Result<(SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("not an X.509 certificate")?;
    let validity = parsed.validity();
    Ok((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}

/// The one SPIFFE id of a workload's certificate, and the end of its life.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> anyhow::Result<(SpiffeId, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("not an X.509 certificate")?;
    let names = parsed.subject_alternative_name().context("the subject alternative names cannot be read")?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        bail!("the certificate does not have exactly one URI name");
    };
    Ok((uri.parse()?, at(parsed.validity().not_after.timestamp())))
}

/// A short, stable name for a set of certificates.
pub(crate) fn fingerprint(certificates: &[CertificateDer<'_>]) -> String {
    let whole: Vec<u8> = certificates.iter().flat_map(|c| c.iter()).copied().collect();
    crate::model::content_hash(&whole)
}

/// "2026-03-01 12:00:00 UTC"
pub(crate) fn display(time: SystemTime) -> String {
    let (date, clock) = (offset(time).date(), offset(time).time());
    let (hour, minute, second) = clock.as_hms();
    format!("{:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", date.year(), u8::from(date.month()), date.day())
}

fn serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).map_err(|_| IssueError::Random)?;
    // Positive, and never shorter: RFC 5280 4.1.2.2.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn at(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH + Duration::from_secs(after),
        Err(_) => UNIX_EPOCH,
    }
}

/// Rounded down.
fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix(time))
}

/// Seconds since 1970; 0 before.
pub(crate) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// As [`unix`], as messages carry it.
pub(crate) fn unix_i64(time: SystemTime) -> i64 {
    i64::try_from(unix(time)).unwrap_or(i64::MAX)
}

/// In the type that rcgen wants.
fn offset(time: SystemTime) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(unix(time))
}
