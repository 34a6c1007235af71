use std::{fs, os::unix::fs::PermissionsExt as _};

use rcgen::CertificateParams;
use rustls::{RootCertStore, crypto::aws_lc_rs, pki_types::UnixTime, server::WebPkiClientVerifier};

use super::*;

fn open(state: &Path) -> anyhow::Result<Authority> {
    Authority::open(options(state), SystemTime::now())
}

fn options(state: &Path) -> Options {
    Options {
        state: state.to_owned(),
        ca_dir: None,
        trust_domain: None,
        certificate_lifetime: DEFAULT_CERTIFICATE_LIFETIME,
    }
}

fn cart() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "cart").unwrap()
}

fn request() -> Vec<u8> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    // What it asks for is not what it gets.
    let mut params = CertificateParams::new(vec!["evil.example.com".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(&key).unwrap().der().to_vec()
}

/// As a peer verifies it, at that time.
fn verify(anchors: &[CertificateDer<'static>], chain: &[CertificateDer<'static>], at: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor.clone()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(issue::unix(at)));
    verifier.verify_client_cert(&chain[0], &chain[1..], at).is_ok()
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_issued_certificate_verifies_and_says_who_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path()).unwrap();
    let now = SystemTime::now();
    let issued = authority.issue(&request(), &cart(), None, now).unwrap();
    let anchors = authority.material().anchors.clone();
    assert!(verify(&anchors, &issued.chain, now));
    assert!(verify(&anchors, &issued.chain, now - Duration::from_secs(50)), "for clocks that are behind");
    assert!(!verify(&anchors, &issued.chain, now - Duration::from_secs(3600)));
    assert!(!verify(&anchors, &issued.chain, now + DEFAULT_CERTIFICATE_LIFETIME + Duration::from_secs(2)));

    let (identity, not_after) = issue::identity(&issued.chain[0]).unwrap();
    assert_eq!((identity, not_after), (cart(), issued.not_after));
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth);
    let another = authority.issue(&request(), &cart(), None, now).unwrap();
    let (_, other) = x509_parser::parse_x509_certificate(&another.chain[0]).unwrap();
    assert_ne!(leaf.raw_serial(), other.raw_serial());
}

#[test]
fn short_lives_are_whole_lives() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { certificate_lifetime: MIN_CERTIFICATE_LIFETIME, ..options(folder.path()) };
    let now = SystemTime::now();
    let authority = Authority::open(options.clone(), now).unwrap();
    let issued = authority.issue(&request(), &cart(), None, now).unwrap();
    assert!(issued.not_after.duration_since(now).unwrap() >= MIN_CERTIFICATE_LIFETIME);
    assert!(now.duration_since(issued.not_before).unwrap() < Duration::from_secs(4));
    let too_short = Options { certificate_lifetime: Duration::from_secs(9), ..options };
    assert!(Authority::open(too_short, now).is_err());
}

#[test]
fn keys_are_their_owners_only_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let first = open(&state).unwrap();
    assert_eq!(mode(&state), 0o700);
    for key in [files::ROOT_KEY, files::ISSUER_KEY, files::TOKEN_KEY] {
        assert_eq!(mode(&state.join(key)), 0o600, "{key}");
    }
    assert_eq!(mode(&first.trust_bundle_file().unwrap()), 0o644);
    assert_eq!(fs::read(first.trust_bundle_file().unwrap()).unwrap(), fs::read(state.join(files::ROOT)).unwrap());

    let again = open(&state).unwrap();
    assert_eq!(first.material().anchors, again.material().anchors);
    assert_eq!(first.material().chain, again.material().chain);
    let (token, _) = first.tokens().unwrap().issue("shop", "cart", token::DEFAULT_LIFETIME, SystemTime::now()).unwrap();
    assert_eq!(again.tokens().unwrap().verify(&token, SystemTime::now()).unwrap(), cart());
    assert!(!fs::read_dir(&state).unwrap().any(|f| f.unwrap().file_name().to_string_lossy().starts_with('.')));
}

