//! Routes and instances change all the time, under load.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    binaries, client,
    load::{Load, Report},
    mesh::{LIMIT, Options, documents},
    scenario::{Instance, Scenario, destination},
    wait::eventually,
};
use rustix::process::Signal;
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_route_changes() -> Result<()> {
    let scenario = Scenario::start(&["shop", "main", "canary"]).await?;
    let route = |weight: u32| documents::http_route("shop", "shop", &[("main", 100 - weight), ("canary", weight)]);
    scenario.route(&route(50), "httproute/shop").await?;
    let generation = async || {
        let object = scenario.mesh.object("httproute/shop").await?.context("the route")?;
        object.get("generation").and_then(serde_json::Value::as_u64).context("its generation")
    };
    let before = generation().await?;
    let load = Load::new(scenario.address("shop")?, &destination("shop"));
    let load = load.connections(50).streams(10).calls(5).rate(520.0).start();

    let mut pace = interval(Duration::from_millis(30));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = Instant::now();
    for n in 0..1000 {
        pace.tick().await;
        scenario.mesh.apply("routes.yaml", &route(n % 99 + 1))?;
    }
    let writing = began.elapsed();
    scenario.mesh.apply("routes.yaml", &route(0))?;
    scenario.mesh.wait_for("httproute/shop", before + 100).await?;
    let after = generation().await?;
    println!("1000 writes in {writing:?}, {} generations", after - before);
    // Half a minute where the machine has nothing else to do; benches measure how fast a change is.
    ensure!(writing < Duration::from_secs(180), "1000 changes took {writing:?}");

    // The last word is in force: nothing goes to the canary any more.
    eventually("the last route is in force", LIMIT, async || {
        for _ in 0..50 {
            let answered = scenario.answered_by(http::Request::get("/")).await?;
            ensure!(answered == "main-1", "{answered} answers");
        }
        Ok(())
    })
    .await?;
    load.answered(10_000).await?;
    let report = load.stop().await?;
    report.unharmed(10_000)?;
    ensure!(report.instances.len() == 2, "answers by {:?}", report.instances);
    scenario.mesh.end().await
}

/// A file breaks and the control plane is killed: its Service stays, also for proxies that come later, and `leno get` says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_is_held_over_by_the_next_control_plane() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let mesh = &scenario.mesh;
    let held_over = async || {
        let object = mesh.object("service/shop").await?.context("the Service")?;
        ensure!(
            object.get("heldOver") == Some(&true.into()) && object.get("generation") == Some(&1.into()),
            "{object}"
        );
        ensure!(object.pointer("/errors/0/file") == Some(&"service-shop.yaml".into()), "{object}");
        Ok(())
    };
    eventually("the last good version is kept", LIMIT, async || {
        let kept = std::fs::read_to_string(mesh.state().join("last-good.json"))?;
        ensure!(kept.contains("service-shop.yaml"), "{kept}");
        Ok(())
    })
    .await?;
    mesh.apply("service-shop.yaml", "kind: [")?;
    held_over().await?;
    for late in ["late", "later"] {
        mesh.control_plane().kill()?;
        mesh.restart_control_plane().await?;
        held_over().await?;
        let late = mesh.workload(late).outbound(&destination("shop")).start().await?;
        let answer = client::get(late.calls(&destination("shop"))?, "shop", "/").await?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    let shown = mesh.leno(&["get", "service"]).await?;
    for part in ["HeldOver", "service-shop.yaml, document 1: not YAML", "Service default/shop at generation 1"] {
        ensure!(shown.contains(part), "{part:?} is not in {shown}");
    }
    // Removed while there is no control plane: gone.
    mesh.control_plane().kill()?;
    mesh.remove("service-shop.yaml")?;
    mesh.restart_control_plane().await?;
    ensure!(mesh.object("service/shop").await?.is_none(), "it came back");
    scenario.mesh.end().await
}

