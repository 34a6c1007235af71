//! The proxy's own zone first, while it has room.
//!
//! The better of two endpoints is looked for in either part, and the near one is taken unless it is expected to cost more than
//! [`PREFERENCE`] times what the far one does. What counts is the latency without rare peaks, and what is in flight beyond what an endpoint carries
//! without noticing ([`ROOM`]): so little traffic never leaves the zone, and what is too much for it leaves by and by. Of an
//! endpoint that nothing was sent to for a while it is assumed that it is as fast as near ones are when they are not loaded.
//! Where the near one failed of late and the far one did not, the far one is taken as long as it can carry that.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use super::{
    Candidates, Choice, Cost, EXPLORE_ONE_IN, Estimate, Sampler, Standing, cheapest_drawn, estimate::decay, is_trusted,
    is_warm, relieves, sampler::unit,
};

/// How much more a request may cost in the own zone.
pub const PREFERENCE: f64 = 2.0;
/// Requests in flight that make an endpoint as expensive as twice its latency.
pub const ROOM: f64 = 8.0;
/// Time in which the zone's usual latency follows a rise for all but 1/e.
const RISE: Duration = Duration::from_secs(60);

/// A set of endpoints, some of which are near.
#[derive(Debug)]
pub struct Zones {
    near: Part,
    far: Part,
    /// The part of all weight that is near.
    near_share: f64,
    usual: Usual,
}

/// Some of a set, by their indices in it.
#[derive(Debug)]
struct Part {
    members: Box<[usize]>,
    sampler: Sampler,
}

/// What near endpoints take when they are not loaded: falls at once, rises slowly.
#[derive(Debug)]
struct Usual(Cell<Option<(f64, Instant)>>);

impl Zones {
    /// `endpoints`: whether each is near, and its weight. None: it makes no difference.
    pub fn new(endpoints: impl ExactSizeIterator<Item = (bool, u32)> + Clone) -> Option<Self> {
        let part = |near: bool| {
            let members = endpoints.clone().enumerate().filter(|(_, endpoint)| endpoint.0 == near);
            let weights: Vec<u32> = members.clone().map(|(_, (_, weight))| weight).collect();
            let members: Box<[usize]> = members.map(|(index, _)| index).collect();
            Part { members, sampler: Sampler::new(weights.into_iter()) }
        };
        let (near, far) = (part(true), part(false));
        let matters = !near.members.is_empty() && !far.members.is_empty();
        let weight = |near: Option<bool>| -> f64 {
            let part = endpoints.clone().filter(|endpoint| near.is_none_or(|near| endpoint.0 == near));
            part.map(|(_, weight)| f64::from(weight)).sum()
        };
        let near_share = weight(Some(true)) / weight(None).max(1.0);
        matters.then(|| Self { near, far, near_share, usual: Usual(Cell::new(None)) })
    }

    /// The endpoint for a request; None: nothing near will do, and all are to be looked at alike.
    pub fn choose(
        &self,
        view: &impl Candidates,
        cost: Cost,
        now: Instant,
        random: &impl Fn() -> u64,
    ) -> Option<Choice> {
        let near = self.near.choose(view, cost, now, random)?;
        if near.probe {
            return Some(near);
        }
        if view.standing(near.index) != Standing::Ready {
            return None;
        }
        let far = match self.far.choose(view, cost, now, random) {
            Some(far) if far.probe => return Some(far),
            Some(far) if view.standing(far.index) == Standing::Ready => far,
            _ => return Some(near),
        };
        // Where all that is near starts slowly, there was nobody near to leave requests to.
        let all_start = || self.near.members.iter().all(|index| view.warmth(*index) < 1.0);
        if view.warmth(near.index) < 1.0 && all_start() && !is_warm(view, near.index, random) {
            return Some(far);
        }
        let hangs = |index: usize| view.estimate(index).hangs(now);
        if hangs(near.index) && !hangs(far.index) {
            return Some(far);
        }
        let is_trusted = |index: usize| is_trusted(view, index, now, random);
        if !is_trusted(near.index) && is_trusted(far.index) {
            let stays = relieves(view, cost, now, near.index, far.index) && unit(random()) < self.near_share;
            return Some(if stays { near } else { far });
        }
        let (near_latency, far_latency) = match cost {
            Cost::InFlight => (1.0, 1.0),
            Cost::PeakEwma => {
                let near = view.estimate(near.index);
                let usual = self.usual.after(&near, now);
                (near.reverting(usual, now), view.estimate(far.index).reverting(usual, now))
            }
        };
        let spills = near_latency * load(view, near.index) > PREFERENCE * far_latency * load(view, far.index);
        // One that was slow once (its first connection, say) would never be found to be fast again.
        let explores = spills && random().is_multiple_of(EXPLORE_ONE_IN);
        Some(if spills && !explores { far } else { near })
    }
}

