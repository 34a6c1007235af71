//! `leno crds`: the CustomResourceDefinitions of our kinds.

use crate::api::crd;

/// Print the CustomResourceDefinitions of the kinds of group leno.dev
#[derive(Debug, clap::Args)]
#[command(after_help = "Install them with: leno crds | kubectl apply -f -")]
pub(super) struct Args {}

pub(super) fn run(Args {}: Args) -> anyhow::Result<u8> {
    out!("{}", crd::to_yaml());
    Ok(super::SUCCESS)
}
