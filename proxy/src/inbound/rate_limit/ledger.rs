//! Who has spent how much of a limit: one bucket, or one for each key, in bounded room. This is the seam for limits that
//! replicas share: whoever keeps the books elsewhere answers [`Ledger::take`], [`Ledger::put_back`] and [`Ledger::full_at`].
//!
//! A bucket that is full is the same as none, so those are what is forgotten to make room, and nothing else: no client
//! gets its spent tokens back by making keys until its own is forgotten. Keys for which there is no room share one
//! bucket, so that a flood of new keys gets no more, all together, than one key does. Keys are held as 64 bits of a hash
//! with a secret of this process: nobody can choose keys that collide, and long ones take no room.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use super::bucket::Rate;
use crate::config::limits;

/// Locks that keys share out, so that workers seldom meet.
const SHARDS: usize = 16;

/// Shared by all workers.
#[derive(Debug)]
pub struct Ledger {
    secret: RandomState,
    /// That of a limit without keys; else the one that keys without a bucket of their own share.
    shared: AtomicU64,
    /// By key: when its bucket will be full. Empty without keys.
    shards: Box<[Mutex<HashMap<u64, u64>>]>,
}

/// The bucket that a token was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    Shared,
    Own(u64),
}

impl Ledger {
    pub fn new(keyed: bool) -> Self {
        let shards = if keyed { SHARDS } else { 0 };
        Self {
            secret: RandomState::new(),
            shared: AtomicU64::new(0),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
        }
    }

    /// What stands for a key.
    pub fn key(&self, parts: &[u8]) -> u64 {
        self.secret.hash_one(parts)
    }

    /// What stands for a header's values. An empty one is not the same as none.
    pub fn header_key<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> u64 {
        let mut hasher = self.secret.build_hasher();
        for value in values {
            hasher.write_u8(1);
            hasher.write_usize(value.len());
            hasher.write(value);
        }
        hasher.finish()
    }

    /// Takes a token: from where, and when that bucket will be full; or how long until there is one.
    pub fn take(&self, rate: &Rate, key: u64, now: u64) -> Result<(Bucket, u64), u64> {
        let Some(shard) = self.shard(key) else { return self.take_shared(rate, now) };
        let mut buckets = shard.lock();
        if let Some(full_at) = buckets.get_mut(&key) {
            *full_at = rate.take(*full_at, now)?;
            return Ok((Bucket::Own(key), *full_at));
        }
        if buckets.len() == buckets.capacity() || buckets.len() >= limits::RATE_LIMIT_KEYS / SHARDS {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= limits::RATE_LIMIT_KEYS / SHARDS {
                drop(buckets);
                return self.take_shared(rate, now);
            }
        }
        let full_at = rate.take(0, now)?;
        buckets.insert(key, full_at);
        Ok((Bucket::Own(key), full_at))
    }

    fn take_shared(&self, rate: &Rate, now: u64) -> Result<(Bucket, u64), u64> {
        let mut full_at = self.shared.load(Ordering::Relaxed);
        loop {
            let taken = rate.take(full_at, now)?;
            match self.shared.compare_exchange_weak(full_at, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok((Bucket::Shared, taken)),
                Err(seen) => full_at = seen,
            }
        }
    }

    /// Puts back what [`Self::take`] took.
    pub fn put_back(&self, rate: &Rate, bucket: Bucket) {
        match bucket {
            Bucket::Shared => {
                let put = |full_at| Some(rate.put_back(full_at));
                let _ = self.shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, put);
            }
            Bucket::Own(key) => {
                if let Some(shard) = self.shard(key)
                    && let Some(full_at) = shard.lock().get_mut(&key)
                {
                    *full_at = rate.put_back(*full_at);
                }
            }
        }
    }

    /// When the bucket of a key will be full.
    pub fn full_at(&self, key: u64) -> u64 {
        let own = self.shard(key).and_then(|shard| {
            let buckets = shard.lock();
            let has_room = buckets.len() < limits::RATE_LIMIT_KEYS / SHARDS;
            buckets.get(&key).copied().or_else(|| has_room.then_some(0))
        });
        own.unwrap_or_else(|| self.shared.load(Ordering::Relaxed))
    }

    /// Keys that have a bucket of their own.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, key: u64) -> Option<&Mutex<HashMap<u64, u64>>> {
        // The upper bits: the map inside uses others.
        let index = (key >> 32) as usize % self.shards.len().max(1);
        self.shards.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate() -> Rate {
        Rate::new(1, 1, 2).unwrap()
    }

    fn spend(ledger: &Ledger, key: &[u8], now: u64) -> u32 {
        let key = ledger.key(key);
        std::iter::repeat_with(|| ledger.take(&rate(), key, now)).take_while(Result::is_ok).count() as u32
    }

    #[test]
    fn one_bucket_or_one_for_each_key() {
        let one = Ledger::new(false);
        assert_eq!((spend(&one, b"a", SECOND), spend(&one, b"b", SECOND)), (2, 0));
        assert_eq!(one.keys(), 0);
        let keyed = Ledger::new(true);
        assert_eq!((spend(&keyed, b"a", SECOND), spend(&keyed, b"b", SECOND)), (2, 2));
        assert_eq!((spend(&keyed, b"a", 2 * SECOND), keyed.keys()), (1, 2));
    }

    #[test]
    fn what_is_put_back_can_be_taken_again() {
        for ledger in [Ledger::new(false), Ledger::new(true)] {
            let key = ledger.key(b"a");
            let (bucket, _) = ledger.take(&rate(), key, SECOND).unwrap();
            ledger.put_back(&rate(), bucket);
            assert_eq!(spend(&ledger, b"a", SECOND), 2);
            assert_eq!(rate().wait(ledger.full_at(key), SECOND), SECOND);
        }
    }

    /// However many keys a client makes: room is bounded, its spent key stays spent, and beyond the table its keys
    /// share one bucket.
    #[test]
    fn keys_are_bounded_and_none_escapes() {
        let ledger = Ledger::new(true);
        assert_eq!(spend(&ledger, b"victim", SECOND), 2);
        let made = 4 * limits::RATE_LIMIT_KEYS;
        let admitted: u32 = (0..made).map(|n| spend(&ledger, &n.to_be_bytes(), SECOND)).sum();
        assert!(ledger.keys() <= limits::RATE_LIMIT_KEYS);
        assert!(admitted as usize <= 2 * (limits::RATE_LIMIT_KEYS + 1), "{admitted}");
        assert_eq!(spend(&ledger, b"victim", SECOND), 0, "not forgotten");
        // What is full again is the same as new, and makes room.
        assert_eq!(spend(&ledger, b"late", 10 * SECOND), 2);
        assert!(ledger.keys() < limits::RATE_LIMIT_KEYS);
        assert_eq!(spend(&ledger, b"victim", 10 * SECOND), 2);
    }
}
