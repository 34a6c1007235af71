//! The retry budget: retries may be a share of requests (20 %) plus a trickle (10/s), for the whole proxy, always.

#[derive(Debug, Default)]
pub struct RetryBudget {}
