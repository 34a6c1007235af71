//! When the API server was last heard of each kind, and how often it failed: for metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use super::resources::ALL;
use crate::model::Kind;

/// Of every kind that is read.
#[derive(Debug, Default)]
pub struct Contacts([Contact; ALL.len()]);

/// Of one kind.
#[derive(Debug, Default)]
pub struct Contact {
    /// Unix time, seconds.
    last: AtomicU64,
    failures: AtomicU64,
}

impl Contacts {
    /// Of a kind that is read.
    pub fn of(&self, kind: Kind) -> &Contact {
        let Self([first, ..]) = self;
        let found = ALL.iter().zip(&self.0).find(|(resource, _)| resource.kind == kind);
        // Every kind is among them.
        found.map_or(first, |(_, contact)| contact)
    }

    /// By kind.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Contact)> {
        ALL.iter().zip(&self.0).map(|(resource, contact)| (resource.kind.as_str(), contact))
    }
}

impl Contact {
    /// The API server said something, be it a bookmark.
    pub fn heard(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.store(now.as_secs(), Relaxed);
    }

    pub fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// Unix time, seconds; 0: never.
    pub fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }

    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}
