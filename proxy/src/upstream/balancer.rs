//! A backend as one worker sees it: its endpoints, by the policy in force, and what the balancing algorithm keeps between one
//! choice and the next. It follows the shared set by looking at its serial number.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Weak as SharedWeak},
    time::{Duration, Instant},
};

use super::{
    Backend, EndpointSet,
    balance::{
        self, Algorithm, By, Candidates, Choice, Cost, Estimate, RoundRobin, Sampler, Standing, maglev, prequal,
        settings::HashKey, zone::Zones,
    },
    dial::Dialer,
    local::{LocalEndpoint, typical_latency},
    outlier::{Health, OutlierDetection, Role},
    stats::{BackendStats, EndpointCounts},
};
use crate::policy::BackendPolicy;

mod why;

/// See the module.
pub struct Balancer {
    backend: SharedWeak<Backend>,
    serial: Cell<u64>,
    roster: RefCell<Rc<Roster>>,
    stats: Rc<BackendStats>,
}

/// The endpoints of one set.
pub struct Roster {
    pub endpoints: Box<[Rc<LocalEndpoint>]>,
    pub policy: Arc<BackendPolicy>,
    /// The zone that is the proxy's own; empty: not known.
    zone: Arc<str>,
    /// The control plane knows of none of them any longer.
    kept: bool,
    mean_weight: f64,
    sampler: Sampler,
    /// None: all are alike near.
    zones: Option<Zones>,
    turns: RefCell<RoundRobin>,
    asked: RefCell<Asked>,
    table: Option<Arc<maglev::Table>>,
}

/// What a request brings to the choice.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Where it was already.
    pub tried: &'a [SocketAddr],
    /// See [`balance::settings::HashKey`].
    pub key: Option<u64>,
    pub now: Instant,
    /// Where it is said why, if anybody wants to know.
    pub why: Option<&'a RefCell<String>>,
}

impl Balancer {
    pub fn new(backend: &Arc<Backend>) -> Self {
        Self {
            backend: Arc::downgrade(backend),
            serial: Cell::new(0),
            roster: RefCell::new(Rc::new(Roster::none())),
            stats: BackendStats::new(&backend.key),
        }
    }

    /// Takes over a new set: endpoints that stay keep their estimate and connections, those that left are retired.
    /// `place`: the proxy's own zone, and a random number.
    pub fn follow(&self, set: &EndpointSet, dialer: &Rc<Dialer>, place: impl FnOnce() -> (Arc<str>, u64)) {
        if self.serial.replace(set.serial) == set.serial {
            return;
        }
        let now = Instant::now();
        let old = Rc::clone(&self.roster.borrow());
        let mut old: HashMap<SocketAddr, &Rc<LocalEndpoint>> =
            old.endpoints.iter().map(|local| (local.endpoint.address, local)).collect();
        let seed = Estimate::new(typical_latency(old.values().copied(), now), now);
        let new = set.endpoints.iter().map(|endpoint| match old.remove(&endpoint.address) {
            Some(local) if Arc::ptr_eq(&local.endpoint, endpoint) => Rc::clone(local),
            Some(local) if local.endpoint.identity == endpoint.identity => Rc::new(local.renewed(endpoint)),
            Some(local) => {
                local.pool.retire();
                Rc::new(LocalEndpoint::new(Arc::clone(endpoint), dialer, &self.stats, seed))
            }
            None => Rc::new(LocalEndpoint::new(Arc::clone(endpoint), dialer, &self.stats, seed)),
        });
        let new: Box<[Rc<LocalEndpoint>]> = new.collect();
        if let Some(backend) = self.backend.upgrade() {
            new.iter().for_each(|local| local.pool.under(&set.policy, &backend));
        }
        for gone in old.values() {
            gone.pool.retire();
        }
        let (zone, random) = place();
        self.roster.replace(Rc::new(Roster::new(new, set, zone, random)));
        self.stats.set_endpoints(self.count(now));
    }

