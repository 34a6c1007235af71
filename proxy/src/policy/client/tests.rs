//! Against a control plane whose every word the test says.

use std::pin::Pin;

use hyper_util::rt::TokioExecutor;
use leno_proto::{
    spiffe::SpiffeId,
    v1::{
        self, Goodbye, Interest, Open, ResourceKind, ResourceName,
        discovery_server::{Discovery, DiscoveryServer},
        resource::Body,
    },
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tokio_stream::Stream as Flow;
use tonic::Status;
use tower::Service as _;

use super::*;
use crate::{
    policy::{
        Target,
        apply::tests::{endpoint, name, resource, service, to_backends},
    },
    testing,
    tls::testing::Authority,
};

const CART: &str = "cart.shop:80";
const BACKEND: &str = "shop/cart:80";
/// Ten times and more what any step takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// One stream, seen from the control plane.
struct Subscriber {
    requests: Streaming<SubscribeRequest>,
    responses: mpsc::Sender<Result<SubscribeResponse, Status>>,
    nonce: u64,
}

struct Fake(mpsc::UnboundedSender<Subscriber>);

#[tonic::async_trait]
impl Discovery for Fake {
    type SubscribeStream = Pin<Box<dyn Flow<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: tonic::Request<Streaming<SubscribeRequest>>,
    ) -> Result<tonic::Response<Self::SubscribeStream>, Status> {
        let (responses, receiver) = mpsc::channel(4);
        let _ = self.0.send(Subscriber { requests: request.into_inner(), responses, nonce: 0 });
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Subscriber {
    async fn next(&mut self) -> Option<Request> {
        let message = timeout(PATIENCE, self.requests.message()).await.expect("a request in time");
        message.ok().flatten()?.request
    }

    async fn open(&mut self) -> Open {
        match self.next().await {
            Some(Request::Open(open)) => open,
            other => panic!("not Open: {other:?}"),
        }
    }

    async fn interest(&mut self) -> Interest {
        match self.next().await {
            Some(Request::Interest(interest)) => interest,
            other => panic!("not Interest: {other:?}"),
        }
    }

    /// The verdict on the last delta.
    async fn verdict(&mut self) -> Verdict {
        match self.next().await {
            Some(Request::Verdict(verdict)) if verdict.nonce == self.nonce => verdict,
            other => panic!("not the verdict on {}: {other:?}", self.nonce),
        }
    }

    async fn send(&mut self, changed: Vec<v1::Resource>, removed: Vec<ResourceName>) {
        self.nonce += 1;
        let delta = Delta { nonce: self.nonce, generation: self.nonce, changed, removed };
        self.say(Response::Delta(delta)).await;
    }

    async fn say(&self, response: Response) {
        self.responses.send(Ok(SubscribeResponse { response: Some(response) })).await.unwrap();
    }
}

/// A proxy's policy, and the control plane that it follows.
struct Mesh {
    store: Arc<Store>,
    subscribers: mpsc::UnboundedReceiver<Subscriber>,
    authority: Authority,
    stop: watch::Sender<bool>,
    client: JoinHandle<()>,
}

impl Mesh {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = testing::config();
        config.control_plane = listener.local_addr().unwrap().to_string();
        let (sender, subscribers) = mpsc::unbounded_channel();
        let authority = Authority::new();
        let (acceptor, service) = (authority.control_plane(), DiscoveryServer::new(Fake(sender)));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let service = service.clone();
                let answer = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    service.clone().call(request)
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(tls), answer));
            }
        });
        let credentials = Arc::new(CredentialStore::default());
        credentials.install(authority.credentials(&SpiffeId::new("cluster.local", "shop", "client").unwrap()));
        let (store, asks) = Store::new();
        let (stop, mut stopped) = watch::channel(false);
        let shutdown = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let client = tokio::spawn(run(Arc::new(config), store.clone(), credentials, Arc::default(), asks, shutdown));
        Self { store, subscribers, authority, stop, client }
    }

    async fn subscriber(&mut self) -> Subscriber {
        timeout(PATIENCE, self.subscribers.recv()).await.expect("a stream in time").unwrap()
    }

    fn resolve(&self, key: &'static str) -> JoinHandle<Result<Arc<Destination>, Unavailable>> {
        let store = self.store.clone();
        tokio::spawn(async move { store.resolve(&key.into()).await })
    }
}

