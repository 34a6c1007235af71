//! What a cluster adds to the control plane: who a workload is ([`token_review`]), where root and issuer are kept ([`root`]), the
//! trust bundle in every namespace of the mesh ([`bundle`]), which replica leads ([`lease`]), what the others' proxies run
//! ([`peers`]), and what objects are told of it ([`status`], [`mesh`]).
//!
//! Every call to the API server has a time limit, and while it is away everything held stays in force.

pub mod bundle;
pub mod lease;
pub mod mesh;
pub mod peers;
pub mod root;
pub mod status;
pub mod token_review;

use std::{
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kube::{Client, Config};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use self::{peers::Peers, token_review::TokenReviewer};
use crate::{
    authority::{self, Authority},
    model::{Object, ObjectKey, ProxyLife, World},
    serve::tracker::{Name, Tracker},
};

/// The control plane's namespace.
pub const NAMESPACE: &str = leno_proto::CONTROL_PLANE_NAMESPACE;
/// Its Service, ServiceAccount, Deployment and Lease.
pub const NAME: &str = "leno";
/// Owner of the fields that are written here.
pub const FIELD_MANAGER: &str = "leno";
/// Who writes `leno.dev/…` conditions (Gateway API's controllerName).
pub const CONTROLLER_NAME: &str = "leno.dev/control-plane";
/// The Secret of root and issuer, in cert-manager's form.
pub const ROOT_SECRET: &str = "leno-root";
/// The Secret of what issues now, in the same form: that of [`ROOT_SECRET`], but for a while after that has changed.
pub const ISSUER_SECRET: &str = "leno-issuer";
/// The Secret of what proxies seal session tokens with.
pub const SESSION_SECRET: &str = "leno-session";
/// Which roots are trusted, and until when.
pub const ROOTS_CONFIG_MAP: &str = "leno-roots";

/// Everything that has a bound here, by name.
pub mod limits {
    use std::time::Duration;

    /// Connecting to the API server.
    pub const CONNECT: Duration = Duration::from_secs(5);
    /// One call to the API server.
    pub const CALL: Duration = Duration::from_secs(10);
    /// TokenReviews that wait for the API server at once; one more is told to come back.
    pub const REVIEWS: usize = 64;
    /// A TokenReview: proxies wait 10 s for the whole of it.
    pub const REVIEW: Duration = Duration::from_secs(5);
    /// Between looks at root and issuer, at most.
    pub const ROOT_LOOK: Duration = Duration::from_secs(10);
    /// How long a new root is only trusted, before certificates are issued under it: every proxy is to know it by then, those
    /// too whose bundle is a file that the kubelet updates.
    pub const ROOT_PROPAGATION: Duration = Duration::from_secs(120);
    /// Beyond the last certificate under an old root, for clocks that differ.
    pub const ROOT_GRACE: Duration = Duration::from_secs(60);
    /// Roots that are trusted at once.
    pub const ROOTS: usize = 8;
    /// Between comparisons of all trust bundles with what they should be.
    pub const BUNDLE_RESYNC: Duration = Duration::from_secs(60);
    /// Between questions to the other replicas.
    pub const PEER_PACE: Duration = Duration::from_secs(1);
    /// For a replica's answer.
    pub const PEER_ANSWER: Duration = Duration::from_secs(2);
    /// How long a replica that is asked waits until all its proxies have been compared with its newest generation.
    pub const PEER_SETTLE: Duration = Duration::from_secs(1);
    /// A replica that has not answered for so long is silent.
    pub const PEER_SILENT: Duration = Duration::from_secs(5);
    /// A replica's answer, in bytes.
    pub const PEER_REPORT_BYTES: usize = 64 << 20;
    /// Lost proxies that another replica is asked about at once.
    pub const PEER_LOST: usize = 10_000;
    /// Between looks at what objects should be told.
    pub const STATUS_PACE: Duration = Duration::from_millis(250);
    /// The same after a look that took long, at most.
    pub const STATUS_REST: Duration = Duration::from_secs(2);
    /// How often an object is told how far it has come, at most.
    pub const STATUS_COALESCE: Duration = Duration::from_secs(2);
    /// How long it is waited for that all proxies have been compared with a generation.
    pub const STATUS_SETTLE: Duration = Duration::from_secs(2);
    /// Before each object that is read to be compared: 50 a second at most.
    pub const STATUS_READ_PAUSE: Duration = Duration::from_millis(20);
    /// Before each status that is written, beyond the former: some 10 a second at most.
    pub const STATUS_WRITE_PAUSE: Duration = Duration::from_millis(80);
    /// Between comparisons of an object with what it should say, at most; half of that at least.
    pub const STATUS_RESYNC: Duration = Duration::from_secs(600);
    /// How much later than it is due an object is compared, so that many are at once.
    pub const STATUS_COMPARE_BATCH: Duration = Duration::from_secs(15);
    /// Objects in a row, before it is looked whether others are more urgent.
    pub const STATUS_ROUND: usize = 50;
    /// Of a round, for each of what is less urgent.
    pub const STATUS_SHARE: usize = 10;
    /// Before something that failed is tried again.
    pub const RETRY: Duration = Duration::from_secs(2);
}

/// A client by `KUBECONFIG`, or by what Kubernetes gives a Pod. Does not connect yet. How long an answer may take is said call by
/// call: watches are silent for long.
///
/// # Errors
/// If neither is there, or it cannot be used.
pub async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer()
        .await
        .context("cannot tell where the API server is: set KUBECONFIG, or run in a Pod with a service account")?;
    config.connect_timeout = Some(limits::CONNECT);
    config.read_timeout = None;
    config.write_timeout = None;
    Client::try_from(config).context("cannot make a client of the API server")
}

