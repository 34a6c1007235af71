//! The control plane's own metrics, in Prometheus' text format.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::tracker::Tracker;
use crate::{
    authority::{Authority, issue},
    model::World,
};

pub mod cluster;

use cluster::ClusterView;

/// Upper bounds of the latency histogram, in milliseconds.
const BUCKETS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 250, 500, 1000, 2500, 10_000];

/// Counters, shared by all streams.
#[derive(Default)]
pub struct Metrics {
    certificates_issued: AtomicU64,
    deltas: AtomicU64,
    resources: AtomicU64,
    bytes: AtomicU64,
    rejections: AtomicU64,
    refused: AtomicU64,
    latency: [AtomicU64; BUCKETS_MS.len()],
    latency_count: AtomicU64,
    latency_us: AtomicU64,
}

impl Metrics {
    pub fn certificate_issued(&self) {
        self.certificates_issued.fetch_add(1, Relaxed);
    }

    pub fn delta_sent(&self, resources: usize, bytes: usize) {
        self.deltas.fetch_add(1, Relaxed);
        self.resources.fetch_add(resources as u64, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub fn connection_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// `waited`: since the change, or the subscription, that the delta answered.
    pub fn verdict(&self, rejected: usize, waited: Option<Duration>) {
        self.rejections.fetch_add(rejected as u64, Relaxed);
        let Some(waited) = waited else { return };
        self.latency_count.fetch_add(1, Relaxed);
        self.latency_us.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Relaxed);
        let bucket = BUCKETS_MS.iter().zip(&self.latency).find(|(le, _)| waited <= Duration::from_millis(**le));
        if let Some((_, count)) = bucket {
            count.fetch_add(1, Relaxed);
        }
    }
}

/// Everything that is shown.
pub struct View {
    metrics: Arc<Metrics>,
    tracker: Arc<Tracker>,
    authority: Arc<Authority>,
    world: watch::Receiver<Arc<World>>,
    cluster: Option<ClusterView>,
}

impl View {
    pub fn new(
        metrics: Arc<Metrics>,
        tracker: Arc<Tracker>,
        authority: Arc<Authority>,
        world: watch::Receiver<Arc<World>>,
        cluster: Option<ClusterView>,
    ) -> Self {
        Self { metrics, tracker, authority, world, cluster }
    }

    pub(super) fn render(&self) -> String {
        let m = &self.metrics;
        let material = self.authority.material();
        let world = Arc::clone(&self.world.borrow());
        let mut text = String::new();
        let mut put = |kind: &str, name: &str, help: &str, value: u64| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        put(
            "gauge",
            "leno_control_plane_proxies_connected",
            "Proxies with an open stream.",
            self.tracker.connected() as u64,
        );
        put("gauge", "leno_control_plane_generation", "Mesh-wide generation of the configuration.", world.generation());
        put(
            "gauge",
            "leno_control_plane_document_errors",
            "Errors in documents, which are not in force.",
            world.errors().len() as u64,
        );
        put(
            "gauge",
            "leno_control_plane_objects_held_over",
            "Objects whose document is bad, and whose last good version stays in force.",
            world.held_over() as u64,
        );
        put(
            "gauge",
            "leno_control_plane_root_not_after_seconds",
            "End of the root certificate, Unix time.",
            issue::unix(material.anchors_not_after),
        );
        put(
            "gauge",
            "leno_control_plane_issuer_not_after_seconds",
            "End of the issuer's certificate, Unix time.",
            issue::unix(material.issuer_not_after),
        );
        let issued = m.certificates_issued.load(Relaxed);
        put("counter", "leno_control_plane_certificates_issued_total", "Certificates issued to workloads.", issued);
        put("counter", "leno_control_plane_deltas_sent_total", "Deltas sent to proxies.", m.deltas.load(Relaxed));
        put(
            "counter",
            "leno_control_plane_resources_sent_total",
            "Resources in those deltas.",
            m.resources.load(Relaxed),
        );
        put("counter", "leno_control_plane_bytes_sent_total", "Bytes of those deltas.", m.bytes.load(Relaxed));
        put(
            "counter",
            "leno_control_plane_rejections_total",
            "Resources that proxies refused.",
            m.rejections.load(Relaxed),
        );
        put(
            "counter",
            "leno_control_plane_refused_connections_total",
            "Connections refused before any request: handshake, trust domain, limits.",
            m.refused.load(Relaxed),
        );
        self.render_latency(&mut text);
        if let Some(cluster) = &self.cluster {
            cluster.render(&mut text);
        }
        text
    }

    fn render_latency(&self, text: &mut String) {
        let m = &self.metrics;
        let name = "leno_control_plane_push_seconds";
        let _ = writeln!(
            text,
            "# HELP {name} From a change, or a subscription, to the proxy's verdict on it.\n# TYPE {name} histogram"
        );
        let mut cumulative = 0;
        for (le, count) in BUCKETS_MS.iter().zip(&m.latency) {
            cumulative += count.load(Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {cumulative}", Duration::from_millis(*le).as_secs_f64());
        }
        let (count, sum) = (m.latency_count.load(Relaxed), m.latency_us.load(Relaxed));
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {}\n{name}_count {count}", Duration::from_micros(sum).as_secs_f64());
    }
}