fn own() -> [ResourceName; 3] {
    [ResourceKind::Inbound, ResourceKind::Settings, ResourceKind::TrustBundle].map(|kind| name(kind, ""))
}

fn destination(version: &str) -> v1::Resource {
    let body = Body::Destination(service(to_backends(&[(1, BACKEND)])));
    resource(ResourceKind::Destination, CART, version, body)
}

fn endpoints(version: &str, address: &str) -> v1::Resource {
    let endpoints = v1::Endpoints { endpoints: vec![endpoint(address)], ..Default::default() };
    resource(ResourceKind::Endpoints, BACKEND, version, Body::Endpoints(endpoints))
}

/// Has the destination called, and brings it and its endpoints.
async fn bring(mesh: &Mesh, subscriber: &mut Subscriber) {
    let resolving = mesh.resolve(CART);
    assert_eq!(subscriber.interest().await.subscribe, [name(ResourceKind::Destination, CART)]);
    subscriber.send(vec![destination("d1")], vec![]).await;
    assert_eq!(subscriber.interest().await.subscribe, [name(ResourceKind::Endpoints, BACKEND)]);
    assert_eq!(subscriber.verdict().await.rejected, []);
    assert!(matches!(resolving.await.unwrap().unwrap().target, Target::Service(_)));
    let backend = mesh.store.snapshot().backends[BACKEND].clone();
    assert!(!backend.is_known());
    subscriber.send(vec![endpoints("e1", "10.1.0.1:80")], vec![]).await;
    timeout(PATIENCE, backend.known()).await.expect("endpoints in time");
    assert_eq!(subscriber.verdict().await.rejected, []);
}

