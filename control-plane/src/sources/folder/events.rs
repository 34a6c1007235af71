//! From the file system's events to the moment to look, and what not to look at yet.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use notify::event::{
    AccessKind, AccessMode, CreateKind, DataChange, Event, EventKind, ModifyKind, RemoveKind, RenameMode,
};
use parking_lot::{Condvar, Mutex};

/// Changes are read when it has been quiet for this long...
const QUIET: Duration = Duration::from_millis(10);
/// ...or when this has passed since the first.
const PATIENCE: Duration = Duration::from_millis(50);
/// More changed files than this at a time are not told apart.
const MAX_PATHS: usize = 4_096;
/// A file that somebody keeps open for writing is read anyway this long after the last write.
pub(super) const LONGEST_WRITE: Duration = Duration::from_secs(1);
/// The same for one that got shorter: a shell empties it first, and the command may take its time (`helm template … > file`).
const LONGEST_REWRITE: Duration = Duration::from_secs(60);

/// What a look is about.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) writers: Writers,
    /// Nothing else can have changed, as far as events tell. None: anything can.
    pub(super) paths: Option<HashSet<PathBuf>>,
}

/// Files that somebody is writing.
#[derive(Debug, Default)]
pub(super) struct Writers {
    /// To be left alone.
    pub(super) recent: HashSet<PathBuf>,
    /// Not ended, and nothing written lately: to be left alone if they got shorter.
    pub(super) slow: HashSet<PathBuf>,
}

/// Shared by the watcher, which notes, and the folder's thread, which waits.
#[derive(Default)]
pub(super) struct Events {
    pending: Mutex<Pending>,
    noted: Condvar,
}

impl Events {
    pub(super) fn note(&self, event: notify::Result<Event>, now: Instant) {
        let mut pending = self.pending.lock();
        match event {
            Ok(event) => pending.note(event, now),
            // Something was missed.
            Err(_) => pending.anything(now),
        }
        self.noted.notify_one();
    }

    /// Asks for another look, at everything.
    pub(super) fn again(&self) {
        self.pending.lock().anything(Instant::now());
    }

    /// Asks for a look, whatever else is going on.
    pub(super) fn now(&self) {
        self.pending.lock().at_once = true;
        self.noted.notify_one();
    }

    /// Waits until it is time to look, at most `longest`.
    pub(super) fn wait(&self, longest: Duration) -> Look {
        let deadline = Instant::now() + longest;
        let mut pending = self.pending.lock();
        loop {
            let now = Instant::now();
            let due = pending.due().unwrap_or(deadline).min(deadline);
            if now >= due || pending.at_once {
                return pending.take(now);
            }
            self.noted.wait_until(&mut pending, due);
        }
    }

    pub(super) fn being_written(&self, now: Instant) -> HashSet<PathBuf> {
        self.pending.lock().being_written(now)
    }
}

/// What was noted since the last look.
#[derive(Default)]
struct Pending {
    /// First and last change.
    changes: Option<(Instant, Instant)>,
    /// Where they were.
    paths: HashSet<PathBuf>,
    /// They may have been anywhere.
    anywhere: bool,
    /// Somebody asked for a look.
    at_once: bool,
    /// Files with a writer.
    writing: HashMap<PathBuf, Writing>,
}

struct Writing {
    last: Instant,
    /// It was looked at once since.
    slow: bool,
}

impl Writing {
    fn due(&self) -> Instant {
        self.last + if self.slow { LONGEST_REWRITE } else { LONGEST_WRITE }
    }
}

impl Pending {
    fn note(&mut self, event: Event, now: Instant) {
        if event.need_rescan() {
            // Events were lost: a writer's end may be among them.
            self.writing.clear();
            return self.anything(now);
        }
        let begins = match event.kind {
            // Looking makes these.
            EventKind::Access(AccessKind::Open(_) | AccessKind::Read | AccessKind::Close(AccessMode::Read)) => return,
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Create(CreateKind::File) => true,
            EventKind::Modify(ModifyKind::Data(DataChange::Any | DataChange::Content | DataChange::Size)) => true,
            EventKind::Remove(RemoveKind::Any | RemoveKind::File | RemoveKind::Folder) => false,
            EventKind::Modify(ModifyKind::Name(
                RenameMode::Any | RenameMode::From | RenameMode::To | RenameMode::Both,
            )) => false,
            EventKind::Access(_) => return,
            _ => return self.anything(now),
        };
        for path in event.paths {
            if self.paths.len() < MAX_PATHS {
                self.paths.insert(path.clone());
            } else {
                self.anywhere = true;
            }
            if begins && !path.is_symlink() {
                self.writing.insert(path, Writing { last: now, slow: false });
            } else {
                self.writing.remove(&path);
            }
        }
        self.dirty(now);
    }

