//! The files of a folder, with what was read of them: a file that did not change is not read again.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, Metadata},
    io::{self, ErrorKind, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::events::{Look, Writers};
use crate::{
    model::{Document, DocumentError, FileContent},
    sources::yaml,
};

/// Largest file that is read, in bytes.
const MAX_FILE_SIZE: u64 = 16 * 1024 * 1024;
/// Most files in the folder and below.
const MAX_FILES: usize = 20_000;
/// Deepest folder below the configuration folder.
const MAX_DEPTH: usize = 8;

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change of content and of metadata.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    /// Of what `path` leads to.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&fs::metadata(path)?))
    }

    fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    pub(super) fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// One file as it was read.
#[derive(Debug)]
struct Content {
    /// As people will see it.
    name: Arc<str>,
    /// None: could not be opened.
    id: Option<FileId>,
    documents: Vec<Document>,
    unreadable: Vec<DocumentError>,
    /// Its documents by their text.
    known: yaml::Known,
}

impl Content {
    fn is_empty(&self) -> bool {
        self.documents.is_empty() && self.unreadable.is_empty()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// A folder that is ours to write, should it lie in the configuration.
    exclude: Option<PathBuf>,
    known: BTreeMap<PathBuf, Content>,
}

/// What a look found, not yet taken.
#[derive(Debug, Default)]
pub(super) struct Changes {
    read: BTreeMap<PathBuf, Content>,
    gone: Vec<PathBuf>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.read.is_empty() && self.gone.is_empty()
    }

    /// Whether a file has nothing in it.
    pub(super) fn any_empty(&self) -> bool {
        self.read.values().any(Content::is_empty)
    }

    /// Leaves out files that changed again since they were read, are being written, or came back. Whether there were any.
    pub(super) fn drop_unsettled(&mut self, being_written: &HashSet<PathBuf>) -> bool {
        let before = self.read.len() + self.gone.len();
        self.read.retain(|path, content| !being_written.contains(path) && FileId::of(path).ok() == content.id);
        self.gone.retain(|path| !path.exists());
        self.read.len() + self.gone.len() < before
    }
}

impl Files {
    pub(super) fn without(exclude: Option<PathBuf>) -> Self {
        Self { exclude, known: BTreeMap::new() }
    }

    /// Reads files that changed since the last look, but for those that are being written.
    ///
    /// # Errors
    /// If the folder cannot be read. A file that cannot be is its own error, among the documents.
    pub(super) fn look(&self, folder: &Path, look: &Look) -> io::Result<Changes> {
        let (paths, gone) = match look.paths.as_ref().and_then(|paths| self.only(folder, paths)) {
            Some(only) => only,
            None => {
                let mut paths = Vec::new();
                list(folder, MAX_DEPTH, self.exclude.as_deref(), &mut paths)?;
                let present: HashSet<&PathBuf> = paths.iter().collect();
                let gone = self.known.keys().filter(|path| !present.contains(path)).cloned().collect();
                (paths, gone)
            }
        };
        Ok(self.read(folder, &paths, gone, &look.writers))
    }

