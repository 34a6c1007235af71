//! What the control stream tells of itself.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::policy::store::Snapshot;

pub(super) struct Metrics {
    pub(super) connected: Gauge,
    generation: Gauge,
    destinations: Gauge,
    deltas: Counter,
    rejected: Counter,
    pub(super) failures: Counter,
    pub(super) full: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        const CONNECTED: &str = "leno_control_connected";
        const GENERATION: &str = "leno_control_generation";
        const DESTINATIONS: &str = "leno_control_destinations";
        const DELTAS: &str = "leno_control_deltas_total";
        const REJECTED: &str = "leno_control_rejected_total";
        const FAILURES: &str = "leno_control_failures_total";
        const FULL: &str = "leno_control_destinations_refused_total";
        describe_gauge!(CONNECTED, "1 while the policy stream is open.");
        describe_gauge!(GENERATION, "Mesh-wide generation of the policy in force here.");
        describe_gauge!(DESTINATIONS, "Destinations held.");
        describe_counter!(DELTAS, "Deltas put in force.");
        describe_counter!(REJECTED, "Resources refused; the last good version stays in force.");
        describe_counter!(FAILURES, "Policy streams that broke or could not be opened.");
        describe_counter!(FULL, "Destinations not asked for, because as many are held or waited for as may be.");
        Self {
            connected: gauge!(CONNECTED),
            generation: gauge!(GENERATION),
            destinations: gauge!(DESTINATIONS),
            deltas: counter!(DELTAS),
            rejected: counter!(REJECTED),
            failures: counter!(FAILURES),
            full: counter!(FULL),
        }
    }

    /// A delta is in force, but for `rejected` resources of it.
    pub(super) fn took(&self, rejected: usize) {
        self.deltas.increment(1);
        self.rejected.increment(u64::try_from(rejected).unwrap_or(u64::MAX));
    }

    /// `snapshot` is in force.
    pub(super) fn holds(&self, snapshot: &Snapshot) {
        self.generation.set(snapshot.generation as f64);
        self.destinations.set(snapshot.destinations.len() as f64);
    }
}
