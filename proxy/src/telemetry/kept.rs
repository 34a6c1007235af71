//! Requests whose decisions are kept for operators who ask ([`crate::http::notes`]): the latest, within bounds of number, bytes
//! and time. Those that failed have room of their own, so that what is merely sampled drives none of them out.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::Instant,
};

use arc_swap::ArcSwap;
use leno_proto::v1::{CarriedRequest, RequestsToFind};
use parking_lot::Mutex;
use prost::Message as _;

use crate::{config::limits, policy::Explain};

/// See the module. Shared by all workers; its locks are taken only for requests that are kept.
#[derive(Debug)]
pub struct Kept {
    failed: Mutex<Ring>,
    others: Mutex<Ring>,
    allowances: [Allowance; 2],
    /// Bits of what [`Self::follow`] was told, so that a request for which nothing is to be kept costs one load.
    wanted: AtomicU8,
    headers: ArcSwap<Vec<Box<str>>>,
    begun: Instant,
}

/// Requests that are sampled by trace.
const SAMPLED: u8 = 1;
/// Requests with certain headers.
const HEADERS: u8 = 2;

/// Of which requests notes are taken from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted(u8);

impl Wanted {
    pub fn sampled(self) -> bool {
        self.0 & SAMPLED != 0
    }

    pub fn by_header(self) -> bool {
        self.0 & HEADERS != 0
    }
}

/// What a request is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something went wrong.
    Failure,
    Other,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            failed: Mutex::default(),
            others: Mutex::default(),
            allowances: Default::default(),
            wanted: AtomicU8::new(SAMPLED),
            headers: ArcSwap::default(),
            begun: Instant::now(),
        }
    }
}

impl Kept {
    /// Takes over what the mesh's settings say.
    pub fn follow(&self, explain: &Explain) {
        let mut wanted = if explain.sampled { SAMPLED } else { 0 };
        if !explain.headers.is_empty() {
            wanted |= HEADERS;
        }
        self.headers.store(explain.headers.clone());
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    pub fn wanted(&self) -> Wanted {
        Wanted(self.wanted.load(Ordering::Relaxed))
    }

    /// Names of headers, in lower case, whose bearers are kept.
    pub fn headers(&self) -> arc_swap::Guard<std::sync::Arc<Vec<Box<str>>>> {
        self.headers.load()
    }

    /// Whether notes may be taken of one more request.
    pub fn allows(&self, cause: Cause, now: Instant) -> bool {
        let [failures, others] = &self.allowances;
        let allowance = if cause == Cause::Failure { failures } else { others };
        allowance.take(now.saturating_duration_since(self.begun).as_secs())
    }

    /// Keeps a request that ended.
    pub fn put(&self, request: CarriedRequest, now: Instant) {
        let ring = if request.failed { &self.failed } else { &self.others };
        ring.lock().put(request, now);
    }

    /// The requests that are asked for, the latest first, as many as fit into an answer.
    pub fn find(&self, wanted: &RequestsToFind, now: Instant) -> Vec<CarriedRequest> {
        let most = if wanted.most == 0 { usize::MAX } else { wanted.most as usize };
        let mut found = self.failed.lock().find(wanted, most, now);
        if !wanted.failed {
            found.extend(self.others.lock().find(wanted, most, now));
        }
        found.sort_by_key(|request| std::cmp::Reverse(request.began_us));
        found.truncate(most);
        let mut room = limits::ANSWER_BYTES;
        let fits = |request: &CarriedRequest| {
            let size = request.encoded_len();
            room.checked_sub(size).map(|left| room = left).is_some()
        };
        found.into_iter().take_while(fits).collect()
    }

    /// Forgets what is too old.
    pub fn sweep(&self, now: Instant) {
        self.failed.lock().age(now);
        self.others.lock().age(now);
    }
}

/// The oldest first.
#[derive(Debug, Default)]
struct Ring {
    requests: VecDeque<Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    request: CarriedRequest,
    since: Instant,
    bytes: usize,
}

impl Ring {
    fn put(&mut self, request: CarriedRequest, now: Instant) {
        self.age(now);
        let bytes = request.encoded_len();
        self.bytes += bytes;
        self.requests.push_back(Entry { request, since: now, bytes });
        while self.requests.len() > limits::KEPT_REQUESTS || self.bytes > limits::KEPT_BYTES {
            self.drop_oldest();
        }
    }

