//! `benches/run`: what the release binaries cost on this machine. Figures are medians over interleaved rounds; compare
//! only what was measured in one run.

mod pair;
mod policy;
mod report;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "leno-bench", about = "Measures Leno's release binaries on this machine")]
enum Args {
    /// Direct, and through a pair of sidecars: requests/s, latency, CPU per request, memory.
    Pair(pair::Args),
    /// From the write of a route's file to its being in force at every subscribed proxy.
    Policy(policy::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse() {
        Args::Pair(args) => pair::run(&args).await,
        Args::Policy(args) => policy::run(&args).await,
    }
}