/// This replica's part in the cluster.
pub struct Cluster {
    client: Client,
    keeper: root::Keeper,
    /// The name of this Pod.
    me: String,
}

impl Cluster {
    /// Opens the authority. An API server that does not answer is waited for, as is a Secret that cannot be used.
    ///
    /// # Errors
    /// If the options cannot be used.
    pub async fn open(client: Client, options: &authority::Options) -> anyhow::Result<(Authority, Self)> {
        let trust_domain = options.trust_domain.as_deref().unwrap_or(authority::DEFAULT_TRUST_DOMAIN);
        let lifetime = authority::bounded(options.certificate_lifetime)?;
        loop {
            match root::open(client.clone(), trust_domain, lifetime).await {
                Ok((authority, keeper)) => return Ok((authority, Self { client, keeper, me: name_of_pod() })),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "cannot open the certificate authority yet")
                }
            }
            sleep(limits::RETRY).await;
        }
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// How workloads prove who they are.
    pub fn token_reviewer(&self, trust_domain: &str) -> TokenReviewer {
        TokenReviewer::new(self.client(), trust_domain)
    }

    /// The other replicas, which listen on the same `port`.
    pub fn peers(
        &self,
        authority: &Arc<Authority>,
        world: &watch::Receiver<Arc<World>>,
        tracker: &Arc<Tracker>,
        port: u16,
    ) -> Arc<Peers> {
        Arc::new(Peers::new(Arc::clone(authority), world.clone(), Arc::clone(tracker), &self.me, port))
    }

    /// Starts what goes on for as long as the control plane runs.
    pub fn start(
        self,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        parts: Parts,
        world: &watch::Receiver<Arc<World>>,
        stopping: &watch::Receiver<bool>,
    ) -> Started {
        let Parts { authority, tracker, peers } = parts;
        // Until they are here, or another replica says that they are there, what they run is not known.
        tracker.expect(serving_proxies(&world.borrow()), Instant::now());
        let candidate = lease::Candidate::new(self.client(), &self.me);
        let leader = candidate.leader();
        tasks.spawn(candidate.run(stopping.clone()));
        let publisher = bundle::Publisher::new(self.client(), Arc::clone(&authority));
        tasks.spawn(publisher.run(world.clone(), leader.clone(), stopping.clone()));
        let writer = status::writer::Writer::new(self.client(), tracker, Arc::clone(&peers));
        let started = Started { leader: leader.clone(), status: writer.counts() };
        tasks.spawn(writer.run(world.clone(), leader.clone(), stopping.clone()));
        tasks.spawn(mesh::keep(self.client(), leader.clone(), stopping.clone()));
        tasks.spawn(peers.run(leader, stopping.clone()));
        tasks.spawn(self.keeper.keep(authority, stopping.clone()));
        started
    }
}

/// What is to be seen of [`Cluster::start`].
pub struct Started {
    pub leader: watch::Receiver<lease::Leader>,
    pub status: Arc<status::writer::Counts>,
}

