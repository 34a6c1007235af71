//! Limits on single requests, and what becomes of those that meet one.

use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Request;
use leno_e2e::{
    client,
    mesh::{LIMIT, Options, documents::route_head},
    raw,
    scenario::Scenario,
    wait::eventually,
};

fn post(bytes: usize) -> Result<Request<Bytes>> {
    Ok(Request::post("/").header("host", "shop").body(Bytes::from(vec![b'x'; bytes]))?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_no_larger_than_the_policy_says() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let policy = "apiVersion: leno.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: small}\nspec:\n  \
                  targetRefs: [{group: \"\", kind: Service, name: shop}]\n  \
                  requestSize: {headBytes: 2048, bodyBytes: 1000}\n";
    scenario.mesh.change("small.yaml", policy, "inboundpolicy/small").await?;
    let shop = scenario.address("shop")?;
    ensure!(client::http1(shop, post(1000)?).await?.status == 200, "as large as may be");
    let before = scenario.instance("shop-1")?.server.requests();
    let large = client::http1(shop, post(1001)?).await?;
    ensure!(large.status == 413 && large.header("leno-reason") == "body-too-large", "{large:?}");
    let long = scenario.send(Request::get("/").header("x-long", "x".repeat(3000))).await?;
    ensure!(long.status == 431 && long.header("leno-reason") == "head-too-large", "{long:?}");
    ensure!(scenario.instance("shop-1")?.server.requests() == before, "the application saw them");
    // The length is not said in advance: it is cut off on its way.
    let chunked = "POST / HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n";
    let message = format!("{chunked}{}\r\n0\r\n\r\n", "x".repeat(2000));
    let answer = raw::send(shop, message.as_bytes()).await?;
    ensure!(raw::statuses(&answer) == [413], "{}", String::from_utf8_lossy(&answer));
    scenario.mesh.apply("small.yaml", &policy.replace("2048", "1"))?;
    eventually("the bad value is reported", LIMIT, async || {
        let told = scenario.mesh.object("inboundpolicy/small").await?.map(|told| told.to_string()).unwrap_or_default();
        ensure!(told.contains("spec.requestSize.headBytes"), "{told}");
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_connections_starves_no_endpoint() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop"], 3, "http").await?;
    let policy = "apiVersion: leno.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {name: one}\nspec:\n  \
                  targetRefs: [{group: \"\", kind: Service, name: shop}]\n  \
                  limits: {connections: 1}\n  loadBalancing: {algorithm: RoundRobin}\n";
    scenario.mesh.change("one.yaml", policy, "backendpolicy/one").await?;
    for _ in 0..12 {
        let answer = scenario.get("/").await?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    for instance in &scenario.instances {
        ensure!(instance.server.requests() > 0, "{} got nothing", instance.server.name());
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_without_budget_is_answered_as_gep_3388_says() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let rules = "  rules:\n    - retry: {codes: [500], attempts: 1, backoff: 1ms}\n      backendRefs: [{name: shop, port: 80}]\n";
    scenario.route(&format!("{}{rules}", route_head("HTTPRoute", "shop", "shop")), "httproute/shop").await?;
    let policy = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: few}\nspec:\n  \
                  targetRefs: [{group: \"\", kind: Service, name: shop}]\n  \
                  retryConstraint:\n    budget: {percent: 0, interval: 10s}\n    minRetryRate: {count: 1, interval: 10m}\n";
    scenario.mesh.change("few.yaml", policy, "xbackendtrafficpolicy/few").await?;
    scenario.instance("shop-1")?.server.control().status.store(500, Relaxed);
    // While there is budget the last try's answer is passed on.
    let mut answers = Vec::new();
    for _ in 0..40 {
        let answer = scenario.get("/").await?;
        answers.push((answer.status.as_u16(), answer.header("leno-reason").to_owned()));
    }
    ensure!(answers.contains(&(503, "retry-budget".to_owned())), "{answers:?}");
    let retried = answers.iter().filter(|(status, _)| *status == 500).count();
    ensure!(retried <= 1, "one retry in ten minutes, and there were {retried}: {answers:?}");
    ensure!(answers.iter().all(|(status, reason)| *status == 500 || reason == "retry-budget"), "{answers:?}");
    scenario.mesh.end().await
}
