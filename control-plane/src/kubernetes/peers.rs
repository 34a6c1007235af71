//! What the other replicas' proxies run. Every replica asks every other once a second, over mTLS between control planes: about
//! proxies that it lost, which may have gone to another, and, if it leads, how far each route and policy has come.
//!
//! Replicas are found by the endpoints of the Service `leno`. One that is there and does not answer makes what is known
//! incomplete, and the status says so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::ready,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;
use leno_proto::v1::{
    Laggard, ObjectProgress, ObjectRef, ReplicaReport, ReportRequest, replicas_client::ReplicasClient,
    replicas_server::Replicas,
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Response, Status, transport::Channel};

use super::{NAME, NAMESPACE, lease::Leader, limits, status::Standing};
use crate::{
    authority::{Authority, is_control_plane},
    model::{EndpointState, Kind, ObjectKey, World, slice},
    serve::{listener::Peer, tracker::Tracker},
};

mod tls;

/// The other replicas, as far as they have answered.
pub struct Peers {
    authority: Arc<Authority>,
    world: watch::Receiver<Arc<World>>,
    tracker: Arc<Tracker>,
    /// The name of this Pod.
    me: String,
    /// Of this process.
    instance: u64,
    /// Where replicas listen.
    port: u16,
    latest: Mutex<HashMap<IpAddr, Latest>>,
    /// Counts answers that say something else than the one before.
    news: watch::Sender<u64>,
}

/// What one replica said last.
struct Latest {
    /// None: that address is this process.
    report: Option<Reported>,
    at: Instant,
}

#[derive(PartialEq)]
struct Reported {
    settled: bool,
    objects: HashMap<ObjectRef, ObjectProgress>,
}

impl Peers {
    /// `me`: the name of this Pod. `port`: where this replica, as all of them, listens.
    pub fn new(
        authority: Arc<Authority>,
        world: watch::Receiver<Arc<World>>,
        tracker: Arc<Tracker>,
        me: &str,
        port: u16,
    ) -> Self {
        let (me, instance) = (me.to_owned(), fastrand::u64(1..));
        let (latest, news) = (Mutex::default(), watch::Sender::default());
        Self { authority, world, tracker, me, instance, port, latest, news }
    }

    /// Changes when other replicas' proxies may run something else than before.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Adds what the other replicas said of `object` to what is known here.
    pub fn add(&self, standing: &mut Standing, object: &ObjectRef, (generation, uid): (u64, &str), now: Instant) {
        let latest = self.latest.lock();
        for address in addresses(&self.world.borrow()) {
            match latest.get(&address) {
                Some(Latest { report: None, .. }) => {}
                Some(Latest { report: Some(report), at }) if now < *at + limits::PEER_SILENT => {
                    merge(standing, report, object, (generation, uid));
                }
                _ => standing.silent.push(address.to_string().into()),
            }
        }
    }

    /// Asks, until `stopping`.
    ///
    /// # Errors
    /// None: who does not answer is asked again.
    pub async fn run(
        self: Arc<Self>,
        leader: watch::Receiver<Leader>,
        mut stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut channels: HashMap<IpAddr, Channel> = HashMap::new();
        let mut complained: BTreeMap<IpAddr, String> = BTreeMap::new();
        loop {
            tokio::select! {
                () = sleep(limits::PEER_PACE.mul_f64(0.8 + 0.4 * fastrand::f64())) => {}
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            }
            let present = addresses(&self.world.borrow());
            self.latest.lock().retain(|address, _| present.contains(address));
            channels.retain(|address, _| present.contains(address));
            complained.retain(|address, _| present.contains(address));
            let request = ReportRequest { progress: leader.borrow().is_me, lost: self.tracker.lost(limits::PEER_LOST) };
            let mut asked = JoinSet::new();
            for address in present {
                if matches!(self.latest.lock().get(&address), Some(Latest { report: None, .. })) {
                    continue;
                }
                let known = channels.get(&address).cloned();
                let (peers, request) = (Arc::clone(&self), request.clone());
                asked.spawn(async move { (address, peers.ask(address, known, request).await) });
            }
            while let Some(answer) = asked.join_next().await {
                let Ok((address, answer)) = answer else { continue };
                match answer {
                    Ok((channel, report)) => {
                        if complained.remove(&address).is_some() {
                            tracing::info!(%address, replica = report.name, "a replica answers again");
                        }
                        channels.insert(address, channel);
                        self.heard(address, report);
                    }
                    Err(error) => {
                        channels.remove(&address);
                        let error = format!("{error:#}");
                        if complained.insert(address, error.clone()).is_none() {
                            tracing::warn!(%address, error, "a replica of the control plane does not answer");
                        }
                    }
                }
            }
        }
    }

