//! SIGTERM to exit: readiness fails, connections are told to finish, and waited for up to a limit.
//!
//! [`DrainOwner`] belongs to the process; it gives each worker a [`Drain`], which the worker's
//! connections clone as soon as they are accepted, once each, and tunnels in their streams once more. The clones are what is
//! waited for; a worker's own handle and watchers are not.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::sync::{Notify, futures::Notified};

use crate::config::limits;

#[derive(Debug, Default)]
struct Shared {
    begun: AtomicBool,
    begin: Notify,
    /// Connections and tunnels that are waited for.
    open: AtomicUsize,
    closed: Notify,
}

/// Begins the drain and waits for it to end.
#[derive(Debug, Default)]
pub struct DrainOwner {
    shared: Arc<Shared>,
}

impl DrainOwner {
    /// A handle to clone for connections. It is itself not waited for.
    pub fn handle(&self) -> Drain {
        Drain { shared: self.shared.clone(), counted: false }
    }

    /// Tells everybody to finish. Again: does nothing.
    pub fn begin(&self) {
        self.shared.begun.store(true, Ordering::SeqCst);
        self.shared.begin.notify_waiters();
    }

    /// Whether draining has begun.
    pub fn has_begun(&self) -> bool {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// Connections open now, and tunnels in their streams.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Waits until no connection is open, `timeout` at most. How many were still open then.
    pub async fn wait(&self, timeout: Duration) -> usize {
        let all_closed = async {
            loop {
                let closed = self.shared.closed.notified();
                tokio::pin!(closed);
                closed.as_mut().enable();
                if self.open() == 0 {
                    return;
                }
                closed.await;
            }
        };
        // Whether it ended or timed out, what counts is what is open.
        let _ = tokio::time::timeout(timeout, all_closed).await;
        self.open()
    }
}

/// Told to every connection; cheap to clone. While a clone lives, its connection is waited for.
#[derive(Debug)]
pub struct Drain {
    shared: Arc<Shared>,
    counted: bool,
}

impl Clone for Drain {
    fn clone(&self) -> Self {
        self.shared.open.fetch_add(1, Ordering::SeqCst);
        Self { shared: self.shared.clone(), counted: true }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if self.counted && self.shared.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.closed.notify_waiters();
        }
    }
}

impl Drain {
    /// A handle that learns of the drain but is not waited for: for accept loops and background tasks.
    pub fn watcher(&self) -> Self {
        Self { shared: self.shared.clone(), counted: false }
    }

    /// Ready once draining has begun (at once if it has). Cancel-safe.
    pub fn begun(&self) -> Begun<'_> {
        Begun { drain: self, begin: self.shared.begin.notified(), waker: None }
    }

    /// Waits for somebody to speak; None if nobody did within DRAIN_LINGER of the drain's begin, or, when it has begun
    /// already, of now: what is on its way still arrives, and who says nothing holds up no drain. Cancel-safe if
    /// `spoken` is.
    pub async fn patiently<T>(&self, spoken: impl Future<Output = T>) -> Option<T> {
        let lingered = async {
            self.begun().await;
            tokio::time::sleep(limits::DRAIN_LINGER).await;
        };
        tokio::select! {
            biased;
            spoken = spoken => Some(spoken),
            () = lingered => None,
        }
    }

    /// Whether draining has begun.
    pub fn has_begun(&self) -> bool {
        self.shared.begun.load(Ordering::Relaxed)
    }
}

pin_project! {
    /// See [`Drain::begun`]. It may be polled at each turn of its task, and again when it was ready: that takes no lock.
    #[derive(Debug)]
    pub struct Begun<'a> {
        drain: &'a Drain,
        // Made before the flag is looked at, so that no beginning is missed.
        #[pin]
        begin: Notified<'a>,
        // Whom `begin` wakes.
        waker: Option<Waker>,
    }
}

impl Future for Begun<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.drain.has_begun() {
            return Poll::Ready(());
        }
        if this.waker.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        *this.waker = Some(cx.waker().clone());
        this.begin.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_told_and_waited_for() {
        let owner = DrainOwner::default();
        let worker = owner.handle();
        let connection = worker.clone();
        assert_eq!(owner.open(), 1);
        let told = tokio::spawn(async move { connection.begun().await });
        tokio::task::yield_now().await;
        assert!(!told.is_finished());
        owner.begin();
        assert_eq!(owner.wait(Duration::from_secs(30)).await, 0);
        assert!(worker.has_begun());
        worker.clone().begun().await;
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for() {
        let owner = DrainOwner::default();
        let drain = owner.handle();
        assert_eq!(drain.patiently(async { "a request" }).await, Some("a request"));
        owner.begin();
        assert_eq!(drain.patiently(async { "a late one" }).await, Some("a late one"));
        assert_eq!(drain.patiently(std::future::pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn the_wait_has_an_end_and_only_connections_count() {
        let owner = DrainOwner::default();
        let worker = owner.handle();
        let _accept_loop = worker.watcher();
        assert_eq!(owner.wait(Duration::ZERO).await, 0);
        let _stuck = worker.clone();
        owner.begin();
        assert_eq!(owner.wait(Duration::ZERO).await, 1);
    }
}
