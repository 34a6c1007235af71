//! Writes [`super::Verdict`]s to the API server, while this replica leads: what changed, at a bounded rate.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    discovery,
};
use serde_json::Value;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Standing, Verdict, patch,
    plan::{Memory, Told, rest_after},
};
use crate::{
    kubernetes::{
        FIELD_MANAGER, call, find, is_conflict,
        lease::Leader,
        limits,
        peers::{Peers, object_ref},
    },
    model::{DocumentError, Kind, ObjectInfo, ObjectKey, World},
    serve::tracker::Tracker,
};

/// How many statuses were written.
#[derive(Debug, Default)]
pub struct Counts {
    written: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn written(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Written, and failed to be.
    pub fn get(&self) -> (u64, u64) {
        (self.written.load(Relaxed), self.failed.load(Relaxed))
    }
}

/// What came of one object.
enum Outcome {
    /// It says what it should now.
    Told,
    /// It is gone, or its kind is.
    Gone,
    /// It has moved on, or somebody else wrote it: the next round decides anew.
    Later,
}

/// Writes status while this replica leads.
pub struct Writer {
    client: Client,
    tracker: Arc<Tracker>,
    peers: Arc<Peers>,
    memory: Memory,
    /// What others tell the objects was not compared yet.
    has_come_to_lead: bool,
    /// That [`Self::memory`] is of.
    term: u64,
    counts: Arc<Counts>,
    resources: HashMap<Kind, ApiResource>,
    /// When it was last asked which versions of them are served.
    looked_for: HashMap<Kind, Instant>,
}

impl Writer {
    pub fn new(client: Client, tracker: Arc<Tracker>, peers: Arc<Peers>) -> Self {
        let (resources, looked_for) = (HashMap::new(), HashMap::new());
        let (memory, counts) = (Memory::default(), Arc::default());
        Self { client, tracker, peers, memory, has_come_to_lead: true, term: 0, counts, resources, looked_for }
    }

