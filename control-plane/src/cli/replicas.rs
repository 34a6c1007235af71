//! The replicas of a control plane, asked as one. Each knows the objects, and the proxies that are connected to it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use leno_proto::v1::{
    CheckAuthorityRequest, CheckAuthorityResponse, ExplainRequest, Explanation, FindRequestsRequest,
    FindRequestsResponse, Laggard, ListObjectsRequest, ListObjectsResponse, ListProxiesRequest, ListProxiesResponse,
    ObjectRef, ObjectStatus, ProxyStatus, WatchObjectRequest,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tonic::{Code, Status};

use super::connect::{Away, Client, Replica, said, serving_pods};

/// Silence after which it is looked whether other replicas serve by now: who vanished says no goodbye.
const SILENCE: Duration = Duration::from_secs(5);

/// How long a replica may take to answer, which waits itself for proxies that are being told.
const ANSWER: Duration = Duration::from_secs(15);
/// What it says before it is sure of it stands after that.
const SETTLING: Duration = Duration::from_secs(1);

/// Never empty.
#[derive(Clone)]
pub(super) struct Replicas {
    first: Client,
    others: Vec<Client>,
    /// In a cluster: how to see whether there are others by now.
    cluster: Option<(kube::Client, Vec<Replica>)>,
}

impl Replicas {
    pub(super) fn one(client: Client) -> Self {
        Self { first: client, others: Vec::new(), cluster: None }
    }

    pub(super) fn of_cluster(self, client: kube::Client, pods: Vec<Replica>) -> Self {
        Self { cluster: Some((client, pods)), ..self }
    }

    /// Whether other Pods serve than when these were found.
    async fn changed(&self) -> anyhow::Result<bool> {
        match &self.cluster {
            Some((client, pods)) => Ok(serving_pods(client).await? != *pods),
            None => Ok(false),
        }
    }

    pub(super) fn and(mut self, client: Client) -> Self {
        self.others.push(client);
        self
    }

    fn all(&self) -> impl Iterator<Item = Client> {
        std::iter::once(&self.first).chain(&self.others).cloned()
    }

    pub(super) async fn list_objects(&self, request: ListObjectsRequest) -> anyhow::Result<ListObjectsResponse> {
        let mut answers = Vec::new();
        for mut replica in self.all() {
            let connected = self.connected_at(&mut replica).await?;
            let answer = replica.list_objects(request.clone()).await.map_err(said)?.into_inner();
            answers.push((connected, answer));
        }
        Ok(objects(answers))
    }

    pub(super) async fn list_proxies(&self) -> anyhow::Result<ListProxiesResponse> {
        let mut answers = Vec::new();
        for mut replica in self.all() {
            answers.push(replica.list_proxies(ListProxiesRequest {}).await.map_err(said)?.into_inner());
        }
        Ok(proxies(answers))
    }

    /// Names of proxies that are connected to a replica, and that others may miss. With one replica: there are no others.
    async fn connected_at(&self, replica: &mut Client) -> anyhow::Result<BTreeSet<String>> {
        if self.others.is_empty() {
            return Ok(BTreeSet::new());
        }
        let all = replica.list_proxies(ListProxiesRequest {}).await.map_err(said)?.into_inner().proxies;
        Ok(all.into_iter().filter(|proxy| proxy.connected).map(|proxy| proxy.name).collect())
    }

    /// The state of an object now, where proxies may be moving between replicas.
    async fn status(&self, object: &ObjectRef) -> anyhow::Result<ObjectStatus> {
        let mut all = Vec::new();
        for replica in self.all() {
            let report = timeout(ANSWER, self.report(replica, object)).await;
            all.push(report.map_err(|_| Away("a replica of the control plane does not answer".to_owned()))??);
        }
        Ok(merged(all))
    }

    async fn report(&self, mut replica: Client, object: &ObjectRef) -> anyhow::Result<Report> {
        let connected = Arc::new(self.connected_at(&mut replica).await?);
        let request = WatchObjectRequest { object: Some(object.clone()) };
        let mut statuses = replica.watch_object(request).await.map_err(said)?.into_inner();
        let mut status = statuses.message().await.map_err(said)?.ok_or_else(ended)?;
        let end = Instant::now() + SETTLING;
        while !status.settled
            && let Ok(news) = timeout_at(end, statuses.message()).await
        {
            status = news.map_err(said)?.ok_or_else(ended)?;
        }
        Ok(Report { connected, status })
    }

