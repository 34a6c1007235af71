//! Prequal (Wydrowski, Kleinberg, Rumble, Archer: "Load is not what you should balance", NSDI '24): endpoints are asked, beside
//! the requests, how many requests they have and how long those of late took at that number; a small pool of their answers is
//! chosen from. Whoever has more requests than most is hot, and taken only if all are; among the cold ones the fastest is taken.
//!
//! Differences from the paper: an endpoint is in the pool once, with its latest answer, which few requests use also where endpoints are
//! few; and failures seen by this proxy count as latency, so that what fails fast does not attract load.

use std::time::{Duration, Instant};

/// Answers kept at most.
const POOL: usize = 16;
/// Answers of late that say what is hot.
const HISTORY: usize = 128;
/// Times that one answer is used at most, however rare probes are.
const MOST_USES: f64 = 4.0;
/// Of what is asked, how much more than is used up (δ in the paper).
const SURPLUS: f64 = 1.0;

/// What policy says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Probes per hundred requests.
    pub probes_percent: u32,
    /// An older answer is not used.
    pub most_age: Duration,
    /// The share of endpoints, in percent, that at the usual distribution of requests are cold.
    pub cold_percent: u32,
}

impl Default for Settings {
    /// The paper's: three probes per request, a second, 2^-0.25.
    fn default() -> Self {
        Self { probes_percent: 300, most_age: Duration::from_secs(1), cold_percent: 84 }
    }
}

/// What an endpoint said of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Requests under way.
    pub in_flight: u32,
    /// What requests took of late, at about that number.
    pub latency: Duration,
    /// When it was heard.
    pub at: Instant,
}

/// One worker's answers from the endpoints of a set.
#[derive(Debug, Default)]
pub struct Pool {
    answers: Vec<Answer>,
    /// Requests in flight, as the latest answers had it: a ring.
    history: Vec<u32>,
    next: usize,
    /// Probes to be sent, in hundredths.
    owed: u32,
    /// The worst is to be dropped next; else the oldest.
    worst_next: bool,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    index: usize,
    report: Report,
    uses: u32,
}

impl Pool {
    /// Takes an endpoint's answer.
    pub fn take(&mut self, index: usize, report: Report) {
        match self.history.get_mut(self.next) {
            Some(oldest) => *oldest = report.in_flight,
            None => self.history.push(report.in_flight),
        }
        self.next = (self.next + 1) % HISTORY;
        let answer = Answer { index, report, uses: 0 };
        if let Some(held) = self.answers.iter_mut().find(|held| held.index == index) {
            *held = answer;
            return;
        }
        if self.answers.len() >= POOL {
            self.drop_oldest();
        }
        self.answers.push(answer);
    }

    /// The endpoint for a request: None if too little is known. `usable`: whether an endpoint may be chosen; `penalty`: seconds
    /// that it counts as at least. `count`: of the endpoints that might be chosen.
    pub fn choose(
        &mut self,
        settings: &Settings,
        count: usize,
        now: Instant,
        usable: impl Fn(usize) -> bool,
        penalty: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        self.answers.retain(|answer| now.saturating_duration_since(answer.report.at) <= settings.most_age);
        let hot = self.hot_from(settings.cold_percent);
        let mut known = 0;
        let mut best: Option<(bool, f64, usize)> = None;
        for answer in self.answers.iter().filter(|answer| usable(answer.index)) {
            known += 1;
            let latency = answer.report.latency.as_secs_f64().max(penalty(answer.index));
            let is_hot = answer.report.in_flight > hot;
            let cost = if is_hot { f64::from(answer.report.in_flight) + latency } else { latency };
            if best.is_none_or(|(hot, least, _)| (is_hot, cost) < (hot, least)) {
                best = Some((is_hot, cost, answer.index));
            }
        }
        let (.., chosen) = best.filter(|_| known >= count.min(2))?;
        self.used(chosen, uses(settings));
        self.drop_one();
        Some(chosen)
    }

    /// How many probes are to go out with this request.
    pub fn probes_due(&mut self, settings: &Settings) -> u32 {
        self.owed += settings.probes_percent;
        let due = self.owed / 100;
        self.owed %= 100;
        due
    }

    /// More requests in flight than this are hot.
    fn hot_from(&self, cold_percent: u32) -> u32 {
        let mut sorted: [u32; HISTORY] = [0; HISTORY];
        let count = self.history.len();
        let Some(sorted) = sorted.get_mut(..count).filter(|_| count > 0) else { return u32::MAX };
        sorted.copy_from_slice(&self.history);
        let rank = ((count - 1) * cold_percent as usize / 100).min(count - 1);
        *sorted.select_nth_unstable(rank).1
    }

    /// A request goes there, which its next answer would show.
    fn used(&mut self, index: usize, most: u32) {
        let Some(position) = self.answers.iter().position(|answer| answer.index == index) else { return };
        let Some(answer) = self.answers.get_mut(position) else { return };
        answer.uses += 1;
        answer.report.in_flight = answer.report.in_flight.saturating_add(1);
        if answer.uses >= most {
            self.answers.swap_remove(position);
        }
    }

