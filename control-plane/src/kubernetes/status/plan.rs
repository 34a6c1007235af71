//! Which objects are told what they are to be told first: news before counts of proxies, and both before comparing what should be as it
//! is. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::Verdict;
use crate::{kubernetes::limits, model::ObjectKey};

/// What was last told, and when.
pub(super) struct Told {
    pub(super) verdict: Verdict,
    pub(super) at: Instant,
    /// When it is compared with what the API server has, whether there are news or not.
    pub(super) compare_at: Instant,
}

impl Told {
    /// `spread`: from 0 to 1, drawn for each object, so that they are not all compared at once.
    pub(super) fn now(verdict: Verdict, now: Instant, spread: f64) -> Self {
        Self { verdict, at: now, compare_at: now + limits::STATUS_RESYNC.mul_f64(0.5 + 0.5 * spread) }
    }
}

/// What is known of earlier rounds.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) told: HashMap<ObjectKey, Told>,
    /// As it was when this replica came to lead, of objects that it has told nothing yet: most say already what they should.
    pub(super) found: HashMap<ObjectKey, Verdict>,
    /// What did not work out is tried again then.
    pub(super) put_off: HashMap<ObjectKey, Instant>,
}

/// What is done in a round.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// The most urgent first, [`limits::STATUS_ROUND`] at most.
    pub(super) now: Vec<ObjectKey>,
    /// When there is something to do after that; None: when there are news.
    pub(super) again: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Another generation, or something else is said of it.
    News,
    /// Proxies run it, or do no more.
    Progress,
    Compare,
}

impl Memory {
    /// Forgets objects of which nothing is to be said any more.
    pub(super) fn retain(&mut self, verdicts: &BTreeMap<ObjectKey, Verdict>) {
        self.found.retain(|key, _| verdicts.contains_key(key));
        self.put_off.retain(|key, _| verdicts.contains_key(key) || self.told.contains_key(key));
    }

    pub(super) fn plan(&self, verdicts: &BTreeMap<ObjectKey, Verdict>, now: Instant) -> Plan {
        // The longest due first, within each: the same names must not come first in every round.
        let mut due: BTreeSet<(Urgency, Option<Instant>, &ObjectKey)> = BTreeSet::new();
        let mut plan = Plan::default();
        let mut later = |at: Instant| plan.again = Some(plan.again.map_or(at, |before| before.min(at)));
        for (key, verdict) in verdicts {
            let put_off = self.put_off.get(key).copied().filter(|at| *at > now);
            match put_off.map_or_else(|| self.due(key, verdict, now), Err) {
                Ok((urgency, since)) => drop(due.insert((urgency, since, key))),
                Err(at) => later(at),
            }
        }
        if due.len() > limits::STATUS_ROUND {
            later(now);
        }
        let of = |urgency: Urgency| due.iter().filter(move |(of, ..)| *of == urgency).map(|(.., key)| (*key).clone());
        // Each has its share of a round, however much there is of what is more urgent.
        let share = |urgency: Urgency| of(urgency).count().min(limits::STATUS_SHARE);
        let compare = share(Urgency::Compare);
        let progress = share(Urgency::Progress);
        plan.now = of(Urgency::News).take(limits::STATUS_ROUND - progress - compare).collect();
        plan.now.extend(of(Urgency::Progress).take(limits::STATUS_ROUND - compare - plan.now.len()));
        plan.now.extend(of(Urgency::Compare).take(limits::STATUS_ROUND - plan.now.len()));
        plan
    }

    /// How urgent it is, and since when (None: it was never told anything); or when it will be.
    fn due(&self, key: &ObjectKey, verdict: &Verdict, now: Instant) -> Result<(Urgency, Option<Instant>), Instant> {
        let Some(told) = self.told.get(key) else {
            return match self.found.get(key) {
                Some(found) if !is_news(found, verdict) => Ok((Urgency::Compare, None)),
                _ => Ok((Urgency::News, None)),
            };
        };
        if is_news(&told.verdict, verdict) {
            return Ok((Urgency::News, Some(told.at)));
        }
        if told.verdict != *verdict {
            // How far it has come changes with every proxy.
            let at = told.at + limits::STATUS_COALESCE;
            return if at <= now { Ok((Urgency::Progress, Some(at))) } else { Err(at) };
        }
        let at = told.compare_at;
        // Some seconds late, so that one look serves for all that are due by then.
        if at <= now { Ok((Urgency::Compare, Some(at))) } else { Err(at + limits::STATUS_COMPARE_BATCH) }
    }
}

/// More than how far it has come.
fn is_news(before: &Verdict, after: &Verdict) -> bool {
    (before.generation, &before.uid, &before.conditions) != (after.generation, &after.uid, &after.conditions)
}

