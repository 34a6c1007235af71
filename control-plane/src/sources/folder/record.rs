//! What the state folder remembers, so that a restart changes nothing: generations, and the last good version of every object.
//!
//! Two files. `generations.json` is written before a world is published, so that a killed process gives no number twice; it is not
//! forced to disk, which would delay every change. `last-good.json` holds the objects too. A thread of its own writes it, forces
//! it to disk, and rests in between, so that a busy mesh costs no more than a share of its time; after a power failure it
//! is the one to be trusted. Neither is ever a reason not to start.

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

use crate::model::{Document, Generations, World};

/// Largest `last-good.json`, in bytes. A larger configuration is not remembered.
const MAX_SIZE: u64 = 512 * 1024 * 1024;
/// Rest after a write, as a multiple of the time it took.
const REST: u32 = 20;
/// Rest after a write that failed.
const RETRY: Duration = Duration::from_secs(10);
/// What this version reads and writes.
const FORMAT: u32 = 1;

/// What an earlier run left.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub(super) generations: Generations,
    pub(super) last_good: Vec<Document>,
}

/// See the module. What was given to it last is written when it is dropped.
pub(super) struct Record {
    generations: PathBuf,
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
    /// If no thread can be started. What cannot be read is as if it were not there, and is said.
    pub(super) fn open(state: &Path) -> anyhow::Result<(Self, Remembered)> {
        let generations = state.join("generations.json");
        let keeper = Arc::new(Keeper::new(state));
        let remembered = remembered(read_generations(&generations), read_last_good(&keeper.file));
        let thread = Arc::clone(&keeper);
        std::thread::Builder::new()
            .name("leno-last-good".to_owned())
            .spawn(move || thread.run())
            .context("cannot start the thread that keeps last good versions")?;
        Ok((Self { generations, keeper }, remembered))
    }

    /// Before `world` is published.
    pub(super) fn note_generations(&self, world: &World) {
        let written = replace(&self.generations, |file| Ok(serde_json::to_writer(file, &world.generations())?), false);
        if let Err(error) = written {
            tracing::error!(
                file = %self.generations.display(), %error,
                "cannot write the generations: they will be counted from an older one after a restart"
            );
        }
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

/// Of two records, the generations of the newer; a number that was given must not be given again.
fn remembered(generations: Option<Generations>, kept: Option<Kept>) -> Remembered {
    let (kept_generations, objects) = kept.map(|kept| (kept.generations, kept.objects)).unwrap_or_default();
    let generations = generations.filter(|g| g.mesh >= kept_generations.mesh).unwrap_or(kept_generations);
    let last_good = objects.into_iter().map(|object| Document {
        file: object.file.into(),
        index: object.document,
        content: Arc::new(object.content),
    });
    Remembered { generations, last_good: last_good.collect() }
}

fn read_generations(file: &Path) -> Option<Generations> {
    let read = fs::read(file).and_then(|text| Ok(serde_json::from_slice(&text)?));
    read.map_err(|error: io::Error| {
        if error.kind() != ErrorKind::NotFound {
            tracing::error!(file = %file.display(), %error, "cannot read the generations: counting from those in last-good.json");
        }
    })
    .ok()
}

fn read_last_good(file: &Path) -> Option<Kept> {
    let read = || -> io::Result<Kept> {
        let opened = File::open(file)?;
        if opened.metadata()?.len() > MAX_SIZE {
            return Err(io::Error::other(format!("larger than {MAX_SIZE} bytes")));
        }
        let kept: Kept = serde_json::from_reader(io::BufReader::new(opened))?;
        match kept.format {
            FORMAT => Ok(kept),
            other => Err(io::Error::other(format!("of format {other}, which this version does not read"))),
        }
    };
    read()
        .map_err(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(
                    file = %file.display(), %error,
                    "cannot read the last good versions of objects: those whose document is bad now are absent until it is mended"
                );
            }
        })
        .ok()
}

/// `last-good.json`
#[derive(Deserialize)]
struct Kept {
    format: u32,
    generations: Generations,
    objects: Vec<KeptObject>,
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
    file: PathBuf,
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
            file: folder.join("last-good.json"),
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
        let mut on_disk: Option<Arc<World>> = None;
        let mut failing = false;
        let mut rested = Instant::now();
        while let Some((number, world)) = self.take(rested) {
            let began = Instant::now();
            if on_disk.as_ref().is_none_or(|before| !before.keeps_as(&world)) {
                match self.write(&world) {
                    Ok(()) => {
                        on_disk = Some(world);
                        failing = false;
                        rested = Instant::now() + began.elapsed() * REST;
                    }
                    Err(error) => {
                        if !failing {
                            tracing::error!(
                                file = %self.file.display(), %error,
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

    fn write(&self, world: &World) -> io::Result<()> {
        let content = Keeping { format: FORMAT, generations: world.generations(), objects: Objects(world) };
        let written =
            replace(&self.file, |file| Ok(serde_json::to_writer(Bounded { file, left: MAX_SIZE }, &content)?), true);
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::FileTooLarge) {
            // Better nothing than what was true long ago.
            let _ = fs::remove_file(&self.file);
        }
        // The new name is on disk when the folder is.
        written.and_then(|()| File::open(&self.folder)?.sync_all())
    }
}

impl Pending {
    fn retry(&mut self, world: Arc<World>) {
        if !self.ended {
            self.world.get_or_insert(world);
        }
    }
}

/// Whole or not at all; only the owner may read it.
fn replace(file: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>, force_to_disk: bool) -> io::Result<()> {
    let temporary = file.with_extension("json.new");
    let write = || -> io::Result<()> {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut writer = BufWriter::new(opened);
        content(&mut writer)?;
        let opened = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        if force_to_disk {
            opened.sync_all()?;
        }
        fs::rename(&temporary, file)
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
