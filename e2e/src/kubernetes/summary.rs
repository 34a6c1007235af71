//! What the load that runs in a Pod says when it ends.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How load in a Pod went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    pub ok: u64,
    pub failed: u64,
    /// Of those that failed: no connection could be made for them, so that nobody was sent anything.
    pub unsent: u64,
    /// Answers per second.
    pub rate: f64,
    /// Of the first failures.
    pub reasons: Vec<String>,
    /// Answers by server.
    pub instances: BTreeMap<String, u64>,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Summary {
    /// Fails if a request failed, or if there were fewer answers than `at_least`.
    pub fn unharmed(&self, at_least: u64) -> Result<()> {
        ensure!(self.failed == 0, "{} of {} requests failed: {:#?}", self.failed, self.ok + self.failed, self.reasons);
        ensure!(self.ok >= at_least, "only {} requests were made, {at_least} were wanted", self.ok);
        Ok(())
    }

    /// The share of answers that came from servers whose names begin so.
    pub fn share(&self, prefix: &str) -> f64 {
        let theirs: u64 = self.instances.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum();
        theirs as f64 / self.ok.max(1) as f64
    }
}
