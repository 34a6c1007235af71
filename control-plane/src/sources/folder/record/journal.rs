//! `generations.log`: a line for each change since `generations.json` was written. While that is written anew, the lines before are
//! in `generations.log.old`, and later ones begin another log; lines that are known already count for nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::model::{Generations, World};

/// A larger log is given up, in bytes, and all generations are written instead.
const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// See the module.
pub(super) struct Journal {
    path: PathBuf,
    aside: PathBuf,
    /// None: it cannot be written to.
    file: Option<File>,
    size: u64,
    /// What the last line came to; None: the log is empty.
    latest: Option<Arc<World>>,
    /// How often it began anew.
    begun: u64,
}

/// A log that was put aside.
pub(super) struct Aside {
    /// Has all its lines.
    pub(super) latest: Arc<World>,
    begun: u64,
}

/// One change.
#[derive(Serialize, Deserialize)]
struct Line {
    mesh: u64,
    /// None: forgotten.
    objects: BTreeMap<String, Option<(u64, String)>>,
}

impl Journal {
    pub(super) fn new(folder: &Path) -> Self {
        let (path, aside) = (folder.join("generations.log"), folder.join("generations.log.old"));
        Self { path, aside, file: None, size: 0, latest: None, begun: 0 }
    }

    /// `whole`, with all changes that were noted since.
    pub(super) fn go_on(&self, mut whole: Generations) -> Generations {
        for path in [&self.aside, &self.path] {
            let text = match fs::read(path) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "cannot read the latest generations");
                    continue;
                }
            };
            // A process that was killed may have left a part of a line.
            let lines = text.split(|byte| *byte == b'\n').map_while(|line| serde_json::from_slice::<Line>(line).ok());
            for line in lines {
                if line.mesh <= whole.mesh {
                    continue;
                }
                whole.mesh = line.mesh;
                for (name, record) in line.objects {
                    match record {
                        Some(record) => whole.objects.insert(name, record),
                        None => whole.objects.remove(&name),
                    };
                }
            }
        }
        whole
    }

    /// All that is known of `world` has just been written.
    pub(super) fn begin(&mut self, world: &Arc<World>) {
        let _ = fs::remove_file(&self.aside);
        (self.latest, self.size) = (Some(Arc::clone(world)), 0);
        self.begun += 1;
        // If there can be none, the first note fails.
        self.file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&self.path).ok();
    }

    /// Writes down the last change.
    ///
    /// # Errors
    /// If that cannot be done. What is there may end in a part of a line; the caller must [`Self::begin`].
    pub(super) fn note(&mut self, world: &Arc<World>) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::Error::other("there is no log")) };
        let line = Line { mesh: world.generation(), objects: world.changed_generations().collect() };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.size += text.len() as u64;
        if self.size > MAX_SIZE {
            return Err(io::Error::from(ErrorKind::FileTooLarge));
        }
        self.latest = Some(Arc::clone(world));
        // Behind a part of a line nothing would be read again.
        let written = file.write_all(&text);
        if written.is_err() {
            self.file = None;
        }
        written
    }

    /// Lines from now on go to another log, until those before are [`Self::folded`]. None: there is none.
    ///
    /// # Errors
    /// If the log cannot be put aside; it stays as it is.
    pub(super) fn set_aside(&mut self) -> io::Result<Option<Aside>> {
        if self.size == 0 && !self.aside.exists() {
            return Ok(None);
        }
        // An earlier one that was not folded: the log goes on, and both are folded next time at the latest.
        if !self.aside.exists() {
            fs::rename(&self.path, &self.aside)?;
            self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path).ok();
            self.size = 0;
        }
        Ok(self.latest.clone().map(|latest| Aside { latest, begun: self.begun }))
    }

    /// What `generations.json` was written from, if that was after `aside` was put aside: it must not be overwritten.
    pub(super) fn begun_since(&self, aside: &Aside) -> Option<Arc<World>> {
        self.latest.clone().filter(|_| self.begun != aside.begun)
    }

    /// What was put aside is in `generations.json` now.
    pub(super) fn folded(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Document, FileContent, MeshSettings};

    fn world(before: &World, port: u16) -> Arc<World> {
        let service = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": port}]},
        });
        let document = Document { file: "a.yaml".into(), index: 1, content: Arc::new(service) };
        let content = FileContent::of("a.yaml".into(), vec![document], Vec::new());
        Arc::new(before.change([content]))
    }

    #[test]
    fn what_was_noted_is_known_again_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let first = world(&World::empty(MeshSettings::strict("cluster.local"), Generations::default()), 1);
        let second = world(&first, 2);
        let third = world(&second, 3);
        let mut journal = Journal::new(folder.path());
        assert!(journal.note(&first).is_err());
        journal.begin(&first);
        assert!(journal.set_aside().unwrap().is_none());
        journal.note(&second).unwrap();
        let aside = journal.set_aside().unwrap().unwrap();
        assert_eq!(aside.latest.generation(), 2);
        journal.note(&third).unwrap();
        let known = |whole: &World| Journal::new(folder.path()).go_on(whole.generations());
        assert_eq!(known(&first), third.generations());
        // A part of a line.
        fs::write(&journal.path, &fs::read(&journal.path).unwrap()[..9]).unwrap();
        assert_eq!(known(&first), second.generations());
        assert_eq!(known(&third), third.generations());
        assert!(journal.begun_since(&aside).is_none());
        journal.folded().unwrap();
        assert_eq!(known(&first), first.generations());
        journal.begin(&third);
        assert_eq!(journal.begun_since(&aside).unwrap().generation(), 3);
    }
}