/// A second sidecar bears the first one's name: the first keeps its stream, and who waits is told of the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_of_one_name() -> Result<()> {
    let mut scenario = Scenario::start(&["shop"]).await?;
    let mesh = &scenario.mesh;
    let second = mesh.workload("client").outbound(&destination("shop")).launch().await?;
    second.process()?.logged("is connected as default/client", LIMIT).await?;

    mesh.apply("routes.yaml", &documents::http_route("shop", "shop", &[("shop", 1)]))?;
    eventually("the first has it", LIMIT, async || {
        let route = mesh.object("httproute/shop").await?.context("the route")?;
        ensure!(route.get("programmed") == Some(&1.into()) && route.get("subscribed") == Some(&2.into()), "{route}");
        Ok(())
    })
    .await?;
    let waited = mesh.leno(&["wait", "httproute/shop", "-n", documents::NAMESPACE, "--timeout", "2s"]).await;
    let said = format!("{:?}", waited.err().context("it is said to be in force, and is not at the second")?);
    ensure!(said.contains("default/client duplicate-name"), "{said}");
    ensure!(scenario.answered_by(http::Request::get("/")).await? == "shop-1");

    // A restart under the same name is not hindered.
    second.terminate(LIMIT).await?;
    scenario.client.process()?.kill()?;
    scenario.client.restart(&scenario.mesh).await?;
    ensure!(scenario.answered_by(http::Request::get("/")).await? == "shop-1");
    scenario.mesh.end().await
}

/// A pipeline waits for a route while the control plane is upgraded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_goes_on_past_a_restart_of_the_control_plane() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let mesh = &scenario.mesh;
    // Connections to the operator's socket that are open now; bound under a hidden name, they keep it.
    let open = || -> Result<usize> {
        let (all, socket) = (std::fs::read_to_string("/proc/net/unix")?, mesh.state().join(".leno.sock"));
        let socket = socket.display().to_string();
        // The sixth field is the state: 01 listens, 03 is connected.
        Ok(all.lines().filter(|line| line.ends_with(&socket) && line.split_whitespace().nth(5) == Some("03")).count())
    };
    let asked_by = async |wanted: usize| {
        eventually(&format!("{wanted} ask the control plane"), LIMIT, async || {
            let open = open()?;
            ensure!(open == wanted, "{open} do");
            Ok(())
        })
        .await
    };
    asked_by(0).await?;
    let mut command = std::process::Command::new(binaries::leno()?);
    command.args(["wait", "httproute/shop", "-n", documents::NAMESPACE, "--timeout", "120s", "--state"]);
    command.arg(mesh.state());
    let waiting = mesh.processes().spawn("wait", command)?;
    asked_by(1).await?;
    mesh.control_plane().kill()?;
    waiting.logged("asking again", LIMIT).await?;
    mesh.restart_control_plane().await?;
    mesh.apply("routes.yaml", &documents::http_route("shop", "shop", &[("shop", 1)]))?;
    eventually("leno wait returns", LIMIT, async || {
        let ended = waiting.ended()?.context("it waits")?;
        ensure!(ended.success(), "{ended}");
        Ok(())
    })
    .await?;
    ensure!(waiting.log()?.contains("is in force"), "{}", waiting.log()?);
    scenario.mesh.end().await
}

/// A sidecar that has drained takes leave of the control plane, which does not answer at once: whoever it let in meanwhile
/// would be cut off in the middle of a request when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_connects_to_a_sidecar_that_has_drained() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    ensure!(scenario.answered_by(http::Request::get("/")).await? == "shop-1");
    let sidecar = &scenario.instance("shop-1")?.sidecar;
    let (process, address) = (sidecar.process()?, sidecar.listener(0)?);
    scenario.mesh.control_plane().signal(Signal::STOP)?;
    process.signal(Signal::TERM)?;
    process.logged("drained", LIMIT).await?;
    let connected = TcpStream::connect(address).await;
    scenario.mesh.control_plane().signal(Signal::CONT)?;
    ensure!(connected.is_err(), "{connected:?}");
    // The client's turns to nobody else, and says so; it is not reset in the middle of an answer.
    let answer = scenario.get("/").await?;
    ensure!(answer.status.as_u16() >= 500 && answer.header("leno-reason") != "reset", "{answer:?}");
    process.terminate(LIMIT).await?;
    scenario.mesh.end().await
}

/// What happened to instances, and when.
#[derive(Debug, Default)]
struct Changes {
    added: usize,
    drained: usize,
    /// Between these two moments an instance died.
    killed: Vec<(Instant, Instant)>,
}