/// How much what is in flight there adds to a request's cost.
pub(super) fn load(view: &impl Candidates, index: usize) -> f64 {
    1.0 + f64::from(view.in_flight(index)) / (ROOM * view.weight(index) * view.warmth(index))
}

impl Part {
    fn choose(&self, view: &impl Candidates, cost: Cost, now: Instant, random: &impl Fn() -> u64) -> Option<Choice> {
        let choice = cheapest_drawn(&Of { view, members: &self.members }, &self.sampler, cost, now, random)?;
        let over = choice.over.and_then(|over| self.members.get(over).copied());
        Some(Choice { index: *self.members.get(choice.index)?, over, ..choice })
    }
}

impl Usual {
    /// With another look at a near endpoint.
    fn after(&self, near: &Estimate, now: Instant) -> f64 {
        let latency = near.usual(now);
        let usual = match self.0.get() {
            Some((usual, _)) if !near.is_measured() => return usual,
            Some((usual, at)) if latency > usual => latency + (usual - latency) * decay(at, now, RISE),
            _ => latency,
        };
        if near.is_measured() {
            self.0.set(Some((usual, now)));
        }
        usual
    }
}

/// A view of a part.
struct Of<'a, V> {
    view: &'a V,
    members: &'a [usize],
}

impl<V: Candidates> Of<'_, V> {
    /// The index in the whole. (All that are asked for are below `count`.)
    fn whole(&self, index: usize) -> usize {
        self.members.get(index).copied().unwrap_or(usize::MAX)
    }
}

