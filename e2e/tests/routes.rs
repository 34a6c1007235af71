//! What routes and the policies attached to them do with requests, each case from YAML through both sidecars.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_e2e::{
    client::{self, Answer},
    echo::Ping,
    mesh::{LIMIT, Options, documents::route_head},
    scenario::Scenario,
    server::INSTANCE,
    wait::eventually,
};
use tokio::{net::TcpStream, task::JoinSet};
use tonic::Code;

/// An HTTPRoute `shop` on Service `shop` with these rules.
fn http_route(rules: &str) -> String {
    format!("{}  rules:\n{rules}", route_head("HTTPRoute", "shop", "shop"))
}

/// A policy for the route `shop`, or one of its rules, up to its sections.
fn policy(kind: &str, name: &str, route: &str, rule: Option<&str>, sections: &str) -> String {
    let section = rule.map_or_else(String::new, |rule| format!("\n      sectionName: {rule}"));
    format!(
        "apiVersion: leno.dev/v1alpha1
kind: {kind}
metadata:
  name: {name}
  namespace: default
spec:
  targetRefs:
    - group: gateway.networking.k8s.io
      kind: {route}
      name: shop{section}
{sections}"
    )
}

async fn post(scenario: &Scenario, path: &str, bytes: usize) -> Result<Answer> {
    let request = Request::post(path).header("host", "shop").body(Bytes::from(vec![b'x'; bytes]))?;
    client::http1(scenario.address("shop")?, request).await
}

/// What the client's sidecar counted of mirrored requests to a service.
async fn mirrored(scenario: &Scenario, service: &str, result: &str) -> Result<f64> {
    let backend = format!("default/{service}:80");
    let metrics = scenario.client.metrics().await?;
    Ok(metrics.sum("leno_mirrored_requests_total", &[("backend", &backend), ("result", result)]))
}

