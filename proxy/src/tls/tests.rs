use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{testing::Authority, *};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const CONTROL_PLANE: &str = "spiffe://cluster.local/ns/leno-system/sa/leno";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// A handshake, then one byte each way. The reasons each side gives.
async fn meet(client: &Credentials, server: &Credentials, expected: &str) -> (Outcome, Outcome) {
    let (near, far) = tcp_pair().await;
    let connect = async {
        let (mut stream, _) = client.connect(near, &id(expected), MeshProtocol::Http2).await?;
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0; 1]).await?;
        Ok(())
    };
    let accept = async {
        let (mut stream, peer, protocol) = server.accept(Prefixed::new(Default::default(), far)).await?;
        stream.read_exact(&mut [0; 1]).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        Ok((peer, protocol))
    };
    let (connected, accepted) = tokio::join!(connect, accept);
    (connected.map_err(reason), accepted.map(|_: (SpiffeId, MeshProtocol)| ()).map_err(reason))
}

type Outcome = Result<(), &'static str>;

fn reason(error: TlsError) -> &'static str {
    error.reason()
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let authority = Authority::new();
    let client = authority.credentials(&id(CLIENT));
    let server = authority.credentials(&id(SERVER));
    use MeshProtocol::{Http1, Http1Mux, Http2, Tcp, TcpReady};
    for protocol in [Http1, Http1Mux, Http2, Tcp, TcpReady] {
        let (near, far) = tcp_pair().await;
        let server_id = id(SERVER);
        let (connected, accepted) = tokio::join!(
            client.connect(near, &server_id, protocol),
            server.accept(Prefixed::new(Default::default(), far))
        );
        assert_eq!(connected.unwrap().1, protocol);
        let (_, peer, told) = accepted.unwrap();
        assert_eq!((peer, told), (id(CLIENT), protocol));
    }
    let (near, far) = tcp_pair().await;
    let (connected, accepted) =
        tokio::join!(Done::client(&client.configs.tcp, near), server.accept(Prefixed::new(Default::default(), far)));
    let connected = connected.unwrap().connection;
    assert_eq!(connected.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = connected.negotiated_key_exchange_group().map(|group| group.name());
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    accepted.unwrap();
}

#[tokio::test]
async fn refusals_are_told_apart_by_both_sides() {
    let authority = Authority::new();
    // Same name, other key: only the signature differs.
    let stranger = Authority::new();
    let good = |name| authority.credentials(&id(name));
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let expired = |name| authority.issue_with(&[name], now - 2 * hour, now - hour, true).trusting(&[&authority]);
    let future = |name| authority.issue_with(&[name], now + hour, now + 2 * hour, true).trusting(&[&authority]);
    let foreign = "spiffe://other.domain/ns/shop/sa/client";

    // A bad server is found out by the client, during the handshake.
    for (server, expected, found) in [
        (good(SERVER), SERVER, Ok(())),
        (good(CLIENT), SERVER, Err("tls-wrong-identity")),
        (expired(SERVER), SERVER, Err("tls-expired")),
        (future(SERVER), SERVER, Err("tls-expired")),
        (stranger.issue(SERVER).trusting(&[&authority]), SERVER, Err("tls-unknown-issuer")),
    ] {
        let (client, _) = meet(&good(CLIENT), &server, expected).await;
        assert_eq!(client, found, "{server:?}");
    }
    // A bad client is found out by the server; the client learns of it with the first bytes.
    for (client, found) in [
        (expired(CLIENT), "tls-expired"),
        (future(CLIENT), "tls-expired"),
        (stranger.issue(CLIENT).trusting(&[&authority]), "tls-unknown-issuer"),
        (authority.issue_with(&[CLIENT], now - hour, now + hour, false).trusting(&[&authority]), "tls-not-an-identity"),
    ] {
        let (near, accepted) = meet(&client, &good(SERVER), SERVER).await;
        assert_eq!(accepted, Err(found), "{client:?}");
        // The alert, or the reset that overtook it.
        assert!(matches!(near, Err("tls-refused-by-peer" | "tls-handshake")), "{near:?}");
    }
    // Another trust domain, though from the same authority.
    let (near, accepted) = meet(&good(foreign), &good(SERVER), SERVER).await;
    assert_eq!(near, Err("tls-wrong-trust-domain"));
    assert_eq!(accepted, Err("tls-refused-by-peer"));
}

