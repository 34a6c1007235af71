//! Endpoints of the mesh: mutual TLS, and what peers agree to carry.

use std::{cell::RefCell, time::SystemTime};

use leno_proto::spiffe::SpiffeId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    http::{h2, head::ResponseHead},
    net::Prefixed,
    tls::{Credentials, MeshProtocol, testing::Authority},
};

fn id(service_account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", service_account).unwrap()
}

/// A worker's, and where it finds its credentials: there are none yet.
fn upstreams() -> (Arc<CredentialStore>, Upstreams) {
    let store = Arc::new(CredentialStore::default());
    let resolver = dns::Resolver::new(tokio::runtime::Handle::current(), None);
    let upstreams = Upstreams::new(None, Arc::clone(&store), resolver);
    (store, upstreams)
}

/// A mesh peer that answers each connection's bytes with the protocol it was told.
async fn mesh_peer(credentials: Credentials) -> SocketAddr {
    changing_peer(Rc::new(RefCell::new(Rc::new(credentials)))).await
}

/// One that may be replaced by another.
async fn changing_peer(credentials: Rc<RefCell<Rc<Credentials>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let credentials = Rc::clone(&credentials.borrow());
            tokio::task::spawn_local(async move {
                let accepted = credentials.accept(Prefixed::new(bytes::Bytes::new(), tcp)).await;
                let Ok((mut stream, peer, protocol)) = accepted else { return };
                if protocol == MeshProtocol::Http1Mux {
                    return answer_streams(stream, format!("{peer} {protocol:?}")).await;
                }
                if protocol == MeshProtocol::TcpReady {
                    stream.write_u8(leno_proto::alpn::READY).await.unwrap();
                }
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    let body = format!("{peer} {protocol:?}");
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

/// Answers every request with `body`.
async fn answer_streams(stream: impl Io, body: String) {
    let drain = crate::drain::DrainOwner::default();
    let answer = |request: h2::Request| {
        let h2::Request { mut send, .. } = request;
        send.send_response(&ResponseHead::new(http::StatusCode::OK), false);
        send.send_data(body.as_bytes(), true);
    };
    let _ = h2::serve(stream, h2::Settings::new(), drain.handle(), answer, |_, _| {}).await;
}

#[tokio::test]
async fn our_own_expired_certificate_is_named_and_no_endpoint_blamed() {
    on_worker(async {
        let authority = Authority::new();
        let address = mesh_peer(authority.credentials(&id("cart"))).await;
        let (store, upstreams) = upstreams();
        let now = SystemTime::now();
        let (from, to) = (now - Duration::from_secs(60), now - Duration::from_secs(1));
        store.install(authority.issue_with(&[id("web").as_str()], from, to, true).trusting(&[&authority]));
        let backend = meshed(address, id("cart"));
        for _ in 0..20 {
            let error = upstreams.pick(&backend, &[], |_| None).await.unwrap().http(Carry::Http1).await.err().unwrap();
            assert!(error.to_string().contains("our own certificate expired at "), "{error}");
        }
        store.install(authority.credentials(&id("web")));
        assert!(upstreams.pick(&backend, &[], |_| None).await.unwrap().http(Carry::Http1).await.is_ok());
    })
    .await;
}

fn meshed(address: SocketAddr, identity: SpiffeId) -> Arc<Backend> {
    let backend = Backend::new("shop/cart:80".into());
    let endpoint = Endpoint::new(address, Some(identity), "cart-1", "", 1);
    backend.publish(EndpointSet::new(true, Protocol::Http, vec![endpoint]));
    Arc::new(backend)
}

#[tokio::test]
async fn a_meshed_endpoint_is_reached_by_mutual_tls_or_not_at_all() {
    on_worker(async {
        let authority = Authority::new();
        let address = mesh_peer(authority.credentials(&id("cart"))).await;
        let (store, upstreams) = upstreams();

        let backend = meshed(address, id("cart"));
        for _ in 0..20 {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            assert_eq!(pick.http(Carry::Http1).await.err().unwrap().reason().as_str(), "tls", "no certificate yet");
        }

        store.install(authority.credentials(&id("web")));
        let mut reused = Vec::new();
        for _ in 0..3 {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            let connection = pick.http(Carry::Http1).await.unwrap();
            reused.push(connection.reused);
            let answer = read(get(connection).await.unwrap()).await;
            assert_eq!(answer, "spiffe://cluster.local/ns/shop/sa/web Http1Mux");
        }
        assert_eq!(reused, [false, true, true]);

        store.install(authority.credentials(&id("web")));
        let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
        assert!(!pick.http(Carry::Http1).await.unwrap().reused, "credentials were rotated");

        let mut tcp = pick.tcp().await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("TcpReady") {
            let mut byte = [0];
            tcp.read_exact(&mut byte).await.unwrap();
            answer.push(byte[0].into());
        }

        let impostor = meshed(address, id("payment"));
        let error = upstreams.pick(&impostor, &[], |_| None).await.unwrap().http(Carry::Http2).await.err().unwrap();
        assert_eq!(error.reason().as_str(), "tls");
        assert!(error.to_string().contains("sa/payment"), "{error}");
    })
    .await;
}

/// A mesh peer that says `first` on each connection, and closes it.
async fn opaque_peer(credentials: Credentials, first: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let accepted = credentials.accept(Prefixed::new(bytes::Bytes::new(), tcp)).await;
            let Ok((mut stream, ..)) = accepted else { continue };
            let _ = stream.write_all(first).await;
            let _ = stream.flush().await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn opaque_bytes_are_connected_once_the_peer_says_that_its_application_is() {
    on_worker(async {
        let authority = Authority::new();
        let (store, upstreams) = upstreams();
        store.install(authority.credentials(&id("web")));
        let connect = async |address: SocketAddr| {
            let pick = upstreams.pick(&meshed(address, id("cart")), &[], |_| None).await.unwrap();
            pick.tcp().await
        };
        // With the first bytes of a server that speaks first, in one record.
        let mut greeted =
            connect(opaque_peer(authority.credentials(&id("cart")), b"\x06220 ready").await).await.unwrap();
        let mut greeting = String::new();
        greeted.read_to_string(&mut greeting).await.unwrap();
        assert_eq!(greeting, "220 ready");
        for (first, reason) in [(&b""[..], "connect"), (b"220 ready", "tls")] {
            let error = connect(opaque_peer(authority.credentials(&id("cart")), first).await).await.err().unwrap();
            assert_eq!(error.reason().as_str(), reason, "{error}");
        }
        // One of an earlier version is believed.
        let older = Rc::new(RefCell::new(Rc::new(authority.credentials(&id("cart")).knowing(&[MeshProtocol::Tcp]))));
        assert!(connect(changing_peer(older).await).await.is_ok());
    })
    .await;
}

/// Peers of other versions: what streams are not known to gets one request at a time.
#[tokio::test]
async fn a_peer_without_streams_is_reached_all_the_same() {
    on_worker(async {
        let authority = Authority::new();
        let cart = || authority.credentials(&id("cart"));
        let peer = Rc::new(RefCell::new(Rc::new(cart().knowing(&[MeshProtocol::Http1]))));
        let address = changing_peer(Rc::clone(&peer)).await;
        let (store, upstreams) = upstreams();
        store.install(authority.credentials(&id("web")));
        let backend = meshed(address, id("cart"));
        let request = async || {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            let connection = pick.http(Carry::Http1).await.unwrap();
            let reused = connection.reused;
            let answer = read(get(connection).await.unwrap()).await;
            (reused, String::from_utf8(answer.to_vec()).unwrap().split_off("spiffe://cluster.local/ns/shop/sa/".len()))
        };

        // All of the first find it out at once.
        let ((_, one), (_, two), (_, three)) = tokio::join!(request(), request(), request());
        assert_eq!([one, two, three], ["web Http1"; 3]);
        assert_eq!(request().await, (true, "web Http1".to_owned()));

        // Replaced by a newer one, and that by an older one. Its connections end with it.
        for (knowing, answer) in
            [(None, "web Http1Mux"), (Some(MeshProtocol::Http1), "web Http1"), (None, "web Http1Mux")]
        {
            let next = cart();
            peer.replace(Rc::new(match knowing {
                Some(protocol) => next.knowing(&[protocol]),
                None => next,
            }));
            store.install(authority.credentials(&id("web")));
            assert_eq!(request().await.1, answer);
            assert_eq!(request().await, (true, answer.to_owned()));
        }

        // Who knows neither is not reached.
        peer.replace(Rc::new(cart().knowing(&[MeshProtocol::Tcp])));
        store.install(authority.credentials(&id("web")));
        let error = upstreams.pick(&backend, &[], |_| None).await.unwrap().http(Carry::Http1).await.err().unwrap();
        assert!(error.to_string().contains("no mesh protocol"), "{error}");
    })
    .await;
}
