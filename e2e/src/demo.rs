//! `./demo`: a small mesh on this machine, live traffic, and what operators do to it while nobody notices.
//!
//! It fails unless all that it says held: no failed request, each change in force at every subscribed proxy, the canary's
//! shares as asked, certificates renewed everywhere.

mod mesh;
mod traffic;
mod view;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use mesh::{Mesh, Status};
use traffic::{Tally, Traffic};
use view::View;

use crate::wait::within;

/// For one change to be in force everywhere: ten times and more what is expected.
const IN_FORCE: Duration = Duration::from_secs(10);
/// A share may differ from what was asked by so many points: over four standard deviations at the least traffic.
const SHARE_TOLERANCE: f64 = 6.0;
/// Edits made in a row to measure how fast policy takes effect.
const EDITS: u32 = 50;

/// A service mesh on this machine: a canary, a killed instance, rotating certificates, under live traffic.
#[derive(Debug, clap::Parser)]
#[command(name = "demo")]
pub struct Args {
    /// Leave the mesh running at the end, and print what to try.
    #[arg(long)]
    stay: bool,
    /// Requests a second.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(50..=5000))]
    rate: u32,
    /// Seconds that each step is watched for.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..=600))]
    step: u64,
    /// Plain lines, also on a terminal.
    #[arg(long)]
    plain: bool,
    /// Folder for configuration, state and logs; emptied first.
    #[arg(long, default_value = "target/demo")]
    folder: PathBuf,
}

/// Runs the demo; fails if anything it shows did not hold.
pub async fn run(args: Args) -> Result<()> {
    let mut view = View::new(args.plain);
    view.event("starting a control plane and 8 workloads, each with a sidecar");
    let begun = Instant::now();
    let mut mesh = Mesh::start(&args.folder).await?;
    view.event(&format!("all sidecars ready after {:.1} s; traffic begins", begun.elapsed().as_secs_f64()));
    let mut traffic = Traffic::new();
    for client in ["web-1", "web-2"] {
        let outbound = &mesh.named(client)?.outbound;
        let (Some((shop, _)), Some((ledger, _))) = (outbound.first(), outbound.last()) else {
            bail!("{client} calls nobody")
        };
        traffic.http(*shop, 16, args.rate / 2);
        traffic.tcp("ledger", *ledger, 20);
    }
    let mut demo = Demo {
        step: Duration::from_secs(args.step),
        weights: (100, 0),
        status: Status::default(),
        first: BTreeMap::new(),
        latencies: Vec::new(),
    };
    let outcome = demo.play(&mut mesh, &traffic, &mut view).await;
    if args.stay && outcome.is_ok() {
        stay(&mesh, &mut view, &traffic, &mut demo).await?;
    }
    let tally = traffic.end().await;
    let ended = mesh.end().await;
    outcome?;
    ended?;
    demo.summary(&tally)
}

/// What the demo knows as it goes.
#[derive(Debug)]
struct Demo {
    step: Duration,
    weights: (u32, u32),
    status: Status,
    /// When each sidecar's first certificate ends.
    first: BTreeMap<String, String>,
    /// From the file's write to the last proxy's word that it is in force.
    latencies: Vec<Duration>,
}

impl Demo {
    async fn play(&mut self, mesh: &mut Mesh, traffic: &Traffic, view: &mut View) -> Result<()> {
        self.first = mesh.certificates().await?;
        self.watch("all to v1", self.step, mesh, traffic, view).await?;
        self.share(traffic, view, 0.0, &Tally::default(), "100/0")?;
        for (v1, v2) in [(90, 10), (50, 50)] {
            self.canary(v1, v2, mesh, traffic, view).await?;
        }
        self.edits(mesh, view).await?;
        self.canary(0, 100, mesh, traffic, view).await?;
        self.kill("shop-v2-1", mesh, traffic, view).await?;
        self.rotation(mesh, traffic, view).await
    }

    /// Changes the weights by the file, waits until they are in force, and checks the traffic after that.
    async fn canary(&mut self, v1: u32, v2: u32, mesh: &Mesh, traffic: &Traffic, view: &mut View) -> Result<()> {
        let latency = self.change(v1, v2, mesh).await?;
        let (programmed, subscribed) = (self.status.programmed, self.status.subscribed);
        view.event(&format!(
            "canary {v1}/{v2}: in force at {programmed}/{subscribed} proxies {:.0} ms after the file was written",
            latency.as_secs_f64() * 1000.0
        ));
        let before = traffic.tally();
        self.watch(&format!("canary {v1}/{v2}"), self.step, mesh, traffic, view).await?;
        let asked = 100.0 * f64::from(v2) / f64::from(v1 + v2);
        self.share(traffic, view, asked, &before, &format!("{v1}/{v2}"))
    }