    async fn ask(
        &self,
        address: IpAddr,
        known: Option<Channel>,
        request: ReportRequest,
    ) -> anyhow::Result<(Channel, ReplicaReport)> {
        let answer = async {
            let channel = match known {
                Some(channel) => channel,
                None => tls::connect(&self.authority, SocketAddr::new(address, self.port)).await?,
            };
            let mut client = ReplicasClient::new(channel.clone()).max_decoding_message_size(limits::PEER_REPORT_BYTES);
            let report = client.report(request).await.context("it refused")?.into_inner();
            anyhow::Ok((channel, report))
        };
        timeout(limits::PEER_ANSWER, answer).await.context("no answer in time")?
    }

    fn heard(&self, address: IpAddr, report: ReplicaReport) {
        let is_me = report.instance == self.instance;
        let connected = report.connected;
        let key = |progress: ObjectProgress| Some((progress.object.clone()?, progress));
        let objects = report.objects.into_iter().filter_map(key).collect();
        let next = Reported { settled: report.settled, objects };
        let next = Latest { report: (!is_me).then_some(next), at: Instant::now() };
        let before = self.latest.lock().insert(address, next);
        // Once they count there.
        if !is_me {
            self.tracker.found_elsewhere(&connected);
        }
        let same = before
            .is_some_and(|before| self.latest.lock().get(&address).is_some_and(|after| after.report == before.report));
        if !same {
            self.news.send_modify(|count| *count += 1);
        }
    }

    /// What is asked of this replica.
    async fn report(&self, request: &ReportRequest) -> ReplicaReport {
        // Before the count, which then has whoever is among them: who asks forgets them.
        let connected = self.tracker.connected_of(&request.lost);
        let world = Arc::clone(&self.world.borrow());
        let has_status = |kind: Kind| kind.is_route() || kind.is_policy();
        let look = |settled| {
            let objects = world.objects.iter().filter(|(key, _)| request.progress && has_status(key.kind));
            let objects: Vec<_> = objects
                .map(|(key, stored)| {
                    let object = object_ref(key);
                    let mut progress = self.tracker.progress(&object, Some(stored.generation), &stored.uid);
                    progress.laggards.truncate(super::status::NAMED);
                    ObjectProgress {
                        object: Some(object),
                        generation: stored.generation,
                        subscribed: progress.subscribed,
                        programmed: progress.programmed,
                        laggards: progress.laggards,
                        uid: stored.uid.to_string(),
                        awaited: progress.awaited,
                    }
                })
                .collect();
            ready((objects, settled))
        };
        let (objects, settled) = self.tracker.look(world.generation(), limits::PEER_SETTLE, look).await;
        ReplicaReport { instance: self.instance, name: self.me.clone(), objects, settled, connected }
    }
}

/// Answers `Replicas` of other control planes.
#[derive(Clone)]
pub struct Answers(pub Arc<Peers>);

#[tonic::async_trait]
impl Replicas for Answers {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReplicaReport>, Status> {
        let certificate = request.extensions().get::<Peer>().and_then(|peer| peer.certificate.as_ref());
        if !certificate.is_some_and(|certificate| is_control_plane(&certificate.identity)) {
            return Err(Status::permission_denied("only for control planes"));
        }
        let request = request.into_inner();
        if request.lost.len() > limits::PEER_LOST {
            return Err(Status::invalid_argument(format!("{} proxies at most", limits::PEER_LOST)));
        }
        Ok(Response::new(self.0.report(&request).await))
    }
}

/// `object` as messages name it.
pub(super) fn object_ref(key: &ObjectKey) -> ObjectRef {
    ObjectRef { kind: key.kind.as_str().to_owned(), namespace: key.namespace.to_string(), name: key.name.to_string() }
}

fn merge(standing: &mut Standing, report: &Reported, object: &ObjectRef, (generation, uid): (u64, &str)) {
    standing.settled &= report.settled;
    let Some(theirs) = report.objects.get(object) else {
        // Its API server has not told it yet.
        standing.settled = false;
        return;
    };
    standing.subscribed += theirs.subscribed;
    standing.awaited += theirs.awaited;
    // Replicas of before do not say it.
    let same = theirs.uid.is_empty() || uid.is_empty() || theirs.uid == uid;
    if theirs.generation == generation && same {
        standing.programmed += theirs.programmed;
        standing.laggards.extend(theirs.laggards.iter().cloned());
    } else {
        standing.settled = false;
    }
    standing.laggards.sort_by(|a: &Laggard, b| (&a.proxy, &a.reason).cmp(&(&b.proxy, &b.reason)));
}

