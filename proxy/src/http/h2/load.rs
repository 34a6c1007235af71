//! How much a server has to do, asked for and told between proxies of the mesh on the connections that carry requests: a frame of
//! our own each way, which streams do not wait for.

use std::{
    cell::Cell,
    fmt,
    rc::Rc,
    time::{Duration, Instant},
};

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests under way.
    pub in_flight: u32,
    /// What requests took of late, at about that number.
    pub latency: Duration,
}

/// Where a server finds its load, if it tells of it.
#[derive(Clone, Default)]
pub struct Reports(Option<Rc<dyn Fn() -> Load>>);

/// Where a client puts what it hears: the latest, and when.
#[derive(Debug, Clone, Default)]
pub struct Heard(Rc<Cell<Option<(Load, Instant)>>>);

impl Reports {
    pub fn of(load: impl Fn() -> Load + 'static) -> Self {
        Self(Some(Rc::new(load)))
    }

    pub fn are_given(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn now(&self) -> Option<Load> {
        self.0.as_ref().map(|load| load())
    }
}

impl Heard {
    pub(super) fn hear(&self, load: Load, now: Instant) {
        self.0.set(Some((load, now)));
    }

    /// What was heard since it was last taken.
    pub fn take(&self) -> Option<(Load, Instant)> {
        self.0.take()
    }
}

impl Load {
    /// As a frame has it: requests, then microseconds.
    pub(super) fn to_bytes(self) -> [u8; 8] {
        let micros = u32::try_from(self.latency.as_micros()).unwrap_or(u32::MAX);
        (u64::from(self.in_flight) << 32 | u64::from(micros)).to_be_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; 8]) -> Self {
        let both = u64::from_be_bytes(bytes);
        Self { in_flight: (both >> 32) as u32, latency: Duration::from_micros(both & u64::from(u32::MAX)) }
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reports").field(&self.0.is_some()).finish()
    }
}
