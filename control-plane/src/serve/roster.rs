//! The names of proxies that are, or may be, serving, kept in the state folder: after a restart they are missed until they
//! are back, so that nothing is said to be in force everywhere that a proxy has not heard of yet.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use super::tracker::{Name, Tracker};
use crate::authority::files;

/// Between two writes: proxies come in crowds.
const REST: Duration = Duration::from_millis(50);

fn file(state: &Path) -> PathBuf {
    state.join("proxies.json")
}

/// What an earlier control plane wrote. What cannot be read is as if it were not there, and is said.
pub(super) fn read(state: &Path) -> BTreeSet<Name> {
    let file = file(state);
    let names = match fs::read(&file) {
        Ok(content) => serde_json::from_slice(&content).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeSet::new(),
        Err(error) => Err(error),
    };
    names.unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "cannot tell which proxies were connected: none is missed");
        BTreeSet::new()
    })
}

/// Writes them whenever they change, until `stopping`.
///
/// # Errors
/// None: what cannot be written is said.
pub(super) async fn keep(
    state: PathBuf,
    tracker: Arc<Tracker>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let file = file(&state);
    let mut roster = tracker.roster();
    let mut written = read(&state);
    loop {
        roster.mark_unchanged();
        let last = *stopping.borrow();
        let names = tracker.names();
        if names != written {
            write(file.clone(), &names).await;
            written = names;
        }
        if last {
            return Ok(());
        }
        tokio::select! {
            changed = async {
                sleep(REST).await;
                roster.changed().await
            } => if changed.is_err() { return Ok(()) },
            _ = stopping.wait_for(|s| *s) => {}
        }
    }
}

async fn write(file: PathBuf, names: &BTreeSet<Name>) {
    let written = match serde_json::to_vec(names) {
        Ok(content) => {
            let file = file.clone();
            spawn_blocking(move || files::write_atomically(&file, &content, 0o600))
                .await
                .unwrap_or_else(|error| Err(error.into()))
        }
        Err(error) => Err(error.into()),
    };
    if let Err(error) = written {
        tracing::error!(
            file = %file.display(), error = format!("{error:#}"),
            "cannot write which proxies are connected: after a restart they are not missed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).is_empty());
        let name = |workload: &str| Name { namespace: "shop".into(), workload: workload.into(), has_pod: true };
        let names = BTreeSet::from([name("a"), name("b")]);
        let tracker = Arc::new(Tracker::default());
        tracker.expect(names.clone(), std::time::Instant::now());
        let (_stop, stopping) = watch::channel(true);
        keep(folder.path().into(), tracker, stopping).await.unwrap();
        assert_eq!(read(folder.path()), names);
        fs::write(file(folder.path()), "{").unwrap();
        assert!(read(folder.path()).is_empty());
    }
}
