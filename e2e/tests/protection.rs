//! What a workload accepts: rate limits, concurrency, connections; by InboundPolicy, through both sidecars.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::Request;
use leno_e2e::{
    client::{self, Answer},
    load::{Load, Report},
    mesh::{Options, documents},
    scenario::{Instance, Scenario, destination},
    server::Server,
};
use tokio::{
    net::TcpStream,
    sync::{Mutex, Semaphore},
};

const HOUR: &str = "1h";
/// Held by tests that measure what a machine can do: one at a time.
static MEASURING: Mutex<()> = Mutex::const_new(());

/// Puts an InboundPolicy for the service `shop` in force.
async fn policy(scenario: &Scenario, spec: &str) -> Result<()> {
    let document = documents::inbound_policy("shop", "shop", spec);
    scenario.mesh.change("policy.yaml", &document, "inboundpolicy/shop").await
}

/// Requests answered 200 until the first that is not, which must be a 429 by the limit `limit`.
async fn admitted(scenario: &Scenario, limit: &str, request: impl Fn() -> http::request::Builder) -> Result<usize> {
    for count in 0..100 {
        let answer = scenario.send(request()).await?;
        if answer.status != 200 {
            refused(&answer, limit)?;
            return Ok(count);
        }
    }
    anyhow::bail!("a hundred requests were admitted")
}