    /// Looks at the set anew if the proxy's own zone is another than it was.
    pub fn moved_to(&self, zone: &str) {
        if *self.roster.borrow().zone != *zone {
            self.serial.set(0);
        }
    }

    fn count(&self, now: Instant) -> EndpointCounts {
        let mut counts = EndpointCounts::default();
        let roster = self.roster.borrow();
        for local in &roster.endpoints {
            if roster.kept {
                counts.kept += 1;
            }
            match local.standing(&[], now) {
                Standing::Ready | Standing::Tried | Standing::Resting => counts.ready += 1,
                Standing::Draining => counts.draining += 1,
                Standing::Ejected | Standing::ProbeDue => counts.ejected += 1,
            }
        }
        counts
    }

    /// The endpoint for one try, and what the try's result may decide over it.
    pub fn choose(&self, wanted: Wanted<'_>, random: impl Fn() -> u64) -> Option<(Rc<LocalEndpoint>, Role)> {
        let roster = self.roster.borrow();
        let choice = roster.choose(wanted, &random)?;
        let local = Rc::clone(roster.endpoints.get(choice.index)?);
        let role = match local.endpoint.outlier.health(wanted.now) {
            _ if choice.probe => Role::Probe,
            Health::InService => Role::Ordinary,
            Health::Ejected | Health::ProbeDue => Role::LastResort,
        };
        if let Some(why) = wanted.why {
            why.replace(why::of(&roster, choice, role, wanted));
        }
        Some((local, role))
    }

    /// The endpoint at an address, unless it is ejected.
    pub fn at(&self, address: SocketAddr, now: Instant) -> Option<Rc<LocalEndpoint>> {
        let roster = self.roster.borrow();
        let local = roster.endpoints.iter().find(|local| local.endpoint.address == address)?;
        (local.endpoint.outlier.health(now) == Health::InService).then(|| Rc::clone(local))
    }

    /// Whether the control plane knows of none of the endpoints any longer.
    pub fn is_kept(&self) -> bool {
        self.roster.borrow().kept
    }

    /// What the key of a request is made of, if the algorithm goes by it.
    pub fn key(&self, of: impl FnOnce(&HashKey) -> Option<u64>) -> Option<u64> {
        match &self.roster.borrow().policy.load_balancing.algorithm {
            Algorithm::ConsistentHash(hash) => of(&hash.key),
            _ => None,
        }
    }

    /// The endpoints as they are now.
    pub fn roster(&self) -> Rc<Roster> {
        Rc::clone(&self.roster.borrow())
    }

    /// False: the backend is gone.
    pub fn sweep(&self, now: Instant) -> bool {
        let alive = self.backend.strong_count() > 0;
        let roster = self.roster();
        for local in &roster.endpoints {
            if alive {
                local.pool.sweep(now);
            } else {
                local.pool.retire();
            }
        }
        self.stats.set_endpoints(self.count(now));
        self.stats.set_pooled(roster.endpoints.iter().map(|local| local.pool.len()).sum());
        alive
    }
}

impl Roster {
    fn none() -> Self {
        let set = EndpointSet::new(false, crate::policy::Protocol::Detect, Vec::new());
        Self::new(Box::default(), &set, "".into(), 0)
    }

    fn new(endpoints: Box<[Rc<LocalEndpoint>]>, set: &EndpointSet, zone: Arc<str>, random: u64) -> Self {
        let policy = Arc::clone(&set.policy);
        let weights = endpoints.iter().map(|local| local.endpoint.weight);
        let total: f64 = weights.clone().map(f64::from).sum();
        let zones = (policy.load_balancing.prefer_zone && !zone.is_empty()).then(|| {
            let near = |local: &Rc<LocalEndpoint>| (*local.endpoint.zone == *zone, local.endpoint.weight);
            Zones::new(endpoints.iter().map(near))
        });
        Self {
            kept: set.kept_until.is_some(),
            mean_weight: total / endpoints.len().max(1) as f64,
            sampler: Sampler::new(weights),
            zones: zones.flatten(),
            turns: RefCell::new(RoundRobin::new(endpoints.len(), random)),
            asked: RefCell::default(),
            table: set.table.clone(),
            endpoints,
            policy,
            zone,
        }
    }

