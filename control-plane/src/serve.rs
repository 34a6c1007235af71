//! The control plane at work: certificates and `Discovery.Subscribe` over TLS, operators, and [`health`].
//!
//! One connection: [`listener`] (TCP, TLS, who is it; until that is known, one of the [`strangers`]) → [`discovery`] (one task per stream) → [`session`] (pure: what this
//! proxy holds, what it must be sent) over [`compiled`] resources, woken by [`interests`] when a change touches them; [`tracker`] knows who serves what, and the [`roster`] remembers who was there.

pub mod compiled;
pub mod discovery;
mod follow;
pub mod health;
pub mod interests;
pub mod listener;
pub mod metrics;
pub mod questions;
mod roster;
pub mod session;
mod strangers;
pub mod tracker;
pub mod wire;

use std::{
    fs::{File, OpenOptions, TryLockError},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use leno_proto::v1::{identity_server::IdentityServer, replicas_server::ReplicasServer};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};

use self::{discovery::Distributor, health::Health, listener::ServerCredentials, metrics::Metrics, tracker::Tracker};
use crate::{
    authority::{
        self, Authority,
        certify::{Certifier, Proof},
        issue,
    },
    kubernetes::{self, Cluster, peers::Answers},
    model::{Explain, InboundMode, MeshSettings, World},
    operator,
    sources::{self, Prompt, Source},
    webhook::{self, serve::Webhooks},
};

/// Everything that has a bound here, by name.
pub mod limits {
    use std::time::Duration;

    /// Proxies' connections at once; fewer if the process may not open as many files.
    pub const CONNECTIONS: usize = 16 * 1024;
    /// Connections without a client certificate, or whose handshake is not done, at once. One more makes the oldest leave.
    pub const STRANGERS: usize = 512;
    /// Files that are not connections: the configuration, sockets, what libraries open.
    pub const OTHER_FILES: usize = 128;
    /// A client's part of the TLS handshake.
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
    /// For a proxy's answer to an operator's question.
    pub const ANSWER: Duration = Duration::from_secs(5);
    /// Operators' questions at once.
    pub const QUESTIONS: usize = 64;
    /// For a proxy's answer when many are asked.
    pub const FIND_ANSWER: Duration = Duration::from_secs(2);
    /// For all answers together; who has not answered by then is said to be silent.
    pub const FIND: Duration = Duration::from_secs(20);
    /// Proxies that are asked for requests that they keep.
    pub const PROXIES_ASKED: usize = 1024;
    /// Bytes of all that they answer.
    pub const FOUND_BYTES: usize = 16 << 20;
    /// Headers by which proxies keep requests.
    pub const EXPLAIN_HEADERS: usize = 8;
    /// Refused connections that are logged one by one within [`REFUSALS_PERIOD`]; of the others, how many there were.
    pub const REFUSALS_LOGGED: u32 = 20;
    /// See [`REFUSALS_LOGGED`].
    pub const REFUSALS_PERIOD: Duration = Duration::from_secs(10);
    /// A connection without a client certificate may only ask for one, and is closed after this.
    pub const STRANGER_LIFETIME: Duration = Duration::from_secs(30);
    /// HTTP/2 streams per connection: one subscription, one renewal, and some air.
    pub const STREAMS_PER_CONNECTION: u32 = 16;
    /// A gRPC message from a proxy, in bytes: an `Open` with every subscription it may have.
    pub const REQUEST_BYTES: usize = 8 << 20;
    /// HTTP/2 request head, in bytes.
    pub const HEAD_BYTES: u32 = 16 * 1024;
    /// HTTP/2 ping, and how long its answer may take. Proxies send theirs too, and more often: they must know soon when to go
    /// elsewhere; of a proxy that vanished it is enough to know within minutes.
    pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
    /// See [`KEEPALIVE_INTERVAL`].
    pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
    /// A stream is ended after about this long (± 20 %), so that replicas share the load again.
    pub const STREAM_LIFETIME: Duration = Duration::from_secs(3600);
    /// Between `Goodbye` and the end of a stream.
    pub const GOODBYE_GRACE: Duration = Duration::from_secs(2);
    /// How long a replica in a cluster, told to end, still takes what comes: until everybody knows that it ends.
    pub const LAME_DUCK: Duration = Duration::from_secs(5);
    /// Writing down what is in force, at the end.
    pub const SAVE_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long the proxy that has a name may take to show that it is there, when another process comes with that name.
    pub const PROOF: Duration = Duration::from_secs(3);
    /// What a proxy may subscribe to.
    pub const SUBSCRIPTIONS: usize = 10_000;
    /// The key of a resource, in bytes (a host name's 253, and a port).
    pub const KEY_BYTES: usize = 512;
    /// The name of a workload, in bytes (a Pod's name).
    pub const WORKLOAD_BYTES: usize = 253;
    /// Capabilities a proxy may name.
    pub const CAPABILITIES: usize = 256;
    /// A delta is cut after about this many bytes; what is left follows once it is answered.
    pub const DELTA_BYTES: usize = 2 << 20;
    /// One resource, in bytes: what proxies can receive. A larger one is not sent, and its subscribers are laggards.
    pub const RESOURCE_BYTES: usize = 12 << 20;
    /// Text of a rejection that is kept, in characters.
    pub const REASON_CHARS: usize = 1024;
    /// How long a proxy without a Pod that vanished is still named, or waited for after a restart. One with a Pod is for as long as that
    /// is there, in Kubernetes for as long as its container runs.
    pub const DISCONNECTED_KEPT: Duration = Duration::from_secs(300);
    /// Proxies that vanished and are still named, at most.
    pub const DISCONNECTED: usize = 10_000;
}