#[tokio::test]
async fn a_destination_is_asked_for_brought_and_its_endpoints_after_it() {
    let mut mesh = Mesh::start().await;
    let mut subscriber = mesh.subscriber().await;
    let open = subscriber.open().await;
    assert_eq!(open.workload, "test");
    let mut held: Vec<_> = open.held.into_iter().filter_map(|held| held.name).collect();
    held.sort_by_key(|name| name.kind().as_str_name());
    assert_eq!(held, own());

    let settings = v1::Settings {
        trust_domain: "cluster.local".into(),
        mesh_networks: vec!["10.0.0.0/8".into()],
        ..Default::default()
    };
    let anchors = vec![mesh.authority.der()];
    let bundle = v1::TrustBundle { trust_domain: "cluster.local".into(), anchors };
    let inbound = v1::Inbound { mode: v1::inbound::Mode::Permissive.into(), ..Default::default() };
    let [inbound_name, settings_name, bundle_name] = own();
    let with = |name: ResourceName, body| resource(name.kind(), "", "1", body);
    let all = vec![
        with(inbound_name, Body::Inbound(inbound)),
        with(settings_name, Body::Settings(settings)),
        with(bundle_name, Body::TrustBundle(bundle)),
    ];
    subscriber.send(all, vec![]).await;
    assert_eq!(subscriber.verdict().await.rejected, []);
    assert!(mesh.store.is_ready());
    bring(&mesh, &mut subscriber).await;

    // Two that wait for one that does not exist are told so at once.
    let waiting = [mesh.resolve("gone.shop:80"), mesh.resolve("gone.shop:80")];
    let gone = name(ResourceKind::Destination, "gone.shop:80");
    assert_eq!(subscriber.interest().await.subscribe, std::slice::from_ref(&gone));
    subscriber.send(vec![], vec![gone.clone()]).await;
    assert_eq!(subscriber.interest().await.unsubscribe, [gone]);
    subscriber.verdict().await;
    for waiting in waiting {
        assert!(waiting.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_lost_stream_changes_nothing_and_the_next_resumes() {
    let mut mesh = Mesh::start().await;
    let mut subscriber = mesh.subscriber().await;
    subscriber.open().await;
    bring(&mesh, &mut subscriber).await;
    drop(subscriber);
    let mut subscriber = mesh.subscriber().await;
    assert!(mesh.store.get(&CART.into()).is_some());
    let versions: HashMap<_, _> =
        subscriber.open().await.held.into_iter().map(|held| (held.name.unwrap().key, held.version)).collect();
    assert_eq!((versions[CART].as_str(), versions[BACKEND].as_str()), ("d1", "e1"));
    subscriber.send(vec![endpoints("e2", "10.1.0.2:80")], vec![]).await;
    assert_eq!(subscriber.verdict().await.rejected, []);
    let endpoints = mesh.store.snapshot().backends[BACKEND].endpoints.load_full();
    assert_eq!(endpoints.endpoints[0].address.to_string(), "10.1.0.2:80");
}

#[tokio::test]
async fn what_was_asked_meanwhile_is_asked_on_the_next_stream() {
    let mut mesh = Mesh::start().await;
    let mut subscriber = mesh.subscriber().await;
    subscriber.open().await;
    let resolving = mesh.resolve(CART);
    subscriber.interest().await;
    drop(subscriber);
    let mut subscriber = mesh.subscriber().await;
    let open = subscriber.open().await;
    assert!(open.held.iter().any(|held| held.name.as_ref().is_some_and(|name| name.key == CART)));
    subscriber.send(vec![destination("d1")], vec![]).await;
    assert!(resolving.await.unwrap().is_ok());
}

#[tokio::test]
async fn an_address_found_to_be_outside_is_answered_by_settings() {
    let mut mesh = Mesh::start().await;
    let mut subscriber = mesh.subscriber().await;
    subscriber.open().await;
    let resolving = mesh.resolve("192.0.2.1:443");
    assert_eq!(subscriber.interest().await.subscribe, [name(ResourceKind::Destination, "192.0.2.1:443")]);
    let settings = v1::Settings { mesh_networks: vec!["10.0.0.0/8".into()], ..Default::default() };
    subscriber.send(vec![resource(ResourceKind::Settings, "", "1", Body::Settings(settings))], vec![]).await;
    assert!(matches!(resolving.await.unwrap().unwrap().target, Target::Outside));
    subscriber.verdict().await;
}

#[tokio::test]
async fn a_bad_resource_is_rejected_and_the_good_one_stays() {
    let mut mesh = Mesh::start().await;
    let mut subscriber = mesh.subscriber().await;
    subscriber.open().await;
    bring(&mesh, &mut subscriber).await;
    let bad = Body::Destination(service(to_backends(&[(1, "nonsense")])));
    let anchors = Body::TrustBundle(v1::TrustBundle { trust_domain: "cluster.local".into(), anchors: vec![vec![1]] });
    let changed = vec![
        resource(ResourceKind::Destination, CART, "d2", bad),
        resource(ResourceKind::TrustBundle, "", "b1", anchors),
    ];
    subscriber.send(changed, vec![]).await;
    let rejected = subscriber.verdict().await.rejected;
    let fields: Vec<_> = rejected.iter().map(|rejection| rejection.field.as_str()).collect();
    assert_eq!(fields, ["service.http.actions[0].backends[0].backend.key", "anchors"]);
    assert!(mesh.store.get(&CART.into()).is_some());
    // Good again.
    subscriber.send(vec![destination("d3")], vec![]).await;
    assert_eq!(subscriber.verdict().await.rejected, []);
}

#[tokio::test]
async fn after_a_goodbye_the_next_stream_opens_before_the_old_one_ends() {
    let mut mesh = Mesh::start().await;
    let mut old = mesh.subscriber().await;
    old.open().await;
    bring(&mesh, &mut old).await;
    old.say(Response::Goodbye(Goodbye { reason: "rebalance".to_owned() })).await;
    let mut new = mesh.subscriber().await;
    assert_eq!(new.open().await.held.len(), 5);
    assert_eq!(old.next().await, None);
}

#[tokio::test]
async fn at_the_end_it_says_farewell() {
    let mut mesh = Mesh::start().await;
    let mut subscriber = mesh.subscriber().await;
    subscriber.open().await;
    mesh.stop.send_replace(true);
    let ended = timeout(PATIENCE, subscriber.requests.message()).await.expect("the end in time");
    assert!(matches!(ended, Ok(None)), "ended, not broken: {ended:?}");
    drop(subscriber);
    timeout(PATIENCE, mesh.client).await.expect("it ends").unwrap();
}
