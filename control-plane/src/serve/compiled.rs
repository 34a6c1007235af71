//! Compiled resources, shared between the proxies that get the same ones.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use leno_proto::v1::{ObjectGeneration, Resource, ResourceKind, ResourceName};
use parking_lot::Mutex;
use prost::Message as _;

use crate::{
    compile::{Subscriber, compile},
    model::{Topic, TopicId, World},
};

mod endpoints;

/// What a name stood for at some generation. Immutable.
#[derive(Debug)]
pub struct Compiled {
    /// None: it does not exist.
    pub resource: Option<Resource>,
    /// It was made from these, and is current until one of them changes.
    pub topics: Box<[TopicId]>,
    /// The generation it was made at.
    pub generation: u64,
    /// A generation, that one or a later, at which it was found to be current. Shared, so that not each of thousands looks.
    current_at: AtomicU64,
    /// Encoded size in bytes, body and all.
    pub size: usize,
    /// The resource, once somebody is sent it.
    encoded: OnceLock<Bytes>,
    /// By the version of an earlier form of it, the latest last: the difference to that. None: it is no shorter.
    shortened: Mutex<Vec<(String, Option<Bytes>)>>,
}

/// Differences to earlier forms that are kept: all but a few proxies have the last.
const SHORTENED: usize = 4;

impl Compiled {
    /// Measures `resource`.
    pub fn new(resource: Option<Resource>, topics: Vec<Topic>, generation: u64) -> Self {
        let size = resource.as_ref().map_or(0, |r| r.encoded_len());
        let topics = topics.iter().map(Topic::id).collect();
        Self {
            resource,
            topics,
            generation,
            current_at: AtomicU64::new(generation),
            size,
            encoded: OnceLock::new(),
            shortened: Mutex::default(),
        }
    }

    /// None: it does not exist.
    pub fn encoded(&self) -> Option<Bytes> {
        let resource = self.resource.as_ref()?;
        Some(self.encoded.get_or_init(|| resource.encode_to_vec().into()).clone())
    }

    /// The same as a difference to `base`. None: there is none, or it is no shorter.
    pub fn shortened(&self, base: &Self) -> Option<Bytes> {
        let (old, new) = (base.resource.as_ref()?, self.resource.as_ref()?);
        let mut known = self.shortened.lock();
        if let Some((_, shortened)) = known.iter().find(|(version, _)| *version == old.version) {
            return shortened.clone();
        }
        let shortened = endpoints::shorten(old, new).map(|delta| Bytes::from(delta.encode_to_vec()));
        if known.len() == SHORTENED {
            known.remove(0);
        }
        known.push((old.version.clone(), shortened.clone()));
        shortened
    }

    /// What it was made from.
    pub fn origins(&self) -> &[ObjectGeneration] {
        self.resource.as_ref().map(|r| r.origins.as_slice()).unwrap_or_default()
    }

    /// None: it does not exist.
    pub fn version(&self) -> Option<&str> {
        self.resource.as_ref().map(|r| r.version.as_str())
    }
}

/// What a session sees of the world: a generation, and what each name stands for in it.
pub trait View {
    fn generation(&self) -> u64;

    /// What `name` stands for; `have` itself if that is still current.
    fn current(&self, name: &ResourceName, have: Option<&Arc<Compiled>>) -> Arc<Compiled>;
}

/// Compiles, and remembers what others got for as long as somebody holds it.
#[derive(Default)]
pub struct Compiler {
    shared: Mutex<Shared>,
}

/// A destination depends on the client's namespace; what is the same for all has none.
type Key = (Option<Arc<str>>, ResourceName);

#[derive(Default)]
struct Shared {
    compiled: HashMap<Key, Weak<Compiled>>,
    /// The forms of each destination: mostly one, whatever the namespace.
    forms: HashMap<ResourceName, Vec<Weak<Compiled>>>,
    /// Dead entries are swept when the map reaches this size.
    sweep_at: usize,
}

