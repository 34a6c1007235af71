//! `benches/run`: what the release binaries cost on this machine, side by side with other proxies. Figures are medians
//! over interleaved rounds; compare only what was measured in one run.

mod balance;
mod certificates;
mod contender;
mod control_plane;
mod data_plane;
mod figures;
mod instructions;
mod kubernetes;
mod leno;
mod load;
mod machine;
mod plot;
mod policy;
mod report;
mod results;
mod rig;
mod serve;
mod targets;
mod tools;
mod work;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "leno-bench", about = "Measures Leno's release binaries on this machine, beside other proxies")]
enum Args {
    /// Every contender on the same work: requests/s, latency, CPU per request, memory.
    DataPlane(data_plane::Args),
    /// Algorithms of balancing on servers that differ, are antagonised, or fail fast.
    Balance(balance::Args),
    /// From the write of a route's file to its being in force at every subscribed proxy.
    Policy(policy::Args),
    /// Thousands of simulated proxies: change to last answer, CPU and memory of the control plane.
    ControlPlane(control_plane::Args),
    /// The control plane on the API server that KUBECONFIG names, with thousands of Services and endpoints.
    Kubernetes(kubernetes::Args),
    /// Writes report.md and its plots anew from results.json.
    Report,
    /// Instructions per request, counted by valgrind, compared with earlier ones.
    Instructions(instructions::Args),
    /// Part of a measurement: makes load, prints one line of JSON.
    #[command(hide = true, subcommand)]
    Load(load::Load),
    /// Part of a measurement: proxies of the control plane.
    #[command(hide = true)]
    SimulatedProxies(control_plane::ProxyArgs),
    /// Part of a measurement: a server behind the proxies.
    #[command(hide = true)]
    Serve(serve::Args),
}

// One thread: the programs under test get the CPUs.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Args::parse() {
        Args::DataPlane(args) => interruptible(data_plane::run(&args)).await,
        Args::Balance(args) => interruptible(balance::run(&args)).await,
        Args::Policy(args) => interruptible(policy::run(&args)).await,
        Args::ControlPlane(args) => interruptible(control_plane::run(&args)).await,
        Args::Kubernetes(args) => interruptible(kubernetes::run(&args)).await,
        Args::SimulatedProxies(args) => control_plane::run_proxies(&args).await,
        Args::Instructions(args) => interruptible(instructions::run(&args)).await,
        Args::Report => report::write(),
        Args::Load(load) => load::run(load).await,
        Args::Serve(args) => serve::run(&args).await,
    }
}

/// Ends the work on SIGINT and SIGTERM too, with all processes that it started, which end when they are dropped.
async fn interruptible(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}
