use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::now()
}

/// A self-signed authority: its certificate and key.
fn authority(name: &str) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    (params(name).self_signed(&key).unwrap().der().clone(), key)
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn secret(entries: [(&str, String); 3]) -> BTreeMap<String, ByteString> {
    let filled = entries.into_iter().filter(|(_, text)| !text.is_empty());
    filled.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    files::to_pem(std::slice::from_ref(certificate))
}

fn in_secret(root: &CertificateDer<'_>, key: &KeyPair) -> BTreeMap<String, ByteString> {
    secret([(CERTIFICATES, pem(root)), (KEY, key.serialize_pem()), (CA, String::new())])
}

#[test]
fn a_root_that_is_made_here_signs_certificates_that_verify() {
    let data = new_root("cluster.local", now()).unwrap();
    let signer = parse(&data).unwrap();
    assert_eq!((signer.chain.len(), &signer.anchors), (1, &signer.chain));
    assert_eq!(signer.to_data(), data);
    let material = material(&signer, &signer.anchors).unwrap();
    assert!(material.chain.is_empty(), "the root itself is not sent");
    issue::check(&material, now()).unwrap();
}

#[test]
fn an_issuer_as_cert_manager_writes_it_is_taken() {
    let (root, root_key) = authority("company root");
    let (other, _) = authority("another root");
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signing = Issuer::from_ca_cert_der(&root, root_key).unwrap();
    let issuer = params("leno issuer").signed_by(&key, &signing).unwrap().der().clone();
    let ca = pem(&other) + &pem(&root);
    let signer = parse(&secret([(CERTIFICATES, pem(&issuer)), (KEY, key.serialize_pem()), (CA, ca)])).unwrap();
    assert_eq!(signer.anchors, [root.clone(), other], "the issuer's root first");
    let ours = material(&signer, &signer.anchors).unwrap();
    assert_eq!(ours.chain, std::slice::from_ref(&issuer));
    issue::check(&ours, now()).unwrap();

    // `kubectl apply` of a Secret without ca.crt leaves the former one there.
    let (another, another_key) = authority("yet another root");
    let left = [(CERTIFICATES, pem(&another)), (KEY, another_key.serialize_pem()), (CA, pem(&root))];
    let signer = parse(&secret(left)).unwrap();
    assert_eq!(signer.anchors, [another, root.clone()]);

    let refused = |entries| parse(&secret(entries)).map(|_| ()).unwrap_err();
    let error = refused([(CERTIFICATES, pem(&issuer)), (KEY, key.serialize_pem()), (CA, String::new())]);
    assert!(error.to_string().contains("does not hold the root of tls.crt"), "{error}");
    let (_, wrong) = authority("company root");
    let error = refused([(CERTIFICATES, pem(&issuer)), (KEY, wrong.serialize_pem()), (CA, pem(&root))]);
    assert!(error.to_string().contains("does not belong"), "{error}");
    let error = refused([(CERTIFICATES, String::new()), (KEY, key.serialize_pem()), (CA, pem(&root))]);
    assert!(error.to_string().contains("no certificate"), "{error}");
    let error = refused([(CERTIFICATES, pem(&issuer)), (KEY, "secret nonsense".to_owned()), (CA, pem(&root))]);
    assert!(!format!("{error:#}").contains("nonsense"), "keys are in no message: {error:#}");
}

