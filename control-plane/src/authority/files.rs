//! The authority's folder: private, written atomically, and complete after a crash at any point.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    DEFAULT_TRUST_DOMAIN,
    issue::{self, Material},
};

pub const ROOT: &str = "root.pem";
pub const ROOT_KEY: &str = "root.key";
pub const ISSUER: &str = "issuer.pem";
pub const ISSUER_KEY: &str = "issuer.key";
pub const TOKEN_KEY: &str = "token.key";
pub const TRUST_DOMAIN: &str = "trust-domain";
/// The copy of the anchors that proxies are given.
pub const TRUST_BUNDLE: &str = "trust-bundle.pem";

const OWNER_ONLY: u32 = 0o600;
const PUBLIC: u32 = 0o644;
/// Bits that let others in.
const OTHERS: u32 = 0o077;
/// Trust anchors at most: every proxy holds them all.
const MAX_ANCHORS: usize = 16;

/// Makes the state folder if absent. One that others may enter is used, with a warning.
pub(crate) fn make_private_folder(folder: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the state folder {}", folder.display()))?;
    let mode = fs::metadata(folder).with_context(|| format!("cannot read {}", folder.display()))?.mode();
    if mode & OTHERS != 0 {
        tracing::warn!(
            folder = %folder.display(),
            mode = format!("{:o}", mode & 0o777),
            "the state folder is open to other users, and holds keys: chmod 700 it"
        );
    }
    Ok(())
}

