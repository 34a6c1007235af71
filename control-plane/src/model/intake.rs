//! Sorts documents out: which object comes from which document, and which keeps what it had. A file that changed costs what changed
//! in it.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Document, DocumentError, ObjectKey,
    object::Stored,
    parse::{self, Item, Keep, Parsed},
    shared_map::SharedMap,
};

/// File, and number of the document in it.
pub(super) type Place = (Arc<str>, u32);

/// "shop.yaml#2"; what is no file's document is an object of the API server.
pub(super) fn source((file, index): &Place) -> String {
    match index {
        0 => "API server".to_owned(),
        index => format!("{file}#{index}"),
    }
}

/// What a file holds now.
#[derive(Debug, Clone)]
pub struct FileContent {
    pub file: Arc<str>,
    pub documents: Vec<Document>,
    /// Of documents that could not be read. Nothing here, and no documents: as if there were no such file.
    pub unreadable: Vec<DocumentError>,
    /// In place of documents: one that was parsed where it came from, so that it need not be kept.
    pub(super) parsed: Option<Arc<Read>>,
}

impl FileContent {
    /// A file without documents, which is as if there were none.
    pub fn none(file: Arc<str>) -> Self {
        Self::of(file, Vec::new(), Vec::new())
    }

    pub fn of(file: Arc<str>, documents: Vec<Document>, unreadable: Vec<DocumentError>) -> Self {
        Self { file, documents, unreadable, parsed: None }
    }

    /// An object of an API server, parsed. Whoever has its document can be asked again: it is not kept.
    pub fn object(file: Arc<str>, content: serde_json::Value) -> Self {
        let document = Document { file: Arc::clone(&file), index: 0, content: Arc::new(content) };
        let items = parse::parse(&document, Keep::Nothing).into();
        let read = Read { document: Keep::Nothing.of(document), items };
        Self { parsed: Some(Arc::new(read)), ..Self::none(file) }
    }
}

/// A document, and what it held.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) document: Document,
    pub(super) items: Arc<[Item]>,
}

/// A file as it was read. Documents in their order.
#[derive(Debug, Default)]
struct ReadFile {
    read: Vec<Arc<Read>>,
    unreadable: Vec<DocumentError>,
    /// Something in it cannot even be named: it may be any object that the file held.
    broken: bool,
}

/// A document that says what an object is.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) parsed: Arc<Parsed>,
    pub(super) place: Place,
}

/// What documents say of an object.
pub(super) enum Verdict<'a> {
    /// It is this.
    Is(&'a Claim),
    /// Nothing that can be used: what was in force stays.
    Stays,
    /// There is no such object.
    IsNot,
}

/// What all documents say. See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Intake {
    files: SharedMap<Arc<str>, Arc<ReadFile>>,
    /// In the order of documents; never empty.
    claims: SharedMap<ObjectKey, Vec<Claim>>,
    /// What stands in for objects of which there are only bad documents, in the order of these; never empty.
    stand_ins: SharedMap<ObjectKey, Vec<Claim>>,
    /// Whom bad documents name, by uid (empty: not said), one for each that is wrong with them; never empty.
    bad: SharedMap<ObjectKey, Vec<Arc<str>>>,
    /// Objects that several documents claim.
    disputed: Arc<BTreeSet<ObjectKey>>,
    /// Files with something wrong in them.
    faulty: Arc<BTreeSet<Arc<str>>>,
}

