//! Who serves what: per proxy, the resources it has and what they were compiled from; per object, the proxies that
//! subscribed to something made from it, and those that lag. Who is gone without a farewell may be serving still, and counts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use leno_proto::{
    spiffe::SpiffeId,
    v1::{Laggard, ObjectGeneration, ObjectRef, ProxyStatus, Rejection, ResourceKind, ResourceName},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    limits,
    questions::Questions,
    session::{Lag, Standing},
};
use crate::authority::issue;

mod names;

/// One stream. A proxy that reconnects has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

#[cfg(test)]
impl StreamId {
    pub(super) fn of(number: u64) -> Self {
        Self(number)
    }
}

/// Who opened a stream.
#[derive(Debug, Clone)]
pub struct Opened {
    pub identity: SpiffeId,
    /// Pod name, within the identity's namespace.
    pub workload: String,
    /// Differs between processes. 0: not said.
    pub instance: u64,
    pub address: SocketAddr,
    pub version: String,
    /// The configuration had its Pod when it connected: once that is gone, so is the proxy.
    pub has_pod: bool,
    pub certificate_not_after: SystemTime,
}

impl Opened {
    fn name(&self) -> String {
        format!("{}/{}", self.identity.namespace(), self.workload)
    }

    /// As far as can be told.
    fn is_same_process(&self, other: &Self) -> bool {
        let instances = (self.instance, other.instance);
        self.identity == other.identity && (instances.0 == instances.1 || instances.0 == 0 || instances.1 == 0)
    }
}

/// What a stream is told to do. Closed: its name went to another, or is forgotten.
pub type Orders = watch::Receiver<Order>;

/// See [`Orders`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order {
    /// How often it was asked to show that its proxy is there.
    pub prove: u64,
    /// How often there was an operator's question for its proxy.
    pub ask: u64,
    /// Compare what is subscribed with this generation, or a later one.
    pub compare: u64,
}

/// What comes of the wish to open a stream.
pub enum Claim {
    Granted(StreamId, Orders),
    /// Another process has a stream under this name, and was asked whether it is still there.
    Contested(Holder),
}

/// Who has the name that another wants.
#[derive(Debug, Clone)]
pub struct Holder {
    pub stream: StreamId,
    pub identity: SpiffeId,
    pub address: SocketAddr,
    /// What it had said before it was asked.
    heard: u64,
}

/// A proxy's name, as it is remembered over a restart of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    pub namespace: String,
    pub workload: String,
    /// See [`Opened::has_pod`].
    pub has_pod: bool,
}

/// What a stream reports after each step.
#[derive(Debug, Default)]
pub struct Report {
    /// How many requests came from the proxy.
    pub heard: u64,
    /// The generation that the proxy answered for.
    pub answered: u64,
    /// The generation that its subscriptions were compiled against.
    pub seen: u64,
    pub subscriptions: usize,
    pub changes: Vec<(ResourceName, Option<Standing>)>,
    /// Since the last report.
    pub resources_sent: u64,
    pub bytes_sent: u64,
}

/// See [`Tracker::look`].
const LOOKS: usize = 4;

/// How far one object has come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    pub subscribed: u32,
    pub programmed: u32,
    pub laggards: Vec<Laggard>,
    /// Of the laggards, those that have not come yet since the control plane started: they may run it.
    pub awaited: u32,
}

/// That every proxy had been compared with a generation, or that it was waited for in vain. See [`Tracker::is_still`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Settled {
    /// The newest stream then; None: in vain.
    newest: Option<u64>,
}

impl Settled {
    /// Not in vain.
    pub fn is_so(self) -> bool {
        self.newest.is_some()
    }
}

/// Shared by all streams; each step of a stream takes its lock once, briefly.
#[derive(Default)]
pub struct Tracker {
    state: Mutex<State>,
    /// Counts changes, for those who wait.
    revision: watch::Sender<u64>,
    /// Counts changes of [`Self::names`].
    roster: watch::Sender<u64>,
    /// For proxies that are connected.
    pub questions: Questions,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Whoever this generation, or an earlier one, touches was told to compare.
    told: u64,
    streams: HashMap<StreamId, Record>,
    /// "namespace/workload" → its newest stream.
    by_name: HashMap<String, StreamId>,
    /// Name and instance of those who were refused because of another of the same name.
    duplicates: HashMap<(String, u64), StreamId>,
    /// Connected to an earlier control plane on this state folder, and not back yet, since that time.
    missing: BTreeMap<String, (Name, Instant)>,
    /// Object → streams that have, or should have, something made from it, and how many such things.
    by_object: HashMap<ObjectRef, HashMap<StreamId, u32>>,
}

