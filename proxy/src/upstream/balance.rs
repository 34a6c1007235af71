//! The choice of an endpoint. Pure: takes `now`, random numbers and a view of the endpoints ([`Candidates`]).
//!
//! Peak-EWMA and least request take the cheapest of a few that are drawn at random: [`cheapest_drawn`]. Both prefer the
//! proxy's own zone ([`zone`]). [`random`] and [`RoundRobin`] share by weight alone; [`maglev`] sends what has
//! the same key to the same endpoint; [`prequal`] goes by what endpoints say of themselves.

mod estimate;
pub mod hash;
pub mod maglev;
pub mod prequal;
mod round_robin;
mod sampler;
pub mod settings;
pub mod zone;

use std::time::{Duration, Instant};

pub use self::{
    estimate::{DECAY, DEFAULT_LATENCY, Estimate, LEAST_PENALTY, MOST_PENALTY, Waiting},
    round_robin::RoundRobin,
    sampler::Sampler,
    settings::{Algorithm, LoadBalancing},
};

/// One in so many choices ignores cost, so that a bad estimate is found out.
const EXPLORE_ONE_IN: u64 = 100;
/// Endpoints that are compared for a request, at most. Two halve the queues that chance makes (Mitzenmacher 2001), but a balancer that sees
/// only its own few requests, to servers that are not alike, meets two slow ones too often: docs/balancing.md has figures.
const MOST_COMPARED: usize = 5;
/// Where weights differ: how much more the one drawn by weight may cost that has no more than one request in flight, so that weights
/// decide, and not noise.
const IDLE_TOLERANCE: f64 = 2.0;
/// How much more than one that failed, were it as slow as a failure counts, an endpoint may be burdened with before the
/// failing one gets its share again.
const FORBEARANCE: f64 = 2.0;
/// For how many requests in flight it counts that an endpoint hangs, where nothing else does: more than any has.
const HANGING_QUEUE: f64 = 1e6;
/// Pairs drawn before all endpoints are looked at.
const DRAWS: usize = 4;
/// Single draws before all endpoints are looked at.
const SINGLE_DRAWS: usize = 2 * DRAWS;
/// An endpoint's share when its slow start begins.
pub const SLOW_START_FLOOR: f64 = 0.1;

/// What may be sent to an endpoint, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Ready,
    /// Ejected long enough: one request may find out whether it is well again.
    ProbeDue,
    /// It asked to be left alone for a while (Retry-After).
    Resting,
    /// This request was there already.
    Tried,
    /// Taken only if nothing better is left: ejection must not make a backend unreachable.
    Ejected,
    /// Taken only if nothing else is left: terminating, but perhaps still serving.
    Draining,
}

/// The endpoints that a choice is made among, by index.
pub trait Candidates {
    fn count(&self) -> usize;

    fn standing(&self, index: usize) -> Standing;

    /// Requests that this worker has under way there.
    fn in_flight(&self, index: usize) -> u32;

    fn estimate(&self, index: usize) -> Estimate;

    /// The endpoint's weight relative to the mean of its set: more than 0.
    fn weight(&self, index: usize) -> f64;

    /// How far its slow start has come: [`SLOW_START_FLOOR`]..=1.
    fn warmth(&self, index: usize) -> f64;

    /// Whether this request may be the probe of an endpoint that is due for one.
    fn admit(&self, index: usize) -> bool;
}

/// An endpoint chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub index: usize,
    /// As the probe that [`Candidates::admit`] agreed to.
    pub probe: bool,
    /// The one that was drawn with it, and was not cheaper.
    pub over: Option<usize>,
    pub by: By,
}

/// What decided, where an algorithm has more than one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// What every choice of the kind goes by; where there is a better way, what is left without it.
    #[default]
    Default,
    /// What endpoints say of their load ([`prequal`]).
    Report,
    /// It is in its slow start, and this is of its part.
    Start,
    /// It failed of late, and this is of its share, which others could not carry ([`relieves`]).
    Share,
    /// The place of the request's key ([`maglev`]).
    Place,
    /// That place has no room, or is not ready: another.
    Moved,
}