impl Intake {
    /// Takes in what a file holds now. Adds to `concerned` the objects of which something else may be said than before, but for
    /// those that a broken file held: see [`Self::is_broken`]. Returns whether that concerns [`Self::errors`].
    pub(super) fn take(&mut self, content: FileContent, concerned: &mut BTreeSet<ObjectKey>) -> bool {
        let FileContent { file, mut documents, unreadable, parsed } = content;
        documents.sort_by_key(|document| document.index);
        let before = self.files.get(&file).cloned().unwrap_or_default();
        let mut old = before.read.iter().peekable();
        let mut next = ReadFile { read: Vec::with_capacity(documents.len()), unreadable, broken: false };
        let mut disputes = false;
        for document in documents {
            let same = |old: &Read| Arc::ptr_eq(&old.document.content, &document.content);
            while let Some(gone) = old.next_if(|old| {
                old.document.index < document.index || old.document.index == document.index && !same(old)
            }) {
                disputes |= self.forget(gone, concerned);
            }
            next.read.push(match old.next_if(|old| old.document.index == document.index) {
                Some(old) => Arc::clone(old),
                None => {
                    let items = parse::parse(&document, Keep::Documents).into();
                    let read = Arc::new(Read { document, items });
                    disputes |= self.note(&read, concerned);
                    read
                }
            });
        }
        for gone in old {
            disputes |= self.forget(gone, concerned);
        }
        if let Some(read) = parsed {
            disputes |= self.note(&read, concerned);
            next.read.push(read);
        }
        let broken = next.errors().any(|error| error.object.is_none());
        next.broken = broken;
        if before.broken || next.broken {
            concerned.extend(before.keys().chain(next.keys()).cloned());
        }
        let was_faulty = self.faulty.contains(&file);
        let is_faulty = next.errors().next().is_some();
        if is_faulty && !was_faulty {
            Arc::make_mut(&mut self.faulty).insert(Arc::clone(&file));
        } else if was_faulty && !is_faulty {
            Arc::make_mut(&mut self.faulty).remove(&file);
        }
        if next.read.is_empty() && next.unreadable.is_empty() {
            self.files.remove(&file);
        } else {
            self.files.insert(file, Arc::new(next));
        }
        was_faulty || is_faulty || disputes
    }

    /// Returns whether an object is, or was, disputed.
    fn note(&mut self, read: &Read, concerned: &mut BTreeSet<ObjectKey>) -> bool {
        let place = (Arc::clone(&read.document.file), read.document.index);
        let mut disputes = false;
        for item in read.items.iter() {
            match item {
                Item::Object(parsed) => {
                    let claim = Claim { parsed: Arc::clone(parsed), place: place.clone() };
                    let add = |claims: &mut Vec<Claim>| {
                        let at = claims.partition_point(|known| known.place <= claim.place);
                        claims.insert(at, claim);
                        disputes |= claims.len() > 1;
                    };
                    self.claims.change(&parsed.key, add, |_| true);
                    self.dispute(&parsed.key);
                    concerned.insert(parsed.key.clone());
                }
                Item::StandIn(parsed) => {
                    let claim = Claim { parsed: Arc::clone(parsed), place: place.clone() };
                    let add = |claims: &mut Vec<Claim>| {
                        let at = claims.partition_point(|known| known.place <= claim.place);
                        claims.insert(at, claim);
                    };
                    self.stand_ins.change(&parsed.key, add, |_| true);
                    concerned.insert(parsed.key.clone());
                }
                Item::Bad(DocumentError { object: Some(key), uid, .. }) => {
                    self.bad.change(key, |uids| uids.push(Arc::clone(uid)), |_| true);
                    concerned.insert(key.clone());
                }
                Item::Bad(_) | Item::Ignored(_) => {}
            }
        }
        disputes
    }

    /// Undoes [`Self::note`].
    fn forget(&mut self, read: &Read, concerned: &mut BTreeSet<ObjectKey>) -> bool {
        let place = (Arc::clone(&read.document.file), read.document.index);
        let mut disputes = false;
        for item in read.items.iter() {
            match item {
                Item::Object(parsed) => {
                    let remove = |claims: &mut Vec<Claim>| {
                        disputes |= claims.len() > 1;
                        claims.retain(|known| known.place != place || !Arc::ptr_eq(&known.parsed, parsed));
                    };
                    self.claims.change(&parsed.key, remove, |claims| !claims.is_empty());
                    self.dispute(&parsed.key);
                    concerned.insert(parsed.key.clone());
                }
                Item::StandIn(parsed) => {
                    let remove = |claims: &mut Vec<Claim>| {
                        claims.retain(|known| known.place != place || !Arc::ptr_eq(&known.parsed, parsed));
                    };
                    self.stand_ins.change(&parsed.key, remove, |claims| !claims.is_empty());
                    concerned.insert(parsed.key.clone());
                }
                Item::Bad(DocumentError { object: Some(key), uid, .. }) => {
                    let remove = |uids: &mut Vec<Arc<str>>| {
                        if let Some(at) = uids.iter().position(|known| known == uid) {
                            uids.swap_remove(at);
                        }
                    };
                    self.bad.change(key, remove, |uids| !uids.is_empty());
                    concerned.insert(key.clone());
                }
                Item::Bad(_) | Item::Ignored(_) => {}
            }
        }
        disputes
    }

