//! Which streams have something that was made from a topic: whoever a change does not touch sleeps through it.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use super::tracker::StreamId;
use crate::model::{ByTopicId, TopicId};

/// Shared by all streams.
#[derive(Default)]
pub struct Interests {
    /// By topic: who, and in how many things.
    by_topic: Mutex<HashMap<TopicId, HashMap<StreamId, u32>, ByTopicId>>,
}

impl Interests {
    /// Something of a stream is made from `after`, and no longer from `before`.
    pub fn change(&self, stream: StreamId, before: &[TopicId], after: &[TopicId]) {
        let mut by_topic = self.by_topic.lock();
        for topic in after {
            match by_topic.get_mut(topic) {
                Some(streams) => *streams.entry(stream).or_default() += 1,
                None => drop(by_topic.insert(*topic, HashMap::from([(stream, 1)]))),
            }
        }
        for topic in before {
            let Some(streams) = by_topic.get_mut(topic) else { continue };
            if let Some(count) = streams.get_mut(&stream) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    streams.remove(&stream);
                }
            }
            if streams.is_empty() {
                by_topic.remove(topic);
            }
        }
    }

    /// Streams that a change of `topics` touches.
    pub fn in_any<'a>(&self, topics: impl IntoIterator<Item = &'a TopicId>) -> HashSet<StreamId> {
        let by_topic = self.by_topic.lock();
        topics.into_iter().filter_map(|topic| by_topic.get(topic)).flat_map(HashMap::keys).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Topic;

    fn topic(name: &str) -> TopicId {
        Topic::Service(name.into()).id()
    }

    #[test]
    fn counts_each_thing_and_forgets_what_nobody_has() {
        let interests = Interests::default();
        let [one, two] = [StreamId::of(1), StreamId::of(2)];
        let [a, b] = [topic("a"), topic("b")];
        interests.change(one, &[], &[a, b]);
        interests.change(one, &[], std::slice::from_ref(&a));
        interests.change(two, &[], std::slice::from_ref(&b));
        assert_eq!(interests.in_any([&a]), HashSet::from([one]));
        assert_eq!(interests.in_any([&a, &b, &topic("c")]), HashSet::from([one, two]));
        interests.change(one, &[a, b], std::slice::from_ref(&b));
        assert_eq!(interests.in_any([&a]), HashSet::from([one]));
        interests.change(one, std::slice::from_ref(&a), &[]);
        assert!(interests.in_any([&a]).is_empty());
        interests.change(one, std::slice::from_ref(&b), &[]);
        interests.change(two, std::slice::from_ref(&b), &[]);
        assert!(interests.by_topic.lock().is_empty());
    }
}
