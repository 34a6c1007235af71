//! Load generators of our own, each a process of its own (`leno-bench load …`): what wrk, h2load and iperf3 cannot do.
//! Each prints one line of JSON, an [`Outcome`].

mod connect;
mod http1;
mod idle;
mod paced;
mod stream;

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub(crate) use self::{http1::answer_length, idle::raise_descriptors};
use crate::figures::percentile;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Load {
    /// HTTP/1.1 requests that are due at a fixed rate.
    Paced(paced::Args),
    /// New connections, over TCP or mTLS.
    Connect(connect::Args),
    /// Keep-alive connections that idle after one request each.
    Idle(idle::Args),
    /// Messages on gRPC streams, each answered by one.
    Stream(stream::Args),
}

pub(crate) async fn run(load: Load) -> Result<()> {
    let outcome = match load {
        Load::Paced(args) => paced::run(&args)?,
        Load::Connect(args) => connect::run(&args)?,
        Load::Stream(args) => stream::run(&args).await?,
        Load::Idle(args) => return idle::run(&args),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// What a load generator saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Requests (messages, connections) that went well.
    pub done: u64,
    /// Those that did not.
    pub failed: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl Outcome {
    /// `latencies`: of all that went well, in nanoseconds, in any order.
    fn new(mut latencies: Vec<u64>, failed: u64, took: Duration) -> Self {
        latencies.sort_unstable();
        let at = |share| percentile(&latencies, share) as f64 / 1000.0;
        Self {
            done: latencies.len() as u64,
            failed,
            seconds: took.as_secs_f64(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }

    /// From the output of a load generator.
    pub(crate) fn parse(printed: &str) -> Result<Self> {
        let line = printed.lines().rev().find(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("the load generator printed no outcome:\n{printed}"))?;
        serde_json::from_str(line).with_context(|| format!("not an outcome: {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_passes_through_the_pipe() {
        let outcome = Outcome::new(vec![3000, 1000, 2000], 1, Duration::from_secs(2));
        assert_eq!((outcome.done, outcome.failed, outcome.p50_us), (3, 1, 2.0));
        let printed = format!("a note\n{}\n", serde_json::to_string(&outcome).unwrap());
        assert_eq!(Outcome::parse(&printed).unwrap(), outcome);
        assert!(Outcome::parse("nothing").is_err());
    }
}
