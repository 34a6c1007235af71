//! All facts at one generation, and how the next one is made.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    iter::Peekable,
    sync::Arc,
};

use super::{
    Condition, Document, DocumentError, EndpointSlice, Generations, Kind, MeshSettings, Object, ObjectInfo, ObjectKey,
    Topic,
    index::{self, Index, Objects},
    intake::{Claim, Intake, Place, Read, source},
    object::Stored,
    parse::{self, Item, Parsed},
    routes::RouteIndex,
    topics::{self, Side},
};

/// Topics whose last change is remembered one by one. Beyond, the older half is forgotten: who asks about a time before that
/// is told that everything changed.
const MAX_TOPICS: usize = 65_536;
/// Removed objects whose generation is remembered, so that one of the same name goes on from there.
const MAX_REMOVED: usize = 4_096;

/// All facts at one mesh-wide generation. Cheap to share (`Arc<World>`), never changed.
#[derive(Debug)]
pub struct World {
    pub(crate) settings: MeshSettings,
    pub(crate) objects: Objects,
    pub(crate) index: Arc<Index>,
    pub(crate) routes: Arc<RouteIndex>,
    generation: u64,
    errors: Vec<DocumentError>,
    /// Objects in force whose document is bad.
    held_over: BTreeSet<ObjectKey>,
    /// Objects as an earlier run had them: what a document that is bad at the first load falls back to.
    restored: Objects,
    /// Documents that are of no kind that is read: "apps.yaml#1: apps/v1 Deployment".
    ignored: Vec<String>,
    read: Vec<Read>,
    /// Generation and spec hash of objects that are not in force. An empty hash: removed while we looked on.
    gone: BTreeMap<String, (u64, String)>,
    /// Mesh generation of the last change of each topic; of all others: `unchanged_since` or before.
    changed_at: HashMap<Topic, u64>,
    unchanged_since: u64,
    /// False for the empty world.
    loaded: bool,
}

impl World {
    /// The world before anything was read.
    pub fn empty(settings: MeshSettings, generations: Generations) -> Self {
        Self {
            settings,
            objects: Objects::new(),
            index: Arc::default(),
            routes: Arc::default(),
            generation: generations.mesh,
            errors: Vec::new(),
            held_over: BTreeSet::new(),
            restored: Objects::new(),
            ignored: Vec::new(),
            read: Vec::new(),
            gone: generations.objects,
            changed_at: HashMap::new(),
            unchanged_since: generations.mesh,
            loaded: false,
        }
    }

    /// The same after a restart: `last_good` is what an earlier run had in force ([`World::last_good`]). Nothing of it is in
    /// force by that; a document that is bad when it is first read leaves its objects as they were then.
    pub fn restored(settings: MeshSettings, generations: Generations, last_good: Vec<Document>) -> Self {
        let mut world = Self::empty(settings, generations);
        for document in last_good {
            let place = (document.file.clone(), document.index);
            // What this version of the parser no longer takes is as if it had not been kept.
            for item in parse::parse(&document) {
                let Item::Object(parsed) = item else { continue };
                let generation = match world.gone.get(&parsed.key.to_string()) {
                    // It was removed, and that was not kept in time.
                    Some((_, hash)) if hash.is_empty() => continue,
                    Some((generation, hash)) if **hash == *parsed.hash => *generation,
                    // A later form was in force, and was not kept in time.
                    Some((generation, _)) => generation + 1,
                    None => first_generation(parsed.key.kind, world.generation),
                };
                world.restored.insert(parsed.key.clone(), store(&parsed, &place, generation));
            }
        }
        world
    }

    /// The next world from a complete set of documents. Objects whose document is bad keep their last good version (from
    /// `self`); errors say what is wrong. Same documents: same generation.
    pub fn apply(&self, documents: Vec<Document>, unreadable: Vec<DocumentError>) -> Self {
        let in_force = if self.loaded { &self.objects } else { &self.restored };
        let intake = Intake::of(&self.read, in_force, documents, unreadable);
        let mut gone = self.gone.clone();
        let objects = self.next_objects(&intake, in_force, &mut gone);
        let changed = self.changed_keys(&objects);
        for key in &changed {
            if let (Some(old), None) = (self.objects.get(key), objects.get(key)) {
                remember_removed(&mut gone, key, old.generation);
            }
        }
        // At the first load what is on record tells whether anything changed while nobody looked.
        let moved = if self.loaded { !changed.is_empty() } else { self.differs_from_record(&objects) };
        let generation = if moved || self.generation == 0 { self.generation + 1 } else { self.generation };
        let mut next = Self {
            settings: self.settings.clone(),
            index: self.index.clone(),
            routes: self.routes.clone(),
            generation,
            errors: intake.errors,
            held_over: intake.kept,
            restored: Objects::new(),
            ignored: intake.ignored,
            read: intake.read,
            gone,
            changed_at: self.changed_at.clone(),
            unchanged_since: self.unchanged_since,
            loaded: true,
            objects,
        };
        if !changed.is_empty() {
            next.reindex(self, &changed);
        }
        if !self.loaded {
            next.unchanged_since = generation;
            next.changed_at.clear();
            next.gone.retain(|name, _| is_remembered(name));
            // Removed while nobody looked on: from now on that is known.
            next.gone.values_mut().for_each(|(_, hash)| hash.clear());
        }
        next
    }