impl Choice {
    pub fn of(index: usize) -> Self {
        Self { index, probe: false, over: None, by: By::Default }
    }

    /// One of those that were drawn; the other of the first two, if it is not the same, was passed over.
    fn among(index: usize, drawn: [usize; 2]) -> Self {
        Self { over: drawn.into_iter().find(|other| *other != index), ..Self::of(index) }
    }

    pub fn probe(index: usize) -> Self {
        Self { probe: true, ..Self::of(index) }
    }

    pub fn decided(self, by: By) -> Self {
        Self { by, ..self }
    }
}

/// What makes an endpoint cheaper than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Its latency, and how many requests are in flight.
    PeakEwma,
    /// Requests in flight alone; but what hangs goes last, since it has none where clients give up.
    InFlight,
}

impl Cost {
    /// Expected cost of one more request: lower is better.
    fn of(self, view: &impl Candidates, index: usize, now: Instant) -> f64 {
        self.with(view, index, f64::from(view.in_flight(index)), now)
    }

    /// The same with so many requests in flight.
    fn with(self, view: &impl Candidates, index: usize, in_flight: f64, now: Instant) -> f64 {
        let queue = queue(view, index, in_flight);
        match self {
            Self::PeakEwma => view.estimate(index).seconds(now) * queue,
            Self::InFlight if view.estimate(index).hangs(now) => queue + HANGING_QUEUE,
            Self::InFlight => queue,
        }
    }
}

/// What a request meets where so many are in flight: itself, and what they are by the endpoint's share.
fn queue(view: &impl Candidates, index: usize, in_flight: f64) -> f64 {
    in_flight / (view.weight(index) * view.warmth(index)) + 1.0
}

/// How far an endpoint's slow start has come that has been ready for so long.
pub fn warmth(ready_for: Duration, window: Duration) -> f64 {
    if ready_for >= window {
        return 1.0;
    }
    (ready_for.as_secs_f64() / window.as_secs_f64()).max(SLOW_START_FLOOR)
}

/// A few ready endpoints are drawn by weight, the first two of them distinct, and the cheapest is taken; what is in its slow start
/// gets its part of what it is drawn for, and what failed of late less and less, as far as others can carry it ([`Drawn::take`]). An endpoint that is
/// due for a probe is taken if it is drawn and admitted. If none is ready, any of the best standing that exists.
pub fn cheapest_drawn(
    view: &impl Candidates,
    sampler: &Sampler,
    cost: Cost,
    now: Instant,
    random: &impl Fn() -> u64,
) -> Option<Choice> {
    if view.count() >= 2 {
        for _ in 0..DRAWS {
            let (a, b) = sampler.pair(random);
            let standings = (view.standing(a), view.standing(b));
            for (index, standing) in [(a, standings.0), (b, standings.1)] {
                if standing == Standing::ProbeDue && view.admit(index) {
                    return Some(Choice::probe(index));
                }
            }
            if standings == (Standing::Ready, Standing::Ready) {
                let mut drawn = Drawn::new(view, sampler, cost, now, [a, b]);
                let explores = random().is_multiple_of(EXPLORE_ONE_IN);
                if !explores {
                    let more = (2..compared(view.count())).map(|_| sampler.draw(random()));
                    more.filter(|index| view.standing(*index) == Standing::Ready).for_each(|index| drawn.add(index));
                }
                return Some(Choice::among(drawn.take(explores, random), [a, b]));
            }
        }
    }
    // Few are ready: look at all.
    let best = best_standing(view)?;
    let alike = || of_standing(view, best);
    match alike().count() {
        0 | 1 => alike().next().map(Choice::of),
        many => {
            let (a, b) = sampler::two_of(many, random());
            let (a, b) = (alike().nth(a)?, alike().nth(b)?);
            let explores = random().is_multiple_of(EXPLORE_ONE_IN);
            Some(Choice::among(Drawn::new(view, sampler, cost, now, [a, b]).take(explores, random), [a, b]))
        }
    }
}