#[test]
fn a_crash_on_first_start_leaves_what_the_next_goes_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let key = files::load_or_make_key(&folder.path().join(files::ROOT_KEY)).unwrap();
    let authority = open(folder.path()).unwrap();
    fs::remove_file(folder.path().join(files::ISSUER)).unwrap();
    let again = open(folder.path()).unwrap();
    assert_eq!(authority.material().anchors, again.material().anchors);
    assert_eq!(again.material().root_key.as_ref().unwrap().serialized_der(), key.serialized_der());
    let issued = again.issue(&request(), &cart(), None, SystemTime::now()).unwrap();
    assert!(verify(&again.material().anchors, &issued.chain, SystemTime::now()));
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&ours, &theirs] {
        open(folder.path()).unwrap();
    }
    let refused = |file: &str| {
        let before = fs::read(ours.path().join(file)).unwrap();
        fs::copy(theirs.path().join(file), ours.path().join(file)).unwrap();
        let error = format!("{:#}", open(ours.path()).err().unwrap());
        fs::write(ours.path().join(file), before).unwrap();
        error
    };
    assert!(refused(files::ISSUER_KEY).contains("does not belong"), "{}", refused(files::ISSUER_KEY));
    assert!(refused(files::ROOT_KEY).contains("does not belong"), "{}", refused(files::ROOT_KEY));
    assert!(refused(files::ROOT).contains("root.key"), "{}", refused(files::ROOT));
    open(ours.path()).unwrap();

    // Another root without its key: the issuer is not from it.
    fs::remove_file(ours.path().join(files::ROOT_KEY)).unwrap();
    assert!(refused(files::ROOT).contains("does not verify"), "{}", refused(files::ROOT));

    let other = Options { trust_domain: Some("other.test".to_owned()), ..options(ours.path()) };
    let error = format!("{:#}", Authority::open(other, SystemTime::now()).err().unwrap());
    assert!(error.contains("belongs to the trust domain cluster.local"), "{error}");
}

#[test]
fn an_authority_can_be_brought_along_and_is_not_written_to() {
    let (made, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(made.path()).unwrap();
    fs::remove_file(made.path().join(files::ROOT_KEY)).unwrap();
    let before = fs::read(made.path().join(files::ISSUER)).unwrap();
    let options = Options { ca_dir: Some(made.path().to_owned()), ..options(state.path()) };
    let authority = Authority::open(options, SystemTime::now()).unwrap();
    let issued = authority.issue(&request(), &cart(), None, SystemTime::now()).unwrap();
    assert!(verify(&authority.material().anchors, &issued.chain, SystemTime::now()));
    assert_eq!(fs::read(made.path().join(files::ISSUER)).unwrap(), before);
    assert!(!state.path().join(files::ROOT_KEY).exists());
}

#[test]
fn the_issuer_is_renewed_at_two_thirds_of_its_life() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path()).unwrap();
    let first = authority.material();
    let now = SystemTime::now();
    assert!(!authority.refresh(now + issue::ISSUER_LIFETIME / 2).unwrap());
    let late = now + issue::ISSUER_LIFETIME * 3 / 4;
    assert!(authority.refresh(late).unwrap());
    let second = authority.material();
    assert_ne!(first.chain, second.chain);
    assert_eq!(first.anchors, second.anchors);
    let issued = authority.issue(&request(), &cart(), None, late).unwrap();
    assert!(verify(&second.anchors, &issued.chain, late));
}

#[test]
fn roots_rotate_by_editing_a_file() {
    let (ours, next) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = open(ours.path()).unwrap();
    open(next.path()).unwrap();
    let now = SystemTime::now();
    let mut bundle = authority.bundle();
    let before = bundle.borrow_and_update().version.clone();
    let old = authority.issue(&request(), &cart(), None, now).unwrap();

    let file = ours.path().join(files::ROOT);
    let (mine, other) =
        (fs::read_to_string(&file).unwrap(), fs::read_to_string(next.path().join(files::ROOT)).unwrap());
    fs::write(&file, format!("{mine}{other}")).unwrap();
    assert!(authority.refresh(now).unwrap());
    assert_eq!(authority.material().anchors.len(), 2);
    assert!(bundle.has_changed().unwrap());
    assert_ne!(bundle.borrow_and_update().version, before);
    assert!(fs::read_to_string(authority.trust_bundle_file().unwrap()).unwrap().contains(&other));

    // Now the other one signs.
    fs::write(&file, format!("{other}{mine}")).unwrap();
    for name in [files::ROOT_KEY, files::ISSUER, files::ISSUER_KEY] {
        fs::copy(next.path().join(name), ours.path().join(name)).unwrap();
    }
    assert!(authority.refresh(now).unwrap());
    let new = authority.issue(&request(), &cart(), None, now).unwrap();
    let anchors = &authority.material().anchors;
    assert!(verify(anchors, &old.chain, now) && verify(anchors, &new.chain, now));

    // What cannot be used changes nothing.
    fs::write(&file, "nonsense").unwrap();
    assert!(authority.refresh(now).is_err());
    fs::remove_file(&file).unwrap();
    assert!(authority.refresh(now).is_err());
    assert!(!file.exists());
    assert_eq!(authority.material().anchors.len(), 2);
}

