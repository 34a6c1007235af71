//! The API server, watched.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{Generations, MeshSettings, ObjectKey, World};

/// See [`super::Prompt`].
#[derive(Clone)]
pub struct Prompt {
    _world: watch::Receiver<Arc<World>>,
}

impl Prompt {
    pub(super) async fn look(&self, _object: Option<&ObjectKey>) {}
}

/// Lists everything once, then watches in the background.
///
/// # Errors
/// None yet.
pub async fn watch(
    client: kube::Client,
    settings: MeshSettings,
) -> anyhow::Result<(watch::Receiver<Arc<World>>, Prompt)> {
    let world = World::empty(settings, Generations::default()).apply(Vec::new(), Vec::new());
    let (publish, worlds) = watch::channel(Arc::new(world));
    tokio::spawn(async move {
        publish.closed().await;
        drop(client);
    });
    Ok((worlds.clone(), Prompt { _world: worlds }))
}