    /// By the replica that the proxy is connected to.
    pub(super) async fn explain(&self, request: ExplainRequest) -> anyhow::Result<Explanation> {
        let mut unknown = Status::not_found("no replica knows that proxy");
        for mut replica in self.all() {
            match replica.explain(request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if status.code() == Code::NotFound => unknown = status,
                Err(status) => return Err(said(status)),
            }
        }
        Err(said(unknown))
    }

    /// What all of them find, as far as they answer.
    pub(super) async fn find_requests(&self, request: FindRequestsRequest) -> anyhow::Result<Found> {
        let mut answers = Vec::new();
        for mut replica in self.all() {
            answers.push(replica.find_requests(request.clone()).await.map(tonic::Response::into_inner));
        }
        all_found(answers).map_err(said)
    }

    /// All replicas have the same authority.
    pub(super) async fn check_authority(&self) -> anyhow::Result<CheckAuthorityResponse> {
        Ok(self.first.clone().check_authority(CheckAuthorityRequest {}).await.map_err(said)?.into_inner())
    }

    /// The state of an object, again whenever it changes.
    pub(super) async fn watch_object(&self, object: &ObjectRef) -> anyhow::Result<Statuses> {
        let (sender, news) = mpsc::channel(1);
        let mut count = 0;
        for (index, mut replica) in self.all().enumerate() {
            let request = WatchObjectRequest { object: Some(object.clone()) };
            let mut statuses = replica.watch_object(request).await.map_err(said)?.into_inner();
            let sender = sender.clone();
            tokio::spawn(async move {
                loop {
                    let news = tokio::select! {
                        news = statuses.message() => news,
                        () = sender.closed() => return,
                    };
                    let last = !matches!(news, Ok(Some(_)));
                    if sender.send((index, news)).await.is_err() || last {
                        return;
                    }
                }
            });
            count = index + 1;
        }
        Ok(Statuses { replicas: self.clone(), object: object.clone(), news, known: vec![None; count] })
    }
}

fn ended() -> Away {
    Away("the control plane stopped answering".to_owned())
}

type News = Result<Option<ObjectStatus>, Status>;

/// See [`Replicas::watch_object`].
pub(super) struct Statuses {
    replicas: Replicas,
    object: ObjectRef,
    news: mpsc::Receiver<(usize, News)>,
    /// What each replica said last.
    known: Vec<Option<ObjectStatus>>,
}

impl Statuses {
    /// Whether other replicas serve by now, which may know more: then this is to be asked anew.
    pub(super) async fn outdated(&self) -> anyhow::Result<bool> {
        self.replicas.changed().await
    }

    /// Once every replica has said something, at each change.
    ///
    /// # Errors
    /// [`Away`] where a replica has ended, or others serve by now: this is to be asked anew.
    pub(super) async fn next(&mut self) -> anyhow::Result<ObjectStatus> {
        loop {
            let news = match timeout(SILENCE, self.news.recv()).await {
                Ok(news) => news,
                Err(_) if self.outdated().await? => anyhow::bail!(Away("other replicas serve by now".to_owned())),
                Err(_) => continue,
            };
            let (index, news) = news.ok_or_else(ended)?;
            let status = news.map_err(said)?.ok_or_else(ended)?;
            if let Some(known) = self.known.get_mut(index) {
                *known = Some(status);
            }
            let known: Option<Vec<_>> = self.known.iter().cloned().collect();
            let Some(known) = known else { continue };
            // Whom one replica misses another may have had since before it said anything.
            if known.len() > 1 && known.iter().flat_map(|status| &status.laggards).any(is_disconnected) {
                return self.replicas.status(&self.object).await;
            }
            let all = known.into_iter().map(|status| Report { connected: Arc::default(), status });
            return Ok(merged(all.collect()));
        }
    }
}

/// See [`Replicas::find_requests`].
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) all: FindRequestsResponse,
    /// What replicas said that could not answer.
    pub(super) failures: Vec<String>,
}