    /// Writes the file and returns how long it took until every subscribed proxy served it.
    async fn change(&mut self, v1: u32, v2: u32, mesh: &Mesh) -> Result<Duration> {
        let mut updates = mesh.watch_route().await?;
        let now = within("the route's status", IN_FORCE, async { Ok(updates.message().await?) }).await?;
        let before = now.context("the control plane says nothing of the route")?.generation;
        let written = Instant::now();
        mesh.write_route(v1, v2)?;
        let in_force = within(&format!("weights {v1}/{v2} in force at every proxy"), IN_FORCE, async {
            while let Some(status) = updates.message().await.context("follow the route's status")? {
                if status.generation > before && status.subscribed > 0 && status.programmed == status.subscribed {
                    return Ok(status);
                }
            }
            bail!("the control plane ended the watch")
        })
        .await?;
        let latency = written.elapsed();
        self.latencies.push(latency);
        self.weights = (v1, v2);
        self.status.generation = in_force.generation;
        self.status.programmed = in_force.programmed;
        self.status.subscribed = in_force.subscribed;
        Ok(latency)
    }

    /// Many small edits, for a figure worth its name.
    async fn edits(&mut self, mesh: &Mesh, view: &mut View) -> Result<()> {
        for n in 1..=EDITS {
            self.change(50 + n % 2, 50, mesh).await?;
        }
        let (p50, p99) = (self.latency(0.5), self.latency(0.99));
        view.event(&format!(
            "{EDITS} edits in a row: each in force everywhere, p50 {p50:.0} ms, p99 {p99:.0} ms after the write"
        ));
        Ok(())
    }

    async fn kill(&mut self, name: &str, mesh: &mut Mesh, traffic: &Traffic, view: &mut View) -> Result<()> {
        view.event(&format!("kill -9 {name}: application and sidecar, while it serves"));
        mesh.kill(name).await?;
        self.watch(&format!("{name} is dead"), self.step, mesh, traffic, view).await?;
        mesh.restart(name).await?;
        let before = traffic.tally();
        view.event(&format!("{name} is back"));
        let served = |tally: &Tally| tally.backends.values().filter_map(|b| b.instances.get(name)).sum::<u64>();
        let deadline = Instant::now() + Duration::from_secs(60);
        while served(&traffic.tally()) <= served(&before) {
            ensure!(Instant::now() < deadline, "{name} was brought back, and got no request in a minute");
            self.watch(&format!("{name} is back"), view::FRAME, mesh, traffic, view).await?;
        }
        view.event(&format!("{name} serves again; failed requests so far: {}", traffic.tally().failed));
        Ok(())
    }

    /// Waits until every sidecar has a newer certificate than its first.
    async fn rotation(&mut self, mesh: &Mesh, traffic: &Traffic, view: &mut View) -> Result<()> {
        let deadline = Instant::now() + mesh::CERTIFICATE_LIFETIME * 2;
        while self.renewed(mesh).await? < mesh.workloads.len() {
            ensure!(
                Instant::now() < deadline,
                "only {} of {} sidecars renewed their certificate in time",
                self.status.renewed,
                mesh.workloads.len()
            );
            self.watch("certificates are being renewed", Duration::from_secs(1), mesh, traffic, view).await?;
        }
        view.event(&format!(
            "every sidecar renewed its {} s certificate under traffic; failed requests so far: {}",
            mesh::CERTIFICATE_LIFETIME.as_secs(),
            traffic.tally().failed
        ));
        Ok(())
    }

    /// How many sidecars have another certificate than their first.
    async fn renewed(&mut self, mesh: &Mesh) -> Result<usize> {
        let now = mesh.certificates().await?;
        self.status.renewed =
            now.iter().filter(|(name, end)| self.first.get(*name).is_some_and(|first| first != *end)).count();
        Ok(self.status.renewed)
    }