    fn next_objects(&self, intake: &Intake, in_force: &Objects, gone: &mut BTreeMap<String, (u64, String)>) -> Objects {
        let mut before = Walk::over(&self.objects);
        let mut objects = Vec::with_capacity(intake.chosen.len() + intake.kept.len());
        for Claim { parsed, place } in &intake.chosen {
            let stored = match before.find(&parsed.key) {
                Some(old) if old.is(parsed, place) => old.clone(),
                Some(old) => {
                    let generation = old.generation + u64::from(old.hash != parsed.hash);
                    store(parsed, place, generation)
                }
                None => {
                    let generation = match gone.remove(&parsed.key.to_string()) {
                        Some((generation, hash)) if *hash == *parsed.hash => generation,
                        Some((generation, _)) => generation + 1,
                        None => first_generation(parsed.key.kind, self.generation),
                    };
                    store(parsed, place, generation)
                }
            };
            objects.push((parsed.key.clone(), stored));
        }
        for key in &intake.kept {
            if let Some(stored) = in_force.get(key) {
                gone.remove(&key.to_string());
                objects.push((key.clone(), stored.clone()));
            }
        }
        objects.into_iter().collect()
    }

    fn changed_keys(&self, objects: &Objects) -> BTreeSet<ObjectKey> {
        let mut before = Walk::over(&self.objects);
        let mut after = Walk::over(objects);
        let mut moved =
            |key: &ObjectKey, stored: &Stored| before.find(key).is_none_or(|old| old.generation != stored.generation);
        let changed: Vec<_> = objects.iter().filter(|(key, stored)| moved(key, stored)).map(|(key, _)| key).collect();
        let removed = self.objects.keys().filter(|key| after.find(key).is_none());
        changed.into_iter().chain(removed).cloned().collect()
    }

    fn differs_from_record(&self, objects: &Objects) -> bool {
        let recorded = |(key, stored): (&ObjectKey, &Arc<Stored>)| {
            self.gone.get(&key.to_string()).is_some_and(|(_, hash)| **hash == *stored.hash)
        };
        let missing = self.gone.iter().filter(|(_, (_, hash))| !hash.is_empty()).count() != objects.len();
        missing || !objects.iter().all(recorded)
    }

    fn reindex(&mut self, before: &Self, changed: &BTreeSet<ObjectKey>) {
        if changed.iter().any(|key| !key.kind.is_route()) {
            self.index = Arc::new(Index::build(&self.objects));
        }
        // Routes depend on routes and Services only.
        if changed.iter().any(|key| key.kind.is_route() || key.kind == Kind::Service) {
            self.routes = Arc::new(RouteIndex::build(&self.objects));
        }
        let mut touched = BTreeSet::new();
        let before = Side { objects: &before.objects, index: &before.index };
        let after = Side { objects: &self.objects, index: &self.index };
        for key in changed {
            topics::touched(key, &before, &after, &mut touched);
        }
        for topic in touched {
            self.changed_at.insert(topic, self.generation);
        }
        if self.changed_at.len() > MAX_TOPICS {
            let mut times: Vec<u64> = self.changed_at.values().copied().collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let forget = *median;
            self.changed_at.retain(|_, at| *at > forget);
            self.unchanged_since = forget;
        }
    }

    /// Mesh-wide; grows with each change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// To be kept in the state folder.
    pub fn generations(&self) -> Generations {
        let gone = self.gone.iter().map(|(name, record)| (name.clone(), record.clone()));
        let present = self.objects.iter();
        let present = present.map(|(key, stored)| (key.to_string(), (stored.generation, stored.hash.to_string())));
        let objects = gone.chain(present).collect();
        Generations { mesh: self.generation, objects }
    }

    /// Every object in force as a document of its own, to be kept in the state folder: see [`World::restored`].
    pub fn last_good(&self) -> impl Iterator<Item = Document> {
        self.objects.values().map(|stored| Document {
            file: stored.place.0.clone(),
            index: stored.place.1,
            content: stored.content.clone(),
        })
    }

    /// Another whenever there is something else to keep: another generation, or an object that moved to another place.
    pub fn last_good_version(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        self.generation.hash(&mut hash);
        self.objects.values().for_each(|stored| stored.place.hash(&mut hash));
        hash.finish()
    }

    /// Whether any of `topics` changed after mesh generation `since`.
    pub fn changed_since(&self, topics: &[Topic], since: u64) -> bool {
        since < self.unchanged_since
            || topics.iter().any(|topic| self.changed_at.get(topic).is_some_and(|at| *at > since))
    }

    /// What is wrong with the documents, in their order.
    pub fn errors(&self) -> &[DocumentError] {
        &self.errors
    }

    /// How many objects in force are of a document that is bad now.
    pub fn held_over(&self) -> usize {
        self.held_over.iter().filter(|key| self.objects.contains_key(key)).count()
    }

