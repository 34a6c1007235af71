//! What the state folder remembers, so that a restart changes nothing: generations, and the last good version of every object.
//!
//! `generations.json` has all generations at some time, and `generations.log` a line for each change since ([`journal`]), written before
//! a world is published, so that a killed process gives no number twice; to force it to disk would delay every change. A thread of its
//! own does that after, writes `generations.json` anew and `last-good.json`, which holds the objects too, and rests in between, so that
//! a busy mesh costs no more than a share of its time. If a power failure damages the former, the latter has a copy. None of them is
//! ever a reason not to start.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq as _};
use serde_json::Value;
use tokio::sync::watch;

use self::journal::Journal;
use crate::model::{Document, Generations, World};

mod journal;

/// Largest `last-good.json`, in bytes. A larger configuration is not remembered.
const MAX_SIZE: u64 = 512 * 1024 * 1024;
/// Rest after a write, as a multiple of the time it took to put it into words; and never less than all of it took, the disk included.
const REST: u32 = 100;
/// Rest after a write that failed.
const RETRY: Duration = Duration::from_secs(10);
/// What this version reads and writes.
const FORMAT: u32 = 1;

/// See the module. What was given to it last is written when it is dropped.
pub(super) struct Record {
    keeper: Arc<Keeper>,
}

/// Knows when everything that was published is on disk.
#[derive(Clone)]
pub(super) struct Saved {
    keeper: Weak<Keeper>,
    written: watch::Receiver<u64>,
}

impl Record {
    /// # Errors
    /// If no thread can be started.
    pub(super) fn open(state: &Path) -> anyhow::Result<Self> {
        let keeper = Arc::new(Keeper::new(state));
        let thread = Arc::clone(&keeper);
        std::thread::Builder::new()
            .name("leno-last-good".to_owned())
            .spawn(move || thread.run())
            .context("cannot start the thread that keeps last good versions")?;
        Ok(Self { keeper })
    }

    /// As an earlier run left them.
    pub(super) fn generations(&self) -> Generations {
        let file = &self.keeper.generations;
        let whole = match fs::read(file).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
            Ok(generations) => generations,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::error!(file = %file.display(), %error, "cannot read the generations: taking those of last-good.json");
                }
                self.kept().map(|kept| kept.generations).unwrap_or_default()
            }
        };
        self.keeper.journal.lock().go_on(whole)
    }

    /// What was in force when an earlier run ended. Large, and needed only where a document is bad.
    pub(super) fn last_good(&self) -> Vec<Document> {
        let objects = self.kept().map(|kept| kept.objects).unwrap_or_default();
        let document = |kept: KeptObject| Document {
            file: kept.file.into(),
            index: kept.document,
            content: Arc::new(kept.content),
        };
        objects.into_iter().map(document).collect()
    }

    /// None: there is nothing that can be read, which is said.
    fn kept(&self) -> Option<Kept> {
        let file = &self.keeper.last_good;
        match Kept::read(file) {
            Ok(kept) => Some(kept),
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(
                        file = %file.display(), %error,
                        "cannot read the last good versions of objects: those whose document is bad are absent until it is mended"
                    );
                }
                None
            }
        }
    }

    /// Before the first world is published.
    pub(super) fn begin(&self, world: &Arc<World>) {
        let mut journal = self.keeper.journal.lock();
        match self.keeper.write_generations(world, false) {
            Ok(()) => journal.begin(world),
            Err(error) => self.say_unwritten(&error),
        }
    }

    /// Before a world is published that came of one change from the one before.
    pub(super) fn note_change(&self, world: &Arc<World>) {
        let noted = self.keeper.journal.lock().note(world);
        // The lock is not held any longer: to begin anew takes it.
        if let Err(error) = noted {
            tracing::debug!(%error, "cannot write to the log of generations: writing them all");
            self.begin(world);
        }
    }

    fn say_unwritten(&self, error: &io::Error) {
        tracing::error!(
            file = %self.keeper.generations.display(), %error,
            "cannot write the generations: they will be counted from an older one after a restart"
        );
    }

    /// Once `world` is published. Returns at once.
    pub(super) fn keep(&self, world: Arc<World>) {
        self.keeper.give(world);
    }

    pub(super) fn saved(&self) -> Saved {
        Saved { keeper: Arc::downgrade(&self.keeper), written: self.keeper.written.subscribe() }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.keeper.end();
    }
}

impl Saved {
    /// Returns once everything that was published before this was called has been written, or could not be.
    pub(super) async fn all(&self) {
        let Some(given) = self.keeper.upgrade().map(|keeper| keeper.hurry()) else { return };
        // An error: the last write is done.
        let _ = self.written.clone().wait_for(|written| *written >= given).await;
    }
}

/// `last-good.json`
#[derive(Deserialize)]
struct Kept {
    format: u32,
    generations: Generations,
    objects: Vec<KeptObject>,
}

impl Kept {
    fn read(file: &Path) -> io::Result<Self> {
        let opened = File::open(file)?;
        if opened.metadata()?.len() > MAX_SIZE {
            return Err(io::Error::other(format!("larger than {MAX_SIZE} bytes")));
        }
        let kept: Self = serde_json::from_reader(io::BufReader::new(opened))?;
        match kept.format {
            FORMAT => Ok(kept),
            other => Err(io::Error::other(format!("of format {other}, which this version does not read"))),
        }
    }
}

#[derive(Deserialize)]
struct KeptObject {
    file: String,
    document: u32,
    content: Value,
}

/// The same, to be written without a copy.
#[derive(Serialize)]
struct Keeping<'a> {
    format: u32,
    generations: Generations,
    objects: Objects<'a>,
}

struct Objects<'a>(&'a World);

