//! Routes and policies of every kind are written, broken and removed at random under load: no request and no connection fails
//! that nothing in force explains, what is bad is reported and never in force, and memory stays flat.

mod documents;
mod opaque;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use documents::{Slot, Why, slots};
use leno_e2e::{
    load::{Failure, Load, Report, Running},
    mesh::{
        LIMIT, Mesh, Options,
        documents::{NAMESPACE, service},
    },
    operator,
    scenario::Scenario,
};
use leno_proto::v1::ObjectStatus;
use opaque::Opaque;
use tokio::{task::JoinSet, time::sleep};

/// A minute in all.
const HARMLESS: Duration = Duration::from_secs(20);
const HARMFUL: Duration = Duration::from_secs(40);
/// A client may learn so much later of what ended its stream or its connection.
const NOTICE: Duration = Duration::from_secs(2);

/// What was in force, and when at most.
#[derive(Debug)]
struct Held {
    service: &'static str,
    explains: Why,
    from: Instant,
    until: Option<Instant>,
}

#[derive(Debug, Default)]
struct History {
    held: Vec<Held>,
    written: usize,
    refused: usize,
    removed: usize,
}

type Shared = Arc<Mutex<History>>;

fn lock(history: &Shared) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is in force of an object.
struct InForce {
    says: &'static str,
    generation: u64,
    /// In the history.
    held: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_change_at_random_under_load() -> Result<()> {
    let seed =
        std::env::var("LENO_E2E_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}: LENO_E2E_SEED={seed} repeats it");
    let scenario = Scenario::with(Options::default(), &["web", "rpc", "next"], 2, "http").await?;
    for name in ["web", "rpc", "next"] {
        let named = service(NAMESPACE, name, 80, "http").replacen("- port:", "- name: main\n      port:", 1);
        let named = if name == "rpc" { named.replacen(": http", ": kubernetes.io/h2c", 1) } else { named };
        scenario.mesh.change(&format!("service-{name}.yaml"), &named, &format!("service/{name}")).await?;
    }

    let opaque = Opaque::start(&scenario.mesh).await?;

    // Nothing in these explains a failure.
    let loads = Loads::start(&scenario, &opaque)?;
    let history = churn(&scenario.mesh, slots(true), seed, HARMLESS).await?;
    loads.answered(100).await?;
    let reports = loads.stop(&opaque).await?;
    for (name, report) in &reports {
        report.unharmed(100).with_context(|| format!("{name}, seed {seed}: no policy fails a request"))?;
    }
    println!("harmless: {}", told(&lock(&history), &reports));
    let before = memory(&scenario, &opaque)?;

    let loads = Loads::start(&scenario, &opaque)?;
    let history = churn(&scenario.mesh, slots(false), seed.wrapping_add(1), HARMFUL).await?;
    loads.answered(101).await?;
    let reports = loads.stop(&opaque).await?;
    println!("harmful: {}", told(&lock(&history), &reports));
    for (name, report) in &reports {
        ensure!(report.ok > 100, "{name}: only {} requests were answered", report.ok);
        for failure in &report.failures {
            explained(&lock(&history), name, failure).with_context(|| format!("seed {seed}"))?;
        }
    }
    let failed: u64 = reports.iter().map(|(_, report)| report.failed).sum();
    ensure!(failed > 0, "what is to fail requests failed none");

    // All removed, nothing is left of it.
    let loads = Loads::start(&scenario, &opaque)?;
    loads.more(100).await?;
    for (name, report) in loads.stop(&opaque).await? {
        report.unharmed(100).with_context(|| format!("{name}, seed {seed}, when all was removed"))?;
    }
    stayed_flat(&before, &memory(&scenario, &opaque)?)?;
    scenario.mesh.end().await
}

/// Requests of every protocol, to the service that each is named for.
struct Loads(Vec<(&'static str, Running)>);

impl Loads {
    fn start(scenario: &Scenario, opaque: &Opaque) -> Result<Self> {
        let to =
            |service: &str| anyhow::Ok(Load::new(scenario.address(service)?, &format!("{service}.{NAMESPACE}:80")));
        let mut loads = vec![
            ("web", to("web")?.connections(4).multiplexed(4).rate(80.0).start()),
            ("web", to("web")?.connections(2).multiplexed(2).path("/delay/40").rate(20.0).start()),
            ("web", to("web")?.connections(2).multiplexed(2).post().reconnect_after(20).rate(20.0).start()),
            ("rpc", to("rpc")?.connections(0).calls(6).streams(4).rate(60.0).start()),
        ];
        loads.extend(opaque.loads()?);
        Ok(Self(loads))
    }

    async fn more(&self, requests: u64) -> Result<()> {
        // Counted from now on for all: the last does not wait for the others.
        let goals: Vec<u64> = self.0.iter().map(|(_, running)| running.ok() + requests).collect();
        for ((_, running), goal) in self.0.iter().zip(goals) {
            running.more(goal.saturating_sub(running.ok())).await?;
        }
        Ok(())
    }

    /// However slow the machine.
    async fn answered(&self, requests: u64) -> Result<()> {
        for (_, running) in &self.0 {
            running.answered(requests).await?;
        }
        Ok(())
    }

    async fn stop(self, opaque: &Opaque) -> Result<Vec<(&'static str, Report)>> {
        let mut reports = Vec::new();
        for (name, running) in self.0 {
            reports.push((name, running.stop().await?));
        }
        opaque.tell(&mut reports).await?;
        Ok(reports)
    }
}

/// Every object changes by itself for so long; then all are removed.
async fn churn(mesh: &Mesh, slots: Vec<Slot>, seed: u64, duration: Duration) -> Result<Shared> {
    let history = Shared::default();
    let end = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for (n, slot) in slots.into_iter().enumerate() {
        let random = fastrand::Rng::with_seed(seed.wrapping_add(n as u64 * 7919));
        let changing =
            Changing { slot, config: mesh.config(), state: mesh.state(), history: history.clone(), in_force: None };
        tasks.spawn(changing.run(random, end));
    }
    while let Some(ended) = tasks.join_next().await {
        ended?.with_context(|| format!("seed {seed}"))?;
    }
    Ok(history)
}

/// An object that changes.
struct Changing {
    slot: Slot,
    config: std::path::PathBuf,
    state: std::path::PathBuf,
    history: Shared,
    in_force: Option<InForce>,
}

impl Changing {
    async fn run(mut self, mut random: fastrand::Rng, end: Instant) -> Result<()> {
        let what = format!("{} {}", self.slot.kind, self.slot.name);
        let mut written = false;
        while Instant::now() < end {
            match random.u8(..10) {
                0..=5 => {
                    let good = self.slot.good;
                    let (says, explains) = good.get(random.usize(..good.len())).copied().context("a form")?;
                    self.good(says, explains).await.with_context(|| format!("{what} says {says}"))?;
                    written = true;
                }
                // A bad route that follows no good one is answered with 500 (`routes.rs`): no failure that its own policies explain.
                6 | 7 if self.in_force.is_some() || !self.slot.kind.ends_with("Route") => {
                    let bad = self.slot.bad;
                    let (says, field) = bad.get(random.usize(..bad.len())).copied().context("a form")?;
                    self.bad(says, field).await.with_context(|| format!("{what} says {says}"))?;
                    written = true;
                }
                _ if written => {
                    self.removed().await.with_context(|| format!("{what} is removed"))?;
                    written = false;
                }
                _ => {}
            }
            // Its pace: no outcome depends on it.
            sleep(Duration::from_millis(random.u64(50..800))).await;
        }
        if written {
            self.removed().await.with_context(|| format!("{what} is removed at the end"))?;
        }
        Ok(())
    }

    async fn good(&mut self, says: &'static str, explains: Why) -> Result<()> {
        let held = {
            let mut history = lock(&self.history);
            history.written += 1;
            history.held.push(Held { service: self.slot.service, explains, from: Instant::now(), until: None });
            history.held.len() - 1
        };
        self.write(says)?;
        let before = self.in_force.take();
        let status = self
            .becomes(|status| {
                let newer = match &before {
                    Some(before) if before.says == says => status.generation == before.generation,
                    Some(before) => status.generation > before.generation,
                    None => true,
                };
                !status.absent && status.errors.is_empty() && everywhere(status) && newer
            })
            .await?;
        self.over(before);
        self.in_force = Some(InForce { says, generation: status.generation, held });
        Ok(())
    }

    /// Reported, with its field, and the last good form stays.
    async fn bad(&mut self, says: &str, field: &str) -> Result<()> {
        lock(&self.history).refused += 1;
        self.write(says)?;
        let generation = self.in_force.as_ref().map(|held| held.generation);
        let file = self.slot.file();
        self.becomes(|status| {
            let kept = match generation {
                Some(generation) => status.held_over && status.generation == generation && everywhere(status),
                None => status.absent,
            };
            kept && status.errors.iter().any(|error| error.file == file && error.field == field)
        })
        .await?;
        Ok(())
    }

    async fn removed(&mut self) -> Result<()> {
        lock(&self.history).removed += 1;
        std::fs::remove_file(self.config.join(self.slot.file())).context("remove its file")?;
        let file = self.slot.file();
        self.becomes(|status| {
            status.absent && everywhere(status) && status.errors.iter().all(|error| error.file != file)
        })
        .await?;
        let before = self.in_force.take();
        self.over(before);
        Ok(())
    }

    fn write(&self, says: &str) -> Result<()> {
        leno_e2e::mesh::write_atomically(&self.config.join(self.slot.file()), &self.slot.document(says))
    }

    /// What was in force is so nowhere any more.
    fn over(&self, before: Option<InForce>) {
        let Some(before) = before else { return };
        if let Some(held) = lock(&self.history).held.get_mut(before.held) {
            held.until = Some(Instant::now());
        }
    }

    async fn becomes(&self, so: impl Fn(&ObjectStatus) -> bool) -> Result<ObjectStatus> {
        let mut last = None;
        let waiting = async {
            let mut updates = operator::watch(&self.state, self.slot.kind, NAMESPACE, self.slot.name).await?;
            while let Some(status) = updates.message().await? {
                if so(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            anyhow::bail!("the control plane stopped answering")
        };
        match tokio::time::timeout(LIMIT, waiting).await {
            Ok(ended) => ended,
            Err(_) => anyhow::bail!("not in force within {LIMIT:?}: {last:?}"),
        }
    }
}

fn everywhere(status: &ObjectStatus) -> bool {
    status.settled && status.laggards.is_empty() && status.programmed == status.subscribed
}

/// A failure is explained by what may have been in force while it was under way, at the service that was called.
fn explained(history: &History, service: &str, failure: &Failure) -> Result<()> {
    // Only of what ends without an answer clients may learn later.
    let broke = failure.reason == "broken" || failure.reason.starts_with("grpc ");
    let notice = if broke { NOTICE } else { Duration::ZERO };
    let took = failure.ended - failure.began;
    let in_time = |why: Why| {
        // A message of a stream is younger than the stream, whose time it is that is over.
        !broke || took <= why.after + NOTICE && (service == "rpc" || took >= why.after)
    };
    let explains = |held: &&Held| {
        held.service == service
            && held.explains.reasons.contains(&failure.reason.as_str())
            && in_time(held.explains)
            && held.from <= failure.ended
            && held.until.is_none_or(|until| failure.began <= until + notice.max(held.explains.felt))
    };
    ensure!(history.held.iter().any(|held| explains(&held)), "{service}: no policy in force explains: {failure}");
    Ok(())
}

fn told(history: &History, reports: &[(&'static str, Report)]) -> String {
    let (ok, failed) = reports.iter().fold((0, 0), |(ok, failed), (_, one)| (ok + one.ok, failed + one.failed));
    let mut reasons = std::collections::BTreeMap::<&str, u32>::new();
    for failure in reports.iter().flat_map(|(_, report)| &report.failures) {
        *reasons.entry(&failure.reason).or_default() += 1;
    }
    let History { written, refused, removed, .. } = history;
    format!("{written} good, {refused} bad, {removed} removed; {ok} requests well, {failed} failed: {reasons:?}")
}

/// Memory that is the processes' own, bytes.
fn memory(scenario: &Scenario, opaque: &Opaque) -> Result<Vec<(String, u64)>> {
    let sidecars = scenario.instances.iter().map(|instance| &instance.sidecar).chain([&scenario.client]);
    let sidecars = sidecars.chain(&opaque.servers).chain([&opaque.caller]);
    let mut all = vec![("control-plane".to_owned(), scenario.mesh.control_plane().anonymous()?)];
    for sidecar in sidecars {
        let process = sidecar.process()?;
        all.push((process.name().to_owned(), process.anonymous()?));
    }
    Ok(all)
}

/// Bytes. Each of more than a thousand changes may leave less than a KiB behind.
const GROWTH: u64 = 1 << 20;
/// Bytes of failed and of refused requests, and of those found by a header, that a proxy keeps for `leno explain`: 512 KiB of each, which
/// is full after forty seconds of failures.
const KEPT: u64 = 3 << 19;

/// After twenty seconds of changes, forty more add next to nothing but what is kept of requests, within its bounds.
fn stayed_flat(before: &[(String, u64)], after: &[(String, u64)]) -> Result<()> {
    for ((name, before), (_, after)) in before.iter().zip(after) {
        println!("{name}: {before} → {after} bytes");
        let most = if name == "control-plane" { GROWTH } else { GROWTH + KEPT };
        ensure!(*after <= before + most, "{name} grew from {before} to {after} bytes");
    }
    Ok(())
}
