//! The control plane on an API server with thousands of Services and endpoints (no Pods run): memory, CPU, and how long a change of
//! an EndpointSlice takes until a subscribed proxy has answered for it: while the leader writes the first status of every route,
//! which it does at a bounded rate and takes minutes, and once it is at rest.
//!
//! Everything is made in namespaces of its own, by label, and removed at the end. The control plane runs here, by the kubeconfig, as
//! another replica of the cluster's, if there is one; so do the simulated proxies, which are Pods that no node ever runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Namespace, Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use leno_e2e::{
    binaries, ports,
    process::{Process, Processes},
    wait::{eventually, within},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    control_plane::{Answered, Crowd, Marked, Plan, cpu},
    machine,
    results::{Row, save},
};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(300);
/// What is measured at rest, is measured after this, and for as long.
const REST: Duration = Duration::from_secs(10);
/// Longest wait for the status of every route: they are written at 10 a second.
const SETTLED: Duration = Duration::from_secs(1200);
/// At the 99th percentile, from a change's being sent to the last answer of a proxy, in milliseconds.
pub(crate) const BOUND_MS: f64 = 200.0;
/// Of all namespaces that are made here.
const LABEL: &str = "leno.dev/benchmark";
/// Objects that are written at the same time.
const WRITERS: usize = 16;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Services, each with a route and an EndpointSlice.
    #[arg(long, default_value_t = 2_000)]
    services: usize,
    /// Endpoints of all Services.
    #[arg(long, default_value_t = 20_000)]
    endpoints: usize,
    /// Proxies connected; each calls ten Services.
    #[arg(long, default_value_t = 100)]
    proxies: usize,
    /// Changes of endpoints, each of a Service that all or some proxies call.
    #[arg(long, default_value_t = 200)]
    changes: u32,
    /// Between changes, in milliseconds.
    #[arg(long, default_value_t = 200)]
    interval_ms: u64,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let plan =
        Plan { services: args.services, endpoints: args.endpoints, calls: 10, subscribed: args.proxies, by_name: true };
    ensure!(args.proxies <= args.services, "one proxy per Service at most");
    let client = Client::try_default().await.context("which cluster? set KUBECONFIG")?;
    let mesh = Mesh { client, plan };
    mesh.remove().await?;
    let measured = measure(args, &mesh).await;
    let removed = mesh.remove().await;
    measured.and(removed)
}

async fn measure(args: &Args, mesh: &Mesh) -> Result<()> {
    let began = Instant::now();
    mesh.write().await.context("write the mesh")?;
    println!("Written in {:.1} s.", began.elapsed().as_secs_f64());
    let folder = tempfile::Builder::new().prefix("leno-bench-").tempdir().context("a folder")?;
    let tokens = mesh.tokens(args.proxies, folder.path()).await.context("tokens for proxies")?;

    let processes = Processes::new(folder.path().join("logs"), false)?;
    let address = ports::free()?;
    let began = Instant::now();
    let control_plane = start(&processes, address).await?;
    let (load, load_cpu) = (began.elapsed(), cpu(&control_plane)?);
    tokio::time::sleep(REST).await;
    let loaded = mib(control_plane.resident()?);
    let mut crowd = Crowd::start(mesh.plan, args.proxies, args.proxies.max(1), address, &tokens)?;
    crowd.ready().await?;
    println!(
        "\n{} Services, as many routes, {} endpoints, {} proxies. Ready after {:.1} s ({:.1} s of CPU), **{loaded:.0} MiB resident**.",
        args.services,
        args.endpoints,
        args.proxies,
        load.as_secs_f64(),
        load_cpu.as_secs_f64(),
    );
    let mut changes = 0;
    let written = mesh.statuses().await?.told();
    println!("\nWhile the leader writes statuses ({written} of {} routes have one):\n", args.services);
    let mut rows = table(args, mesh, &mut crowd, &mut changes, &control_plane, "-settling").await?;
    println!("\n{} have one now.", mesh.statuses().await?.told());

    let began = Instant::now();
    mesh.at_rest().await?;
    let idle_from = cpu(&control_plane)?;
    tokio::time::sleep(REST).await;
    let idle = (cpu(&control_plane)? - idle_from).as_secs_f64() / REST.as_secs_f64();
    println!("\nAt rest, {:.0} s later, with {:.2} % of a core:\n", began.elapsed().as_secs_f64(), idle * 100.0);
    rows.extend(table(args, mesh, &mut crowd, &mut changes, &control_plane, "").await?);
    let at_end = mib(control_plane.resident()?);
    println!("\nResident at the end: {at_end:.0} MiB.");
    for row in &mut rows {
        row.insert("rss_mib_before_proxies".into(), json!(round(loaded)));
        row.insert("rss_mib_at_end".into(), json!(round(at_end)));
        row.insert("cpu_percent_of_core_idle".into(), json!(round(idle * 100.0)));
        row.insert("ready_ms".into(), json!(round(load.as_secs_f64() * 1000.0)));
    }
    save(rows)?;
    crowd.end().await?;
    processes.end(LIMIT).await
}

