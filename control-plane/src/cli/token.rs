//! `leno token`

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use leno_proto::v1::IssueTokenRequest;

use super::{State, block_on, connect, duration};
use crate::authority::{files, token::TokenKey};

/// Print a join token, with which a workload outside Kubernetes gets its first certificate
///
/// The token is a JWT, signed by a key in the state folder, good for one namespace and service account until it
/// expires. It needs no running control plane. Give it to `leno-proxy --token-file`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    state: State,
    /// Namespace of the workload
    #[arg(short, long, env = "LENO_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Service account of the workload: with the namespace, its identity
    #[arg(short = 's', long, env = "LENO_SERVICE_ACCOUNT")]
    service_account: String,
    /// How long the token can be used
    #[arg(long, env = "LENO_LIFETIME", default_value = "1h", value_parser = duration::parse)]
    lifetime: Duration,
    /// Trust domain, if the state folder is new
    #[arg(long, env = "LENO_TRUST_DOMAIN")]
    trust_domain: Option<String>,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let online = block_on(ask(&args))?;
    let token = match online {
        Some(token) => token,
        None => make(&args.state.folder, &args)?,
    };
    outln!("{token}");
    Ok(super::SUCCESS)
}

/// From the control plane, if it runs: its log says so then.
async fn ask(args: &Args) -> anyhow::Result<Option<String>> {
    let Some(mut client) = connect::find(&args.state.folder).await? else { return Ok(None) };
    let request = IssueTokenRequest {
        namespace: args.namespace.clone(),
        service_account: args.service_account.clone(),
        lifetime_s: args.lifetime.as_secs().max(1),
    };
    let response = client.issue_token(request).await.map_err(connect::said)?;
    Ok(Some(response.into_inner().token))
}

fn make(state: &Path, args: &Args) -> anyhow::Result<String> {
    files::make_private_folder(state)?;
    let trust_domain = files::settle_trust_domain(state, args.trust_domain.as_deref())?;
    let key = TokenKey::load_or_make(state, &trust_domain)?;
    let (token, _) = key.issue(&args.namespace, &args.service_account, args.lifetime, SystemTime::now())?;
    Ok(token)
}
