//! What a workload accepts: rate limits, concurrency, connections; by InboundPolicy, through both sidecars.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Request;
use leno_e2e::{
    client::{self, Answer},
    load::{Load, Report},
    mesh::documents,
    scenario::{Scenario, destination},
};
use tokio::{net::TcpStream, sync::Semaphore};

const HOUR: &str = "1h";

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

    policy(&scenario, "  concurrency: {mode: Off}\n  maxConnections: 3\n").await?;
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

/// Slots and milliseconds of the overloaded server: 200 requests per second, whatever the machine.
const SLOTS: usize = 30;
const WORK: u64 = 150;
const CAPACITY: f64 = SLOTS as f64 * 1000.0 / WORK as f64;

/// Load on the server: at most as many requests at a time as there are connections.
async fn load(scenario: &Scenario, share: f64, connections: usize, seconds: u64) -> Result<Report> {
    let load = Load::new(scenario.address("shop")?, "shop").path(&format!("/slot/{WORK}"));
    load.connections(connections).rate(share * CAPACITY).run(Duration::from_secs(seconds)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_times_the_capacity() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let slots = &scenario.instance("shop-1")?.server.control().slots;
    ensure!(slots.set(Semaphore::new(SLOTS)).is_ok(), "slots are set once");

    let unloaded = load(&scenario, 0.3, 20, 5).await?;
    unloaded.unharmed(200)?;
    let usual = unloaded.latency(0.99);

    // Fewer than this server needs.
    policy(&scenario, "  concurrency: {min: 10}\n").await?;
    let protected = load(&scenario, 3.0, 600, 30).await?;
    let goodput = protected.ok as f64 / protected.elapsed.as_secs_f64();
    println!(
        "unloaded p99 {usual:?}; at 3 C for 30 s: {:.3} C, p50 {:?}, p90 {:?}, p95 {:?}, p99 {:?}, {} refused",
        goodput / CAPACITY,
        protected.latency(0.5),
        protected.latency(0.9),
        protected.latency(0.95),
        protected.latency(0.99),
        protected.failed
    );
    ensure!(goodput >= 0.9 * CAPACITY, "goodput is {:.3} of the capacity", goodput / CAPACITY);
    // The rest was refused first and tried again, or came before the limit was found.
    ensure!(protected.latency(0.9) <= 2 * usual, "p90 {:?}, unloaded p99 {usual:?}", protected.latency(0.9));
    let metrics = scenario.instance("shop-1")?.sidecar.metrics().await?;
    ensure!(metrics.sum("leno_requests_total", &[("direction", "inbound"), ("reason", "overload")]) > 1000.0);

    policy(&scenario, "  concurrency: {mode: Off}\n").await?;
    let collapsed = load(&scenario, 3.0, 600, 15).await?;
    println!("without: {:.3} C, p50 {:?}", collapsed.rate() / CAPACITY, collapsed.latency(0.5));
    ensure!(collapsed.latency(0.5) > 5 * usual, "no collapse: p50 {:?}", collapsed.latency(0.5));
    scenario.mesh.end().await
}