    /// Draws what happens for a while.
    async fn watch(
        &mut self,
        step: &str,
        time: Duration,
        mesh: &Mesh,
        traffic: &Traffic,
        view: &mut View,
    ) -> Result<()> {
        let end = Instant::now() + time;
        let mut frames = tokio::time::interval(view::FRAME);
        while Instant::now() < end {
            frames.tick().await;
            if self.status.subscribed == 0 {
                self.first_status(mesh).await?;
            }
            mesh.proxies(&mut self.status).await?;
            self.renewed(mesh).await?;
            let weights = format!("{}/{}", self.weights.0, self.weights.1);
            view.frame(step, &weights, &traffic.tally(), &self.status);
        }
        Ok(())
    }

    async fn first_status(&mut self, mesh: &Mesh) -> Result<()> {
        let mut updates = mesh.watch_route().await?;
        if let Some(status) = within("the route's status", IN_FORCE, async { Ok(updates.message().await?) }).await? {
            (self.status.generation, self.status.programmed, self.status.subscribed) =
                (status.generation, status.programmed, status.subscribed);
        }
        Ok(())
    }

    /// Checks the share of v2 in the traffic since `before`.
    fn share(&self, traffic: &Traffic, view: &mut View, asked: f64, before: &Tally, weights: &str) -> Result<()> {
        let now = traffic.tally();
        let since = |name: &str| {
            let count = |tally: &Tally| tally.backends.get(name).map_or(0, |backend| backend.requests);
            count(&now) - count(before)
        };
        let (v1, v2) = (since("shop-v1"), since("shop-v2"));
        ensure!(v1 + v2 > 0, "no request was answered at weights {weights}: {:?}", now.failures);
        let share = 100.0 * v2 as f64 / (v1 + v2) as f64;
        let tolerance = if asked == 0.0 || asked == 100.0 { 0.0 } else { SHARE_TOLERANCE };
        // Requests decided before the change may be counted after it.
        let in_flight = 100.0 * 32.0 / (v1 + v2) as f64;
        ensure!(
            (share - asked).abs() <= tolerance + in_flight,
            "weights {weights}: v2 got {share:.1} % of {} requests",
            v1 + v2
        );
        view.event(&format!(
            "weights {weights}: v2 got {share:.1} % of {} requests, {} failed so far",
            v1 + v2,
            now.failed
        ));
        Ok(())
    }

    /// The latency that a share of changes stayed below, ms.
    fn latency(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    }

    fn summary(&self, tally: &Tally) -> Result<()> {
        let identities: std::collections::BTreeSet<_> = tally.backends.values().flat_map(|b| &b.identities).collect();
        println!("\nWhat was shown");
        println!("  requests and echoes      {} (by backend: {})", tally.requests(), by_backend(tally));
        println!("  failed                   {}", tally.failed);
        println!("  callers proven by mTLS   {identities:?}");
        println!(
            "  policy changes           {}, each in force at every subscribed proxy: p50 {:.0} ms, p99 {:.0} ms after the file was written",
            self.latencies.len(),
            self.latency(0.5),
            self.latency(0.99)
        );
        println!("  survived                 an instance killed and brought back; every certificate renewed");
        ensure!(tally.failed == 0, "{} of {} requests failed: {:?}", tally.failed, tally.requests(), tally.failures);
        ensure!(identities.len() == 1, "applications saw callers {identities:?}, and only `web` called");
        println!("\nAll of it held.");
        Ok(())
    }
}

fn by_backend(tally: &Tally) -> String {
    tally.backends.iter().map(|(name, backend)| format!("{name} {}", backend.requests)).collect::<Vec<_>>().join(", ")
}

/// Leaves everything running until Ctrl-C.
async fn stay(mesh: &Mesh, view: &mut View, traffic: &Traffic, demo: &mut Demo) -> Result<()> {
    let web = mesh.named("web-1")?;
    let state = mesh.folder.join("state");
    let state = state.display();
    view.event("the mesh stays up until Ctrl-C. To try in another terminal:");
    for (listen, destination) in &web.outbound {
        if destination.starts_with("shop") {
            println!("    curl http://{listen}/                     # as web-1, through both sidecars");
        }
    }
    println!("    $EDITOR {}              # change the weights, save", mesh.route_file().display());
    println!("    target/debug/leno wait httproute/shop --state {state}");
    println!("    target/debug/leno get --state {state}");
    println!("    curl http://{}/metrics\n", web.admin);
    tokio::select! {
        ended = demo.watch("staying", Duration::MAX / 2, mesh, traffic, view) => ended,
        signal = tokio::signal::ctrl_c() => signal.context("wait for Ctrl-C"),
    }
}
