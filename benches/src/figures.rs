//! From samples to what is reported: medians, spreads, and ratios between contenders in the same round.

use std::collections::BTreeMap;

/// Names of figures, as they stand in results.json.
pub(crate) mod name {
    /// Requests (messages, connections) per second.
    pub(crate) const RATE: &str = "rps";
    pub(crate) const P50: &str = "p50_us";
    pub(crate) const P99: &str = "p99_us";
    pub(crate) const P999: &str = "p999_us";
    /// User and system time of all proxies together, per request.
    pub(crate) const CPU: &str = "cpu_us_per_request";
    /// Of the client's proxy alone.
    pub(crate) const CPU_OUT: &str = "cpu_us_out";
    /// Of the server's proxy alone.
    pub(crate) const CPU_IN: &str = "cpu_us_in";
    /// Context switches of all proxies together, per request.
    pub(crate) const SWITCHES: &str = "switches_per_request";
    /// Resident memory of all proxies together, at the end of the load.
    pub(crate) const RSS: &str = "rss_mib";
    pub(crate) const RSS_OUT: &str = "rss_mib_out";
    pub(crate) const RSS_IN: &str = "rss_mib_in";
    pub(crate) const GBIT: &str = "gbit_per_s";
    /// Of the proxy that holds the idle connections: with one connection, with 1,000, with 10,000.
    pub(crate) const RSS_1: &str = "rss_mib_at_1";
    pub(crate) const RSS_1000: &str = "rss_mib_at_1000";
    pub(crate) const RSS_10000: &str = "rss_mib_at_10000";
    pub(crate) const KIB_EACH: &str = "kib_per_connection";
    pub(crate) const READY: &str = "ready_ms";
    /// Requests that were not answered well.
    pub(crate) const FAILED: &str = "failed_percent";
    /// Of the whole machine.
    pub(crate) const BUSY: &str = "busy_percent";
    /// Of the CPU of the load generator and the servers.
    pub(crate) const BUSY_LOAD: &str = "busy_load_percent";
    /// Of the proxies' CPU.
    pub(crate) const BUSY_PROXIES: &str = "busy_proxies_percent";
}

/// What one measurement found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sample {
    pub figures: BTreeMap<&'static str, f64>,
    /// Share of the machine that others took: processes that are not ours, and the hypervisor.
    pub foreign: f64,
    pub steal: f64,
    /// How often it was measured again because of them.
    pub repeats: u32,
}

/// A contender's samples of one work, by round.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub contender: String,
    pub samples: Vec<Sample>,
}

impl Series {
    /// The names of all figures it has.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.samples.iter().flat_map(|sample| sample.figures.keys().copied()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// All values of a figure.
    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        self.samples.iter().filter_map(|sample| sample.figures.get(name).copied()).collect()
    }

    /// The median of the ratios to another contender in the same rounds; none if there is nothing to compare.
    pub(crate) fn ratio_to(&self, other: &Self, name: &str) -> Option<f64> {
        let rounds = self.samples.iter().zip(&other.samples);
        let ratios = rounds.filter_map(|(own, other)| Some(own.figures.get(name)? / other.figures.get(name)?));
        median(ratios.filter(|ratio| ratio.is_finite()).collect())
    }
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// The value below which a share of the sorted values lies; 0 of none.
pub(crate) fn percentile(sorted: &[u64], share: f64) -> u64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(contender: &str, values: &[f64]) -> Series {
        let sample = |&value: &f64| Sample { figures: [(name::CPU, value)].into(), ..Sample::default() };
        Series { contender: contender.to_owned(), samples: values.iter().map(sample).collect() }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn percentiles() {
        let sorted: Vec<u64> = (1..=1000).collect();
        assert_eq!(percentile(&sorted, 0.5), 501);
        assert_eq!(percentile(&sorted, 0.999), 1000);
        assert_eq!(percentile(&[7], 0.99), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine was half as fast in the second round: the ratio is the same.
        let (a, b) = (series("a", &[10.0, 20.0, 11.0]), series("b", &[20.0, 40.0, 22.0]));
        assert_eq!(a.ratio_to(&b, name::CPU), Some(0.5));
        assert_eq!(a.ratio_to(&b, name::P50), None);
        assert_eq!(a.ratio_to(&series("c", &[0.0]), name::CPU), None);
    }
}
