//! Root and issuer in the Secret `leno-root`, in cert-manager's form: `tls.crt` (the issuer and its intermediates), `tls.key`,
//! `ca.crt` (its root). The first replica makes it if it is absent: a root that signs workloads' certificates itself.
//!
//! Whoever wants another root or issuer replaces what is in the Secret, by hand or by cert-manager; all replicas notice. A root
//! that is new is trusted for a while before anything is issued under it, and one that went stays trusted until the last
//! certificate under it has expired. What is trusted, and until when, is on record in the ConfigMap `leno-roots`; what issues
//! now is in the Secret `leno-issuer`. So replicas agree, and a restart changes nothing. Keys are in these Secrets and in
//! memory, nowhere else.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{sync::watch, time::sleep};

use super::{ISSUER_SECRET, NAMESPACE, ROOT_SECRET, ROOTS_CONFIG_MAP, SESSION_SECRET, call, find, is_conflict, limits};
use crate::authority::{
    Authority, files,
    issue::{self, Material},
};

mod record;

use record::Record;

const CERTIFICATES: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
const SESSION_KEY: &str = "session.key";
/// Where the ConfigMap has its [`Record`].
const ROOTS: &str = "roots.json";
/// How often a write is tried again that others were quicker with.
const CONFLICTS: usize = 5;

/// What signs certificates, as the Secret has it.
#[derive(Clone, PartialEq)]
struct Signer {
    /// The issuer first.
    chain: Vec<CertificateDer<'static>>,
    /// The issuer's root first.
    anchors: Vec<CertificateDer<'static>>,
    key: String,
}

/// Looks after root and issuer, for as long as the control plane runs.
pub struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    lifetime: Duration,
    /// Certificates are issued by it now.
    signer: Option<Signer>,
    /// The Secret `leno-issuer` says so.
    is_written: bool,
}

/// Opens the authority of the Secrets `leno-root` and `leno-session`, which are made if absent.
///
/// # Errors
/// If the API server cannot be asked, or what is in a Secret cannot be used.
pub async fn open(
    client: Client,
    trust_domain: &str,
    certificate_lifetime: Duration,
) -> anyhow::Result<(Authority, Keeper)> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let config_maps = Api::namespaced(client, NAMESPACE);
    let now = SystemTime::now();
    make_if_absent(&secrets, ROOT_SECRET, "kubernetes.io/tls", || new_root(trust_domain, now)).await?;
    let session = make_if_absent(&secrets, SESSION_SECRET, "Opaque", new_session_key).await?;
    let mut keeper = Keeper { secrets, config_maps, lifetime: certificate_lifetime, signer: None, is_written: false };
    let material = keeper.look(now).await?;
    let authority = Authority::given(trust_domain, certificate_lifetime, material, session_key(&session)?, now)?;
    Ok((authority, keeper))
}

