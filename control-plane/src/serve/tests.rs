//! A whole control plane in this process, and a real TLS client.

use std::fs;

use hyper_util::rt::TokioIo;
use leno_proto::v1::{
    CertifyRequest, CertifyResponse, Delta, HeldResource, Interest, ListProxiesRequest, ObjectRef, ObjectStatus, Open,
    Rejection, ResourceKind, ResourceName, SubscribeRequest, SubscribeResponse, Verdict, WatchObjectRequest,
    discovery_client::DiscoveryClient, identity_client::IdentityClient, operator_client::OperatorClient,
    subscribe_request::Request, subscribe_response::Response,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tempfile::TempDir;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::*;
use crate::authority::bound_pod::BoundPod;

/// Ten times what anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

struct Running {
    folder: TempDir,
    address: SocketAddr,
    authority: Arc<Authority>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  ports: [{port: 80, targetPort: 8080, appProtocol: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u1}
spec: {serviceAccountName: web}
status: {podIPs: [{ip: 10.0.0.9}]}
";

fn route(prefix: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: cart, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: cart}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]
      backendRefs: [{{name: cart, port: 80}}]
"
    )
}

impl Running {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        fs::write(folder.path().join("config/cart.yaml"), SERVICE).unwrap();
        Self::start_in(folder).await
    }

    async fn start_in(folder: TempDir) -> Self {
        let control_plane = ControlPlane::bind(options(folder.path())).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (address, authority) = (control_plane.address().unwrap(), Arc::clone(control_plane.authority()));
        let task = tokio::spawn(control_plane.serve(async {
            let _ = stopped.await;
        }));
        Self { folder, address, authority, stop, task }
    }

    fn write(&self, file: &str, content: &str) {
        let beside = self.folder.path().join(file);
        fs::write(&beside, content).unwrap();
        fs::rename(beside, self.folder.path().join("config").join(file)).unwrap();
    }

    async fn end(self) -> TempDir {
        self.stop.send(()).unwrap();
        timeout(LIMIT, self.task).await.unwrap().unwrap().unwrap();
        assert!(!operator::socket(&self.folder.path().join("state")).exists());
        self.folder
    }

    fn token(&self, service_account: &str) -> String {
        let (token, _) = self
            .authority
            .tokens()
            .unwrap()
            .issue("shop", service_account, Duration::from_secs(60), SystemTime::now())
            .unwrap();
        token
    }

    /// TLS, with a client certificate or without; the server is verified as a proxy does.
    async fn connect(&self, with: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> Channel {
        let anchors = &self.authority.material().anchors;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor.clone()).unwrap();
        }
        let roots = Arc::new(roots);
        let verifier = Arc::new(ByIdentity {
            chain: WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap(),
            expected: self.authority.control_plane().clone(),
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match with {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, address) = (TlsConnector::from(Arc::new(config)), self.address);
        let connect = service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from("leno").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        });
        Endpoint::from_static("http://leno").connect_with_connector(connect).await.unwrap()
    }

    async fn certify(&self, channel: Channel, token: &str) -> Result<(CertifyResponse, KeyPair), Status> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let request = CertifyRequest { csr, token: token.to_owned() };
        let response = IdentityClient::new(channel).certify(request).await?.into_inner();
        Ok((response, key))
    }

    /// A proxy with a certificate of its own.
    async fn proxy(&self, service_account: &str) -> Channel {
        let (certified, key) = self.certify(self.connect(None).await, &self.token(service_account)).await.unwrap();
        self.connect(Some(credentials(&certified, &key))).await
    }

    /// As [`Self::proxy`] of the service account `web`, whose certificate is bound to a Pod.
    async fn proxy_of_pod(&self, name: &str, uid: &str) -> Channel {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let identity = leno_proto::spiffe::SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let pod = BoundPod { name: name.to_owned(), uid: uid.to_owned() };
        let issued = self.authority.issue(&csr, &identity, Some(&pod), SystemTime::now()).unwrap();
        self.connect(Some((issued.chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))).await
    }

    async fn operator(&self) -> OperatorClient<Channel> {
        let path = operator::socket(&self.folder.path().join("state"));
        let connect = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        OperatorClient::new(Endpoint::from_static("http://leno").connect_with_connector(connect).await.unwrap())
    }
}