/// Answers to requests that are safe to retry, and to others.
const SAFE: u64 = 15_000;
const UNSAFE: u64 = 1001;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_come_and_go() -> Result<()> {
    let mut scenario = Scenario::with(Options::default(), &["shop"], 4, "http").await?;
    let safe = Load::new(scenario.address("shop")?, &destination("shop")).connections(50).rate(450.0);
    let safe = safe.path("/delay/5").start();
    let unsafe_ones = Load::new(scenario.address("shop")?, &destination("shop")).connections(10).calls(10).rate(120.0);
    let unsafe_ones = unsafe_ones.post().path("/delay/20").start();

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let changes = churn(&mut scenario, fastrand::Rng::with_seed(seed)).await?;
    println!("{} added, {} drained, {} killed", changes.added, changes.drained, changes.killed.len());
    safe.more(500).await?;
    safe.answered(SAFE).await?;
    unsafe_ones.answered(UNSAFE).await?;
    let (safe, unsafe_ones) = (safe.stop().await?, unsafe_ones.stop().await?);
    safe.unharmed(SAFE).context("requests that are safe to retry")?;
    only_in_flight(&unsafe_ones, &changes)?;
    println!(
        "not safe to retry: {} well, {} lost with {} kills",
        unsafe_ones.ok,
        unsafe_ones.failed,
        changes.killed.len()
    );
    scenario.mesh.end().await
}

/// Once a second for a minute: adds, drains or kills an instance; between 3 and 8 of them live.
async fn churn(scenario: &mut Scenario, mut random: fastrand::Rng) -> Result<Changes> {
    let mut changes = Changes::default();
    let mut pace = interval(Duration::from_secs(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0..60 {
        pace.tick().await;
        let living = scenario.instances.len();
        let what = if living <= 3 { 0 } else { random.usize(if living >= 8 { 1..3 } else { 0..3 }) };
        let chosen = random.usize(..living);
        match what {
            0 => {
                scenario.add("shop", &format!("shop-new-{n}")).await?;
                changes.added += 1;
            }
            1 => {
                let mut instance = scenario.instances.swap_remove(chosen);
                drain(scenario, &mut instance).await?;
                changes.drained += 1;
            }
            _ => {
                let mut instance = scenario.instances.swap_remove(chosen);
                let before = Instant::now();
                instance.kill().await?;
                changes.killed.push((before, Instant::now()));
                // As Kubernetes would, only some time after it died.
                tokio::time::sleep(Duration::from_millis(300)).await;
                instance.sidecar.withdraw(&scenario.mesh)?;
            }
        }
    }
    Ok(changes)
}

/// As a rolling deployment does: out of the slice, SIGTERM, end.
async fn drain(scenario: &Scenario, instance: &mut Instance) -> Result<()> {
    instance.sidecar.declare(&scenario.mesh, false)?;
    instance.sidecar.terminate(LIMIT).await?;
    instance.sidecar.withdraw(&scenario.mesh)
}

/// Each failed request must have been under way when an instance was killed.
fn only_in_flight(report: &Report, changes: &Changes) -> Result<()> {
    // A client may write into a connection before it learns that the other end has gone: which takes a busy machine longer, and
    // is told for what it is.
    const NOTICE: Duration = Duration::from_millis(100);
    const NOTICE_OF_RESET: Duration = Duration::from_secs(1);
    for failure in &report.failures {
        let notice = if failure.reason == "reset" { NOTICE_OF_RESET } else { NOTICE };
        let under_way = |(from, to): &(Instant, Instant)| failure.began <= *to + notice && failure.ended >= *from;
        let after = changes.killed.iter().filter_map(|(_, to)| failure.began.checked_duration_since(*to)).min();
        ensure!(
            changes.killed.iter().any(under_way),
            "a request failed with no instance killed under it, but {after:?} before it began: {failure}"
        );
    }
    // Twenty connections over at least three instances: seldom more than seven on the one that dies.
    let bound = changes.killed.len() as u64 * 20;
    ensure!(report.failed <= bound, "{} requests lost with {} kills", report.failed, changes.killed.len());
    ensure!(report.ok >= UNSAFE, "only {} requests were made", report.ok);
    Ok(())
}
