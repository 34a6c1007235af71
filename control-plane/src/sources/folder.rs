//! A folder of YAML, watched: atomic renames, editors' writes, new and removed files, several documents a file.
//!
//! One thread waits for events, lets them come to rest, reads what changed, and publishes the next world. What is being
//! written is left alone until it is whole; what vanishes for a moment is waited for; and if the folder itself goes, what was read
//! last stays in force until it is back. What was in force when the process ended still counts for documents that are bad when it
//! starts again ([`record`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use notify::Watcher;
use tokio::sync::watch;

use crate::model::{Document, DocumentError, FileContent, MeshSettings, World};

mod events;
mod files;
mod record;

use events::{Events, Look};
use files::Files;
use record::{Record, Saved};

/// Documents of a folder as they are now, and those that cannot be read; for `leno check`.
///
/// # Errors
/// If the folder itself cannot be read.
pub fn read(config: &Path) -> io::Result<(Vec<Document>, Vec<DocumentError>)> {
    let mut files = Files::default();
    let changes = files.look(config, &Look::default())?;
    files.adopt(changes);
    Ok(files.documents())
}

/// Asks for a look at the folder, for those who must know that what was written before they asked has been read.
#[derive(Clone)]
pub struct Prompt {
    events: Arc<Events>,
    asked: Arc<AtomicU64>,
    answered: watch::Receiver<u64>,
    saved: Saved,
}

impl Prompt {
    /// Returns once the state folder remembers everything that was published, or cannot.
    pub async fn saved(&self) {
        self.saved.all().await;
    }

    /// Returns once everything that was whole on disk when this was called has been published.
    pub async fn look(&self) {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.events.now();
        // An error: nobody reads the folder any more, so there is nothing to wait for.
        let _ = self.answered.clone().wait_for(|answered| *answered >= number).await;
    }
}

/// Reads the folder once (an unreadable folder is an error; bad documents are not), then watches it in the background.
/// Writes generations to the state folder before a world is published, and last good versions after it: see [`record`].
///
/// # Errors
/// If the folder cannot be read, or the state folder not be made.
pub async fn watch(
    config: PathBuf,
    state: PathBuf,
    settings: MeshSettings,
) -> anyhow::Result<(watch::Receiver<Arc<World>>, Prompt)> {
    fs::create_dir_all(&state).with_context(|| format!("cannot make the state folder {}", state.display()))?;
    // As events name what is in it.
    let config = std::path::absolute(&config).with_context(|| format!("cannot tell where {} is", config.display()))?;
    let record = Record::open(&state)?;
    let events = Arc::new(Events::default());
    // Before the first look, so that no change falls between.
    let watching = Watching::start(&config, &events);
    let mut files = Files::without(state.canonicalize().ok());
    let look = |files: &Files| {
        let found = files.look(&config, &Look::default());
        found.with_context(|| format!("cannot read the configuration folder {}", config.display()))
    };
    let mut changes = look(&files)?;
    for _ in 0..FIRST_LOOKS {
        tokio::time::sleep(if changes.any_empty() { GRACE_EMPTY } else { GRACE }).await;
        if !changes.drop_unsettled(&events.being_written(Instant::now())) {
            break;
        }
        changes = look(&files)?;
    }
    files.adopt(changes);
    let world = Arc::new(first_world(&record, settings, &files));
    record.begin(&world);
    record.keep(world.clone());
    let saved = record.saved();
    let (publish, worlds) = watch::channel(world);
    let (answered, answers) = watch::channel(0);
    let asked = Arc::new(AtomicU64::new(0));
    let prompt = Prompt { events: Arc::clone(&events), asked: Arc::clone(&asked), answered: answers, saved };
    let mut folder = Folder {
        config,
        events,
        watching,
        files,
        record,
        publish,
        asked,
        answered,
        lost: false,
        looked: Instant::now(),
    };
    std::thread::Builder::new()
        .name("leno-folder".to_owned())
        .spawn(move || folder.run())
        .context("cannot start the thread that watches the configuration folder")?;
    Ok((worlds, prompt))
}

/// What is bad already falls back to what an earlier run left.
fn first_world(record: &Record, settings: MeshSettings, files: &Files) -> World {
    let ((documents, unreadable), generations) = (files.documents(), record.generations());
    let world = World::empty(settings.clone(), generations.clone()).apply(documents.clone(), unreadable.clone());
    if world.errors().is_empty() {
        return world;
    }
    World::restored(settings, generations, record.last_good()).apply(documents, unreadable)
}

/// Longest time without a look, events or not: some file systems send none (NFS), and a folder that was replaced as a whole
/// sends no more.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);
/// The same while nothing tells of changes.
const LOOK_UNWATCHED: Duration = Duration::from_secs(1);
/// A file is taken when nobody has begun to write to it within this time after it was read.
const GRACE: Duration = Duration::from_millis(2);
/// The same for a file that is gone or got shorter: it may be on its way back.
const GRACE_SHRUNK: Duration = Duration::from_millis(20);
/// The same for a file that is empty of a sudden: what takes all objects out of the mesh had better be meant.
const GRACE_EMPTY: Duration = Duration::from_millis(100);