    /// Old answers mislead, and the bad ones that nobody uses would be all that is left: with every request one goes.
    fn drop_one(&mut self) {
        // What the next requests choose from stays.
        if self.answers.len() <= POOL / 2 {
            return;
        }
        self.worst_next = !self.worst_next;
        if self.worst_next {
            let worst = |answer: &&Answer| (answer.report.in_flight, answer.report.latency);
            let worst = self.answers.iter().max_by_key(worst).map(|answer| answer.index);
            self.answers.retain(|answer| Some(answer.index) != worst);
        } else {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.answers.iter().min_by_key(|answer| answer.report.at).map(|answer| answer.index);
        self.answers.retain(|answer| Some(answer.index) != oldest);
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.answers.len()
    }
}

/// How often one answer may be used: once, unless probes are rare. Were it more, all clients would follow the same good answer
/// until it is no longer true.
fn uses(settings: &Settings) -> u32 {
    let rate = f64::from(settings.probes_percent.max(1)) / 100.0;
    ((1.0 + SURPLUS) / rate).ceil().clamp(1.0, MOST_USES) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(in_flight: u32, millis: u64, at: Instant) -> Report {
        Report { in_flight, latency: Duration::from_millis(millis), at }
    }

    fn choose(pool: &mut Pool, count: usize, now: Instant) -> Option<usize> {
        pool.choose(&Settings::default(), count, now, |_| true, |_| 0.0)
    }

    #[test]
    fn of_the_cold_the_fastest_and_of_the_hot_the_least_loaded() {
        let now = Instant::now();
        let mut pool = Pool::default();
        for (index, in_flight, latency) in [(0, 2, 30), (1, 3, 10), (2, 2, 20), (3, 50, 1), (4, 2, 25), (5, 3, 15)] {
            pool.take(index, report(in_flight, latency, now));
        }
        assert_eq!(choose(&mut pool, 100, now), Some(1), "the fastest, but for one that is hot");

        let mut pool = Pool::default();
        (0..100).for_each(|_| pool.take(9, report(1, 1, now)));
        pool.answers.clear();
        for (index, in_flight, latency) in [(0, 20, 1), (1, 12, 50), (2, 30, 2)] {
            pool.take(index, report(in_flight, latency, now));
        }
        assert_eq!(choose(&mut pool, 100, now), Some(1), "all are hot");
    }

    #[test]
    fn what_is_old_or_alone_says_nothing() {
        let start = Instant::now();
        let mut pool = Pool::default();
        assert_eq!(choose(&mut pool, 10, start), None);
        pool.take(0, report(1, 1, start));
        assert_eq!(choose(&mut pool, 10, start), None, "one answer is no choice");
        assert_eq!(choose(&mut pool, 1, start), Some(0), "but of one endpoint");
        pool.take(0, report(1, 1, start));
        pool.take(1, report(1, 2, start + Duration::from_millis(900)));
        assert_eq!(choose(&mut pool, 10, start + Duration::from_millis(1100)), None, "the first is too old");
    }

    #[test]
    fn failing_fast_is_not_being_fast() {
        let now = Instant::now();
        let mut pool = Pool::default();
        pool.take(0, report(1, 1, now));
        pool.take(1, report(1, 50, now));
        let penalty = |index| if index == 0 { 1.0 } else { 0.0 };
        assert_eq!(pool.choose(&Settings::default(), 10, now, |_| true, penalty), Some(1));
        let mut pool = Pool::default();
        pool.take(0, report(1, 1, now));
        pool.take(1, report(1, 50, now));
        pool.take(2, report(1, 60, now));
        assert_eq!(pool.choose(&Settings::default(), 10, now, |index| index != 0, |_| 0.0), Some(1), "not usable");
    }

    #[test]
    fn answers_are_used_up() {
        let now = Instant::now();
        let mut pool = Pool::default();
        for index in 0..POOL {
            pool.take(index, report(1, 10, now));
        }
        let uses_at = |probes_percent| uses(&Settings { probes_percent, ..Settings::default() });
        assert_eq!([uses_at(300), uses_at(200), uses_at(100), uses_at(50), uses_at(1)], [1, 1, 2, 4, 4]);
        let mut chosen = Vec::new();
        while let Some(index) = choose(&mut pool, 1000, now) {
            assert!(!chosen.contains(&index), "{index} is used again");
            chosen.push(index);
        }
        assert!(chosen.len() >= POOL / 2, "{chosen:?}");
        assert!(pool.held() <= 1);
    }

    #[test]
    fn probes_are_sent_at_the_rate_of_requests() {
        let mut pool = Pool::default();
        let settings = Settings { probes_percent: 250, ..Settings::default() };
        let sent: Vec<u32> = (0..4).map(|_| pool.probes_due(&settings)).collect();
        assert_eq!(sent, [2, 3, 2, 3]);
    }

    proptest! {
        #[test]
        fn the_pool_is_bounded_and_chooses_only_what_may_be(
            steps in proptest::collection::vec((0_usize..40, 0_u32..100, 0_u64..500, any::<bool>(), 0_u64..300), 1..200),
            banned in 0_usize..40,
        ) {
            let mut pool = Pool::default();
            let mut now = Instant::now();
            for (index, in_flight, latency, request, wait) in steps {
                now += Duration::from_millis(wait);
                pool.take(index, report(in_flight, latency, now));
                prop_assert!(pool.held() <= POOL);
                if request {
                    let settings = Settings::default();
                    let known: Vec<usize> = pool.answers.iter()
                        .filter(|answer| now - answer.report.at <= settings.most_age).map(|answer| answer.index).collect();
                    let chosen = pool.choose(&settings, 40, now, |index| index != banned, |_| 0.0);
                    if let Some(index) = chosen {
                        prop_assert!(index != banned && known.contains(&index));
                    }
                }
            }
        }
    }
}
