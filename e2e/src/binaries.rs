//! Finds the programs under test, where cargo puts them, or in the folder that `LENO_E2E_BINARIES` names.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The control plane and operator's command line.
pub fn leno() -> Result<PathBuf> {
    find("leno")
}

/// The sidecar.
pub fn leno_proxy() -> Result<PathBuf> {
    find("leno-proxy")
}

const ELSEWHERE: &str = "LENO_E2E_BINARIES";

/// Test executables are in `target/<profile>/deps`, binaries one folder up.
fn find(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("where this test's executable is")?;
    let folder = me
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps") && !folder.ends_with("examples"))
        .unwrap_or_else(|| Path::new("."));
    let elsewhere = std::env::var_os(ELSEWHERE).map(PathBuf::from);
    let path = elsewhere.as_deref().unwrap_or(folder).join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo build --workspace --bins` first (./test does)", path.display());
    Ok(path)
}