fn options(folder: &Path) -> Options {
    Options {
        source: Source::Folder(folder.join("config")),
        listen: "127.0.0.1:0".parse().unwrap(),
        authority: authority::Options {
            state: folder.join("state"),
            ca_dir: None,
            trust_domain: None,
            certificate_lifetime: authority::DEFAULT_CERTIFICATE_LIFETIME,
        },
        mesh_networks: vec!["10.0.0.0/8".parse().unwrap()],
        cluster_domain: crate::model::DEFAULT_CLUSTER_DOMAIN.to_owned(),
        explain: Default::default(),
        metrics: Some("127.0.0.1:0".parse().unwrap()),
        operator: None,
        webhooks: None,
    }
}

fn credentials(certified: &CertifyResponse, key: &KeyPair) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = certified.chain.iter().cloned().map(CertificateDer::from).collect();
    (chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

/// The chain as webpki checks it, the name by SPIFFE id.
#[derive(Debug)]
struct ByIdentity {
    chain: Arc<WebPkiServerVerifier>,
    expected: leno_proto::spiffe::SpiffeId,
}

impl rustls::client::danger::ServerCertVerifier for ByIdentity {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let (identity, _) = issue::identity(leaf).map_err(|e| rustls::Error::General(e.to_string()))?;
        assert_eq!(identity, self.expected);
        match self.chain.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            // The certificate holds no DNS name: that it got this far means that the chain is good.
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
            )) => Ok(rustls::client::danger::ServerCertVerified::assertion()),
            Err(error) => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// One stream, from the proxy's side.
struct Stream {
    requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
}

