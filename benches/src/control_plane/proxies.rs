//! Simulated proxies, thousands in a process: each has a certificate of its own, one stream over mTLS, and accepts whatever
//! it is sent at once. What the parent is told, line by line: `ready`, and `acked CHANGE MICROSECONDS BYTES` when the last of this
//! process's proxies that are concerned by a change has answered (Unix time).

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use leno_e2e::forge::trusting_client;
use leno_proto::v1::{
    CertifyRequest, Delta, Interest, Open, Resource, ResourceKind, ResourceName, SubscribeRequest, Verdict,
    destination::Target, discovery_client::DiscoveryClient, identity_client::IdentityClient, resource::Body,
    subscribe_request::Request, subscribe_response::Response,
};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig,
    pki_types::{PrivatePkcs8KeyDer, ServerName},
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc},
    task::{JoinSet, LocalSet},
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::plan::{PORT, Plan, marked};

/// As the real proxy asks for.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const WINDOW: u32 = 4 << 20;
/// Proxies of one process that connect at the same time.
const CONNECTING: usize = 16;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    plan: Plan,
    /// The first proxy of this process.
    #[arg(long)]
    first: usize,
    #[arg(long)]
    count: usize,
    /// The control plane.
    #[arg(long)]
    address: SocketAddr,
    /// Join tokens, one a line, by number of the Service.
    #[arg(long)]
    tokens: PathBuf,
}

/// Until standard input ends.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let tokens = fs::read_to_string(&args.tokens).context("read the tokens")?;
    let tokens: Vec<&str> = tokens.lines().collect();
    let crowd = Rc::new(Crowd::of(args));
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let work = async {
        let mut proxies = JoinSet::new();
        let (ready, mut all_ready) = mpsc::channel::<()>(1);
        for number in args.first..args.first + args.count {
            let (service, workload) = args.plan.proxy(number);
            let token = (*tokens.get(service).context("a token for each service")?).to_owned();
            let (crowd, connecting, ready) = (Rc::clone(&crowd), Arc::clone(&connecting), ready.clone());
            let proxy = Proxy { number, workload, address: args.address, plan: args.plan, crowd };
            proxies.spawn_local(async move {
                let name = proxy.workload.clone();
                proxy.run(token, &connecting, ready).await.with_context(|| format!("simulated proxy {name}"))
            });
        }
        drop(ready);
        let stdin_ends = tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink()));
        tokio::pin!(stdin_ends);
        let mut announced = false;
        loop {
            tokio::select! {
                Some(ended) = proxies.join_next() => ended??,
                None = all_ready.recv(), if !announced => {
                    crowd.bytes.take();
                    println!("ready");
                    announced = true;
                }
                _ = &mut stdin_ends => return Ok(()),
            }
        }
    };
    LocalSet::new().run_until(work).await
}

/// What the proxies of this process know together.
struct Crowd {
    /// By Service: how many subscribe to it.
    subscribers: HashMap<usize, usize>,
    /// By change: who has answered.
    answered: RefCell<HashMap<u32, HashSet<usize>>>,
    bytes: RefCell<u64>,
}

impl Crowd {
    fn of(args: &Args) -> Self {
        let mut subscribers = HashMap::new();
        for service in (args.first..args.first + args.count).flat_map(|proxy| args.plan.called_by(proxy)) {
            *subscribers.entry(service).or_default() += 1;
        }
        Self { subscribers, answered: RefCell::default(), bytes: RefCell::default() }
    }

    fn answered(&self, proxy: usize, delta: &Delta) {
        *self.bytes.borrow_mut() += delta.encoded_len() as u64;
        for (service, change) in delta.changed.iter().filter_map(change_in) {
            let mut answered = self.answered.borrow_mut();
            let by = answered.entry(change).or_default();
            if by.insert(proxy) && Some(&by.len()) == self.subscribers.get(&service) {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                println!("acked {change} {} {}", now.as_micros(), self.bytes.take());
            }
        }
    }
}

