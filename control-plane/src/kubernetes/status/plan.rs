//! Which objects are told what they are to be told first: news before counts of proxies, and both before comparing what should be as it
//! is. Pure.

use std::{
    collections::{BTreeMap, HashMap},
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
        let mut due: Vec<(Urgency, &ObjectKey)> = Vec::new();
        let mut plan = Plan::default();
        let mut later = |at: Instant| plan.again = Some(plan.again.map_or(at, |before| before.min(at)));
        for (key, verdict) in verdicts {
            let put_off = self.put_off.get(key).copied().filter(|at| *at > now);
            match put_off.map_or_else(|| self.due(key, verdict, now), Err) {
                Ok(urgency) => due.push((urgency, key)),
                Err(at) => later(at),
            }
        }
        // In the order of names, within each.
        due.sort_by_key(|(urgency, _)| *urgency);
        if due.len() > limits::STATUS_ROUND {
            later(now);
        }
        plan.now = due.into_iter().take(limits::STATUS_ROUND).map(|(_, key)| key.clone()).collect();
        plan
    }

    /// How urgent it is; or when it will be.
    fn due(&self, key: &ObjectKey, verdict: &Verdict, now: Instant) -> Result<Urgency, Instant> {
        let Some(told) = self.told.get(key) else {
            return match self.found.get(key) {
                Some(found) if !is_news(found, verdict) => Ok(Urgency::Compare),
                _ => Ok(Urgency::News),
            };
        };
        if is_news(&told.verdict, verdict) {
            return Ok(Urgency::News);
        }
        if told.verdict != *verdict {
            // How far it has come changes with every proxy.
            let at = told.at + limits::STATUS_COALESCE;
            return if at <= now { Ok(Urgency::Progress) } else { Err(at) };
        }
        if told.compare_at <= now { Ok(Urgency::Compare) } else { Err(told.compare_at) }
    }
}

/// More than how far it has come.
fn is_news(before: &Verdict, after: &Verdict) -> bool {
    (before.generation, &before.uid, &before.conditions) != (after.generation, &after.uid, &after.conditions)
}

/// How long a round that took so long to think is followed by a rest: it has a tenth of one CPU.
pub(super) fn rest_after(thinking: Duration) -> Duration {
    (thinking * 9).max(limits::STATUS_PACE)
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
    fn a_round_is_bounded() {
        let now = Instant::now();
        let many: Vec<String> = (0..limits::STATUS_ROUND + 1).map(|n| format!("r{n:04}")).collect();
        let all: BTreeMap<_, _> = many.iter().map(|name| (key(name), verdict(name, 1, 2))).collect();
        let plan = Memory::default().plan(&all, now);
        assert_eq!((plan.now.len(), plan.again), (limits::STATUS_ROUND, Some(now)));
    }
}
