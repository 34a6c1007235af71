//! Algorithms of balancing beside each other: on servers some of which are slower, are slowed down for seconds, or fail fast,
//! as in Prequal's testbed (Wydrowski et al., "Load is not what you should balance", NSDI '24), scaled down to one machine.
//! Timers do the servers' work, so that what differs is the choice of a server, not the CPU that a proxy takes.

mod contenders;
mod fleet;
mod load;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use self::{
    contenders::{BALANCERS, Contender, Running},
    fleet::{Fate, Fleet},
    load::Plan,
};
use crate::{
    contender::Kind,
    figures::{Sample, Series, name, percentile},
    leno::pin,
    load::raise_descriptors,
    machine::Snapshot,
    report, results,
    rig::{LOAD_CPU, PROXY_CPU},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Works (`balance-80`) or contenders (`leno-prequal`, or `leno` for all whose names begin so); none: all. See --list.
    subset: Vec<String>,
    /// Interleaved rounds: in each, antagonists come at other times.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 9)]
    seconds: u64,
    /// Folder of the contenders' files.
    #[arg(long, default_value = "benches/contenders/balance")]
    contenders: PathBuf,
    /// Prints works and contenders, and measures nothing.
    #[arg(long)]
    list: bool,
    /// Prints figures, and leaves the report as it is.
    #[arg(long)]
    dry: bool,
}

/// What does not count: estimates begin, connections are made, queues grow to what is usual.
const WARM_UP: Duration = Duration::from_secs(4);
/// Of fewer answers, in all rounds together, the slowest in a thousand are too few to say anything.
const LEAST_FOR_P999: usize = 20_000;
/// A CPU that is so busy makes requests wait, whoever balances.
pub(crate) const SATURATED_PERCENT: f64 = 85.0;

/// How much is asked of the servers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// Of what all servers can do.
    utilisation: f64,
    /// A server fails at once whatever it gets, for the middle half of the measurement.
    pub(crate) failing: bool,
    /// Who takes part in it, unless contenders are named.
    field: Field,
}

/// Not every algorithm says something new at every load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    All,
    /// All but those that are told by their kind.
    Serious,
    Few,
}

/// Those of [`Field::Few`].
const FEW: [&str; 4] = ["leno-peak-ewma", "leno-prequal", "envoy-least-request", "nginx-round-robin"];
/// Not of [`Field::Serious`]: they are blind to load, as turns are.
const BLIND: [&str; 3] = ["leno-random", "leno-hash", "envoy-round-robin"];

impl Work {
    fn includes(&self, contender: &Contender, named: bool) -> bool {
        let name = contender.name.as_str();
        (self.failing || !contender.ejects)
            && match self.field {
                _ if named => true,
                Field::All => true,
                Field::Serious => !BLIND.contains(&name),
                Field::Few => FEW.contains(&name),
            }
    }
}

pub(crate) const WORKS: [Work; 4] = [
    Work { name: "balance-70", title: "70 % of capacity", utilisation: 0.7, failing: false, field: Field::Few },
    Work { name: "balance-80", title: "80 % of capacity", utilisation: 0.8, failing: false, field: Field::All },
    Work { name: "balance-90", title: "90 % of capacity", utilisation: 0.9, failing: false, field: Field::Serious },
    Work {
        name: "balance-failing",
        title: "70 % of capacity, one server fails fast",
        utilisation: 0.7,
        failing: true,
        field: Field::Serious,
    },
];

/// Lines for the report: what stands behind the balancers.
pub(crate) fn description() -> String {
    use fleet::{ANTAGONISED, FAST, SERVERS, SLOTS, SLOW, SLOWDOWN, VISIT};
    format!(
        "{BALANCERS} balancers choose among {SERVERS} servers that work on {SLOTS} requests at a time; others wait in order. Every other server takes \
         {FAST:?} in the mean, the rest {SLOW:?}. For {:.0} % of its time, {VISIT:?} at once, an antagonist makes a server {SLOWDOWN} times slower. A request's \
         work is drawn from N(1, 1) above 0. Together they can do {:.0} requests/s.",
        ANTAGONISED * 100.0,
        fleet::capacity(),
    )
}

