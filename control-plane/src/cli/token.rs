//! `leno token`

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use leno_proto::{spiffe::SpiffeId, v1::IssueTokenRequest};

use super::{block_on, connect, duration};
use crate::authority::{files, token::TokenKey};

/// Print a join token, with which a workload outside Kubernetes gets its first certificate
///
/// The token is a JWT, signed by a key in the state folder, good for one namespace and service account until it
/// expires. It needs no running control plane. Give it to `leno-proxy --token-file`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The control plane's state folder
    #[arg(long, value_name = "DIR", env = "LENO_STATE")]
    state: PathBuf,
    /// Namespace of the workload
    #[arg(short, long, env = "LENO_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Service account of the workload: with the namespace, its identity
    #[arg(short = 's', long, env = "LENO_SERVICE_ACCOUNT")]
    service_account: String,
    /// How long the token can be used
    #[arg(long, env = "LENO_LIFETIME", default_value = "1h", value_parser = lifetime)]
    lifetime: Duration,
    /// Trust domain, if the state folder is new
    #[arg(long, env = "LENO_TRUST_DOMAIN")]
    trust_domain: Option<String>,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = duration::parse(text)?;
    if lifetime < Duration::from_secs(1) { Err("a token lives at least 1s".to_owned()) } else { Ok(lifetime) }
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let folder = &args.state;
    if !folder.exists() {
        // Perhaps the name is mistyped: the token would be one that no control plane takes.
        if !folder.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent.exists()) {
            bail!("there is no state folder {}, nor the folder it would be in", folder.display());
        }
        files::make_private_folder(folder)?;
        eprintln!(
            "leno: {0} is a new state folder: only a control plane with --state {0} takes this token",
            folder.display()
        );
    }
    let trust_domain = files::settle_trust_domain(folder, args.trust_domain.as_deref())?;
    SpiffeId::new(&trust_domain, &args.namespace, &args.service_account)
        .context("--namespace and --service-account make no identity")?;
    let online = block_on(ask(&args))?;
    let token = match online {
        Some(token) => token,
        None => make(folder, &args)?,
    };
    outln!("{token}");
    Ok(super::SUCCESS)
}

/// From the control plane, if it runs: its log says so then.
async fn ask(args: &Args) -> anyhow::Result<Option<String>> {
    let Some(mut client) = connect::find(&args.state).await? else { return Ok(None) };
    let request = IssueTokenRequest {
        namespace: args.namespace.clone(),
        service_account: args.service_account.clone(),
        lifetime_s: args.lifetime.as_secs(),
    };
    let response = client.issue_token(request).await.map_err(connect::said)?;
    Ok(Some(response.into_inner().token))
}

fn make(state: &Path, args: &Args) -> anyhow::Result<String> {
    let trust_domain = files::settle_trust_domain(state, args.trust_domain.as_deref())?;
    let key = TokenKey::load_or_make(state, &trust_domain)?;
    let (token, _) = key.issue(&args.namespace, &args.service_account, args.lifetime, SystemTime::now())?;
    Ok(token)
}