#[test]
fn a_new_root_is_trusted_first_and_the_old_one_until_its_last_certificate_ended() {
    let ((old, _), (new, _)) = (authority("old"), authority("new"));
    let (old, new) = ([old], [new]);
    let start = now();
    let first = Record::default().with(&old, DAY, start);
    assert!(first.is_known_everywhere(&old, start), "the first root of all waits for nothing");
    assert_eq!(first.with(&old, DAY, start + DAY), first, "nothing is written again and again");

    let changed = first.with(&new, DAY, start);
    assert!(!changed.is_known_everywhere(&new, start));
    let known = start + limits::ROOT_PROPAGATION + Duration::from_secs(1);
    assert!(changed.is_known_everywhere(&new, known));
    assert_eq!(changed.trusted(&new).unwrap(), [new[0].clone(), old[0].clone()]);
    assert_eq!(changed.trusted(&old).unwrap(), [old[0].clone(), new[0].clone()]);
    // What was issued at the last moment under the old root lives on.
    assert_eq!(changed.with(&new, DAY, known + DAY).trusted(&new).unwrap().len(), 2);
    let over = changed.with(&new, DAY, known + DAY + limits::ROOT_GRACE);
    assert_eq!(over.trusted(&new).unwrap(), new);
    // Going back is another change, and the record survives being written down.
    let back = changed.with(&old, DAY, known);
    assert!(back.is_known_everywhere(&old, known));
    assert_eq!(Record::parse(&back.to_text().unwrap()).unwrap(), back);
    assert!(Record::parse("{}").is_err());
}

#[test]
fn a_root_is_trusted_as_long_as_the_longest_certificate_under_it_lives() {
    let ((old, _), (new, _)) = (authority("old"), authority("new"));
    let (old, new) = ([old], [new]);
    let start = now();
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let long = Record::default().with(&old, DAY, start);
    // Certificates are to live shorter, and the root is changed: at once, or an hour later.
    for (shortened, changed) in [(start + minutes(60), start + minutes(60)), (start, start + minutes(60))] {
        let short = long.with(&old, minutes(10), shortened);
        assert_eq!(short.with(&old, minutes(10), shortened + minutes(1)), short, "nothing is written again and again");
        let change = short.with(&new, minutes(10), changed);
        let trusted = |at: SystemTime| change.with(&new, minutes(10), at).trusted(&new).unwrap().len();
        assert_eq!((trusted(shortened + DAY), trusted(shortened + DAY + minutes(15))), (2, 1));
    }
    // Once those that lived longer have ended, the root lasts no longer than its last certificate.
    let short = long.with(&old, minutes(10), start);
    let change = short.with(&new, minutes(10), start + 2 * DAY);
    assert_eq!(change.with(&new, minutes(10), start + 2 * DAY + minutes(25)).trusted(&new).unwrap(), new);
    // Longer while the old one still issues.
    let short = Record::default().with(&old, minutes(10), start);
    let change = short.with(&new, minutes(10), start).with(&new, DAY, start + minutes(1));
    assert_eq!(change.with(&new, DAY, start + minutes(1)), change, "nothing is written again and again");
    assert_eq!(change.with(&new, DAY, start + DAY).trusted(&new).unwrap().len(), 2);
    // Whatever else is in the Secret.
    let (other, _) = authority("other");
    let with_other = |first: &[CertificateDer<'static>]| [first, std::slice::from_ref(&other)].concat();
    let short = Record::default().with(&with_other(&old), minutes(10), start);
    let change = short.with(&with_other(&new), minutes(10), start).with(&with_other(&new), DAY, start + minutes(1));
    assert_eq!(change.with(&with_other(&new), DAY, start + DAY).trusted(&new).unwrap().len(), 3);
    // Longer again: by what they live then.
    let short = long.with(&old, minutes(10), start);
    let longer = short.with(&old, DAY, start + 2 * DAY).with(&new, DAY, start + 3 * DAY);
    assert_eq!(longer.with(&new, DAY, start + 4 * DAY).trusted(&new).unwrap().len(), 2);
}

#[test]
fn roots_on_record_are_bounded() {
    let mut record = Record::default();
    for number in 0..limits::ROOTS * 2 {
        let (root, _) = authority(&format!("root {number}"));
        record = record.with(std::slice::from_ref(&root), DAY, now());
        assert!(record.trusted(&[root]).unwrap().len() <= limits::ROOTS);
    }
}

#[test]
fn what_expires_does_not_go_on_signing() {
    let (root, key) = authority("root");
    let signer = parse(&in_secret(&root, &key)).unwrap();
    let (_, not_after) = issue::validity(&root).unwrap();
    assert!(signer.is_usable(now()));
    assert!(!signer.is_usable(not_after));
}
