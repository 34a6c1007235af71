//! The proxy's own log: on standard error, as text or JSON, with a filter that can be changed while it runs.

use std::{io, str::FromStr, time::Duration};

use anyhow::Context as _;
use metrics::Counter;
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use super::lines::Lines;
use crate::config::LogFormat;

/// Changes the filter, and writes out what waits.
#[derive(Clone)]
pub struct LogControl {
    filter: reload::Handle<Targets, Registry>,
    lines: Lines,
}

/// Starts logging. Once per process.
///
/// # Errors
/// If the filter is malformed or the process logs already.
pub fn init(filter: &str, format: LogFormat) -> anyhow::Result<LogControl> {
    let dropped: Counter = super::handles::register_counter("leno_log_dropped_total", &[], &[]);
    let lines = Lines::spawn("log", io::stderr(), dropped).context("starting the log's thread")?;
    let targets = parse(filter).with_context(|| format!("--log {filter:?}"))?;
    let (targets, handle) = reload::Layer::new(targets);
    let writer = lines.clone();
    let layer = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => Box::new(layer.json().flatten_event(true).with_filter(targets)),
        LogFormat::Text | LogFormat::Off => Box::new(layer.with_filter(targets)),
    };
    tracing_subscriber::registry().with(layer).try_init().context("starting the log")?;
    Ok(LogControl { filter: handle, lines })
}

/// "info,leno_proxy::policy=debug"
fn parse(filter: &str) -> anyhow::Result<Targets> {
    let expected = "expected error, warn, info, debug, trace or off, also by module: info,leno_proxy::policy=debug";
    // `Targets` would take these for a module's name, or for "error".
    let is_vague = |part: &str| match part.split_once('=') {
        Some((module, level)) => module.is_empty() || level.is_empty(),
        None => part.is_empty() || part.parse::<LevelFilter>().is_err(),
    };
    anyhow::ensure!(!filter.split(',').any(is_vague), expected);
    Targets::from_str(filter).context(expected)
}

impl LogControl {
    /// The filter in force.
    pub fn filter(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// If it is malformed; then nothing changes.
    pub fn set_filter(&self, filter: &str) -> anyhow::Result<()> {
        self.filter.reload(parse(filter)?).context("changing the log's filter")
    }

    /// Waits until what was logged is written, for the end of the process.
    pub fn flush(&self) {
        self.lines.flush(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn filters() {
        for right in ["info", "warn,leno_proxy::policy=debug", "off"] {
            assert!(super::parse(right).is_ok(), "{right}");
        }
        for wrong in ["", "loud", "info,", "leno_proxy=", "leno_proxy=loud"] {
            assert!(super::parse(wrong).is_err(), "{wrong}");
        }
    }
}