/// The control plane, once it is ready.
async fn start(processes: &Processes, address: SocketAddr) -> Result<Process> {
    let (health, operator) = (ports::free()?, ports::free()?);
    let mut command = Command::new(binaries::leno()?);
    command.args(["control-plane", "--kubernetes", "--log", "warn", "--listen", &address.to_string()]);
    command.args(["--metrics", &health.to_string(), "--operator", &operator.to_string()]);
    let control_plane = processes.spawn("control-plane", command)?;
    eventually("the control plane listens", LIMIT, async || {
        ensure!(control_plane.ended()?.is_none(), "it ended");
        let mut tcp = TcpStream::connect(health).await?;
        tcp.write_all(b"GET /ready HTTP/1.1\r\n\r\n").await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        Ok(())
    })
    .await?;
    Ok(control_plane)
}

/// Changes of a Service that all proxies call, and of any: printed, and as rows whose works end in `when`.
async fn table(
    args: &Args,
    mesh: &Mesh,
    crowd: &mut Crowd,
    changes: &mut u32,
    control_plane: &Process,
    when: &str,
) -> Result<Vec<Row>> {
    println!(
        "| change | concerns | write → last ACK p50 | p99 | max | of it, the API server's write p50 | CPU a change | p99 of {BOUND_MS} ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for (work, popular) in [("endpoint", true), ("endpoint-anywhere", false)] {
        let figures = churn(args, mesh, crowd, popular, changes, control_plane).await?;
        figures.print(work);
        rows.push(figures.row(&format!("{work}{when}"), args));
    }
    Ok(rows)
}

/// Milliseconds, sorted.
struct Figures {
    latencies: Vec<f64>,
    writes: Vec<f64>,
    concerned: f64,
    cpu_ms: f64,
}

async fn churn(
    args: &Args,
    mesh: &Mesh,
    crowd: &mut Crowd,
    popular: bool,
    changes: &mut u32,
    control_plane: &Process,
) -> Result<Figures> {
    let (mut latencies, mut writes, mut concerned) = (Vec::new(), Vec::new(), 0);
    let mut random = fastrand::Rng::with_seed(7);
    let before = cpu(control_plane)?;
    let mut next = tokio::time::Instant::now();
    for _ in 0..args.changes {
        *changes += 1;
        let service = if popular { 0 } else { crowd.some_service(&mut random).context("somebody calls something")? };
        let written = SystemTime::now();
        let began = Instant::now();
        mesh.mark(service, *changes).await?;
        writes.push(began.elapsed().as_secs_f64() * 1000.0);
        let Answered { at, .. } = crowd.answered(*changes, service).await?;
        latencies.push(at.duration_since(written).unwrap_or_default().as_secs_f64() * 1000.0);
        concerned += crowd.subscribers(service);
        next = (next + Duration::from_millis(args.interval_ms)).max(tokio::time::Instant::now());
        tokio::time::sleep_until(next).await;
    }
    latencies.sort_by(f64::total_cmp);
    writes.sort_by(f64::total_cmp);
    let count = f64::from(args.changes.max(1));
    let spent = (cpu(control_plane)? - before).as_secs_f64();
    Ok(Figures { latencies, writes, concerned: concerned as f64 / count, cpu_ms: spent * 1000.0 / count })
}

