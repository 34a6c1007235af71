//! The control plane at scale: thousands of simulated proxies with real streams over mTLS, in processes of their own, and a mesh
//! that changes once a second. Measured: from a file's writing to the last answer of those whom it concerns, and what that costs.

mod crowd;
mod plan;
mod proxies;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    binaries,
    mesh::write_atomically,
    operator, ports,
    process::{Process, Processes},
    wait::eventually,
};
use leno_proto::v1::{IssueTokenRequest, ListObjectsRequest, ListProxiesRequest};
use serde_json::json;

use crate::{
    machine,
    results::{Row, save},
};
pub(crate) use crowd::{Answered, Crowd};
pub(crate) use plan::{Marked, Plan};
pub(crate) use proxies::{Args as ProxyArgs, run as run_proxies};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(120);
/// What is measured at rest, is measured after this.
const REST: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Proxies connected, one measurement each.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    proxies: Vec<usize>,
    #[command(flatten)]
    plan: Plan,
    /// Services whose documents share a file.
    #[arg(long, default_value_t = 1)]
    services_per_file: usize,
    /// Changes of each sort.
    #[arg(long, default_value_t = 30)]
    changes: u32,
    /// Between changes, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// Proxies that one process simulates, at most.
    #[arg(long, default_value_t = 5_000)]
    proxies_per_process: usize,
}

/// Sorts of change.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// None at all.
    Idle,
    /// An endpoint of the Service that most subscribe to.
    Popular,
    /// An endpoint of some Service, another each time.
    Anywhere,
    /// The route of the Service that most subscribe to.
    Route,
}

impl Work {
    const ALL: [Self; 4] = [Self::Idle, Self::Popular, Self::Anywhere, Self::Route];

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Popular => "endpoint",
            Self::Anywhere => "endpoint-anywhere",
            Self::Route => "route",
        }
    }
}

/// One sort of change, measured.
struct Figures {
    work: Work,
    /// Mean of those whom a change concerned.
    concerned: f64,
    /// Milliseconds, sorted.
    latencies: Vec<f64>,
    /// Of one core.
    cpu_share: f64,
    /// Milliseconds for each change.
    cpu_ms: f64,
    /// For each change, of all deltas.
    bytes: f64,
}

/// How one number of proxies began.
struct Start {
    proxies: usize,
    /// From the start of the process until it serves.
    load: Duration,
    connected_in: Duration,
    /// For each proxy: certificate, handshakes, everything that it subscribed to.
    cpu_ms_each: f64,
    loaded_bytes: u64,
    bytes_each: f64,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    for &proxies in &args.proxies {
        measure(args, proxies).await.with_context(|| format!("{proxies} proxies"))?;
    }
    Ok(())
}

async fn measure(args: &Args, proxies: usize) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("leno-bench-").tempdir().context("a folder for the mesh")?;
    let files =
        Files { folder: folder.path().join("config"), plan: args.plan, per_file: args.services_per_file.max(1) };
    files.write_all()?;
    let processes = Processes::new(folder.path().join("logs"), false)?;
    let state = folder.path().join("state");
    let address = ports::free()?;
    let mut command = Command::new(binaries::leno()?);
    command.arg("control-plane").arg("--config").arg(&files.folder).arg("--state").arg(&state);
    command.args(["--listen", &address.to_string(), "--mesh-networks", "10.0.0.0/8", "--log", "warn"]);
    let began = Instant::now();
    let control_plane = processes.spawn("control-plane", command)?;
    eventually("the control plane answers", LIMIT, async || {
        ensure!(control_plane.ended()?.is_none(), "it ended");
        Ok(operator::client(&state).list_proxies(ListProxiesRequest {}).await?)
    })
    .await?;
    let load = began.elapsed();
    let tokens = write_tokens(args.plan, &state, folder.path()).await?;
    tokio::time::sleep(REST).await;

    let (loaded_bytes, cpu_before, began) = (control_plane.resident()?, cpu(&control_plane)?, Instant::now());
    let mut crowd = Crowd::start(args.plan, proxies, args.proxies_per_process, address, &tokens)?;
    crowd.ready().await?;
    let connected_in = began.elapsed();
    let cpu_ms_each = (cpu(&control_plane)? - cpu_before).as_secs_f64() * 1000.0 / proxies as f64;
    tokio::time::sleep(REST).await;
    let bytes_each = (control_plane.resident()?.saturating_sub(loaded_bytes)) as f64 / proxies as f64;
    let start = Start { proxies, load, connected_in, cpu_ms_each, loaded_bytes, bytes_each };
    start.print(args.plan);

    let mut changes = 0;
    let mut rows = Vec::new();
    for work in Work::ALL {
        let figures = churn(args, work, &mut changes, &files, &mut crowd, &control_plane).await?;
        figures.print(&start);
        rows.push(figures.row(&start, args));
    }
    save(rows)?;
    knows(&state, &crowd).await?;
    println!("\nResident at the end: {:.0} MiB.", control_plane.resident()? as f64 / 1048576.0);
    crowd.end().await?;
    processes.end(LIMIT).await
}

