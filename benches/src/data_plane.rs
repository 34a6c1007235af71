//! Every contender on the same work, in interleaved rounds: what another program does to the machine, or the machine
//! to itself, meets all of them.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use leno_e2e::process::Processes;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::{
    contender::Contender,
    figures::{Sample, Series, name},
    load,
    machine::{self, Snapshot},
    report, results,
    rig::{Running, Servers},
    tools,
    work::{self, Group, Load, Work},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Works, families of works, or contenders; none: all. See --list.
    subset: Vec<String>,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// A first look: two rounds of one second, fewer works, 1,000 idle connections instead of 10,000.
    #[arg(long)]
    quick: bool,
    /// How often a measurement is made again if others took more than 15 % of the machine meanwhile; the least disturbed
    /// one counts.
    #[arg(long, default_value_t = 2)]
    repeats: u32,
    /// Folder of the contenders' files.
    #[arg(long, default_value = "benches/contenders")]
    contenders: PathBuf,
    /// Prints works and contenders, and measures nothing.
    #[arg(long)]
    list: bool,
}

/// Others may take so much of the machine.
const DISTURBED: f64 = 0.15;
/// What a proxy gets to give back memory that it needs no more, before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);
/// Longest wait for the servers' end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for a step of idle connections.
const IDLE_LIMIT: Duration = Duration::from_secs(120);

/// What is measured, and how long.
struct Bench {
    rounds: usize,
    seconds: u64,
    repeats: u32,
    idle_steps: &'static [u32],
    contenders: PathBuf,
    servers: Servers,
    folder: TempDir,
}

/// Contenders that take work, and what was found about them.
struct Entry<'c> {
    contender: &'c Contender,
    running: Option<Running>,
    samples: Vec<Sample>,
    failed: Option<String>,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let known = Contender::all(&args.contenders)?;
    let (mut works, mut contenders) = chosen(&args.subset, &known)?;
    works.retain(|work| !args.quick || !args.subset.is_empty() || work.quick());
    if args.list {
        list(&known);
        return Ok(());
    }
    let mut versions = BTreeMap::new();
    contenders.retain(|contender| match contender.version() {
        Ok(version) => versions.insert(contender.name.clone(), version).is_none(),
        Err(error) => {
            eprintln!("{} is left out: {error:#}", contender.name);
            false
        }
    });
    load::raise_descriptors()?;
    let folder = tempfile::Builder::new().prefix("leno-bench-").tempdir().context("a folder for the bench")?;
    let processes = Processes::new(folder.path().join("logs"), false)?;
    let servers = Servers::start(&processes, folder.path()).await?;
    let bench = Bench {
        rounds: if args.quick { 2 } else { args.rounds },
        seconds: if args.quick { 1 } else { args.seconds },
        repeats: if args.quick { 0 } else { args.repeats },
        idle_steps: if args.quick { &[1, 1000] } else { &[1, 1000, 10_000] },
        contenders: args.contenders.clone(),
        servers,
        folder,
    };
    for work in works {
        let taking_part: Vec<_> = contenders.iter().filter(|contender| contender.takes_part(&work)).copied().collect();
        if taking_part.is_empty() {
            continue;
        }
        eprintln!("== {}: {}", work.name, work.about);
        let entries = bench.measure_all(&work, &taking_part).await;
        results::save(results::rows(work.name, &finished(entries), &versions))?;
    }
    report::write()?;
    bench.servers.stop()?;
    eprintln!("{:.0} s of CPU time in all; the report is in {}", machine::seconds_of_tree(), report::FILE);
    processes.end(END_LIMIT).await
}

/// Works and contenders that the names choose.
fn chosen<'c>(names: &[String], known: &'c [Contender]) -> Result<(Vec<Work>, Vec<&'c Contender>)> {
    let (of_contenders, of_works): (Vec<_>, Vec<_>) =
        names.iter().cloned().partition(|name| known.iter().any(|contender| contender.name == *name));
    for name in &of_works {
        let is_work = work::ALL.iter().any(|work| work::is_called(work, name));
        ensure!(is_work, "{name} is neither a work nor a contender: --list shows them all");
    }
    let wanted = |contender: &&Contender| of_contenders.is_empty() || of_contenders.contains(&contender.name);
    Ok((work::chosen(&of_works), known.iter().filter(wanted).collect()))
}

