//! The certificate authority: root and issuer, join tokens, and `Identity.Certify`.
//!
//! In Kubernetes root and issuer are of a Secret ([`crate::kubernetes::root`]), and [`Authority::given`]. Elsewhere a root
//! (10 years) signs an issuer (1 year), and the issuer signs workloads' certificates (24 h by default). Keys then live in the
//! state folder, readable by their owner only, and are made on first start or brought along:
//!
//! | file | holds |
//! |---|---|
//! | `root.pem` | the trust anchors; the first signs the issuer, the others are trusted beside it (root rotation) |
//! | `root.key` | the first root's key; may be absent, then the issuer is renewed by whoever has it |
//! | `issuer.pem`, `issuer.key` | the issuer, followed by intermediates up to, and without, the root |
//! | `token.key` | signs join tokens |
//! | `trust-domain` | the trust domain that this folder belongs to |
//! | `trust-bundle.pem` | a copy of the anchors that proxies are given |
//!
//! [`files`] is the folder, [`issue`] makes certificates, [`bound_pod`] says for which Pod, [`token`] makes join tokens, [`certify`]
//! answers proxies.

pub mod bound_pod;
pub mod certify;
pub mod files;
pub mod issue;
pub mod token;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use leno_proto::{
    CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT,
    spiffe::SpiffeId,
    v1::{self, ResourceKind, ResourceName},
};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use self::{
    bound_pod::BoundPod,
    issue::{Issued, Material},
    token::TokenKey,
};

/// The shortest life of a workload's certificate: below it, renewal could not keep up.
pub const MIN_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(10);
/// The longest: a certificate cannot be revoked, only waited out.
pub const MAX_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// The default life of a workload's certificate.
pub const DEFAULT_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The default trust domain.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// What an [`Authority`] is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder; made, for its owner only, if absent.
    pub state: PathBuf,
    /// Where root and issuer are, if not in the state folder. Nothing is ever written there.
    pub ca_dir: Option<PathBuf>,
    /// "cluster.local". None: that of the state folder, else the default.
    pub trust_domain: Option<String>,
    pub certificate_lifetime: Duration,
}

/// Where root and issuer come from.
enum Home {
    Folder {
        options: Options,
        tokens: TokenKey,
    },
    /// From elsewhere ([`Authority::install`]). There are no join tokens.
    Given {
        session_key: [u8; 32],
    },
}

/// Issues certificates, and join tokens where its home is a folder.
pub struct Authority {
    trust_domain: Arc<str>,
    control_plane: SpiffeId,
    lifetime: Duration,
    home: Home,
    material: ArcSwap<Material>,
    bundle: watch::Sender<Arc<v1::Resource>>,
}

impl Authority {
    /// Loads root and issuer, or makes them; renews an issuer past two thirds of its life.
    ///
    /// # Errors
    /// If the folder or a file in it cannot be read or written, or what is in there does not fit together.
    pub fn open(options: Options, now: SystemTime) -> anyhow::Result<Self> {
        let lifetime = bounded(options.certificate_lifetime)?;
        files::make_private_folder(&options.state)?;
        let trust_domain = files::settle_trust_domain(&options.state, options.trust_domain.as_deref())?;
        let tokens = TokenKey::load_or_make(&options.state, &trust_domain)?;
        if options.ca_dir.is_none() {
            files::make_missing(&options.state, &trust_domain, now)?;
        }
        let material = load(&options, &trust_domain, now)?;
        for folder in options.ca_dir.iter().chain([&options.state]) {
            files::warn_of_open_keys(folder);
        }
        files::write_public(&options.state.join(files::TRUST_BUNDLE), &files::to_pem(&material.anchors))?;
        Self::new(&trust_domain, lifetime, Home::Folder { options, tokens }, material)
    }

    /// Of root and issuer that somebody else keeps. `session_key`: see [`Authority::session_key`].
    ///
    /// # Errors
    /// If the trust domain or the life of certificates cannot be used, or root and issuer do not fit together.
    pub fn given(
        trust_domain: &str,
        certificate_lifetime: Duration,
        material: Material,
        session_key: [u8; 32],
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        issue::check(&material, now).context("root and issuer do not fit together")?;
        Self::new(trust_domain, bounded(certificate_lifetime)?, Home::Given { session_key }, material)
    }

