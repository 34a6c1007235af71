//! `./demo`: a small mesh on this machine, live traffic, and what operators do to it while nobody notices.
//!
//! It fails unless all that it says held: no failed request, each change in force at every subscribed proxy, the canary's
//! shares as asked, certificates renewed everywhere, every process alive that was not killed on purpose.

mod cast;
mod status;
mod traffic;
mod view;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use cast::{CERTIFICATE_LIFETIME, Cast};
use status::Status;
use tokio::signal::unix::{SignalKind, signal};
use traffic::{Tally, Traffic};
use view::View;

use crate::{mesh::LIMIT, scenario::destination, wait::within};

/// For one change to be in force everywhere: ten times and more what is expected.
const IN_FORCE: Duration = Duration::from_secs(10);
/// A share may differ from what was asked by so many standard deviations: one run in a million does by chance.
const SHARE_TOLERANCE: f64 = 5.0;
/// Edits made in a row to measure how fast policy takes effect.
const EDITS: u32 = 50;
/// Between looks at the control plane and the sidecars.
const LOOK: Duration = Duration::from_secs(1);

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
    let mut interrupted = pin!(interrupted()?);
    let mut view = View::new(args.plain);
    view.event("starting a control plane and 8 workloads, each with a sidecar")?;
    let begun = Instant::now();
    let cast = tokio::select! {
        cast = Cast::start(&args.folder) => cast?,
        stop = &mut interrupted => return Err(stop),
    };
    view.event(&format!("all sidecars ready after {:.1} s; traffic begins", begun.elapsed().as_secs_f64()))?;
    let traffic = cast.traffic(args.rate)?;
    let mut demo = Demo {
        step: Duration::from_secs(args.step),
        cast,
        traffic,
        view,
        status: Status::default(),
        looked: None,
        dead: BTreeSet::new(),
        latencies: Vec::new(),
    };
    let mut outcome = tokio::select! {
        outcome = demo.play() => outcome,
        stop = &mut interrupted => Err(stop),
    };
    if args.stay && outcome.is_ok() {
        outcome = demo.summary();
        if outcome.is_ok() {
            tokio::select! {
                ended = demo.stay() => outcome = ended,
                _ = &mut interrupted => {}
            }
        }
    }
    let ended = demo.end().await;
    if !args.stay && outcome.is_ok() && ended.is_ok() {
        outcome = demo.summary();
    }
    let logs = args.folder.join("logs");
    outcome.and(ended).map_err(|error| anyhow!("{error:#} (logs are in {})", logs.display()))
}

/// Comes true when somebody wants the demo to end. Signals count from the call on.
fn interrupted() -> Result<impl Future<Output = anyhow::Error>> {
    let [mut interrupt, mut terminate, mut hang_up] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        anyhow!("interrupted")
    })
}

/// What the demo knows as it goes.
#[derive(Debug)]
struct Demo {
    step: Duration,
    cast: Cast,
    traffic: Traffic,
    view: View,
    status: Status,
    /// When the status is from; none: to be looked at anew.
    looked: Option<Instant>,
    /// Workloads killed on purpose.
    dead: BTreeSet<String>,
    /// From the file's write to the last proxy's word that it is in force.
    latencies: Vec<Duration>,
}

impl Demo {
    async fn play(&mut self) -> Result<()> {
        self.watch("all to v1", self.step).await?;
        self.share(0.0, &Tally::default(), "100/0")?;
        for (v1, v2) in [(90, 10), (50, 50)] {
            self.canary(v1, v2).await?;
        }
        self.edits().await?;
        self.canary(0, 100).await?;
        self.kill("shop-v2-1").await?;
        self.rotation().await
    }