/// How long a control plane that is just ending is waited for; a killed one still takes a moment to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// What a control plane is started with. See `leno control-plane --help`.
#[derive(Debug, Clone)]
pub struct Options {
    pub source: Source,
    /// Where proxies connect. Port 0: any.
    pub listen: SocketAddr,
    pub authority: authority::Options,
    pub mesh_networks: Vec<IpNet>,
    /// Of the cluster's DNS.
    pub cluster_domain: String,
    /// Of which requests proxies keep what they decided.
    pub explain: Explain,
    /// Serves Prometheus metrics and health over plain HTTP.
    pub metrics: Option<SocketAddr>,
    /// Answers operators there, on a loopback; None: at a socket in the state folder.
    pub operator: Option<SocketAddr>,
    /// Answers the API server's questions about Pods and objects.
    pub webhooks: Option<webhook::serve::Options>,
}

/// A control plane that is bound and ready, and not yet serving.
pub struct ControlPlane {
    /// Held for as long as this control plane lives.
    _lock: Option<File>,
    /// None in Kubernetes.
    state: Option<PathBuf>,
    /// In Kubernetes.
    cluster: Option<Cluster>,
    authority: Arc<Authority>,
    world: watch::Receiver<Arc<World>>,
    prompt: Prompt,
    tracker: Arc<Tracker>,
    metrics: Arc<Metrics>,
    credentials: Arc<ServerCredentials>,
    tcp: TcpListener,
    operator: operator::Listener,
    webhooks: Option<Webhooks>,
    health: Arc<Health>,
    /// Tells every part to end.
    stop: watch::Sender<bool>,
}

impl ControlPlane {
    /// Opens the authority and the configuration, and binds every socket. An API server that does not answer is waited for.
    ///
    /// # Errors
    /// If the state folder is in use, or anything named in `options` cannot be read, written or bound.
    pub async fn bind(options: Options) -> anyhow::Result<Self> {
        listener::raise_file_limit();
        let (stop, health) = (watch::Sender::new(false), Health::starting());
        if let Some(address) = options.metrics {
            health::serve(address, Arc::clone(&health), stop.subscribe()).await?;
        }
        let state = match options.source {
            Source::Folder(_) => Some(options.authority.state.clone()),
            // Everything is in the API.
            Source::Kubernetes => None,
        };
        let lock = match &state {
            Some(state) => {
                authority::files::make_private_folder(state)?;
                Some(lock(state).await?)
            }
            None => None,
        };
        let tcp =
            listener::bind(options.listen).await.with_context(|| format!("cannot listen on {}", options.listen))?;
        health.waits_for("the certificate authority");
        let (authority, cluster) = match options.source {
            Source::Folder(_) => (Authority::open(options.authority.clone(), SystemTime::now())?, None),
            Source::Kubernetes => {
                let (authority, cluster) = Cluster::open(kubernetes::client().await?, &options.authority).await?;
                (authority, Some(cluster))
            }
        };
        let authority = Arc::new(authority);
        let webhooks = match (options.webhooks, &cluster) {
            (Some(options), Some(cluster)) => Some(Webhooks::bind(cluster.client(), options).await?),
            _ => None,
        };
        let mesh_settings = MeshSettings {
            trust_domain: authority.trust_domain().into(),
            mesh_networks: options.mesh_networks.clone(),
            cluster_domain: options.cluster_domain.as_str().into(),
            inbound: if cluster.is_some() { InboundMode::Permissive } else { InboundMode::Strict },
            explain: options.explain.clone(),
            session_key: Some(Arc::from(&authority.session_key()[..])),
        };
        health.waits_for("the first reading of the configuration");
        let (world, prompt) = match (options.source, &cluster) {
            (Source::Folder(config), _) => {
                sources::watch_folder(config, options.authority.state.clone(), mesh_settings).await?
            }
            (Source::Kubernetes, Some(cluster)) => {
                let health = Arc::clone(&health);
                sources::watch_kubernetes(cluster.client(), mesh_settings, move |what| health.waits_for(what)).await?
            }
            (Source::Kubernetes, None) => bail!("there is no client of the API server"),
        };
        let operator = operator::Listener::bind(options.operator, &options.authority.state).await?;
        let metrics = Arc::new(Metrics::default());
        let tracker = Arc::new(Tracker::default());
        if let Some(state) = &state {
            tracker.expect(roster::read(state), Instant::now());
        }
        let credentials = Arc::new(ServerCredentials::new(&authority, SystemTime::now())?);
        Ok(Self {
            _lock: lock,
            state,
            cluster,
            authority,
            world,
            prompt,
            tracker,
            metrics,
            credentials,
            tcp,
            operator,
            webhooks,
            health,
            stop,
        })
    }

