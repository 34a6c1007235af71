//! SIGTERM to exit: readiness fails, connections are told to finish, and waited for up to a limit.

/// Told to every connection; cheap to clone. While a clone lives, its connection is waited for.
#[derive(Clone)]
pub struct Drain {
    // telemetry: watch::Receiver<bool> + a guard counted by the owner
}

impl Drain {
    /// Returns once draining has begun (at once if it has).
    pub async fn begun(&mut self) {
        todo!("telemetry")
    }

    pub fn has_begun(&self) -> bool {
        todo!("telemetry")
    }
}
