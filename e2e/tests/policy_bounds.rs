//! What bounds a policy: how much load one endpoint gets of a key, how long one is left alone, how many are ejected, how many requests
//! find out whether a backend is well.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use leno_e2e::{
    client,
    mesh::{LIMIT, Options},
    scenario::Scenario,
    wait::eventually,
};
use tokio::task::JoinSet;

async fn shops(instances: usize) -> Result<Scenario> {
    Scenario::with(Options::default(), &["shop"], instances, "http").await
}

/// How many of so many requests of one user at a time each instance answered; of those that the proxy answers, its reason.
async fn at_a_time(scenario: &Scenario, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut under_way = JoinSet::new();
    for _ in 0..requests {
        let request = Request::get("/").header("host", "shop").header("x-user", "one").body(Bytes::new())?;
        under_way.spawn(client::http1(scenario.address("shop")?, request));
    }
    let mut counts = BTreeMap::new();
    while let Some(answered) = under_way.join_next().await {
        let answer = answered??;
        let own = answer.header("leno-reason").to_owned();
        let who = if own.is_empty() { answer.seen()?.instance } else { own };
        *counts.entry(who).or_default() += 1;
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_overflows_to_others_beyond_the_load_that_is_allowed() -> Result<()> {
    let scenario = shops(2).await?;
    for instance in &scenario.instances {
        // Until all are under way.
        instance.server.control().delay_ms.store(3000, Relaxed);
    }
    for (percent, most) in [(1000, 24..=24), (100, 12..=13)] {
        let hash = format!("{{key: {{header: X-User}}, maximumLoadPercent: {percent}}}");
        scenario.backend(&format!("  loadBalancing: {{algorithm: ConsistentHash, consistentHash: {hash}}}\n")).await?;
        let counts = at_a_time(&scenario, 24).await?;
        let home = counts.values().max().copied().unwrap_or_default();
        ensure!(most.contains(&home) && counts.values().sum::<usize>() == 24, "{percent} %: {counts:?}");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_left_alone_for_longer_than_the_policy_says() -> Result<()> {
    let scenario = shops(3).await?;
    let tired = scenario.instance("shop-1")?.server.control();
    tired.retry_after.store(60, Relaxed);
    tired.status.store(429, Relaxed);
    let at_most = async |time: &str| {
        let sections = "  loadBalancing: {algorithm: RoundRobin}\n  outlierDetection: {maximumBackOff: ";
        scenario.backend(&format!("{sections}{time}}}\n")).await
    };
    at_most("0s").await?;
    let counts = scenario.answers(30).await?;
    ensure!(counts.get("429") == Some(&10), "a third, as of anybody: {counts:?}");
    at_most("1s").await?;
    let asked = async || {
        eventually("it is asked", LIMIT, async || {
            let at = Instant::now();
            ensure!(scenario.answered_by(Request::get("/")).await? == "429", "another was");
            Ok(at)
        })
        .await
    };
    let (first, second) = (asked().await?, asked().await?);
    let alone = second - first;
    // By default it is ten seconds.
    ensure!(alone >= Duration::from_millis(500) && alone < Duration::from_secs(10), "{alone:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_endpoints_are_ejected_than_the_policy_says() -> Result<()> {
    let scenario = shops(3).await?;
    for name in ["shop-1", "shop-2"] {
        scenario.instance(name)?.server.control().status.store(500, Relaxed);
    }
    for (percent, failures) in [(0, 19..=21), (40, 14..=16), (100, 0..=0)] {
        let ejection = format!("consecutiveFailures: 1, baseEjection: 1h, maximumEjectedPercent: {percent}");
        let sections = format!("  loadBalancing: {{algorithm: RoundRobin}}\n  outlierDetection: {{{ejection}}}\n");
        scenario.backend(&sections).await?;
        scenario.answers(12).await?;
        let counts = scenario.answers(30).await?;
        let failed = counts.get("500").copied().unwrap_or_default();
        ensure!(failures.contains(&failed), "at {percent} %: {counts:?}");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_requests_find_out_whether_a_backend_is_well() -> Result<()> {
    let scenario = shops(1).await?;
    scenario
        .backend("  circuitBreaker: {consecutiveFailures: 1, openTime: 3s, probes: 2, successesToClose: 2}\n")
        .await?;
    let control = scenario.instance("shop-1")?.server.control();
    control.status.store(503, Relaxed);
    ensure!(scenario.get("/").await?.header("leno-reason").is_empty(), "the server's own answer");
    ensure!(scenario.get("/").await?.header("leno-reason") == "circuit-open", "it is open");
    control.status.store(0, Relaxed);
    // Until all of them have come.
    control.delay_ms.store(3000, Relaxed);
    let probes = async || {
        eventually("its time is up", LIMIT, async || {
            let counts = at_a_time(&scenario, 6).await?;
            let served = counts.get("shop-1").copied().context("none is let through")?;
            ensure!(served + counts.get("circuit-open").copied().unwrap_or_default() == 6, "{counts:?}");
            Ok(served)
        })
        .await
    };
    let served = match probes().await? {
        // It was up with the last of the six.
        1 => probes().await?,
        served => served,
    };
    ensure!(served == 2, "{served} were let through at a time");
    let counts = at_a_time(&scenario, 6).await?;
    ensure!(counts.get("shop-1") == Some(&6), "two successes close it: {counts:?}");
    scenario.mesh.end().await
}