/// `--changes` changes of one sort, one after the other, each once the one before is answered and the interval is over.
async fn churn(
    args: &Args,
    work: Work,
    changes: &mut u32,
    files: &Files,
    crowd: &mut Crowd,
    control_plane: &Process,
) -> Result<Figures> {
    let interval = Duration::from_millis(args.interval_ms);
    let (began, cpu_before) = (Instant::now(), cpu(control_plane)?);
    let (mut latencies, mut concerned, mut bytes) = (Vec::new(), 0, 0);
    let mut random = fastrand::Rng::with_seed(7);
    let mut next = tokio::time::Instant::now();
    for _ in 0..args.changes {
        *changes += 1;
        let change = match work {
            Work::Idle => None,
            Work::Popular => Some((0, Marked::Endpoint)),
            Work::Route => Some((0, Marked::Route)),
            Work::Anywhere => crowd.some_service(&mut random).map(|service| (service, Marked::Endpoint)),
        };
        if let Some((service, marked)) = change {
            let written = SystemTime::now();
            files.write(service / files.per_file, Some((service, marked, *changes)))?;
            let answered = crowd.answered(*changes, service).await?;
            latencies.push(answered.at.duration_since(written).unwrap_or_default().as_secs_f64() * 1000.0);
            concerned += crowd.subscribers(service);
            bytes += answered.bytes;
        }
        next = (next + interval).max(tokio::time::Instant::now());
        tokio::time::sleep_until(next).await;
    }
    let (spent, took) = ((cpu(control_plane)? - cpu_before).as_secs_f64(), began.elapsed().as_secs_f64());
    latencies.sort_by(f64::total_cmp);
    let count = f64::from(args.changes.max(1));
    Ok(Figures {
        work,
        concerned: concerned as f64 / count,
        latencies,
        cpu_share: spent / took,
        cpu_ms: spent * 1000.0 / count,
        bytes: bytes as f64 / count,
    })
}

impl Start {
    fn print(&self, plan: Plan) {
        println!(
            "\n{} proxies; {} Services, as many routes, {} endpoints. Serving after {:.1} s, at {:.0} MiB resident. \
             All connected after {:.1} s ({:.2} ms of CPU each, the certificate included), **{:.1} KiB resident each**.\n",
            self.proxies,
            plan.services,
            plan.endpoints,
            self.load.as_secs_f64(),
            self.loaded_bytes as f64 / 1048576.0,
            self.connected_in.as_secs_f64(),
            self.cpu_ms_each,
            self.bytes_each / 1024.0,
        );
        println!(
            "| proxies | change | concerns | write → last ACK p50 | p99 | max | CPU of a core | CPU a change | sent a change |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
    }
}

impl Figures {
    fn at(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index.min(last)).copied().unwrap_or_default()
    }

    fn print(&self, start: &Start) {
        let (proxies, name, share) = (start.proxies, self.work.name(), self.cpu_share * 100.0);
        if self.latencies.is_empty() {
            return println!("| {proxies} | {name} | – | – | – | – | {share:.1} % | – | – |");
        }
        println!(
            "| {proxies} | {name} | {:.0} | {:.1} ms | {:.1} ms | {:.1} ms | {share:.1} % | {:.1} ms | {:.0} KiB |",
            self.concerned,
            self.at(0.5),
            self.at(0.99),
            self.at(1.0),
            self.cpu_ms,
            self.bytes / 1024.0,
        );
    }

