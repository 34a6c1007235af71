//! What is counted per backend: handles made when a worker first uses it, never looked up per request. Workers share
//! the series.

use std::{cell::Cell, rc::Rc, sync::Once};

use metrics::{Counter, Gauge};

/// One worker's handles for one backend.
pub struct BackendStats {
    pub connections: Counter,
    pub connection_failures: Counter,
    pub ejections: Counter,
    ready: Gauge,
    draining: Gauge,
    ejected: Gauge,
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
}

impl BackendStats {
    pub fn new(backend: &str) -> Rc<Self> {
        describe();
        let backend = backend.to_owned();
        let endpoints = |state| metrics::gauge!("leno_endpoints", "backend" => backend.clone(), "state" => state);
        Rc::new(Self {
            ready: endpoints("ready"),
            draining: endpoints("draining"),
            ejected: endpoints("ejected"),
            connections: metrics::counter!("leno_upstream_connections_total", "backend" => backend.clone()),
            connection_failures: metrics::counter!("leno_upstream_connection_failures_total", "backend" => backend.clone()),
            ejections: metrics::counter!("leno_ejections_total", "backend" => backend.clone()),
            pooled: metrics::gauge!("leno_upstream_pooled_connections", "backend" => backend),
            own_pooled: Cell::new(0.0),
        })
    }

    /// Every worker sees the same endpoints and says the same.
    pub fn set_endpoints(&self, counts: EndpointCounts) {
        self.ready.set(f64::from(counts.ready));
        self.draining.set(f64::from(counts.draining));
        self.ejected.set(f64::from(counts.ejected));
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
        metrics::describe_gauge!("leno_endpoints", "Endpoints of a backend by state: ready, draining, ejected.");
        metrics::describe_gauge!("leno_upstream_pooled_connections", "HTTP connections kept for further requests.");
        metrics::describe_counter!("leno_upstream_connections_total", "Connections opened to endpoints.");
        metrics::describe_counter!("leno_upstream_connection_failures_total", "Connections to endpoints that failed.");
        metrics::describe_counter!("leno_ejections_total", "Endpoints taken out after failures in a row.");
    });
}
