//! What goes on beside serving as the configuration changes: bad documents are said, and proxies of Pods that are gone are forgotten.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use tokio::{sync::watch, time::sleep};

use super::{limits, tracker::Tracker};
use crate::model::{DocumentError, ProxyLife, World};

/// How often proxies that vanished long ago are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// What kubelets say of a container that has just been started or ended may be that late.
const KUBELET_LATE: Duration = Duration::from_secs(5);

/// How long a proxy that vanished counts with what it may still serve: for as long as its Pod is there. Where an API server tells when
/// its process has ended, which took its policy with it, until then; one that should have ended and whose end nobody saw (its node is
/// dead, or cut off) counts for [`limits::DISCONNECTED_KEPT`] more.
fn kept(world: &World, in_cluster: bool, namespace: &str, pod: &str, now: SystemTime) -> Duration {
    if !in_cluster {
        let known = world.service_account(namespace, pod).is_some();
        return if known { Duration::MAX } else { Duration::ZERO };
    }
    match world.proxy_of(namespace, pod, limits::DISCONNECTED_KEPT, now) {
        // A proxy that has been heard of counts before its startup probe has passed, and while a kubelet that was restarted asks anew.
        Some(ProxyLife::Started | ProxyLife::Starting) => Duration::MAX,
        Some(ProxyLife::Down) => KUBELET_LATE,
        None => Duration::ZERO,
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
        let wall = SystemTime::now();
        tracker.forget_vanished(Instant::now(), |namespace, pod| kept(&now, in_cluster, namespace, pod, wall));
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{FileContent, MeshSettings};

    /// Its proxy, if it runs, has been ready or not.
    fn pod(metadata: Value, started: Option<bool>) -> FileContent {
        let running = |started| json!({ "name": "leno-proxy", "started": started, "state": { "running": {} } });
        let its_proxy: Vec<Value> = started.map(running).into_iter().collect();
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "status": { "podIP": "10.0.0.1", "initContainerStatuses": its_proxy },
        });
        pod["metadata"]["name"] = json!("web-1");
        pod["metadata"]["namespace"] = json!("shop");
        FileContent::object("Pod shop/web-1".into(), pod)
    }

    #[test]
    fn a_pod_of_a_dead_node_is_not_waited_for_for_ever() {
        // 2026-03-01T12:00:00Z
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_366_400);
        let kept = |world: &World, now: SystemTime| kept(world, true, "shop", "web-1", now);
        let up = World::of_api_server(MeshSettings::strict("cluster.local")).change([pod(json!({}), Some(true))]);
        assert_eq!(kept(&up, end + Duration::from_secs(86_400)), Duration::MAX);
        let ending = up.change([pod(json!({ "deletionTimestamp": "2026-03-01T12:00:00Z" }), Some(true))]);
        assert_eq!(ending.generation(), up.generation(), "proxies get nothing else by that");
        assert_eq!(kept(&ending, end), Duration::MAX);
        assert_eq!(kept(&ending, end + limits::DISCONNECTED_KEPT - Duration::from_secs(1)), Duration::MAX);
        assert_eq!(kept(&ending, end + limits::DISCONNECTED_KEPT), Duration::ZERO);
        let gone = ending.change([FileContent::none("Pod shop/web-1".into())]);
        assert_eq!(kept(&gone, end), Duration::ZERO);
    }

    #[test]
    fn what_a_proxy_served_ends_with_its_process() {
        let now = SystemTime::now();
        let of = |world: &World| kept(world, true, "shop", "web-1", now);
        let up = World::of_api_server(MeshSettings::strict("cluster.local")).change([pod(json!({}), Some(true))]);
        assert_eq!(of(&up), Duration::MAX);
        // It crashed, and is not started again yet; and then it is.
        let down = up.change([pod(json!({}), None)]);
        assert_eq!((of(&down), down.generation()), (KUBELET_LATE, up.generation()));
        assert_eq!(of(&down.change([pod(json!({}), Some(false))])), Duration::MAX);
        // From a folder nobody says what runs: whoever has a Pod document may.
        assert_eq!(kept(&down, false, "shop", "web-1", now), Duration::MAX);
        let gone = down.change([FileContent::none("Pod shop/web-1".into())]);
        assert_eq!(kept(&gone, false, "shop", "web-1", now), Duration::ZERO);
    }
}