    pub fn outlier(&self) -> &OutlierDetection {
        &self.policy.outlier_detection
    }

    /// Whether another endpoint may be ejected: see [`OutlierDetection::most_ejected_percent`].
    pub fn may_eject_one_more(&self, now: Instant) -> bool {
        let is_out = |local: &&Rc<LocalEndpoint>| local.endpoint.outlier.health(now) != Health::InService;
        let ejected = self.endpoints.iter().filter(is_out).count();
        (ejected + 1) * 100 <= self.endpoints.len() * self.outlier().most_ejected_percent as usize
    }

    /// The same of the endpoint that asks to be left alone: were all to rest that are busy, those that are left would be next. Whether
    /// it rests already makes no difference, and draining endpoints are none that others could be left to.
    pub fn may_rest(&self, address: SocketAddr, now: Instant) -> bool {
        let (mut all, mut out) = (0, 1);
        for local in &self.endpoints {
            match local.standing(&[], now) {
                Standing::Draining => continue,
                Standing::Ready => {}
                _ if local.endpoint.address == address => {}
                _ => out += 1,
            }
            all += 1;
        }
        out * 100 <= all * self.outlier().most_ejected_percent as usize
    }

    fn choose(&self, wanted: Wanted<'_>, random: &impl Fn() -> u64) -> Option<Choice> {
        let view = View { roster: self, tried: wanted.tried, now: wanted.now };
        match &self.policy.load_balancing.algorithm {
            Algorithm::PeakEwma => self.cheapest(&view, Cost::PeakEwma, random),
            Algorithm::Prequal(settings) => {
                let choice = self.reported(settings, &view, random);
                self.ask(settings, &view, random);
                choice.or_else(|| self.cheapest(&view, Cost::PeakEwma, random))
            }
            Algorithm::LeastRequest => self.cheapest(&view, Cost::InFlight, random),
            Algorithm::RoundRobin => {
                let alike = self.sampler.is_uniform() && self.policy.load_balancing.slow_start.is_none();
                self.turns.borrow_mut().choose(&view, alike)
            }
            Algorithm::Random => balance::random(&view, &self.sampler, random),
            Algorithm::ConsistentHash(hash) => match (&self.table, wanted.key) {
                (Some(table), Some(key)) => maglev::choose(&view, table, hash.most_load, key),
                _ => balance::random(&view, &self.sampler, random),
            },
        }
    }

    fn cheapest(&self, view: &View<'_>, cost: Cost, random: &impl Fn() -> u64) -> Option<Choice> {
        let near = self.zones.as_ref().and_then(|zones| zones.choose(view, cost, view.now, random));
        near.or_else(|| balance::cheapest_drawn(view, &self.sampler, cost, view.now, random))
    }

    /// The endpoint that is best by what endpoints say of themselves. None: too little is known, or this request goes to one
    /// of those that cannot be asked, which get their share as if none could.
    fn reported(&self, settings: &prequal::Settings, view: &View<'_>, random: &impl Fn() -> u64) -> Option<Choice> {
        let any = Sampler::new_uniform(self.endpoints.len()).draw(random());
        match view.standing(any) {
            Standing::ProbeDue if view.admit(any) => return Some(Choice::probe(any)),
            Standing::Ready if !view.local(any)?.pool.reports_load() => return None,
            _ => {}
        }
        if let Some(choice) = balance::starting(view, any, view.now, random) {
            return Some(choice);
        }
        let mut asked = self.asked.borrow_mut();
        asked.listen(view);
        let is_warm = |index: usize| view.standing(index) == Standing::Ready && view.warmth(index) >= 1.0;
        // However little it says that it has to do.
        let hangs = |index: usize| view.estimate(index).hangs(view.now);
        let is_trusted = |index: usize| balance::is_trusted(view, index, view.now, random);
        let usable = |index: usize| is_warm(index) && !hangs(index) && is_trusted(index);
        // Those that start had their turn: they are none to choose among, nor to wait for.
        let among = (0..self.endpoints.len()).filter(|index| is_warm(*index)).take(2).count();
        let penalty = |index: usize| {
            let estimate = view.estimate(index);
            estimate.penalty(view.now).max(estimate.silence(view.now))
        };
        let index = asked.pool.choose(settings, among, view.now, usable, penalty)?;
        // As in `Drawn::take`.
        if is_warm(any)
            && !hangs(any)
            && !is_trusted(any)
            && balance::relieves(view, Cost::PeakEwma, view.now, any, index)
        {
            return Some(Choice::of(any).decided(By::Share));
        }
        Some(Choice::of(index).decided(By::Report))
    }

