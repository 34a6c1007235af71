//! Passive outlier ejection of one endpoint (pure: takes `now`).

#[derive(Debug, Default)]
pub struct Outlier {}
