//! The API server, watched.
//!
//! One task per kind lists and watches ([`reflector`]), keeping what the model reads of each object ([`trim`]). One thread takes in what
//! they find, a few milliseconds' worth at a time, and publishes the next world. The first world comes once every kind is listed. While
//! the API server is away, everything stays as it was; when it is back, watches go on where they were, or what is listed is compared
//! with what is known, so that only differences count.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use kube::Client;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::model::{FileContent, Kind, MeshSettings, ObjectKey, World};

mod contacts;
mod reflector;
pub(crate) mod resources;
mod trim;

pub use contacts::Contacts;
use resources::is_missing;
use trim::Seen;

/// Everything that has a bound here, by name.
pub(crate) mod limits {
    use std::time::Duration;

    /// What arrives within this time of the first change becomes one world with it.
    pub(crate) const BATCH: Duration = Duration::from_millis(2);
    /// Changes in one world, beyond the first listing: others become the next.
    pub(crate) const BATCH_CHANGES: usize = 10_000;
    /// Changes that wait to be taken in; watches wait when there are more.
    pub(crate) const QUEUE: usize = 1024;
    /// Objects per page of a list.
    pub(crate) const PAGE: u32 = 500;
    /// One answer that is not a watch.
    pub(crate) const CALL: Duration = Duration::from_secs(30);
    /// A watch is ended by the API server after about this (± 20 %), and goes on.
    pub(crate) const WATCH: Duration = Duration::from_secs(290);
    /// A watch that says nothing for so long, not even a bookmark (which come every minute), is taken up anew: its connection may be dead.
    pub(crate) const WATCH_SILENCE: Duration = Duration::from_secs(90);
    /// Between attempts that fail: the first, doubled up to the last, each with jitter.
    pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(200);
    /// See [`RETRY_FIRST`].
    pub(crate) const RETRY_LAST: Duration = Duration::from_secs(10);
    /// Between looks whether a kind is served that was not.
    pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(10);
    /// The same before the first world.
    pub(crate) const LOOK_AT_START: Duration = Duration::from_secs(1);
    /// A kind that is not served is believed not to be there after so many looks: an API server that starts does not serve custom kinds
    /// at once.
    pub(crate) const LOOKS_UNTIL_GONE: u32 = 3;
    /// A watch that ends sooner is not taken up again at once.
    pub(crate) const WATCH_LASTED: Duration = Duration::from_secs(5);
    /// After so many watches in a row that the API server refused, everything is listed again.
    pub(crate) const REFUSALS_UNTIL_RELIST: u32 = 5;
}

/// Something that a reflector found.
#[derive(Debug)]
pub(crate) enum Update {
    /// All objects of a kind, at that version.
    Listed(Kind, Vec<Seen>, u64),
    /// An object that is new, or has changed.
    Is(Kind, Seen),
    /// An object that is gone, at that version.
    IsNot(Kind, Arc<str>, u64),
}

/// Highest version taken in, by kind.
type Versions = BTreeMap<Kind, u64>;

/// See [`super::Prompt`].
#[derive(Clone)]
pub struct Prompt {
    client: Client,
    world: watch::Receiver<Arc<World>>,
    versions: watch::Receiver<Versions>,
    contacts: Arc<Contacts>,
}

impl Prompt {
    /// When the API server was last heard of each kind.
    pub fn contacts(&self) -> Arc<Contacts> {
        Arc::clone(&self.contacts)
    }

    /// Returns once the API server's newest version of `object` is published; false: it cannot be asked.
    pub(super) async fn look(&self, object: Option<&ObjectKey>) -> bool {
        let Some(key) = object else { return true };
        let newest = match timeout(limits::CALL, resources::version_of(&self.client, key)).await {
            Ok(Ok(newest)) => newest,
            Ok(Err(error)) => {
                tracing::warn!(%key, %error, "cannot ask the API server for the newest version");
                return false;
            }
            Err(_) => return false,
        };
        // An error: nothing is read any more.
        match newest {
            Some(version) => {
                let taken_in = |versions: &Versions| versions.get(&key.kind).is_some_and(|known| *known >= version);
                self.versions.clone().wait_for(taken_in).await.is_ok()
            }
            None => self.world.clone().wait_for(|world| world.object(key).is_none()).await.is_ok(),
        }
    }
}

/// Lists everything once, then watches in the background. An API server that does not answer is waited for; `waiting` is told for what.
///
/// # Errors
/// If no thread can be started.
pub async fn watch(
    client: Client,
    settings: MeshSettings,
    waiting: impl Fn(String) + Send + 'static,
) -> anyhow::Result<(watch::Receiver<Arc<World>>, Prompt)> {
    let (found, updates) = mpsc::channel(limits::QUEUE);
    let contacts: Arc<Contacts> = Arc::default();
    for resource in resources::ALL {
        tokio::spawn(reflector::run(client.clone(), resource, Arc::clone(&contacts), found.clone()));
    }
    let (first, first_world) = oneshot::channel();
    let versions = watch::Sender::new(Versions::new());
    let seen = versions.subscribe();
    let mut intake = Intake {
        updates,
        world: World::of_api_server(settings),
        held: HashMap::new(),
        missing: resources::ALL.iter().map(|resource| resource.kind).collect(),
        versions,
    };
    std::thread::Builder::new()
        .name("leno-kubernetes".to_owned())
        .spawn(move || intake.run(first, waiting))
        .context("cannot start the thread that takes in what the API server says")?;
    let world = first_world.await.context("the API server is not read any more")?;
    Ok((world.clone(), Prompt { client, world, versions: seen, contacts }))
}

