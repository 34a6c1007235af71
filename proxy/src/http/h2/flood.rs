//! What a peer may do so often, and no oftener.

use std::time::{Duration, Instant};

/// Counts per second; the clock is read once in a while.
#[derive(Debug)]
pub(super) struct Rate {
    most: u32,
    count: u32,
    since: Option<Instant>,
}

impl Rate {
    /// So many per second.
    pub(super) fn new(most: u32) -> Self {
        Self { most, count: 0, since: None }
    }

    /// Counts one. Whether there were too many within a second.
    pub(super) fn is_beyond(&mut self, now: impl FnOnce() -> Instant) -> bool {
        self.count += 1;
        if self.count == 1 {
            self.since = Some(now());
        } else if self.count > self.most {
            let now = now();
            let within = self.since.is_some_and(|since| now.saturating_duration_since(since) < Duration::from_secs(1));
            self.count = 1;
            self.since = Some(now);
            return within;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_per_second() {
        let start = Instant::now();
        let mut rate = Rate::new(3);
        assert!((0..3).all(|_| !rate.is_beyond(|| start)));
        assert!(rate.is_beyond(|| start + Duration::from_millis(999)));
        let mut rate = Rate::new(3);
        for n in 0..100 {
            assert!(!rate.is_beyond(|| start + Duration::from_millis(400 * n)));
        }
    }
}
