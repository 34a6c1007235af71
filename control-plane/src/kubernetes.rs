//! The control plane as a client of the API server.

use std::time::Duration;

use anyhow::Context as _;

/// For a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client by `KUBECONFIG`, or by what Kubernetes gives a Pod. Does not connect yet. How long an answer may take is said call by
/// call: watches are silent for long.
///
/// # Errors
/// If neither is there, or it cannot be used.
pub async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer()
        .await
        .context("cannot tell where the API server is: set KUBECONFIG, or run in a Pod with a service account")?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = None;
    config.write_timeout = None;
    kube::Client::try_from(config).context("cannot make a client of the API server")
}
