//! Three hops, each with a policy that tries 5xx again, and a last one that fails, by an answer or without: how many requests reach it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    mesh::{Mesh, Workload, documents},
    relay::{Relay, flood},
    scripted::{Act, Scripted},
};

/// client → a → b → c, which fails.
struct Chain {
    mesh: Mesh,
    client: Workload,
    _relays: [Relay; 2],
    last: Scripted,
}

const POLICY: &str = "apiVersion: leno.dev/v1alpha1
kind: RoutePolicy
metadata: {name: retries, namespace: default}
spec:
  targetRefs:
    - {group: gateway.networking.k8s.io, kind: HTTPRoute, name: a}
    - {group: gateway.networking.k8s.io, kind: HTTPRoute, name: b}
    - {group: gateway.networking.k8s.io, kind: HTTPRoute, name: c}
  retry: {attempts: 2, statuses: [5xx], backoff: {base: 1ms, max: 5ms}}
";
/// As good as none.
const NO_BUDGET: &str = "apiVersion: leno.dev/v1alpha1
kind: BackendPolicy
metadata: {name: no-budget, namespace: default}
spec:
  targetRefs:
    - {group: \"\", kind: Service, name: a}
    - {group: \"\", kind: Service, name: b}
    - {group: \"\", kind: Service, name: c}
  retryBudget: {percent: 1000, minPerSecond: 1000000, burst: 1000000}
";

impl Chain {
    async fn start(forwards_trace: bool, budgets: bool, last: Act) -> Result<Self> {
        let mesh = Mesh::start().await?;
        let mut documents = Vec::new();
        for name in ["a", "b", "c"] {
            documents.push(documents::service("default", name, 80, "http"));
            documents.push(documents::http_route(name, name, &[(name, 1)]));
        }
        documents.push(POLICY.to_owned());
        if !budgets {
            documents.push(NO_BUDGET.to_owned());
        }
        mesh.apply("chain.yaml", &documents::file(&documents))?;
        let relays = [Relay::start(forwards_trace).await?, Relay::start(forwards_trace).await?];
        let last = Scripted::start(move |_| last.clone()).await?;
        mesh.workload("c").serves("c", last.address()).start().await?;
        let [first, second] = &relays;
        let b = mesh.workload("b").serves("b", second.address()).outbound("c.default:80").start().await?;
        let a = mesh.workload("a").serves("a", first.address()).outbound("b.default:80").start().await?;
        second.calls(b.calls("c.default:80")?, "c.default");
        first.calls(a.calls("b.default:80")?, "b.default");
        let client = mesh.workload("client").outbound("a.default:80").start().await?;
        Ok(Self { mesh, client, _relays: relays, last })
    }

    /// How many requests reach the last for each that enters, all of which are answered so.
    async fn multiplied(&self, what: &str, status: u16, rate: f64, duration: Duration) -> Result<f64> {
        // Destinations are discovered by a first request each.
        flood(self.client.calls("a.default:80")?, "/", 1, 1.0, Duration::from_millis(10)).await?;
        let before = self.last.requests();
        let answers = flood(self.client.calls("a.default:80")?, "/", 100, rate, duration).await?;
        let entered: u64 = answers.values().sum();
        ensure!(entered > 0 && answers == BTreeMap::from([(status, entered)]), "{what}: {answers:?}");
        let reached = self.last.requests() - before;
        let ratio = reached as f64 / entered as f64;
        let rate = entered as f64 / duration.as_secs_f64();
        println!(
            "{what}: {entered} requests entered ({rate:.0}/s), {reached} reached the last: {ratio:.3} times as many"
        );
        Ok(ratio)
    }
}

/// Requests per second; a busy machine may not manage them.
fn rate() -> Result<f64> {
    std::env::var("LENO_STORM_RATE").map_or(Ok(1000.0), |rate| rate.parse().context("LENO_STORM_RATE"))
}

/// The last hop answers so.
fn unavailable() -> Act {
    Act::Answer(503, String::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_stays_small_where_traces_are_forwarded() -> Result<()> {
    let chain = Chain::start(true, true, unavailable()).await?;
    let ratio = chain.multiplied("with traceparent", 503, rate()?, Duration::from_secs(10)).await?;
    ensure!(ratio < 1.25, "{ratio}");
    chain.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_stays_small_where_they_are_not() -> Result<()> {
    let chain = Chain::start(false, true, unavailable()).await?;
    let ratio = chain.multiplied("without traceparent", 503, rate()?, Duration::from_secs(10)).await?;
    ensure!(ratio < 1.5, "{ratio}");
    chain.mesh.end().await
}

/// As when each request crashes the application: what breaks off is tried again without any policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_resets_stays_as_small() -> Result<()> {
    for (forwards_trace, most) in [(true, 1.25), (false, 1.5)] {
        let chain = Chain::start(forwards_trace, true, Act::BreakOff).await?;
        let what = format!("broken off, traceparent {}", if forwards_trace { "forwarded" } else { "not forwarded" });
        let ratio = chain.multiplied(&what, 502, rate()?, Duration::from_secs(10)).await?;
        ensure!(ratio < most, "{ratio}");
        chain.mesh.end().await?;
    }
    Ok(())
}

/// What the budgets are for: three tries at each of three hops are 27. Where traces are forwarded only the last hop tries
/// again, budget or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_budgets_a_storm_multiplies() -> Result<()> {
    for (last, status) in [(unavailable(), 503), (Act::BreakOff, 502)] {
        let (rate, duration) = (20.0, Duration::from_secs(5));
        let chain = Chain::start(false, false, last.clone()).await?;
        let what = format!("{status}, without budgets, without traceparent");
        let ratio = chain.multiplied(&what, status, rate, duration).await?;
        ensure!(ratio > 20.0 && ratio < 28.0, "{ratio}");
        chain.mesh.end().await?;
        let chain = Chain::start(true, false, last).await?;
        let what = format!("{status}, without budgets, with traceparent");
        let ratio = chain.multiplied(&what, status, rate, duration).await?;
        ensure!(ratio < 3.5, "{ratio}");
        chain.mesh.end().await?;
    }
    Ok(())
}
