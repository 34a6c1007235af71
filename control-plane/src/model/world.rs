//! All facts at one generation, and how the next one is made.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;

use super::{
    Condition, Document, DocumentError, EndpointSlice, Generations, Kind, MeshSettings, Object, ObjectInfo, ObjectKey,
    Topic,
    index::{self, Index, Objects},
    intake::{Claim, FileContent, Intake, Place, Verdict, source},
    object::{ProxyLife, Stored},
    parse::{self, Item, Keep, Parsed},
    policies::PolicyIndex,
    routes::RouteIndex,
    shared_map::SharedMap,
    topics::{self, ByTopicId, Side, TopicId},
};

/// Topics whose last change is remembered one by one. Beyond, the older half is forgotten: who asks about a time before that
/// is told that everything changed.
const MAX_TOPICS: usize = 65_536;
/// Latest changes whose topics are at hand.
const RECENT: usize = 32;
/// Removed objects whose generation is remembered, so that one of the same name goes on from there.
const MAX_REMOVED: usize = 4_096;

/// Namespaces that are known because something was in them once. Beyond, those that nothing is in now are forgotten.
const MAX_NAMESPACES: usize = 65_536;

/// What a change touched.
pub type Touched = HashSet<TopicId, ByTopicId>;

/// All facts at one mesh-wide generation. Cheap to share (`Arc<World>`), never changed. The next one shares with it what did
/// not change.
#[derive(Debug)]
pub struct World {
    pub(crate) settings: MeshSettings,
    pub(crate) objects: Objects,
    pub(crate) index: Index,
    pub(crate) routes: Arc<RouteIndex>,
    pub(crate) policies: Arc<PolicyIndex>,
    /// Every namespace that something is in, or was: its names are the mesh's, and stay so when all in it is gone.
    pub(crate) namespaces: Arc<BTreeSet<Arc<str>>>,
    generation: u64,
    errors: Arc<[DocumentError]>,
    /// Objects in force whose document is bad.
    held_over: Arc<BTreeSet<ObjectKey>>,
    /// Objects as an earlier run had them: what a document that is bad at the first load falls back to.
    restored: Objects,
    intake: Intake,
    /// Generation and spec hash of objects that are not in force. An empty hash: removed while we looked on.
    gone: Arc<BTreeMap<String, (u64, String)>>,
    /// Mesh generation of the last change of each topic; of all others: `unchanged_since` or before.
    changed_at: SharedMap<TopicId, u64>,
    unchanged_since: u64,
    /// The last changes, the latest last: which generation they made, and what they touched.
    recent: VecDeque<(u64, Arc<Touched>)>,
    /// Objects that the last change gave another generation, or removed.
    changed: Vec<ObjectKey>,
    /// See [`World::last_good_version`].
    last_good_version: u64,
    /// False for the empty world.
    loaded: bool,
    numbering: Numbering,
}

/// Where generations of objects come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbering {
    /// Counted here, one for each change of a document.
    Counted,
    /// Said by the object, so that all who read it agree.
    Given,
}

impl World {
    /// The world before anything was read.
    pub fn empty(settings: MeshSettings, generations: Generations) -> Self {
        Self {
            settings,
            objects: Objects::default(),
            index: Index::default(),
            routes: Arc::default(),
            policies: Arc::default(),
            namespaces: Arc::new(generations.objects.keys().filter_map(|name| namespace_of(name)).collect()),
            generation: generations.mesh,
            errors: Arc::default(),
            held_over: Arc::default(),
            restored: Objects::default(),
            intake: Intake::default(),
            gone: Arc::new(generations.objects),
            changed_at: SharedMap::default(),
            unchanged_since: generations.mesh,
            recent: VecDeque::new(),
            changed: Vec::new(),
            last_good_version: 0,
            loaded: false,
            numbering: Numbering::Counted,
        }
    }

    /// The world before anything was read, of an API server, which gives objects their generations.
    pub fn of_api_server(settings: MeshSettings) -> Self {
        Self { numbering: Numbering::Given, ..Self::empty(settings, Generations::default()) }
    }