struct Record {
    name: String,
    opened: Opened,
    /// Set when it vanished without a word.
    vanished: Option<Instant>,
    /// Another of the same name is served instead.
    duplicate: bool,
    /// See [`Orders`].
    orders: watch::Sender<Order>,
    heard: u64,
    answered: u64,
    seen: u64,
    subscriptions: usize,
    standings: HashMap<ResourceName, Standing>,
    resources_sent: u64,
    bytes_sent: u64,
}

impl Tracker {
    /// What a stream did. Ignored if it was superseded.
    pub fn report(&self, id: StreamId, report: Report) {
        let mut state = self.state.lock();
        let State { streams, by_object, .. } = &mut *state;
        let Some(record) = streams.get_mut(&id) else { return };
        let moved = record.answered != report.answered
            || record.heard != report.heard
            || record.seen != report.seen
            || record.subscriptions != report.subscriptions
            || !report.changes.is_empty();
        record.heard = report.heard;
        record.answered = report.answered;
        record.seen = report.seen;
        record.subscriptions = report.subscriptions;
        record.resources_sent += report.resources_sent;
        record.bytes_sent += report.bytes_sent;
        for (name, standing) in report.changes {
            match (standing, record.standings.get_mut(&name)) {
                // The usual change: another generation, of the same objects.
                (Some(after), Some(before)) if before.has_same_objects(&after) => *before = after,
                (Some(after), before) => {
                    count(by_object, id, &after);
                    match before {
                        Some(before) => discount(by_object, id, &std::mem::replace(before, after)),
                        None => drop(record.standings.insert(name, after)),
                    }
                }
                (None, _) => {
                    if let Some(before) = record.standings.remove(&name) {
                        discount(by_object, id, &before);
                    }
                }
            }
        }
        drop(state);
        if moved {
            self.bump();
        }
    }

    /// The configuration is at `generation`; `touched` are the streams that it may be news for. None: all.
    pub fn tell(&self, touched: Option<&HashSet<StreamId>>, generation: u64) {
        let mut state = self.state.lock();
        state.told = generation;
        let tell = |record: &mut Record| record.orders.send_modify(|order| order.compare = generation);
        match touched {
            None => state.streams.values_mut().for_each(tell),
            Some(touched) => touched.iter().for_each(|id| {
                state.streams.get_mut(id).into_iter().for_each(tell);
            }),
        }
        drop(state);
        self.bump();
    }

    /// Has a proxy ("namespace/workload") take its questions. False: it is not connected.
    pub fn tell_of_questions(&self, proxy: &str) -> bool {
        let state = self.state.lock();
        let serving = |record: &&Record| record.name == proxy && record.vanished.is_none() && !record.duplicate;
        let mut found = false;
        for record in state.streams.values().filter(serving) {
            record.orders.send_modify(|order| order.ask += 1);
            found = true;
        }
        found
    }

    /// The stream ended: with a word (the proxy exits and is forgotten), or without (it may be serving still).
    pub fn closed(&self, id: StreamId, farewell: bool, now: Instant) {
        let mut state = self.state.lock();
        if farewell {
            state.forget(id);
            self.roster.send_modify(|n| *n += 1);
        } else if let Some(record) = state.streams.get_mut(&id) {
            record.vanished = Some(now);
            state.bound_vanished();
        }
        drop(state);
        self.bump();
    }