    fn anything(&mut self, now: Instant) {
        self.anywhere = true;
        self.dirty(now);
    }

    fn dirty(&mut self, now: Instant) {
        let first = self.changes.map_or(now, |(first, _)| first);
        self.changes = Some((first, now));
    }

    /// When to look.
    fn due(&self) -> Option<Instant> {
        let changes = self.changes.map(|(first, last)| (last + QUIET).min(first + PATIENCE));
        let given_up = self.writing.values().map(Writing::due).min();
        changes.into_iter().chain(given_up).min()
    }

    /// Begins a look.
    fn take(&mut self, now: Instant) -> Look {
        let paths = std::mem::take(&mut self.paths);
        // Who asks for a look knows of changes whose events may still be on their way; and without a change it is time to look
        // at what events may have missed.
        let told = self.changes.is_some() && !self.at_once && !self.anywhere;
        let given_up = self.writing.values().any(|writing| writing.due() <= now);
        self.changes = None;
        self.anywhere = false;
        self.at_once = false;
        self.writing.retain(|_, writing| writing.last + LONGEST_REWRITE > now);
        for writing in self.writing.values_mut() {
            writing.slow |= writing.due() <= now;
        }
        let slow = self.writing.iter().filter(|(_, writing)| writing.slow);
        let writers = Writers { slow: slow.map(|(path, _)| path.clone()).collect(), recent: self.being_written(now) };
        Look { writers, paths: (told && !given_up).then_some(paths) }
    }

    /// Written lately.
    fn being_written(&self, now: Instant) -> HashSet<PathBuf> {
        let recent = self.writing.iter().filter(|(_, writing)| writing.last + LONGEST_WRITE > now);
        recent.map(|(path, _)| path.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, path: &str) -> Event {
        Event::new(kind).add_path(PathBuf::from(path))
    }

    const WRITE: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSE: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const READ: EventKind = EventKind::Access(AccessKind::Open(AccessMode::Any));

    #[test]
    fn looks_when_it_is_quiet_and_no_later_than_patience_allows() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pending = Pending::default();
        assert_eq!(pending.due(), None);
        pending.note(event(CLOSE, "/c/a.yaml"), at(0));
        assert_eq!(pending.due(), Some(at(10)));
        for millis in (5..50).step_by(5) {
            pending.note(event(CLOSE, "/c/a.yaml"), at(millis));
        }
        assert_eq!(pending.due(), Some(at(50)));
        assert!(pending.take(at(50)).writers.recent.is_empty());
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn what_is_being_written_is_left_alone_until_it_is_closed() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pending = Pending::default();
        pending.note(event(WRITE, "/c/a.yaml"), at(0));
        assert_eq!(pending.take(at(10)).writers.recent.len(), 1);
        pending.note(event(CLOSE, "/c/a.yaml"), at(100));
        assert_eq!(pending.due(), Some(at(110)));
        assert!(pending.take(at(110)).writers.recent.is_empty());
        // One that never ends is read anyway, if it did not get shorter; and then too, in the end.
        pending.note(event(WRITE, "/c/a.yaml"), at(200));
        pending.take(at(210));
        assert_eq!(pending.due(), Some(at(1200)));
        let writers = pending.take(at(1200)).writers;
        assert_eq!((writers.recent.len(), writers.slow.len()), (0, 1));
        assert_eq!(pending.due(), Some(at(60_200)));
        let writers = pending.take(at(60_200)).writers;
        assert_eq!((writers.recent.len(), writers.slow.len()), (0, 0));
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn only_what_changed_is_looked_at_unless_that_is_not_known() {
        let start = Instant::now();
        let mut pending = Pending::default();
        pending.note(event(CLOSE, "/c/a.yaml"), start);
        assert_eq!(pending.take(start).paths, Some(HashSet::from([PathBuf::from("/c/a.yaml")])));
        assert_eq!(pending.take(start).paths, None);
        pending.note(event(CLOSE, "/c/a.yaml"), start);
        pending.note(event(EventKind::Create(CreateKind::Folder), "/c/d"), start);
        assert_eq!(pending.take(start).paths, None);
        pending.note(event(CLOSE, "/c/a.yaml"), start);
        pending.at_once = true;
        assert_eq!(pending.take(start).paths, None);
    }

    #[test]
    fn looking_is_no_reason_to_look_again() {
        let mut pending = Pending::default();
        pending.note(event(READ, "/c/a.yaml"), Instant::now());
        assert_eq!(pending.due(), None);
    }
}