    fn dispute(&mut self, key: &ObjectKey) {
        let disputed = self.claims.get(key).is_some_and(|claims| claims.len() > 1);
        if disputed != self.disputed.contains(key) {
            let all = Arc::make_mut(&mut self.disputed);
            if disputed {
                all.insert(key.clone());
            } else {
                all.remove(key);
            }
        }
    }

    /// `in_force`: what the object is now.
    pub(super) fn verdict(&self, key: &ObjectKey, in_force: Option<&Arc<Stored>>) -> Verdict<'_> {
        let good = in_force.filter(|stored| !stored.stands_in());
        match (self.claims.get(key).map(Vec::as_slice).unwrap_or_default(), in_force) {
            ([only], _) => Verdict::Is(only),
            // Which of several is meant is not ours to guess.
            ([_, ..], Some(_)) if good.is_some() => Verdict::Stays,
            ([first, ..], _) => Verdict::Is(first),
            ([], Some(_)) if good.is_some_and(|good| self.is_badly_said(key, good)) => Verdict::Stays,
            ([], Some(stored)) if self.is_broken(&stored.place.0) => Verdict::Stays,
            ([], _) => self.stand_ins.get(key).and_then(|all| all.first()).map_or(Verdict::IsNot, Verdict::Is),
        }
    }

    /// Whether a bad document is about this very object, as far as can be told, and not about one that was made under its name since.
    fn is_badly_said(&self, key: &ObjectKey, stored: &Stored) -> bool {
        let same = |uid: &Arc<str>| uid.is_empty() || stored.uid.is_empty() || *uid == stored.uid;
        self.bad.get(key).is_some_and(|uids| uids.iter().any(same))
    }

    /// Whether a file may hold any object: what it held last stays.
    pub(super) fn is_broken(&self, file: &str) -> bool {
        self.files.get(file).is_some_and(|file| file.broken)
    }

    /// Every file that holds something.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// What is wrong, in the order of documents.
    pub(super) fn errors(&self) -> Vec<DocumentError> {
        let faulty = self.faulty.iter().filter_map(|file| self.files.get(file));
        let mut errors: Vec<DocumentError> = faulty.flat_map(|file| file.errors()).cloned().collect();
        for (key, claims) in self.disputed.iter().filter_map(|key| Some((key, self.claims.get(key)?))) {
            let Some((first, others)) = claims.split_first() else { continue };
            errors.extend(others.iter().map(|claim| DocumentError {
                file: claim.place.0.clone(),
                document: claim.place.1,
                object: Some(key.clone()),
                field: "metadata.name".to_owned(),
                reason: format!("{key} is also in {}: remove one of the two", source(&first.place)),
                generation: None,
                uid: Arc::default(),
            }));
        }
        errors.sort_by(|a, b| (&a.file, a.document, &a.field).cmp(&(&b.file, b.document, &b.field)));
        errors
    }

    /// Documents of kinds that are not read, in their order.
    pub(super) fn ignored(&self) -> Vec<String> {
        let read = self.files.values().flat_map(|file| &file.read);
        let ignored = read.flat_map(|read| {
            read.items.iter().filter_map(|item| match item {
                Item::Ignored(what) => {
                    Some(format!("{}: {what}", source(&(read.document.file.clone(), read.document.index))))
                }
                Item::Object(_) | Item::StandIn(_) | Item::Bad(_) => None,
            })
        });
        ignored.collect()
    }

    /// In their order.
    #[cfg(test)]
    pub(super) fn read(&self) -> impl Iterator<Item = &Arc<Read>> {
        self.files.values().flat_map(|file| &file.read)
    }
}

impl ReadFile {
    fn errors(&self) -> impl Iterator<Item = &DocumentError> {
        let bad = self.read.iter().flat_map(|read| read.items.iter()).filter_map(|item| match item {
            Item::Bad(error) => Some(error),
            Item::Object(_) | Item::StandIn(_) | Item::Ignored(_) => None,
        });
        self.unreadable.iter().chain(bad)
    }

    /// Objects that it says something of.
    fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.read.iter().flat_map(|read| read.items.iter()).filter_map(|item| match item {
            Item::Object(parsed) | Item::StandIn(parsed) => Some(&parsed.key),
            Item::Bad(error) => error.object.as_ref(),
            Item::Ignored(_) => None,
        })
    }
}