/// A replica that does not know the proxy that is asked is none the worse for it, if another does; and one that fails takes
/// nothing from what the others found.
fn all_found(answers: Vec<Result<FindRequestsResponse, Status>>) -> Result<Found, Status> {
    let mut found: Option<Found> = None;
    let mut failed = Vec::new();
    let mut unknown = None;
    for answer in answers {
        match answer {
            Ok(answer) => together(&mut found.get_or_insert_default().all, answer),
            Err(status) if status.code() == Code::NotFound => unknown = Some(status),
            Err(status) => failed.push(status),
        }
    }
    if let Some(mut found) = found {
        found.failures = failed.iter().map(|status| status.message().to_owned()).collect();
        return Ok(found);
    }
    // That one failed weighs more than that another does not know the proxy.
    let why = failed.into_iter().next().or(unknown);
    Err(why.unwrap_or_else(|| Status::not_found("no replica knows that proxy")))
}

fn together(all: &mut FindRequestsResponse, one: FindRequestsResponse) {
    all.requests.extend(one.requests);
    all.requests.sort_by_key(|found| found.request.as_ref().map(|request| request.began_us));
    all.silent.extend(one.silent);
    all.asked += one.asked;
    all.not_asked += one.not_asked;
    all.left_out += one.left_out;
}

/// What each replica says of all objects, and who was connected to it before it said so.
fn objects(answers: Vec<(BTreeSet<String>, ListObjectsResponse)>) -> ListObjectsResponse {
    let replicas = answers.len();
    let mut all = ListObjectsResponse::default();
    let mut by_name: BTreeMap<(String, String, String), Vec<Report>> = BTreeMap::new();
    let mut order = Vec::new();
    for (connected, answer) in answers {
        let connected = Arc::new(connected);
        all.generation = all.generation.max(answer.generation);
        for error in answer.errors {
            if !all.errors.contains(&error) {
                all.errors.push(error);
            }
        }
        for status in answer.objects {
            let ObjectRef { kind, namespace, name } = status.object.clone().unwrap_or_default();
            let key = (kind, namespace, name);
            let known = by_name.entry(key.clone()).or_default();
            if known.is_empty() {
                order.push(key);
            }
            known.push(Report { connected: Arc::clone(&connected), status });
        }
    }
    for key in order {
        let Some(reports) = by_name.remove(&key) else { continue };
        let everywhere = reports.len() == replicas;
        let mut status = merged(reports);
        status.settled &= everywhere;
        all.objects.push(status);
    }
    all
}

fn proxies(answers: Vec<ListProxiesResponse>) -> ListProxiesResponse {
    let mut all = ListProxiesResponse::default();
    let mut by_name: BTreeMap<String, ProxyStatus> = BTreeMap::new();
    for answer in answers {
        all.generation = all.generation.max(answer.generation);
        for proxy in answer.proxies {
            // Where it was before it moved, it is still known.
            match by_name.get(&proxy.name) {
                Some(known) if known.connected => {}
                _ => drop(by_name.insert(proxy.name.clone(), proxy)),
            }
        }
    }
    all.proxies = by_name.into_values().collect();
    all
}

/// What a replica says of an object.
struct Report {
    /// Proxies that were connected to it before it said so: it counts them, or misses them itself.
    connected: Arc<BTreeSet<String>>,
    status: ObjectStatus,
}

impl Report {
    fn misses(&self, proxy: &str) -> bool {
        self.status.laggards.iter().any(|laggard| laggard.proxy == proxy && is_disconnected(laggard))
    }

    fn counts(&self, proxy: &str) -> bool {
        // Few are at both: the list of whom it misses is seldom looked through.
        self.connected.contains(proxy) && !self.misses(proxy)
    }
}

fn is_disconnected(laggard: &Laggard) -> bool {
    laggard.reason == "disconnected"
}

