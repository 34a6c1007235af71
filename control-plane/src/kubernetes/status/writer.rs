//! Writes [`super::Verdict`]s to the API server, while this replica leads: what changed, at a bounded rate.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
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
    time::{Instant, sleep, sleep_until},
};

use super::{Standing, Verdict, patch};
use crate::{
    kubernetes::{
        FIELD_MANAGER, call, find, is_conflict,
        lease::Leader,
        limits,
        peers::{Peers, object_ref},
    },
    model::{DocumentError, Kind, ObjectKey, World},
    serve::tracker::Tracker,
};

/// What was last told, and when.
struct Told {
    verdict: Verdict,
    at: Instant,
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
    told: HashMap<ObjectKey, Told>,
    resources: HashMap<Kind, ApiResource>,
    /// When resources that are not served were last looked for.
    looked_for: HashMap<Kind, Instant>,
}

impl Writer {
    pub fn new(client: Client, tracker: Arc<Tracker>, peers: Arc<Peers>) -> Self {
        let (told, resources, looked_for) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { client, tracker, peers, told, resources, looked_for }
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
        let mut resync = Instant::now() + limits::STATUS_RESYNC;
        loop {
            let is_me = leader.borrow_and_update().is_me;
            let mut again = None;
            if is_me {
                if Instant::now() >= resync {
                    self.told.clear();
                    resync = Instant::now() + limits::STATUS_RESYNC;
                }
                world.mark_unchanged();
                revision.mark_unchanged();
                news.mark_unchanged();
                again = tokio::select! {
                    again = self.round(&world) => again,
                    // Who no longer leads leaves the rest to who does.
                    Ok(()) = leader.changed() => continue,
                    _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                };
            } else {
                // Whoever comes to lead compares everything once.
                self.told.clear();
            }
            let next = again.map_or(resync, |again| again.min(resync));
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
                () = sleep(limits::STATUS_PACE) => {}
            }
        }
    }

    /// Tells every object what it has not been told. Returns when to look again, if there is something left to tell.
    async fn round(&mut self, world: &watch::Receiver<Arc<World>>) -> Option<Instant> {
        let now = Arc::clone(&world.borrow());
        let settled = self.tracker.settles(now.generation(), limits::STATUS_SETTLE).await;
        let verdicts = verdicts(&now, |object, generation| self.standing(object, generation, settled));
        let mut again: Option<Instant> = None;
        let mut later = |at: Instant| again = Some(again.map_or(at, |before| before.min(at)));
        let left: Vec<ObjectKey> = self.told.keys().filter(|key| !verdicts.contains_key(*key)).cloned().collect();
        for key in left {
            match self.tell(&key, &Verdict::withdrawn()).await {
                Ok(Outcome::Later) => later(Instant::now() + limits::STATUS_COALESCE),
                Ok(Outcome::Told | Outcome::Gone) => drop(self.told.remove(&key)),
                Err(error) => {
                    tracing::warn!(object = %key, error = format!("{error:#}"), "cannot take back its status");
                    self.told.remove(&key);
                }
            }
        }
        for (key, verdict) in verdicts {
            if let Some(told) = self.told.get(&key) {
                if told.verdict == verdict {
                    continue;
                }
                // How far it has come changes with every proxy.
                let due = told.at + limits::STATUS_COALESCE;
                let only_progress =
                    told.verdict.generation == verdict.generation && told.verdict.conditions == verdict.conditions;
                if only_progress && Instant::now() < due {
                    later(due);
                    continue;
                }
            }
            match self.tell(&key, &verdict).await {
                Ok(Outcome::Told) => drop(self.told.insert(key, Told { verdict, at: Instant::now() })),
                Ok(Outcome::Gone) => {}
                Ok(Outcome::Later) => later(Instant::now() + limits::STATUS_COALESCE),
                Err(error) => {
                    tracing::warn!(object = %key, error = format!("{error:#}"), "cannot write its status");
                    later(Instant::now() + limits::RETRY);
                }
            }
        }
        again
    }

    fn standing(&self, key: &ObjectKey, generation: u64, settled: bool) -> Standing {
        let object = object_ref(key);
        let progress = self.tracker.progress(&object, Some(generation));
        let mut standing = Standing {
            subscribed: progress.subscribed,
            programmed: progress.programmed,
            laggards: progress.laggards,
            silent: Vec::new(),
            settled,
        };
        self.peers.add(&mut standing, &object, generation, Instant::now());
        standing
    }

    async fn tell(&mut self, key: &ObjectKey, verdict: &Verdict) -> anyhow::Result<Outcome> {
        let Some(resource) = self.resource(key.kind).await? else { return Ok(Outcome::Gone) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        sleep(limits::STATUS_READ_PAUSE).await;
        let Some(object) = find("read it", api.get(&key.name)).await? else { return Ok(Outcome::Gone) };
        let generation = object.metadata.generation.and_then(|generation| u64::try_from(generation).ok());
        if verdict.generation.is_some() && verdict.generation != generation {
            return Ok(Outcome::Later);
        }
        let object: Value = serde_json::to_value(&object).context("it cannot be put into JSON")?;
        let now = Timestamp::try_from(SystemTime::now()).context("the clock cannot be read")?;
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let Some(patch) = patch(key.kind, &object, verdict, &now) else { return Ok(Outcome::Told) };
        sleep(limits::STATUS_WRITE_PAUSE).await;
        let options = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match call("write it", api.patch_status(&key.name, &options, &Patch::Merge(&patch))).await {
            Ok(_) => Ok(Outcome::Told),
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
        if self.looked_for.get(&kind).is_some_and(|at| now < *at + LOOK_AGAIN) {
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
}

/// Before a kind that is not served is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

fn group(kind: Kind) -> &'static str {
    match kind {
        Kind::BackendTrafficPolicy => "gateway.networking.x-k8s.io",
        _ if kind.is_policy() => "leno.dev",
        _ => "gateway.networking.k8s.io",
    }
}

/// What every route and policy is to be told.
fn verdicts(world: &World, standing: impl Fn(&ObjectKey, u64) -> Standing) -> BTreeMap<ObjectKey, Verdict> {
    let has_status = |kind: Kind| kind.is_route() || kind.is_policy();
    let mut verdicts: BTreeMap<ObjectKey, Verdict> = BTreeMap::new();
    for key in world.objects.keys().filter(|key| has_status(key.kind)) {
        let Some(info) = world.info(key) else { continue };
        let standing = standing(key, info.generation);
        verdicts.insert(key.clone(), Verdict::in_force(info.generation, info.conditions, &standing));
    }
    let mut refused: BTreeMap<&ObjectKey, Vec<&DocumentError>> = BTreeMap::new();
    for error in world.errors() {
        if let Some(key) = error.object.as_ref().filter(|key| has_status(key.kind)) {
            refused.entry(key).or_default().push(error);
        }
    }
    for (key, errors) in refused {
        let held_over = world.info(key).map(|info| info.generation);
        verdicts.insert(key.clone(), Verdict::refused(&errors, held_over));
    }
    verdicts
}
