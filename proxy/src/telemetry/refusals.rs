//! Refusals: each counted, a bounded number of them told to the log.

use std::{collections::HashMap, time::Instant};

use metrics::{Counter, Label};

use super::handles::register_counter;

/// Warnings per second and reason.
const WARNINGS_PER_SECOND: f64 = 10.0;

/// Counters and the log's allowance by (direction, reason); both come from fixed sets.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_reason: HashMap<(&'static str, &'static str), Refusal>,
}

#[derive(Debug)]
struct Refusal {
    counter: Counter,
    /// Token bucket: warnings that may be written.
    tokens: f64,
    refilled: Instant,
    /// Not told since the last warning.
    suppressed: u64,
}

impl Refusals {
    /// Counts one; Some(how many went untold since the last) if it is to be told.
    pub(super) fn count(&mut self, direction: &'static str, reason: &'static str, now: Instant) -> Option<u64> {
        let refusal = self.by_reason.entry((direction, reason)).or_insert_with(|| Refusal {
            counter: register_counter(
                "leno_refused_total",
                &[Label::from_static_parts("direction", direction), Label::from_static_parts("reason", reason)],
                &[],
            ),
            tokens: WARNINGS_PER_SECOND,
            refilled: now,
            suppressed: 0,
        });
        refusal.counter.increment(1);
        let passed = now.saturating_duration_since(refusal.refilled).as_secs_f64();
        refusal.refilled = now;
        refusal.tokens = (refusal.tokens + passed * WARNINGS_PER_SECOND).min(WARNINGS_PER_SECOND);
        if refusal.tokens < 1.0 {
            refusal.suppressed += 1;
            return None;
        }
        refusal.tokens -= 1.0;
        Some(std::mem::take(&mut refusal.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_in_part() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let told = (0..100).filter_map(|_| refusals.count("inbound", "plaintext", start)).count();
        assert_eq!(told, 10);
        assert_eq!(refusals.count("outbound", "plaintext", start), Some(0), "each reason has its own allowance");
        assert_eq!(refusals.count("inbound", "plaintext", start + Duration::from_millis(101)), Some(90));
        assert_eq!(refusals.count("inbound", "plaintext", start + Duration::from_millis(101)), None);
    }
}
