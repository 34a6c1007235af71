//! The `metrics` recorder of the proxy: a registry of counters, gauges and fixed-bucket histograms.
//!
//! A handle is an `Arc` of atomics: recording is an atomic add and takes no lock; only registering and
//! rendering do. The same name and labels are always the same series. A series that came with policy
//! ([`POLICY`]) and that no handle holds any longer is still rendered for [`RETAIN`], so that a scrape sees
//! its last values, and then dropped. Beyond [`limits::METRIC_SERIES`] new series are folded into one per metric.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use parking_lot::Mutex;

use crate::config::limits;

/// `Metadata::target` of series whose labels come from policy, and which go when it goes. All others stay.
pub const POLICY: &str = "policy";

/// How long a series outlives its last handle.
pub const RETAIN: Duration = Duration::from_secs(600);

/// Upper bounds of histogram buckets, in seconds; above the last one there is `+Inf`.
pub const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Labels of the series that stands for all those beyond the limit.
const OVERFLOW_LABELS: &str = "overflow=\"true\"";

/// A histogram of seconds.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Not cumulative; the last is `+Inf`.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_nanos: AtomicU64,
}

impl HistogramFn for Histogram {
    fn record(&self, seconds: f64) {
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_nanos.fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
    }
}

/// A cumulative count.
#[derive(Debug, Default)]
pub struct Total(pub(super) AtomicU64);

impl CounterFn for Total {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
pub(super) enum Series {
    Counter(Arc<Total>),
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Histogram>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Series {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Arc::default()),
            Kind::Gauge => Self::Gauge(Arc::default()),
            Kind::Histogram => Self::Histogram(Arc::default()),
        }
    }

    /// Whether anybody but the registry holds it. Handles are only made under the registry's lock, so
    /// that under it a `false` stays so.
    fn is_held(&self) -> bool {
        match self {
            Self::Counter(series) => Arc::strong_count(series) > 1,
            Self::Gauge(series) => Arc::strong_count(series) > 1,
            Self::Histogram(series) => Arc::strong_count(series) > 1,
        }
    }
}

#[derive(Debug)]
struct Entry {
    series: Series,
    /// Stays without a holder.
    lasting: bool,
    /// When a sweep first found it without a holder.
    unheld_since: Option<Instant>,
}

#[derive(Debug)]
struct Family {
    kind: Kind,
    /// By their rendered labels, without braces.
    series: BTreeMap<Box<str>, Entry>,
}

#[derive(Debug, Default)]
struct Families {
    families: BTreeMap<Box<str>, Family>,
    help: BTreeMap<Box<str>, SharedString>,
    /// Series in all families.
    count: usize,
    /// Registrations folded into overflow series.
    folded: u64,
}

/// The registry of all series of the process.
#[derive(Debug)]
pub struct Registry {
    families: Mutex<Families>,
    limit: usize,
}

impl Default for Registry {
    fn default() -> Self {
        Self::with_limit(limits::METRIC_SERIES)
    }
}

impl Registry {
    /// A registry that holds `limit` series at most, overflow series aside.
    pub fn with_limit(limit: usize) -> Self {
        Self { families: Mutex::default(), limit }
    }

    /// Makes `self` the recorder behind the `metrics` facade. Once per process.
    pub fn install(self: &Arc<Self>) -> Result<(), metrics::SetRecorderError<Recorder>> {
        metrics::set_global_recorder(Recorder(self.clone()))
    }

    /// Drops series that have had no holder for [`RETAIN`]. To be called now and then.
    pub fn sweep(&self, now: Instant) {
        let mut guard = self.families.lock();
        let families = &mut *guard;
        let mut dropped = 0;
        for family in families.families.values_mut() {
            family.series.retain(|_, entry| {
                if entry.lasting || entry.series.is_held() {
                    entry.unheld_since = None;
                    return true;
                }
                let since = *entry.unheld_since.get_or_insert(now);
                let keep = now.saturating_duration_since(since) < RETAIN;
                dropped += usize::from(!keep);
                keep
            });
        }
        families.families.retain(|_, family| !family.series.is_empty());
        families.count = families.count.saturating_sub(dropped);
    }

    /// Calls `each` with name, labels and series, in order of name and labels; and the help of each name.
    pub(super) fn visit(&self, mut each: impl FnMut(&str, Option<&str>, &str, &Series)) {
        // Handles are cloned out, so that a slow reader of the page keeps no policy compilation waiting.
        let guard = self.families.lock();
        for (name, family) in &guard.families {
            let help = guard.help.get(name).map(AsRef::as_ref);
            for (labels, entry) in &family.series {
                each(name, help, labels, &entry.series);
            }
        }
    }

    /// Series held, and registrations that were folded into overflow series.
    pub(super) fn size(&self) -> (usize, u64) {
        let guard = self.families.lock();
        (guard.count, guard.folded)
    }

    fn register(&self, key: &Key, kind: Kind, metadata: &Metadata<'_>) -> Series {
        let labels = render_labels(key);
        let lasting = metadata.target() != POLICY;
        let mut guard = self.families.lock();
        let families = &mut *guard;
        let family =
            families.families.entry(key.name().into()).or_insert_with(|| Family { kind, series: BTreeMap::new() });
        if family.kind != kind {
            // A name used for two kinds: the second is not exposed.
            return Series::new(kind);
        }
        if let Some(entry) = family.series.get_mut(&*labels) {
            entry.unheld_since = None;
            return entry.series.clone();
        }
        let labels = if families.count >= self.limit && !labels.is_empty() {
            families.folded += 1;
            OVERFLOW_LABELS.into()
        } else {
            families.count += 1;
            labels
        };
        let entry = family.series.entry(labels).or_insert_with(|| Entry {
            series: Series::new(kind),
            lasting,
            unheld_since: None,
        });
        entry.series.clone()
    }

