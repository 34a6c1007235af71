//! What one proxy holds, and what it must be sent next. Pure: no socket, no clock.
//!
//! The proxy answers each delta before the next is sent, so at most one is outstanding; what changes meanwhile is
//! compiled and kept, latest wins, and goes with the next. A resource that the proxy refused is not sent again until it
//! changes; its last good version stays in force there.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Deref,
    sync::Arc,
};

use leno_proto::{
    capability,
    v1::{InboundPolicy, Interest, ObjectGeneration, Open, ResourceKind, ResourceName, Verdict, resource::Body},
};

use super::{
    compiled::{Compiled, View},
    limits,
    wire::Update,
};

/// A proxy broke the protocol, or a limit: its stream is ended with this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("more than {} subscriptions", limits::SUBSCRIPTIONS)]
    TooManySubscriptions,
    #[error("more than {} capabilities", limits::CAPABILITIES)]
    TooManyCapabilities,
    #[error("the key of a resource is longer than {} bytes", limits::KEY_BYTES)]
    KeyTooLong,
    #[error("a resource without a name")]
    NoName,
    #[error("a verdict on delta {0}, which is not the outstanding one")]
    StrayVerdict(u64),
}

/// Where the proxy stands with one resource.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What it should have.
    pub wanted: Arc<Compiled>,
    /// What it was compiled from, of the version that is in force at the proxy. None: no version is.
    pub in_force: Option<Origins>,
    pub lag: Option<Lag>,
}

/// What something was compiled from.
#[derive(Debug, Clone)]
pub enum Origins {
    Of(Arc<Compiled>),
    Known(Vec<ObjectGeneration>),
}

impl Deref for Origins {
    type Target = [ObjectGeneration];

    fn deref(&self) -> &[ObjectGeneration] {
        match self {
            Self::Of(compiled) => compiled.origins(),
            Self::Known(origins) => origins,
        }
    }
}

/// Why the wanted version is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lag {
    /// Not sent, or not answered, yet.
    Pending,
    Rejected {
        version: String,
        field: String,
        reason: String,
    },
    /// The proxy cannot do what the resource needs: the reason.
    Unsupported(String),
}

/// What a subscription was made from, and what it is made from now.
pub type Remade = (Option<Arc<Compiled>>, Option<Arc<Compiled>>);

/// One proxy's stream.
#[derive(Debug)]
pub struct Session {
    capabilities: HashSet<String>,
    entries: HashMap<ResourceName, Entry>,
    next_entry: u64,
    /// Names (kind, key) that may have something to send, in the order of sending.
    due: BTreeSet<(i32, String)>,
    /// Names whose standing changed since it was last asked for.
    touched: HashSet<ResourceName>,
    /// Forms, before and after, that were not made from the same, since that was last asked for.
    remade: Vec<Remade>,
    outstanding: Option<Outstanding>,
    next_nonce: u64,
    /// The generation that every entry was compiled against.
    seen: u64,
    /// The generation that the proxy has answered for entirely.
    answered: u64,
}

#[derive(Debug)]
struct Entry {
    /// Tells a subscription from a later one of the same name.
    id: u64,
    /// None until first compiled.
    wanted: Option<Arc<Compiled>>,
    in_force: InForce,
    refused: Option<Refused>,
    /// The last version sent was refused: the next is sent whole.
    send_whole: bool,
    /// It was said, of the wanted absence, that there is no such thing.
    told_absent: bool,
    /// Was sent, and the stream ended before an answer came: may be in force.
    in_doubt: Option<Arc<Compiled>>,
}

#[derive(Debug)]
enum InForce {
    Nothing,
    /// From an earlier stream: only its version is known.
    Held(String),
    Sent(Arc<Compiled>),
}

#[derive(Debug, Clone)]
struct Refused {
    version: String,
    field: String,
    reason: String,
}

#[derive(Debug)]
struct Outstanding {
    nonce: u64,
    sent: Vec<(ResourceName, u64, Arc<Compiled>)>,
}