impl Shared {
    /// The same, made for another namespace; else `compiled`, for others to come.
    fn intern(&mut self, name: &ResourceName, compiled: Arc<Compiled>) -> Arc<Compiled> {
        if name.kind() != ResourceKind::Destination {
            return compiled;
        }
        let forms = self.forms.entry(name.clone()).or_default();
        let same = |known: &Arc<Compiled>| {
            known.generation <= compiled.generation
                && (&known.topics, &known.resource) == (&compiled.topics, &compiled.resource)
        };
        if let Some(known) = forms.iter().filter_map(Weak::upgrade).find(same) {
            known.current_at.fetch_max(compiled.generation, Ordering::Relaxed);
            return known;
        }
        forms.retain(|known| known.strong_count() > 0);
        forms.push(Arc::downgrade(&compiled));
        compiled
    }

    fn keep(&mut self, key: Key, compiled: &Arc<Compiled>) {
        self.compiled.insert(key, Arc::downgrade(compiled));
        if self.compiled.len() >= self.sweep_at.max(LEAST_SWEEP) {
            self.compiled.retain(|_, compiled| compiled.strong_count() > 0);
            self.forms.retain(|_, forms| forms.iter().any(|known| known.strong_count() > 0));
            self.sweep_at = self.compiled.len() * 2;
        }
    }
}

const LEAST_SWEEP: usize = 1024;

impl Compiler {
    /// What `subscriber` sees of `world`.
    pub fn view<'a>(
        &'a self,
        world: &'a World,
        bundle: &'a Arc<Compiled>,
        subscriber: &'a Subscriber,
        namespace: &'a Arc<str>,
    ) -> WorldView<'a> {
        WorldView { compiler: self, world, bundle, subscriber, namespace }
    }
}

/// See [`Compiler::view`].
pub struct WorldView<'a> {
    compiler: &'a Compiler,
    world: &'a World,
    bundle: &'a Arc<Compiled>,
    subscriber: &'a Subscriber,
    namespace: &'a Arc<str>,
}

impl WorldView<'_> {
    fn is_current(&self, compiled: &Compiled) -> bool {
        let (now, known) = (self.world.generation(), compiled.current_at.load(Ordering::Relaxed));
        if known >= now {
            return true;
        }
        let current = !self.world.changed_since(&compiled.topics, known);
        if current {
            compiled.current_at.fetch_max(now, Ordering::Relaxed);
        }
        current
    }

    fn compile(&self, name: &ResourceName) -> Arc<Compiled> {
        let (resource, topics) = compile(self.world, self.subscriber, name);
        Arc::new(Compiled::new(resource, topics, self.world.generation()))
    }
}

impl View for WorldView<'_> {
    fn generation(&self) -> u64 {
        self.world.generation()
    }

    fn current(&self, name: &ResourceName, have: Option<&Arc<Compiled>>) -> Arc<Compiled> {
        match name.kind() {
            ResourceKind::TrustBundle => return Arc::clone(self.bundle),
            // A kind of a later version.
            ResourceKind::Unspecified => return Arc::new(Compiled::new(None, Vec::new(), 0)),
            ResourceKind::Settings | ResourceKind::Inbound | ResourceKind::Destination | ResourceKind::Endpoints => {}
        }
        if let Some(have) = have
            && self.is_current(have)
        {
            return Arc::clone(have);
        }
        if name.kind() == ResourceKind::Inbound {
            return self.compile(name);
        }
        let namespace = (name.kind() == ResourceKind::Destination).then(|| Arc::clone(self.namespace));
        let key = (namespace, name.clone());
        let known = self.compiler.shared.lock().compiled.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known
            // Another stream may be ahead of this one: then both are right, each for its own generation.
            && known.generation <= self.world.generation()
            && self.is_current(&known)
        {
            return known;
        }
        let compiled = self.compile(name);
        let mut shared = self.compiler.shared.lock();
        let compiled = shared.intern(name, compiled);
        shared.keep(key, &compiled);
        compiled
    }
}