impl Serialize for Objects<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct One<'a> {
            file: &'a str,
            document: u32,
            content: &'a Value,
        }
        let mut all = serializer.serialize_seq(None)?;
        for Document { file, index, content } in self.0.last_good() {
            all.serialize_element(&One { file: &file, document: index, content: &content })?;
        }
        all.end()
    }
}

/// Writes `last-good.json`; the latest world wins.
struct Keeper {
    folder: PathBuf,
    generations: PathBuf,
    last_good: PathBuf,
    journal: Mutex<Journal>,
    /// Held while `generations.json` is written.
    writing: Mutex<()>,
    pending: Mutex<Pending>,
    noted: Condvar,
    /// How many of the worlds given have been dealt with.
    written: watch::Sender<u64>,
}

#[derive(Default)]
struct Pending {
    /// How many were given.
    given: u64,
    world: Option<Arc<World>>,
    /// Somebody waits: no rest.
    hurry: bool,
    ended: bool,
}

impl Keeper {
    fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            generations: folder.join("generations.json"),
            last_good: folder.join("last-good.json"),
            journal: Mutex::new(Journal::new(folder)),
            writing: Mutex::default(),
            pending: Mutex::default(),
            noted: Condvar::new(),
            written: watch::Sender::new(0),
        }
    }

    fn give(&self, world: Arc<World>) {
        let mut pending = self.pending.lock();
        pending.given += 1;
        pending.world = Some(world);
        self.noted.notify_one();
    }

    /// Returns how many were given.
    fn hurry(&self) -> u64 {
        let mut pending = self.pending.lock();
        pending.hurry = true;
        self.noted.notify_one();
        pending.given
    }

    fn end(&self) {
        self.pending.lock().ended = true;
        self.noted.notify_one();
    }

    /// The next to write, not before `rested`. None: that was all.
    fn take(&self, rested: Instant) -> Option<(u64, Arc<World>)> {
        let mut pending = self.pending.lock();
        loop {
            let at_once = pending.hurry || pending.ended || Instant::now() >= rested;
            match pending.world.take_if(|_| at_once) {
                Some(world) => {
                    pending.hurry = false;
                    return Some((pending.given, world));
                }
                None if pending.ended => return None,
                None if pending.world.is_some() => {
                    self.noted.wait_until(&mut pending, rested);
                }
                None => {
                    pending.hurry = false;
                    self.noted.wait(&mut pending);
                }
            }
        }
    }

    fn run(&self) {
        let mut on_disk = None;
        let mut failing = false;
        let mut rested = Instant::now();
        while let Some((number, world)) = self.take(rested) {
            let began = Instant::now();
            let version = world.last_good_version();
            if on_disk != Some(version) {
                match self.write(&world) {
                    Ok(worded) => {
                        on_disk = Some(version);
                        failing = false;
                        rested = Instant::now() + began.elapsed().max(worded * REST);
                    }
                    Err(error) => {
                        if !failing {
                            tracing::error!(
                                file = %self.last_good.display(), %error,
                                "cannot write the last good versions of objects: after a restart, those whose document is bad are absent"
                            );
                        }
                        failing = true;
                        rested = Instant::now() + RETRY;
                        // Unless there is a newer one.
                        self.pending.lock().retry(world);
                    }
                }
            }
            self.written.send_replace(number);
        }
    }

    /// All generations in one file again, and on disk.
    fn fold_generations(&self) -> io::Result<()> {
        // Not longer: a change waits for the lock.
        let aside = self.journal.lock().set_aside()?;
        if let Some(aside) = aside {
            self.write_generations(&aside.latest, true)?;
            let mut journal = self.journal.lock();
            if let Some(newer) = journal.begun_since(&aside) {
                self.write_generations(&newer, true)?;
            }
            journal.folded()?;
        }
        File::open(&self.generations)?.sync_all()
    }

    fn write_generations(&self, world: &World, force_to_disk: bool) -> io::Result<()> {
        let content = world.generations();
        let _one_at_a_time = self.writing.lock();
        replace(&self.generations, |file| Ok(serde_json::to_writer(file, &content)?), force_to_disk).map(drop)
    }

    /// How long it took but for the disk.
    fn write(&self, world: &World) -> io::Result<Duration> {
        // First, so that on disk they are never older than their copy, nor than what is known by them.
        self.fold_generations()?;
        let content = Keeping { format: FORMAT, generations: world.generations(), objects: Objects(world) };
        let to_json = |file: &mut dyn Write| Ok(serde_json::to_writer(Bounded { file, left: MAX_SIZE }, &content)?);
        let written = replace(&self.last_good, to_json, true);
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::FileTooLarge) {
            // Better nothing than what was true long ago.
            let _ = fs::remove_file(&self.last_good);
        }
        // The new names are on disk when the folder is.
        written.and_then(|worded| File::open(&self.folder)?.sync_all().map(|()| worded))
    }
}

impl Pending {
    fn retry(&mut self, world: Arc<World>) {
        if !self.ended {
            self.world.get_or_insert(world);
        }
    }
}

/// Whole or not at all; only the owner may read it. How long the content took.
fn replace(
    file: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    force_to_disk: bool,
) -> io::Result<Duration> {
    let temporary = file.with_extension("json.new");
    let write = || -> io::Result<Duration> {
        let began = Instant::now();
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut writer = BufWriter::new(opened);
        content(&mut writer)?;
        let opened = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let took = began.elapsed();
        if force_to_disk {
            opened.sync_all()?;
        }
        fs::rename(&temporary, file).map(|()| took)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Fails when more is written than there is room for.
struct Bounded<'a> {
    file: &'a mut dyn Write,
    left: u64,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        match self.left.checked_sub(written as u64) {
            Some(left) => self.left = left,
            None => {
                let reason = format!("the configuration is larger than {MAX_SIZE} bytes");
                return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