    /// Forgets those that vanished, and are not kept any more. `kept`: how long those of a Pod (namespace, name) are; zero: the Pod is
    /// gone, and they with it. Without a Pod it is [`limits::DISCONNECTED_KEPT`], and so at most for those that were refused their name.
    /// Who is only expected counts as long: a proxy that is cut off serves what it had, whichever control plane it had it from.
    pub fn forget_vanished(&self, now: Instant, kept: impl Fn(&str, &str) -> Duration) {
        let usual = limits::DISCONNECTED_KEPT;
        // One that came without a Pod may have got one since.
        let kept = |namespace: &str, workload: &str, had_pod: bool| {
            let kept = kept(namespace, workload);
            if had_pod { kept } else { kept.max(usual) }
        };
        let is_gone = |record: &Record| {
            let Opened { identity, workload, has_pod, .. } = &record.opened;
            let kept = kept(identity.namespace(), workload, *has_pod);
            let kept = if record.duplicate { kept.min(usual) } else { kept };
            record.vanished.is_some_and(|at| now.saturating_duration_since(at) >= kept)
        };
        let mut state = self.state.lock();
        let old: Vec<StreamId> =
            state.streams.iter().filter(|(_, record)| is_gone(record)).map(|(id, _)| *id).collect();
        for id in &old {
            if let Some(record) = state.streams.get(id).filter(|record| !record.opened.has_pod && !record.duplicate) {
                warn_of_forgetting(&record.name);
            }
            state.forget(*id);
        }
        let missing = state.missing.len();
        state.missing.retain(|full, (name, since)| {
            let stays = now.saturating_duration_since(*since) < kept(&name.namespace, &name.workload, name.has_pod);
            if !stays && !name.has_pod {
                warn_of_forgetting(full);
            }
            stays
        });
        let forgot = !old.is_empty() || state.missing.len() != missing;
        drop(state);
        if forgot {
            self.roster.send_modify(|n| *n += 1);
            self.bump();
        }
    }

    /// How far `object` at `generation` has come; None: it was removed, and whoever still has it lags. `uid`: whose generation it is,
    /// since one that is deleted and made again begins anew; empty: of whichever there is.
    pub fn progress(&self, object: &ObjectRef, generation: Option<u64>, uid: &str) -> Progress {
        let state = self.state.lock();
        let mut progress = Progress::default();
        let concerned = state.by_object.get(object).into_iter().flat_map(HashMap::keys);
        let concerned: Box<dyn Iterator<Item = &Record>> = match generation {
            Some(_) => Box::new(concerned.filter_map(|id| state.streams.get(id))),
            // What is held from an earlier stream may be made from it.
            None => Box::new(state.streams.values()),
        };
        for record in concerned {
            match record.judge(object, generation, uid) {
                Judgement::Unconcerned => {}
                Judgement::Programmed => {
                    progress.subscribed += 1;
                    progress.programmed += 1;
                }
                Judgement::Lagging(laggard) => {
                    progress.subscribed += 1;
                    progress.laggards.push(laggard);
                }
            }
        }
        for (name, _) in state.missing.iter().filter(|(_, (known, _))| names::could_have(known, object)) {
            progress.subscribed += 1;
            progress.awaited += 1;
            progress.laggards.push(names::missing(name));
        }
        progress.laggards.sort_by(|a, b| (&a.proxy, &a.reason).cmp(&(&b.proxy, &b.reason)));
        progress
    }

    /// Whether every proxy's subscriptions, of those that vanished too, have been compiled against `generation` or a later
    /// one: only then is it known who subscribes to what is new in it.
    pub fn settled(&self, generation: u64) -> Settled {
        let state = self.state.lock();
        let settled = state.told >= generation
            && state.streams.values().all(|record| record.seen >= record.ordered().min(generation));
        Settled { newest: settled.then_some(state.next) }
    }

    /// Whether no stream has begun since: what [`Self::progress`] said meanwhile is of proxies that had all been compared.
    pub fn is_still(&self, settled: Settled) -> bool {
        settled.newest == Some(self.state.lock().next)
    }

    /// What `look` finds with [`Self::progress`] once all has settled at `generation`; it is told whether that is so of everything it
    /// finds. It looks again if streams begin meanwhile, a few times; `most`: how long to wait.
    pub async fn look<F: Future>(&self, generation: u64, most: Duration, mut look: impl FnMut(bool) -> F) -> F::Output {
        let end = Instant::now() + most;
        for _ in 0..LOOKS {
            let settled = self.settles(generation, end.saturating_duration_since(Instant::now())).await;
            if !settled.is_so() {
                break;
            }
            let seen = look(true).await;
            if self.is_still(settled) {
                return seen;
            }
        }
        look(false).await
    }

    /// Waits for that, no longer than `most`.
    pub async fn settles(&self, generation: u64, most: Duration) -> Settled {
        let mut revision = self.revision();
        let settles = async {
            loop {
                revision.mark_unchanged();
                let settled = self.settled(generation);
                if settled.is_so() || revision.changed().await.is_err() {
                    return settled;
                }
            }
        };
        tokio::time::timeout(most, settles).await.unwrap_or_default()
    }