#[test]
fn a_certificate_names_the_pod_that_it_is_bound_to_and_verifies_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path()).unwrap();
    let now = SystemTime::now();
    // As long as Kubernetes lets names be.
    let pod = BoundPod { name: "a".repeat(253), uid: "4f6d0cc0-2f0c-4a2b-9d52-2b1f1d0e7c11".to_owned() };
    for bound in [Some(pod), None] {
        let issued = authority.issue(&request(), &cart(), bound.as_ref(), now).unwrap();
        assert!(verify(&authority.material().anchors, &issued.chain, now));
        assert_eq!(BoundPod::of(&issued.chain[0]).unwrap(), bound);
        assert_eq!(issue::identity(&issued.chain[0]).unwrap().0, cart());
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
        let not_known = parsed.extensions().iter().filter(|one| one.parsed_extension().unsupported());
        assert!(not_known.map(|one| one.critical).eq(bound.map(|_| false)), "peers may pass over it");
    }
}

#[test]
fn requests_must_be_signed_by_their_own_key() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path()).unwrap();
    let mut forged = request();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [forged, Vec::new(), b"nonsense".to_vec()] {
        let error = authority.issue(&bad, &cart(), None, SystemTime::now()).unwrap_err();
        assert!(matches!(error, issue::IssueError::BadRequest(_)), "{error}");
    }
    let huge = vec![0x30; 1 << 20];
    assert!(matches!(authority.issue(&huge, &cart(), None, SystemTime::now()), Err(issue::IssueError::TooLarge)));
}

#[test]
fn tokens_expire_and_are_for_one_authority() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (open(ours.path()).unwrap(), open(theirs.path()).unwrap());
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let (token, expires_at) = ours.tokens().unwrap().issue("shop", "cart", hour, now).unwrap();
    assert_eq!(expires_at, now + hour);
    assert_eq!(ours.tokens().unwrap().verify(&format!(" {token}\n"), now).unwrap(), cart());
    let late = ours.tokens().unwrap().verify(&token, now + hour + Duration::from_secs(60)).unwrap_err();
    assert!(matches!(late, token::TokenError::Expired(_)), "{late}");
    assert!(matches!(theirs.tokens().unwrap().verify(&token, now), Err(token::TokenError::Invalid(_))));
    assert!(matches!(ours.tokens().unwrap().verify("nonsense", now), Err(token::TokenError::Invalid(_))));
    assert!(matches!(ours.tokens().unwrap().verify(&"x".repeat(1 << 20), now), Err(token::TokenError::TooLong)));
    assert!(
        ours.tokens().unwrap().issue("leno-system", "leno", hour, now).is_err(),
        "the control plane's own identity"
    );
    assert!(ours.tokens().unwrap().issue("a/b", "c", hour, now).is_err());
    assert!(ours.tokens().unwrap().issue("a", "b", Duration::ZERO, now).is_err());
}

#[test]
fn the_end_of_a_certificate_is_announced() {
    let now = SystemTime::now();
    let day = Duration::from_secs(24 * 3600);
    let expected = [(100, None), (90, Some(90)), (31, Some(90)), (30, Some(30)), (7, Some(7)), (0, Some(0))];
    for (days, alarm) in expected {
        assert_eq!(issue::alarm(now + day * days, now), alarm, "{days} days");
    }
    assert_eq!(issue::alarm(now - day, now), Some(0));
}
