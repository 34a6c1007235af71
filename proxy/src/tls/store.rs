//! The credentials in force: written by the control runtime, read by workers without a lock.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Credentials, InvalidBundle, InvalidCredentials, TrustBundle};

/// The credentials in force. Read without a lock.
pub struct CredentialStore {
    current: ArcSwapOption<Credentials>,
    /// Writers take turns: a renewal and a new trust bundle may come at once.
    writer: Mutex<()>,
    /// Epoch of the current credentials; 0: none yet.
    epoch: watch::Sender<u64>,
}

impl Default for CredentialStore {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), writer: Mutex::new(()), epoch: watch::Sender::new(0) }
    }
}

impl CredentialStore {
    /// What new connections are made with; `None` until the control plane issued a certificate.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.load_full()
    }

    /// Epoch of the current credentials; 0 while there are none.
    pub fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Told of each new epoch.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// The credentials, once there are some. For ever if none are issued: bound it.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut changes = self.epoch.subscribe();
        loop {
            if let Some(credentials) = self.current() {
                return credentials;
            }
            if changes.changed().await.is_err() {
                // Cannot happen while `self` lives; waiting is right if it did.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Puts a renewed certificate in force. Connections made before live on.
    pub fn install(&self, credentials: Credentials) -> Arc<Credentials> {
        let _turn = self.writer.lock();
        self.swap(credentials)
    }

    /// Puts other trust anchors in force, from a TRUST_BUNDLE resource (DER). Unchanged ones change
    /// nothing. Without credentials yet, nothing is kept: the first certificate comes with its anchors.
    ///
    /// # Errors
    /// If the bundle is empty, holds something else than certificates or is another trust domain's: the
    /// last good one stays in force.
    pub fn set_anchors(&self, trust_domain: &str, anchors: &[impl AsRef<[u8]>]) -> Result<(), InvalidCredentials> {
        let bundle = TrustBundle::new(trust_domain, anchors)?;
        let _turn = self.writer.lock();
        let Some(current) = self.current() else {
            return Ok(());
        };
        if current.id.trust_domain() != trust_domain {
            let expected = current.id.trust_domain().to_owned();
            return Err(InvalidBundle::TrustDomain { expected, actual: trust_domain.to_owned() }.into());
        }
        if !bundle.same_as(&current.bundle) {
            self.swap(current.under(bundle)?);
        }
        Ok(())
    }

    fn swap(&self, mut credentials: Credentials) -> Arc<Credentials> {
        credentials.epoch = self.epoch() + 1;
        let credentials = Arc::new(credentials);
        self.current.store(Some(credentials.clone()));
        self.epoch.send_replace(credentials.epoch);
        credentials
    }
}