fn list(contenders: &[Contender]) {
    println!("Works:");
    for work in work::ALL {
        println!("  {:26} {:10} {}", work.name, work.family, work.about);
    }
    println!("Contenders:");
    for contender in contenders {
        println!("  {:26} {}", contender.name, contender.about());
    }
}

fn finished(entries: Vec<Entry<'_>>) -> Vec<results::Finished> {
    let finish = |entry: Entry<'_>| results::Finished {
        kind: entry.contender.kind,
        series: Series { contender: entry.contender.name.clone(), samples: entry.samples },
        failed: entry.failed,
    };
    entries.into_iter().map(finish).collect()
}

impl Bench {
    /// A contender that fails is out, the others go on.
    async fn measure_all<'c>(&self, work: &Work, contenders: &[&'c Contender]) -> Vec<Entry<'c>> {
        let entry = |&contender| Entry { contender, running: None, samples: Vec::new(), failed: None };
        let mut entries: Vec<Entry<'c>> = contenders.iter().map(entry).collect();
        let one_by_one = matches!(work.load, Load::Idle { .. } | Load::Start);
        if !one_by_one {
            for entry in &mut entries {
                match self.start(work, entry.contender).await {
                    Ok(running) => entry.running = Some(running),
                    Err(error) => entry.fail(&error),
                }
            }
        }
        // What is idle is the same in each round.
        let rounds = if matches!(work.load, Load::Idle { .. }) { 1 } else { self.rounds };
        for round in 0..rounds {
            // Each round begins with another one, so that nobody always comes first.
            let count = entries.len();
            for n in 0..count {
                let Some(entry) = entries.get_mut((n + round) % count) else { continue };
                if entry.failed.is_some() {
                    continue;
                }
                let sample = match &entry.running {
                    Some(running) => self.measure(work, running).await,
                    None => self.measure_alone(work, entry.contender).await,
                };
                match sample {
                    Ok(sample) => entry.take(round, sample),
                    Err(error) => entry.fail(&error),
                }
            }
        }
        for entry in &mut entries {
            if let Some(running) = entry.running.take()
                && let Err(error) = running.stop().await
            {
                entry.fail(&error.context("when it was stopped"));
            }
        }
        entries
    }

    async fn start(&self, work: &Work, contender: &Contender) -> Result<Running> {
        let folder = self.folder.path().join(format!("{}-{}", work.name, contender.name));
        // From an earlier round.
        let _ = std::fs::remove_dir_all(&folder);
        Running::start(contender, &self.contenders, self.servers.address(work.upstream), work.upstream, &folder).await
    }

    /// Makes load, and again while others disturb; the least disturbed measurement counts.
    async fn measure(&self, work: &Work, running: &Running) -> Result<Sample> {
        let mut best: Option<Sample> = None;
        for repeats in 0..=self.repeats {
            let mut sample = self.measure_once(work, running).await?;
            let disturbance = |sample: &Sample| sample.foreign.max(sample.steal);
            let kept = match best {
                Some(best) if disturbance(&best) <= disturbance(&sample) => best,
                _ => std::mem::take(&mut sample),
            };
            let quiet = disturbance(&kept) <= DISTURBED;
            best = Some(Sample { repeats, ..kept });
            if quiet {
                break;
            }
        }
        best.context("no measurement")
    }

    async fn measure_once(&self, work: &Work, running: &Running) -> Result<Sample> {
        let before = Snapshot::take(&running.proxies)?;
        let done =
            tools::make(work.load, running.address, running.mesh.as_ref(), self.seconds, self.folder.path()).await?;
        let between = Snapshot::take(&running.proxies)?.since(&before);
        let mut sample = Sample { foreign: between.foreign, steal: between.steal, ..Sample::default() };
        let figures = &mut sample.figures;
        if let Load::Bulk { .. } = work.load {
            figures.insert(name::GBIT, done.rate * 8.0 / 1000.0);
        } else {
            figures.insert(name::RATE, done.rate);
        }
        if let Some([p50, p99, p999]) = done.latency {
            figures.extend([(name::P50, p50), (name::P99, p99), (name::P999, p999)]);
        }
        // At the inbound proxy nothing passes the client's.
        let at = |n: usize| between.processes.get(n).filter(|_| n == 1 || !work.at_inbound());
        let cpus = [(name::CPU_OUT, at(0)), (name::CPU_IN, at(1))];
        let (mut cpu, mut switches) = (0.0, 0.0);
        for (name, spent) in cpus {
            let Some(spent) = spent else { continue };
            figures.insert(name, spent.cpu_us / done.units);
            cpu += spent.cpu_us / done.units;
            switches += spent.switches / done.units;
        }
        if !running.proxies.is_empty() {
            figures.extend([(name::CPU, cpu), (name::SWITCHES, switches)]);
            resident(&mut sample, running)?;
        }
        Ok(sample)
    }

    /// Works for which each contender is started anew.
    async fn measure_alone(&self, work: &Work, contender: &Contender) -> Result<Sample> {
        let running = self.start(work, contender).await?;
        let sample = match work.load {
            Load::Start => {
                let ready = (name::READY, running.ready.as_secs_f64() * 1000.0);
                Ok(Sample { figures: [ready].into(), ..Sample::default() })
            }
            Load::Idle { mesh } => idle(&running, mesh, self.idle_steps).await,
            _ => bail!("{} is not measured alone", work.name),
        };
        running.stop().await?;
        sample
    }
}

