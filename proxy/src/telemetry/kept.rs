//! Requests whose decisions are kept for operators who ask ([`crate::http::notes`]): the latest, within bounds of number, bytes
//! and time. What each is kept for ([`Cause`]) has room and an allowance of its own, so that what is merely sampled drives out no
//! failure, clients that are refused drive out nothing that is broken, and who asks for a request by header finds it.

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
    rooms: [Room; 5],
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
    /// Its client was refused for what it sent, or left.
    Refusal,
    /// It has a header that is asked for.
    Header,
    /// No request: a connection that was not let in.
    Connection,
    Other,
}

/// Of one cause.
#[derive(Debug, Default)]
struct Room {
    ring: Mutex<Ring>,
    allowance: Allowance,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            rooms: Default::default(),
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
        self.room(cause).allowance.take(now.saturating_duration_since(self.begun).as_secs())
    }

    /// Keeps a request that ended.
    pub fn put(&self, request: CarriedRequest, cause: Cause, now: Instant) {
        self.room(cause).ring.lock().put(request, now);
    }

    fn room(&self, cause: Cause) -> &Room {
        let [failures, refusals, by_header, connections, others] = &self.rooms;
        match cause {
            Cause::Failure => failures,
            Cause::Refusal => refusals,
            Cause::Header => by_header,
            Cause::Connection => connections,
            Cause::Other => others,
        }
    }

    /// The requests that are asked for, the latest first, as many as fit into an answer; and how many did not.
    pub fn find(&self, wanted: &RequestsToFind, now: Instant) -> (Vec<CarriedRequest>, u32) {
        let most = if wanted.most == 0 { usize::MAX } else { wanted.most as usize };
        let mut found: Vec<CarriedRequest> = Vec::new();
        for room in &self.rooms {
            found.extend(room.ring.lock().find(wanted, most, now));
        }
        found.sort_by_key(|request| std::cmp::Reverse(request.began_us));
        found.truncate(most);
        let mut room = limits::ANSWER_BYTES;
        let fits = |request: &CarriedRequest| {
            let size = request.encoded_len();
            room.checked_sub(size).map(|left| room = left).is_some()
        };
        let count = found.len();
        let fitting: Vec<_> = found.into_iter().take_while(fits).collect();
        let left_out = count.saturating_sub(fitting.len());
        (fitting, left_out.try_into().unwrap_or(u32::MAX))
    }

    /// Forgets what is too old.
    pub fn sweep(&self, now: Instant) {
        self.rooms.iter().for_each(|room| room.ring.lock().age(now));
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
                && (!wanted.connection || request.connection)
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

    fn ids((found, _): &(Vec<CarriedRequest>, u32)) -> Vec<u8> {
        found.iter().filter_map(|request| request.id.first().copied()).collect()
    }

    #[test]
    fn requests_are_found_by_what_is_asked() {
        let (kept, now) = (Kept::default(), Instant::now());
        let header = Header { name: "x-order".into(), value: "7".into() };
        kept.put(request(1, true), Cause::Refusal, now);
        kept.put(CarriedRequest { headers: vec![header.clone()], ..request(2, false) }, Cause::Header, now);
        kept.put(request(3, true), Cause::Failure, now);
        let all = RequestsToFind::default();
        assert_eq!(ids(&kept.find(&all, now)), [3, 2, 1]);
        assert_eq!(ids(&kept.find(&RequestsToFind { failed: true, most: 1, ..all.clone() }, now)), [3]);
        assert_eq!(ids(&kept.find(&RequestsToFind { header: Some(header), ..all.clone() }, now)), [2]);
        assert_eq!(ids(&kept.find(&RequestsToFind { id: vec![1; 16], ..all.clone() }, now)), [1]);
        kept.put(CarriedRequest { connection: true, ..request(4, false) }, Cause::Connection, now);
        assert_eq!(ids(&kept.find(&RequestsToFind { connection: true, ..all.clone() }, now)), [4]);
        kept.sweep(now + limits::KEPT_FOR);
        assert!(kept.find(&all, now).0.is_empty());
    }

    #[test]
    fn room_is_bounded_and_what_is_kept_for_one_cause_drives_out_nothing_else() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.put(request(1, true), Cause::Failure, now);
        kept.put(request(3, true), Cause::Refusal, now);
        kept.put(request(4, false), Cause::Header, now);
        kept.put(CarriedRequest { connection: true, ..request(5, false) }, Cause::Connection, now);
        let text = "x".repeat(limits::KEPT_REQUEST_BYTES);
        for _ in 0..2 * limits::KEPT_REQUESTS {
            let decision = Decision { text: text.clone(), ..Decision::default() };
            kept.put(CarriedRequest { decisions: vec![decision], ..request(2, false) }, Cause::Other, now);
        }
        let [failed, refused, by_header, connections, others] = kept.rooms.each_ref().map(|room| room.ring.lock());
        for few in [failed, refused, by_header, connections] {
            assert_eq!(few.requests.len(), 1);
        }
        let held = others.requests.len();
        assert!(held <= limits::KEPT_REQUESTS && others.bytes <= limits::KEPT_BYTES);
        drop(others);
        let (found, left_out) = kept.find(&RequestsToFind::default(), now);
        assert!(found.iter().map(|one| one.encoded_len()).sum::<usize>() <= limits::ANSWER_BYTES);
        assert_eq!(found.len() + left_out as usize, held + 4, "what does not fit is counted");
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