    fn new(trust_domain: &str, lifetime: Duration, home: Home, material: Material) -> anyhow::Result<Self> {
        let control_plane = SpiffeId::new(trust_domain, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT)
            .with_context(|| format!("{trust_domain:?} cannot be a trust domain"))?;
        let bundle = watch::Sender::new(Arc::new(bundle_resource(trust_domain, &material)));
        Ok(Self {
            trust_domain: trust_domain.into(),
            control_plane,
            lifetime,
            home,
            material: ArcSwap::from_pointee(material),
            bundle,
        })
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The control plane's own identity.
    pub fn control_plane(&self) -> &SpiffeId {
        &self.control_plane
    }

    /// The life of workloads' certificates.
    pub fn certificate_lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The file that proxies are given to know the control plane by; None: they get the bundle in another way.
    pub fn trust_bundle_file(&self) -> Option<PathBuf> {
        match &self.home {
            Home::Folder { options, .. } => Some(options.state.join(files::TRUST_BUNDLE)),
            Home::Given { .. } => None,
        }
    }

    /// None: workloads prove themselves in another way.
    pub fn tokens(&self) -> Option<&TokenKey> {
        match &self.home {
            Home::Folder { tokens, .. } => Some(tokens),
            Home::Given { .. } => None,
        }
    }

    /// What proxies seal session tokens with: the same for all control planes of a mesh, and after each start.
    pub fn session_key(&self) -> [u8; 32] {
        match &self.home {
            Home::Folder { tokens, .. } => tokens.session_key(),
            Home::Given { session_key } => *session_key,
        }
    }

    /// The trust anchors in PEM.
    pub fn bundle_pem(&self) -> String {
        files::to_pem(&self.material.load().anchors)
    }

    /// What to do when the root, or the issuer, nears its end.
    pub fn remedies(&self) -> (&'static str, &'static str) {
        match &self.home {
            Home::Folder { .. } => {
                ("add a new root to root.pem", "there is no root.key to renew it with: replace issuer.pem")
            }
            Home::Given { .. } => (
                "put a new root into the Secret leno-root (the old one stays trusted for as long as it is needed)",
                "renew tls.crt in the Secret leno-root, or see why cert-manager does not",
            ),
        }
    }

    /// Root, issuer and anchors in force.
    pub fn material(&self) -> Arc<Material> {
        self.material.load_full()
    }

    /// The TRUST_BUNDLE resource, and its changes.
    pub fn bundle(&self) -> watch::Receiver<Arc<v1::Resource>> {
        self.bundle.subscribe()
    }

    /// Reads root and issuer again, so that a rotation by hand needs no restart, and renews the issuer when it is due.
    /// Never makes a new root.
    /// Returns whether anything changed; what is in force stays if it fails. Without a folder there is nothing to read.
    ///
    /// # Errors
    /// As [`Authority::open`].
    pub fn refresh(&self, now: SystemTime) -> anyhow::Result<bool> {
        let Home::Folder { options, .. } = &self.home else { return Ok(false) };
        let next = load(options, &self.trust_domain, now)?;
        if next.anchors != self.material.load().anchors {
            files::write_public(&options.state.join(files::TRUST_BUNDLE), &files::to_pem(&next.anchors))?;
        }
        Ok(self.put(next))
    }

    /// Puts another root or issuer in force. Returns whether it is another; what is in force stays if it fails.
    ///
    /// # Errors
    /// If they do not fit together, or would not be believed now.
    pub fn install(&self, next: Material, now: SystemTime) -> anyhow::Result<bool> {
        issue::check(&next, now).context("root and issuer do not fit together")?;
        Ok(self.put(next))
    }

    fn put(&self, next: Material) -> bool {
        let current = self.material.load();
        if next.is(&current) {
            return false;
        }
        if next.anchors != current.anchors {
            self.bundle.send_replace(Arc::new(bundle_resource(&self.trust_domain, &next)));
        }
        self.material.store(Arc::new(next));
        true
    }

    /// Signs a certificate for `identity`, and for `pod` alone if there is one, over the public key of `csr` (PKCS#10, DER), whose own
    /// signature must hold.
    ///
    /// # Errors
    /// If the request is malformed, or the issuer has expired.
    pub fn issue(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        pod: Option<&BoundPod>,
        now: SystemTime,
    ) -> Result<Issued, issue::IssueError> {
        issue::workload(&self.material.load(), csr, identity, pod, self.lifetime, now)
    }

    /// A key and certificate for the control plane's own server.
    ///
    /// # Errors
    /// If no key can be made, or the issuer has expired.
    pub fn issue_own(&self, now: SystemTime) -> anyhow::Result<(Issued, PrivateKeyDer<'static>)> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
        let issued = issue::leaf(&self.material.load(), &key, &self.control_plane, None, self.lifetime, now)?;
        Ok((issued, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
    }
}

/// The life of workloads' certificates, if it can be.
pub(crate) fn bounded(lifetime: Duration) -> anyhow::Result<Duration> {
    if lifetime < MIN_CERTIFICATE_LIFETIME || lifetime > MAX_CERTIFICATE_LIFETIME {
        bail!("the life of certificates must be between 10 seconds and 90 days, not {lifetime:?}");
    }
    Ok(lifetime)
}

/// Root and issuer from `--ca-dir` or the state folder. What is missing is an error: it may be missing for a moment only,
/// and a new root would be the end of the mesh.
fn load(options: &Options, trust_domain: &str, now: SystemTime) -> anyhow::Result<Material> {
    let (folder, writable): (&Path, bool) = match &options.ca_dir {
        Some(folder) => (folder, false),
        None => (&options.state, true),
    };
    let mut material = files::load(folder)?;
    if writable && material.root_key.is_some() && issue::renewal_due(&material, now) {
        files::renew_issuer(folder, trust_domain, &material, now)?;
        material = files::load(folder)?;
        tracing::info!(not_after = %issue::display(material.issuer_not_after), "renewed the issuer");
    }
    issue::check(&material, now).with_context(|| {
        format!("{} and {} in {} do not fit together", files::ROOT, files::ISSUER, folder.display())
    })?;
    Ok(material)
}

fn bundle_resource(trust_domain: &str, material: &Material) -> v1::Resource {
    let anchors = to_der(&material.anchors);
    v1::Resource {
        name: Some(ResourceName { kind: ResourceKind::TrustBundle.into(), key: String::new() }),
        version: issue::fingerprint(&material.anchors),
        origins: Vec::new(),
        body: Some(v1::resource::Body::TrustBundle(v1::TrustBundle { trust_domain: trust_domain.to_owned(), anchors })),
    }
}

/// Whether this is the control plane, of any trust domain: an identity that no proxy is ever given.
pub(crate) fn is_control_plane(identity: &SpiffeId) -> bool {
    identity.namespace() == CONTROL_PLANE_NAMESPACE && identity.service_account() == CONTROL_PLANE_SERVICE_ACCOUNT
}

/// The DER of `certificates`, as messages carry them.
pub fn to_der(certificates: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    certificates.iter().map(|c| c.to_vec()).collect()
}

#[cfg(test)]
mod tests;