async fn mirrored_becomes(scenario: &Scenario, service: &str, result: &str, expected: f64) -> Result<()> {
    eventually(&format!("{expected} mirrored to {service} are {result}"), LIMIT, async || {
        let counted = mirrored(scenario, service, result).await?;
        ensure!(counted == expected, "{counted}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_mirrored_without_a_trace_on_themselves() -> Result<()> {
    let mut scenario = Scenario::start(&["shop", "a", "b", "c"]).await?;
    let rules = r#"
    - matches: [{path: {type: PathPrefix, value: /both}}]
      filters:
        - {type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}}}
        - {type: RequestMirror, requestMirror: {backendRef: {name: c, port: 80}, fraction: {numerator: 1, denominator: 4}}}
        - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /rewritten}}}
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /none}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}, percent: 0}}]
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /backend}}]
      backendRefs:
        - name: a
          port: 80
          filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}}}]
    - matches: [{path: {type: PathPrefix, value: /nobody}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}]
      backendRefs: [{name: a, port: 80}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;

    // Bodies are copied whole; the mirror sees the path that the backend sees.
    for bytes in [0, 1, 100_000, 0] {
        let seen = post(&scenario, "/both/x", bytes).await?.seen()?;
        ensure!(seen.instance == "a-1" && seen.body_bytes == bytes as u64 && seen.path == "/rewritten/x", "{seen:?}");
    }
    mirrored_becomes(&scenario, "b", "sent", 4.0).await?;
    let b = scenario.instance("b-1")?;
    ensure!(b.server.seen("/rewritten/x") == 4, "{} whole requests", b.server.seen("/rewritten/x"));
    eventually("all that was sent came to the mirror", LIMIT, async || {
        let bytes = b.sidecar.metrics().await?.sum("leno_request_bytes_total", &[("direction", "inbound")]);
        ensure!(bytes == 100_001.0, "{bytes} bytes");
        Ok(())
    })
    .await?;

    // A share of them: 400 at 1/4 is 100 ± 9; six standard deviations either way.
    let before = scenario.instance("c-1")?.server.requests();
    for _ in 0..400 {
        ensure!(scenario.answered_by(Request::get("/both/share")).await? == "a-1");
    }
    mirrored_becomes(&scenario, "b", "sent", 404.0).await?;
    let share = scenario.instance("c-1")?.server.requests() - before;
    ensure!((48..=152).contains(&share), "a quarter of 400 came out as {share}");

    // Of the backend alone, at none, and to nobody.
    ensure!(scenario.answered_by(Request::get("/backend")).await? == "a-1");
    mirrored_becomes(&scenario, "b", "sent", 405.0).await?;
    ensure!(scenario.answered_by(Request::get("/none")).await? == "a-1");
    ensure!(scenario.answered_by(Request::get("/nobody")).await? == "a-1", "a mirror that is nobody fails nothing");
    let status = scenario.mesh.object("httproute/shop").await?.context("the route")?.to_string();
    ensure!(status.contains("BackendNotFound") && status.contains("nobody"), "{status}");

    // What is too large is not copied, and goes on all the same.
    let seen = post(&scenario, "/backend", 1_000_000).await?.seen()?;
    ensure!(seen.body_bytes == 1_000_000, "{seen:?}");
    mirrored_becomes(&scenario, "b", "too-large", 1.0).await?;

    // A mirror that dawdles delays nobody, and of many copies at once some are dropped.
    scenario.instance("b-1")?.server.control().delay_ms.store(60_000, Relaxed);
    let begun = Instant::now();
    for _ in 0..200 {
        ensure!(scenario.answered_by(Request::get("/backend")).await? == "a-1");
    }
    ensure!(begun.elapsed() < Duration::from_secs(30), "waited for the mirror: {:?}", begun.elapsed());
    let dropped = mirrored(&scenario, "b", "overload").await?;
    ensure!(dropped >= 1.0, "200 copies under way, and none was dropped");

    // Nor does one that is gone fail anything.
    let index = scenario.instances.iter().position(|one| one.server.name() == "b-1").context("b-1")?;
    scenario.instances.get_mut(index).context("b-1")?.kill().await?;
    eventually("copies fail", LIMIT, async || {
        ensure!(scenario.answered_by(Request::get("/backend")).await? == "a-1");
        ensure!(mirrored(&scenario, "b", "failed").await? >= 1.0);
        Ok(())
    })
    .await?;
    scenario.mesh.end().await.or_else(|error| if format!("{error:#}").contains("b-1") { Ok(()) } else { Err(error) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cross_origin_requests_are_let_in_as_the_route_says() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let rules = r#"
    - matches: [{path: {type: PathPrefix, value: /these}}]
      filters:
        - type: CORS
          cors:
            allowOrigins: ["https://www.foo.com", "https://*.bar.com"]
            allowMethods: [GET, OPTIONS]
            allowHeaders: [x-header-1, x-header-2]
            exposeHeaders: [x-header-3]
            allowCredentials: true
            maxAge: 3600
      backendRefs: [{name: shop, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /any}}]
      filters: [{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"]}}]
      backendRefs: [{name: shop, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /gone}}]
      filters: [{type: CORS, cors: {allowOrigins: ["*"]}}]
      backendRefs: [{name: nowhere, port: 80}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;
    let server = &scenario.instance("shop-1")?.server;
    let preflight = async |path: &str, origin: &str, method: &str| {
        let request = Request::options(path).header("origin", origin).header("access-control-request-method", method);
        scenario.send(request.header("access-control-request-headers", "x-header-1")).await
    };
    for origin in ["https://www.foo.com", "https://a.b.bar.com"] {
        let answer = preflight("/these", origin, "GET").await?;
        ensure!(answer.status == 204 && answer.header("access-control-allow-origin") == origin, "{answer:?}");
        for (name, value) in [
            ("access-control-allow-methods", "GET, OPTIONS"),
            ("access-control-allow-headers", "x-header-1, x-header-2"),
            ("access-control-expose-headers", "x-header-3"),
            ("access-control-max-age", "3600"),
            ("access-control-allow-credentials", "true"),
        ] {
            ensure!(answer.header(name) == value, "{name}: {answer:?}");
        }
    }
    let refused = preflight("/these", "https://foobar.com", "GET").await?;
    ensure!(refused.status == 403 && refused.header("leno-reason") == "cors", "{refused:?}");
    ensure!(!refused.headers.contains_key("access-control-allow-origin"), "{refused:?}");
    let answer = preflight("/any", "https://anyone.example:8443", "PUT").await?;
    ensure!(answer.header("access-control-allow-origin") == "*", "{answer:?}");
    ensure!(answer.header("access-control-allow-methods") == "PUT" && answer.header("access-control-max-age") == "5");
    ensure!(server.requests() == 0, "a preflight came to the application");

    let get = async |path: &str, origin: &str| scenario.send(Request::get(path).header("origin", origin)).await;
    let answer = get("/these", "https://www.foo.com").await?;
    ensure!(
        answer.status == 200 && answer.header("access-control-allow-origin") == "https://www.foo.com",
        "{answer:?}"
    );
    ensure!(answer.header("vary") == "origin", "{answer:?}");
    let answer = get("/these", "https://foobar.com").await?;
    ensure!(answer.status == 200 && !answer.headers.contains_key("access-control-allow-origin"), "{answer:?}");
    // Pages can read the proxy's own answers, too.
    let answer = get("/gone", "https://www.foo.com").await?;
    ensure!(answer.status == 500 && answer.header("access-control-allow-origin") == "*", "{answer:?}");
    // An OPTIONS that is no preflight is the application's.
    let answer = scenario.send(Request::options("/these").header("origin", "https://www.foo.com")).await?;
    ensure!(answer.status == 200 && answer.seen()?.method == "OPTIONS", "{answer:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_made_as_the_policy_says() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let rules = r#"
    - name: slow
      matches: [{path: {type: PathPrefix, value: /slow}}]
      timeouts: {request: 2s}
      backendRefs: [{name: shop, port: 80}]
    - backendRefs: [{name: shop, port: 80}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;
    let faults = r#"
  abort:
    httpStatus: 418
    matches: [{headers: [{name: x-fault, value: abort}]}, {method: DELETE}]
"#;
    let whole = policy("FaultPolicy", "abort", "HTTPRoute", None, faults);
    let delay = r#"
  delay: {duration: 30s, matches: [{headers: [{name: x-fault, value: long}]}]}
  abort: {httpStatus: 503, percentage: 25}
"#;
    let slow = policy("FaultPolicy", "slow", "HTTPRoute", Some("slow"), delay);
    scenario.mesh.change("faults.yaml", &format!("{whole}---\n{slow}"), "faultpolicy/abort").await?;
    scenario.mesh.wait("faultpolicy/slow").await?;

    let server = &scenario.instance("shop-1")?.server;
    ensure!(scenario.get("/").await?.status == 200, "what does not match meets no fault");
    let before = server.requests();
    for request in [Request::get("/").header("x-fault", "abort"), Request::delete("/")] {
        let answer = scenario.send(request).await?;
        ensure!(answer.status == 418 && answer.header("leno-reason") == "fault", "{answer:?}");
    }
    ensure!(server.requests() == before, "an aborted request came to the application");

    // The policy of the rule is in force in place of the route's. 400 at 25 %: 100 ± 9; six standard deviations.
    let mut aborted = 0;
    for _ in 0..400 {
        let answer = scenario.send(Request::get("/slow").header("x-fault", "abort")).await?;
        aborted += u32::from(answer.status == 503 && answer.header("leno-reason") == "fault");
    }
    ensure!((48..=152).contains(&aborted), "25 % of 400 came out as {aborted}");
    // A delay counts as time that the client waits.
    let late = scenario.send(Request::get("/slow").header("x-fault", "long")).await?;
    ensure!(late.status == 504 && late.header("leno-reason") == "request-timeout", "{late:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_spelled_out_and_backends_stood_in_for() -> Result<()> {
    let mut scenario = Scenario::start(&["shop", "a", "b"]).await?;
    let rules = r#"
    - name: maintenance
      matches: [{path: {type: PathPrefix, value: /maintenance}}]
    - name: backed
      matches: [{path: {type: PathPrefix, value: /backed}}]
      backendRefs: [{name: a, port: 80}]
    - name: answered
      matches: [{path: {type: PathPrefix, value: /answered}}]
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /plain}}]
      backendRefs: [{name: a, port: 80}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;
    let direct = r#"
  directResponse:
    status: 503
    headers: [{name: Retry-After, value: "120"}, {name: Content-Type, value: text/html}]
    body: "<h1>Back soon</h1>"
"#;
    let backed = "
  fallback: {backendRef: {name: b, port: 80}}
";
    let answered = r#"
  fallback: {answer: {status: 200, body: "[]", headers: [{name: Content-Type, value: application/json}]}}
"#;
    let policies = [
        policy("RoutePolicy", "maintenance", "HTTPRoute", Some("maintenance"), direct),
        policy("RoutePolicy", "backed", "HTTPRoute", Some("backed"), backed),
        policy("RoutePolicy", "answered", "HTTPRoute", Some("answered"), answered),
    ];
    scenario.mesh.change("policies.yaml", &policies.join("---\n"), "routepolicy/maintenance").await?;
    scenario.mesh.wait("routepolicy/backed").await?;
    scenario.mesh.wait("routepolicy/answered").await?;

    let answer = scenario.get("/maintenance").await?;
    ensure!(answer.status == 503 && answer.body == "<h1>Back soon</h1>", "{answer:?}");
    ensure!(answer.header("retry-after") == "120" && answer.header("content-type") == "text/html", "{answer:?}");
    ensure!(answer.header("leno-reason") == "direct-response", "{answer:?}");
    for path in ["/backed", "/answered", "/plain"] {
        ensure!(scenario.answered_by(Request::get(path)).await? == "a-1", "{path}");
    }
    // An answer of the application's own, however bad, is no reason to fall back.
    ensure!(scenario.get("/backed").await?.status == 200);

    let index = scenario.instances.iter().position(|one| one.server.name() == "a-1").context("a-1")?;
    scenario.instances.get_mut(index).context("a-1")?.kill().await?;
    // Until the endpoint's connections are known to be gone, requests in flight may still be broken off.
    eventually("the fallback serves", LIMIT, async || {
        let answer = post(&scenario, "/backed", 10_000).await?;
        ensure!(answer.status == 200, "{answer:?}");
        let seen = answer.seen()?;
        ensure!(seen.instance == "b-1" && seen.body_bytes == 10_000, "{seen:?}");
        Ok(())
    })
    .await?;
    let answer = scenario.get("/answered").await?;
    ensure!(answer.status == 200 && answer.body == "[]" && answer.header("leno-reason") == "connect", "{answer:?}");
    let failed = scenario.get("/plain").await?;
    ensure!(failed.status == 502 && failed.header("leno-reason") == "connect", "{failed:?}");
    let fallbacks = scenario.client.metrics().await?.sum("leno_fallbacks_total", &[("reason", "connect")]);
    ensure!(fallbacks >= 2.0, "{fallbacks}");

    // Without any endpoint. One that vanishes is tried for a while, one that drained is not.
    let sidecar = &scenario.instances.get(index).context("a-1")?.sidecar;
    sidecar.declare(&scenario.mesh, false)?;
    scenario.mesh.wait("endpointslice/a-a-1").await?;
    sidecar.withdraw(&scenario.mesh)?;
    eventually("no endpoint is left", LIMIT, async || {
        let answer = scenario.get("/answered").await?;
        ensure!(answer.status == 200 && answer.header("leno-reason") == "no-endpoint", "{answer:?}");
        Ok(())
    })
    .await?;
    ensure!(scenario.answered_by(Request::get("/backed")).await? == "b-1");
    scenario.mesh.end().await.or_else(|error| if format!("{error:#}").contains("a-1") { Ok(()) } else { Err(error) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_retry_budget_stands_in_no_fallbacks_way() -> Result<()> {
    let mut scenario = Scenario::start(&["shop", "a"]).await?;
    let rules = "    - {name: answered, backendRefs: [{name: a, port: 80}]}\n";
    scenario.route(&http_route(rules), "httproute/shop").await?;
    let answered = "  fallback: {answer: {status: 200, body: stands-in}}\n";
    let answered = policy("RoutePolicy", "answered", "HTTPRoute", Some("answered"), answered);
    scenario.mesh.change("policies.yaml", &answered, "routepolicy/answered").await?;
    // Said to be spent (GEP-3388).
    let few = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: few}\nspec:\n  \
               targetRefs: [{group: \"\", kind: Service, name: a}]\n  \
               retryConstraint: {budget: {percent: 0, interval: 10s}, minRetryRate: {count: 1, interval: 10m}}\n";
    scenario.mesh.change("few.yaml", few, "xbackendtrafficpolicy/few").await?;
    ensure!(scenario.answered_by(Request::get("/")).await? == "a-1");
    let index = scenario.instances.iter().position(|one| one.server.name() == "a-1").context("a-1")?;
    scenario.instances.get_mut(index).context("a-1")?.kill().await?;
    eventually("the fallback serves", LIMIT, async || {
        let answer = scenario.get("/").await?;
        ensure!(answer.body == "stands-in", "{answer:?}");
        Ok(())
    })
    .await?;
    for _ in 0..40 {
        let answer = scenario.get("/").await?;
        ensure!(answer.status == 200 && answer.header("leno-reason") == "connect", "{answer:?}");
    }
    scenario.mesh.end().await.or_else(|error| if format!("{error:#}").contains("a-1") { Ok(()) } else { Err(error) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_clients_meet_the_same_in_their_own_protocol() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop", "a"], 1, "kubernetes.io/h2c").await?;
    let rules = r#"
  rules:
    - name: unary
      matches: [{method: {service: leno.e2e.Echo, method: Unary}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}]
      backendRefs: [{name: shop, port: 80}]
    - name: stream
      matches: [{method: {service: leno.e2e.Echo, method: ServerStream}}]
      backendRefs: [{name: shop, port: 80}]
"#;
    scenario.route(&(route_head("GRPCRoute", "shop", "shop") + rules), "grpcroute/shop").await?;
    let abort = r#"
  abort: {grpcStatus: RESOURCE_EXHAUSTED, matches: [{headers: [{name: x-fault, value: "1"}]}]}
"#;
    let direct = r#"
  directResponse: {status: 503, grpcStatus: FAILED_PRECONDITION, body: "closed for today"}
"#;
    let policies = [
        policy("FaultPolicy", "abort", "GRPCRoute", Some("unary"), abort),
        policy("RoutePolicy", "closed", "GRPCRoute", Some("stream"), direct),
    ];
    scenario.mesh.change("policies.yaml", &policies.join("---\n"), "faultpolicy/abort").await?;
    scenario.mesh.wait("routepolicy/closed").await?;

    let mut client = client::grpc(scenario.address("shop")?, "shop.default")?;
    let pong = client.unary(Ping::default()).await?.into_inner();
    ensure!(pong.instance == "shop-1", "{pong:?}");
    mirrored_becomes(&scenario, "a", "sent", 1.0).await?;
    ensure!(scenario.instance("a-1")?.server.requests() == 1, "the call was not mirrored");
    let mut faulty = tonic::Request::new(Ping::default());
    faulty.metadata_mut().insert("x-fault", "1".parse()?);
    let status = client.unary(faulty).await.err().context("a fault")?;
    ensure!(status.code() == Code::ResourceExhausted, "{status:?}");
    let status = client.server_stream(Ping::default()).await.err().context("a direct response")?;
    ensure!(status.code() == Code::FailedPrecondition && status.message() == "closed for today", "{status:?}");
    scenario.mesh.end().await
}

/// How many of `requests` each instance answered, on one HTTP/2 connection with `streams` at a time.
async fn shares(scenario: &Scenario, requests: u32, streams: u32) -> Result<BTreeMap<String, u32>> {
    let stream = TcpStream::connect(scenario.address("shop")?).await?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await?;
    let connection = tokio::spawn(connection);
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let mut sender = sender.clone();
        tasks.spawn(async move {
            let mut counts = BTreeMap::<String, u32>::new();
            for _ in 0..requests / streams {
                sender.ready().await?;
                let request = Request::builder().method(Method::GET).uri("http://shop/split");
                let answer = sender.send_request(request.body(Full::new(Bytes::new()))?).await?;
                ensure!(answer.status() == StatusCode::OK, "{answer:?}");
                let instance = answer.headers().get(INSTANCE).context("an instance")?.to_str()?.to_owned();
                answer.into_body().collect().await?;
                *counts.entry(instance).or_default() += 1;
            }
            Ok(counts)
        });
    }
    let mut counts = BTreeMap::new();
    while let Some(joined) = tasks.join_next().await {
        for (instance, count) in joined?? {
            *counts.entry(instance).or_default() += count;
        }
    }
    connection.abort();
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_of_one_percent_is_one_percent_on_one_connection() -> Result<()> {
    const REQUESTS: u32 = 100_000;
    let scenario = Scenario::with(Options::default(), &["shop", "stable", "canary"], 1, "kubernetes.io/h2c").await?;
    let rules = r#"
    - backendRefs: [{name: stable, port: 80, weight: 99}, {name: canary, port: 80, weight: 1}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;
    let counts = shares(&scenario, REQUESTS, 20).await?;
    let count = |name: &str| counts.get(name).copied().unwrap_or_default();
    ensure!(count("stable-1") + count("canary-1") == REQUESTS, "{counts:?}");
    // np = 1,000; σ = √(np(1-p)) = 31.5; five of them either way.
    println!("a canary of 1 % over {REQUESTS} requests: {counts:?}");
    ensure!((843..=1157).contains(&count("canary-1")), "{counts:?}");
    scenario.mesh.end().await
}

/// The cookie that an answer sets, as a client sends it back.
fn cookie(answer: &Answer) -> String {
    answer.header("set-cookie").split(';').next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_stay_with_their_endpoint() -> Result<()> {
    let mut scenario = Scenario::with(Options::default(), &["shop", "next"], 3, "http").await?;
    let rules = |weight: u32| {
        format!(
            "
    - matches: [{{path: {{type: PathPrefix, value: /cookie}}}}]
      backendRefs: [{{name: shop, port: 80, weight: {weight}}}, {{name: next, port: 80, weight: {}}}]
      sessionPersistence: {{sessionName: cart, type: Cookie, absoluteTimeout: 1h, cookieConfig: {{lifetimeType: Permanent}}}}
    - matches: [{{path: {{type: PathPrefix, value: /header}}}}]
      backendRefs: [{{name: shop, port: 80}}]
      sessionPersistence: {{sessionName: X-Session, type: Header}}
",
            100 - weight
        )
    };
    scenario.route(&http_route(&rules(100)), "httproute/shop").await?;

    let first = scenario.get("/cookie").await?;
    let (token, home) = (cookie(&first), first.seen()?.instance);
    ensure!(token.starts_with("cart=") && home.starts_with("shop-"), "{first:?}");
    ensure!(first.header("set-cookie").ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=3600"), "{first:?}");
    ensure!(!token.contains("127.0.0.1"), "{token}");
    let cookies = format!("a=b; {token}");
    let back = async |path: &str| scenario.send(Request::get(path).header("cookie", &cookies)).await;
    for _ in 0..30 {
        let answer = back("/cookie").await?;
        ensure!(answer.seen()?.instance == home && cookie(&answer).is_empty(), "{answer:?}");
    }
    // Another rule does not share it, nor does a client without it.
    let answer = scenario.get("/header").await?;
    let (token, kept) = (answer.header("x-session").to_owned(), answer.seen()?.instance);
    ensure!(!token.is_empty(), "{answer:?}");
    for _ in 0..30 {
        let answer = scenario.send(Request::get("/header").header("x-session", &token)).await?;
        ensure!(answer.seen()?.instance == kept && answer.header("x-session").is_empty(), "{answer:?}");
    }
    let mut seen = BTreeMap::<String, u32>::new();
    for _ in 0..60 {
        *seen.entry(scenario.answered_by(Request::get("/cookie")).await?).or_default() += 1;
    }
    ensure!(seen.len() >= 2, "without a session others serve, too: {seen:?}");

    // Through another proxy, and when the weights have moved on.
    let other = scenario.mesh.workload("other").outbound("shop.default:80").start().await?;
    scenario.route(&http_route(&rules(0)), "httproute/shop").await?;
    let request = Request::get("/cookie").header("host", "shop").header("cookie", &cookies).body(Bytes::new())?;
    let answer = client::http1(other.calls("shop.default:80")?, request).await?;
    ensure!(answer.seen()?.instance == home, "{answer:?}");
    ensure!(
        scenario.answered_by(Request::get("/cookie")).await?.starts_with("next-"),
        "new sessions follow the weights"
    );

    // A session whose endpoint is gone is balanced anew, as the weights are now, and stays there.
    let index = scenario.instances.iter().position(|one| one.server.name() == home).context("home")?;
    scenario.instances.get(index).context("home")?.sidecar.withdraw(&scenario.mesh)?;
    let moved = eventually("the session has moved", LIMIT, async || {
        let request = Request::get("/cookie").header("cookie", &cookies);
        let answer = scenario.send(request).await?;
        ensure!(answer.status == 200 && answer.seen()?.instance != home, "{answer:?}");
        Ok(answer)
    })
    .await?;
    ensure!(moved.seen()?.instance.starts_with("next-"), "a backend of weight 0 gets no new sessions: {moved:?}");
    let (token, home) = (cookie(&moved), moved.seen()?.instance);
    for _ in 0..10 {
        let answer = scenario.send(Request::get("/cookie").header("cookie", &token)).await?;
        ensure!(answer.seen()?.instance == home, "{answer:?}");
    }
    scenario.instances.clear();
    scenario.mesh.end().await
}

/// One that never was in force: nothing else is in its place. Mended, it is; bad again, it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_cannot_be_read_answers_500_for_what_it_would_match() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let status = async |path: &str| anyhow::Ok(scenario.get(path).await?.status.as_u16());
    ensure!(status("/cart").await? == 200, "without a route");
    let route = |timeout: &str| {
        http_route(&format!(
            "    - matches: [{{path: {{value: /cart}}}}]\n      timeouts: {{request: {timeout}}}\n      backendRefs: [{{name: shop, port: 80}}]\n"
        ))
    };
    let becomes = async |expected: u16| {
        eventually(&format!("/cart is answered with {expected}"), LIMIT, async || {
            let status = status("/cart").await?;
            ensure!(status == expected, "{status}");
            Ok(())
        })
        .await
    };
    scenario.mesh.apply("route.yaml", &route("soon"))?;
    becomes(500).await?;
    // As with any route, what it does not match is nobody's.
    ensure!(status("/").await? == 404, "beside it");
    let shown = scenario
        .mesh
        .leno(&["get", "httproute", "shop", "-n", "default"])
        .await
        .unwrap_or_else(|error| error.to_string());
    ensure!(shown.contains("spec.rules[0].timeouts.request"), "{shown}");
    scenario.mesh.apply("route.yaml", &route("5s"))?;
    becomes(200).await?;
    scenario.mesh.apply("route.yaml", &route("later"))?;
    eventually("it is held over", LIMIT, async || {
        let object = scenario.mesh.object("httproute/shop").await?.context("no route")?;
        ensure!(object.get("heldOver") == Some(&true.into()), "{object}");
        Ok(())
    })
    .await?;
    ensure!(status("/cart").await? == 200, "its last good version");
    scenario.mesh.end().await
}