/// The Service and the number of the change that a resource carries.
fn change_in(resource: &Resource) -> Option<(usize, u32)> {
    let key = &resource.name.as_ref()?.key;
    let of_key = || Plan::service_number(key.split_once('/')?.1.split_once(':')?.0);
    match resource.body.as_ref()? {
        Body::Endpoints(all) => Some((of_key()?, all.endpoints.iter().find_map(|one| marked(&one.zone))?)),
        Body::EndpointsDelta(delta) => Some((of_key()?, delta.upserted.iter().find_map(|one| marked(&one.zone))?)),
        Body::Destination(destination) => {
            let Some(Target::Service(target)) = &destination.target else { return None };
            let service = Plan::service_number(&target.service.as_ref()?.name)?;
            let mut rules =
                target.http.iter().flat_map(|http| &http.actions).filter_map(|action| action.origin.as_ref());
            Some((service, rules.find_map(|origin| marked(&origin.rule))?))
        }
        _ => None,
    }
}

struct Proxy {
    number: usize,
    workload: String,
    address: SocketAddr,
    plan: Plan,
    crowd: Rc<Crowd>,
}

impl Proxy {
    async fn run(self, token: String, connecting: &Semaphore, ready: mpsc::Sender<()>) -> Result<()> {
        let place = connecting.acquire().await?;
        let identity = self.certify(token).await.context("get a certificate")?;
        let channel = self.connect(identity).await.context("connect")?;
        let (requests, receiver) = mpsc::channel(4);
        let say = |request| SubscribeRequest { request: Some(request) };
        let instance = self.number as u64 + 1;
        let open = Open { version: "0.1.0".into(), workload: self.workload.clone(), instance, ..Open::default() };
        requests.send(say(Request::Open(open))).await?;
        let mut missing: HashSet<ResourceName> = self.subscriptions().into_iter().collect();
        let subscribe = missing.iter().cloned().collect();
        requests.send(say(Request::Interest(Interest { subscribe, unsubscribe: Vec::new() }))).await?;
        let mut client = DiscoveryClient::new(channel);
        let mut responses = client.subscribe(ReceiverStream::new(receiver)).await?.into_inner();
        let mut starting = Some((place, ready));
        while let Some(response) = responses.message().await? {
            let delta = match response.response {
                Some(Response::Delta(delta)) => delta,
                Some(Response::Goodbye(goodbye)) => bail!("the control plane leaves: {}", goodbye.reason),
                Some(Response::Question(_)) | None => continue,
            };
            requests.send(say(Request::Verdict(Verdict { nonce: delta.nonce, rejected: Vec::new() }))).await?;
            self.crowd.answered(self.number, &delta);
            for name in delta.changed.into_iter().filter_map(|resource| resource.name).chain(delta.removed) {
                missing.remove(&name);
            }
            if missing.is_empty() {
                starting = None;
            }
        }
        drop(starting);
        bail!("the control plane ended the stream")
    }

    fn subscriptions(&self) -> Vec<ResourceName> {
        let name = |kind: ResourceKind, key| ResourceName { kind: kind.into(), key };
        let own = [ResourceKind::Settings, ResourceKind::TrustBundle, ResourceKind::Inbound];
        let mut names: Vec<_> = own.into_iter().map(|kind| name(kind, String::new())).collect();
        for service in self.plan.called_by(self.number) {
            let address = Plan::cluster_ip(service);
            let (namespace, service) = (Plan::namespace(service), Plan::service(service));
            let called = if self.plan.by_name { format!("{service}.{namespace}") } else { address.to_string() };
            names.push(name(ResourceKind::Destination, format!("{called}:{PORT}")));
            names.push(name(ResourceKind::Endpoints, format!("{namespace}/{service}:{PORT}")));
        }
        names
    }

    /// A certificate for a new key, over a connection without one.
    async fn certify(&self, token: String) -> Result<ClientConfig> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        let mut client = IdentityClient::new(self.connect(trusting_client(None)?).await?);
        let issued = client.certify(CertifyRequest { csr, token }).await?.into_inner();
        let chain = issued.chain.into_iter().map(Into::into).collect();
        trusting_client(Some((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())))
    }

    async fn connect(&self, mut tls: ClientConfig) -> Result<Channel> {
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("control-plane")?;
        let mut stream = Some(TokioIo::new(TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?));
        let hand_over = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::other("one proxy, one connection"));
            async move { stream }
        });
        let endpoint = Endpoint::from_static("http://control-plane")
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        Ok(endpoint.connect_with_connector(hand_over).await?)
    }
}
