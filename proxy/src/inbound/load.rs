//! How much one port of the application has to do, for clients that ask (Prequal): requests under way, and how long those of
//! late took when there were as many. Counted for the whole process, and only while somebody asks.

use std::{
    cell::Cell,
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{http::h2, upstream::outlier::millis};

/// Nobody has asked for so long: counting ends.
const FORGET: Duration = Duration::from_secs(60);
/// A latency that is older says nothing.
const STALE: Duration = Duration::from_secs(10);
/// Steps in which numbers of requests under way are told apart.
const LEVELS: usize = 32;
/// Latencies kept of each.
const SAMPLES: usize = 8;

/// See the module.
#[derive(Default)]
pub(crate) struct Load {
    /// [`millis`] and 1; 0: nobody ever asked.
    asked_at: AtomicU64,
    in_flight: AtomicU32,
    levels: [Level; LEVELS],
}

/// What requests took that found about so many others.
#[derive(Default)]
struct Level {
    /// Microseconds and 1; 0: none. A ring.
    samples: [AtomicU32; SAMPLES],
    next: AtomicU32,
    /// [`millis`] of the last.
    at: AtomicU64,
}

/// A request under way; counted until dropped.
pub(crate) struct Underway {
    load: Arc<Load>,
    level: usize,
    started: Instant,
    answered: Cell<bool>,
}

/// The load of one port of the application, which all workers share.
pub(super) fn of(application: SocketAddr) -> Arc<Load> {
    static ALL: LazyLock<Mutex<HashMap<SocketAddr, Weak<Load>>>> = LazyLock::new(Mutex::default);
    let mut all = ALL.lock();
    if let Some(load) = all.get(&application).and_then(Weak::upgrade) {
        return load;
    }
    all.retain(|_, load| load.strong_count() > 0);
    let load = Arc::new(Load::default());
    all.insert(application, Arc::downgrade(&load));
    load
}

impl Load {
    /// A request begins: counted if somebody asks.
    pub(crate) fn begin(self: &Arc<Self>, now: Instant) -> Option<Underway> {
        let asked_at = self.asked_at.load(Ordering::Relaxed).checked_sub(1)?;
        if millis(now).saturating_sub(asked_at) > FORGET.as_millis() as u64 {
            return None;
        }
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Some(Underway { load: Arc::clone(self), level: level(in_flight), started: now, answered: Cell::new(false) })
    }

    /// The answer to a client that asks.
    pub(crate) fn tell(&self, now: Instant) -> h2::Load {
        let now = millis(now);
        self.asked_at.store(now.saturating_add(1), Ordering::Relaxed);
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        // What it would be like for one more; else for as nearly as many as is known.
        let wanted = level(in_flight.saturating_add(1));
        let nearest = (0..LEVELS).find_map(|step| {
            let below = wanted.checked_sub(step).and_then(|level| self.levels.get(level));
            let above = self.levels.get(wanted + step);
            below.and_then(|level| level.median(now)).or_else(|| above.and_then(|level| level.median(now)))
        });
        h2::Load { in_flight, latency: nearest.unwrap_or(Duration::ZERO) }
    }
}

impl Underway {
    /// The head of its answer is there. None: that says nothing of how long answers take.
    pub(crate) fn answered(&self, now: Option<Instant>) {
        self.answered.set(true);
        let Some(now) = now else { return };
        if let Some(level) = self.load.levels.get(self.level) {
            level.add(now.saturating_duration_since(self.started), millis(now));
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if !self.answered.get() {
            // Its client left: the answer would have taken longer yet.
            self.answered(Some(Instant::now()));
        }
        self.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Level {
    fn add(&self, latency: Duration, now: u64) {
        let index = self.next.fetch_add(1, Ordering::Relaxed) as usize % SAMPLES;
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX).saturating_add(1);
        if let Some(sample) = self.samples.get(index) {
            sample.store(micros, Ordering::Relaxed);
        }
        self.at.store(now, Ordering::Relaxed);
    }

    /// None: nothing of late.
    fn median(&self, now: u64) -> Option<Duration> {
        if now.saturating_sub(self.at.load(Ordering::Relaxed)) > STALE.as_millis() as u64 {
            return None;
        }
        let mut sorted: [u32; SAMPLES] =
            std::array::from_fn(|index| self.samples.get(index).map_or(0, |sample| sample.load(Ordering::Relaxed)));
        sorted.sort_unstable();
        let known = sorted.iter().filter(|sample| **sample > 0).count();
        // Those that are not there come first.
        let median = sorted.get(SAMPLES - known + known / 2).copied()?;
        Some(Duration::from_micros(u64::from(median.saturating_sub(1))))
    }
}

/// Each number up to 15 has a level of its own, then each half of a power of two.
fn level(in_flight: u32) -> usize {
    if in_flight < 16 {
        return in_flight as usize;
    }
    let power = in_flight.ilog2();
    let half = (in_flight >> (power - 1)) & 1;
    (16 + (power as usize - 4) * 2 + half as usize).min(LEVELS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_counted_until_somebody_asks() {
        let (load, now) = (Arc::new(Load::default()), Instant::now() + Duration::from_secs(1));
        assert!(load.begin(now).is_none());
        assert_eq!(load.tell(now), h2::Load { in_flight: 0, latency: Duration::ZERO });
        let first = load.begin(now).unwrap();
        let second = load.begin(now).unwrap();
        first.answered(Some(now + Duration::from_millis(3)));
        second.answered(Some(now + Duration::from_millis(9)));
        drop(second);
        let told = load.tell(now + Duration::from_millis(9));
        assert_eq!(told.in_flight, 1);
        assert_eq!(told.latency, Duration::from_millis(9), "as for two at a time");
        drop(first);
        assert_eq!(load.tell(now).latency, Duration::from_millis(3), "as for one");
        load.begin(now).unwrap().answered(None);
        assert_eq!(load.tell(now).latency, Duration::from_millis(3), "what failed fast is not fast");
        assert_eq!(load.tell(now + STALE * 2).latency, Duration::ZERO, "long ago");
        assert!(load.begin(now + STALE * 2 + FORGET * 2).is_none(), "nobody asks any longer");
    }

    #[test]
    fn it_is_the_median_of_the_last() {
        let level = Level::default();
        for millis in [1, 2, 3, 400, 5, 6, 7, 8, 9] {
            level.add(Duration::from_millis(millis), 10);
        }
        assert_eq!(level.median(10), Some(Duration::from_millis(7)));
    }

    #[test]
    fn levels_grow_with_what_is_under_way() {
        let levels: Vec<usize> = (0..100_000).map(level).collect();
        assert!(levels.is_sorted() && levels.iter().all(|level| *level < LEVELS));
        assert_eq!((level(15), level(16), level(23), level(24), level(32)), (15, 16, 16, 17, 18));
    }
}
