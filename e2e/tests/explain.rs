//! Why requests that were carried went as they did: what both sidecars decided, found by trace, by header, by failure.

use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use leno_e2e::{
    client,
    mesh::{
        LIMIT, Options,
        documents::{backend_policy, route_head},
    },
    scenario::Scenario,
    wait::eventually,
};
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A rule that tries 503 again, once.
const RULES: &str = "  rules:
    - name: other
      matches: [{path: {type: PathPrefix, value: /other}}]
      backendRefs: [{name: shop, port: 80}]
    - name: again
      retry: {codes: [503], attempts: 1, backoff: 1ms}
      backendRefs: [{name: shop, port: 80}]
";

async fn start() -> Result<Scenario> {
    let flags = vec!["--explain-headers".to_owned(), "x-order".to_owned()];
    let scenario = Scenario::with(Options { flags, ..Options::default() }, &["shop"], 1, "http").await?;
    scenario.route(&format!("{}{RULES}", route_head("HTTPRoute", "shop", "shop")), "httproute/shop").await?;
    Ok(scenario)
}

/// What is told once both sidecars' parts are there: a request is kept when it has ended, a moment after its answer.
async fn told(scenario: &Scenario, arguments: &[&str], parts: &[&str]) -> Result<String> {
    eventually("the request is explained", LIMIT, async || {
        let told = scenario.mesh.leno(&[&["explain"], arguments].concat()).await?;
        for part in parts {
            ensure!(told.contains(part), "{part:?} is not told by {arguments:?}:\n{told}");
        }
        Ok(told)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampled_request_is_explained_at_both_sidecars() -> Result<()> {
    let scenario = start().await?;
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let request = || Request::get("/cart?card=4711").header("traceparent", traceparent.as_str());
    ensure!(scenario.send(request().header("x-secret", "hush")).await?.status == 200, "the request itself");
    let parts = [
        "default/client, outbound: GET /cart of shop",
        "kept: sampled",
        "the path is not under /other  [HTTPRoute default/shop, rule other",
        "matches  [HTTPRoute default/shop, rule again]",
        "default/shop:80, drawn with weight 1 of 1",
        "must be spiffe://cluster.local/ns/default/sa/shop; PeakEwma: 0 in flight",
        "1 of 1 endpoints are ready",
        "HTTP/1.1 in a stream",
        "  default/shop-1, inbound: GET /cart of shop",
        "spiffe://cluster.local/ns/default/sa/client at",
        "requests at a time (adaptive)",
        "200 OK",
    ];
    let shown = told(&scenario, &["--trace", &traceparent], &parts).await?;
    ensure!(!shown.contains("4711") && !shown.contains("hush"), "queries and other headers are not kept:\n{shown}");
    // What is not sampled leaves nothing.
    let other = "00-aaaabbbbccccddddaaaabbbbccccdddd-00f067aa0ba902b7-00";
    ensure!(scenario.send(Request::get("/").header("traceparent", other)).await?.status == 200, "the other request");
    let nothing = scenario.mesh.leno(&["explain", "--trace", other]).await;
    ensure!(nothing.is_err_and(|error| format!("{error:#}").contains("no connected proxy keeps")), "it was kept");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_request_is_explained_without_a_trace() -> Result<()> {
    let scenario = start().await?;
    scenario.instance("shop-1")?.server.control().status.store(503, Relaxed);
    let failed = scenario.get("/cart").await?;
    ensure!(failed.status == 503, "{failed:?}");
    let id = failed.header("leno-request-id").to_owned();
    ensure!(id.len() == 32, "the answer names the request: {failed:?}");
    let parts = [
        "default/client, outbound: GET /cart of shop",
        "kept: failed",
        "try 1, ",
        "503 Service Unavailable",
        "ms, as the policy asks  [HTTPRoute default/shop, rule again]",
        "try 2, ",
        "no further try: all tries are used up",
        "  default/shop-1, inbound: GET /cart of shop",
    ];
    told(&scenario, &["client", "--last-failed"], &parts).await?;
    told(&scenario, &["--trace", &id], &parts).await?;
    let json: Value = serde_json::from_str(&told(&scenario, &["--trace", &id, "-o", "json"], &[]).await?)?;
    let requests = json["requests"].as_array().context("requests")?;
    // Both tries came in at the server.
    let depths: Vec<_> = requests.iter().map(|part| (part["direction"].as_str(), part["depth"].as_u64())).collect();
    let (out, inbound) = ((Some("outbound"), Some(0)), (Some("inbound"), Some(1)));
    ensure!(depths == [out, inbound, inbound] || depths == [out, inbound], "{json:#}");
    ensure!(requests.iter().all(|part| part["failed"] == true && part["status"] == 503), "{json:#}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_policy_spells_out_is_no_failure() -> Result<()> {
    let scenario = start().await?;
    let closed = "apiVersion: leno.dev/v1alpha1\nkind: RoutePolicy\nmetadata: {name: closed}\nspec:\n  \
                  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: other}]\n  \
                  directResponse: {status: 503}\n";
    scenario.mesh.change("closed.yaml", closed, "routepolicy/closed").await?;
    scenario.instance("shop-1")?.server.control().status.store(503, Relaxed);
    ensure!(scenario.get("/cart").await?.status == 503, "a failure");
    told(&scenario, &["client", "--last-failed"], &["GET /cart"]).await?;

    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let spelt = scenario.send(Request::get("/other").header("traceparent", traceparent.as_str())).await?;
    ensure!(spelt.status == 503 && spelt.header("leno-reason") == "direct-response", "{spelt:?}");
    ensure!(spelt.header("leno-request-id").is_empty(), "{spelt:?}");
    // It is kept, for it is sampled, and yet is not the latest that failed.
    told(&scenario, &["--trace", &traceparent], &["GET /other", "kept: sampled", "503: the proxy answers"]).await?;
    let last = scenario.mesh.leno(&["explain", "client", "--last-failed"]).await?;
    ensure!(last.contains("GET /cart") && !last.contains("GET /other"), "{last}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_found_by_a_header_that_is_asked_for() -> Result<()> {
    let scenario = start().await?;
    eventually("the header is asked for at the client", LIMIT, async || {
        ensure!(scenario.send(Request::get("/cart").header("x-order", "7")).await?.status == 200, "the request itself");
        scenario.mesh.leno(&["explain", "--header", "x-order=7"]).await
    })
    .await?;
    let parts = ["kept: header", "x-order: 7", "default/client, outbound", "  default/shop-1, inbound"];
    told(&scenario, &["--header", "x-order=7"], &parts).await?;
    ensure!(scenario.mesh.leno(&["explain", "--header", "x-order=8"]).await.is_err(), "no such request");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_would_do_is_told_with_what_its_client_would() -> Result<()> {
    let scenario = start().await?;
    let limit = "apiVersion: leno.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: few}\nspec:\n  \
                 targetRefs: [{group: \"\", kind: Service, name: shop}]\n  \
                 rateLimits: [{name: all, requests: 5, per: 1h}]\n  concurrency: {mode: Fixed, limit: 7}\n";
    scenario.mesh.change("few.yaml", limit, "inboundpolicy/few").await?;
    // The first question of a destination waits for its endpoints.
    let explained = scenario.mesh.leno(&["explain", "client", "http://shop.default/cart"]).await?;
    ensure!(!explained.contains("not known yet"), "{explained}");
    for part in ["then, at its server, by proxy default/shop-1", "plaintext is refused", "all: 5 in 3600 s", "5 left"] {
        ensure!(explained.contains(part), "{part:?} is not told:\n{explained}");
    }
    ensure!(scenario.get("/cart").await?.status == 200, "a request");
    let explained = scenario.mesh.leno(&["explain", "client", "http://shop.default/cart"]).await?;
    ensure!(explained.contains("4 left") && explained.contains("of 7 requests at a time (fixed)"), "{explained}");

    // The application itself calls the listener that stands for the Service.
    let address = scenario.address("shop")?;
    let explained = scenario.mesh.leno(&["explain", "client", &format!("http://{address}/other")]).await?;
    for part in [
        &format!("{address} is the proxy's own, and stands for shop.default:80"),
        "shop.default:80 is Service default/shop port 80",
        "matches  [HTTPRoute default/shop, rule other",
        "then, at its server, by proxy default/shop-1",
    ] {
        ensure!(explained.contains(part), "{part:?} is not told:\n{explained}");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_with_the_object_that_says_so() -> Result<()> {
    let scenario = start().await?;
    let shop = scenario.instance("shop-1")?.sidecar.listener(0)?;
    let plain = || Request::get("/cart").header("host", "shop").header("x-order", "8").body(Bytes::new());
    ensure!(client::http1(shop, plain()?).await.is_err(), "plaintext was let in by a strict port");
    let last = ["shop-1", "--last-refused"];
    let parts =
        ["default/shop-1, inbound: a connection", "not let in (plaintext)", "only mesh TLS is accepted (strict)"];
    let shown = told(&scenario, &last, &parts).await?;
    ensure!(!shown.contains("[Namespace"), "neither Pod nor Namespace says so:\n{shown}");
    // It is no request, and hides none that failed.
    let failed = scenario.mesh.leno(&["explain", "shop-1", "--last-failed"]).await;
    ensure!(
        failed.is_err_and(|error| format!("{error:#}").contains("keeps no request that failed")),
        "a connection is told"
    );

    let namespace = |mode| {
        let name = format!("metadata: {{name: default, annotations: {{leno.dev/inbound: {mode}}}}}");
        scenario.mesh.apply("namespace.yaml", &format!("apiVersion: v1\nkind: Namespace\n{name}\n"))
    };
    namespace("permissive")?;
    eventually("plaintext is let in", LIMIT, async || {
        ensure!(client::http1(shop, plain()?).await?.status == 200, "not yet");
        Ok(())
    })
    .await?;
    told(&scenario, &["--header", "x-order=8"], &["in plaintext: the port is permissive  [Namespace default"]).await?;

    namespace("strict")?;
    eventually("plaintext is refused again", LIMIT, async || {
        ensure!(client::http1(shop, plain()?).await.is_err(), "still let in");
        Ok(())
    })
    .await?;
    told(&scenario, &last, &["only mesh TLS is accepted (strict)  [Namespace default]"]).await?;
    let explained = scenario.mesh.leno(&["explain", "client", "http://shop.default/cart"]).await?;
    ensure!(explained.contains("plaintext is refused (leno-reason: refused)  [Namespace default"), "{explained}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_tries_of_a_hedged_request_are_told() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    scenario.route(&format!("{}{RULES}", route_head("HTTPRoute", "shop", "shop")), "httproute/shop").await?;
    let policy = "apiVersion: leno.dev/v1alpha1\nkind: RoutePolicy\nmetadata: {name: twice}\nspec:\n  targetRefs: \
                  [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}]\n  hedging: {delay: 20ms}\n";
    scenario.mesh.change("twice.yaml", policy, "routepolicy/twice").await?;
    ensure!(scenario.get("/cart").await?.status == 200, "both are there");
    for instance in ["shop-1", "shop-2"] {
        scenario.instance(instance)?.server.control().delay_ms.store(1500, Relaxed);
    }
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let answer = scenario.send(Request::get("/cart").header("traceparent", traceparent.as_str())).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let parts = [
        "not answered in time: sent to 127.",
        ", too, as try 2  [RoutePolicy default/twice]",
        "cancelled: the other was answered first",
    ];
    told(&scenario, &["--trace", TRACE], &parts).await?;
    scenario.mesh.end().await
}

/// What is attached to the route.
const OF_ROUTE: &str = "apiVersion: leno.dev/v1alpha1
kind: RoutePolicy
metadata: {name: ask}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}]
  timeouts: {streamIdle: 15s}
  retry: {attempts: 1, statuses: [\"503\"], backoff: {base: 1ms}}
  hedging: {delay: 10s}
  fallback: {answer: {status: 203, body: stands-in}}
  explain: {headers: [X-Order]}
---
apiVersion: leno.dev/v1alpha1
kind: FaultPolicy
metadata: {name: slow}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}]
  delay: {duration: 1ms}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: {name: traffic}
spec:
  targetRefs: [{group: \"\", kind: Service, name: shop}]
  retryConstraint: {budget: {percent: 33, interval: 20s}, minRetryRate: {count: 9, interval: 1m}}
  sessionPersistence: {type: Header, sessionName: X-Home}
";

/// What is attached to the Service.
const OF_BACKEND: &str = "  timeouts: {connect: 1s, request: 3s, streamIdle: 20s, connectionIdle: 40s}
  loadBalancing: {algorithm: LeastRequest}
  outlierDetection: {consecutiveFailures: 77}
  circuitBreaker: {consecutiveFailures: 55}
  limits: {requests: 66}
";

const CORS_AND_MIRROR: &str = "  rules:
    - name: all
      filters: [{type: CORS, cors: {allowOrigins: [\"https://a.example\"]}}]
      backendRefs:
        - {name: shop, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}}}]}
";

async fn under_every_policy() -> Result<Scenario> {
    let scenario = Scenario::start(&["shop", "copy"]).await?;
    let route = format!("{}{CORS_AND_MIRROR}", route_head("HTTPRoute", "shop", "shop"));
    scenario.route(&route, "httproute/shop").await?;
    let all = format!("{OF_ROUTE}---\n{}", backend_policy("cart", "shop", OF_BACKEND));
    scenario.mesh.change("policies.yaml", &all, "routepolicy/ask").await?;
    for policy in ["faultpolicy/slow", "xbackendtrafficpolicy/traffic", "backendpolicy/cart"] {
        scenario.mesh.wait(policy).await?;
    }
    Ok(scenario)
}

/// What is told of each policy, and by whom; the brackets' end is left to those who add a generation.
const SAID: [&str; 17] = [
    "without a byte moved: 15s  [RoutePolicy default/ask",
    "up to 1 more try after 1ms, on ",
    "sent to another endpoint, too, after 10s, if it may be repeated  [RoutePolicy default/ask",
    "if nobody can be reached: 203 by the proxy  [RoutePolicy default/ask",
    "kept with x-order  [RoutePolicy default/ask",
    "told of by the header x-home, goes back there  [XBackendTrafficPolicy default/traffic",
    "the request names no origin: nothing is added to the answer  [HTTPRoute default/shop, rule all",
    "default/copy:80 gets a copy of ",
    "default/shop:80 is called with connect timeout 1s  [BackendPolicy default/cart",
    "LeastRequest, the own zone first  [BackendPolicy default/cart",
    "after 77 failures in a row",
    "33 % of what is answered well of late (20s), or 9 in 60s",
    "the whole request, to default/shop:80: 3s  [BackendPolicy default/cart",
    "without a byte moved, to default/shop:80: 20s, but the rule says otherwise  [BackendPolicy default/cart",
    "a connection without requests, to default/shop:80: 40s  [BackendPolicy default/cart",
    "the circuit breaker of default/shop:80 is closed; it opens at 55 failures in a row",
    "of 66 requests in flight of default/shop:80 are taken  [BackendPolicy default/cart",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_policy_says_is_told_before_and_after() -> Result<()> {
    let scenario = under_every_policy().await?;
    let before = scenario.mesh.leno(&["explain", "client", "http://shop.default/cart"]).await?;
    for part in SAID.iter().chain(&["100 % of these requests are held up for 1ms  [FaultPolicy default/slow"]) {
        ensure!(before.contains(part), "{part:?} is not told before:\n{before}");
    }

    // Found by the header that the policy names, at both sidecars.
    let sent = scenario.send(Request::get("/cart").header("x-order", "7")).await?;
    ensure!(sent.status == 200, "{sent:?}");
    let after = told(&scenario, &["--header", "x-order=7"], &SAID).await?;
    for part in ["kept: header", "held up for 1ms  [FaultPolicy default/slow]", "  default/shop-1, inbound: GET /cart"]
    {
        ensure!(after.contains(part), "{part:?} is not told after:\n{after}");
    }
    ensure!(scenario.mesh.leno(&["explain", "--header", "x-order=8"]).await.is_err(), "no such request");

    // What is tried again, and given up for the backend's time, names who asked for that.
    scenario.instance("shop-1")?.server.control().status.store(503, Relaxed);
    ensure!(scenario.get("/tried").await?.status == 503, "the status");
    let parts = ["as the policy asks  [RoutePolicy default/ask]", "all tries are used up  [RoutePolicy default/ask]"];
    told(&scenario, &["client", "--last-failed"], &parts).await?;
    let control = scenario.instance("shop-1")?.server.control();
    control.status.store(200, Relaxed);
    control.delay_ms.store(30_000, Relaxed);
    let late = scenario.get("/late").await?;
    ensure!(late.status == 504, "{late:?}");
    let parts = ["GET /late", "the whole request, to default/shop:80: 3s  [BackendPolicy default/cart]"];
    told(&scenario, &["client", "--last-failed"], &parts).await?;
    scenario.mesh.end().await
}
