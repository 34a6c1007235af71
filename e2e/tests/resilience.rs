//! Retries, timeouts, circuit breaker, limits, hedging and the reasons for own answers, each from YAML and through both
//! sidecars.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Method, Request};
use leno_e2e::{
    client::{self, Answer},
    echo::Ping,
    mesh::{
        LIMIT, Mesh, Options,
        documents::{self, http_route},
    },
    relay::Relay,
    scenario::Scenario,
    server::Server,
    wait::eventually,
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tonic::Code;

/// The route `shop`, and a RoutePolicy for it with these sections.
fn routed(sections: &str) -> String {
    format!(
        "{}---
apiVersion: leno.dev/v1alpha1
kind: RoutePolicy
metadata: {{name: shop, namespace: default}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}}]
{sections}",
        http_route("shop", "shop", &[("shop", 1)])
    )
}

/// A BackendPolicy for the Service `shop`.
fn backend(sections: &str) -> String {
    documents::backend_policy("shop", "shop", sections)
}

async fn route_policy(scenario: &Scenario, sections: &str) -> Result<()> {
    scenario.mesh.change("routes.yaml", &routed(sections), "routepolicy/shop").await
}

async fn backend_policy(scenario: &Scenario, sections: &str) -> Result<()> {
    scenario.mesh.change("backend.yaml", &backend(sections), "backendpolicy/shop").await
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_what_the_policy_says() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let server = &scenario.instance("shop-1")?.server;
    let tries = async |request: http::request::Builder| -> Result<(u16, u64)> {
        let before = server.requests();
        let answer = scenario.send(request).await?;
        Ok((answer.status.as_u16(), server.requests() - before))
    };
    backend_policy(&scenario, "  retryBudget: {percent: 100, minPerSecond: 1000}\n").await?;
    route_policy(&scenario, "  retry: {attempts: 2, statuses: [5xx, 429], backoff: {base: 1ms, max: 5ms}}\n").await?;
    for (what, request, expected) in [
        ("one failure is made good", Request::get("/count/a/1"), (200, 2)),
        ("two, too", Request::get("/count/b/2"), (200, 3)),
        ("three are too many", Request::get("/count/c/9"), (503, 3)),
        ("any of the class", Request::get("/status/599"), (599, 3)),
        ("what is named", Request::get("/status/429"), (429, 3)),
        ("what is not named", Request::get("/status/409"), (409, 1)),
        ("the client's own faults never", Request::get("/status/404"), (404, 1)),
        ("POST may not be repeated", Request::post("/status/503"), (503, 1)),
        ("unless it has a key", Request::post("/status/503").header("idempotency-key", "1"), (503, 3)),
    ] {
        let found = tries(request).await?;
        ensure!(found == expected, "{what}: expected {expected:?}, got {found:?}");
    }
    let seen = scenario.get("/count/d/2").await?.seen()?;
    ensure!(seen.headers.get("leno-attempt").map(String::as_str) == Some("3"), "{seen:?}");
    let vain = scenario.get("/status/503").await?;
    ensure!(vain.header("leno-retried") == "in-vain", "{vain:?}");

    route_policy(&scenario, "  retry: {attempts: 1, methods: Any, backoff: {base: 1ms, max: 5ms}}\n").await?;
    let found = tries(Request::post("/status/503")).await?;
    ensure!(found == (503, 2), "any method: {found:?}");
    let found = tries(Request::get("/status/500")).await?;
    ensure!(found == (500, 1), "500 is no gateway's error: {found:?}");

    // Retries are within the budget whatever the policy says.
    backend_policy(&scenario, "  retryBudget: {percent: 0, minPerSecond: 0, burst: 1}\n").await?;
    let found = tries(Request::get("/status/503")).await?;
    let again = tries(Request::get("/status/503")).await?;
    ensure!(found.1 + again.1 <= 3 && again == (503, 1), "beyond the budget: {found:?}, {again:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_are_tried_again_by_their_codes() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let server = &scenario.instance("shop-1")?.server;
    let sections = "  retry: {attempts: 2, grpcCodes: [UNAVAILABLE, ABORTED], backoff: {base: 1ms, max: 5ms}}\n";
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: shop, namespace: default}
spec:
  parentRefs: [{group: \"\", kind: Service, name: shop, port: 80}]
  rules: [{backendRefs: [{name: shop, port: 80}]}]
";
    let policy = routed(sections).replace("kind: HTTPRoute, name", "kind: GRPCRoute, name");
    let policy = policy.split_once("---\n").map(|(_, policy)| policy.to_owned()).unwrap_or_default();
    scenario.mesh.change("routes.yaml", &format!("{route}---\n{policy}"), "routepolicy/shop").await?;
    let mut calls = client::grpc(scenario.address("shop")?, "shop.default:80")?;
    for (code, expected) in [(Code::Unavailable, 3), (Code::Aborted, 3), (Code::Internal, 1), (Code::NotFound, 1)] {
        let before = server.requests();
        let failed = calls.unary(Ping { fail_with: code as i32, ..Ping::default() }).await;
        let status = failed.err().map(|status| status.code());
        let tries = server.requests() - before;
        ensure!(status == Some(code) && tries == expected, "{code:?}: {status:?} after {tries} tries");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wait_has_an_end() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let within = async |path: &str, reason: &str| -> Result<()> {
        let started = Instant::now();
        let answer = scenario.get(path).await?;
        ensure!(answer.status == 504 && answer.header("leno-reason") == reason, "{path}, {reason}: {answer:?}");
        ensure!(started.elapsed() < Duration::from_secs(10), "{path}, {reason}: {:?}", started.elapsed());
        Ok(())
    };
    route_policy(&scenario, "  timeouts: {backendRequest: 200ms}\n").await?;
    within("/delay/15000", "try-timeout").await?;
    route_policy(&scenario, "  timeouts: {request: 200ms}\n").await?;
    within("/delay/15000", "request-timeout").await?;
    route_policy(&scenario, "  timeouts: {response: 200ms}\n").await?;
    within("/delay/15000", "response-timeout").await?;
    route_policy(&scenario, "  timeouts: {streamIdle: 200ms}\n").await?;
    within("/delay/15000", "idle").await?;

    // A backend's, where the route says nothing.
    route_policy(&scenario, "").await?;
    backend_policy(&scenario, "  timeouts: {request: 300ms}\n").await?;
    within("/delay/15000", "request-timeout").await?;
    backend_policy(&scenario, "  timeouts: {request: 10s, response: 300ms}\n").await?;
    within("/delay/15000", "response-timeout").await?;
    backend_policy(&scenario, "  timeouts: {backendRequest: 3s, connectionIdle: 1s}\n").await?;
    within("/delay/15000", "try-timeout").await?;
    ensure!(scenario.get("/").await?.status == 200, "what is fast is untouched");

    // A retry after a try that took too long.
    route_policy(&scenario, "  timeouts: {backendRequest: 3s}\n  retry: {attempts: 1, on: [TryTimeout]}\n").await?;
    let server = &scenario.instance("shop-1")?.server;
    let before = server.requests();
    within("/delay/15000", "try-timeout").await?;
    ensure!(server.requests() - before == 2, "{} tries", server.requests() - before);
    scenario.mesh.end().await
}

/// Its kernel goes on to take what is sent, so that nobody but who asks for an answer finds out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_frozen_is_left_within_seconds() -> Result<()> {
    const REQUESTS: usize = 16;
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    backend_policy(&scenario, "  loadBalancing: {algorithm: RoundRobin}\n").await?;
    ensure!(scenario.answers(10).await?.len() == 2, "both serve");
    let frozen = scenario.instance("shop-1")?.sidecar.process()?;
    frozen.signal(Signal::STOP)?;
    let address = scenario.address("shop")?;
    let mut waiting = JoinSet::new();
    for n in 0..REQUESTS {
        let method = if n % 4 < 2 { Method::GET } else { Method::POST };
        waiting.spawn(async move {
            let started = Instant::now();
            let request =
                Request::builder().method(method.clone()).uri("/").header("host", "shop").body(Bytes::new())?;
            let answer = timeout(Duration::from_secs(20), client::http1(address, request)).await??;
            anyhow::Ok((method, answer, started.elapsed()))
        });
    }
    let mut lost = 0;
    while let Some(ended) = waiting.join_next().await {
        let (method, answer, took) = ended??;
        println!("{method}: {} {} after {took:.1?}", answer.status, answer.header("leno-reason"));
        // What may have been processed is not repeated.
        if method == Method::POST && answer.status == 502 && answer.header("leno-reason") == "reset" {
            lost += 1;
        } else {
            ensure!(answer.status == 200, "{method}: {answer:?}");
        }
    }
    ensure!((1..=REQUESTS / 2).contains(&lost), "{lost} of {REQUESTS} were lost");
    let after = scenario.answers(20).await?;
    ensure!(after.get("shop-2") == Some(&20), "{after:?}");
    frozen.signal(Signal::CONT)?;
    scenario.mesh.end().await
}

/// `request` would end the stream, and what is behind its head may take as long as it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_the_time_for_its_head() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let mut calls = client::grpc(scenario.address("shop")?, "shop.default:80")?;
    let mut stream = async || {
        let asked = Ping { count: 4, delay_ms: 800, ..Ping::default() };
        let mut pongs = calls.server_stream(asked).await?.into_inner();
        let mut seen = 0;
        while let Some(pong) = pongs.message().await? {
            seen = pong.seen;
        }
        anyhow::Ok(seen)
    };
    route_policy(&scenario, "  timeouts: {response: 2s, streamIdle: 1m}\n").await?;
    ensure!(stream().await? == 4, "the route's policy");
    route_policy(&scenario, "  timeouts: {streamIdle: 1m}\n").await?;
    backend_policy(&scenario, "  timeouts: {response: 2s}\n").await?;
    ensure!(stream().await? == 4, "the backend's policy");
    route_policy(&scenario, "  timeouts: {request: 2s}\n").await?;
    let cut = stream().await;
    ensure!(cut.is_err(), "{cut:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_on_which_nothing_moves_ends_when_policy_says() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    backend_policy(&scenario, "  timeouts: {streamIdle: 1s}\n").await?;
    let mut stream = TcpStream::connect(scenario.address("shop")?).await?;
    let asked = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(asked.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"ping").await?;
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await?;
    ensure!(&echoed == b"ping", "{echoed:?}");
    // Without the policy it would stay for an hour. Closed or reset: either is an end.
    let ended = timeout(LIMIT, stream.read_u8()).await;
    ensure!(matches!(ended, Ok(Err(_))), "{ended:?}");
    eventually("it is counted as idle", LIMIT, async || {
        let metrics = scenario.client.metrics().await?;
        let idle = metrics.sum("leno_requests_total", &[("direction", "outbound"), ("reason", "idle")]);
        ensure!(idle == 1.0, "{idle}");
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_works_for_a_deadline_that_has_passed() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let server = &scenario.instance("shop-1")?.server;
    let request = Request::post("/leno.e2e.Echo/Unary")
        .header("host", "shop")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "0m")
        .body(Bytes::new())?;
    let answer = client::http1(scenario.address("shop")?, request).await?;
    ensure!(answer.header("grpc-status") == "4" && answer.header("leno-reason") == "deadline", "{answer:?}");
    ensure!(server.requests() == 0, "it reached the application");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_says_how_long_it_waits() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let server = &scenario.instance("shop-1")?.server;
    let ask = async |path: &str, patience: &str| {
        let request = Request::get(path).header("host", "shop").header("leno-timeout-ms", patience);
        client::http1(scenario.address("shop")?, request.body(Bytes::new())?).await
    };
    let begun = Instant::now();
    let answer = ask("/delay/15000", "300").await?;
    // By whoever notices first: its own proxy, or the server's, which was told.
    ensure!(answer.status == 504 && answer.header("leno-reason") == "request-timeout", "{answer:?}");
    ensure!(begun.elapsed() < Duration::from_secs(10), "after {:?}", begun.elapsed());
    let before = server.requests();
    let answer = ask("/late", "0").await?;
    ensure!(answer.status == 504 && answer.header("leno-reason") == "deadline", "{answer:?}");
    ensure!(server.requests() == before, "it reached the application");
    // What cannot be read says nothing, as with grpc-timeout.
    for unreadable in ["soon", "-1", "99999999999"] {
        let answer = ask("/delay/20", unreadable).await?;
        ensure!(answer.status == 200, "{unreadable}: {answer:?}");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_inherit_the_deadline_of_what_they_serve() -> Result<()> {
    let mesh = Mesh::start().await?;
    let patience = "apiVersion: leno.dev/v1alpha1
kind: RoutePolicy
metadata: {name: patience, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: front}]
  timeouts: {request: 3s}
";
    let services = ["front", "back"].map(|name| documents::service("default", name, 80, "http"));
    let [front, back] = services;
    mesh.apply(
        "two.yaml",
        &documents::file(&[front, back, http_route("front", "front", &[("front", 1)]), patience.into()]),
    )?;
    let (application, server) = (Relay::start(true).await?, Server::start("back").await?);
    mesh.workload("back").serves("back", server.address()).start().await?;
    let front =
        mesh.workload("front").serves("front", application.address()).outbound("back.default:80").start().await?;
    application.calls(front.calls("back.default:80")?, "back.default");
    let client = mesh.workload("client").outbound("front.default:80").start().await?;
    let request = Request::get("/delay/15000")
        .header("host", "front")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    let answer = client::http1(client.calls("front.default:80")?, request.body(Bytes::new())?).await?;
    // By whoever notices first: this client's proxy, or the last one, whose answer the application passes on.
    ensure!(answer.status == 504, "{answer:?}");
    eventually("the call behind it ended in time, too", LIMIT, async || {
        // Both proxies on its way know when its time is up, and either may say so first: this one, or its peer by a 504.
        let metrics = front.metrics().await?;
        let here = [("direction", "outbound"), ("class", "failed"), ("reason", "request-timeout")];
        let there = [("direction", "outbound"), ("class", "5xx")];
        let count = metrics.sum("leno_requests_total", &here) + metrics.sum("leno_requests_total", &there);
        ensure!(count >= 1.0, "{count}");
        Ok(())
    })
    .await?;
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_circuit_fails_at_once_and_closes_again() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let server = &scenario.instance("shop-1")?.server;
    backend_policy(&scenario, "  circuitBreaker: {consecutiveFailures: 3, openTime: 5s, successesToClose: 2}\n")
        .await?;
    server.control().status.store(503, Relaxed);
    for _ in 0..3 {
        let answer = scenario.get("/").await?;
        ensure!(answer.status == 503 && answer.header("leno-reason").is_empty(), "the server's own: {answer:?}");
    }
    let before = server.requests();
    let refused = scenario.get("/").await?;
    ensure!(refused.status == 503 && refused.header("leno-reason") == "circuit-open", "{refused:?}");
    ensure!(matches!(refused.header("retry-after"), "4" | "5" | "6" | "7"), "{refused:?}");
    ensure!(server.requests() == before, "it reached the server");
    let mut calls = client::grpc(scenario.address("shop")?, "shop.default:80")?;
    let status = calls.unary(Ping::default()).await.err().map(|status| status.code());
    ensure!(status == Some(Code::Unavailable), "{status:?}");
    let metrics = scenario.client.metrics().await?;
    let counted = metrics.sum("leno_requests_total", &[("class", "failed"), ("reason", "circuit-open")]);
    ensure!(counted >= 2.0, "{counted} counted");

    server.control().status.store(0, Relaxed);
    eventually("it closes", LIMIT, async || {
        for _ in 0..5 {
            let answer = scenario.get("/").await?;
            ensure!(answer.status == 200, "{answer:?}");
        }
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_circuit_has_its_fallback() -> Result<()> {
    let scenario = Scenario::start(&["shop", "a", "b"]).await?;
    let rule = |name: &str| {
        format!(
            "    - {{name: {name}, matches: [{{path: {{value: /{name}}}}}], backendRefs: [{{name: a, port: 80}}]}}\n"
        )
    };
    let policy = |name: &str, fallback: &str| {
        format!(
            "---\napiVersion: leno.dev/v1alpha1\nkind: RoutePolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
             targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: {name}}}]\n  \
             fallback: {fallback}\n"
        )
    };
    let head = documents::route_head("HTTPRoute", "shop", "shop");
    let rules = ["backed", "answered", "plain"].map(rule).concat();
    let backed = policy("backed", "{backendRef: {name: b, port: 80}}");
    let answered = policy("answered", "{answer: {status: 203, body: stands-in}}");
    scenario.route(&format!("{head}  rules:\n{rules}{backed}{answered}"), "routepolicy/answered").await?;
    scenario.mesh.wait("routepolicy/backed").await?;
    let breaker = "  circuitBreaker: {consecutiveFailures: 3, openTime: 10m}\n";
    scenario.mesh.change("backend.yaml", &documents::backend_policy("a", "a", breaker), "backendpolicy/a").await?;

    let failing = &scenario.instance("a-1")?.server;
    failing.control().status.store(503, Relaxed);
    for path in ["/backed", "/answered", "/plain"] {
        let answer = scenario.get(path).await?;
        ensure!(answer.status == 503 && answer.header("leno-reason").is_empty(), "the server's own: {answer:?}");
    }
    let before = failing.requests();
    let request = Request::post("/backed").header("host", "shop").body(Bytes::from(vec![b'x'; 10_000]))?;
    let seen = client::http1(scenario.address("shop")?, request).await?.seen()?;
    ensure!(seen.instance == "b-1" && seen.body_bytes == 10_000, "{seen:?}");
    let answer = scenario.get("/answered").await?;
    ensure!(answer.status == 203 && text(&answer) == "stands-in", "{answer:?}");
    ensure!(answer.header("leno-reason") == "circuit-open", "{answer:?}");
    let answer = scenario.get("/plain").await?;
    ensure!(answer.status == 503 && answer.header("leno-reason") == "circuit-open", "{answer:?}");
    ensure!(failing.requests() == before, "it reached the server");
    let fallbacks = scenario.client.metrics().await?.sum("leno_fallbacks_total", &[("reason", "circuit-open")]);
    ensure!(fallbacks == 2.0, "{fallbacks}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_takes_no_more_than_its_limits() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let server = &scenario.instance("shop-1")?.server;
    backend_policy(&scenario, "  limits: {requests: 2}\n").await?;
    let slow = async || scenario.get("/delay/5000").await;
    let third = async || {
        eventually("two are under way", LIMIT, async || {
            ensure!(server.control().in_flight.load(Relaxed) == 2, "not yet");
            Ok(())
        })
        .await?;
        scenario.get("/").await
    };
    let (one, two, three) = tokio::join!(slow(), slow(), third());
    let three = three?;
    ensure!(one?.status == 200 && two?.status == 200, "within the limit");
    ensure!(three.status == 503 && three.header("leno-reason") == "overload", "{three:?}");
    ensure!(text(&three).contains("requests in flight") && three.header("retry-after") == "1", "{three:?}");
    ensure!(scenario.get("/").await?.status == 200, "places are given back");

    // No retry where there is no place for one.
    route_policy(&scenario, "  retry: {attempts: 2, statuses: [\"503\"], backoff: {base: 1ms, max: 1ms}}\n").await?;
    backend_policy(&scenario, "  limits: {retries: 0}\n").await?;
    let before = server.requests();
    ensure!(scenario.get("/status/503").await?.status == 503, "passed on");
    ensure!(server.requests() - before == 1, "{} tries", server.requests() - before);
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_is_overtaken_by_another_endpoint() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    backend_policy(&scenario, "  retryBudget: {percent: 100, minPerSecond: 100}\n").await?;
    route_policy(&scenario, "  hedging: {delay: 50ms}\n").await?;
    ensure!(scenario.get("/").await?.status == 200, "both are there");
    scenario.instance("shop-1")?.server.control().delay_ms.store(15_000, Relaxed);
    for _ in 0..20 {
        let started = Instant::now();
        let answer = scenario.get("/").await?;
        ensure!(answer.status == 200 && answer.seen()?.instance == "shop-2", "{answer:?}");
        ensure!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
    // POST may not be sent twice.
    let slow = &scenario.instance("shop-1")?.server;
    let other = &scenario.instance("shop-2")?.server;
    slow.control().delay_ms.store(1500, Relaxed);
    other.control().delay_ms.store(1500, Relaxed);
    let before = slow.requests() + other.requests();
    ensure!(scenario.send(Request::post("/")).await?.status == 200, "answered");
    ensure!(slow.requests() + other.requests() - before == 1, "sent twice");
    // GET is: to both.
    let before = slow.requests() + other.requests();
    ensure!(scenario.get("/").await?.status == 200, "answered");
    ensure!(slow.requests() + other.requests() - before == 2, "not sent twice");
    // Unless retries have no place.
    backend_policy(&scenario, "  limits: {retries: 0}\n").await?;
    let before = slow.requests() + other.requests();
    ensure!(scenario.get("/").await?.status == 200, "answered");
    ensure!(slow.requests() + other.requests() - before == 1, "sent twice without a place for it");
    // Nor beyond the budget, of which one try may be left.
    backend_policy(&scenario, "  retryBudget: {percent: 0, minPerSecond: 0, burst: 1}\n").await?;
    ensure!(scenario.get("/").await?.status == 200, "answered");
    let before = slow.requests() + other.requests();
    ensure!(scenario.get("/").await?.status == 200, "answered");
    ensure!(slow.requests() + other.requests() - before == 1, "sent twice without budget");
    // Who is overtaken opens no breaker.
    backend_policy(
        &scenario,
        "  circuitBreaker: {consecutiveFailures: 1}\n  retryBudget: {percent: 100, minPerSecond: 100}\n",
    )
    .await?;
    slow.control().delay_ms.store(15_000, Relaxed);
    other.control().delay_ms.store(0, Relaxed);
    for _ in 0..10 {
        let answer = scenario.get("/").await?;
        ensure!(answer.status == 200 && answer.seen()?.instance == "shop-2", "{answer:?}");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_values_are_refused_and_the_last_good_policy_stays() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    backend_policy(&scenario, "  limits: {requests: 1000}\n").await?;
    for (sections, field) in [
        ("  limits: {requests: 0}\n", "spec.limits.requests"),
        ("  limits: {connections: -1}\n", "spec.limits.connections"),
        ("  circuitBreaker: {failurePercent: 101}\n", "spec.circuitBreaker.failurePercent"),
        ("  circuitBreaker: {openTime: 0s}\n", "spec.circuitBreaker.openTime"),
        ("  retryBudget: {percent: 99999999999}\n", "spec.retryBudget.percent"),
        ("  timeouts: {connect: 1000h}\n", "spec.timeouts.connect"),
        ("  timeouts: {streamIdle: soon}\n", "spec.timeouts.streamIdle"),
        ("  timeouts: {request: 1s, response: 2s}\n", "spec.timeouts.response"),
        ("  timeouts: {response: 1s, backendRequest: 2s}\n", "spec.timeouts.backendRequest"),
    ] {
        scenario.mesh.apply("backend.yaml", &backend(sections))?;
        eventually(&format!("{field} is refused"), LIMIT, async || {
            let shown = format!("{}", scenario.mesh.get(&["backendpolicy", "shop", "-n", "default"]).await?);
            ensure!(shown.contains(field), "{shown}");
            Ok(())
        })
        .await?;
        ensure!(scenario.get("/").await?.status == 200, "{field}");
    }
    scenario.mesh.end().await
}