/// What several replicas say of one object. Whom one misses that another counts, nobody misses.
fn merged(reports: Vec<Report>) -> ObjectStatus {
    let statuses = || reports.iter().map(|report| &report.status);
    let newest = statuses().filter(|status| !status.absent).map(|status| status.generation).max();
    let is_newest = |status: &&ObjectStatus| (!status.absent).then_some(status.generation) == newest;
    let settled = statuses().all(|status| is_newest(&status) && status.settled);
    let mut all = statuses().find(is_newest).cloned().unwrap_or_default();
    (all.subscribed, all.programmed, all.settled) = (0, 0, settled);
    all.laggards.clear();
    all.errors.clear();
    let mut missed = HashSet::new();
    for status in statuses() {
        all.subscribed += status.subscribed;
        // Of an older generation, or a newer one: it says nothing of this.
        all.programmed += if status.generation == all.generation { status.programmed } else { 0 };
        for laggard in &status.laggards {
            let is_counted = || reports.iter().any(|report| report.counts(&laggard.proxy));
            if is_disconnected(laggard) && (is_counted() || !missed.insert(&laggard.proxy)) {
                all.subscribed = all.subscribed.saturating_sub(1);
            } else {
                all.laggards.push(laggard.clone());
            }
        }
        for error in &status.errors {
            if !all.errors.contains(error) {
                all.errors.push(error.clone());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(generation: u64, subscribed: u32, programmed: u32, laggards: &[&str]) -> ObjectStatus {
        let laggard = |proxy: &&str| Laggard {
            proxy: (*proxy).to_owned(),
            reason: "disconnected".to_owned(),
            ..Laggard::default()
        };
        ObjectStatus {
            generation,
            subscribed,
            programmed,
            laggards: laggards.iter().map(laggard).collect(),
            settled: true,
            ..ObjectStatus::default()
        }
    }

    fn report(connected: &[&str], status: ObjectStatus) -> Report {
        Report { connected: Arc::new(connected.iter().map(|name| (*name).to_owned()).collect()), status }
    }

    fn unmoved(statuses: Vec<ObjectStatus>) -> ObjectStatus {
        merged(statuses.into_iter().map(|status| report(&[], status)).collect())
    }

    #[test]
    fn replicas_add_up() {
        let all = unmoved(vec![status(7, 2, 2, &[]), status(7, 3, 2, &["shop/a"])]);
        assert_eq!((all.subscribed, all.programmed, all.laggards.len(), all.settled), (5, 4, 1, true));
    }

    #[test]
    fn who_moved_to_another_replica_is_not_missed() {
        let all = merged(vec![report(&["shop/a"], status(7, 2, 2, &[])), report(&[], status(7, 1, 0, &["shop/a"]))]);
        assert_eq!((all.subscribed, all.programmed, all.laggards.len()), (2, 2, 0));
    }

    /// It was connected to both in turn, before either said anything, and is now at neither.
    #[test]
    fn who_is_counted_nowhere_is_missed() {
        let moving = || report(&["shop/a"], status(7, 2, 1, &["shop/a"]));
        let all = merged(vec![moving(), moving()]);
        assert_eq!((all.subscribed, all.programmed, all.laggards.len()), (3, 2, 1));
        // Still there when it was asked who is, and gone before the state of the object was.
        let all = merged(vec![moving(), report(&[], status(7, 1, 1, &[]))]);
        assert_eq!((all.subscribed, all.programmed, all.laggards.len()), (3, 2, 1));
    }

    #[test]
    fn a_replica_that_is_behind_says_nothing_of_what_is_new() {
        let all = unmoved(vec![status(7, 2, 2, &[]), status(8, 1, 1, &[])]);
        assert_eq!((all.generation, all.subscribed, all.programmed, all.settled), (8, 3, 1, false));
        let absent = ObjectStatus { absent: true, settled: true, ..ObjectStatus::default() };
        let all = unmoved(vec![absent.clone(), status(8, 1, 1, &[])]);
        assert!(!all.absent && !all.settled);
        let all = unmoved(vec![absent.clone(), absent]);
        assert!(all.absent && all.settled);
    }

    #[test]
    fn a_replica_that_fails_takes_nothing_from_what_others_found() {
        let answer = || Ok(FindRequestsResponse { asked: 2, left_out: 1, ..FindRequestsResponse::default() });
        let (gone, unknown) = (|| Err(Status::unavailable("gone")), || Err(Status::not_found("who?")));
        let found = all_found(vec![answer(), gone(), unknown(), answer()]).unwrap();
        assert_eq!((found.all.asked, found.all.left_out, found.failures), (4, 2, vec!["gone".to_owned()]));
        assert!(all_found(vec![unknown(), answer()]).unwrap().failures.is_empty());
        assert_eq!(all_found(vec![unknown(), gone()]).unwrap_err().code(), Code::Unavailable);
        assert_eq!(all_found(vec![unknown(), unknown()]).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_proxy_is_where_it_is_connected() {
        let proxy = |connected| ProxyStatus { name: "shop/a".to_owned(), connected, ..ProxyStatus::default() };
        let answer = |connected| ListProxiesResponse { proxies: vec![proxy(connected)], generation: 1 };
        for answers in [[true, false], [false, true]] {
            let all = proxies(answers.map(answer).into());
            assert!(all.proxies.len() == 1 && all.proxies[0].connected);
        }
    }
}