    fn describe(&self, name: &KeyName, help: SharedString) {
        self.families.lock().help.insert(name.as_str().into(), help);
    }
}

/// The registry as the `metrics` facade wants it.
#[derive(Debug, Clone)]
pub struct Recorder(pub Arc<Registry>);

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.0.describe(&name, help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.0.describe(&name, help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.0.describe(&name, help);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        match self.0.register(key, Kind::Counter, metadata) {
            Series::Counter(series) => Counter::from_arc(series),
            Series::Gauge(_) | Series::Histogram(_) => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        match self.0.register(key, Kind::Gauge, metadata) {
            Series::Gauge(series) => Gauge::from_arc(Arc::new(HeldGauge(series))),
            Series::Counter(_) | Series::Histogram(_) => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> metrics::Histogram {
        match self.0.register(key, Kind::Histogram, metadata) {
            Series::Histogram(series) => metrics::Histogram::from_arc(series),
            Series::Counter(_) | Series::Gauge(_) => metrics::Histogram::noop(),
        }
    }
}

/// A gauge's bits are an `f64`.
struct HeldGauge(Arc<AtomicU64>);

impl HeldGauge {
    fn update(&self, change: impl Fn(f64) -> f64) {
        let change = |bits| Some(change(f64::from_bits(bits)).to_bits());
        // Cannot fail: `change` always returns Some.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }
}

impl GaugeFn for HeldGauge {
    fn increment(&self, value: f64) {
        self.update(|old| old + value);
    }

    fn decrement(&self, value: f64) {
        self.update(|old| old - value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

/// What a histogram has counted: cumulative counts per bucket (the last is all), and the sum in seconds.
pub(super) fn histogram_totals(histogram: &Histogram) -> ([u64; BUCKETS.len() + 1], f64) {
    let mut cumulative = [0; BUCKETS.len() + 1];
    let mut total = 0u64;
    for (slot, count) in cumulative.iter_mut().zip(&histogram.buckets) {
        total = total.saturating_add(count.load(Ordering::Relaxed));
        *slot = total;
    }
    (cumulative, histogram.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9)
}

/// `name="value",…`, sorted by name, values escaped as the text format wants them.
fn render_labels(key: &Key) -> Box<str> {
    let mut labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
    labels.sort_unstable();
    let mut text = String::with_capacity(labels.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        super::exposition::escape_label(value, &mut text);
        text.push('"');
    }
    text.into_boxed_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exposition;

    fn counter(registry: &Arc<Registry>, name: &'static str, labels: &[(&'static str, &'static str)]) -> Counter {
        let key = Key::from_parts(name, labels);
        let metadata = Metadata::new(POLICY, metrics::Level::INFO, None);
        metrics::Recorder::register_counter(&Recorder(registry.clone()), &key, &metadata)
    }

    #[test]
    fn same_labels_in_any_order_are_one_series() {
        let registry = Arc::new(Registry::default());
        counter(&registry, "leno_a_total", &[("a", "1"), ("b", "2")]).increment(1);
        counter(&registry, "leno_a_total", &[("b", "2"), ("a", "1")]).increment(2);
        assert!(exposition::render(&registry).contains("leno_a_total{a=\"1\",b=\"2\"} 3\n"));
    }

    #[test]
    fn a_series_lives_as_long_as_its_handle_and_a_grace() {
        let registry = Arc::new(Registry::default());
        let start = Instant::now();
        let held = counter(&registry, "leno_a_total", &[("policy", "1")]);
        held.increment(1);
        registry.sweep(start + RETAIN * 5);
        assert_eq!(registry.size(), (1, 0));
        drop(held);
        registry.sweep(start + RETAIN * 5);
        registry.sweep(start + RETAIN * 6 - Duration::from_secs(1));
        assert_eq!(registry.size(), (1, 0), "kept for the grace");
        // Taken up again in between, the grace begins anew, and the count goes on.
        counter(&registry, "leno_a_total", &[("policy", "1")]).increment(1);
        registry.sweep(start + RETAIN * 6);
        assert!(exposition::render(&registry).contains("leno_a_total{policy=\"1\"} 2\n"));
        registry.sweep(start + RETAIN * 7);
        assert_eq!(registry.size(), (0, 0));
    }

    #[test]
    fn beyond_the_limit_series_are_folded_and_nothing_is_lost() {
        let registry = Arc::new(Registry::with_limit(2));
        for labels in [[("n", "1")], [("n", "2")], [("n", "3")], [("n", "4")], [("n", "1")]] {
            counter(&registry, "leno_a_total", &labels).increment(1);
        }
        let text = exposition::render(&registry);
        assert!(text.contains("leno_a_total{n=\"1\"} 2\n"), "{text}");
        assert!(text.contains("leno_a_total{overflow=\"true\"} 2\n"), "{text}");
        assert_eq!(registry.size(), (2, 2));
    }

    #[test]
    fn a_histogram_counts_each_value_once() {
        let histogram = Histogram::default();
        for seconds in [0.0001, 0.0005, 0.0006, 59.0, 61.0] {
            histogram.record(seconds);
        }
        let (counts, sum) = histogram_totals(&histogram);
        assert_eq!(counts[0], 2);
        assert_eq!(counts[1], 3);
        assert_eq!(counts[BUCKETS.len() - 1], 4);
        assert_eq!(counts[BUCKETS.len()], 5);
        assert!((sum - 120.0012).abs() < 1e-6, "{sum}");
    }
}