impl<V: Candidates> Candidates for Of<'_, V> {
    fn count(&self) -> usize {
        self.members.len()
    }

    fn standing(&self, index: usize) -> Standing {
        self.view.standing(self.whole(index))
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.view.in_flight(self.whole(index))
    }

    fn estimate(&self, index: usize) -> Estimate {
        self.view.estimate(self.whole(index))
    }

    fn weight(&self, index: usize) -> f64 {
        self.view.weight(self.whole(index))
    }

    fn warmth(&self, index: usize) -> f64 {
        self.view.warmth(self.whole(index))
    }

    fn admit(&self, index: usize) -> bool {
        self.view.admit(self.whole(index))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{estimate::Waiting, testing::*},
        *,
    };

    const NEAR: usize = 2;

    /// Two near endpoints and four far ones, with a latency that grows beyond `capacity` requests in flight; `gap` between
    /// requests. Counts of near and far.
    fn simulate(capacity: u32, gap: Duration, seconds: u64, far_latency: Duration) -> (usize, usize) {
        let start = Instant::now();
        let random = generator(3);
        let mut endpoints = Endpoints::ready(6, start);
        let zones = Zones::new((0..6).map(|index| (index < NEAR, 1))).unwrap();
        let mut ends: Vec<Vec<(Instant, Duration)>> = vec![Vec::new(); 6];
        let (mut near, mut far) = (0, 0);
        let mut now = start;
        while now < start + Duration::from_secs(seconds) {
            now += gap;
            for (index, ends) in ends.iter_mut().enumerate() {
                for (_, took) in ends.extract_if(.., |(at, _)| *at <= now) {
                    endpoints.estimates[index].succeeded(took, now);
                }
                endpoints.in_flight[index] = ends.len() as u32;
            }
            let index = zones.choose(&endpoints, Cost::PeakEwma, now, &random).unwrap().index;
            let base = if index < NEAR { Duration::from_millis(10) } else { far_latency };
            let over = f64::from(endpoints.in_flight[index] + 1) / f64::from(capacity);
            let took = base.mul_f64(over.max(1.0));
            ends[index].push((now + took, took));
            *(if index < NEAR { &mut near } else { &mut far }) += 1;
        }
        (near, far)
    }

    #[test]
    fn what_the_zone_can_bear_stays_there() {
        let (near, far) = simulate(1000, Duration::from_millis(5), 60, Duration::from_millis(11));
        assert_eq!(far, 0, "{near} near");
        let (_, far) = simulate(1000, Duration::from_millis(500), 600, Duration::from_millis(11));
        assert_eq!(far, 0, "little traffic least of all");
    }

    #[test]
    fn a_zone_whose_endpoint_hangs_is_left() {
        let start = Instant::now();
        let random = generator(7);
        let zones = Zones::new([(true, 1), (false, 1)].into_iter()).unwrap();
        let mut endpoints = Endpoints::ready(2, start);
        endpoints.estimates.iter_mut().for_each(|estimate| estimate.succeeded(Duration::from_millis(1), start));
        let (now, well) = (start + Duration::from_millis(500), endpoints.estimates[0]);
        let near = |endpoints: &Endpoints| {
            let choices = (0..1000).map(|_| zones.choose(endpoints, Cost::PeakEwma, now, &random).unwrap());
            choices.filter(|choice| choice.index == 0).count()
        };
        assert_eq!(near(&endpoints), 1000);
        // While clients wait, and where they give up.
        endpoints.estimates[0] =
            well.with(Waiting { tries: 2, silent_since: Some(start), last: Some(start), ignored: 0 });
        assert_eq!(near(&endpoints), 0);
        endpoints.estimates[0] = well;
        endpoints.estimates[0].given_up(Duration::from_millis(500), now);
        let near = near(&endpoints);
        assert!(near < 30, "{near} of 1000");
    }

    #[test]
    fn a_zone_that_was_slow_once_is_found_to_be_fast() {
        let start = Instant::now();
        let random = generator(5);
        let zones = Zones::new([(true, 1), (false, 1)].into_iter()).unwrap();
        let mut endpoints = Endpoints::ready(2, start);
        endpoints.estimates[0].succeeded(Duration::from_secs(1), start);
        endpoints.estimates[1].succeeded(Duration::from_millis(1), start);
        let mut now = start;
        let near = (0..8000).map(|_| {
            now += Duration::from_millis(50);
            let index = zones.choose(&endpoints, Cost::PeakEwma, now, &random).unwrap().index;
            endpoints.estimates[index].succeeded(Duration::from_millis(1), now);
            index
        });
        let chosen: Vec<_> = near.collect();
        assert!(chosen.iter().skip(7000).all(|index| *index == 0), "it stays away from its zone");
    }

    /// The near one's failures come at once, so nothing is ever in flight there; of 1000 requests, one every `gap`, those that
    /// went to a near endpoint.
    fn failing_near(cost: Cost, gap: Duration, far_takes: Duration) -> usize {
        let (start, random) = (Instant::now(), generator(11));
        let zones = Zones::new((0..4).map(|index| (index < 3, 1))).unwrap();
        let mut endpoints = Endpoints::ready(4, start);
        (0..2).for_each(|_| endpoints.estimates[3].succeeded(far_takes, start));
        let mut under_way = std::collections::VecDeque::new();
        let mut near = 0;
        for step in 0..1000 {
            let now = start + gap * step;
            while under_way.pop_front_if(|ends| *ends <= now).is_some() {
                endpoints.in_flight[3] -= 1;
                endpoints.estimates[3].succeeded(far_takes, now);
            }
            match zones.choose(&endpoints, cost, now, &random).unwrap().index {
                3 => {
                    endpoints.in_flight[3] += 1;
                    under_way.push_back(now + far_takes);
                }
                index => {
                    endpoints.estimates[index].failed(Duration::ZERO, now);
                    near += 1;
                }
            }
        }
        near
    }

    #[test]
    fn a_zone_that_fails_at_once_is_left_while_others_can_carry_it() {
        for cost in [Cost::PeakEwma, Cost::InFlight] {
            // Six in flight, however slow they are.
            let near = failing_near(cost, Duration::from_millis(100), Duration::from_millis(600));
            assert!(near < 300, "{cost:?}: {near} of 1000 fail");
            let near = failing_near(cost, Duration::from_millis(5), Duration::from_millis(10));
            assert!(near < 60, "{cost:?}: {near} of 1000 fail");
            // A hundred: too much, of which the zone gets no more than its share.
            let near = failing_near(cost, Duration::from_millis(6), Duration::from_millis(600));
            assert!((300..800).contains(&near), "{cost:?}: {near} of 1000 fail");
        }
    }

    #[test]
    fn what_is_too_much_for_it_goes_elsewhere() {
        // 10 ms at up to 4 in flight: 800/s near; 2,000/s are sent.
        let (near, far) = simulate(4, Duration::from_micros(500), 20, Duration::from_millis(11));
        let share = near as f64 / (near + far) as f64;
        assert!((0.25..0.75).contains(&share), "{near} near, {far} far");
    }

    #[test]
    fn a_zone_without_anybody_ready_loses_nothing() {
        let now = Instant::now();
        let zones = Zones::new((0..6).map(|index| (index < NEAR, 1))).unwrap();
        let mut endpoints = Endpoints::ready(6, now);
        endpoints.standings[0] = Standing::Draining;
        endpoints.standings[1] = Standing::Ejected;
        assert_eq!(zones.choose(&endpoints, Cost::PeakEwma, now, &generator(1)), None, "all are looked at");
        assert!(Zones::new([(true, 1), (true, 1)].into_iter()).is_none(), "all near");
        assert!(Zones::new([(false, 1), (false, 1)].into_iter()).is_none(), "none near");
    }

    #[test]
    fn a_zone_that_starts_slowly_gets_a_part() {
        let (now, random) = (Instant::now(), generator(7));
        let zones = Zones::new((0..6).map(|index| (index < 1, 1))).unwrap();
        let mut endpoints = Endpoints::ready(6, now);
        endpoints.warmth[0] = 0.2;
        let chosen = (0..1000).map(|_| zones.choose(&endpoints, Cost::PeakEwma, now, &random).unwrap().index);
        let near = chosen.filter(|index| *index == 0).count();
        assert!((150..250).contains(&near), "{near}");
    }

    #[test]
    fn far_endpoints_that_come_back_are_probed() {
        let now = Instant::now();
        let zones = Zones::new((0..4).map(|index| (index < NEAR, 1))).unwrap();
        let mut endpoints = Endpoints::ready(4, now);
        endpoints.standings[3] = Standing::ProbeDue;
        endpoints.probes.set(1);
        let random = generator(1);
        let chosen: Vec<_> = (0..50).map(|_| zones.choose(&endpoints, Cost::PeakEwma, now, &random).unwrap()).collect();
        assert_eq!(chosen.iter().filter(|choice| choice.index == 3 && choice.probe).count(), 1);
        assert!(chosen.iter().filter(|choice| !choice.probe).all(|choice| choice.index < NEAR));
    }
}
