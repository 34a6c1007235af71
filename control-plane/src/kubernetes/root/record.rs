//! Which roots are trusted, since when and until when. Pure.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use super::limits;
use crate::authority::{
    MAX_CERTIFICATE_LIFETIME, files,
    issue::{self, unix},
};

/// On record for all replicas; the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Record(Vec<Root>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Root {
    /// PEM.
    certificate: String,
    /// Unix seconds at which it is known everywhere: from then on certificates may be issued under it.
    known: u64,
    /// Seconds that certificates issued under it live.
    #[serde(default = "longest")]
    lifetime: u64,
    /// Unix seconds until which those live that were issued when they lived longer.
    #[serde(default)]
    outlived: u64,
    /// Unix seconds; None: it is in the Secret.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    until: Option<u64>,
}

/// Of a record that does not say it.
fn longest() -> u64 {
    MAX_CERTIFICATE_LIFETIME.as_secs()
}

impl Record {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        serde_json::from_str(text).context("it is not a list of roots")
    }

    pub(super) fn to_text(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// With `present` in the Secret, where certificates live for `lifetime`.
    pub(super) fn with(&self, present: &[CertificateDer<'_>], lifetime: Duration, now: SystemTime) -> Self {
        let propagation = limits::ROOT_PROPAGATION.min(lifetime);
        let present: Vec<String> = present.iter().map(|root| files::to_pem(std::slice::from_ref(root))).collect();
        let mut roots = self.0.clone();
        // The first is the issuer's. Until it is known others issue under the root before.
        let issues = |root: &Root| present.first() == Some(&root.certificate) && root.known <= unix(now);
        let replaced = roots.iter().any(issues);
        for root in &mut roots {
            let longest = Duration::from_secs(root.lifetime).min(MAX_CERTIFICATE_LIFETIME).max(lifetime);
            // Other replicas may issue under it for as long as the new one is not known everywhere, or as they were told before.
            let last = unix(now + propagation + longest + limits::ROOT_GRACE);
            root.until = match (present.contains(&root.certificate), root.until) {
                (true, _) => None,
                (false, Some(until)) if replaced || lifetime.as_secs() <= root.lifetime => Some(until),
                // They live longer now.
                (false, Some(until)) => Some(until.max(last)),
                (false, None) => Some(last.max(root.outlived)),
            };
            if root.lifetime != lifetime.as_secs() {
                if longest > lifetime && root.until.is_none() {
                    root.outlived = root.outlived.max(last);
                }
                root.lifetime = lifetime.as_secs();
            }
        }
        roots.retain(|root| root.until.is_none_or(|until| unix(now) < until));
        // Nobody has another one yet: there is nothing to wait for.
        let known = if self.0.is_empty() { 0 } else { unix(now + propagation) };
        for certificate in present {
            if !roots.iter().any(|root| root.certificate == certificate) {
                roots.push(Root { certificate, known, lifetime: lifetime.as_secs(), outlived: 0, until: None });
            }
        }
        while roots.len() > limits::ROOTS {
            let Some(first) = roots.iter().position(|root| root.until.is_some()) else { break };
            roots.remove(first);
        }
        Self(roots)
    }

    /// Whether certificates may be issued under the first of `anchors`.
    pub(super) fn is_known_everywhere(&self, anchors: &[CertificateDer<'_>], now: SystemTime) -> bool {
        let Some(root) = anchors.first().map(|root| files::to_pem(std::slice::from_ref(root))) else { return false };
        self.0.iter().find(|known| known.certificate == root).is_some_and(|root| root.known <= unix(now))
    }

    /// Every root that is trusted, that of the issuer (`first`) before the others.
    pub(super) fn trusted(&self, first: &[CertificateDer<'static>]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let mut trusted: Vec<CertificateDer<'static>> = first.first().into_iter().cloned().collect();
        for root in &self.0 {
            let certificate = CertificateDer::from_pem_slice(root.certificate.as_bytes())
                .context("the record of roots holds something else than a certificate")?;
            issue::validity(&certificate).context("the record of roots")?;
            if !trusted.contains(&certificate) {
                trusted.push(certificate);
            }
        }
        if trusted.is_empty() {
            bail!("no root is on record");
        }
        Ok(trusted)
    }
}