    fn age(&mut self, now: Instant) {
        let old = |entry: &Entry| now.saturating_duration_since(entry.since) >= limits::KEPT_FOR;
        while self.requests.front().is_some_and(old) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(entry) = self.requests.pop_front() {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }

    fn find(&mut self, wanted: &RequestsToFind, most: usize, now: Instant) -> Vec<CarriedRequest> {
        self.age(now);
        let fits = |request: &&CarriedRequest| {
            (wanted.id.is_empty() || wanted.id == request.id)
                && (!wanted.failed || request.failed)
                && wanted.header.as_ref().is_none_or(|header| request.headers.contains(header))
        };
        self.requests.iter().rev().map(|entry| &entry.request).filter(fits).take(most).cloned().collect()
    }
}

/// So many per second, counted by whole seconds.
#[derive(Debug, Default)]
struct Allowance {
    /// The second in the upper half, what was taken in it in the lower.
    taken: AtomicU64,
}

impl Allowance {
    fn take(&self, second: u64) -> bool {
        let step = |held: u64| match (held >> 32 == second, held & u64::from(u32::MAX)) {
            (true, taken) if taken >= limits::KEPT_PER_SECOND => None,
            (true, _) => Some(held + 1),
            (false, _) => Some(second << 32 | 1),
        };
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leno_proto::v1::{Decision, Header};

    use super::*;

    fn request(id: u8, failed: bool) -> CarriedRequest {
        CarriedRequest { id: vec![id; 16], failed, began_us: id.into(), ..CarriedRequest::default() }
    }

    fn ids(found: &[CarriedRequest]) -> Vec<u8> {
        found.iter().filter_map(|request| request.id.first().copied()).collect()
    }

    #[test]
    fn requests_are_found_by_what_is_asked() {
        let (kept, now) = (Kept::default(), Instant::now());
        let header = Header { name: "x-order".into(), value: "7".into() };
        kept.put(request(1, true), now);
        kept.put(CarriedRequest { headers: vec![header.clone()], ..request(2, false) }, now);
        kept.put(request(3, true), now);
        let all = RequestsToFind::default();
        assert_eq!(ids(&kept.find(&all, now)), [3, 2, 1]);
        assert_eq!(ids(&kept.find(&RequestsToFind { failed: true, most: 1, ..all.clone() }, now)), [3]);
        assert_eq!(ids(&kept.find(&RequestsToFind { header: Some(header), ..all.clone() }, now)), [2]);
        assert_eq!(ids(&kept.find(&RequestsToFind { id: vec![1; 16], ..all.clone() }, now)), [1]);
        kept.sweep(now + limits::KEPT_FOR);
        assert!(kept.find(&all, now).is_empty());
    }

    #[test]
    fn room_is_bounded_and_others_drive_out_no_failure() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.put(request(1, true), now);
        let text = "x".repeat(limits::KEPT_REQUEST_BYTES);
        for _ in 0..2 * limits::KEPT_REQUESTS {
            let decision = Decision { text: text.clone(), ..Decision::default() };
            kept.put(CarriedRequest { decisions: vec![decision], ..request(2, false) }, now);
        }
        let (failed, others) = (kept.failed.lock(), kept.others.lock());
        assert!(failed.requests.len() == 1 && others.requests.len() <= limits::KEPT_REQUESTS);
        assert!(others.bytes <= limits::KEPT_BYTES);
        drop((failed, others));
        let told: usize = kept.find(&RequestsToFind::default(), now).iter().map(|one| one.encoded_len()).sum();
        assert!(told <= limits::ANSWER_BYTES);
    }

    #[test]
    fn so_many_per_second() {
        let kept = Kept::default();
        let at = |millis| kept.begun + Duration::from_millis(millis);
        let taken = |now| (0..1000).filter(|_| kept.allows(Cause::Failure, now)).count() as u64;
        assert_eq!(taken(at(100)), limits::KEPT_PER_SECOND);
        assert!(kept.allows(Cause::Other, at(100)), "each cause has its own");
        assert_eq!((taken(at(900)), taken(at(1100))), (0, limits::KEPT_PER_SECOND));
    }
}