/// Looks at the start, as long as somebody is writing.
const FIRST_LOOKS: usize = 10;

struct Folder {
    config: PathBuf,
    events: Arc<Events>,
    watching: Watching,
    files: Files,
    record: Record,
    publish: watch::Sender<Arc<World>>,
    /// Looks that were asked for, and how many of them have been had.
    asked: Arc<AtomicU64>,
    answered: watch::Sender<u64>,
    /// The folder could not be read at the last look.
    lost: bool,
    /// The last look at everything.
    looked: Instant,
}

impl Folder {
    fn run(&mut self) {
        loop {
            let anyway = if self.watching.working() { LOOK_ANYWAY } else { LOOK_UNWATCHED };
            let mut look = self.events.wait(anyway);
            if self.publish.is_closed() {
                return;
            }
            // Events are believed for a while.
            look.paths = look.paths.filter(|_| self.looked.elapsed() < anyway);
            if look.paths.is_none() {
                self.looked = Instant::now();
            }
            if self.watching.replaced(&self.config) {
                self.watching = Watching::start(&self.config, &self.events);
            }
            let asked = self.asked.load(Ordering::SeqCst);
            let complete = match self.files.look(&self.config, &look) {
                Ok(changes) => {
                    self.found();
                    self.take(changes) && look.writers.recent.is_empty()
                }
                Err(error) => self.lose(&error),
            };
            if complete && asked != *self.answered.borrow() {
                self.answered.send_replace(asked);
            }
        }
    }

    /// Publishes `changes`; false: some of them are not whole yet, and will be looked at again.
    fn take(&mut self, mut changes: files::Changes) -> bool {
        if changes.is_empty() {
            return true;
        }
        std::thread::sleep(match () {
            () if self.files.empties(&changes) => GRACE_EMPTY,
            () if self.files.shrinks(&changes) => GRACE_SHRUNK,
            () => GRACE,
        });
        let unsettled = changes.drop_unsettled(&self.events.being_written(Instant::now()));
        if unsettled {
            self.events.again();
        }
        if changes.is_empty() {
            return !unsettled;
        }
        let before = self.publish.borrow().clone();
        let world = Arc::new(before.change(self.files.adopt(changes)));
        if world.generation() != before.generation() {
            self.record.note_change(&world);
        }
        self.publish.send_replace(world.clone());
        self.record.keep(world);
        !unsettled
    }

    /// False: it is back already, and will be looked at again; one that is replaced is gone for a moment.
    fn lose(&mut self, error: &io::Error) -> bool {
        if self.lost {
            return true;
        }
        std::thread::sleep(GRACE_EMPTY);
        if self.files.look(&self.config, &Look::default()).is_ok() {
            self.events.again();
            return false;
        }
        let reason = format!("cannot be read: {error}: what was read last stays in force until it can be");
        self.say_of_all(Some(DocumentError::of_all(&self.config, reason)));
        self.lost = true;
        true
    }

    fn found(&mut self) {
        if self.lost {
            self.say_of_all(None);
        }
        self.lost = false;
    }

    /// What is wrong with the folder as a whole is told like what is wrong with a document.
    fn say_of_all(&self, error: Option<DocumentError>) {
        let file = DocumentError::file_of_all(&self.config);
        let world = self.publish.borrow().change([FileContent::of(file, Vec::new(), error.into_iter().collect())]);
        self.publish.send_replace(Arc::new(world));
    }
}

/// A running watch, and the folder it was set on.
struct Watching {
    watcher: Option<notify::RecommendedWatcher>,
    folder: Option<files::FileId>,
}

impl Watching {
    /// A folder that cannot be watched is looked at now and then.
    fn start(config: &Path, events: &Arc<Events>) -> Self {
        let folder = files::FileId::of(config).ok();
        let sink = events.clone();
        let set_up = || -> notify::Result<notify::RecommendedWatcher> {
            let mut watcher = notify::recommended_watcher(move |event| sink.note(event, Instant::now()))?;
            watcher.watch(config, notify::RecursiveMode::Recursive)?;
            Ok(watcher)
        };
        let watcher = match set_up() {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(
                    folder = %config.display(), %error,
                    "cannot be told of changes in the configuration folder: looking every second instead"
                );
                None
            }
        };
        Self { watcher, folder }
    }

    fn working(&self) -> bool {
        self.watcher.is_some()
    }

    /// Whether another folder now stands at that path.
    fn replaced(&self, config: &Path) -> bool {
        match files::FileId::of(config) {
            Ok(now) => self.folder.is_none_or(|watched| !watched.same_file(&now)),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
