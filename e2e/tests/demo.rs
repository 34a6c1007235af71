//! `./demo` keeps its word: what it shows holds, and it leaves nothing behind however it ends.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    mesh::LIMIT,
    process::{Process, Processes},
    wait::eventually,
};
use rustix::process::Signal;
use tempfile::TempDir;

/// Ten times what it takes.
const TO_THE_END: Duration = Duration::from_secs(450);

fn demo(folder: &TempDir) -> Result<(Processes, Process)> {
    let processes = Processes::new(folder.path(), false)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_leno-demo"));
    command.args(["--step", "3", "--folder"]).arg(folder.path().join("demo"));
    let process = processes.spawn("output", command)?;
    Ok((processes, process))
}

/// No process of the mesh in that folder.
fn nothing_left(folder: &Path) -> Result<()> {
    let folder = folder.display().to_string();
    for process in fs::read_dir("/proc")? {
        let line = fs::read(process?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        ensure!(!line.contains(&folder), "still there: {line}");
    }
    Ok(())
}

#[tokio::test]
async fn the_demo_holds() -> Result<()> {
    let folder = TempDir::new()?;
    let (processes, process) = demo(&folder)?;
    let status = eventually("the demo ends", TO_THE_END, async || process.ended()?.context("it runs")).await?;
    let printed = process.log()?;
    ensure!(status.success() && printed.contains("All of it held."), "{status}:\n{printed}");
    ensure!(!printed.contains('\x1b'), "it draws where there is no terminal");
    nothing_left(folder.path())?;
    processes.end(LIMIT).await
}

#[tokio::test]
async fn the_demo_ends_in_order_when_interrupted() -> Result<()> {
    let folder = TempDir::new()?;
    let (processes, process) = demo(&folder)?;
    process.logged("canary 90/10", TO_THE_END).await?;
    process.signal(Signal::INT)?;
    let status = eventually("the demo ends", LIMIT, async || process.ended()?.context("it runs")).await?;
    let printed = process.log()?;
    ensure!(status.code() == Some(1) && printed.contains("interrupted"), "{status}:\n{printed}");
    ensure!(!printed.contains("last lines of its log"), "its processes did not end in order:\n{printed}");
    nothing_left(folder.path())?;
    // Ended with 1, as it should: nothing more to end.
    drop(processes);
    Ok(())
}