/// How many of so many endpoints are compared. Fewer of few: else drawing, which goes by weight, would draw all.
fn compared(count: usize) -> usize {
    (count / 2 + 1).clamp(2, MOST_COMPARED)
}

/// Endpoints drawn for one request, from which one is taken.
struct Drawn<'a, V> {
    view: &'a V,
    cost: Cost,
    now: Instant,
    indices: [usize; MOST_COMPARED],
    count: usize,
    /// Weights differ.
    weighted: bool,
}

impl<'a, V: Candidates> Drawn<'a, V> {
    /// The first two.
    fn new(view: &'a V, sampler: &Sampler, cost: Cost, now: Instant, [a, b]: [usize; 2]) -> Self {
        let weighted = !sampler.is_uniform();
        let mut drawn = Self { view, cost, now, indices: [a; MOST_COMPARED], count: 1, weighted };
        drawn.add(b);
        drawn
    }

    fn add(&mut self, index: usize) {
        if let Some(place) = self.indices.get_mut(self.count) {
            *place = index;
            self.count += 1;
        }
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        self.indices.iter().copied().take(self.count)
    }

    /// The cheapest, without those that are in their slow start and those that failed and do not take this draw. The first of all,
    /// drawn by weight, is the one for which slow start counts: its chance to be first is its share, that it is among a few is not.
    /// `explores`: the first that may be taken, whatever it costs; where tries wait in vain already, they are what finds out.
    fn take(&self, explores: bool, random: &impl Fn() -> u64) -> usize {
        let Self { view, cost, now, indices: [first, ..], .. } = *self;
        let hangs = |index: usize| view.estimate(index).hangs(now);
        let starts = view.warmth(first) < 1.0 && !hangs(first) && is_warm(view, first, random);
        let warm = || self.all().filter(|index| view.warmth(*index) >= 1.0);
        if explores && let Some(any) = starts.then_some(first).or_else(|| warm().find(|index| !hangs(*index))) {
            return any;
        }
        if starts && is_trusted(view, first, now, random) && joins(view, first, warm()) {
            return first;
        }
        let mut trusted = warm().filter(|index| is_trusted(view, *index, now, random));
        let Some(drawn) = trusted.next() else {
            let of = |index| cost.of(view, index, now);
            let any = cheapest(of, warm()).or_else(|| cheapest(of, self.all()));
            return any.map_or(first, |(index, _)| index);
        };
        let chosen = self.cheaper(drawn, trusted);
        let passed_over = first != drawn && view.warmth(first) >= 1.0;
        if passed_over && relieves(view, cost, now, first, chosen) { first } else { chosen }
    }

    /// The cheapest. Where weights differ, the one that was drawn by weight stays unless another would be cheaper with this
    /// request, too, by its weight, than the drawn one is without it, rounded to whole requests: else the light would be
    /// taken whenever the heavy have something in flight.
    fn cheaper(&self, drawn: usize, others: impl Iterator<Item = usize>) -> usize {
        let Self { view, cost, now, weighted, .. } = *self;
        let in_flight = |index: usize| f64::from(view.in_flight(index));
        let (own, one_more) = match in_flight(drawn) {
            _ if !weighted => (cost.of(view, drawn, now), 0.0),
            few if few <= 1.0 => (cost.with(view, drawn, 0.0, now) / IDLE_TOLERANCE, 0.0),
            many => (cost.with(view, drawn, many - 1.0, now), 1.0),
        };
        let cheaper = cheapest(|index| cost.with(view, index, in_flight(index) + one_more, now), others);
        cheaper.filter(|(_, least)| *least < own).map_or(drawn, |(index, _)| index)
    }
}

/// The first of those that cost the least, and what it costs.
fn cheapest(cost: impl Fn(usize) -> f64, of: impl Iterator<Item = usize>) -> Option<(usize, f64)> {
    let mut best: Option<(usize, f64)> = None;
    for index in of {
        let cost = cost(index);
        if best.is_none_or(|(_, least)| cost < least) {
            best = Some((index, cost));
        }
    }
    best
}