/// Every replica that serves, this one among them.
fn addresses(world: &World) -> BTreeSet<IpAddr> {
    let service = ObjectKey { kind: Kind::Service, namespace: NAMESPACE.into(), name: NAME.into() };
    let slices = world.index.slices_of(&service).filter_map(|key| slice(&world.objects, key));
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    // One that is starting has no proxies yet, one that is ending still has.
    let serving = endpoints.filter(|endpoint| endpoint.state != EndpointState::NotReady);
    // A replica has one address in each family: either will do.
    let addresses: BTreeSet<IpAddr> = serving.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
    let v4: BTreeSet<IpAddr> = addresses.iter().copied().filter(IpAddr::is_ipv4).collect();
    if v4.is_empty() { addresses } else { v4 }
}

/// Whoever answers at all is not taken for silent.
const _: () = assert!(limits::PEER_ANSWER.as_secs() < limits::PEER_SILENT.as_secs());

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Document, Generations, MeshSettings};

    fn object() -> ObjectRef {
        ObjectRef { kind: "HTTPRoute".to_owned(), namespace: "shop".to_owned(), name: "cart".to_owned() }
    }

    fn reported(generation: u64, subscribed: u32, programmed: u32) -> Reported {
        let laggards = (programmed..subscribed).map(|n| Laggard {
            proxy: format!("shop/web-{n}"),
            reason: "pending".to_owned(),
            ..Laggard::default()
        });
        let progress = ObjectProgress {
            object: Some(object()),
            generation,
            subscribed,
            programmed,
            laggards: laggards.collect(),
            uid: "a".to_owned(),
            awaited: 0,
        };
        Reported { settled: true, objects: HashMap::from([(object(), progress)]) }
    }

    #[test]
    fn what_replicas_say_adds_up_only_for_the_same_generation() {
        let mut standing = Standing { subscribed: 2, programmed: 2, settled: true, ..Standing::default() };
        merge(&mut standing, &reported(3, 2, 1), &object(), (3, "a"));
        assert_eq!((standing.subscribed, standing.programmed, standing.laggards.len()), (4, 3, 1));
        assert!(standing.settled);
        merge(&mut standing, &reported(2, 5, 5), &object(), (3, "a"));
        assert_eq!((standing.subscribed, standing.programmed), (9, 3));
        assert!(!standing.settled, "it has not heard of this generation");
        let mut standing = Standing { settled: true, ..Standing::default() };
        merge(&mut standing, &reported(3, 1, 1), &object(), (3, "b"));
        assert_eq!((standing.programmed, standing.settled), (0, false), "that was another object of the same name");
        let mut of_before = reported(3, 1, 1);
        of_before.objects.values_mut().for_each(|progress| progress.uid.clear());
        for (report, uid) in [(of_before, "b"), (reported(3, 1, 1), "")] {
            let mut standing = Standing { settled: true, ..Standing::default() };
            merge(&mut standing, &report, &object(), (3, uid));
            assert_eq!((standing.programmed, standing.settled), (1, true), "it is not said whose generation it is");
        }
    }

    #[test]
    fn replicas_are_the_endpoints_of_the_service_that_serve() {
        let endpoint = |ip: &str, ready: bool, serving: bool, terminating: bool| json!({ "addresses": [ip], "conditions": { "ready": ready, "serving": serving, "terminating": terminating } });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": "leno-x", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": NAME } },
            "ports": [{ "name": "grpc", "port": 4190, "protocol": "TCP" }],
            "endpoints": [
                endpoint("10.0.0.1", true, true, false),
                endpoint("10.0.0.2", false, true, true),
                endpoint("10.0.0.3", false, false, false),
            ],
        });
        let document = Document { file: "all".into(), index: 1, content: Arc::new(slice) };
        let world = World::empty(MeshSettings::strict("cluster.local"), Generations::default());
        let world = world.apply(vec![document], Vec::new());
        assert_eq!(world.errors(), []);
        let expected: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(addresses(&world).into_iter().collect::<Vec<_>>(), expected);
    }
}