    /// Asks a few endpoints for their load, at random.
    fn ask(&self, settings: &prequal::Settings, view: &View<'_>, random: &impl Fn() -> u64) {
        let mut asked = self.asked.borrow_mut();
        let anybody = Sampler::new_uniform(self.endpoints.len());
        for _ in 0..asked.pool.probes_due(settings) {
            let index = anybody.draw(random());
            if asked.waiting.len() >= MOST_ASKED || asked.waiting.iter().any(|(waiting, _)| *waiting == index) {
                continue;
            }
            if view.standing(index) == Standing::Ready && view.local(index).is_some_and(|local| local.pool.ask_load()) {
                asked.waiting.push((index, view.now));
            }
        }
    }

    fn warmth(&self, local: &LocalEndpoint, now: Instant) -> f64 {
        let Some(window) = self.policy.load_balancing.slow_start else { return 1.0 };
        local.endpoint.ready_for(now).map_or(1.0, |ready_for: Duration| balance::warmth(ready_for, window))
    }
}

/// Endpoints asked for their load that have not answered yet, at most.
const MOST_ASKED: usize = 32;
/// An answer that takes longer is not waited for.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// What endpoints say of themselves.
#[derive(Default)]
struct Asked {
    pool: prequal::Pool,
    /// Who has not answered, and when it was asked.
    waiting: Vec<(usize, Instant)>,
}

impl Asked {
    /// Takes the answers that have come.
    fn listen(&mut self, view: &View<'_>) {
        let Self { pool, waiting } = self;
        waiting.retain(|(index, since)| match view.local(*index).and_then(|local| local.pool.heard_load()) {
            Some(report) => {
                pool.take(*index, report);
                false
            }
            None => view.now.saturating_duration_since(*since) < ANSWER_WAIT,
        });
    }
}

/// The endpoints as one request finds them.
struct View<'a> {
    roster: &'a Roster,
    tried: &'a [SocketAddr],
    now: Instant,
}

impl View<'_> {
    fn local(&self, index: usize) -> Option<&LocalEndpoint> {
        self.roster.endpoints.get(index).map(Rc::as_ref)
    }
}

impl Candidates for View<'_> {
    fn count(&self) -> usize {
        self.roster.endpoints.len()
    }

    fn standing(&self, index: usize) -> Standing {
        self.local(index).map_or(Standing::Draining, |local| local.standing(self.tried, self.now))
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.local(index).map_or(0, LocalEndpoint::in_flight)
    }

    fn estimate(&self, index: usize) -> Estimate {
        self.local(index).map_or_else(|| Estimate::new(balance::MOST_PENALTY, self.now), LocalEndpoint::estimate)
    }

    fn weight(&self, index: usize) -> f64 {
        self.local(index).map_or(1.0, |local| f64::from(local.endpoint.weight) / self.roster.mean_weight)
    }

    fn warmth(&self, index: usize) -> f64 {
        self.local(index).map_or(1.0, |local| self.roster.warmth(local, self.now))
    }

    fn admit(&self, index: usize) -> bool {
        let settings = self.roster.outlier();
        self.local(index).is_some_and(|local| local.endpoint.outlier.admit_probe(self.now, settings))
    }
}