    /// Changes whenever [`Self::progress`] or [`Self::proxies`] may.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Every proxy that is, or lately was, connected, by name.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        let state = self.state.lock();
        let mut proxies: Vec<_> = state.streams.values().map(|record| record.status(state.told)).collect();
        let missing = |name: &String| ProxyStatus { name: name.clone(), ..ProxyStatus::default() };
        proxies.extend(state.missing.keys().map(missing));
        proxies.sort_by(|a, b| (&a.name, b.connected).cmp(&(&b.name, a.connected)));
        proxies
    }

    /// How many proxies are connected.
    pub fn connected(&self) -> usize {
        self.state.lock().streams.values().filter(|r| r.vanished.is_none()).count()
    }

    fn bump(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }
}

impl State {
    fn forget(&mut self, id: StreamId) {
        let Some(record) = self.remove(id) else { return };
        if self.by_name.get(&record.name) == Some(&id) {
            self.by_name.remove(&record.name);
        }
        let duplicate = (record.name, record.opened.instance);
        if self.duplicates.get(&duplicate) == Some(&id) {
            self.duplicates.remove(&duplicate);
        }
    }

    fn remove(&mut self, id: StreamId) -> Option<Record> {
        let record = self.streams.remove(&id)?;
        for standing in record.standings.values() {
            discount(&mut self.by_object, id, standing);
        }
        Some(record)
    }

    /// The oldest go first.
    fn bound_vanished(&mut self) {
        let mut vanished: Vec<(Instant, StreamId)> =
            self.streams.iter().filter_map(|(id, r)| r.vanished.map(|at| (at, *id))).collect();
        if vanished.len() <= limits::DISCONNECTED {
            return;
        }
        vanished.sort_unstable();
        for (_, id) in vanished.iter().take(vanished.len() - limits::DISCONNECTED) {
            self.forget(*id);
        }
    }
}

enum Judgement {
    Unconcerned,
    Programmed,
    Lagging(Laggard),
}

impl Record {
    /// Whether everything here that is, or should be, made from `object` is made from `generation` or a later one.
    fn judge(&self, object: &ObjectRef, generation: Option<u64>, uid: &str) -> Judgement {
        let mut concerned = false;
        let mut oldest = u64::MAX;
        let mut lag: Option<&Standing> = None;
        for (name, standing) in &self.standings {
            let unknown = generation.is_none() && standing.is_unknown(name);
            let in_force = standing.in_force_generation(object, uid);
            let wanted = standing.wanted_generation(object, uid);
            let behind = match generation {
                // It is gone: whatever is still made from it is behind.
                None => in_force.is_some() || unknown,
                // Above what is wanted: of an earlier object of that name, whose numbers the API server began anew.
                Some(generation) if wanted.is_some() => in_force.is_none_or(|g| g < generation || Some(g) > wanted),
                // No longer made from it, or not known yet to be.
                Some(_) => in_force.is_some() && standing.lag.is_some(),
            };
            if in_force.is_none() && wanted.is_none() && !unknown {
                continue;
            }
            concerned = true;
            oldest = oldest.min(in_force.unwrap_or(0));
            // Of several, the one that says more than "pending".
            if behind && lag.is_none_or(|l| matches!(l.lag, None | Some(Lag::Pending))) {
                lag = Some(standing);
            }
        }
        match lag {
            _ if !concerned => Judgement::Unconcerned,
            None => Judgement::Programmed,
            Some(standing) => Judgement::Lagging(self.laggard(standing, oldest)),
        }
    }

    fn laggard(&self, standing: &Standing, generation: u64) -> Laggard {
        let (reason, message) = match &standing.lag {
            _ if self.duplicate => ("duplicate-name", names::duplicate(&self.opened)),
            _ if self.vanished.is_some() => {
                ("disconnected", "the proxy is not connected; what it serves is not known".to_owned())
            }
            Some(Lag::Rejected { field, reason, .. }) if field.is_empty() => ("rejected", reason.clone()),
            Some(Lag::Rejected { field, reason, .. }) => ("rejected", format!("{field}: {reason}")),
            Some(Lag::Unsupported(reason)) => ("unsupported", reason.clone()),
            Some(Lag::Pending) | None => ("pending", String::new()),
        };
        Laggard { proxy: self.name.clone(), generation, reason: reason.to_owned(), message }
    }

    /// The generation that it was last told to compare with.
    fn ordered(&self) -> u64 {
        self.orders.borrow().compare
    }

    /// The generation that the proxy serves: also one that did not touch it.
    fn serves(&self, told: u64) -> u64 {
        let is_done = self.vanished.is_none() && self.answered == self.seen && self.seen >= self.ordered();
        if is_done { self.answered.max(told) } else { self.answered }
    }

