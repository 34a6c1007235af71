//! BackendPolicy.

use std::time::Duration;

use super::{super::Wrong, balancing, duration_within};
use crate::{api::BackendPolicySpec, model::policy::BackendPolicy};

/// Shortest and longest time to make a connection.
const CONNECT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(60));

pub(super) fn backend_policy(raw: &BackendPolicySpec) -> Result<BackendPolicy, Wrong> {
    let mut wrong = Wrong::default();
    let timeouts = raw.timeouts.clone().unwrap_or_default();
    let connect = timeouts.connect.as_ref();
    let connect_timeout =
        wrong.note(connect.map(|text| duration_within("spec.timeouts.connect", text, CONNECT)).transpose());
    let load_balancing = wrong.note(raw.load_balancing.as_ref().map(balancing::load_balancing).transpose());
    let outlier_detection = wrong.note(raw.outlier_detection.as_ref().map(balancing::outlier_detection).transpose());
    wrong.or(BackendPolicy { connect_timeout, load_balancing, outlier_detection })
}