/// How long a round that took so long to think is followed by a rest: it has a tenth of one CPU, unless that would take too long.
pub(super) fn rest_after(thinking: Duration) -> Duration {
    (thinking * 9).clamp(limits::STATUS_PACE, limits::STATUS_REST)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        kubernetes::status::Standing,
        model::{Kind, ObjectInfo},
    };

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::HttpRoute, namespace: "shop".into(), name: name.into() }
    }

    fn verdict(name: &str, generation: u64, programmed: u32) -> Verdict {
        let info = ObjectInfo {
            key: key(name),
            generation,
            uid: Arc::default(),
            source: String::new(),
            held_over: false,
            conditions: Vec::new(),
        };
        Verdict::in_force(&info, &Standing { subscribed: 2, programmed, settled: true, ..Standing::default() })
    }

    fn verdicts(all: &[(&str, u64, u32)]) -> BTreeMap<ObjectKey, Verdict> {
        all.iter().map(|(name, generation, programmed)| (key(name), verdict(name, *generation, *programmed))).collect()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.now.iter().map(|key| &*key.name).collect()
    }

    #[test]
    fn news_come_first_and_what_is_compared_last() {
        let now = Instant::now();
        let mut memory = Memory::default();
        let first = verdicts(&[("a", 1, 2), ("b", 1, 2), ("c", 1, 2), ("d", 1, 2)]);
        memory.found = first.clone().into_iter().collect();
        assert_eq!(names(&memory.plan(&first, now)), ["a", "b", "c", "d"]);
        memory.told.insert(key("b"), Told::now(verdict("b", 1, 2), now, 0.0));
        // One that has changed since, one that was made since, and one whose proxies moved on.
        let later = now + limits::STATUS_COALESCE;
        let then = verdicts(&[("a", 1, 2), ("b", 1, 1), ("c", 2, 2), ("d", 1, 2), ("new", 1, 2)]);
        assert_eq!(names(&memory.plan(&then, later)), ["c", "new", "b", "a", "d"]);
        let soon = memory.plan(&then, now);
        assert_eq!((names(&soon), soon.again), (vec!["c", "new", "a", "d"], Some(later)));
    }

    #[test]
    fn what_is_told_is_compared_again_some_day_and_what_failed_keeps_nobody_waiting() {
        let now = Instant::now();
        let mut memory = Memory::default();
        let all = verdicts(&[("a", 1, 2), ("b", 1, 2)]);
        memory.told.insert(key("a"), Told::now(verdict("a", 1, 2), now, 1.0));
        memory.put_off.insert(key("b"), now + limits::RETRY);
        assert_eq!(memory.plan(&all, now), Plan { now: vec![], again: Some(now + limits::RETRY) });
        assert_eq!(names(&memory.plan(&all, now + limits::STATUS_RESYNC)), ["b", "a"]);
    }

    #[test]
    fn one_look_serves_for_all_that_are_due_to_be_compared_about_then() {
        let now = Instant::now();
        let mut memory = Memory::default();
        let all = verdicts(&[("a", 1, 2), ("b", 1, 2)]);
        memory.told.insert(key("a"), Told::now(verdict("a", 1, 2), now, 0.0));
        memory.told.insert(key("b"), Told::now(verdict("b", 1, 2), now + Duration::from_secs(9), 0.0));
        let again = memory.plan(&all, now).again.unwrap();
        assert_eq!(names(&memory.plan(&all, again)), ["a", "b"]);
        assert_eq!(rest_after(Duration::ZERO), limits::STATUS_PACE);
        assert_eq!(rest_after(Duration::from_millis(100)), Duration::from_millis(900));
        assert_eq!(rest_after(Duration::from_secs(3)), limits::STATUS_REST);
    }

    #[test]
    fn a_round_is_bounded() {
        let now = Instant::now();
        let many: Vec<String> = (0..limits::STATUS_ROUND + 1).map(|n| format!("r{n:04}")).collect();
        let all: BTreeMap<_, _> = many.iter().map(|name| (key(name), verdict(name, 1, 2))).collect();
        let plan = Memory::default().plan(&all, now);
        assert_eq!((plan.now.len(), plan.again), (limits::STATUS_ROUND, Some(now)));
    }

    #[test]
    fn however_many_there_are_everyone_gets_a_turn() {
        let mut now = Instant::now();
        let many: Vec<String> = (0..limits::STATUS_ROUND + 10).map(|n| format!("r{n:04}")).collect();
        let at = |programmed: u32| -> BTreeMap<ObjectKey, Verdict> {
            let moving = many.iter().map(|name| (key(name), verdict(name, 1, programmed)));
            moving.chain([(key("compared"), verdict("compared", 1, 2))]).collect()
        };
        let mut memory = Memory::default();
        memory.told.extend(at(0).into_iter().map(|(key, verdict)| (key, Told::now(verdict, now, 0.0))));
        now += limits::STATUS_RESYNC;
        let mut told: Vec<String> = Vec::new();
        // A round takes longer than the rest between two words of progress, and meanwhile everything has moved on.
        for round in 1..=2 {
            let verdicts = at(round);
            let plan = memory.plan(&verdicts, now);
            assert_eq!(plan.now.len(), limits::STATUS_ROUND);
            for key in plan.now {
                told.push(key.name.to_string());
                memory.told.insert(key.clone(), Told::now(verdicts[&key].clone(), now, 1.0));
            }
            now += Duration::from_secs(5);
        }
        let missing: Vec<_> = many.iter().filter(|name| !told.contains(name)).collect();
        assert!(missing.is_empty(), "never told: {missing:?}");
        assert!(told.contains(&"compared".to_owned()), "comparing has its share");
        // Nor do news keep them all out.
        let news = many.iter().map(|name| (key(name), verdict(name, 2, 2)));
        let verdicts: BTreeMap<_, _> = news.chain([(key("compared"), verdict("compared", 1, 1))]).collect();
        let plan = memory.plan(&verdicts, now + limits::STATUS_COALESCE);
        assert_eq!((plan.now.len(), names(&plan).last()), (limits::STATUS_ROUND, Some(&"compared")));
    }
}
