//! Where configuration comes from. Every source watches, and publishes a [`World`](crate::model::World) per change.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use tokio::sync::watch;

use crate::model::{MeshSettings, ObjectKey, World};

pub mod folder;
pub mod kubernetes;
pub(crate) mod yaml;

/// Where a control plane reads its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder of documents. Generations and last good versions are kept in the state folder.
    Folder(PathBuf),
    /// The API server that `KUBECONFIG` names, or the one of the Pod that this runs in.
    Kubernetes,
}

/// Reads everything in a folder once, then watches it in the background.
///
/// # Errors
/// If the folder cannot be read.
pub async fn watch_folder(config: PathBuf, state: PathBuf, settings: MeshSettings) -> anyhow::Result<Watched> {
    let watched = folder::watch(config.clone(), state, settings).await;
    let (world, prompt) = watched.with_context(|| format!("cannot read the configuration in {}", config.display()))?;
    Ok((world, Prompt::Folder(prompt)))
}

/// The same of everything that the API server has. One that does not answer is waited for; `waiting` is told for what.
///
/// # Errors
/// If no thread can be started.
pub async fn watch_kubernetes(
    client: kube::Client,
    settings: MeshSettings,
    waiting: impl Fn(String) + Send + 'static,
) -> anyhow::Result<Watched> {
    let (world, prompt) = kubernetes::watch(client, settings, waiting).await?;
    Ok((world, Prompt::Kubernetes(prompt)))
}

/// The newest world, and a way to ask for what is newer.
pub type Watched = (watch::Receiver<Arc<World>>, Prompt);

/// For those who must know that what was written before they asked has been read.
#[derive(Clone)]
pub enum Prompt {
    Folder(folder::Prompt),
    Kubernetes(kubernetes::Prompt),
}

impl Prompt {
    /// Returns once everything that was written when this was called has been published; of the API server, what was
    /// written of `object`. False: nobody knows whether that is so.
    pub async fn look(&self, object: Option<&ObjectKey>) -> bool {
        match self {
            Self::Folder(prompt) => {
                prompt.look().await;
                true
            }
            Self::Kubernetes(prompt) => prompt.look(object).await,
        }
    }

    /// When the API server was last heard of each kind; None: it is a folder.
    pub fn contacts(&self) -> Option<Arc<kubernetes::Contacts>> {
        match self {
            Self::Folder(_) => None,
            Self::Kubernetes(prompt) => Some(prompt.contacts()),
        }
    }

    /// Returns once what must survive a restart is kept, or cannot be.
    pub async fn saved(&self) {
        match self {
            Self::Folder(prompt) => prompt.saved().await,
            // The API server has it.
            Self::Kubernetes(_) => {}
        }
    }
}