    /// Documents of kinds that are not read.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Every object in force.
    pub fn objects(&self) -> Vec<ObjectInfo> {
        self.objects.values().map(|stored| self.describe(stored)).collect()
    }

    /// One object, if it is in force.
    pub fn info(&self, key: &ObjectKey) -> Option<ObjectInfo> {
        self.objects.get(key).map(|stored| self.describe(stored))
    }

    fn describe(&self, stored: &Stored) -> ObjectInfo {
        ObjectInfo {
            key: stored.key.clone(),
            generation: stored.generation,
            source: source(&stored.place),
            held_over: self.held_over.contains(&stored.key),
            conditions: self.conditions(stored),
        }
    }

    fn conditions(&self, stored: &Stored) -> Vec<Condition> {
        let mut conditions = self.routes.conditions.get(&stored.key).cloned().unwrap_or_default();
        for (_, ip, owner) in self.index.address_conflicts.iter().filter(|(loser, ..)| *loser == stored.key) {
            conditions.push(Condition {
                kind: "Accepted",
                status: false,
                reason: "Conflicted".to_owned(),
                message: format!("cluster IP {ip} belongs to {owner}"),
                parent: None,
            });
        }
        if let Object::EndpointSlice(slice) = stored.object.as_ref() {
            conditions.extend(self.missing_pods(&stored.key, slice));
        }
        if !stored.unknown.is_empty() {
            conditions.push(Condition {
                kind: "leno.dev/PartiallySupported",
                status: true,
                reason: "UnknownFields".to_owned(),
                message: format!("these fields are not known, and have no effect: {}", stored.unknown.join(", ")),
                parent: None,
            });
        }
        conditions
    }

    /// Said of an EndpointSlice whose endpoints name Pods that do not exist.
    fn missing_pods(&self, key: &ObjectKey, slice: &EndpointSlice) -> Option<Condition> {
        let missing = |endpoint| index::missing_pod(&self.objects, &key.namespace, endpoint);
        let missing: BTreeSet<ObjectKey> = slice.endpoints.iter().filter_map(missing).collect();
        let first = missing.first()?;
        let message = match missing.len() {
            1 => format!("{first} does not exist: its endpoint is left out"),
            count => format!("{first} and {} more do not exist: their endpoints are left out", count - 1),
        };
        let reason = "PodNotFound".to_owned();
        Some(Condition { kind: "ResolvedRefs", status: false, reason, message, parent: None })
    }

    /// The service account of a Pod, to check that a workload is who its certificate says.
    pub fn service_account(&self, namespace: &str, pod: &str) -> Option<Arc<str>> {
        let key = ObjectKey { kind: Kind::Pod, namespace: namespace.into(), name: pod.into() };
        index::pod(&self.objects, &key).map(|pod| pod.service_account.clone())
    }

    /// What a document says, once validated.
    pub fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key).map(|stored| stored.object.as_ref())
    }
}

/// Looks up ascending keys in one pass: with thousands of objects, a change costs a walk and not thousands of searches.
struct Walk<'a>(Peekable<btree_map::Iter<'a, ObjectKey, Arc<Stored>>>);

impl<'a> Walk<'a> {
    fn over(objects: &'a Objects) -> Self {
        Self(objects.iter().peekable())
    }

    /// `key` must not be less than in the call before.
    fn find(&mut self, key: &ObjectKey) -> Option<&'a Arc<Stored>> {
        while self.0.next_if(|(known, _)| *known < key).is_some() {}
        self.0.peek().filter(|(known, _)| *known == key).map(|(_, stored)| *stored)
    }
}

fn store(parsed: &Parsed, place: &Place, generation: u64) -> Arc<Stored> {
    Arc::new(Stored {
        key: parsed.key.clone(),
        object: parsed.object.clone(),
        generation,
        hash: parsed.hash.clone(),
        place: place.clone(),
        content: parsed.content.clone(),
        unknown: parsed.unknown.clone(),
    })
}

impl Stored {
    /// Nothing about it is new, be it only a comment.
    fn is(&self, parsed: &Parsed, place: &Place) -> bool {
        self.hash == parsed.hash && self.place == *place && Arc::ptr_eq(&self.content, &parsed.content)
    }
}

fn remember_removed(gone: &mut BTreeMap<String, (u64, String)>, key: &ObjectKey, generation: u64) {
    let name = key.to_string();
    if is_remembered(&name) {
        while gone.len() >= MAX_REMOVED && gone.pop_first().is_some() {}
        gone.insert(name, (generation, String::new()));
    }
}

/// Pods and EndpointSlices come and go by the thousand, mostly under names that do not come back.
fn is_remembered(name: &str) -> bool {
    !name.starts_with(Kind::Pod.as_str()) && !name.starts_with(Kind::EndpointSlice.as_str())
}

/// The generation of an object of which none is on record, when the mesh's was `mesh`. An object's generation grows with the
/// mesh's, and never faster: one that was forgotten when it was removed goes on above whatever it had by starting from there.
fn first_generation(kind: Kind, mesh: u64) -> u64 {
    match kind {
        Kind::Pod | Kind::EndpointSlice => mesh + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests;