/// The trust domain of the folder, which is given to it once.
pub(crate) fn settle_trust_domain(folder: &Path, asked: Option<&str>) -> anyhow::Result<String> {
    let file = folder.join(TRUST_DOMAIN);
    match fs::read_to_string(&file) {
        Ok(text) => {
            let settled = text.trim();
            match asked {
                Some(asked) if asked != settled => bail!(
                    "the state folder {} belongs to the trust domain {settled}, not {asked}: every certificate and \
                     token made from it says so; use another folder, or --trust-domain {settled}",
                    folder.display()
                ),
                _ => Ok(settled.to_owned()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let settled = asked.unwrap_or(DEFAULT_TRUST_DOMAIN);
            leno_proto::spiffe::SpiffeId::new(settled, "a", "b")
                .with_context(|| format!("{settled:?} cannot be a trust domain"))?;
            write_public(&file, &format!("{settled}\n"))?;
            Ok(settled.to_owned())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Makes what is missing of root and issuer. Keys are written before certificates, so that a crash in between
/// leaves a key that the next start goes on with.
pub(super) fn make_missing(folder: &Path, trust_domain: &str, now: SystemTime) -> anyhow::Result<()> {
    if !folder.join(ROOT).exists() {
        if folder.join(ISSUER).exists() {
            bail!("{} has {ISSUER} but no {ROOT}: bring the root certificate along too", folder.display());
        }
        let key = load_or_make_key(&folder.join(ROOT_KEY))?;
        let root = issue::root(trust_domain, &key, now)?;
        write_public(&folder.join(ROOT), &to_pem(&[root]))?;
        tracing::info!(folder = %folder.display(), trust_domain, "made a root certificate");
    }
    if !folder.join(ISSUER).exists() {
        let root = read_certificates(&folder.join(ROOT))?;
        let Some(root_key) = read_key(&folder.join(ROOT_KEY))? else {
            bail!(
                "{} has neither {ISSUER} nor {ROOT_KEY}: bring along the issuer's certificate and key, or the root's key",
                folder.display()
            );
        };
        let key = load_or_make_key(&folder.join(ISSUER_KEY))?;
        let issuer = issue::issuer(trust_domain, &key, first(&root, ROOT)?, &root_key, now)?;
        write_public(&folder.join(ISSUER), &to_pem(&[issuer]))?;
        tracing::info!(folder = %folder.display(), "made an issuer");
    }
    Ok(())
}

/// Signs the issuer's key anew with the root. The key stays, so that one atomic write does it.
pub(super) fn renew_issuer(
    folder: &Path,
    trust_domain: &str,
    material: &Material,
    now: SystemTime,
) -> anyhow::Result<()> {
    let (Some(root_key), Some(key)) = (&material.root_key, read_key(&folder.join(ISSUER_KEY))?) else {
        return Ok(());
    };
    let issuer = issue::issuer(trust_domain, &key, first(&material.anchors, ROOT)?, root_key, now)?;
    write_public(&folder.join(ISSUER), &to_pem(&[issuer]))
}

/// Reads root and issuer, and checks that they belong together.
pub(super) fn load(folder: &Path) -> anyhow::Result<Material> {
    let anchors = read_certificates(&folder.join(ROOT))?;
    if anchors.len() > MAX_ANCHORS {
        bail!("{} holds {} certificates, {MAX_ANCHORS} at most", folder.join(ROOT).display(), anchors.len());
    }
    let chain = read_certificates(&folder.join(ISSUER))?;
    let issuer_file = folder.join(ISSUER);
    let issuer_certificate = first(&chain, ISSUER)?;
    let key_file = folder.join(ISSUER_KEY);
    let key = read_key(&key_file)?.with_context(|| format!("{} does not exist", key_file.display()))?;
    check_belongs(&key, issuer_certificate)
        .with_context(|| format!("{} and {}", key_file.display(), issuer_file.display()))?;
    let root_key = read_key(&folder.join(ROOT_KEY))?;
    if let Some(root_key) = &root_key {
        check_belongs(root_key, first(&anchors, ROOT)?)
            .with_context(|| format!("{} and {}", folder.join(ROOT_KEY).display(), folder.join(ROOT).display()))?;
    }
    let (issuer_not_before, issuer_not_after) =
        issue::validity(issuer_certificate).with_context(|| format!("{} cannot be used", issuer_file.display()))?;
    let (_, anchors_not_after) = issue::validity(first(&anchors, ROOT)?)
        .with_context(|| format!("{} cannot be used", folder.join(ROOT).display()))?;
    let issuer = Issuer::from_ca_cert_der(issuer_certificate, key)
        .with_context(|| format!("{} cannot be used", issuer_file.display()))?;
    Ok(Material { anchors, anchors_not_after, root_key, issuer, chain, issuer_not_before, issuer_not_after })
}

/// That the key is the one in the certificate.
pub(super) fn check_belongs(key: &KeyPair, certificate: &CertificateDer<'_>) -> anyhow::Result<()> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("not an X.509 certificate")?;
    if parsed.tbs_certificate.subject_pki.raw != key.subject_public_key_info().as_slice() {
        bail!("the key does not belong to the certificate");
    }
    if !parsed.is_ca() {
        bail!("the certificate may not sign others (basic constraint CA is missing)");
    }
    Ok(())
}

fn first<'a>(certificates: &'a [CertificateDer<'static>], file: &str) -> anyhow::Result<&'a CertificateDer<'static>> {
    certificates.first().with_context(|| format!("{file} holds no certificate"))
}

fn read_certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read certificates from {}", file.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate", file.display());
    }
    Ok(certificates)
}

/// Warns of keys in `folder` that others may read.
pub(super) fn warn_of_open_keys(folder: &Path) {
    for name in [ROOT_KEY, ISSUER_KEY, TOKEN_KEY] {
        let file = folder.join(name);
        let Ok(mode) = fs::metadata(&file).map(|found| found.mode()) else { continue };
        if mode & OTHERS != 0 {
            let mode = format!("{:o}", mode & 0o777);
            tracing::warn!(file = %file.display(), mode, "other users may read this key: chmod 600 it");
        }
    }
}

/// None: there is no such file.
fn read_key(file: &Path) -> anyhow::Result<Option<KeyPair>> {
    let pem = match fs::read_to_string(file) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let key = KeyPair::from_pem(&pem).with_context(|| format!("{} holds no usable private key", file.display()))?;
    Ok(Some(key))
}

/// The key in `file`, made if absent. Of several processes that make it at once, the first one's is everybody's.
pub(super) fn load_or_make_key(file: &Path) -> anyhow::Result<KeyPair> {
    if let Some(key) = read_key(file)? {
        return Ok(key);
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    let placed = place(file, key.serialize_pem().as_bytes(), OWNER_ONLY, |new, file| fs::hard_link(new, file));
    match placed {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read_key(file)?.with_context(|| format!("{} has gone as it was read", file.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {}", file.display())),
    }
}

/// In PEM, one after the other.
pub(crate) fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    certificates.iter().map(|c| pem::encode_config(&pem::Pem::new("CERTIFICATE", c.to_vec()), config)).collect()
}

/// Writes a file that anyone may read, unless it is so already.
pub(super) fn write_public(file: &Path, content: &str) -> anyhow::Result<()> {
    if fs::read_to_string(file).is_ok_and(|current| current == content) {
        return Ok(());
    }
    write_atomically(file, content.as_bytes(), PUBLIC)
}

/// All of it or nothing, and on disk when this returns: a new file beside it, renamed over it.
pub(crate) fn write_atomically(file: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    place(file, content, mode, |new, file| fs::rename(new, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Writes a new file beside `file`, which `put` then puts in its place.
fn place(file: &Path, content: &[u8], mode: u32, put: fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file's path"));
    };
    let temporary = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let _ = fs::remove_file(&temporary);
    let mut new = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    // The mode given at creation is cut by the umask: say it again.
    new.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    let placed = new.write_all(content).and_then(|()| new.sync_all()).and_then(|()| put(&temporary, file));
    // After a rename there is none.
    let _ = fs::remove_file(&temporary);
    placed?;
    File::open(folder)?.sync_all()
}