    fn row(&self, start: &Start, args: &Args) -> Row {
        let round = |value: f64| (value * 100.0).round() / 100.0;
        let mut row = Row::new();
        row.insert("work".into(), json!(format!("control-plane-{}-{}", start.proxies, self.work.name())));
        row.insert("contender".into(), json!("leno"));
        row.insert("machine".into(), json!(machine::description()));
        row.insert("services".into(), json!(args.plan.services));
        row.insert("endpoints".into(), json!(args.plan.endpoints));
        row.insert("interval_ms".into(), json!(args.interval_ms));
        row.insert("cpu_percent_of_core".into(), json!(round(self.cpu_share * 100.0)));
        row.insert("kib_per_proxy".into(), json!(round(start.bytes_each / 1024.0)));
        row.insert("rss_mib_before_proxies".into(), json!(round(start.loaded_bytes as f64 / 1048576.0)));
        row.insert("connect_cpu_ms_per_proxy".into(), json!(round(start.cpu_ms_each)));
        if !self.latencies.is_empty() {
            row.insert("subscribers".into(), json!(round(self.concerned)));
            row.insert("p50_us".into(), json!((self.at(0.5) * 1000.0).round()));
            row.insert("p99_us".into(), json!((self.at(0.99) * 1000.0).round()));
            row.insert("max_us".into(), json!((self.at(1.0) * 1000.0).round()));
            row.insert("cpu_ms_per_change".into(), json!(round(self.cpu_ms)));
            row.insert("bytes_sent_per_change".into(), json!(self.bytes.round()));
        }
        row
    }
}

/// The configuration, as its author keeps it: so many Services a file.
struct Files {
    folder: PathBuf,
    plan: Plan,
    per_file: usize,
}

impl Files {
    fn write_all(&self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        (0..self.plan.services.div_ceil(self.per_file)).try_for_each(|file| self.write(file, None))
    }

    /// `change`: of which Service, what, and its number.
    fn write(&self, file: usize, change: Option<(usize, Marked, u32)>) -> Result<()> {
        let services = (file * self.per_file)..((file + 1) * self.per_file).min(self.plan.services);
        let documents = services.map(|service| {
            let change = change.filter(|change| change.0 == service).map(|(_, marked, number)| (marked, number));
            self.plan.documents(service, change)
        });
        write_atomically(&self.folder.join(format!("{file:04}.yaml")), &documents.collect::<Vec<_>>().join("---\n"))
    }
}

/// A token for the service account of each Service, one a line.
async fn write_tokens(plan: Plan, state: &Path, folder: &Path) -> Result<PathBuf> {
    let mut operator = operator::client(state);
    let mut tokens = String::new();
    for service in 0..plan.services {
        let (namespace, service_account) = (Plan::namespace(service), Plan::service(service));
        let request = IssueTokenRequest { namespace, service_account, lifetime_s: 3600 };
        tokens.push_str(&operator.issue_token(request).await.context("a token")?.into_inner().token);
        tokens.push('\n');
    }
    let file = folder.join("tokens");
    fs::write(&file, tokens)?;
    Ok(file)
}

/// The control plane agrees with what the proxies say.
async fn knows(state: &Path, crowd: &Crowd) -> Result<()> {
    let (kind, namespace, name) = ("EndpointSlice".into(), Plan::namespace(0), format!("{}-1", Plan::service(0)));
    let request = ListObjectsRequest { kind, namespace, name };
    let expected = crowd.subscribers(0);
    eventually("the control plane knows that every proxy serves the last change", LIMIT, async || {
        let answer = operator::client(state).list_objects(request.clone()).await?.into_inner();
        let status = answer.objects.first().context("the slice")?;
        let (subscribed, programmed) = (status.subscribed as usize, status.programmed as usize);
        ensure!(subscribed == expected && programmed == expected, "{programmed} of {subscribed}, not {expected}");
        Ok(())
    })
    .await
}

/// User and system time of a process so far.
pub(crate) fn cpu(process: &Process) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
    let (_, fields) = stat.rsplit_once(") ").context("/proc/…/stat")?;
    let ticks: Vec<u64> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // Linux tells user space 100 ticks a second on every machine.
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}