    /// Changes the weights by the file, waits until they are in force, and checks the traffic after that.
    async fn canary(&mut self, v1: u32, v2: u32) -> Result<()> {
        let latency = self.change(v1, v2).await?;
        let Status { programmed, subscribed, .. } = self.status;
        self.view.event(&format!(
            "canary {v1}/{v2}: in force at {programmed}/{subscribed} proxies {:.0} ms after the write",
            latency.as_secs_f64() * 1000.0
        ))?;
        self.looked = None;
        let before = self.traffic.tally();
        self.watch(&format!("canary {v1}/{v2}"), self.step).await?;
        let asked = 100.0 * f64::from(v2) / f64::from(v1 + v2);
        self.share(asked, &before, &format!("{v1}/{v2}"))
    }

    /// Writes the file and returns how long it took until every subscribed proxy served it.
    async fn change(&mut self, v1: u32, v2: u32) -> Result<Duration> {
        let (before, clients) = (self.cast.route.borrow().generation, self.cast.clients.len());
        let written = Instant::now();
        self.cast.write_route(v1, v2)?;
        let in_force = self.cast.route.wait_for(|status| {
            let everywhere = status.settled && status.programmed == status.subscribed;
            status.generation > before && everywhere && status.subscribed as usize >= clients
        });
        let what = format!("weights {v1}/{v2} in force at every proxy");
        within(&what, IN_FORCE, async { Ok(in_force.await.map(drop)?) }).await?;
        let latency = written.elapsed();
        self.latencies.push(latency);
        self.status.route(&self.cast);
        Ok(latency)
    }

    /// Many small edits, for a figure worth its name.
    async fn edits(&mut self) -> Result<()> {
        let step = format!("{EDITS} edits in a row");
        for n in 1..=EDITS {
            self.change(50 + n % 2, 50).await?;
            self.view.frame(&step, &self.traffic.tally(), &self.status)?;
        }
        let (p50, p99) = (self.latency(0.5), self.latency(0.99));
        self.view.event(&format!("{step}: in force everywhere after p50 {p50:.0} ms, p99 {p99:.0} ms"))
    }

    async fn kill(&mut self, name: &str) -> Result<()> {
        self.view.event(&format!("kill -9 {name}: application and sidecar, while it serves"))?;
        self.dead.insert(name.to_owned());
        self.cast.kill(name).await?;
        self.looked = None;
        self.watch(&format!("{name} is dead"), self.step).await?;
        self.cast.restart(name).await?;
        self.dead.remove(name);
        self.status.forget(name);
        let before = self.traffic.tally();
        self.view.event(&format!("{name} is back"))?;
        let served = |tally: &Tally| tally.backends.values().filter_map(|b| b.instances.get(name)).sum::<u64>();
        let deadline = Instant::now() + LIMIT * 2;
        while served(&self.traffic.tally()) <= served(&before) {
            ensure!(Instant::now() < deadline, "{name} was brought back, and got no request in a minute");
            self.watch(&format!("{name} is back, and will be tried soon"), view::FRAME).await?;
        }
        self.view.event(&format!("{name} serves again, {} failed so far", self.traffic.tally().failed))
    }

    /// Waits until every sidecar has a newer certificate than its first.
    async fn rotation(&mut self) -> Result<()> {
        let deadline = Instant::now() + CERTIFICATE_LIFETIME * 2;
        let all = self.cast.sidecars().count();
        while self.status.renewed() < all {
            let renewed = self.status.renewed();
            ensure!(Instant::now() < deadline, "only {renewed} of {all} sidecars renewed their certificate in time");
            self.watch("certificates are being renewed", LOOK).await?;
        }
        self.view.event(&format!(
            "every sidecar renewed its {} s certificate, {} failed so far",
            CERTIFICATE_LIFETIME.as_secs(),
            self.traffic.tally().failed
        ))
    }

    /// Shows what happens for a while; fails if something is not as it should be.
    async fn watch(&mut self, step: &str, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        let mut frames = tokio::time::interval(view::FRAME);
        while Instant::now() < end {
            frames.tick().await;
            self.draw(step).await?;
            let problems = self.status.problems.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
            ensure!(problems.is_empty(), "{problems}");
        }
        Ok(())
    }

