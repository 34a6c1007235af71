//! What the README says of Kubernetes, done word for word. `e2e/cluster/test` runs this; see e2e/README.md.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::kubernetes::{Cluster, summary::Summary};
use tempfile::TempDir;

/// The namespace that the README makes.
const SHOP: &str = "shop";
/// Longest time for a block of commands: more than those who wait give themselves, Helm and `kubectl wait` five minutes each.
const LIMIT: Duration = Duration::from_secs(660);
/// What it sends to the new version.
const SHARE: f64 = 0.1;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The commands that a chapter of the README gives, in order.
fn commands(chapter: &str) -> Result<Vec<String>> {
    let page = std::fs::read_to_string(root().join("README.md"))?;
    let (_, rest) = page.split_once(&format!("\n## {chapter}\n")).with_context(|| format!("no chapter {chapter}"))?;
    let chapter = rest.split("\n## ").next().unwrap_or_default();
    let blocks = chapter.split("\n```sh\n").skip(1).filter_map(|from| from.split("\n```").next());
    Ok(blocks.map(ToOwned::to_owned).collect())
}

/// A folder in which the README's paths lead where they should, and what it writes is nobody's loss.
fn checkout() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let root = root().canonicalize()?;
    for name in ["charts", "e2e"] {
        symlink(root.join(name), folder.path().join(name))?;
    }
    Ok(folder)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn every_command_of_the_readme_does_what_it_says() -> Result<()> {
    let cluster = Cluster::connect().await?;
    cluster.uninstall().await?;
    cluster.delete_namespace(SHOP).await?;
    let folder = checkout()?;
    let blocks = commands("In Kubernetes")?;
    let mut printed = Vec::new();
    let started = Instant::now();
    for block in &blocks {
        let said = cluster.script(folder.path(), block, LIMIT).await.with_context(|| block.clone())?;
        println!("{block}\n{said}");
        printed.push(said);
        // Its first request is made in the second block.
        if printed.len() == 2 {
            println!("from `leno check --pre` to the first meshed request: {:.1?}", started.elapsed());
        }
    }
    let [_, first, canary] = printed.as_slice() else {
        anyhow::bail!("three blocks were expected: installation, first request, canary; these are {blocks:#?}");
    };
    ensure!(first.contains("spiffe://cluster.local/ns/shop/sa/default"), "the first request: {first}");
    let summary: Summary = serde_json::from_str(canary.lines().last().unwrap_or_default()).context(canary.clone())?;
    // As many as a busy machine manages.
    summary.unharmed(500)?;
    let share = summary.share("shop-v2");
    let deviation = (SHARE * (1.0 - SHARE) / summary.ok as f64).sqrt();
    ensure!((share - SHARE).abs() < 5.0 * deviation, "{share} of the requests went to the new version: {summary:?}");
    cluster.delete_namespace(SHOP).await
}