    /// Where proxies connect.
    ///
    /// # Errors
    /// If the socket has no address.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        self.tcp.local_addr().context("the listening socket has no address")
    }

    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Serves until `shutdown` is done, then says goodbye to every proxy and returns.
    ///
    /// # Errors
    /// If a part of it ends by itself, which none should.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let stop = self.stop;
        let stopping = stop.subscribe();
        let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
        tracing::info!(
            listen = %self.tcp.local_addr()?,
            operator = %self.operator,
            trust_domain = self.authority.trust_domain(),
            trust_bundle = self.authority.trust_bundle_file().map(|file| file.display().to_string()),
            generation = self.world.borrow().generation(),
            connections = listener::connections(),
            "serving"
        );
        let (prompt, contacts) = (self.prompt.clone(), self.prompt.contacts());
        let on_issued = {
            let metrics = Arc::clone(&self.metrics);
            move || metrics.certificate_issued()
        };
        let proof = match &self.cluster {
            Some(cluster) => Proof::TokenReview(Box::new(cluster.token_reviewer(self.authority.trust_domain()))),
            None => Proof::JoinToken,
        };
        let port = self.tcp.local_addr()?.port();
        let peers = self.cluster.as_ref().map(|c| c.peers(&self.authority, &self.world, &self.tracker, port));
        let distributor = Distributor::new(
            self.authority.bundle(),
            self.world.clone(),
            Arc::clone(&self.tracker),
            Arc::clone(&self.metrics),
            stopping.clone(),
        );
        tasks.spawn(distributor.clone().tell());
        let services = listener::Services {
            identity: IdentityServer::new(Certifier::new(Arc::clone(&self.authority), proof, on_issued))
                .max_decoding_message_size(64 * 1024),
            discovery: distributor,
            replicas: peers.as_ref().map(|peers| ReplicasServer::new(Answers(Arc::clone(peers)))),
        };
        tasks.spawn(listener::serve(
            self.tcp,
            Arc::clone(&self.credentials),
            services,
            Arc::clone(&self.metrics),
            stopping.clone(),
        ));
        tasks.spawn(operator::serve(
            self.operator,
            operator::Answers::new(
                Arc::clone(&self.authority),
                self.world.clone(),
                self.prompt,
                Arc::clone(&self.tracker),
            ),
            stopping.clone(),
        ));
        let webhook_not_after = self.webhooks.as_ref().map(Webhooks::not_after);
        if let Some(webhooks) = self.webhooks {
            tasks.spawn(webhooks.serve(stopping.clone()));
        }
        if let Some(state) = self.state.clone() {
            tasks.spawn(roster::keep(state, Arc::clone(&self.tracker), stopping.clone()));
        }
        let in_cluster = self.cluster.is_some();
        tasks.spawn(follow::follow(self.world.clone(), Arc::clone(&self.tracker), in_cluster, stopping.clone()));
        let started = self.cluster.zip(peers).map(|(cluster, peers)| {
            let (authority, tracker) = (Arc::clone(&self.authority), Arc::clone(&self.tracker));
            cluster.start(&mut tasks, kubernetes::Parts { authority, tracker, peers }, &self.world, &stopping)
        });
        let cluster = started.zip(contacts).map(|(started, contacts)| metrics::cluster::ClusterView {
            contacts,
            leader: started.leader,
            status: started.status,
            webhook_not_after,
        });
        self.health.ready(metrics::View::new(
            Arc::clone(&self.metrics),
            Arc::clone(&self.tracker),
            Arc::clone(&self.authority),
            self.world.clone(),
            cluster,
        ));
        tasks.spawn(upkeep(Arc::clone(&self.authority), self.credentials, stopping));

        let ended = tokio::select! {
            () = shutdown => Ok(()),
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(())) => Err(anyhow::anyhow!("a part of the control plane ended by itself")),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(anyhow::anyhow!("a part of the control plane failed: {error}")),
            },
        };
        tracing::info!(proxies = self.tracker.connected(), "stopping");
        self.health.waits_for("the end: it is stopping");
        if in_cluster && ended.is_ok() {
            sleep(limits::LAME_DUCK).await;
        }
        stop.send_replace(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::GOODBYE_GRACE * 2, all).await.is_err() {
            tasks.abort_all();
        }
        if tokio::time::timeout(limits::SAVE_TIMEOUT, prompt.saved()).await.is_err() {
            tracing::warn!("ended before the last good versions of objects were written");
        }
        if let Some(state) = &self.state {
            operator::unbind(state);
        }
        ended
    }
}