impl Session {
    /// A session that goes on where an earlier one ended.
    ///
    /// # Errors
    /// If `open` breaks a limit.
    pub fn open(open: Open) -> Result<Self, Violation> {
        if open.capabilities.len() > limits::CAPABILITIES {
            return Err(Violation::TooManyCapabilities);
        }
        let mut session = Self {
            capabilities: open.capabilities.into_iter().collect(),
            entries: HashMap::new(),
            next_entry: 0,
            due: BTreeSet::new(),
            touched: HashSet::new(),
            remade: Vec::new(),
            outstanding: None,
            next_nonce: 1,
            seen: 0,
            answered: 0,
        };
        for held in open.held {
            let name = held.name.ok_or(Violation::NoName)?;
            let in_force = if held.version.is_empty() { InForce::Nothing } else { InForce::Held(held.version) };
            session.subscribe(name, in_force)?;
        }
        Ok(session)
    }

    /// Subscribes and unsubscribes. A name in both lists starts over.
    ///
    /// # Errors
    /// If that breaks a limit.
    pub fn interest(&mut self, interest: Interest) -> Result<(), Violation> {
        for name in interest.unsubscribe {
            if let Some(wanted) = self.entries.remove(&name).and_then(|entry| entry.wanted) {
                self.remade.push((Some(wanted), None));
            }
            self.due.remove(&(name.kind, name.key.clone()));
            self.touched.insert(name);
        }
        for name in interest.subscribe {
            match self.entries.get_mut(&name) {
                None => self.subscribe(name, InForce::Nothing)?,
                // Asked again for what does not exist: say so again.
                Some(entry) if entry.told_absent => {
                    entry.told_absent = false;
                    self.due.insert((name.kind, name.key));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn subscribe(&mut self, name: ResourceName, in_force: InForce) -> Result<(), Violation> {
        if name.key.len() > limits::KEY_BYTES {
            return Err(Violation::KeyTooLong);
        }
        if self.entries.len() >= limits::SUBSCRIPTIONS && !self.entries.contains_key(&name) {
            return Err(Violation::TooManySubscriptions);
        }
        self.next_entry += 1;
        let entry = Entry {
            id: self.next_entry,
            wanted: None,
            in_force,
            refused: None,
            send_whole: false,
            told_absent: false,
            in_doubt: None,
        };
        self.due.insert((name.kind, name.key.clone()));
        self.touched.insert(name.clone());
        self.entries.insert(name, entry);
        Ok(())
    }

    /// Takes the proxy's answer to the outstanding delta.
    ///
    /// # Errors
    /// If it answers another.
    pub fn verdict(&mut self, verdict: Verdict) -> Result<(), Violation> {
        let Some(outstanding) = self.outstanding.take_if(|o| o.nonce == verdict.nonce) else {
            return Err(Violation::StrayVerdict(verdict.nonce));
        };
        let mut rejected: HashMap<ResourceName, (String, String)> = HashMap::new();
        for rejection in verdict.rejected {
            if let Some(name) = rejection.name {
                rejected.insert(name, (cut(rejection.field), cut(rejection.reason)));
            }
        }
        for (name, id, sent) in outstanding.sent {
            let Some(entry) = self.entries.get_mut(&name).filter(|entry| entry.id == id) else {
                continue;
            };
            match (rejected.remove(&name), sent.version()) {
                (Some((field, reason)), Some(version)) => {
                    entry.refused = Some(Refused { version: version.to_owned(), field, reason });
                    entry.send_whole = true;
                }
                // What is gone cannot be refused.
                (_, None) => {
                    entry.in_force = InForce::Nothing;
                    entry.refused = None;
                    entry.told_absent = true;
                }
                (None, Some(_)) => {
                    entry.in_force = InForce::Sent(sent);
                    entry.refused = None;
                    entry.send_whole = false;
                    entry.told_absent = false;
                }
            }
            entry.adopt();
            if entry.is_due(&self.capabilities) {
                self.due.insert((name.kind, name.key.clone()));
            }
            self.touched.insert(name);
        }
        Ok(())
    }

    /// Compiles what changed, and what is new. Cheap if nothing is.
    pub fn refresh(&mut self, view: &impl View) {
        self.seen = view.generation();
        for (name, entry) in &mut self.entries {
            let current = view.current(name, entry.wanted.as_ref());
            if entry.wanted.as_ref().is_some_and(|wanted| Arc::ptr_eq(wanted, &current)) {
                continue;
            }
            if current.resource.is_some() {
                entry.told_absent = false;
            }
            let before = entry.wanted.replace(Arc::clone(&current));
            if before.as_ref().is_none_or(|before| before.topics != current.topics) {
                self.remade.push((before, Some(current)));
            }
            entry.adopt();
            if entry.is_due(&self.capabilities) {
                self.due.insert((name.kind, name.key.clone()));
            }
            self.touched.insert(name.clone());
        }
    }

    /// The next delta, if one may be sent and there is something to say. Call [`Self::refresh`] first.
    pub fn poll(&mut self) -> Option<Update> {
        if self.outstanding.is_some() {
            return None;
        }
        let mut delta = Update { nonce: self.next_nonce, generation: self.seen, ..Update::default() };
        let mut sent = Vec::new();
        let mut bytes = 0;
        while bytes < limits::DELTA_BYTES
            && let Some((kind, key)) = self.due.pop_first()
        {
            let name = ResourceName { kind, key };
            let Some(entry) = self.entries.get(&name) else { continue };
            let Some(wanted) = entry.wanted.as_ref().filter(|_| entry.is_due(&self.capabilities)) else { continue };
            match wanted.encoded() {
                Some(whole) => {
                    let shorter = entry.base(&name).and_then(|base| wanted.shortened(base));
                    let resource = shorter.unwrap_or(whole);
                    bytes += resource.len();
                    delta.changed.push(resource);
                }
                None => {
                    bytes += name.key.len();
                    delta.removed.push(name.clone());
                }
            }
            sent.push((name, entry.id, Arc::clone(wanted)));
        }
        if sent.is_empty() {
            self.answered = self.seen;
            return None;
        }
        self.outstanding = Some(Outstanding { nonce: self.next_nonce, sent });
        self.next_nonce += 1;
        Some(delta)
    }

    /// A delta without content, to be answered like any other: whether the proxy is there. None: an answer is due anyhow.
    pub fn probe(&mut self) -> Option<Update> {
        if self.outstanding.is_some() {
            return None;
        }
        let delta = Update { nonce: self.next_nonce, generation: self.answered, ..Update::default() };
        self.outstanding = Some(Outstanding { nonce: self.next_nonce, sent: Vec::new() });
        self.next_nonce += 1;
        Some(delta)
    }

    /// The stream is gone, and the proxy perhaps not: from now on this is what it may be serving. [`Self::refresh`] it with
    /// each change, to know what concerns it; nothing more is sent.
    pub fn lost(&mut self) {
        for (name, id, sent) in self.outstanding.take().into_iter().flat_map(|outstanding| outstanding.sent) {
            if let Some(entry) = self.entries.get_mut(&name).filter(|entry| entry.id == id) {
                entry.in_doubt = Some(sent);
                self.touched.insert(name);
            }
        }
    }

    /// The names whose standing changed since this was last called; None: unsubscribed.
    pub fn take_changes(&mut self) -> Vec<(ResourceName, Option<Standing>)> {
        let touched = std::mem::take(&mut self.touched);
        let standing = |name: ResourceName| {
            let standing = self.entries.get(&name).and_then(|entry| entry.standing(&self.capabilities));
            (name, standing)
        };
        touched.into_iter().map(standing).collect()
    }

    /// What was made from something else since this was last called.
    pub fn take_remade(&mut self) -> Vec<Remade> {
        std::mem::take(&mut self.remade)
    }

    /// Everything that is subscribed to, as far as it was compiled.
    pub fn wanted(&self) -> impl Iterator<Item = &Arc<Compiled>> {
        self.entries.values().filter_map(|entry| entry.wanted.as_ref())
    }

    /// The generation that the proxy has answered for entirely.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// The generation that everything subscribed was compiled against.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    pub fn subscriptions(&self) -> usize {
        self.entries.len()
    }

    pub fn has_outstanding(&self) -> bool {
        self.outstanding.is_some()
    }
}

impl Entry {
    fn version_in_force(&self) -> Option<&str> {
        match &self.in_force {
            InForce::Nothing => None,
            InForce::Held(version) => Some(version),
            InForce::Sent(compiled) => compiled.version(),
        }
    }

    /// The same version compiled from newer generations is as good as sent.
    fn adopt(&mut self) {
        let Some(wanted) = self.wanted.as_ref().filter(|_| self.in_doubt.is_none()) else { return };
        if let Some(version) = wanted.version() {
            if self.version_in_force() == Some(version) {
                self.in_force = InForce::Sent(Arc::clone(wanted));
                self.refused = None;
            } else if self.refused.as_ref().is_some_and(|refused| refused.version != version) {
                self.refused = None;
            }
        } else {
            self.refused = None;
        }
    }

    fn is_due(&self, capabilities: &HashSet<String>) -> bool {
        match self.wanted.as_ref().map(|wanted| (wanted, wanted.version())) {
            None => false,
            Some((_, None)) => match self.in_force {
                InForce::Nothing => !self.told_absent,
                InForce::Held(_) | InForce::Sent(_) => true,
            },
            Some((wanted, version @ Some(_))) => {
                self.version_in_force() != version
                    && self.refused.is_none()
                    && unsupported(wanted, capabilities).is_none()
            }
        }
    }

    /// What the proxy surely holds, whole.
    fn base(&self, name: &ResourceName) -> Option<&Compiled> {
        match &self.in_force {
            InForce::Sent(compiled) if name.kind() == ResourceKind::Endpoints && !self.send_whole => Some(compiled),
            _ => None,
        }
    }

    fn standing(&self, capabilities: &HashSet<String>) -> Option<Standing> {
        let wanted = self.wanted.as_ref()?;
        let mut in_force = match &self.in_force {
            InForce::Nothing => None,
            InForce::Held(_) => Some(Origins::Known(Vec::new())),
            InForce::Sent(compiled) => compiled.resource.is_some().then(|| Origins::Of(Arc::clone(compiled))),
        };
        if let Some(sent) = &self.in_doubt {
            // Whatever it was made from may be in force, and in no generation that can be counted on.
            let mut known = in_force.as_deref().unwrap_or_default().to_vec();
            for origin in sent.resource.iter().flat_map(|r| &r.origins) {
                if !known.iter().any(|o| o.object == origin.object) {
                    known.push(ObjectGeneration { object: origin.object.clone(), ..ObjectGeneration::default() });
                }
            }
            in_force = Some(Origins::Known(known));
        }
        let lag = if self.in_doubt.is_some() {
            Some(Lag::Pending)
        } else if self.version_in_force() == wanted.version() {
            None
        } else if let Some(refused) = &self.refused {
            let Refused { version, field, reason } = refused.clone();
            Some(Lag::Rejected { version, field, reason })
        } else if let Some(reason) = unsupported(wanted, capabilities) {
            Some(Lag::Unsupported(reason))
        } else {
            Some(Lag::Pending)
        };
        Some(Standing { wanted: Arc::clone(wanted), in_force, lag })
    }
}

/// Why this proxy cannot be sent the resource, if so.
fn unsupported(compiled: &Compiled, capabilities: &HashSet<String>) -> Option<String> {
    if compiled.size > limits::RESOURCE_BYTES {
        return Some(format!("{} bytes, more than the {} a proxy can receive", compiled.size, limits::RESOURCE_BYTES));
    }
    let needed = compiled.resource.as_ref().and_then(|r| r.body.as_ref()).and_then(needed_capability)?;
    (!capabilities.contains(needed)).then(|| format!("the proxy lacks the capability {needed:?}: upgrade it"))
}

/// The capability that a proxy must have named to be sent such a resource. What version 1 knows needs none.
fn needed_capability(body: &Body) -> Option<&'static str> {
    match body {
        Body::Inbound(inbound) => {
            let limits_size = |policy: &InboundPolicy| policy.max_head_bytes != 0 || policy.max_body_bytes != 0;
            let limits_size = inbound.ports.iter().filter_map(|port| port.policy.as_ref()).any(limits_size);
            limits_size.then_some(capability::REQUEST_SIZE)
        }
        Body::Settings(_)
        | Body::TrustBundle(_)
        | Body::Destination(_)
        | Body::Endpoints(_)
        | Body::EndpointsDelta(_) => None,
    }
}

/// Text from a peer, bounded.
fn cut(text: String) -> String {
    match text.char_indices().nth(limits::REASON_CHARS) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