    /// Of `changed`, files to be read, and known ones that are gone. None: something else may have changed by that.
    fn only(&self, folder: &Path, changed: &HashSet<PathBuf>) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut paths, mut gone) = (Vec::new(), Vec::new());
        for path in changed {
            let inside = path.strip_prefix(folder).ok()?;
            let names: Vec<_> = inside.components().map(|part| part.as_os_str().to_string_lossy()).collect();
            // How a mounted ConfigMap is changed: all its files at once, by one link.
            if names.is_empty() || names.iter().any(|name| name.starts_with("..")) {
                return None;
            }
            if names.len() > MAX_DEPTH + 1 || names.iter().any(|name| name.starts_with('.')) || self.is_excluded(path) {
                continue;
            }
            match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_file() && may_hold_documents(path) => paths.push(path.clone()),
                Ok(metadata) if metadata.is_file() => {}
                Ok(_) => return None,
                Err(_) if self.known.contains_key(path) => gone.push(path.clone()),
                Err(_) if may_hold_documents(path) => {}
                // Perhaps a folder.
                Err(_) => return None,
            }
        }
        paths.sort_unstable();
        (self.known.len() + paths.len() <= MAX_FILES).then_some((paths, gone))
    }

    fn is_excluded(&self, path: &Path) -> bool {
        let Some(exclude) = &self.exclude else { return false };
        path.parent().and_then(|folder| folder.canonicalize().ok()).is_some_and(|folder| folder.starts_with(exclude))
    }

    fn read(&self, folder: &Path, paths: &[PathBuf], gone: Vec<PathBuf>, writers: &Writers) -> Changes {
        let mut changes = Changes { read: BTreeMap::new(), gone };
        for path in paths {
            if writers.recent.contains(path) {
                continue;
            }
            if let Some(known) = self.known.get(path).and_then(|content| content.id)
                && let Ok(now) = FileId::of(path)
                && (now == known || now.size < known.size && writers.slow.contains(path))
            {
                continue;
            }
            match read(folder, path, self.known.get(path)) {
                Some(content) => drop(changes.read.insert(path.clone(), content)),
                // Gone between the listing and the reading.
                None if self.known.contains_key(path) => changes.gone.push(path.clone()),
                None => {}
            }
        }
        // One that still cannot be read is no news.
        changes.read.retain(|path, content| {
            let known = self.known.get(path);
            known.is_none_or(|known| {
                content.id.is_some() || known.id.is_some() || known.unreadable != content.unreadable
            })
        });
        changes
    }

    /// Whether anything is gone or got smaller.
    pub(super) fn shrinks(&self, changes: &Changes) -> bool {
        let smaller = |path: &PathBuf, content: &Content| {
            let before = self.known.get(path).and_then(|known| known.id);
            before.is_some_and(|before| content.id.is_none_or(|now| now.size < before.size))
        };
        !changes.gone.is_empty() || changes.read.iter().any(|(path, content)| smaller(path, content))
    }

    /// Whether a file that held documents is empty now.
    pub(super) fn empties(&self, changes: &Changes) -> bool {
        let emptied = |path: &PathBuf| self.known.get(path).is_some_and(|known| !known.documents.is_empty());
        changes.read.iter().any(|(path, content)| content.is_empty() && emptied(path))
    }

    /// Returns what the changed files hold now.
    pub(super) fn adopt(&mut self, changes: Changes) -> Vec<FileContent> {
        let gone = changes.gone.iter().filter_map(|path| self.known.remove(path));
        let mut contents: Vec<FileContent> = gone.map(|content| FileContent::none(content.name)).collect();
        contents.extend(changes.read.values().map(|content| {
            FileContent::of(Arc::clone(&content.name), content.documents.clone(), content.unreadable.clone())
        }));
        self.known.extend(changes.read);
        contents
    }

    /// The complete set.
    pub(super) fn documents(&self) -> (Vec<Document>, Vec<DocumentError>) {
        let documents = self.known.values().flat_map(|content| &content.documents).cloned().collect();
        let unreadable = self.known.values().flat_map(|content| &content.unreadable).cloned().collect();
        (documents, unreadable)
    }
}

/// Files below `folder` that may hold documents. Names that begin with a dot are editors', or a mounted ConfigMap's machinery.
fn list(folder: &Path, depth: usize, exclude: Option<&Path>, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Through symbolic links, which is how a ConfigMap is mounted.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            if exclude.is_some() && path.canonicalize().ok().as_deref() == exclude {
                continue;
            }
            // A folder below may go while it is read.
            if depth > 0
                && let Err(error) = list(&path, depth - 1, exclude, paths)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(folder = %path.display(), %error, "cannot read a folder of the configuration");
            }
            continue;
        }
        if metadata.is_file() && may_hold_documents(&path) {
            if paths.len() == MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files")));
            }
            paths.push(path);
        }
    }
    Ok(())
}

/// By its name.
fn may_hold_documents(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// Of a file in `folder`, no other's.
fn name_of(folder: &Path, path: &Path) -> Arc<str> {
    let path = path.strip_prefix(folder).unwrap_or(path);
    match path.to_str() {
        Some(name) => name.into(),
        // What is not UTF-8 is escaped.
        None => format!("{path:?}").into(),
    }
}

/// None: it is gone.
fn read(folder: &Path, path: &Path, before: Option<&Content>) -> Option<Content> {
    let name = name_of(folder, path);
    let failed = |id, reason: String| {
        let error = DocumentError {
            file: name.clone(),
            document: 0,
            object: None,
            field: String::new(),
            reason,
            generation: None,
            uid: Arc::default(),
        };
        let name = name.clone();
        Some(Content { name, id, documents: Vec::new(), unreadable: vec![error], known: yaml::Known::new() })
    };
    let opened = File::open(path).and_then(|file| Ok((FileId::new(&file.metadata()?), file)));
    let (id, file) = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return failed(None, format!("cannot be opened: {error}")),
    };
    if id.size > MAX_FILE_SIZE {
        return failed(Some(id), format!("larger than {MAX_FILE_SIZE} bytes: split it"));
    }
    let mut text = String::new();
    match file.take(MAX_FILE_SIZE).read_to_string(&mut text) {
        Ok(_) => {
            let nothing = yaml::Known::new();
            let known = before.map_or(&nothing, |before| &before.known);
            let yaml::Contents { documents, unreadable, known } = yaml::documents(&name, &text, known);
            Some(Content { name, id: Some(id), documents, unreadable, known })
        }
        Err(error) if error.kind() == ErrorKind::InvalidData => failed(Some(id), "not UTF-8 text".to_owned()),
        Err(error) => failed(None, format!("cannot be read: {error}")),
    }
}