struct Bench {
    fleet: Fleet,
    measured: Duration,
    contenders: PathBuf,
    folder: TempDir,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let known = Contender::all(&args.contenders)?;
    if args.list {
        list(&known);
        return Ok(());
    }
    let (works, mut contenders) = chosen(&args.subset, &known)?;
    let mut versions = BTreeMap::new();
    contenders.retain(|contender| match contender.version() {
        Ok(version) => versions.insert(contender.name.clone(), version).is_none(),
        Err(error) => {
            eprintln!("{} is left out: {error:#}", contender.name);
            false
        }
    });
    raise_descriptors()?;
    pin(LOAD_CPU, std::process::id()).await?;
    let bench = Bench {
        fleet: Fleet::start()?,
        measured: Duration::from_secs(args.seconds),
        contenders: args.contenders.clone(),
        folder: tempfile::Builder::new().prefix("leno-bench-").tempdir().context("a folder for the bench")?,
    };
    let mut running = bench.start(&contenders).await?;
    let named = contenders.len() < known.len();
    for work in works {
        eprintln!("== {}: {}", work.name, work.title);
        let taking_part: Vec<&Contender> =
            contenders.iter().copied().filter(|contender| work.includes(contender, named)).collect();
        let finished = bench.measure_all(&work, args.rounds, &taking_part, &mut running).await?;
        if !args.dry {
            results::save(results::rows(work.name, &finished, &versions))?;
        }
    }
    for (_, running) in running {
        running.stop().await?;
    }
    if args.dry { Ok(()) } else { report::write() }
}

fn list(contenders: &[Contender]) {
    println!("Works:");
    for work in WORKS {
        println!("  {:26} {}", work.name, work.title);
    }
    println!("Contenders:");
    for contender in contenders {
        println!("  {:26} {}", contender.name, contender.about);
    }
}

fn chosen<'c>(names: &[String], known: &'c [Contender]) -> Result<(Vec<Work>, Vec<&'c Contender>)> {
    let is_called = |name: &String, whole: &str| {
        whole.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let is_work = |name: &String| WORKS.iter().any(|work| is_called(name, work.name));
    let (of_works, of_contenders): (Vec<_>, Vec<_>) = names.iter().partition(|name| is_work(name));
    for name in &of_contenders {
        let is_contender = known.iter().any(|contender| is_called(name, &contender.name));
        ensure!(is_contender, "{name} is neither a work nor a contender: --list shows them all");
    }
    let any = |names: &[&String], whole: &str| names.is_empty() || names.iter().any(|name| is_called(name, whole));
    let works = WORKS.into_iter().filter(|work| any(&of_works, work.name)).collect();
    Ok((works, known.iter().filter(|contender| any(&of_contenders, &contender.name)).collect()))
}

/// Balancers by their contender's name; all of Leno's are one.
type Started = BTreeMap<String, Running>;

fn started_as(contender: &Contender) -> &str {
    if contender.is_leno() { crate::contender::LENO } else { &contender.name }
}

impl Bench {
    async fn start(&self, contenders: &[&Contender]) -> Result<Started> {
        let mut started = Started::new();
        for contender in contenders {
            let name = started_as(contender);
            if started.contains_key(name) {
                continue;
            }
            eprintln!("starting {name}");
            let servers = &self.fleet.addresses;
            let running = if contender.is_leno() {
                Running::leno(servers).await
            } else {
                let folder = self.folder.path().join(name);
                let templates: &Path = &self.contenders;
                Running::program(contender, templates, servers, &folder).await
            };
            started.insert(name.to_owned(), running.with_context(|| format!("start {name}"))?);
        }
        Ok(started)
    }

    async fn measure_all(
        &self,
        work: &Work,
        rounds: usize,
        taking_part: &[&Contender],
        started: &mut Started,
    ) -> Result<Vec<results::Finished>> {
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); taking_part.len()];
        let mut latencies: Vec<Vec<u64>> = vec![Vec::new(); taking_part.len()];
        for round in 0..rounds {
            // Each round begins with another one.
            for n in 0..taking_part.len() {
                let place = (n + round) % taking_part.len();
                let (Some(contender), Some(samples), Some(latencies)) =
                    (taking_part.get(place), samples.get_mut(place), latencies.get_mut(place))
                else {
                    continue;
                };
                let running = started.get_mut(started_as(contender)).context("a contender that was not started")?;
                running.becomes(contender).await?;
                let sample = self.measure(work, running, round as u64 + 1, latencies).await?;
                show(round, contender, &sample);
                samples.push(sample);
            }
        }
        for (samples, latencies) in samples.iter_mut().zip(&mut latencies) {
            // Of all rounds together: one figure, not one for each.
            if let (Some(first), Some(p999)) = (samples.first_mut(), p999(latencies)) {
                first.figures.insert(name::P999, p999);
            }
        }
        let finished = taking_part.iter().zip(samples).map(|(contender, samples)| results::Finished {
            kind: if contender.is_leno() { Kind::Pair } else { Kind::Hop },
            series: Series { contender: contender.name.clone(), samples },
            failed: None,
        });
        Ok(finished.collect())
    }

    /// Puts the latencies to those of earlier rounds.
    async fn measure(&self, work: &Work, running: &Running, seed: u64, rounds: &mut Vec<u64>) -> Result<Sample> {
        let failing = work.failing.then(|| (WARM_UP + self.measured / 4, WARM_UP + self.measured * 3 / 4));
        self.fleet.meets(Fate { begin: Instant::now(), seed, failing });
        let plan = Plan {
            balancers: running.addresses.clone(),
            rate: fleet::capacity() * work.utilisation,
            warm_up: WARM_UP,
            measured: self.measured,
            seed,
        };
        let before = Snapshot::take(&[])?;
        let mut outcome = load::run(&plan).await?;
        let between = Snapshot::take(&[])?.since(&before);
        let latencies = &mut outcome.latencies;
        latencies.sort_unstable();
        rounds.extend_from_slice(latencies);
        let all = latencies.len() as u64 + outcome.failed;
        let at = |share| percentile(latencies, share) as f64 / 1000.0;
        let busy_percent = |cpu: &str| {
            let busy = cpu.parse().ok().and_then(|cpu: usize| between.busy_cpus.get(cpu));
            100.0 * busy.copied().unwrap_or_default()
        };
        let figures = [
            (name::P50, at(0.5)),
            (name::P99, at(0.99)),
            (name::RATE, all as f64 / self.measured.as_secs_f64()),
            (name::FAILED, 100.0 * outcome.failed as f64 / all.max(1) as f64),
            (name::BUSY, 100.0 * between.busy),
            (name::BUSY_LOAD, busy_percent(LOAD_CPU)),
            (name::BUSY_PROXIES, busy_percent(PROXY_CPU)),
        ];
        Ok(Sample { figures: figures.into(), foreign: between.foreign, steal: between.steal, repeats: 0 })
    }
}