/// `index`, drawn by share, if it is in its slow start and takes this draw: for algorithms that compare in a way of their own.
pub fn starting(view: &impl Candidates, index: usize, now: Instant, random: &impl Fn() -> u64) -> Option<Choice> {
    let starts = view.standing(index) == Standing::Ready && view.warmth(index) < 1.0 && is_warm(view, index, random);
    let starts = starts && !view.estimate(index).hangs(now);
    let others = || (1..MOST_COMPARED).map(|_| sampler::scale(random() as u32, view.count()));
    let warm = |index: &usize| view.standing(*index) == Standing::Ready && view.warmth(*index) >= 1.0;
    let joins = || joins(view, index, others().filter(warm));
    (starts && is_trusted(view, index, now, random) && joins()).then(|| Choice::of(index).decided(By::Start))
}

/// Whether an endpoint in its slow start, whose turn it is, has no more in flight, for its part, than the busiest of `others`: it is not
/// to be compared with the idlest, since its share is small already. What it may have is rounded up to a whole request.
/// Its latency says nothing yet: it is slow because it is cold, and warms by being asked.
fn joins(view: &impl Candidates, index: usize, mut others: impl Iterator<Item = usize>) -> bool {
    let own = queue(view, index, f64::from(view.in_flight(index).saturating_sub(1)));
    others.any(|other| queue(view, other, f64::from(view.in_flight(other))) >= own)
}

/// One that is ready, drawn by weight; see [`cheapest_drawn`] for the rest.
pub fn random(view: &impl Candidates, sampler: &Sampler, random: &impl Fn() -> u64) -> Option<Choice> {
    if view.count() >= 2 {
        for _ in 0..SINGLE_DRAWS {
            let index = sampler.draw(random());
            match view.standing(index) {
                Standing::ProbeDue if view.admit(index) => return Some(Choice::probe(index)),
                Standing::Ready if is_warm(view, index, random) => return Some(Choice::of(index)),
                _ => {}
            }
        }
    }
    let best = best_standing(view)?;
    let share = |index: usize| view.weight(index) * view.warmth(index);
    let all: f64 = of_standing(view, best).map(share).sum();
    let mut left = all * sampler::unit(random());
    let drawn = of_standing(view, best).find(|index| {
        left -= share(*index);
        left < 0.0
    });
    drawn.or_else(|| of_standing(view, best).last()).map(Choice::of)
}

/// Whether an endpoint in its slow start takes this one of the draws it got.
pub fn is_warm(view: &impl Candidates, index: usize, random: &impl Fn() -> u64) -> bool {
    let warmth = view.warmth(index);
    warmth >= 1.0 || sampler::unit(random()) < warmth
}

/// Whether an endpoint that failed of late takes this one of the draws it got: see [`Estimate::trust`].
pub fn is_trusted(view: &impl Candidates, index: usize, now: Instant, random: &impl Fn() -> u64) -> bool {
    let trust = view.estimate(index).trust(now);
    trust >= 1.0 || sampler::unit(random()) < trust
}

/// Whether an endpoint that is not trusted, but was drawn by its share, takes the request all the same, because `other` has too
/// much to do: what the failing one is spared would else overload those that are well. It never gets more than its share, since who fails
/// at once would look better than anybody who works.
pub fn relieves(view: &impl Candidates, cost: Cost, now: Instant, index: usize, other: usize) -> bool {
    let burden = |index: usize| {
        let latency = match cost {
            Cost::PeakEwma => view.estimate(index).usual(now),
            Cost::InFlight => 1.0,
        };
        latency * zone::load(view, index)
    };
    burden(other) > FORBEARANCE * burden(index)
}

/// The best there is when nothing is to be probed.
fn best_standing(view: &impl Candidates) -> Option<Standing> {
    (0..view.count()).map(|index| graded(view.standing(index))).min()
}

fn of_standing(view: &impl Candidates, wanted: Standing) -> impl Iterator<Item = usize> {
    (0..view.count()).filter(move |index| graded(view.standing(*index)) == wanted)
}

/// A probe nobody admitted is like an ejected endpoint.
fn graded(standing: Standing) -> Standing {
    if standing == Standing::ProbeDue { Standing::Ejected } else { standing }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
