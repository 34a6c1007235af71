//! What clients are told about limits: `RateLimit-Policy` and `RateLimit` as draft-ietf-httpapi-ratelimit-headers has them
//! since its eighth version (lists of structured fields, RFC 9651), and `Retry-After` (RFC 9110 10.2.3).

use std::fmt::Write as _;

use super::bucket::Rate;

/// `"per-client";q=100;w=60`: so many requests in so many seconds.
pub(super) fn policy(name: &str, requests: u32, seconds: u32) -> String {
    format!("\"{name}\";q={requests};w={seconds}")
}

/// Adds `"per-client";r=12;t=30`: so many are left; in so many seconds there are all again or, if none is left, the next.
pub(super) fn standing(list: &mut String, name: &str, rate: &Rate, full_at: u64, now: u64) {
    let remaining = rate.remaining(full_at, now);
    let until = if remaining == 0 { rate.wait(full_at, now) } else { full_at.saturating_sub(now) };
    let separator = if list.is_empty() { "" } else { ", " };
    // Writing to a String does not fail.
    let _ = write!(list, "{separator}\"{name}\";r={remaining};t={}", seconds(until));
}

/// Whole seconds, rounded up: nobody is told to come back too early.
pub(super) fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_structured_fields() {
        let rate = Rate::new(2, 1, 3).unwrap();
        let second = 1_000_000_000;
        let mut list = String::new();
        standing(&mut list, "a", &rate, second, second);
        standing(&mut list, "b", &rate, second + second / 2, second);
        standing(&mut list, "c", &rate, 2 * second + second / 2, second);
        assert_eq!(list, "\"a\";r=3;t=0, \"b\";r=2;t=1, \"c\";r=0;t=1");
        assert_eq!(policy("a", 100, 60), "\"a\";q=100;w=60");
    }
}