/// What the rest of the control plane lends to [`Cluster::start`].
pub struct Parts {
    pub authority: Arc<Authority>,
    pub tracker: Arc<Tracker>,
    pub peers: Arc<Peers>,
}

/// Pods whose proxy may serve. One that has never been ready, or is between two starts, has no policy of any control plane: it gets the
/// newest once it comes.
fn serving_proxies(world: &World) -> Vec<Name> {
    let pods = world.objects.iter().filter(|(_, stored)| match stored.object.as_ref() {
        Object::Pod(pod) => pod.meshed && !pod.ips.is_empty() && pod.life.proxy == ProxyLife::Started,
        _ => false,
    });
    let name =
        |key: &ObjectKey| Name { namespace: key.namespace.to_string(), workload: key.name.to_string(), has_pod: true };
    pods.map(|(key, _)| name(key)).collect()
}

/// By the downward API; else a Pod's host name is its name.
fn name_of_pod() -> String {
    let said = ["POD_NAME", "HOSTNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let mut said = said.chain(std::fs::read_to_string("/etc/hostname").map(|name| name.trim().to_owned()));
    said.find(|name| !name.is_empty()).unwrap_or_else(|| NAME.to_owned())
}

/// A call to the API server, within [`limits::CALL`].
pub(crate) async fn call<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    within(limits::CALL, call).await.with_context(|| format!("cannot {what}"))
}

async fn within<T>(limit: Duration, call: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer.map_err(Failure)?),
        Err(_) => anyhow::bail!("the API server did not answer within {limit:?}"),
    }
}

/// As [`call`]; None: there is no such object.
pub(crate) async fn find<T>(what: &str, found: impl Future<Output = kube::Result<T>>) -> anyhow::Result<Option<T>> {
    call(what, async {
        match found.await {
            Ok(found) => Ok(Some(found)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

/// A call to the API server that failed, said once: kube's errors repeat their causes, and a refusal all of its fields.
#[derive(Debug)]
pub(crate) struct Failure(pub kube::Error);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let kube::Error::Api(status) = &self.0
            && !status.message.is_empty()
        {
            return f.write_str(&status.message);
        }
        write!(f, "{}", self.0)?;
        // The first cause is in the text already.
        let mut cause = self.0.source().and_then(Error::source);
        while let Some(deeper) = cause {
            write!(f, ": {deeper}")?;
            cause = deeper.source();
        }
        Ok(())
    }
}

impl Error for Failure {}

/// The HTTP status of the API server's refusal.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Whether it failed because somebody else was first (409).
pub(crate) fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|Failure(error)| code(error) == Some(409))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{FileContent, MeshSettings};

    #[tokio::test]
    async fn a_refusal_is_said_once() {
        let status =
            json!({ "status": "Failure", "message": "the name is taken", "reason": "AlreadyExists", "code": 409 });
        let refusal = kube::Error::Api(serde_json::from_value(status).unwrap());
        let refused = call("make a thing", async { Err::<(), _>(refusal) }).await.unwrap_err();
        assert_eq!(format!("{refused:#}"), "cannot make a thing: the name is taken");
        assert!(is_conflict(&refused));
        let away = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let away = kube::Error::Service(Box::new(away));
        let failed = call("make a thing", async { Err::<(), _>(away) }).await.unwrap_err();
        assert_eq!(format!("{failed:#}"), "cannot make a thing: ServiceError: connection refused");
        assert!(!is_conflict(&failed));
    }

    #[test]
    fn only_proxies_that_may_serve_are_waited_for() {
        let pod = |name: &str, statuses: Value| {
            let document = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop" },
                "status": { "podIP": "10.0.0.1", "initContainerStatuses": statuses },
            });
            FileContent::object(format!("Pod shop/{name}").into(), document)
        };
        let running = |started: bool| json!([{ "name": "leno-proxy", "started": started, "state": { "running": {} } }]);
        let mut ended = running(true);
        ended[0]["state"] = json!({ "terminated": {} });
        let pods = [
            pod("serves", running(true)),
            pod("never-ready", running(false)),
            pod("crashed", ended),
            pod("pending", json!([])),
        ];
        let world = World::of_api_server(MeshSettings::strict("cluster.local")).change(pods);
        assert_eq!(world.errors(), []);
        let expected = Name { namespace: "shop".to_owned(), workload: "serves".to_owned(), has_pod: true };
        assert_eq!(serving_proxies(&world), [expected]);
    }
}