#[tokio::test]
async fn who_answers_in_plaintext_is_no_peer_and_told_so() {
    let client = Authority::new().credentials(&id(CLIENT));
    let (near, mut far) = tcp_pair().await;
    let answer = async {
        far.read_exact(&mut [0; 5]).await.unwrap();
        far.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        rest
    };
    let server = id(SERVER);
    let (connected, told) = tokio::join!(client.connect(near, &server, MeshProtocol::Http2), answer);
    assert_eq!(connected.map(|_| ()).map_err(reason), Err("tls-handshake"));
    // RFC 8446 section 6: an alert in clear, of two bytes, that is fatal.
    assert!(matches!(told.last_chunk(), Some([21, 3, _, 0, 2, 2, _])), "{told:?}");
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_named() {
    let authority = Authority::new();
    let server = authority.credentials(&id(SERVER));
    let client = authority.issue("spiffe://other.domain/ns/shop/sa/client");
    // As one that does not mind whom it calls.
    let anything = FirstContact::from_pem(authority.pem().as_bytes()).unwrap();
    let mut config = rustls::ClientConfig::clone(&anything.config);
    config.alpn_protocols = vec![b"leno1/tcp".to_vec()];
    let key = config::provider().key_provider.load_private_key(client.key).unwrap();
    let own = CertifiedKey::new(client.chain, key);
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(own));
    config.dangerous().set_certificate_verifier(Arc::new(TrustAll));
    let (near, far) = tcp_pair().await;
    let config = Arc::new(config);
    let (_, accepted) =
        tokio::join!(Done::client(&config, near), server.accept(Prefixed::new(Default::default(), far)));
    match accepted.map(|_| ()) {
        Err(TlsError::WrongTrustDomain(domain)) => assert_eq!(domain, "other.domain"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn no_certificate_or_no_mesh_protocol_is_refused() {
    let authority = Authority::new();
    let server = authority.credentials(&id(CONTROL_PLANE));
    for (alpn, found) in [(&b"leno1/tcp"[..], "tls-no-certificate"), (b"h2", "tls-no-protocol")] {
        let anonymous = FirstContact::from_pem(authority.pem().as_bytes()).unwrap();
        let mut config = rustls::ClientConfig::clone(&anonymous.config);
        config.alpn_protocols = vec![alpn.to_vec()];
        let (near, far) = tcp_pair().await;
        let config = Arc::new(config);
        let (_, accepted) =
            tokio::join!(Done::client(&config, near), server.accept(Prefixed::new(Default::default(), far)));
        assert_eq!(accepted.map(|_| ()).map_err(reason), Err(found));
    }
}

#[test]
fn exactly_one_uri_name_is_an_identity() {
    let authority = Authority::new();
    let (from, to) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(60));
    let parsed = |uris: &[&str]| verify::identity_of(&authority.issue_with(uris, from, to, true).chain[0]);
    assert_eq!(parsed(&[CLIENT]).unwrap(), id(CLIENT));
    assert!(parsed(&[]).is_err());
    assert!(parsed(&[CLIENT, SERVER]).is_err());
    assert!(parsed(&["https://example.com/"]).is_err());
}

#[test]
fn a_certificate_must_fit_its_key() {
    let authority = Authority::new();
    let (one, other) = (authority.issue(CLIENT), authority.issue(CLIENT));
    let refused = Credentials::new(one.chain, other.key, &[authority.der()]);
    assert!(matches!(refused, Err(InvalidCredentials::Key(_))), "{refused:?}");
}

#[tokio::test]
async fn rotation_raises_the_epoch_and_anchors_overlap() {
    let (old, new) = (Authority::new(), Authority::new());
    let store = CredentialStore::default();
    assert!(store.current().is_none());
    assert!(store.set_anchors("cluster.local", &[old.der()]).is_ok(), "kept for nobody, refused by nobody");
    let (first, ()) = tokio::join!(store.ready(), async {
        store.install(old.credentials(&id(CLIENT)));
    });
    assert_eq!((first.epoch, store.epoch()), (1, 1));

    store.set_anchors("cluster.local", &[old.der()]).unwrap();
    assert_eq!(store.epoch(), 1, "nothing changed");
    assert!(store.set_anchors("other.domain", &[old.der()]).is_err());
    assert!(store.set_anchors("cluster.local", &[b"no certificate"]).is_err());
    assert!(store.set_anchors("cluster.local", &Vec::<Vec<u8>>::new()).is_err());
    assert_eq!(store.epoch(), 1);

    let rotated = new.credentials(&id(SERVER));
    assert_eq!(meet(&store.current().unwrap(), &rotated, SERVER).await.0, Err("tls-unknown-issuer"));
    store.set_anchors("cluster.local", &[old.der(), new.der()]).unwrap();
    let both = new.issue(SERVER).trusting(&[&old, &new]);
    assert_eq!(meet(&store.current().unwrap(), &both, SERVER).await, (Ok(()), Ok(())));
    assert_eq!(store.epoch(), 2);
}

#[tokio::test]
async fn only_the_control_plane_is_taken_for_it() {
    let authority = Authority::new();
    let workload = authority.credentials(&id(CLIENT));
    let first = FirstContact::from_pem(authority.pem().as_bytes()).unwrap();
    let other = Authority::new();
    for (issuer, server, found) in [
        (&authority, CONTROL_PLANE, (None, None)),
        (&authority, "spiffe://other.domain/ns/leno-system/sa/leno", (None, Some("tls-wrong-trust-domain"))),
        (&authority, SERVER, (Some("tls-wrong-identity"), Some("tls-wrong-identity"))),
        (&other, CONTROL_PLANE, (Some("tls-unknown-issuer"), Some("tls-unknown-issuer"))),
    ] {
        let leaf = issuer.issue(server);
        let mut config = rustls::ServerConfig::builder_with_provider(config::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(leaf.chain, leaf.key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (near, far) = tcp_pair().await;
        let (connected, _) = tokio::join!(first.connect(near), acceptor.accept(far));
        let anonymous = connected.err().map(|error| error.reason());
        let (near, far) = tcp_pair().await;
        let (connected, _) = tokio::join!(workload.connect_control_plane(near), acceptor.accept(far));
        assert_eq!((anonymous, connected.err().map(|error| error.reason())), found, "{server}");
    }
}

/// A client that does not mind whom it calls.
#[derive(Debug)]
pub(super) struct TrustAll;

impl rustls::client::danger::ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        config::provider().signature_verification_algorithms.supported_schemes()
    }
}