    /// The same after a restart: `last_good` is what an earlier run had in force ([`World::last_good`]). Nothing of it is in
    /// force by that; a document that is bad when it is first read leaves its objects as they were then.
    pub fn restored(settings: MeshSettings, generations: Generations, last_good: Vec<Document>) -> Self {
        let mut world = Self::empty(settings, generations);
        for document in last_good {
            let place = (document.file.clone(), document.index);
            // What this version of the parser no longer takes is as if it had not been kept.
            for item in parse::parse(&document, Keep::Documents) {
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
        let none = |file: &Arc<str>| FileContent::none(Arc::clone(file));
        let mut files: BTreeMap<Arc<str>, FileContent> =
            self.intake.files().map(|file| (Arc::clone(file), none(file))).collect();
        for document in documents {
            files.entry(Arc::clone(&document.file)).or_insert_with_key(none).documents.push(document);
        }
        for error in unreadable {
            files.entry(Arc::clone(&error.file)).or_insert_with_key(none).unreadable.push(error);
        }
        self.change(files.into_values())
    }

    /// The same from what some files hold now, the others being as they were.
    pub fn change(&self, files: impl IntoIterator<Item = FileContent>) -> Self {
        let in_force = if self.loaded { &self.objects } else { &self.restored };
        let mut intake = self.intake.clone();
        let mut concerned = BTreeSet::new();
        let mut errors_moved = false;
        for content in files {
            let file = Arc::clone(&content.file);
            let was_broken = intake.is_broken(&file);
            errors_moved |= intake.take(content, &mut concerned);
            if was_broken || intake.is_broken(&file) {
                let of_file = |key: &&ObjectKey| in_force.get(*key).is_some_and(|stored| stored.place.0 == file);
                concerned.extend(self.held_over.iter().filter(of_file).cloned());
            }
        }
        if !self.loaded {
            concerned.extend(self.restored.keys().cloned());
        }
        let mut next = Self {
            settings: self.settings.clone(),
            objects: self.objects.clone(),
            index: self.index.clone(),
            routes: Arc::clone(&self.routes),
            policies: Arc::clone(&self.policies),
            namespaces: Arc::clone(&self.namespaces),
            generation: self.generation,
            errors: if errors_moved { intake.errors().into() } else { Arc::clone(&self.errors) },
            held_over: Arc::clone(&self.held_over),
            restored: Objects::default(),
            intake,
            gone: Arc::clone(&self.gone),
            changed_at: self.changed_at.clone(),
            unchanged_since: self.unchanged_since,
            recent: self.recent.clone(),
            changed: Vec::new(),
            last_good_version: self.last_good_version,
            loaded: true,
            numbering: self.numbering,
        };
        for key in &concerned {
            next.decide(key, in_force.get(key), self.generation);
        }
        // At the first load what is on record tells whether anything changed while nobody looked.
        let moved = if self.loaded { !next.changed.is_empty() } else { self.differs_from_record(&next.objects) };
        next.generation += u64::from(moved || self.generation == 0);
        if !next.changed.is_empty() {
            next.reindex(self);
        }
        if !self.loaded {
            next.begin();
        }
        next
    }

    /// Gives an object the form that documents say it has. `mesh`: the generation before.
    fn decide(&mut self, key: &ObjectKey, in_force: Option<&Arc<Stored>>, mesh: u64) {
        let before = self.objects.get(key).cloned();
        let (stored, held_over) = match self.intake.verdict(key, in_force) {
            Verdict::Is(claim) => {
                let claim = claim.clone();
                (Some(self.stored(&claim, before.as_ref(), mesh)), false)
            }
            Verdict::Stays => (in_force.cloned(), in_force.is_some()),
            Verdict::IsNot => (None, false),
        };
        if held_over != self.held_over.contains(key) {
            let all = Arc::make_mut(&mut self.held_over);
            if held_over {
                all.insert(key.clone())
            } else {
                all.remove(key)
            };
        }
        // What an API server gives a number may change without it: a mark among the annotations.
        let state = |stored: &Option<Arc<Stored>>| {
            stored.as_ref().map(|stored| (stored.generation, Arc::clone(&stored.hash), Arc::clone(&stored.uid)))
        };
        if state(&before) != state(&stored) {
            self.changed.push(key.clone());
        }
        match (&before, stored) {
            (Some(before), Some(stored)) if Arc::ptr_eq(before, &stored) => return,
            (_, Some(stored)) => {
                if before.is_none() && self.gone.contains_key(&key.to_string()) {
                    Arc::make_mut(&mut self.gone).remove(&key.to_string());
                }
                self.meet(key.own_namespace());
                self.objects.insert(key.clone(), stored);
            }
            (Some(before), None) => {
                self.objects.remove(key);
                remember_removed(&mut self.gone, key, before.generation);
            }
            (None, None) => return,
        }
        self.last_good_version += 1;
    }

    /// From now on the namespace is known.
    fn meet(&mut self, namespace: &Arc<str>) {
        if self.namespaces.contains(namespace) {
            return;
        }
        if self.namespaces.len() >= MAX_NAMESPACES {
            self.namespaces = Arc::new(self.objects.keys().map(|key| Arc::clone(key.own_namespace())).collect());
        }
        Arc::make_mut(&mut self.namespaces).insert(Arc::clone(namespace));
    }

    fn stored(&self, Claim { parsed, place }: &Claim, before: Option<&Arc<Stored>>, mesh: u64) -> Arc<Stored> {
        let given = self.numbering == Numbering::Given;
        // Others' numbers grow with what is not read of them, too. These are what status is about.
        let exact = given && (parsed.key.kind.is_route() || parsed.key.kind.is_policy());
        let generation = match before {
            Some(old) if old.is(parsed, place) && !(exact && old.generation != parsed.number) => {
                return Arc::clone(old);
            }
            Some(old) if given && !exact && old.hash == parsed.hash => old.generation,
            _ if given => parsed.number,
            Some(old) => old.generation + u64::from(old.hash != parsed.hash),
            None => match self.gone.get(&parsed.key.to_string()) {
                Some((generation, hash)) if **hash == *parsed.hash => *generation,
                Some((generation, _)) => generation + 1,
                None => first_generation(parsed.key.kind, mesh),
            },
        };
        store(parsed, place, generation)
    }

    /// The first load is over.
    fn begin(&mut self) {
        self.unchanged_since = self.generation;
        self.changed_at = SharedMap::default();
        self.recent.clear();
        let gone = Arc::make_mut(&mut self.gone);
        gone.retain(|name, _| is_remembered(name));
        // Removed while nobody looked on: from now on that is known.
        gone.values_mut().for_each(|(_, hash)| hash.clear());
    }

    fn differs_from_record(&self, objects: &Objects) -> bool {
        let recorded = |(key, stored): (&ObjectKey, &Arc<Stored>)| {
            self.gone.get(&key.to_string()).is_some_and(|(_, hash)| **hash == *stored.hash)
        };
        let missing = self.gone.iter().filter(|(_, (_, hash))| !hash.is_empty()).count() != objects.len();
        missing || !objects.iter().all(recorded)
    }

    fn reindex(&mut self, before: &Self) {
        for key in &self.changed {
            if let Some(old) = before.objects.get(key) {
                self.index.remove(key, &old.object);
            }
            if let Some(new) = self.objects.get(key) {
                self.index.add(key, &new.object);
            }
        }
        // Routes depend on routes and Services only.
        if self.changed.iter().any(|key| key.kind.is_route() || key.kind == Kind::Service) {
            self.routes = Arc::new(RouteIndex::build(&self.objects));
        }
        // Policies on what they are attached to, too.
        let concerns = |kind: Kind| kind.is_policy() || kind.is_route() || kind == Kind::Service;
        if self.changed.iter().any(|key| concerns(key.kind)) {
            self.policies = Arc::new(PolicyIndex::build(&self.objects));
        }
        if !before.loaded {
            // Who has never looked is told that everything changed.
            return;
        }
        let mut touched = HashSet::new();
        let namespaces_before = Arc::clone(&before.namespaces);
        let before = Side { objects: &before.objects, index: &before.index };
        let after = Side { objects: &self.objects, index: &self.index };
        for key in &self.changed {
            topics::touched(key, &before, &after, &mut touched);
        }
        if !before.index.networks.same_as(&after.index.networks) {
            touched.insert(Topic::Settings);
        }
        if !Arc::ptr_eq(&namespaces_before, &self.namespaces) {
            touched.extend(namespaces_before.symmetric_difference(&self.namespaces).cloned().map(Topic::Known));
        }
        let touched: Touched = touched.iter().map(Topic::id).collect();
        for topic in &touched {
            self.changed_at.insert(*topic, self.generation);
        }
        self.recent.push_back((self.generation, Arc::new(touched)));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        if self.changed_at.len() > MAX_TOPICS {
            let mut times: Vec<u64> = self.changed_at.values().copied().collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let forget = *median;
            let kept = self.changed_at.iter().filter(|(_, at)| **at > forget);
            self.changed_at = kept.map(|(topic, at)| (*topic, *at)).collect();
            self.unchanged_since = forget;
        }
    }

    /// Addresses that proxies ask about. None: all.
    pub fn mesh_networks(&self) -> Vec<IpNet> {
        match self.settings.mesh_networks.as_slice() {
            [] => self.index.networks.asked(),
            said => said.to_vec(),
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

    /// Of the objects that the last change touched, as [`World::generations`] has them. None: it was removed, and is not to be
    /// remembered.
    pub fn changed_generations(&self) -> impl Iterator<Item = (String, Option<(u64, String)>)> {
        self.changed.iter().map(|key| {
            let name = key.to_string();
            let present = self.objects.get(key).map(|stored| (stored.generation, stored.hash.to_string()));
            let record = present.or_else(|| self.gone.get(&name).cloned());
            (name, record)
        })
    }

    /// Every object in force as a document of its own, to be kept in the state folder: see [`World::restored`].
    pub fn last_good(&self) -> impl Iterator<Item = Document> {
        self.objects.values().filter(|stored| !stored.stands_in()).map(|stored| Document {
            file: stored.place.0.clone(),
            index: stored.place.1,
            content: stored.content.clone(),
        })
    }

    /// Another whenever there is something else to keep: another generation, or an object that moved to another place.
    pub fn last_good_version(&self) -> (u64, u64) {
        (self.generation, self.last_good_version)
    }

    /// Whether any of `topics` changed after mesh generation `since`.
    pub fn changed_since(&self, topics: &[TopicId], since: u64) -> bool {
        if since >= self.generation {
            return false;
        }
        match self.recent_changes(since) {
            Some(mut changes) => changes.any(|touched| topics.iter().any(|topic| touched.contains(topic))),
            None => {
                since < self.unchanged_since
                    || topics.iter().any(|topic| self.changed_at.get(topic).is_some_and(|at| *at > since))
            }
        }
    }

    /// What was touched after mesh generation `since`; None: that is too long ago, it may be anything.
    pub fn recent_changes(&self, since: u64) -> Option<impl Iterator<Item = &Touched>> {
        // Each generation is one change. The oldest at hand tells what changed since the one before it.
        let oldest = self.recent.front().map_or(self.generation, |(generation, _)| generation - 1);
        let changes = self.recent.iter().rev().take_while(move |(generation, _)| *generation > since);
        (since >= oldest).then(|| changes.map(|(_, touched)| &**touched))
    }

    /// What is wrong with the documents, in their order.
    pub fn errors(&self) -> &[DocumentError] {
        &self.errors
    }

    /// How many objects in force are of a document that is bad now.
    pub fn held_over(&self) -> usize {
        self.held_over.len()
    }

    /// Documents of kinds that are not read.
    pub fn ignored(&self) -> Vec<String> {
        self.intake.ignored()
    }

    /// How many objects are in force.
    pub fn objects_in_force(&self) -> usize {
        self.objects.len()
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
            uid: Arc::clone(&stored.uid),
            source: source(&stored.place),
            held_over: self.held_over.contains(&stored.key),
            conditions: self.conditions(stored),
        }
    }

    fn conditions(&self, stored: &Stored) -> Vec<Condition> {
        let of_routes = self.routes.conditions.get(&stored.key);
        let mut conditions =
            of_routes.or_else(|| self.policies.conditions.get(&stored.key)).cloned().unwrap_or_default();
        if let (Kind::InboundPolicy, Object::Policy(policy)) = (stored.key.kind, stored.object.as_ref()) {
            // What is told of targets comes first, in their order.
            for (told, target) in conditions.iter_mut().zip(&policy.targets) {
                self.policies.tell_contested((&self.objects, &self.index), &stored.key, target, told);
            }
        }
        let ips = match stored.object.as_ref() {
            Object::Service(service) => service.cluster_ips.as_slice(),
            _ => &[],
        };
        let owned = ips.iter().filter_map(|ip| Some((ip, self.index.service_at(*ip)?)));
        for (ip, owner) in owned.filter(|(_, owner)| **owner != stored.key) {
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
                message: format!(
                    "these fields are not known or not supported, and have no effect: {}",
                    stored.unknown.join(", ")
                ),
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

    /// `metadata.uid` of a Pod. None: there is no such Pod, or its document does not say.
    pub fn pod_uid(&self, namespace: &str, pod: &str) -> Option<Arc<str>> {
        let key = ObjectKey { kind: Kind::Pod, namespace: namespace.into(), name: pod.into() };
        self.objects.get(&key).map(|stored| Arc::clone(&stored.uid)).filter(|uid| !uid.is_empty())
    }

    /// What is known of the proxy of a Pod that has an address (one that has ended has none), and was not to be gone for longer than
    /// `overdue`: of one on a node that is dead the API server says for ever that it is ending. None: there is no such Pod.
    pub fn proxy_of(&self, namespace: &str, pod: &str, overdue: Duration, now: SystemTime) -> Option<ProxyLife> {
        let key = ObjectKey { kind: Kind::Pod, namespace: namespace.into(), name: pod.into() };
        let is_overdue = |ending: SystemTime| now.duration_since(ending).is_ok_and(|since| since >= overdue);
        let pod = index::pod(&self.objects, &key)?;
        (!pod.ips.is_empty() && !pod.life.ending.is_some_and(is_overdue)).then_some(pod.life.proxy)
    }

    /// What a document says, once validated.
    pub fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key).map(|stored| stored.object.as_ref())
    }
}

fn store(parsed: &Parsed, place: &Place, generation: u64) -> Arc<Stored> {
    Arc::new(Stored {
        key: parsed.key.clone(),
        object: parsed.object.clone(),
        generation,
        uid: parsed.uid.clone(),
        hash: parsed.hash.clone(),
        place: place.clone(),
        content: parsed.content.clone(),
        unknown: parsed.unknown.clone(),
    })
}

impl Stored {
    /// Nothing about it is new, be it only a comment.
    fn is(&self, parsed: &Parsed, place: &Place) -> bool {
        self.hash == parsed.hash
            && self.uid == parsed.uid
            && self.place == *place
            && Arc::ptr_eq(&self.content, &parsed.content)
            && self.object.life() == parsed.object.life()
    }
}

fn remember_removed(gone: &mut Arc<BTreeMap<String, (u64, String)>>, key: &ObjectKey, generation: u64) {
    let name = key.to_string();
    if is_remembered(&name) {
        let gone = Arc::make_mut(gone);
        while gone.len() >= MAX_REMOVED && gone.pop_first().is_some() {}
        gone.insert(name, (generation, String::new()));
    }
}

/// Of an object as [`Generations`] name it: "Service shop/cart", "Namespace shop".
fn namespace_of(name: &str) -> Option<Arc<str>> {
    let (_, name) = name.split_once(' ')?;
    Some(name.split_once('/').map_or(name, |(namespace, _)| namespace).into())
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