    /// What is written, for metrics.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Until `stopping`.
    ///
    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(
        mut self,
        mut world: watch::Receiver<Arc<World>>,
        mut leader: watch::Receiver<Leader>,
        mut stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let (mut revision, mut news) = (self.tracker.revision(), self.peers.news());
        loop {
            let Leader { is_me, term, .. } = leader.borrow_and_update().clone();
            if !is_me || term != self.term {
                // Whoever comes to lead, again too, compares everything once.
                (self.memory, self.has_come_to_lead, self.term) = (Memory::default(), true, term);
            }
            let (mut again, mut thinking) = (None, Duration::ZERO);
            if is_me {
                world.mark_unchanged();
                revision.mark_unchanged();
                news.mark_unchanged();
                (again, thinking) = tokio::select! {
                    round = self.round(&world) => round,
                    // Who no longer leads leaves the rest to who does.
                    Ok(()) = leader.changed() => continue,
                    _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                };
            }
            let next = again.unwrap_or_else(|| Instant::now() + limits::STATUS_RESYNC);
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                Ok(()) = leader.changed() => {}
                Ok(()) = world.changed(), if is_me => {}
                Ok(()) = revision.changed(), if is_me => {}
                Ok(()) = news.changed(), if is_me => {}
                // That a replica is silent is no event.
                () = sleep(limits::PEER_SILENT), if is_me => {}
                () = sleep_until(next), if is_me => {}
            }
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                () = sleep(rest_after(thinking)) => {}
            }
        }
    }

    /// Tells objects what they have not been told, the most urgent first. Returns when to look again, if there is something left to
    /// tell, and how long the thinking took.
    async fn round(&mut self, world: &watch::Receiver<Arc<World>>) -> (Option<Instant>, Duration) {
        let now = Arc::clone(&world.borrow());
        let look = |settled| {
            let (now, tracker, peers) = (Arc::clone(&now), Arc::clone(&self.tracker), Arc::clone(&self.peers));
            // With thousands of objects it takes a while: proxies are not to wait for it.
            spawn_blocking(move || {
                // What it has to wait for a thread is no work.
                let began = Instant::now();
                (verdicts(&now, |info| standing(&tracker, &peers, info, settled)), began.elapsed())
            })
        };
        let Ok((verdicts, thinking)) = self.tracker.look(now.generation(), limits::STATUS_SETTLE, look).await else {
            return (Some(Instant::now() + limits::RETRY), Duration::ZERO);
        };
        if std::mem::take(&mut self.has_come_to_lead) {
            self.memory = Memory { found: verdicts.clone().into_iter().collect(), ..Memory::default() };
        }
        self.memory.retain(&verdicts);
        let plan = self.memory.plan(&verdicts, Instant::now());
        let mut again = plan.again;
        let mut later = |at: Instant| again = Some(again.map_or(at, |before| before.min(at)));
        for key in plan.now {
            let Some(verdict) = verdicts.get(&key) else { continue };
            match self.tell(&key, verdict).await {
                Ok(Outcome::Told) => {
                    self.memory.found.remove(&key);
                    self.memory.put_off.remove(&key);
                    let told = Told::now(verdict.clone(), Instant::now(), fastrand::f64());
                    later(told.compare_at + limits::STATUS_COMPARE_BATCH);
                    self.memory.told.insert(key, told);
                }
                Ok(Outcome::Gone) => later(self.put_off(key, limits::RETRY)),
                Ok(Outcome::Later) => later(self.put_off(key, limits::STATUS_PACE)),
                Err(error) => {
                    tracing::warn!(object = %key, error = format!("{error:#}"), "cannot write its status");
                    self.counts.failed();
                    later(self.put_off(key, limits::RETRY));
                }
            }
        }
        // What is ours no more can wait for what is.
        let now = Instant::now();
        let (mut left, mut rest) = (Vec::new(), None);
        for key in self.memory.told.keys().filter(|key| !verdicts.contains_key(*key)) {
            match self.memory.put_off.get(key).copied().filter(|at| *at > now) {
                Some(at) => later(at),
                None if left.len() < limits::STATUS_ROUND => left.push(key.clone()),
                None => rest = Some(now),
            }
        }
        rest.into_iter().for_each(&mut later);
        for key in left {
            match self.tell(&key, &Verdict::withdrawn()).await {
                Ok(Outcome::Later) => later(self.put_off(key, limits::STATUS_COALESCE)),
                Ok(Outcome::Told | Outcome::Gone) => drop(self.memory.told.remove(&key)),
                Err(error) => {
                    tracing::warn!(object = %key, error = format!("{error:#}"), "cannot take back its status");
                    self.counts.failed();
                    self.memory.told.remove(&key);
                }
            }
        }
        (again, thinking)
    }

    /// Until when.
    fn put_off(&mut self, key: ObjectKey, rest: Duration) -> Instant {
        let at = Instant::now() + rest;
        self.memory.put_off.insert(key, at);
        at
    }

    async fn tell(&mut self, key: &ObjectKey, verdict: &Verdict) -> anyhow::Result<Outcome> {
        let Some(resource) = self.resource(key.kind).await? else { return Ok(Outcome::Gone) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        sleep(limits::STATUS_READ_PAUSE).await;
        let Some(object) = find("read it", api.get(&key.name)).await? else {
            // Or that version of its kind is served no longer.
            return Ok(if self.look_again(key.kind) { Outcome::Later } else { Outcome::Gone });
        };
        let generation = object.metadata.generation.and_then(|generation| u64::try_from(generation).ok());
        let another = |uid: &str| !uid.is_empty() && object.metadata.uid.as_deref() != Some(uid);
        if (verdict.generation.is_some() && verdict.generation != generation) || another(&verdict.uid) {
            return Ok(Outcome::Later);
        }
        let object: Value = serde_json::to_value(&object).context("it cannot be put into JSON")?;
        let now = Timestamp::try_from(SystemTime::now()).context("the clock cannot be read")?;
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let Some(patch) = patch(key.kind, &object, verdict, &now) else { return Ok(Outcome::Told) };
        sleep(limits::STATUS_WRITE_PAUSE).await;
        let options = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match call("write it", api.patch_status(&key.name, &options, &Patch::Merge(&patch))).await {
            Ok(_) => {
                self.counts.written();
                Ok(Outcome::Told)
            }
            Err(error) if is_conflict(&error) => Ok(Outcome::Later),
            Err(error) => Err(error),
        }
    }

    /// How the API server serves a kind; None: it does not, now.
    async fn resource(&mut self, kind: Kind) -> anyhow::Result<Option<ApiResource>> {
        if let Some(resource) = self.resources.get(&kind) {
            return Ok(Some(resource.clone()));
        }
        let now = Instant::now();
        if self.has_looked_for(kind, now) {
            return Ok(None);
        }
        self.looked_for.insert(kind, now);
        let found = call("ask which versions are served", async {
            match discovery::oneshot::group(&self.client, group(kind)).await {
                Ok(group) => Ok(Some(group)),
                Err(kube::Error::Discovery(_)) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let Some((resource, _)) = found.await?.and_then(|group| group.recommended_kind(kind.as_str())) else {
            return Ok(None);
        };
        self.resources.insert(kind, resource.clone());
        Ok(Some(resource))
    }

    /// Has the versions that are served asked for anew, unless they just were: objects of a kind may go in great numbers.
    fn look_again(&mut self, kind: Kind) -> bool {
        let again = !self.has_looked_for(kind, Instant::now());
        if again {
            self.resources.remove(&kind);
        }
        again
    }

    fn has_looked_for(&self, kind: Kind, now: Instant) -> bool {
        self.looked_for.get(&kind).is_some_and(|at| now < *at + LOOK_AGAIN)
    }
}

/// Before it is asked again which version of a kind is served.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

fn group(kind: Kind) -> &'static str {
    match kind {
        Kind::BackendTrafficPolicy => "gateway.networking.x-k8s.io",
        _ if kind.is_policy() => "leno.dev",
        _ => "gateway.networking.k8s.io",
    }
}

fn standing(tracker: &Tracker, peers: &Peers, info: &ObjectInfo, settled: bool) -> Standing {
    let object = object_ref(&info.key);
    let progress = tracker.progress(&object, Some(info.generation), &info.uid);
    let mut standing = Standing {
        subscribed: progress.subscribed,
        programmed: progress.programmed,
        laggards: progress.laggards,
        awaited: progress.awaited,
        silent: Vec::new(),
        settled,
    };
    peers.add(&mut standing, &object, (info.generation, &info.uid), Instant::now());
    standing
}

/// What every route and policy is to be told.
fn verdicts(world: &World, standing: impl Fn(&ObjectInfo) -> Standing) -> BTreeMap<ObjectKey, Verdict> {
    let has_status = |kind: Kind| kind.is_route() || kind.is_policy();
    let mut verdicts: BTreeMap<ObjectKey, Verdict> = BTreeMap::new();
    for key in world.objects.keys().filter(|key| has_status(key.kind)) {
        let Some(info) = world.info(key) else { continue };
        let standing = standing(&info);
        verdicts.insert(key.clone(), Verdict::in_force(&info, &standing));
    }
    let mut refused: BTreeMap<&ObjectKey, Vec<&DocumentError>> = BTreeMap::new();
    for error in world.errors() {
        if let Some(key) = error.object.as_ref().filter(|key| has_status(key.kind)) {
            refused.entry(key).or_default().push(error);
        }
    }
    for (key, errors) in refused {
        verdicts.insert(key.clone(), Verdict::refused(&errors, world.info(key).as_ref()));
    }
    verdicts
}