/// One control plane per state folder. The lock goes with the process, however it ends.
async fn lock(state: &Path) -> anyhow::Result<File> {
    let path = state.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => sleep(LOCK_RETRY).await,
            Err(TryLockError::WouldBlock) => {
                bail!("another control plane is running on the state folder {}", state.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

/// Renews what expires, and raises the alarm over what cannot be renewed.
async fn upkeep(
    authority: Arc<Authority>,
    credentials: Arc<ServerCredentials>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let tick = (authority.certificate_lifetime() / 10).clamp(Duration::from_millis(500), Duration::from_secs(60));
    let mut alarmed = (None, None);
    let mut bundle = authority.bundle();
    loop {
        let now = SystemTime::now();
        bundle.mark_unchanged();
        match authority.refresh(now) {
            Ok(false) => {}
            Ok(true) => tracing::info!("root or issuer changed"),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "root and issuer cannot be read again: those in force stay"
            ),
        }
        if credentials.renewal_due(&authority, now) {
            renew(&authority, &credentials, now);
        }
        alarmed = raise_alarms(&authority.material(), authority.remedies(), now, alarmed);
        tokio::select! {
            () = sleep(tick) => {}
            Ok(()) = bundle.changed() => {}
            _ = stopping.wait_for(|s| *s) => return Ok(()),
        }
    }
}

fn renew(authority: &Authority, credentials: &ServerCredentials, now: SystemTime) {
    if let Err(error) = credentials.renew(authority, now) {
        tracing::error!(
            error = format!("{error:#}"),
            "cannot renew the control plane's own certificate: proxies cannot connect once it expires"
        );
    }
}

type Alarmed = (Option<u32>, Option<u32>);

/// Once per threshold (90, 30, 7 days, expired).
fn raise_alarms(
    material: &issue::Material,
    (root_remedy, issuer_remedy): (&str, &str),
    now: SystemTime,
    before: Alarmed,
) -> Alarmed {
    let root = issue::alarm(material.anchors_not_after, now);
    if root != before.0
        && let Some(days) = root
    {
        tracing::error!(
            not_after = %issue::display(material.anchors_not_after),
            within_days = days,
            "the root certificate nears its end, and with it every identity of the mesh: {root_remedy}"
        );
    }
    // An issuer that can be renewed is, at two thirds of its life.
    let issuer = match material.root_key {
        Some(_) if now < material.issuer_not_after => None,
        _ => issue::alarm(material.issuer_not_after, now),
    };
    if issuer != before.1
        && let Some(days) = issuer
    {
        tracing::error!(
            not_after = %issue::display(material.issuer_not_after),
            within_days = days,
            "the issuer's certificate nears its end: {issuer_remedy}"
        );
    }
    (root, issuer)
}

#[cfg(test)]
mod tests;