impl Stream {
    async fn open(channel: Channel, workload: &str, held: Vec<HeldResource>) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let open = Open { version: "0.1.0".into(), workload: workload.into(), held, ..Open::default() };
        requests.send(SubscribeRequest { request: Some(Request::Open(open)) }).await.unwrap();
        let responses =
            DiscoveryClient::new(channel).subscribe(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn say(&self, request: Request) {
        self.requests.send(SubscribeRequest { request: Some(request) }).await.unwrap();
    }

    async fn subscribe(&self, names: Vec<ResourceName>) {
        self.say(Request::Interest(Interest { subscribe: names, unsubscribe: Vec::new() })).await;
    }

    async fn next(&mut self) -> Result<Option<Response>, Status> {
        let message = timeout(LIMIT, self.responses.message()).await.expect("an answer in time")?;
        Ok(message.and_then(|m| m.response))
    }

    async fn delta(&mut self) -> Delta {
        match self.next().await.unwrap() {
            Some(Response::Delta(delta)) => delta,
            other => panic!("not a delta: {other:?}"),
        }
    }

    async fn accept(&self, delta: &Delta) {
        self.say(Request::Verdict(Verdict { nonce: delta.nonce, rejected: Vec::new() })).await;
    }
}

fn cart() -> ResourceName {
    ResourceName { kind: ResourceKind::Destination.into(), key: "cart.shop:80".into() }
}

fn object(kind: &str) -> ObjectRef {
    ObjectRef { kind: kind.into(), namespace: "shop".into(), name: "cart".into() }
}

async fn until(statuses: &mut Streaming<ObjectStatus>, holds: impl Fn(&ObjectStatus) -> bool) -> ObjectStatus {
    let found = async {
        loop {
            let status = statuses.message().await.unwrap().expect("a status");
            if holds(&status) {
                return status;
            }
        }
    };
    timeout(LIMIT, found).await.expect("it holds in time")
}

#[tokio::test]
async fn a_token_buys_a_certificate_and_the_certificate_the_next() {
    let running = Running::start().await;
    let stranger = running.connect(None).await;
    let (first, key) = running.certify(stranger.clone(), &running.token("web")).await.unwrap();
    assert_eq!(first.identity, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(first.anchors, authority::to_der(&running.authority.material().anchors));

    let known = running.connect(Some(credentials(&first, &key))).await;
    let (second, _) = running.certify(known, "").await.unwrap();
    assert_eq!(second.identity, first.identity);
    assert_ne!(second.chain, first.chain);

    for (channel, token, what) in [(&stranger, "", "token"), (&stranger, "nonsense", "damaged")] {
        let refused = running.certify(channel.clone(), token).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains(what), "{}", refused.message());
    }
    let unsubscribed = DiscoveryClient::new(stranger).subscribe(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(unsubscribed.code(), Code::Unauthenticated);
    running.end().await;
}

#[tokio::test]
async fn changes_arrive_and_acknowledgements_are_counted() {
    let running = Running::start().await;
    let mut stream = Stream::open(running.proxy("web").await, "web-1", Vec::new()).await;
    stream.subscribe(vec![cart()]).await;
    let first = stream.delta().await;
    assert_eq!(first.changed.len(), 1);
    stream.accept(&first).await;

    let mut operator = running.operator().await;
    running.write("route.yaml", &route("/a"));
    let request = WatchObjectRequest { object: Some(object("HTTPRoute")) };
    let mut statuses = operator.watch_object(request).await.unwrap().into_inner();
    // The route was written before the question, so the first answer knows it.
    let status = statuses.message().await.unwrap().unwrap();
    assert!(status.settled && !status.absent, "{status:?}");
    assert_eq!((status.generation, status.subscribed, status.programmed), (1, 1, 0));
    assert_eq!((status.laggards[0].proxy.as_str(), status.laggards[0].reason.as_str()), ("shop/web-1", "pending"));

    let second = stream.delta().await;
    assert!(second.generation > first.generation);
    stream.accept(&second).await;
    until(&mut statuses, |s| s.programmed == 1 && s.laggards.is_empty()).await;

    running.write("route.yaml", &route("/b"));
    let third = stream.delta().await;
    let rejected = Rejection {
        name: Some(cart()),
        version: third.changed[0].version.clone(),
        field: "http.rules[0]".into(),
        reason: "cannot".into(),
    };
    stream.say(Request::Verdict(Verdict { nonce: third.nonce, rejected: vec![rejected] })).await;
    let status = until(&mut statuses, |s| s.laggards.iter().any(|l| l.reason == "rejected")).await;
    assert_eq!(status.laggards[0].message, "http.rules[0]: cannot");
    assert_eq!((status.laggards[0].generation, status.generation), (1, 2));

    // A document that is bad leaves what is in force, and is named.
    running.write("route.yaml", &route("not-a-path"));
    let status = until(&mut statuses, |s| !s.errors.is_empty()).await;
    assert_eq!(status.generation, 2);
    assert_eq!(status.errors[0].file, "route.yaml");
    let proxies = operator.list_proxies(ListProxiesRequest {}).await.unwrap().into_inner();
    assert_eq!(proxies.proxies[0].rejected.len(), 1);
    running.end().await;
}

#[tokio::test]
async fn what_is_held_is_not_sent_again_even_by_another_control_plane() {
    let running = Running::start().await;
    running.write("route.yaml", &route("/a"));
    // Whatever is asked: the route has been read before it is answered.
    running.operator().await.list_proxies(ListProxiesRequest {}).await.unwrap();
    let mut stream = Stream::open(running.proxy("web").await, "web-1", Vec::new()).await;
    let none = ResourceName { kind: ResourceKind::Destination.into(), key: "10.99.0.1:80".into() };
    let settings = ResourceName { kind: ResourceKind::Settings.into(), key: String::new() };
    let bundle = ResourceName { kind: ResourceKind::TrustBundle.into(), key: String::new() };
    stream.subscribe(vec![settings.clone(), bundle.clone(), cart(), none.clone()]).await;
    let mut held = Vec::new();
    let mut removed = Vec::new();
    while held.len() < 3 || removed.is_empty() {
        let delta = stream.delta().await;
        stream.accept(&delta).await;
        held.extend(delta.changed.into_iter().map(|r| HeldResource { name: r.name, version: r.version }));
        removed.extend(delta.removed);
    }
    assert_eq!(removed, [none]);

    // The old one says goodbye, and ends well.
    let ended = tokio::spawn(running.end());
    assert!(matches!(stream.next().await, Ok(Some(Response::Goodbye(_)))));
    drop(stream);
    let folder = ended.await.unwrap();

    let running = Running::start_in(folder).await;
    let mut stream = Stream::open(running.proxy("web").await, "web-1", held).await;
    let mut operator = running.operator().await;
    let request = WatchObjectRequest { object: Some(object("HTTPRoute")) };
    let mut statuses = operator.watch_object(request).await.unwrap().into_inner();
    until(&mut statuses, |s| s.programmed == 1 && s.subscribed == 1).await;
    let proxies = operator.list_proxies(ListProxiesRequest {}).await.unwrap().into_inner();
    assert_eq!((proxies.proxies[0].resources_sent, proxies.proxies[0].subscriptions), (0, 3));
    // And goes on from there.
    running.write("route.yaml", &route("/b"));
    let delta = stream.delta().await;
    assert_eq!((delta.nonce, delta.changed.len()), (1, 1));
    running.end().await;
}

#[tokio::test]
async fn a_workload_is_who_its_certificate_says() {
    let running = Running::start().await;
    let mut other = Stream::open(running.proxy("intruder").await, "web-1", Vec::new()).await;
    let refused = other.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("runs as service account web"), "{}", refused.message());

    let channel = running.proxy("web").await;
    let mut first = Stream::open(channel.clone(), "web-1", Vec::new()).await;
    first.subscribe(vec![cart()]).await;
    first.delta().await;
    let mut second = Stream::open(channel.clone(), "web-1", Vec::new()).await;
    second.subscribe(vec![cart()]).await;
    second.delta().await;
    assert_eq!(first.next().await.unwrap_err().code(), Code::Aborted);

    let mut rude = Stream::open(channel, "web-2", Vec::new()).await;
    rude.say(Request::Verdict(Verdict { nonce: 7, rejected: Vec::new() })).await;
    assert_eq!(rude.next().await.unwrap_err().code(), Code::InvalidArgument);
    running.end().await;
}

#[tokio::test]
async fn a_certificate_that_is_bound_to_a_pod_is_of_use_to_no_other() {
    let running = Running::start().await;
    let known = running.proxy_of_pod("web-1", "u1").await;
    // Not known yet: it is about to be.
    let new = running.proxy_of_pod("web-2", "u2").await;
    let mut streams = Vec::new();
    for (channel, workload) in [(&known, "web-1"), (&new, "web-2")] {
        let mut stream = Stream::open(channel.clone(), workload, Vec::new()).await;
        stream.subscribe(vec![cart()]).await;
        stream.delta().await;
        streams.push(stream);
    }
    let before = running.proxy_of_pod("web-1", "u0").await;
    for (channel, workload, told) in [
        (&known, "invented", "is for the Pod shop/web-1 alone"),
        (&new, "web-1", "is for the Pod shop/web-2 alone"),
        (&before, "web-1", "of uid u0, but the Pod of that name has uid u1"),
    ] {
        let refused = Stream::open(channel.clone(), workload, Vec::new()).await.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{workload}");
        assert!(refused.message().contains(told), "{}", refused.message());
    }

    // Nor does a renewal by the certificate set it free.
    let (renewed, _) = running.certify(known.clone(), "").await.unwrap();
    let pod = BoundPod::of(&CertificateDer::from(renewed.chain[0].as_slice())).unwrap().unwrap();
    assert_eq!((pod.name.as_str(), pod.uid.as_str()), ("web-1", "u1"));

    // Its Pod is deleted and made again under its name.
    running.write("cart.yaml", &SERVICE.replace("uid: u1", "uid: u3"));
    let ended = streams[0].next().await.unwrap_err();
    assert!(ended.message().contains("of uid u1, but the Pod of that name has uid u3"), "{}", ended.message());
    running.end().await;
}

#[tokio::test]
async fn one_control_plane_per_state_folder() {
    let running = Running::start().await;
    let second = ControlPlane::bind(options(running.folder.path())).await.err().unwrap();
    assert!(format!("{second:#}").contains("another control plane"), "{second:#}");
    let folder = running.end().await;
    // A socket that a killed one left behind is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(operator::socket(&folder.path().join("state"))).unwrap());
    let running = Running::start_in(folder).await;
    running.operator().await.list_proxies(ListProxiesRequest {}).await.unwrap();
    running.end().await;
}