impl Entry<'_> {
    fn take(&mut self, round: usize, sample: Sample) {
        let shown: Vec<_> = [name::RATE, name::GBIT, name::P50, name::P99, name::CPU, name::KIB_EACH, name::READY]
            .into_iter()
            .filter_map(|name| Some(format!("{name} {:.1}", sample.figures.get(name)?)))
            .collect();
        let disturbed = match sample.foreign.max(sample.steal) {
            share if share > DISTURBED => format!("  (others: {:.0} %)", share * 100.0),
            _ => String::new(),
        };
        eprintln!("{} {:20} {}{disturbed}", round + 1, self.contender.name, shown.join("  "));
        self.samples.push(sample);
    }

    fn fail(&mut self, error: &anyhow::Error) {
        eprintln!("  {:20} failed: {error:#}", self.contender.name);
        self.failed = Some(format!("{error:#}").lines().next().unwrap_or_default().to_owned());
    }
}

fn resident(sample: &mut Sample, running: &Running) -> Result<()> {
    let each = running.proxies.iter().map(machine::resident_mib).collect::<Result<Vec<_>>>()?;
    sample.figures.insert(name::RSS, each.iter().sum());
    sample.figures.extend([name::RSS_OUT, name::RSS_IN].into_iter().zip(each));
    Ok(())
}

/// Memory of the proxy that holds the connections, step by step; resident memory of all as they were before.
async fn idle(running: &Running, mesh: bool, steps: &[u32]) -> Result<Sample> {
    let (address, holder) = match &running.mesh {
        Some(end) if mesh => (end.address, running.proxies.get(1)),
        _ => (running.address, running.proxies.first()),
    };
    let holder = holder.context("no proxy holds the connections")?;
    let mut sample = Sample::default();
    tokio::time::sleep(SETTLE).await;
    resident(&mut sample, running)?;
    let mut command = tools::idle_command("idle", address)?;
    let listed: Vec<_> = steps.iter().map(ToString::to_string).collect();
    command.args(["--steps", &listed.join(",")]);
    if let Some(end) = running.mesh.as_ref().filter(|_| mesh) {
        tools::mutual_tls(&mut command, end, Group::X25519);
    }
    let mut command = tokio::process::Command::from(command);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut input = input.context("its standard input")?;
    let mut lines = BufReader::new(output.context("its standard output")?).lines();
    let mut seen = Vec::new();
    for &step in steps {
        let line = tokio::time::timeout(IDLE_LIMIT, lines.next_line()).await.context("connections take too long")??;
        ensure!(line.is_some(), "{step} idle connections could not be made");
        tokio::time::sleep(SETTLE).await;
        seen.push((step, machine::resident_mib(holder)?));
        input.write_all(b"\n").await?;
    }
    for &(step, mib) in &seen {
        let name = match step {
            1 => name::RSS_1,
            1000 => name::RSS_1000,
            _ => name::RSS_10000,
        };
        sample.figures.insert(name, mib);
    }
    if let (Some((few, before)), Some((many, after))) = (seen.first(), seen.last()) {
        let each = (after - before) * 1024.0 / f64::from(many - few);
        sample.figures.insert(name::KIB_EACH, each);
    }
    tokio::time::timeout(IDLE_LIMIT, child.wait()).await.context("it does not end")??;
    Ok(sample)
}
