//! Policy latency: a route's weights are changed by writing its file; measured until the control plane knows that every
//! subscribed proxy serves the new generation.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use leno_e2e::{
    mesh::{Mesh, documents},
    operator,
    server::Server,
    wait::within,
};
use serde_json::{Map, json};

use crate::results::save;

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Proxies that subscribe to the route.
    #[arg(long, default_value_t = 20)]
    proxies: usize,
    /// Changes, one after the other.
    #[arg(long, default_value_t = 300)]
    changes: u32,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let mesh = Mesh::start().await?;
    let application = Server::start("shop").await?;
    for service in ["shop", "shop-v1", "shop-v2"] {
        let file = format!("{service}.yaml");
        mesh.apply(&file, &documents::service(documents::NAMESPACE, service, 80, ""))?;
    }
    mesh.workload("shop-1")
        .serves("shop-v1", application.address())
        .serves("shop-v2", application.address())
        .start()
        .await?;
    mesh.apply("route.yaml", &route(0))?;
    for n in 0..args.proxies {
        let client = mesh.workload(&format!("web-{n}")).account("web").outbound("shop.default:80").start().await?;
        // The first call makes the proxy subscribe.
        leno_e2e::client::get(client.calls("shop.default:80")?, "shop", "/").await?;
    }
    let mut updates = operator::watch(&mesh.state(), "HTTPRoute", documents::NAMESPACE, "shop").await?;
    let mut generation = 0;
    let mut latencies = Vec::new();
    for change in 1..=args.changes {
        let written = Instant::now();
        mesh.apply("route.yaml", &route(change))?;
        generation = within("the change is in force everywhere", LIMIT, async {
            while let Some(status) = updates.message().await.context("follow the route")? {
                let everywhere = status.programmed == status.subscribed && status.subscribed as usize >= args.proxies;
                if status.generation > generation && everywhere {
                    return Ok(status.generation);
                }
            }
            bail!("the control plane ended the watch")
        })
        .await?;
        // The first may have been in force before the write.
        if change > 1 {
            latencies.push(written.elapsed().as_secs_f64() * 1000.0);
        }
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    let (p50, p99, max) = (at(0.5), at(0.99), latencies.last().copied().unwrap_or_default());
    println!("\n| proxies | changes | write → in force everywhere p50 | p99 | max |\n|---|---|---|---|---|");
    println!("| {} | {} | {p50:.1} ms | {p99:.1} ms | {max:.1} ms |", args.proxies, latencies.len());
    let mut row = Map::new();
    row.insert("work".into(), json!(format!("policy-{}-proxies", args.proxies)));
    row.insert("contender".into(), json!("leno"));
    row.insert("p50_us".into(), json!((p50 * 1000.0).round()));
    row.insert("p99_us".into(), json!((p99 * 1000.0).round()));
    save(vec![row])?;
    mesh.end().await
}

/// The canary; the weights differ with each `n`.
fn route(n: u32) -> String {
    documents::http_route("shop", "shop", &[("shop-v1", 100 + n), ("shop-v2", 100)])
}
