//! Retries and deadlines as the server sees them: when it is asked again, after which failures, with which body, and with how much
//! time left.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use leno_e2e::{
    client::{self, Answer},
    mesh::{
        LIMIT, Mesh, Options, Workload,
        documents::{self, backend_policy, endpoint_slice, http_route, service},
    },
    ports,
    scenario::{Scenario, destination},
    scripted::{Act, Asked, Scripted},
    wait::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

/// More than any of these tests spends.
const BUDGET: &str = "  retryBudget: {percent: 100, minPerSecond: 1000}\n";

/// A route of that name to the Service of that name, and a policy for it with these sections.
fn routed(kind: &str, name: &str, sections: &str) -> String {
    let policy = format!(
        "apiVersion: leno.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}, namespace: default}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}}}]
{sections}"
    );
    documents::file(&[http_route(name, name, &[(name, 1)]), policy])
}

/// The Service `shop`, served by a scripted server behind a sidecar, and a client.
struct Shop {
    mesh: Mesh,
    client: Workload,
    server: Scripted,
}

impl Shop {
    async fn start(act: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Result<Self> {
        let (mesh, server) = (Mesh::start().await?, Scripted::start(act).await?);
        let documents = [service("default", "shop", 80, "http"), backend_policy("shop", "shop", BUDGET)];
        mesh.apply("shop.yaml", &documents::file(&documents))?;
        mesh.wait("backendpolicy/shop").await?;
        mesh.workload("shop").serves("shop", server.address()).start().await?;
        let client = mesh.workload("client").outbound(&destination("shop")).start().await?;
        Ok(Self { mesh, client, server })
    }

    async fn policy(&self, sections: &str) -> Result<()> {
        self.mesh.change("routes.yaml", &routed("RoutePolicy", "shop", sections), "routepolicy/shop").await
    }

    /// The answer, and how often the server was asked.
    async fn send(&self, request: http::request::Builder, body: usize) -> Result<(Answer, u64)> {
        let before = self.server.requests();
        let request = request.header("host", "shop").body(Bytes::from(vec![b'x'; body]))?;
        let answer = client::http1(self.client.calls(&destination("shop"))?, request).await?;
        Ok((answer, self.server.requests() - before))
    }
}

/// 200 to a request that is tried again, `otherwise` to one that is not.
fn only_again(asked: &Asked, otherwise: Act) -> Act {
    if asked.header("leno-attempt").is_empty() { otherwise } else { Act::Answer(200, String::new()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_when_is_asked_again_no_sooner() -> Result<()> {
    let says = |asked: &Asked| Act::Answer(503, format!("retry-after: {}\r\n", asked.header("x-says")));
    let shop = Shop::start(move |asked| only_again(asked, says(asked))).await?;
    shop.policy("  retry: {attempts: 1, statuses: [\"503\"], backoff: {base: 1ms, max: 1ms}}\n").await?;
    for (says, wait, expected) in [
        ("2", 2, (200, 2)),
        // More than anybody waits.
        ("60", 0, (503, 1)),
        ("Tue, 31 Dec 2199 23:59:59 GMT", 0, (503, 1)),
        // It has passed.
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, (200, 2)),
    ] {
        let started = Instant::now();
        let (answer, tries) = shop.send(Request::get("/").header("x-says", says), 0).await?;
        let found = (answer.status.as_u16(), tries);
        ensure!(found == expected, "{says}: expected {expected:?}, got {found:?}");
        ensure!(started.elapsed() >= Duration::from_secs(wait), "{says}: asked again after {:?}", started.elapsed());
    }
    shop.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_would_be_too_idle_is_not_begun() -> Result<()> {
    let says = |asked: &Asked| Act::Answer(503, format!("retry-after: {}\r\n", asked.header("x-says")));
    let shop = Shop::start(move |asked| only_again(asked, says(asked))).await?;
    shop.policy(
        "  timeouts: {streamIdle: 2s}\n  retry: {attempts: 1, statuses: [\"503\"], backoff: {base: 1ms, max: 1ms}}\n",
    )
    .await?;
    for (says, expected) in [("1", (200, 2)), ("2", (503, 1)), ("5", (503, 1))] {
        let (answer, tries) = shop.send(Request::get("/").header("x-says", says), 0).await?;
        let found = (answer.status.as_u16(), tries);
        ensure!(found == expected, "{says}: expected {expected:?}, got {found:?}");
    }
    shop.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_broke_off_is_tried_again_if_the_policy_names_it() -> Result<()> {
    let shop = Shop::start(|asked| only_again(asked, Act::BreakOff)).await?;
    let on = async |what: &str| {
        let rest = "statuses: [], grpcCodes: [], methods: Any, backoff: {base: 1ms, max: 1ms}";
        shop.policy(&format!("  retry: {{attempts: 1, on: [{what}], {rest}}}\n")).await
    };
    on("ConnectFailure").await?;
    let (answer, tries) = shop.send(Request::post("/"), 10).await?;
    ensure!(answer.status == 502 && answer.header("leno-reason") == "reset" && tries == 1, "{tries} tries, {answer:?}");
    on("Reset").await?;
    let (answer, tries) = shop.send(Request::post("/"), 10).await?;
    ensure!(answer.status == 200 && tries == 2, "{tries} tries, {answer:?}");
    shop.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_is_tried_again_if_the_policy_names_it() -> Result<()> {
    let mesh = Mesh::start().await?;
    let patient = format!("{BUDGET}  outlierDetection: {{consecutiveFailures: 0}}\n");
    let documents = [
        service("default", "dead", 80, "http"),
        endpoint_slice("default", "dead", None, ports::free()?, true),
        backend_policy("dead", "dead", &patient),
    ];
    mesh.apply("dead.yaml", &documents::file(&documents))?;
    mesh.wait("backendpolicy/dead").await?;
    let client = mesh.workload("client").outbound(&destination("dead")).start().await?;
    let retries = async || anyhow::Ok(client.metrics().await?.sum("leno_retries_total", &[]));
    // Up to five endpoints are tried whatever the policy says; here it is five times the same.
    for (on, expected) in [("Reset", 4.0), ("ConnectFailure", 6.0)] {
        let retry = format!("  retry: {{attempts: 2, on: [{on}], backoff: {{base: 1ms, max: 1ms}}}}\n");
        mesh.change("routes.yaml", &routed("RoutePolicy", "dead", &retry), "routepolicy/dead").await?;
        let before = retries().await?;
        let answer = client::get(client.calls(&destination("dead"))?, "dead", "/").await?;
        ensure!(answer.status == 502 && answer.header("leno-reason") == "connect", "{answer:?}");
        let made = retries().await? - before;
        ensure!(made == expected, "{on}: {made} retries");
    }
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_sent_again_if_they_were_kept_and_streamed_if_not() -> Result<()> {
    let shop = Shop::start(|asked| only_again(asked, Act::Answer(503, String::new()))).await?;
    shop.policy("  retry: {attempts: 1, statuses: [\"503\"], backoff: {base: 1ms, max: 1ms}}\n").await?;
    let post = || Request::post("/").header("idempotency-key", "1");
    for (bytes, expected) in [(10_000, (200, 2)), (200_000, (503, 1))] {
        let before = shop.server.counts().body_bytes.load(Relaxed);
        let (answer, tries) = shop.send(post(), bytes).await?;
        let found = (answer.status.as_u16(), tries);
        ensure!(found == expected, "{bytes} bytes: expected {expected:?}, got {found:?}");
        let read = shop.server.counts().body_bytes.load(Relaxed) - before;
        ensure!(read == tries * bytes as u64, "the server read {read} bytes in {tries} tries");
    }

    // The server has the first half before the client sends the second.
    const HALF: usize = 150_000;
    let mut stream = TcpStream::connect(shop.client.calls(&destination("shop"))?).await?;
    let before = shop.server.counts().body_bytes.load(Relaxed);
    let head = format!("PUT / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", 2 * HALF);
    stream.write_all(&[head.as_bytes(), &[b'x'; HALF]].concat()).await?;
    eventually("half of the body is with the server", LIMIT, async || {
        let read = shop.server.counts().body_bytes.load(Relaxed) - before;
        ensure!(read == HALF as u64, "{read} bytes");
        Ok(())
    })
    .await?;
    stream.write_all(&[b'x'; HALF]).await?;
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.context("no answer")??;
    ensure!(answer.starts_with("HTTP/1.1 503"), "it can no longer be sent again: {answer}");
    shop.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_is_tried_first() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    let chance =
        format!("{BUDGET}  loadBalancing: {{algorithm: Random}}\n  outlierDetection: {{consecutiveFailures: 0}}\n");
    scenario.mesh.change("backend.yaml", &backend_policy("shop", "shop", &chance), "backendpolicy/shop").await?;
    let retry = "  retry: {attempts: 1, statuses: [\"503\"], backoff: {base: 1ms, max: 1ms}}\n";
    scenario.route(&routed("RoutePolicy", "shop", retry), "routepolicy/shop").await?;
    let failing = &scenario.instance("shop-1")?.server;
    failing.control().status.store(503, Relaxed);
    // Chance alone would send half of the second tries there, too.
    for n in 0..40 {
        let answered = scenario.answered_by(Request::get("/")).await?;
        ensure!(answered == "shop-2", "request {n}: {answered}");
    }
    ensure!(failing.requests() > 0, "it was never tried");
    scenario.mesh.end().await
}

/// Of three endpoints two fail slowly enough to be hedged, so that a request may have failed at both when it is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_hedge_neither_of_both_is_tried_again() -> Result<()> {
    const REQUESTS: usize = 60;
    let mesh = Mesh::start().await?;
    let chance =
        format!("{BUDGET}  loadBalancing: {{algorithm: Random}}\n  outlierDetection: {{consecutiveFailures: 0}}\n");
    let documents = [service("default", "shop", 80, "http"), backend_policy("shop", "shop", &chance)];
    mesh.apply("shop.yaml", &documents::file(&documents))?;
    mesh.wait("backendpolicy/shop").await?;
    let fails = |_: &Asked| Act::AnswerAfter(Duration::from_millis(600), 503, String::new());
    let servers = [
        Scripted::start(fails).await?,
        Scripted::start(fails).await?,
        Scripted::start(|_| Act::Answer(200, String::new())).await?,
    ];
    for (n, server) in servers.iter().enumerate() {
        mesh.workload(&format!("shop-{n}")).account("shop").serves("shop", server.address()).start().await?;
    }
    let client = mesh.workload("client").outbound(&destination("shop")).start().await?;
    let sections =
        "  retry: {attempts: 2, statuses: [\"503\"], backoff: {base: 1ms, max: 1ms}}\n  hedging: {delay: 200ms}\n";
    mesh.change("routes.yaml", &routed("RoutePolicy", "shop", sections), "routepolicy/shop").await?;

    let mut under_way = JoinSet::new();
    for n in 0..REQUESTS {
        let request = Request::get("/").header("host", "shop").header("x-number", n).body(Bytes::new())?;
        under_way.spawn(client::http1(client.calls(&destination("shop"))?, request));
    }
    while let Some(answered) = under_way.join_next().await {
        let answer = answered??;
        ensure!(answer.status == 200, "{answer:?}");
    }
    // However late a timer was: the first three tries of a request, hedges and retries, are at one endpoint each.
    let mut endpoints = BTreeMap::<_, Vec<usize>>::new();
    for (n, server) in servers.iter().enumerate() {
        for asked in server.asked() {
            let attempt = asked.header("leno-attempt").parse().unwrap_or(1);
            if attempt <= servers.len() {
                endpoints.entry(asked.header("x-number").to_owned()).or_default().push(n);
            }
        }
    }
    let again: Vec<_> = endpoints.iter().filter(|(_, at)| !at.is_sorted_by(|one, next| one < next)).collect();
    ensure!(again.is_empty(), "tried again where it had failed: {again:?}");
    let all_three = endpoints.values().filter(|at| at.len() == servers.len()).count();
    ensure!(all_three > 0, "none failed at both: {endpoints:?}");
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_deadline_goes_on_less_the_time_spent() -> Result<()> {
    const SENT: u64 = 10_000;
    const SPENT: u64 = 700;
    let answer = "content-type: application/grpc\r\ngrpc-status: 0\r\n";
    let shop = Shop::start(move |_| Act::Answer(200, answer.to_owned())).await?;
    let delay = format!("  delay: {{duration: {SPENT}ms}}\n");
    shop.mesh.change("routes.yaml", &routed("FaultPolicy", "shop", &delay), "faultpolicy/shop").await?;
    let call = Request::post("/leno.e2e.Echo/Unary").header("content-type", "application/grpc");
    let (answer, _) = shop.send(call.header("grpc-timeout", format!("{}S", SENT / 1000)), 0).await?;
    ensure!(answer.header("grpc-status") == "0", "{answer:?}");
    let asked = shop.server.last()?;
    let told = asked.header("grpc-timeout");
    let left: u64 = told.strip_suffix('m').context("milliseconds")?.parse().with_context(|| told.to_owned())?;
    ensure!(left > 0 && left <= SENT - SPENT, "{left} ms are left of {SENT} after {SPENT}");
    shop.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedged_request_has_as_much_time_left_as_it_has() -> Result<()> {
    const SENT: u64 = 20_000;
    const DELAY: u64 = 700;
    // Who is asked second answers, whichever that is.
    let asked = Arc::new(AtomicU64::new(0));
    let second_answers = || {
        let asked = asked.clone();
        move |_: &Asked| {
            let ok = Act::Answer(200, "content-type: application/grpc\r\ngrpc-status: 0\r\n".to_owned());
            if asked.fetch_add(1, Relaxed) == 0 { Act::Wait } else { ok }
        }
    };
    let servers = [Scripted::start(second_answers()).await?, Scripted::start(second_answers()).await?];
    let mesh = Mesh::start().await?;
    let documents = [service("default", "shop", 80, "http"), backend_policy("shop", "shop", BUDGET)];
    mesh.apply("shop.yaml", &documents::file(&documents))?;
    mesh.wait("backendpolicy/shop").await?;
    let [one, other] = &servers;
    mesh.workload("shop-1").account("shop").serves("shop", one.address()).start().await?;
    mesh.workload("shop-2").account("shop").serves("shop", other.address()).start().await?;
    let client = mesh.workload("client").outbound(&destination("shop")).start().await?;
    let hedging = format!("  hedging: {{delay: {DELAY}ms, methods: Any}}\n");
    mesh.change("routes.yaml", &routed("RoutePolicy", "shop", &hedging), "routepolicy/shop").await?;

    let call = Request::post("/leno.e2e.Echo/Unary").header("host", "shop").header("content-type", "application/grpc");
    let call = call.header("grpc-timeout", format!("{}S", SENT / 1000)).body(Bytes::new())?;
    let answer = client::http1(client.calls(&destination("shop"))?, call).await?;
    ensure!(answer.header("grpc-status") == "0", "{answer:?}");
    let lasts = servers.iter().map(Scripted::last).collect::<Result<Vec<_>>>()?;
    let second = lasts.iter().find(|asked| asked.header("leno-attempt") == "2").context("a second try")?;
    let told = second.header("grpc-timeout");
    let left: u64 = told.strip_suffix('m').context("milliseconds")?.parse().with_context(|| told.to_owned())?;
    ensure!(left > 0 && left <= SENT - DELAY, "{left} ms are left of {SENT} after {DELAY}");
    mesh.end().await
}
