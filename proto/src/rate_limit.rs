//! Which rates can be kept: both sides must agree, so that no policy is accepted that a proxy refuses.

/// Most requests per second: above it the time between two is too short to be told exactly.
pub const MAX_PER_SECOND: u64 = 1_000_000;
/// Longest time, in seconds, for so many requests: a day.
pub const MAX_PER: u32 = 24 * 3600;
/// Longest time, in seconds, after which a burst that was used up is allowed again: 30 days.
pub const MAX_FILL: u64 = 30 * 24 * 3600;

/// The nanoseconds from one token to the next, and those in which an empty bucket of `burst` tokens is full, for
/// `requests` tokens in `per` seconds.
///
/// # Errors
/// If such a rate cannot be kept: the field (of a rate limit), and why.
pub fn rate(requests: u32, per: u32, burst: u32) -> Result<(u64, u64), (&'static str, String)> {
    if requests == 0 {
        return Err(("requests", "0 requests; at least 1 is needed".to_owned()));
    }
    if per == 0 || per > MAX_PER {
        return Err(("per", format!("{per} s; whole seconds from 1s to 24h are possible")));
    }
    if burst == 0 {
        return Err(("burst", "0 requests; at least 1 is needed".to_owned()));
    }
    let (requests, per) = (u64::from(requests), u64::from(per));
    if requests > per * MAX_PER_SECOND {
        return Err(("requests", format!("{requests} in {per} s; at most {MAX_PER_SECOND} per second are possible")));
    }
    let interval = per * 1_000_000_000 / requests;
    match interval.checked_mul(u64::from(burst)) {
        Some(fill) if fill <= MAX_FILL * 1_000_000_000 => Ok((interval, fill)),
        _ => Err((
            "burst",
            format!("a burst of {burst} takes more than 30 days to be allowed again; it must be smaller"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_that_cannot_be_kept_are_refused() {
        for (requests, per, burst, field) in [
            (0, 1, 1, "requests"),
            (1, 0, 1, "per"),
            (1, MAX_PER + 1, 1, "per"),
            (1, 1, 0, "burst"),
            (1_000_001, 1, 1, "requests"),
            (1, MAX_PER, 31, "burst"),
            (1, MAX_PER, u32::MAX, "burst"),
        ] {
            assert_eq!(rate(requests, per, burst).unwrap_err().0, field, "{requests} {per} {burst}");
        }
        assert_eq!(rate(1_000_000, 1, u32::MAX).unwrap(), (1000, 1000 * u64::from(u32::MAX)));
        assert_eq!(rate(u32::MAX, MAX_PER, 1).unwrap().0, 20116);
        assert_eq!(rate(1, MAX_PER, 30).unwrap().1, MAX_FILL * 1_000_000_000);
    }
}
