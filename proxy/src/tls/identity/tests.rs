use std::sync::Mutex;

use hyper_util::rt::TokioExecutor;
use leno_proto::v1::identity_server::{Identity, IdentityServer};
use rcgen::{CertificateSigningRequestParams, PublicKeyData, SubjectPublicKeyInfo};
use tokio::net::TcpListener;
use tonic::{Request, Response};
use tower::Service;

use super::*;
use crate::tls::testing::Authority;

const WORKLOAD: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// What a certificate was issued for, "token", "certificate" or "token over mTLS", and its public key.
type Issued = (String, Vec<u8>);

/// A control plane that issues for the token "good", or to whom it issued before if `renews`; if not, it says so.
struct ControlPlane {
    authority: Arc<Authority>,
    lifetime: Duration,
    renews: bool,
    issued: Arc<Mutex<Vec<Issued>>>,
}

#[tonic::async_trait]
impl Identity for ControlPlane {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let known = request.extensions().get::<Peer>().is_some_and(|peer| peer.0);
        let CertifyRequest { csr, token } = request.into_inner();
        let by = match token.as_str() {
            "good" if known => "token over mTLS",
            "good" => "token",
            "" if known && self.renews => "certificate",
            _ => return Err(Status::unauthenticated("no proof of who you are")),
        };
        let key = CertificateSigningRequestParams::from_der(&csr.into()).unwrap().public_key;
        self.issued.lock().unwrap().push((by.to_owned(), key.der_bytes().to_vec()));
        let spki = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).unwrap();
        let now = SystemTime::now();
        let leaf = self.authority.certify(&[WORKLOAD], now - Duration::from_secs(60), now + self.lifetime, true, &spki);
        Ok(Response::new(CertifyResponse {
            chain: vec![leaf.to_vec()],
            anchors: vec![self.authority.der()],
            identity: WORKLOAD.to_owned(),
            renew_by_token: !self.renews,
            ..CertifyResponse::default()
        }))
    }
}

/// Whether the client showed a certificate.
#[derive(Clone)]
struct Peer(bool);

/// Serves a control plane on loopback; an applicant to it with a token file that says "good".
async fn applicant(control_plane: ControlPlane, dir: &Path) -> Applicant {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let authority = control_plane.authority.clone();
    let acceptor = authority.control_plane();
    let service = IdentityServer::new(control_plane);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            let peer = Peer(tls.get_ref().1.peer_certificates().is_some());
            let service = service.clone();
            let answer = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(peer.clone());
                service.clone().call(request)
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(tls), answer));
        }
    });
    let (trust_bundle, token_file) = (dir.join("bundle.pem"), dir.join("token"));
    fs::write(&trust_bundle, authority.pem()).unwrap();
    fs::write(&token_file, "good\n").unwrap();
    let store = Arc::new(CredentialStore::default());
    Applicant {
        control_plane: KnownHost::new(&address, None),
        trust_bundle,
        token_file: Some(token_file),
        renew_by_token: AtomicBool::new(false),
        store,
    }
}

fn control_plane(lifetime: Duration, renews: bool) -> ControlPlane {
    ControlPlane { authority: Arc::new(Authority::new()), lifetime, renews, issued: Arc::default() }
}

#[tokio::test]
async fn first_by_token_then_by_certificate_with_a_new_key_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = control_plane(Duration::from_secs(60), true);
    let issued = server.issued.clone();
    let applicant = applicant(server, dir.path()).await;
    let first = applicant.apply().await.unwrap();
    assert_eq!((first.id.as_str(), first.epoch), (WORKLOAD, 1));
    assert!(left(&first) > Duration::from_secs(50) && left(&first) <= Duration::from_secs(60));
    fs::remove_file(dir.path().join("token")).unwrap();
    let second = applicant.apply().await.unwrap();
    assert_eq!(second.epoch, 2);
    let issued = issued.lock().unwrap();
    assert_eq!((issued[0].0.as_str(), issued[1].0.as_str()), ("token", "certificate"));
    assert_ne!(issued[0].1, issued[1].1);
}

#[tokio::test]
async fn by_token_again_where_certificates_do_not_renew_or_have_expired() {
    for (lifetime, renews) in [(Duration::from_secs(60), false), (Duration::ZERO, true)] {
        let dir = tempfile::tempdir().unwrap();
        let server = control_plane(lifetime, renews);
        let issued = server.issued.clone();
        let applicant = applicant(server, dir.path()).await;
        applicant.apply().await.unwrap();
        applicant.apply().await.unwrap();
        assert!(issued.lock().unwrap().iter().all(|(by, _)| by.starts_with("token")));
    }
}

#[tokio::test]
async fn where_the_control_plane_wants_the_token_each_time_it_goes_with_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let server = control_plane(Duration::from_secs(60), false);
    let issued = server.issued.clone();
    let applicant = applicant(server, dir.path()).await;
    applicant.apply().await.unwrap();
    // The kubelet replaces the file while the old token is good still; the bundle file lags behind a root that changes.
    fs::write(dir.path().join("bundle.pem"), Authority::new().pem()).unwrap();
    applicant.apply().await.unwrap();
    let by: Vec<String> = issued.lock().unwrap().iter().map(|(by, _)| by.clone()).collect();
    assert_eq!(by, ["token", "token over mTLS"]);
    // Without a token there is no certificate any more.
    fs::write(dir.path().join("token"), "revoked").unwrap();
    assert!(matches!(applicant.apply().await, Err(Failure::Tls(_) | Failure::Refused(_))));
    assert_eq!(issued.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut applicant = applicant(control_plane(Duration::from_secs(60), true), dir.path()).await;
    fs::write(dir.path().join("token"), "bad").unwrap();
    let says = |failure: Failure| failure.to_string();
    let refused = applicant.apply().await.map_err(says).unwrap_err();
    assert_eq!(refused, "the control plane refused: no proof of who you are (Unauthenticated)");
    fs::write(dir.path().join("token"), " \n").unwrap();
    assert!(applicant.apply().await.map_err(says).unwrap_err().ends_with("token: the file is empty"));
    applicant.token_file = None;
    assert!(applicant.apply().await.map_err(says).unwrap_err().contains("--token-file"));

    applicant.token_file = Some(dir.path().join("token"));
    fs::write(dir.path().join("token"), "good").unwrap();
    fs::write(dir.path().join("bundle.pem"), Authority::new().pem()).unwrap();
    let stranger = applicant.apply().await.map_err(says).unwrap_err();
    assert_eq!(stranger, "TLS with the control plane: the peer's certificate is not from the trust bundle");
    fs::write(dir.path().join("bundle.pem"), "nothing").unwrap();
    assert!(applicant.apply().await.map_err(says).unwrap_err().contains("holds no certificate"));
}
