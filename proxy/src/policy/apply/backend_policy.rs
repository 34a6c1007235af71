//! A BackendPolicy as it is sent, into runtime form.

use leno_proto::v1;

use super::{Invalid, balancing, destination::object_text, parse_duration};
use crate::policy::BackendPolicy;

pub(super) fn parse(policy: Option<v1::BackendPolicy>) -> Result<BackendPolicy, Invalid> {
    let default = BackendPolicy::default();
    let Some(policy) = policy else { return Ok(default) };
    Ok(BackendPolicy {
        origin: policy.origin.as_ref().map(object_text),
        connect_timeout: parse_duration("connect_timeout", policy.connect_timeout)?.unwrap_or(default.connect_timeout),
        load_balancing: balancing::load_balancing(policy.load_balancing)
            .map_err(|invalid| invalid.within("load_balancing"))?,
        outlier_detection: balancing::outlier_detection(policy.outlier_detection)
            .map_err(|invalid| invalid.within("outlier_detection"))?,
    })
}
