//! What policy says of ejection (BackendPolicy `outlierDetection`), with defaults for what it does not.

use std::time::Duration;

/// When an endpoint is ejected, for how long, and how it comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row that eject; 0: any number is borne.
    pub consecutive_failures: u32,
    /// The share of failures that ejects; None: any is borne.
    pub failure_share: Option<FailureShare>,
    /// First ejection; the n-th lasts n times as long.
    pub base_ejection: Duration,
    /// No ejection is longer, but for jitter.
    pub most_ejection: Duration,
    /// Ejections are longer by up to so many percent, at random, so that proxies do not probe in step.
    pub jitter_percent: u32,
    /// Share of the endpoints, in percent, that may be ejected at a time. If more fail, the fault is likely not theirs.
    pub most_ejected_percent: u32,
    /// Requests that may find out at a time whether an ejected endpoint is well again.
    pub probes: u32,
    /// Successes of theirs that bring it back.
    pub successes: u32,
    /// How long an endpoint is left alone at most that asks for it (429 or 503 with Retry-After). Zero: it is not asked.
    pub most_rest: Duration,
}

/// Failures in a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureShare {
    pub percent: u32,
    pub window: Duration,
    /// With fewer requests in the window nothing is concluded.
    pub least_requests: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_share: None,
            base_ejection: Duration::from_secs(5),
            most_ejection: Duration::from_secs(300),
            jitter_percent: 25,
            most_ejected_percent: 50,
            probes: 1,
            successes: 1,
            most_rest: Duration::from_secs(10),
        }
    }
}
