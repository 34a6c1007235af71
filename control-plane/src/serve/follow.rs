//! What goes on beside serving as the configuration changes: bad documents are said, and proxies of Pods that are gone are forgotten.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{sync::watch, time::sleep};

use super::{limits, tracker::Tracker};
use crate::model::{DocumentError, World};

/// How often proxies that vanished long ago are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// How long a proxy that vanished counts with what it may still serve: where an API server tells when a Pod ends, until then.
fn kept(world: &World, in_cluster: bool, namespace: &str, pod: &str) -> Duration {
    match in_cluster {
        true if world.pod_is_up(namespace, pod) => Duration::MAX,
        false if world.service_account(namespace, pod).is_some() => limits::DISCONNECTED_KEPT,
        _ => Duration::ZERO,
    }
}

/// Says each bad document once when it appears, and once when it is mended; forgets proxies whose Pods are gone.
pub(super) async fn follow(
    mut world: watch::Receiver<Arc<World>>,
    tracker: Arc<Tracker>,
    in_cluster: bool,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut known: Vec<DocumentError> = Vec::new();
    loop {
        let now = Arc::clone(&world.borrow_and_update());
        tracker.forget_vanished(Instant::now(), |namespace, pod| kept(&now, in_cluster, namespace, pod));
        for error in now.errors().iter().filter(|e| !known.contains(e)) {
            tracing::error!(
                file = %error.file,
                document = error.document,
                object = error.object.as_ref().map(ToString::to_string),
                field = error.field,
                reason = error.reason,
                "a document is not in force: the last good version of its object stays, or a route is answered with 500"
            );
        }
        for error in known.iter().filter(|e| !now.errors().contains(e)) {
            tracing::info!(
                file = %error.file,
                document = error.document,
                object = error.object.as_ref().map(ToString::to_string),
                field = error.field,
                reason = error.reason,
                "no longer wrong"
            );
        }
        known = now.errors().to_vec();
        tokio::select! {
            changed = world.changed() => changed.context("the configuration is no longer read")?,
            () = sleep(FORGET_EVERY) => {}
            _ = stopping.wait_for(|s| *s) => return Ok(()),
        }
    }
}
