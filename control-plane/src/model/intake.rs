//! Sorts documents out: which object comes from which document, and which keeps what it had.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    Document, DocumentError, ObjectKey,
    index::Objects,
    parse::{self, Item, Parsed},
};

/// File, and number of the document in it.
pub(super) type Place = (Arc<str>, u32);

/// "shop.yaml#2"
pub(super) fn source((file, index): &Place) -> String {
    format!("{file}#{index}")
}

/// A document, and what it held.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) document: Document,
    pub(super) items: Arc<[Item]>,
}

/// A document that says what an object is.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) parsed: Arc<Parsed>,
    pub(super) place: Place,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// By key, one for each.
    pub(super) chosen: Vec<Claim>,
    /// Objects whose last good version stays; none of them is chosen.
    pub(super) kept: BTreeSet<ObjectKey>,
    /// In the order of documents.
    pub(super) errors: Vec<DocumentError>,
    pub(super) ignored: Vec<String>,
    /// In the order of documents.
    pub(super) read: Vec<Read>,
}

impl Intake {
    /// `before`: what was read last time, and what is in force.
    pub(super) fn of(
        before: &[Read],
        in_force: &Objects,
        documents: Vec<Document>,
        unreadable: Vec<DocumentError>,
    ) -> Self {
        let mut intake = Self { errors: unreadable, ..Self::default() };
        let (claims, bad) = intake.read(before, documents);
        intake.choose(in_force, claims);
        let chosen = |key: &ObjectKey| intake.chosen.binary_search_by(|claim| claim.parsed.key.cmp(key)).is_ok();
        let mut kept: BTreeSet<ObjectKey> = bad.into_iter().filter(|key| !chosen(key)).collect();
        // A document that cannot even be named may be any object that its file held.
        let broken: HashSet<&Arc<str>> =
            intake.errors.iter().filter(|error| error.object.is_none()).map(|error| &error.file).collect();
        if !broken.is_empty() {
            let held = in_force.iter().filter(|(_, stored)| broken.contains(&stored.place.0)).map(|(key, _)| key);
            kept.extend(held.filter(|key| !chosen(key)).cloned());
        }
        intake.kept.extend(kept);
        intake.errors.sort_by(|a, b| (&a.file, a.document, &a.field).cmp(&(&b.file, b.document, &b.field)));
        intake
    }

    /// Parses what is new. Returns claims in the order of documents, and objects with a bad document.
    fn read(&mut self, before: &[Read], mut documents: Vec<Document>) -> (Vec<Claim>, BTreeSet<ObjectKey>) {
        documents.sort_by(|a, b| (&a.file, a.index).cmp(&(&b.file, b.index)));
        let mut before = before.iter().peekable();
        let mut claims = Vec::with_capacity(documents.len());
        let mut bad = BTreeSet::new();
        for document in documents {
            let place = (&document.file, document.index);
            while before.next_if(|old| (&old.document.file, old.document.index) < place).is_some() {}
            let same = |old: &&&Read| {
                Arc::ptr_eq(&old.document.content, &document.content)
                    && (&old.document.file, old.document.index) == place
            };
            let items = match before.peek().filter(same) {
                Some(old) => old.items.clone(),
                None => parse::parse(&document).into(),
            };
            let place = (document.file.clone(), document.index);
            for item in items.iter() {
                match item {
                    Item::Object(parsed) => claims.push(Claim { parsed: parsed.clone(), place: place.clone() }),
                    Item::Ignored(what) => self.ignored.push(format!("{}: {what}", source(&place))),
                    Item::Bad(error) => {
                        bad.extend(error.object.clone());
                        self.errors.push(error.clone());
                    }
                }
            }
            self.read.push(Read { document, items });
        }
        (claims, bad)
    }

    fn choose(&mut self, in_force: &Objects, mut claims: Vec<Claim>) {
        // Stable: claims to one object stay in the order of documents.
        claims.sort_by(|a, b| a.parsed.key.cmp(&b.parsed.key));
        let mut twice = BTreeSet::new();
        for claim in claims {
            let Some(first) = self.chosen.last().filter(|first| first.parsed.key == claim.parsed.key) else {
                self.chosen.push(claim);
                continue;
            };
            let key = claim.parsed.key.clone();
            self.errors.push(DocumentError {
                file: claim.place.0.clone(),
                document: claim.place.1,
                object: Some(key.clone()),
                field: "metadata.name".to_owned(),
                reason: format!("{key} is also in {}: remove one of the two", source(&first.place)),
            });
            twice.insert(key);
        }
        // Which of the two is meant is not ours to guess: what was in force stays.
        twice.retain(|key| in_force.contains_key(key));
        self.chosen.retain(|claim| !twice.contains(&claim.parsed.key));
        self.kept = twice;
    }
}
