//! `benches/report/results.json`: a list of objects, one per work and contender.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

const FILE: &str = "benches/report/results.json";

/// Replaces the rows of the same work and contender, keeps the others.
pub(crate) fn save(rows: Vec<Map<String, Value>>) -> Result<()> {
    let mut all: Vec<Map<String, Value>> = match fs::read(FILE) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {FILE}"))?,
        Err(_) => Vec::new(),
    };
    let same = |a: &Map<String, Value>, b: &Map<String, Value>| {
        a.get("work") == b.get("work") && a.get("contender") == b.get("contender")
    };
    all.retain(|old| !rows.iter().any(|new| same(old, new)));
    all.extend(rows);
    if let Some(folder) = Path::new(FILE).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(FILE, serde_json::to_vec_pretty(&all)?).with_context(|| format!("write {FILE}"))
}

/// The middle value; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
