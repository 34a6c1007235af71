//! How endpoints are chosen, and when one is left out: BackendPolicy `loadBalancing` and `outlierDetection`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use http::Request;
use leno_e2e::{
    client,
    load::Load,
    mesh::{LIMIT, Mesh, Options, documents},
    scenario::{Scenario, destination},
    wait::eventually,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

/// A BackendPolicy for the Service `shop`.
fn policy(sections: &str) -> String {
    documents::backend_policy("shop", "shop", sections)
}

async fn three_shops() -> Result<Scenario> {
    Scenario::with(Options::default(), &["shop"], 3, "http").await
}

async fn apply(scenario: &Scenario, sections: &str) -> Result<()> {
    scenario.mesh.change("policy.yaml", &policy(sections), "backendpolicy/shop").await
}

/// Who answers so many requests, one after the other.
async fn answers(
    scenario: &Scenario,
    requests: usize,
    request: impl Fn(usize) -> http::request::Builder,
) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for number in 0..requests {
        *counts.entry(scenario.answered_by(request(number)).await?).or_default() += 1;
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_algorithm_shares_out_requests_as_it_says() -> Result<()> {
    let scenario = three_shops().await?;
    let get = |_| Request::get("/");

    apply(&scenario, "  loadBalancing: {algorithm: RoundRobin}").await?;
    let counts = answers(&scenario, 60, get).await?;
    ensure!(counts.values().all(|count| *count == 20) && counts.len() == 3, "round robin: {counts:?}");

    for algorithm in ["Random", "LeastRequest", "PeakEwma", "Prequal"] {
        apply(&scenario, &format!("  loadBalancing: {{algorithm: {algorithm}, slowStart: 5s}}")).await?;
        let counts = answers(&scenario, 150, get).await?;
        // The other two go to whoever is fastest.
        let least = if matches!(algorithm, "Random" | "LeastRequest") { 3 } else { 1 };
        ensure!(
            counts.len() >= least && counts.keys().all(|name| name.starts_with("shop-")),
            "{algorithm}: {counts:?}"
        );
    }
    let metrics = scenario.client.metrics().await?;
    let reports = metrics.sum("leno_load_reports_total", &[("backend", "default/shop:80")]);
    ensure!(reports > 100.0, "endpoints that were asked for their load answered {reports} times");
    let asked: u64 = scenario.instances.iter().map(|instance| instance.server.requests()).sum();
    ensure!(asked == 60 + 4 * 150, "probes never reach the application: it saw {asked} requests");

    // Weights.
    for (name, weight) in [("shop-1", 3), ("shop-2", 1), ("shop-3", 1)] {
        weigh(&scenario, name, weight)?;
    }
    apply(&scenario, "  loadBalancing: {algorithm: RoundRobin, zonePreference: None}").await?;
    eventually("the weights are in force", LIMIT, async || {
        let counts = answers(&scenario, 50, get).await?;
        ensure!(counts.get("shop-1") == Some(&30), "{counts:?}");
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

/// One of three servers is slow. Who looks at load sends it less than chance or turns do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_gets_less_from_those_who_look() -> Result<()> {
    const REQUESTS: u64 = 600;
    let scenario = three_shops().await?;
    let share = async |algorithm: &str| -> Result<f64> {
        let sections = format!("  loadBalancing: {{algorithm: {algorithm}, zonePreference: None}}");
        apply(&scenario, &sections).await?;
        // Connections enough for a third of the requests to be with the slow one.
        let load = Load::new(scenario.address("shop")?, &destination("shop")).connections(150).rate(100.0).start();
        load.more(REQUESTS).await?;
        let report = load.stop().await?;
        report.unharmed(REQUESTS)?;
        let slow = report.instances.get("shop-1").copied().unwrap_or_default();
        Ok(slow as f64 / report.ok as f64)
    };
    // Far slower than the others are on a busy machine.
    scenario.instance("shop-1")?.server.control().delay_ms.store(1000, Relaxed);
    for blind in ["RoundRobin", "Random"] {
        let share = share(blind).await?;
        // Of 600 at a third: 200 ± 12.
        ensure!((0.25..=0.42).contains(&share), "{blind} sends it {share:.3}");
    }
    for seeing in ["LeastRequest", "PeakEwma", "Prequal"] {
        let share = share(seeing).await?;
        println!("{seeing} sends {share:.3} of the requests to the slow server");
        ensure!(share < 0.17, "{seeing} sends it {share:.3}, half as much as chance or more");
    }
    scenario.mesh.end().await
}

/// One of two servers hangs. Who looks at load loses a few requests to it, whether clients give up or wait: it looks as if it
/// had next to nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_takes_next_to_nothing() -> Result<()> {
    const CLIENTS: usize = 20;
    // Longer than the other one takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(2);
    // Between a client's requests, so that the other one has little to do: if it is slow, too, half of them belong on either.
    const THINKS: Duration = Duration::from_millis(100);
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    let address = scenario.address("shop")?;
    let hanging = &scenario.instance("shop-1")?.server.control().delay_ms;
    for algorithm in ["PeakEwma", "LeastRequest", "Prequal"] {
        apply(&scenario, &format!("  loadBalancing: {{algorithm: {algorithm}, zonePreference: None}}")).await?;
        scenario.answers(40).await?;
        hanging.store(600_000, Relaxed);

        let mut lost = 0;
        for _ in 0..60 {
            lost += u32::from(timeout(PATIENCE, scenario.get("/")).await.is_err());
        }
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(async move {
                for _ in 0..50 {
                    sleep(THINKS).await;
                    client::get(address, "shop", "/").await?;
                }
                anyhow::Ok(())
            });
        }
        let stuck = clients.join_all().await.iter().filter(|ended| ended.is_err()).count();
        println!("{algorithm}: {lost} of 60 given up, {stuck} of {CLIENTS} clients stuck");
        ensure!(lost <= 6, "{algorithm}: {lost} of 60 requests were given up");
        ensure!(stuck <= CLIENTS / 2, "{algorithm}: {stuck} of {CLIENTS} clients are stuck");
        hanging.store(0, Relaxed);
    }
    scenario.mesh.end().await
}

/// Gives an instance's Pod a weight.
fn weigh(scenario: &Scenario, name: &str, weight: u32) -> Result<()> {
    let path = scenario.mesh.config().join(format!("workload-default-{name}.yaml"));
    let text = std::fs::read_to_string(&path)?;
    let named = format!("  name: {name}\n");
    let with = format!("{named}  annotations: {{leno.dev/weight: \"{weight}\"}}\n");
    leno_e2e::mesh::write_atomically(&path, &text.replacen(&named, &with, 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_goes_to_one_endpoint() -> Result<()> {
    let scenario = three_shops().await?;
    let hash =
        |key: &str| format!("  loadBalancing: {{algorithm: ConsistentHash, consistentHash: {{key: {{{key}}}}}}}");

    apply(&scenario, &hash("header: X-User")).await?;
    let mut homes = BTreeSet::new();
    for user in 0..30 {
        let counts = answers(&scenario, 3, |_| Request::get("/").header("x-user", user.to_string())).await?;
        ensure!(counts.len() == 1, "user {user}: {counts:?}");
        homes.extend(counts.into_keys());
    }
    ensure!(homes.len() == 3, "all serve somebody: {homes:?}");
    let counts = answers(&scenario, 60, |_| Request::get("/")).await?;
    ensure!(counts.len() == 3, "without a key any will do: {counts:?}");

    apply(&scenario, &hash("query: user")).await?;
    for user in 0..10 {
        let counts = answers(&scenario, 3, |number| Request::get(format!("/?n={number}&user={user}"))).await?;
        ensure!(counts.len() == 1, "user {user}: {counts:?}");
        let (home, _) = counts.first_key_value().context("who answered")?;
        let told = scenario.mesh.leno(&["explain", "client", &format!("http://shop.default/?user={user}")]).await?;
        let of_key = told.lines().find(|line| line.contains(&format!("parameter user, \"{user}\", leads to")));
        ensure!(of_key.is_some_and(|line| line.contains(&format!("({home});"))), "user {user} is at {home}:\n{told}");
    }

    apply(&scenario, &hash("sourceAddress: true")).await?;
    let counts = answers(&scenario, 10, |_| Request::get("/")).await?;
    ensure!(counts.len() == 1, "one client: {counts:?}");
    let (home, _) = counts.first_key_value().context("who answered")?;
    let told = scenario.mesh.leno(&["explain", "client", "http://shop.default/"]).await?;
    let of_key = told.lines().find(|line| line.contains("calls by loopback"));
    ensure!(of_key.is_some_and(|line| line.contains(&format!("({home});"))), "the client is at {home}:\n{told}");

    apply(&scenario, &hash("cookie: {name: shop-affinity, ttl: 1h}")).await?;
    let mut homes = BTreeSet::new();
    for _ in 0..20 {
        let first = scenario.get("/").await?;
        let cookie = first.header("set-cookie").to_owned();
        ensure!(cookie.starts_with("shop-affinity=") && cookie.contains("Max-Age=3600"), "{cookie:?}");
        let pair = cookie.split(';').next().context("a pair")?.to_owned();
        let home = first.seen()?.instance;
        for _ in 0..3 {
            let next = scenario.send(Request::get("/").header("cookie", &pair)).await?;
            ensure!(next.seen()?.instance == home && next.header("set-cookie").is_empty(), "{next:?}");
        }
        homes.insert(home);
    }
    ensure!(homes.len() > 1, "clients are shared out: {homes:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_is_left_out_as_policy_says() -> Result<()> {
    let scenario = three_shops().await?;
    apply(
        &scenario,
        "  loadBalancing: {algorithm: RoundRobin}
  outlierDetection: {consecutiveFailures: 2, baseEjection: 5s, jitterPercent: 0, successes: 2, probes: 1}",
    )
    .await?;
    scenario.instance("shop-2")?.server.control().status.store(500, Relaxed);
    let counts = answers(&scenario, 12, |_| Request::get("/")).await?;
    ensure!(counts.get("500") == Some(&2), "two failures, then none: {counts:?}");
    let metrics = scenario.client.metrics().await?;
    ensure!(metrics.sum("leno_ejections_total", &[("backend", "default/shop:80")]) >= 1.0, "no ejection is counted");

    scenario.instance("shop-2")?.server.control().status.store(0, Relaxed);
    eventually("it comes back", LIMIT, async || {
        let counts = answers(&scenario, 6, |_| Request::get("/")).await?;
        ensure!(counts.get("shop-2") == Some(&2), "{counts:?}");
        Ok(())
    })
    .await?;

    // With nothing that ejects, failures go on.
    apply(&scenario, "  loadBalancing: {algorithm: RoundRobin}\n  outlierDetection: {consecutiveFailures: 0}").await?;
    scenario.instance("shop-2")?.server.control().status.store(500, Relaxed);
    let counts = answers(&scenario, 60, |_| Request::get("/")).await?;
    ensure!(counts.get("500") == Some(&20), "{counts:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_values_are_refused_and_the_last_good_ones_kept() -> Result<()> {
    let scenario = three_shops().await?;
    apply(&scenario, "  loadBalancing: {algorithm: RoundRobin}").await?;
    for (sections, expected) in [
        ("  loadBalancing: {algorithm: Fastest}", "spec.loadBalancing.algorithm"),
        ("  loadBalancing: {algorithm: ConsistentHash}", "spec.loadBalancing.consistentHash"),
        ("  loadBalancing: {algorithm: Random, prequal: {}}", "spec.loadBalancing.prequal"),
        (
            "  loadBalancing: {algorithm: ConsistentHash, consistentHash: {key: {header: a, query: b}}}",
            "exactly one of header, cookie, query",
        ),
        (
            "  loadBalancing: {algorithm: ConsistentHash, consistentHash: {key: {cookie: {name: \"a b\"}}}}",
            "consistentHash.key.cookie.name",
        ),
        ("  loadBalancing: {slowStart: -1s}", "spec.loadBalancing.slowStart"),
        ("  loadBalancing: {slowStart: 2h}", "spec.loadBalancing.slowStart"),
        ("  outlierDetection: {consecutiveFailures: -1}", "spec.outlierDetection.consecutiveFailures"),
        ("  outlierDetection: {probes: 0}", "spec.outlierDetection.probes"),
        ("  outlierDetection: {failureShare: {percent: 101}}", "spec.outlierDetection.failureShare.percent"),
        ("  outlierDetection: {baseEjection: 10s, maximumEjection: 5s}", "spec.outlierDetection.baseEjection"),
    ] {
        scenario.mesh.apply("policy.yaml", &policy(sections))?;
        eventually("it is refused", LIMIT, async || {
            let shown = scenario.mesh.object("backendpolicy/shop").await?.context("the policy")?.to_string();
            ensure!(shown.contains(expected), "{expected:?} is not in {shown}");
            Ok(())
        })
        .await?;
        let counts = answers(&scenario, 6, |_| Request::get("/")).await?;
        ensure!(counts.values().all(|count| *count == 2), "round robin is still in force: {counts:?}");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_empties_all_at_once_is_kept_for_a_while() -> Result<()> {
    let scenario = three_shops().await?;
    let load = Load::new(scenario.address("shop")?, &destination("shop")).rate(200.0).start();
    load.more(100).await?;
    for instance in &scenario.instances {
        instance.sidecar.withdraw(&scenario.mesh)?;
    }
    eventually("the proxy says that it keeps them", LIMIT, async || {
        let metrics = scenario.client.metrics().await?;
        let kept = metrics.sum("leno_endpoints", &[("backend", "default/shop:80"), ("state", "kept")]);
        ensure!(kept > 0.0, "{kept} are kept");
        Ok(())
    })
    .await?;
    load.more(400).await?;
    for instance in &scenario.instances {
        instance.sidecar.declare(&scenario.mesh, true)?;
    }
    eventually("they are back", LIMIT, async || {
        let metrics = scenario.client.metrics().await?;
        let count = |state| metrics.sum("leno_endpoints", &[("backend", "default/shop:80"), ("state", state)]);
        ensure!((count("ready"), count("kept")) == (3.0, 0.0), "{} ready, {} kept", count("ready"), count("kept"));
        Ok(())
    })
    .await?;
    load.more(100).await?;
    load.stop().await?.unharmed(600)?;
    scenario.mesh.end().await
}

/// A workload's documents with a zone.
fn in_zone(mesh: &Mesh, name: &str, zone: &str) -> Result<()> {
    let path = mesh.config().join(format!("workload-default-{name}.yaml"));
    let text = std::fs::read_to_string(&path)?;
    let named = format!("  name: {name}\n  namespace: default\nspec:\n  serviceAccountName");
    let labels = format!(
        "  name: {name}\n  namespace: default\n  labels: {{topology.kubernetes.io/zone: {zone}}}\nspec:\n  serviceAccountName"
    );
    ensure!(text.contains(&named), "the Pod in {text}");
    leno_e2e::mesh::write_atomically(&path, &text.replacen(&named, &labels, 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_zone_goes_first_and_none_is_lost_when_it_empties() -> Result<()> {
    let scenario = three_shops().await?;
    for (name, zone) in [("client", "a"), ("shop-1", "a"), ("shop-2", "b"), ("shop-3", "b")] {
        in_zone(&scenario.mesh, name, zone)?;
    }
    let near = async || answers(&scenario, 40, |_| Request::get("/")).await;
    eventually("zones are known", LIMIT, async || {
        let counts = near().await?;
        ensure!(counts.get("shop-1") == Some(&40), "{counts:?}");
        Ok(())
    })
    .await?;
    let load = Load::new(scenario.address("shop")?, &destination("shop")).connections(4).rate(200.0).start();
    load.more(200).await?;
    scenario.instance("shop-1")?.sidecar.withdraw(&scenario.mesh)?;
    eventually("the others serve", LIMIT, async || {
        let counts = near().await?;
        ensure!(!counts.contains_key("shop-1") && counts.len() == 2, "{counts:?}");
        Ok(())
    })
    .await?;
    load.stop().await?.unharmed(200)?;
    scenario.mesh.end().await
}

/// A server that asks to be left alone is, as long as there is another; and one alone still gets everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_sends_requests_elsewhere() -> Result<()> {
    let scenario = three_shops().await?;
    apply(&scenario, "  loadBalancing: {algorithm: RoundRobin}").await?;
    let tired = scenario.instance("shop-1")?.server.control();
    tired.retry_after.store(60, Relaxed);
    tired.status.store(429, Relaxed);
    let counts = answers(&scenario, 21, |_| Request::get("/")).await?;
    ensure!(counts.get("429") == Some(&1), "one request finds out: {counts:?}");
    for name in ["shop-2", "shop-3"] {
        let control = scenario.instance(name)?.server.control();
        control.retry_after.store(60, Relaxed);
        control.status.store(429, Relaxed);
    }
    let counts = answers(&scenario, 12, |_| Request::get("/")).await?;
    ensure!(counts.get("429") == Some(&12), "if all ask for it, all are called: {counts:?}");
    scenario.mesh.end().await
}