impl Figures {
    fn at(sorted: &[f64], share: f64) -> f64 {
        let index = (sorted.len() as f64 * share) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn print(&self, work: &str) {
        let at = |share| Self::at(&self.latencies, share);
        println!(
            "| {work} | {:.0} | {:.1} ms | **{:.1} ms** | {:.1} ms | {:.1} ms | {:.1} ms | {} |",
            self.concerned,
            at(0.5),
            at(0.99),
            at(1.0),
            Self::at(&self.writes, 0.5),
            self.cpu_ms,
            if at(0.99) <= BOUND_MS { "held" } else { "**missed**" },
        );
    }

    fn row(&self, work: &str, args: &Args) -> Row {
        let micros = |share| json!((Self::at(&self.latencies, share) * 1000.0).round());
        let mut row = Row::new();
        row.insert("work".into(), json!(format!("kubernetes-{work}")));
        row.insert("contender".into(), json!("leno"));
        row.insert("machine".into(), json!(machine::description()));
        row.insert("services".into(), json!(args.services));
        row.insert("endpoints".into(), json!(args.endpoints));
        row.insert("proxies".into(), json!(args.proxies));
        row.insert("subscribers".into(), json!(round(self.concerned)));
        row.insert("p50_us".into(), micros(0.5));
        row.insert("p99_us".into(), micros(0.99));
        row.insert("max_us".into(), micros(1.0));
        row.insert("api_write_p50_us".into(), json!((Self::at(&self.writes, 0.5) * 1000.0).round()));
        row.insert("cpu_ms_per_change".into(), json!(round(self.cpu_ms)));
        row
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1048576.0
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Routes by uid: their version, and whether they have a status.
#[derive(PartialEq)]
struct Statuses(BTreeMap<Option<String>, (Option<String>, bool)>);

impl Statuses {
    fn told(&self) -> usize {
        self.0.values().filter(|(_, has_one)| *has_one).count()
    }
}

/// What is made in the cluster.
struct Mesh {
    client: Client,
    plan: Plan,
}

impl Mesh {
    async fn write(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in self.plan.namespaces() {
            let metadata = json!({"name": name, "labels": {LABEL: "true"}});
            let namespace = serde_json::from_value(json!({"metadata": metadata}))?;
            namespaces.create(&PostParams::default(), &namespace).await.with_context(|| name.clone())?;
        }
        let mut writers = tokio::task::JoinSet::new();
        for first in 0..WRITERS {
            let (client, plan) = (self.client.clone(), self.plan);
            writers.spawn(async move {
                for service in (first..plan.services).step_by(WRITERS) {
                    for document in plan.objects(service, None)? {
                        let name = format!("{} {}", document["kind"], document["metadata"]["name"]);
                        create(&client, document).await.with_context(|| name)?;
                    }
                }
                anyhow::Ok(())
            });
        }
        while let Some(written) = writers.join_next().await {
            written??;
        }
        Ok(())
    }

    /// For the Pods that proxies are in: no scheduler looks at them. One token a line.
    async fn tokens(&self, proxies: usize, folder: &Path) -> Result<PathBuf> {
        let mut tokens = String::new();
        for proxy in 0..proxies {
            let (service, pod) = self.plan.proxy(proxy);
            let (namespace, account) = (Plan::namespace(service), Plan::service(service));
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
            let of_account = serde_json::from_value(json!({"metadata": {"name": account}}))?;
            accounts.create(&PostParams::default(), &of_account).await.context("a service account")?;
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let containers = json!([{"name": "leno-proxy", "image": "none"}]);
            let spec = json!({"serviceAccountName": account, "schedulerName": "none", "containers": containers});
            let of_pod = serde_json::from_value(json!({"metadata": {"name": pod}, "spec": spec}))?;
            let made = pods.create(&PostParams::default(), &of_pod).await.context("a Pod")?;
            let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": made.metadata.uid});
            let spec = json!({"audiences": ["leno.dev"], "boundObjectRef": bound, "expirationSeconds": 3600});
            let asked: TokenRequest = serde_json::from_value(json!({"spec": spec}))?;
            let answer = accounts.create_token_request(&account, &PostParams::default(), &asked).await;
            let token = answer.context("a token")?.status.and_then(|status| status.token);
            tokens += &token.context("a token")?;
            tokens.push('\n');
        }
        let file = folder.join("tokens");
        fs::write(&file, tokens)?;
        Ok(file)
    }

    /// Writes the number of a change to the zone of the Service's first endpoint.
    async fn mark(&self, service: usize, change: u32) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &Plan::namespace(service));
        let objects = self.plan.objects(service, Some((Marked::Endpoint, change)))?;
        let slice = objects.into_iter().find(|object| object["kind"] == "EndpointSlice").context("a slice")?;
        let patch = Patch::Merge(json!({"endpoints": slice["endpoints"]}));
        let name = format!("{}-1", Plan::service(service));
        slices.patch(&name, &PatchParams::default(), &patch).await.context("change an EndpointSlice")?;
        Ok(())
    }

    async fn statuses(&self) -> Result<Statuses> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"));
        let routes: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let ours: BTreeSet<String> = self.plan.namespaces().collect();
        let all = routes.list(&ListParams::default()).await.context("list routes")?.items;
        let ours = all.into_iter().filter(|route| route.metadata.namespace.as_ref().is_some_and(|n| ours.contains(n)));
        let told = ours.map(|route| {
            let has_one = route.data["status"]["parents"].as_array().is_some_and(|parents| !parents.is_empty());
            (route.metadata.uid, (route.metadata.resource_version, has_one))
        });
        Ok(Statuses(told.collect()))
    }

    /// Returns once every route has a status and none has been written for a while.
    async fn at_rest(&self) -> Result<()> {
        within("every route has a status, and none changes", SETTLED, async {
            let mut before = self.statuses().await?;
            loop {
                tokio::time::sleep(REST).await;
                let now = self.statuses().await?;
                if now == before && now.told() == self.plan.services {
                    return Ok(());
                }
                before = now;
            }
        })
        .await
    }

    /// Everything that was made here, by this run or one before.
    async fn remove(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(LABEL);
        for namespace in namespaces.list(&ours).await?.items {
            let name = namespace.metadata.name.unwrap_or_default();
            namespaces.delete(&name, &DeleteParams::default()).await.with_context(|| format!("remove {name}"))?;
        }
        eventually("the namespaces of the benchmark are gone", LIMIT, async || {
            let left = namespaces.list(&ours).await?.items.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await
    }
}

async fn create(client: &Client, document: Value) -> Result<()> {
    let text = |at: &str| document.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let plurals =
        BTreeMap::from([("Service", "services"), ("EndpointSlice", "endpointslices"), ("HTTPRoute", "httproutes")]);
    let plural = plurals.get(kind.as_str()).context("a kind that the plan has")?;
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &kind), plural);
    let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), &text("/metadata/namespace"), &resource);
    objects.create(&PostParams::default(), &serde_json::from_value(document)?).await?;
    Ok(())
}