    fn status(&self, told: u64) -> ProxyStatus {
        let mut rejected: Vec<Rejection> = self
            .standings
            .iter()
            .filter_map(|(name, standing)| match &standing.lag {
                Some(Lag::Rejected { version, field, reason }) => Some(Rejection {
                    name: Some(name.clone()),
                    version: version.clone(),
                    field: field.clone(),
                    reason: reason.clone(),
                }),
                _ => None,
            })
            .collect();
        rejected.sort_by(|a, b| (&a.field, &a.reason).cmp(&(&b.field, &b.reason)));
        ProxyStatus {
            name: self.name.clone(),
            identity: self.opened.identity.to_string(),
            version: self.opened.version.clone(),
            connected: self.vanished.is_none(),
            generation: self.serves(told),
            subscriptions: u32::try_from(self.subscriptions).unwrap_or(u32::MAX),
            rejected,
            certificate_not_after: issue::unix_i64(self.opened.certificate_not_after),
            resources_sent: self.resources_sent,
            bytes_sent: self.bytes_sent,
        }
    }
}

impl Standing {
    fn wanted_generation(&self, object: &ObjectRef, uid: &str) -> Option<u64> {
        generation_of(self.wanted.origins(), object, uid)
    }

    fn in_force_generation(&self, object: &ObjectRef, uid: &str) -> Option<u64> {
        generation_of(self.in_force(), object, uid)
    }

    /// What is in force is from an earlier stream, and of a version that is not known here: it may be made from anything.
    fn is_unknown(&self, name: &ResourceName) -> bool {
        let of_objects =
            matches!(name.kind(), ResourceKind::Inbound | ResourceKind::Destination | ResourceKind::Endpoints);
        of_objects && self.lag.is_some() && self.in_force.as_deref().is_some_and(<[_]>::is_empty)
    }

    /// Every object that it is, or should be, made from, once.
    fn objects(&self) -> HashSet<&ObjectRef> {
        self.wanted.origins().iter().chain(self.in_force()).filter_map(|origin| origin.object.as_ref()).collect()
    }

    fn in_force(&self) -> &[ObjectGeneration] {
        self.in_force.as_deref().unwrap_or_default()
    }

    /// True also tells that [`Self::objects`] are the same.
    fn has_same_objects(&self, other: &Self) -> bool {
        let all = [self.wanted.origins(), self.in_force(), other.wanted.origins(), other.in_force()];
        let same = |a: &[ObjectGeneration], b: &[ObjectGeneration]| {
            a.iter().map(|o| &o.object).eq(b.iter().map(|o| &o.object))
        };
        all.windows(2).all(|pair| matches!(pair, [a, b] if same(a, b)))
    }
}

/// Nothing tells whether it runs: without a Pod there is nothing that is removed with it.
fn warn_of_forgetting(proxy: &str) {
    tracing::warn!(
        proxy,
        after_s = limits::DISCONNECTED_KEPT.as_secs(),
        "a proxy without a Pod has been away for long and is counted no more: if it is only cut off, it still serves what it had, \
         and nobody names it. Give it a Pod document to have it named for as long as that is there"
    );
}

/// 0: of another object of that name, deleted since, or made since.
fn generation_of(origins: &[ObjectGeneration], object: &ObjectRef, uid: &str) -> Option<u64> {
    let found = origins.iter().find(|origin| origin.object.as_ref() == Some(object))?;
    let another = !uid.is_empty() && !found.uid.is_empty() && found.uid != uid;
    Some(if another { 0 } else { found.generation })
}

fn count(by_object: &mut HashMap<ObjectRef, HashMap<StreamId, u32>>, id: StreamId, standing: &Standing) {
    for object in standing.objects() {
        match by_object.get_mut(object) {
            Some(streams) => *streams.entry(id).or_default() += 1,
            None => {
                by_object.insert(object.clone(), HashMap::from([(id, 1)]));
            }
        }
    }
}

fn discount(by_object: &mut HashMap<ObjectRef, HashMap<StreamId, u32>>, id: StreamId, standing: &Standing) {
    for object in standing.objects() {
        let Some(streams) = by_object.get_mut(object) else { continue };
        if let Some(count) = streams.get_mut(&id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                streams.remove(&id);
            }
        }
        if streams.is_empty() {
            by_object.remove(object);
        }
    }
}

#[cfg(test)]
mod tests;
