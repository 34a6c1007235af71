//! What is counted per backend: handles made when a worker first uses it, never looked up per request. Workers share
//! the series, which are forgotten some time after the backend.

use std::{cell::Cell, rc::Rc, sync::Once};

use metrics::{Counter, Gauge, Label};

use crate::telemetry::{register_counter, register_gauge};

/// One worker's handles for one backend.
pub struct BackendStats {
    pub connections: Counter,
    pub connection_failures: Counter,
    pub ejections: Counter,
    /// Answers to questions for load (Prequal).
    pub load_reports: Counter,
    ready: Gauge,
    draining: Gauge,
    ejected: Gauge,
    kept: Gauge,
    pooled: Gauge,
    /// This worker's part of `pooled`.
    own_pooled: Cell<f64>,
}

/// Endpoints of a backend by state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct EndpointCounts {
    pub ready: u32,
    pub draining: u32,
    pub ejected: u32,
    /// Those counted above that the control plane knows of no longer.
    pub kept: u32,
}

impl BackendStats {
    pub fn new(backend: &str) -> Rc<Self> {
        describe();
        let labels = [Label::new("backend", backend.to_owned())];
        let endpoints = |state| {
            let [backend] = labels.clone();
            register_gauge("leno_endpoints", &[backend, Label::from_static_parts("state", state)])
        };
        Rc::new(Self {
            ready: endpoints("ready"),
            draining: endpoints("draining"),
            ejected: endpoints("ejected"),
            kept: endpoints("kept"),
            connections: register_counter("leno_upstream_connections_total", &labels, &[]),
            connection_failures: register_counter("leno_upstream_connection_failures_total", &labels, &[]),
            ejections: register_counter("leno_ejections_total", &labels, &[]),
            load_reports: register_counter("leno_load_reports_total", &labels, &[]),
            pooled: register_gauge("leno_upstream_pooled_connections", &labels),
            own_pooled: Cell::new(0.0),
        })
    }

    /// Every worker sees the same endpoints and says the same.
    pub fn set_endpoints(&self, counts: EndpointCounts) {
        self.ready.set(f64::from(counts.ready));
        self.draining.set(f64::from(counts.draining));
        self.ejected.set(f64::from(counts.ejected));
        self.kept.set(f64::from(counts.kept));
    }

    /// Every worker has connections of its own and adds them.
    pub fn set_pooled(&self, connections: usize) {
        let connections = connections as f64;
        self.pooled.increment(connections - self.own_pooled.replace(connections));
    }
}

impl Drop for BackendStats {
    fn drop(&mut self) {
        self.set_pooled(0);
        // Nothing is left of a backend that is gone; where it lives on, the next sweep says so again.
        self.set_endpoints(EndpointCounts::default());
    }
}

fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        metrics::describe_gauge!("leno_endpoints", 
            "Endpoints of a backend by state: ready, draining, ejected; kept are those of them that are gone from policy, all at once, for less than the time of grace.");
        metrics::describe_gauge!("leno_upstream_pooled_connections", "HTTP connections kept for further requests.");
        metrics::describe_counter!("leno_upstream_connections_total", "Connections opened to endpoints.");
        metrics::describe_counter!("leno_upstream_connection_failures_total", "Connections to endpoints that failed.");
        metrics::describe_counter!("leno_ejections_total", "Endpoints taken out because they failed too often.");
        metrics::describe_counter!("leno_load_reports_total", "Answers of endpoints that were asked for their load.");
    });
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use super::*;
    use crate::telemetry::{
        exposition,
        recorder::{RETAIN, Recorder, Registry},
    };

    #[test]
    fn a_backend_that_is_gone_leaves_nothing() {
        let registry = Arc::new(Registry::default());
        let stats = metrics::with_local_recorder(&Recorder(registry.clone()), || {
            // Two workers.
            [BackendStats::new("shop/cart:80"), BackendStats::new("shop/cart:80")]
        });
        for stats in &stats {
            stats.set_endpoints(EndpointCounts { ready: 3, ..EndpointCounts::default() });
            stats.set_pooled(2);
            stats.ejections.increment(1);
        }
        let start = Instant::now();
        registry.sweep(start);
        registry.sweep(start + RETAIN * 2);
        let page = exposition::render(&registry);
        for line in [
            "leno_endpoints{backend=\"shop/cart:80\",state=\"ready\"} 3\n",
            "leno_upstream_pooled_connections{backend=\"shop/cart:80\"} 4\n",
            "leno_ejections_total{backend=\"shop/cart:80\"} 2\n",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }

        drop(stats);
        registry.sweep(start + RETAIN * 2);
        let page = exposition::render(&registry);
        assert!(page.contains("leno_endpoints{backend=\"shop/cart:80\",state=\"ready\"} 0\n"), "{page}");
        assert!(page.contains("leno_ejections_total{backend=\"shop/cart:80\"} 2\n"), "a last scrape sees it: {page}");
        registry.sweep(start + RETAIN * 3);
        let page = exposition::render(&registry);
        assert!(!page.contains("shop/cart:80"), "{page}");
    }
}