impl Keeper {
    /// Puts in force what changes in the Secret, until `stopping`.
    ///
    /// # Errors
    /// None: what cannot be read changes nothing, and is said.
    pub async fn keep(mut self, authority: Arc<Authority>, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        // Short lives are for tests, and must not wait for long ticks.
        let tick = (self.lifetime / 10).clamp(Duration::from_secs(1), limits::ROOT_LOOK);
        let mut complained = None;
        loop {
            tokio::select! {
                () = sleep(tick.mul_f64(0.9 + 0.2 * fastrand::f64())) => {}
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            }
            let now = SystemTime::now();
            let installed = match self.look(now).await {
                Ok(material) => authority.install(material, now),
                Err(error) => Err(error),
            };
            match installed {
                Ok(changed) => {
                    complained = None;
                    if changed {
                        let material = authority.material();
                        tracing::info!(
                            trusted = material.anchors.len(),
                            issuer_not_after = %issue::display(material.issuer_not_after),
                            "root or issuer changed"
                        );
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if complained.as_ref() != Some(&error) {
                        tracing::error!(error, "root and issuer cannot be read again: those in force stay");
                        complained = Some(error);
                    }
                }
            }
        }
    }

    /// What is to be in force now.
    async fn look(&mut self, now: SystemTime) -> anyhow::Result<Material> {
        let found = find("read the Secret leno-root", self.secrets.get(ROOT_SECRET)).await?;
        let secret = found.with_context(|| {
            format!(
                "the Secret {NAMESPACE}/{ROOT_SECRET} is gone: put it back (a restarted control plane would make a new root)"
            )
        })?;
        let wanted = parse(&secret.data.unwrap_or_default())
            .with_context(|| format!("the Secret {NAMESPACE}/{ROOT_SECRET} cannot be used"))?;
        // Before it is trusted anywhere.
        issue::check(&material(&wanted, &wanted.anchors)?, now)
            .with_context(|| format!("what is in the Secret {NAMESPACE}/{ROOT_SECRET} does not fit together"))?;
        let record = self.record(&wanted.anchors, now).await?;
        let signer = if record.is_known_everywhere(&wanted.anchors, now) {
            wanted
        } else {
            // What issued so far goes on until everybody trusts the new root.
            let held = match &self.signer {
                Some(held) => Some(held.clone()),
                None => self.written().await?,
            };
            held.filter(|held| held.is_usable(now)).unwrap_or(wanted)
        };
        let material = material(&signer, &record.trusted(&signer.anchors)?)?;
        if self.signer.as_ref() != Some(&signer) || !self.is_written {
            let written = self.write(&signer).await;
            self.is_written = written.is_ok();
            if let Err(error) = written {
                let error = format!("{error:#}");
                tracing::warn!(
                    error,
                    "if the root changes and a replica restarts soon after, it issues under the new one at once"
                );
            }
        }
        self.signer = Some(signer);
        Ok(material)
    }

    /// What issued when a replica last said so; None: nothing that can be used.
    async fn written(&self) -> anyhow::Result<Option<Signer>> {
        let found = find("read the Secret leno-issuer", self.secrets.get(ISSUER_SECRET)).await?;
        Ok(found.and_then(|secret| parse(&secret.data.unwrap_or_default()).ok()))
    }

    /// Says what issues now.
    async fn write(&self, signer: &Signer) -> anyhow::Result<()> {
        let data = Some(signer.to_data());
        let found = find("read the Secret leno-issuer", self.secrets.get(ISSUER_SECRET)).await?;
        let options = PostParams::default();
        let what = "write the Secret leno-issuer";
        let written = match found {
            Some(secret) if secret.data == data => return Ok(()),
            Some(secret) => {
                let secret = Secret { data, ..secret };
                call(what, self.secrets.replace(ISSUER_SECRET, &options, &secret)).await
            }
            None => {
                let kind = Some("kubernetes.io/tls".to_owned());
                let secret = Secret { metadata: meta(ISSUER_SECRET), type_: kind, data, ..Secret::default() };
                call(what, self.secrets.create(&options, &secret)).await
            }
        };
        match written {
            // Another replica says the same.
            Err(error) if !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Which roots are trusted, with `present` among them; written down if that is news.
    async fn record(&self, present: &[CertificateDer<'static>], now: SystemTime) -> anyhow::Result<Record> {
        for _ in 0..CONFLICTS {
            let found = find("read the ConfigMap leno-roots", self.config_maps.get(ROOTS_CONFIG_MAP)).await?;
            let text = found.as_ref().and_then(|map| map.data.as_ref()).and_then(|data| data.get(ROOTS));
            let before = match text {
                Some(text) => Record::parse(text)
                    .with_context(|| format!("the ConfigMap {NAMESPACE}/{ROOTS_CONFIG_MAP} cannot be read"))?,
                None => Record::default(),
            };
            let after = before.with(present, self.lifetime, now);
            if after == before {
                return Ok(after);
            }
            let data = Some(BTreeMap::from([(ROOTS.to_owned(), after.to_text()?)]));
            let what = "write the ConfigMap leno-roots";
            let written = match found {
                Some(map) => {
                    // Its resourceVersion is given with it: a change in between is a conflict.
                    let map = ConfigMap { data, ..map };
                    call(what, self.config_maps.replace(ROOTS_CONFIG_MAP, &PostParams::default(), &map)).await
                }
                None => {
                    let map = ConfigMap { metadata: meta(ROOTS_CONFIG_MAP), data, ..ConfigMap::default() };
                    call(what, self.config_maps.create(&PostParams::default(), &map)).await
                }
            };
            match written {
                Ok(_) => return Ok(after),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
        }
        bail!("others kept changing the ConfigMap {NAMESPACE}/{ROOTS_CONFIG_MAP} meanwhile")
    }
}

impl Signer {
    /// As a Secret has it.
    fn to_data(&self) -> BTreeMap<String, ByteString> {
        let entry = |name: &str, text: String| (name.to_owned(), ByteString(text.into_bytes()));
        BTreeMap::from([
            entry(CERTIFICATES, files::to_pem(&self.chain)),
            entry(KEY, self.key.clone()),
            entry(CA, files::to_pem(&self.anchors)),
        ])
    }

    fn is_usable(&self, now: SystemTime) -> bool {
        let ends = self.chain.iter().chain(self.anchors.first()).map(issue::validity);
        ends.flatten().all(|(_, not_after)| now + limits::ROOT_GRACE < not_after)
    }
}

fn material(signer: &Signer, trusted: &[CertificateDer<'static>]) -> anyhow::Result<Material> {
    let key = KeyPair::from_pem(&signer.key).context("tls.key is no usable private key")?;
    Material::of(trusted.to_vec(), signer.chain.clone(), key)
}

/// What the Secret holds.
fn parse(data: &BTreeMap<String, ByteString>) -> anyhow::Result<Signer> {
    let certificates = |name: &str| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let pem = data.get(name).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().with_context(|| format!("{name} is not PEM"))
    };
    let chain = certificates(CERTIFICATES)?;
    let Some(last) = chain.last() else { bail!("{CERTIFICATES} holds no certificate") };
    let mut anchors = certificates(CA)?;
    if anchors.is_empty() {
        anchors.push(last.clone());
    }
    if anchors.len() > limits::ROOTS {
        bail!("{CA} holds {} certificates, {} at most", anchors.len(), limits::ROOTS);
    }
    let (_, last) = x509_parser::parse_x509_certificate(last).context("tls.crt is not an X.509 certificate")?;
    let mut root = None;
    for (index, anchor) in anchors.iter().enumerate() {
        let (_, anchor) = x509_parser::parse_x509_certificate(anchor).context("ca.crt is not an X.509 certificate")?;
        if anchor.subject() == last.issuer() {
            root = Some(index);
            break;
        }
    }
    match root {
        Some(root) => anchors.swap(0, root),
        // A root that was put over another, whose ca.crt was left there: that stays trusted, too.
        None if last.issuer() == last.subject() => anchors.extend(chain.last().cloned()),
        None => bail!("{CA} does not hold the root of {CERTIFICATES}: the certificate of {}", last.issuer()),
    }
    if root.is_none() {
        anchors.rotate_right(1);
    }
    let key = data.get(KEY).map(|bytes| String::from_utf8(bytes.0.clone())).transpose();
    // Neither the key nor what is wrong with its bytes is to be in a message.
    let Ok(Some(key)) = key else { bail!("{KEY} holds no private key in PEM") };
    let signer = Signer { chain, anchors, key };
    material(&signer, &signer.anchors)?;
    Ok(signer)
}

fn new_root(trust_domain: &str, now: SystemTime) -> anyhow::Result<BTreeMap<String, ByteString>> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    let root = files::to_pem(&[issue::root(trust_domain, &key, now)?]);
    let entry = |name: &str, text: String| (name.to_owned(), ByteString(text.into_bytes()));
    Ok(BTreeMap::from([entry(CERTIFICATES, root.clone()), entry(KEY, key.serialize_pem()), entry(CA, root)]))
}

fn new_session_key() -> anyhow::Result<BTreeMap<String, ByteString>> {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).ok().context("no random numbers")?;
    Ok(BTreeMap::from([(SESSION_KEY.to_owned(), ByteString(key.to_vec()))]))
}

fn session_key(secret: &Secret) -> anyhow::Result<[u8; 32]> {
    let key = secret.data.as_ref().and_then(|data| data.get(SESSION_KEY));
    let key = key.and_then(|key| <[u8; 32]>::try_from(key.0.as_slice()).ok());
    key.with_context(|| format!("the Secret {NAMESPACE}/{SESSION_SECRET} has no {SESSION_KEY} of 32 bytes: delete it"))
}

/// The Secret; of several replicas that make it at once, the first one's is everybody's.
async fn make_if_absent(
    secrets: &Api<Secret>,
    name: &str,
    kind: &str,
    content: impl Fn() -> anyhow::Result<BTreeMap<String, ByteString>>,
) -> anyhow::Result<Secret> {
    for _ in 0..CONFLICTS {
        if let Some(secret) = find(&format!("read the Secret {NAMESPACE}/{name}"), secrets.get(name)).await? {
            return Ok(secret);
        }
        let secret =
            Secret { metadata: meta(name), type_: Some(kind.to_owned()), data: Some(content()?), ..Secret::default() };
        let what = format!("make the Secret {NAMESPACE}/{name}");
        match call(&what, secrets.create(&PostParams::default(), &secret)).await {
            Ok(secret) => {
                tracing::info!(secret = name, "made a Secret");
                return Ok(secret);
            }
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error),
        }
    }
    bail!("the Secret {NAMESPACE}/{name} comes and goes")
}

fn meta(name: &str) -> ObjectMeta {
    let labels = BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), super::NAME.to_owned())]);
    ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests;
