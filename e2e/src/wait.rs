//! Waiting for a condition, with a deadline. Tests never sleep for a guessed time instead.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::Instant;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `check` until it succeeds; past `within`, fails with its last error.
pub async fn eventually<T>(what: &str, within: Duration, mut check: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut before = None;
    loop {
        let failure = match tokio::time::timeout_at(deadline, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            // What the one before it said tells more.
            Err(_) => before.unwrap_or_else(|| anyhow!("the check itself did not end")),
        };
        if Instant::now() + INTERVAL > deadline {
            return Err(failure.context(format!("{what}: not so within {within:?}")));
        }
        before = Some(failure);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Bounds `work` by a deadline.
pub async fn within<T>(what: &str, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(|error| error.context(what.to_owned())),
        Err(_) => Err(anyhow!("{what}: not done within {limit:?}")),
    }
}