fn refused(answer: &Answer, limit: &str) -> Result<()> {
    ensure!(answer.status == 429 && answer.header("leno-reason") == "rate-limit", "{answer:?}");
    ensure!(answer.header("retry-after").parse::<u64>()? >= 1, "{answer:?}");
    ensure!(answer.header("ratelimit-policy").contains(&format!("\"{limit}\";q=")), "{answer:?}");
    ensure!(answer.header("ratelimit").contains(&format!("\"{limit}\";r=0;t=")), "{answer:?}");
    let body = String::from_utf8_lossy(&answer.body);
    ensure!(body.contains(limit) && body.contains("InboundPolicy default/shop"), "{body}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_beyond_its_limit_takes_no_endpoint_from_others() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    let in_turn = documents::backend_policy("shop", "shop", "  loadBalancing: {algorithm: RoundRobin}\n");
    scenario.mesh.change("backend.yaml", &in_turn, "backendpolicy/shop").await?;
    let key = "key: {type: Header, header: X-Tenant}";
    policy(&scenario, &format!("  rateLimits:\n    - {{name: tenant, requests: 1, per: {HOUR}, {key}}}\n")).await?;
    let tenant = |name: &str| Request::get("/").header("x-tenant", name);
    for _ in 0..10 {
        scenario.send(tenant("greedy")).await?;
    }
    refused(&scenario.send(tenant("greedy")).await?, "tenant")?;
    let mut serving = BTreeSet::new();
    for n in 0..20 {
        serving.insert(scenario.answered_by(tenant(&format!("modest-{n}"))).await?);
    }
    ensure!(serving == BTreeSet::from(["shop-1".to_owned(), "shop-2".to_owned()]), "{serving:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rate_limits_of_every_key() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let mesh = &scenario.mesh;
    let other = mesh.workload("other").outbound(&destination("shop")).start().await?;
    let from_other = async || client::get(other.calls(&destination("shop"))?, "shop", "/").await;

    // One bucket for all, with a burst; answers tell where they stand.
    policy(&scenario, &format!("  rateLimits:\n    - {{name: all, requests: 6, per: {HOUR}, burst: 3}}\n")).await?;
    let first = scenario.get("/").await?;
    ensure!(first.status == 200 && first.header("ratelimit-policy") == "\"all\";q=6;w=3600", "{first:?}");
    ensure!(first.header("ratelimit").starts_with("\"all\";r=2;t="), "{first:?}");
    ensure!(admitted(&scenario, "all", || Request::get("/")).await? == 2, "a burst of 3");
    refused(&from_other().await?, "all")?;
    let before = scenario.instance("shop-1")?.server.requests();
    scenario.get("/").await?;
    ensure!(scenario.instance("shop-1")?.server.requests() == before, "a refused request reached the application");

    // A change of something else gives nothing back; one of the limit begins anew.
    policy(
        &scenario,
        &format!("  rateLimits:\n    - {{name: all, requests: 6, per: {HOUR}, burst: 3}}\n  maxConnections: 1000\n"),
    )
    .await?;
    ensure!(admitted(&scenario, "all", || Request::get("/")).await? == 0, "a change gave tokens back");

    // By the client's identity.
    let spec = format!(
        "  rateLimitHeaders: false
  rateLimits:
    - {{name: client, requests: 2, per: {HOUR}, key: {{type: ClientIdentity}}}}\n"
    );
    policy(&scenario, &spec).await?;
    ensure!(scenario.get("/").await?.header("ratelimit").is_empty(), "headers that were switched off");
    ensure!(admitted(&scenario, "client", || Request::get("/")).await? == 1, "2 in all");
    ensure!(from_other().await?.status == 200, "another client has its own");

    // By address: the clients' proxies call from one.
    policy(
        &scenario,
        &format!("  rateLimits:\n    - {{name: ip, requests: 2, per: {HOUR}, key: {{type: SourceAddress}}}}\n"),
    )
    .await?;
    ensure!(admitted(&scenario, "ip", || Request::get("/")).await? == 2, "2 in all");
    refused(&from_other().await?, "ip")?;

    // By a header's value, for some requests only, and together with a limit for all: both must admit.
    let spec = format!(
        "  rateLimits:
    - name: all
      requests: 6
      per: {HOUR}
    - name: tenant
      requests: 2
      per: {HOUR}
      key: {{type: Header, header: X-Tenant}}
      matches:
        - {{path: {{value: /api}}, method: GET}}
        - headers: [{{name: x-kind, value: api}}]\n"
    );
    policy(&scenario, &spec).await?;
    let tenant = |name: &'static str| move || Request::get("/api/a").header("x-tenant", name);
    ensure!(admitted(&scenario, "tenant", tenant("a")).await? == 2, "2 for a");
    ensure!(admitted(&scenario, "tenant", tenant("b")).await? == 2, "2 for b");
    let by_header = || Request::get("/").header("x-tenant", "a").header("x-kind", "api");
    ensure!(admitted(&scenario, "tenant", by_header).await? == 0, "the other match");
    ensure!(admitted(&scenario, "all", || Request::get("/apiary")).await? == 2, "6 in all: refusals took none");

    let metrics = scenario.instance("shop-1")?.sidecar.metrics().await?;
    let labels = [("policy", "InboundPolicy default/shop"), ("limit", "tenant")];
    ensure!(metrics.sum("leno_rate_limited_total", &labels) == 3.0, "{:?}", metrics.samples());
    ensure!(metrics.sum("leno_requests_total", &[("direction", "inbound"), ("reason", "rate-limit")]) >= 9.0);
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_clients_are_told_in_their_own_way() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    policy(&scenario, &format!("  rateLimits:\n    - {{name: all, requests: 1, per: {HOUR}}}\n")).await?;
    let mut echo = client::grpc(scenario.address("shop")?, "shop")?;
    let message = || leno_e2e::echo::Ping { text: "hi".to_owned(), ..Default::default() };
    echo.unary(message()).await?;
    let status = echo.unary(message()).await.err().context("the second call is refused")?;
    ensure!(status.code() == tonic::Code::ResourceExhausted, "{status:?}");
    ensure!(status.metadata().get("leno-reason").is_some_and(|reason| reason == "rate-limit"), "{status:?}");
    ensure!(status.metadata().contains_key("retry-after"), "{status:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_is_refused_and_the_last_good_stays() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    policy(&scenario, &format!("  rateLimits:\n    - {{name: all, requests: 1, per: {HOUR}}}\n")).await?;
    ensure!(admitted(&scenario, "all", || Request::get("/")).await? == 1, "one request");
    let spec = "  rateLimits:
    - {name: all, requests: 0}
    - {name: all, requests: 5, per: 1500ms, key: {type: Header}}
  concurrency: {mode: Fixed}
  maxConnections: -1\n";
    scenario.mesh.apply("policy.yaml", &documents::inbound_policy("shop", "shop", spec))?;
    leno_e2e::wait::eventually("the policy is refused", client::LIMIT, async || {
        let shown = scenario.mesh.leno(&["check", "--config", &scenario.mesh.config().to_string_lossy()]).await;
        let text = format!("{shown:?}");
        for field in [
            "spec.rateLimits[0].requests",
            "spec.rateLimits[1].per",
            "spec.rateLimits[1].name",
            "spec.rateLimits[1].key.header",
            "spec.concurrency.limit",
            "spec.maxConnections",
        ] {
            ensure!(text.contains(field), "{field} is not named: {text}");
        }
        Ok(())
    })
    .await?;
    ensure!(admitted(&scenario, "all", || Request::get("/")).await? == 0, "the last good policy was lost");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fixed_limits_of_requests_and_connections() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    policy(&scenario, "  concurrency: {mode: Fixed, limit: 2}\n").await?;
    let server = &scenario.instance("shop-1")?.server;
    let slow = async || scenario.get("/delay/1500").await;
    let crowd = tokio::try_join!(slow(), slow(), async {
        leno_e2e::wait::eventually("two requests are there", client::LIMIT, async || {
            ensure!(server.control().in_flight.load(std::sync::atomic::Ordering::Relaxed) == 2);
            Ok(())
        })
        .await?;
        scenario.get("/").await
    })?;
    ensure!(crowd.0.status == 200 && crowd.1.status == 200, "{crowd:?}");
    let refused = &crowd.2;
    ensure!(refused.status == 503 && refused.header("leno-reason") == "overload", "{refused:?}");
    ensure!(refused.header("retry-after") == "1", "{refused:?}");
    ensure!(server.seen("/") == 0, "it reached the application");
    ensure!(scenario.get("/").await?.status == 200, "there is room again");

    policy(&scenario, "  concurrency: {mode: \"Off\"}\n  maxConnections: 3\n").await?;
    let listener = scenario.instance("shop-1")?.sidecar.listener(0)?;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(TcpStream::connect(listener).await?);
    }
    let metrics = async || -> Result<f64> {
        let metrics = scenario.instance("shop-1")?.sidecar.metrics().await?;
        Ok(metrics.sum("leno_refused_total", &[("reason", "connections")]))
    };
    leno_e2e::wait::eventually("connections are refused", client::LIMIT, async || {
        ensure!(metrics().await? >= 7.0, "{}", metrics().await?);
        Ok(())
    })
    .await?;
    drop(held);
    leno_e2e::wait::eventually("there is room again", client::LIMIT, async || {
        ensure!(scenario.get("/").await?.status == 200);
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

/// Slots and milliseconds of the overloaded server: 100 requests per second, or fewer where timers are late. Three times as many
/// are few enough for any machine: only the server is overloaded.
const SLOTS: usize = 10;
const WORK: u64 = 100;
const CAPACITY: f64 = SLOTS as f64 * 1000.0 / WORK as f64;
/// No retry but the first.
const WITHOUT_RETRIES: &str = "  retryBudget: {percent: 0, minPerSecond: 0, burst: 1}\n";

/// Load on the server: at most as many requests at a time as there are connections.
async fn load(scenario: &Scenario, share: f64, connections: usize, seconds: u64) -> Result<Report> {
    let load = Load::new(scenario.address("shop")?, "shop").path(&format!("/slot/{WORK}"));
    load.connections(connections).rate(share * CAPACITY).run(Duration::from_secs(seconds)).await
}

/// The requests that the server's sidecar has told of: those of an overload are the last ones.
struct Told {
    /// Milliseconds from admission to the end of the answer, of those let in before the first was refused.
    early: Vec<f64>,
    /// And after that.
    later: Vec<f64>,
    refused: usize,
}

impl Told {
    /// Leaves out the first `skip` lines of the access log, and waits for `answered` that were let in; and says how many
    /// lines there are now.
    async fn after(skip: usize, scenario: &Scenario, answered: u64) -> Result<(Self, usize)> {
        leno_e2e::wait::eventually("the access log is whole", client::LIMIT, async || {
            let log = scenario.instance("shop-1")?.sidecar.process()?.log()?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let lines: Vec<_> = lines.filter(|line| line.get("duration_ms").is_some()).collect();
            let at = |line: &serde_json::Value| line["time"].as_str().unwrap_or_default().to_owned();
            let new = lines.iter().skip(skip);
            let first = new.clone().filter(|line| line["reason"] == "overload").map(at).min();
            let mut told = Self { early: Vec::new(), later: Vec::new(), refused: 0 };
            for line in new {
                match (line["status"].as_u64(), line["duration_ms"].as_f64()) {
                    (Some(200), Some(took)) if first.as_ref().is_none_or(|first| at(line) < *first) => {
                        told.early.push(took);
                    }
                    (Some(200), Some(took)) => told.later.push(took),
                    _ => told.refused += 1,
                }
            }
            let admitted = told.early.len() + told.later.len();
            ensure!(admitted as u64 >= answered, "{admitted} of {answered}");
            Ok((told, lines.len()))
        })
        .await
    }

    fn all(&self) -> Vec<f64> {
        [&self.early[..], &self.later].concat()
    }
}

fn quantile(of: &[f64], share: f64) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() as f64 * share) as usize).or_else(|| sorted.last()).copied().unwrap_or_default()
}

fn quantiles(of: &[f64]) -> String {
    let [p50, p90, p95, p99, last] = [0.5, 0.9, 0.95, 0.99, 1.0].map(|share| quantile(of, share));
    format!("p50 {p50:.0} ms, p90 {p90:.0}, p95 {p95:.0}, p99 {p99:.0}, last {last:.0} of {}", of.len())
}

/// Three times the capacity for so long: answers per second, and what the server's sidecar told.
async fn overload(name: &str, scenario: &Scenario, seconds: u64, lines: usize) -> Result<(f64, Told, usize)> {
    let report = load(scenario, 3.0, 400, seconds).await?;
    let (told, lines) = Told::after(lines, scenario, report.ok).await?;
    let [p50, p90, p95, p99] = [0.5, 0.9, 0.95, 0.99].map(|share| report.latency(share).as_millis());
    println!("{name}, 3 C for {seconds} s: goodput {:.3} C", report.rate() / CAPACITY);
    println!(
        "  clients: p50 {p50} ms, p90 {p90}, p95 {p95}, p99 {p99}; {} answers, {} refused",
        report.ok, report.failed
    );
    println!("  admitted: {}; {} refused", quantiles(&told.all()), told.refused);
    println!("  before the first refusal: {}", quantiles(&told.early));
    println!("  from then on: {}", quantiles(&told.later));
    Ok((report.rate(), told, lines))
}

/// A third of the capacity for so long: milliseconds that half of the requests take, and 99 of a hundred.
async fn calm(scenario: &Scenario, seconds: u64, lines: usize) -> Result<([f64; 2], usize)> {
    let report = load(scenario, 0.3, 10, seconds).await?;
    report.unharmed(100)?;
    let (told, lines) = Told::after(lines, scenario, report.ok).await?;
    println!("unloaded: {}", quantiles(&told.all()));
    Ok(([0.5, 0.99].map(|share| quantile(&told.all(), share)), lines))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_times_the_capacity() -> Result<()> {
    let _alone = MEASURING.lock().await;
    let mut scenario = Scenario::with(Options::default(), &["shop"], 0, "http").await?;
    let server = Server::start("shop-1").await?;
    ensure!(server.control().slots.set(Semaphore::new(SLOTS)).is_ok(), "slots are set once");
    let sidecar = scenario.mesh.workload("shop-1").account("shop").serves("shop", server.address()).access_log();
    let sidecar = sidecar.start().await?;
    scenario.instances.push(Instance { server, sidecar });
    // Fewer than this server needs.
    policy(&scenario, "  concurrency: {min: 5}\n").await?;

    let (mut before, mut lines) = calm(&scenario, 10, 0).await?;
    for (name, seconds, backend) in [("retries by default", 40, ""), ("hardly a retry", 40, WITHOUT_RETRIES)] {
        if !backend.is_empty() {
            let document = documents::backend_policy("shop", "shop", backend);
            scenario.mesh.change("backend.yaml", &document, "backendpolicy/shop").await?;
        }
        let (rate, told, now) = overload(name, &scenario, seconds, lines).await?;
        // Until the limit is no longer needed, and gone. What else the machine has to do changes, too: the slower time counts.
        let (after, now) = calm(&scenario, 10, now).await?;
        let [work, usual] = [before[0].max(after[0]), before[1].max(after[1])];
        (before, lines) = (after, now);
        let goodput = rate * work / (SLOTS as f64 * 1000.0);
        ensure!(goodput >= 0.9, "{name}: goodput is {goodput:.3} of the capacity");
        ensure!(told.refused > 1000, "{name}: {} were refused", told.refused);
        let p99 = quantile(&told.later, 0.99);
        ensure!(p99 <= 2.0 * usual, "{name}: p99 of what is let in {p99} ms, unloaded {usual} ms");
        // Of a queue that grows nothing can be known before the first who wait in it are answered late.
        let early = told.early.len() as f64 / (3.0 * CAPACITY) * 1000.0;
        ensure!(early <= 10.0 * work, "{name}: the limit was found after {early:.0} ms");
    }

    policy(&scenario, "  concurrency: {mode: \"Off\"}\n").await?;
    let collapsed = load(&scenario, 3.0, 400, 15).await?;
    let (told, _) = Told::after(lines, &scenario, collapsed.ok).await?;
    println!("without a limit: {:.3} C, admitted {}", collapsed.rate() / CAPACITY, quantiles(&told.all()));
    let p50 = quantile(&told.all(), 0.5);
    ensure!(p50 > 5.0 * before[1], "no collapse: p50 {p50} ms");
    scenario.mesh.end().await
}

/// What each of several instances lets in at a time, and milliseconds that each request takes.
const AT_A_TIME: usize = 12;
const TAKES: u64 = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_turn_requests_away_are_used_for_all_they_can_do() -> Result<()> {
    let _alone = MEASURING.lock().await;
    let scenario = Scenario::with(Options::default(), &["shop"], 3, "http").await?;
    policy(&scenario, &format!("  concurrency: {{mode: Fixed, limit: {AT_A_TIME}}}\n")).await?;
    let capacity = (3 * AT_A_TIME) as f64 * 1000.0 / TAKES as f64;
    for (name, backend) in [("as shipped", ""), ("with a breaker", "  circuitBreaker: {failurePercent: 50}\n")] {
        if !backend.is_empty() {
            scenario.backend(backend).await?;
        }
        let load = Load::new(scenario.address("shop")?, "shop").path(&format!("/delay/{TAKES}"));
        let report = load.connections(150).rate(3.0 * capacity).run(Duration::from_secs(12)).await?;
        let goodput = report.rate() / capacity;
        println!("{name}: goodput {goodput:.3} C, {} failed, by instance {:?}", report.failed, report.instances);
        ensure!(goodput >= 0.85, "{name}: goodput is {goodput:.3} of the capacity: {:#?}", report.reasons());
        ensure!(report.failed > report.ok, "{name}: only {} were refused", report.failed);
        let turned_away = report.failures.iter().all(|failure| failure.reason == "overload");
        ensure!(turned_away, "{name}: {:#?}", report.reasons());
        ensure!(
            report.instances.len() == 3 && report.instances.values().all(|answers| answers * 5 >= report.ok),
            "{name}: some are left out: {:?}",
            report.instances
        );
    }
    let ejections = scenario.client.metrics().await?.sum("leno_ejections_total", &[]);
    ensure!(ejections == 0.0, "{ejections} ejections");
    scenario.mesh.end().await
}
