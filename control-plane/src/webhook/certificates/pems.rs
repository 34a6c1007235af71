//! The certificate itself: an authority of its own, whose key is thrown away, and one certificate under it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use time::OffsetDateTime;

use crate::authority::issue;

/// Life of a certificate made here.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Valid from a little before it is made, for clocks that are behind.
const SKEW: Duration = Duration::from_secs(300);

/// What the Secret holds, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pems {
    /// The authority, and the one before it.
    pub(super) ca: Vec<u8>,
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl Pems {
    /// Those of a Secret.
    pub(super) fn of(secret: &Secret) -> anyhow::Result<Self> {
        let field = |name: &str| {
            let data = secret.data.as_ref().and_then(|data| data.get(name));
            data.map(|bytes| bytes.0.clone()).with_context(|| format!("it has no {name}"))
        };
        let ca = match field("ca.crt") {
            Ok(ca) => ca,
            // cert-manager leaves it out where the issuer has none.
            Err(_) => field("tls.crt")?,
        };
        let pems = Self { ca, certificate: field("tls.crt")?, key: field("tls.key")? };
        pems.server_config()?;
        Ok(pems)
    }

    /// A new certificate for `names`; whoever trusted the one `before` goes on trusting it.
    pub(super) fn make(names: &[String], before: Option<&Self>, now: SystemTime) -> anyhow::Result<Self> {
        let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key");
        let (ca_key, leaf_key) = (key()?, key()?);
        let mut ca = params("Leno webhooks", now);
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_certificate = ca.self_signed(&ca_key).context("cannot sign the webhooks' authority")?;
        let mut leaf = params("leno-webhook", now);
        for name in names {
            leaf.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issuer = Issuer::new(ca, ca_key);
        let certificate = leaf.signed_by(&leaf_key, &issuer).context("cannot sign the webhooks' certificate")?;
        let mut ca = ca_certificate.pem().into_bytes();
        // Only the latest authority of those before: the list does not grow.
        if let Some(last) = before.and_then(|before| CertificateDer::pem_slice_iter(&before.ca).next()?.ok()) {
            ca.extend(pem::encode(&pem::Pem::new("CERTIFICATE", last.to_vec())).into_bytes());
        }
        Ok(Self { ca, certificate: certificate.pem().into_bytes(), key: leaf_key.serialize_pem().into_bytes() })
    }

    /// Past two thirds of its life, or for other names.
    pub(super) fn renewal_due(&self, names: &[String], now: SystemTime) -> bool {
        let Ok((not_before, not_after)) = self.leaf().and_then(|leaf| issue::validity(&leaf)) else { return true };
        let life = not_after.duration_since(not_before).unwrap_or_default();
        now < not_before || now >= not_before + life.mul_f64(2.0 / 3.0) || !self.is_for(names)
    }

    fn is_for(&self, names: &[String]) -> bool {
        let Ok(leaf) = self.leaf() else { return false };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&leaf) else { return false };
        let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return false };
        let has = |name: &String| {
            alternatives
                .value
                .general_names
                .iter()
                .any(|found| matches!(found, x509_parser::extensions::GeneralName::DNSName(found) if found == name))
        };
        names.iter().all(has)
    }

    fn leaf(&self) -> anyhow::Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(&self.certificate).context("tls.crt is no certificate in PEM")
    }

    /// For TLS, with the end of its life.
    pub(super) fn server_config(&self) -> anyhow::Result<(Arc<ServerConfig>, SystemTime)> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .context("tls.crt is no certificate in PEM")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).context("tls.key is no key in PEM")?;
        let (_, not_after) = issue::validity(chain.first().context("tls.crt is empty")?)?;
        let tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("tls.key is not the key of tls.crt")?;
        Ok((Arc::new(tls), not_after))
    }
}

fn params(name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(now - SKEW);
    params.not_after = at(now + LIFETIME);
    params.use_authority_key_identifier_extension = true;
    params
}

/// Whole seconds, which is all that a certificate can say.
fn at(time: SystemTime) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(issue::unix(time))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;
    use rustls::{
        RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier, pki_types::UnixTime,
    };

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn names() -> Vec<String> {
        vec!["leno-webhook.leno-system.svc".to_owned()]
    }

    /// As an API server does with `ca` as the caBundle.
    fn is_trusted(pems: &Pems, ca: &[u8], now: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        for anchor in CertificateDer::pem_slice_iter(ca) {
            roots.add(anchor.unwrap()).unwrap();
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = "leno-webhook.leno-system.svc".try_into().unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(issue::unix(now)));
        verifier.verify_server_cert(&pems.leaf().unwrap(), &[], &name, &[], now).is_ok()
    }

    #[test]
    fn a_renewed_certificate_is_trusted_by_who_knows_the_new_bundle_and_so_is_the_old() {
        let now = SystemTime::now();
        let first = Pems::make(&names(), None, now).unwrap();
        assert!(!first.renewal_due(&names(), now));
        assert!(first.renewal_due(&names(), now + DAY * 60));
        assert!(first.renewal_due(&["other.leno-system.svc".to_owned()], now));
        let later = now + DAY * 60;
        let second = Pems::make(&names(), Some(&first), later).unwrap();
        assert!(is_trusted(&first, &first.ca, now));
        assert!(is_trusted(&second, &second.ca, later));
        assert!(is_trusted(&first, &second.ca, later), "by replicas that serve the old one still");
        assert!(!is_trusted(&second, &first.ca, later));
        let third = Pems::make(&names(), Some(&second), later).unwrap();
        assert_eq!(CertificateDer::pem_slice_iter(&third.ca).count(), 2, "it does not grow");
    }

    #[test]
    fn a_secret_that_does_not_fit_together_is_told() {
        let secret = |fields: &[(&str, &[u8])]| Secret {
            data: Some(
                fields
                    .iter()
                    .map(|(name, bytes)| ((*name).to_owned(), ByteString(bytes.to_vec())))
                    .collect::<BTreeMap<_, _>>(),
            ),
            ..Secret::default()
        };
        let pems = Pems::make(&names(), None, SystemTime::now()).unwrap();
        let other = Pems::make(&names(), None, SystemTime::now()).unwrap();
        let of = |certificate: &[u8], key: &[u8]| {
            Pems::of(&secret(&[("ca.crt", &pems.ca), ("tls.crt", certificate), ("tls.key", key)]))
        };
        assert_eq!(of(&pems.certificate, &pems.key).unwrap(), pems);
        assert!(format!("{:#}", of(&pems.certificate, &other.key).unwrap_err()).contains("not the key"));
        assert!(format!("{:#}", of(b"x", &pems.key).unwrap_err()).contains("tls.crt"));
        assert!(Pems::of(&secret(&[])).is_err());
    }
}