    async fn draw(&mut self, step: &str) -> Result<()> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.status.look(&self.cast, &self.dead).await;
            self.looked = Some(Instant::now());
        }
        self.status.route(&self.cast);
        self.view.frame(step, &self.traffic.tally(), &self.status)
    }

    /// Checks the share of v2 in the traffic since `before`.
    fn share(&mut self, asked: f64, before: &Tally, weights: &str) -> Result<()> {
        let now = self.traffic.tally();
        let since = |name: &str| {
            let count = |tally: &Tally| tally.backends.get(name).map_or(0, |backend| backend.requests);
            count(&now) - count(before)
        };
        let (v1, v2) = (since("shop-v1"), since("shop-v2"));
        ensure!(v1 + v2 > 0, "no request was answered at weights {weights}: {:?}", now.failures);
        let total = (v1 + v2) as f64;
        let share = 100.0 * v2 as f64 / total;
        let deviation = (asked * (100.0 - asked) / total).sqrt();
        // Requests decided before the change may be counted after it.
        let in_flight = 100.0 * 32.0 / total;
        ensure!(
            (share - asked).abs() <= SHARE_TOLERANCE * deviation + in_flight,
            "weights {weights}: v2 got {share:.1} % of {} requests",
            v1 + v2
        );
        self.view.event(&format!(
            "weights {weights}: v2 got {share:.1} % of {} requests, {} failed so far",
            v1 + v2,
            now.failed
        ))
    }

    /// The latency that a share of changes stayed below, ms.
    fn latency(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    }

    fn summary(&mut self) -> Result<()> {
        let tally = self.traffic.tally();
        let (callers, failed) = (tally.callers(), tally.failed);
        let backends = tally.backends.iter().map(|(name, backend)| format!("{name} {}", backend.requests));
        let latency = format!("p50 {:.0} ms, p99 {:.0} ms", self.latency(0.5), self.latency(0.99));
        self.view.text(&[
            "What was shown".to_owned(),
            format!("  requests and echoes     {}: {}", tally.requests(), backends.collect::<Vec<_>>().join(", ")),
            format!("  failed                  {failed}"),
            format!("  callers proven by mTLS  {}", callers.keys().copied().collect::<Vec<_>>().join(", ")),
            format!("  policy changes          {}, each in force at every subscribed proxy:", self.latencies.len()),
            format!("                          {latency} after the file was written"),
            "  survived                an instance killed and back, every certificate renewed".to_owned(),
        ])?;
        ensure!(failed == 0, "{failed} of {} requests failed: {:?}", tally.requests(), tally.failures);
        ensure!(callers.len() == 1, "applications saw callers {callers:?}, and only `web` called");
        self.view.text(&["All of it held.".to_owned()])
    }

    /// Leaves everything running.
    async fn stay(&mut self) -> Result<()> {
        let web = self.cast.clients.first().context("no client")?;
        let shop = web.calls(&destination("shop"))?;
        let (admin, file, state) = (web.admin_address(), self.cast.route_file(), self.cast.mesh.state());
        let (file, state) = (file.display(), state.display());
        self.view.text(&[
            "The mesh stays up until Ctrl-C. In another terminal:".to_owned(),
            format!("  curl http://{shop}/    # as web-1, through both sidecars"),
            format!("  $EDITOR {file}    # change the weights, save"),
            format!("  target/debug/leno wait httproute/shop --state {state}"),
            format!("  target/debug/leno get --state {state}"),
            format!("  target/debug/leno get proxies --state {state}"),
            format!("  curl http://{admin}/metrics"),
        ])?;
        loop {
            tokio::time::sleep(view::FRAME).await;
            self.draw("staying until Ctrl-C").await?;
        }
    }

    /// Ends the traffic, then everything else by SIGTERM: all must end well.
    async fn end(&mut self) -> Result<()> {
        // Also if nobody listens any more.
        let _ = self.view.event("ending everything");
        self.traffic.end().await;
        self.cast.mesh.processes().end(LIMIT).await
    }
}
