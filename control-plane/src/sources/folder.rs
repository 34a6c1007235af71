//! A folder of YAML, watched: atomic renames, editors' writes, new and removed files, several documents a file.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;

use crate::model::World;

/// Reads the folder once (an unreadable folder is an error; bad documents are not), then watches it in the background.
/// Writes generations to `state`/generations.json before a world is published.
pub async fn watch(
    _config: PathBuf,
    _state: PathBuf,
    _trust_domain: &str,
) -> anyhow::Result<watch::Receiver<Arc<World>>> {
    todo!("model")
}