/// Microseconds, if there are enough latencies (nanoseconds).
fn p999(latencies: &mut [u64]) -> Option<f64> {
    latencies.sort_unstable();
    (latencies.len() >= LEAST_FOR_P999).then(|| percentile(latencies, 0.999) as f64 / 1000.0)
}

fn show(round: usize, contender: &Contender, sample: &Sample) {
    let figure = |name| sample.figures.get(name).copied().unwrap_or_default();
    eprintln!(
        "{} {:21} p50 {:7.1}  p99 {:7.1} ms  failed {:5.2} %  {:5.0}/s  CPUs {:2.0} and {:2.0} % busy ({:.0} % others){}",
        round + 1,
        contender.name,
        figure(name::P50) / 1000.0,
        figure(name::P99) / 1000.0,
        figure(name::FAILED),
        figure(name::RATE),
        figure(name::BUSY_LOAD),
        figure(name::BUSY_PROXIES),
        sample.foreign * 100.0,
        if figure(name::BUSY_LOAD).max(figure(name::BUSY_PROXIES)) > SATURATED_PERCENT { "  SATURATED" } else { "" },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_and_contenders_are_chosen_by_name_or_beginning() {
        let known = Contender::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("contenders/balance")).unwrap();
        let chosen = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            chosen(&names, &known).map(|(works, contenders)| (works.len(), contenders.len()))
        };
        assert_eq!(chosen(&[]).unwrap(), (WORKS.len(), known.len()));
        assert_eq!(chosen(&["balance-70", "leno-prequal"]).unwrap(), (1, 1));
        assert_eq!(chosen(&["leno"]).unwrap(), (WORKS.len(), 7));
        assert!(chosen(&["lenox"]).is_err());
        for name in FEW.iter().chain(&BLIND) {
            assert!(known.iter().any(|contender| contender.name == *name), "{name}");
        }
        let measurements: usize =
            WORKS.iter().map(|work| known.iter().filter(|contender| work.includes(contender, false)).count()).sum();
        // Three rounds of up to 15 s each are to last less than half an hour.
        assert!(measurements <= 37, "{measurements}");
    }

    #[test]
    fn few_answers_have_no_slowest_in_a_thousand() {
        let mut latencies: Vec<u64> = (1..=LEAST_FOR_P999 as u64).rev().map(|nth| nth * 1000).collect();
        assert_eq!(p999(&mut latencies), Some(19_981.0));
        latencies.pop();
        assert_eq!(p999(&mut latencies), None);
    }
}