/// Makes worlds of updates.
struct Intake {
    updates: mpsc::Receiver<Update>,
    world: World,
    /// What is known, by kind: objects and their versions.
    held: HashMap<Kind, HashMap<Arc<str>, u64>>,
    /// Kinds that were not listed yet.
    missing: BTreeSet<Kind>,
    versions: watch::Sender<Versions>,
}

/// Changes that become one world.
#[derive(Default)]
struct Batch {
    files: BTreeMap<Arc<str>, FileContent>,
    versions: Versions,
}

impl Intake {
    /// Until nobody wants worlds any more.
    fn run(&mut self, first: oneshot::Sender<watch::Receiver<Arc<World>>>, waiting: impl Fn(String)) {
        let mut batch = Batch::default();
        while !self.missing.is_empty() {
            let kinds: Vec<&str> = self.missing.iter().map(|kind| kind.as_str()).collect();
            waiting(format!("the API server's first list of {}", kinds.join(", ")));
            let Some(update) = self.updates.blocking_recv() else { return };
            self.add(update, &mut batch);
        }
        let mut world = Arc::new(self.world.change(std::mem::take(&mut batch.files).into_values()));
        tracing::info!(objects = world.objects_in_force(), "read everything that the API server has");
        let publish = watch::Sender::new(Arc::clone(&world));
        self.took_in(batch.versions);
        if first.send(publish.subscribe()).is_err() {
            return;
        }
        while let Some(update) = self.updates.blocking_recv() {
            if publish.is_closed() {
                return;
            }
            let mut batch = Batch::default();
            self.add(update, &mut batch);
            std::thread::sleep(limits::BATCH);
            while batch.files.len() < limits::BATCH_CHANGES
                && let Ok(update) = self.updates.try_recv()
            {
                self.add(update, &mut batch);
            }
            let next = world.change(std::mem::take(&mut batch.files).into_values());
            // What changes nothing that is used wakes nobody.
            if next.generation() != world.generation() || next.errors() != world.errors() {
                world = Arc::new(next);
                publish.send_replace(Arc::clone(&world));
            } else {
                world = Arc::new(next);
                publish.send_if_modified(|published| {
                    *published = Arc::clone(&world);
                    false
                });
            }
            self.took_in(batch.versions);
        }
    }

    fn add(&mut self, update: Update, batch: &mut Batch) {
        match update {
            Update::Listed(kind, objects, version) => {
                self.missing.remove(&kind);
                let present: HashSet<Arc<str>> = objects.iter().map(|seen| Arc::clone(&seen.file)).collect();
                let held = self.held.entry(kind).or_default();
                let gone: Vec<Arc<str>> = held.keys().filter(|file| !present.contains(*file)).cloned().collect();
                for file in gone {
                    held.remove(&file);
                    batch.put(kind, FileContent::none(file), 0);
                }
                for seen in objects {
                    self.put(kind, seen, batch);
                }
                let known = batch.versions.entry(kind).or_default();
                *known = version.max(*known);
            }
            Update::Is(kind, seen) => self.put(kind, seen, batch),
            Update::IsNot(kind, file, version) => {
                self.held.entry(kind).or_default().remove(&file);
                batch.put(kind, FileContent::none(file), version);
            }
        }
    }

    fn put(&mut self, kind: Kind, seen: Seen, batch: &mut Batch) {
        let held = self.held.entry(kind).or_default();
        // Listed again, and the same.
        if seen.version > 0 && held.get(&seen.file) == Some(&seen.version) {
            return;
        }
        held.insert(Arc::clone(&seen.file), seen.version);
        batch.put(kind, seen.content, seen.version);
    }

    fn took_in(&self, versions: Versions) {
        self.versions.send_modify(|known| {
            for (kind, version) in versions {
                let known = known.entry(kind).or_default();
                *known = version.max(*known);
            }
        });
    }
}

impl Batch {
    /// The latest wins.
    fn put(&mut self, kind: Kind, content: FileContent, version: u64) {
        let known = self.versions.entry(kind).or_default();
        *known = version.max(*known);
        self.files.insert(Arc::clone(&content.file), content);
    }
}

/// ± 20 %, so that many do not come at once.
fn jittered(base: Duration) -> Duration {
    let mut bytes = [0_u8; 2];
    // Without randomness there is no jitter.
    let _ = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    base.mul_f64(0.8 + 0.4 * f64::from(u16::from_ne_bytes(bytes)) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests;
