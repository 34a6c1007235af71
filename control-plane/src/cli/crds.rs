//! `leno crds`: the CustomResourceDefinitions of our kinds.

use std::{fs, path::PathBuf};

use anyhow::Context as _;

use crate::api::{crd, reference};

/// Print the CustomResourceDefinitions of the kinds of group leno.dev
#[derive(Debug, clap::Args)]
#[command(after_help = "Install them with: leno crds | kubectl apply -f -")]
pub(super) struct Args {
    /// Write a page for each kind into this folder, with every field, in place of printing
    #[arg(long, value_name = "DIR", env = "LENO_REFERENCE")]
    reference: Option<PathBuf>,
}

pub(super) fn run(Args { reference }: Args) -> anyhow::Result<u8> {
    match reference {
        None => out!("{}", crd::to_yaml()),
        Some(folder) => {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            for page in reference::pages() {
                let path = folder.join(&page.file);
                fs::write(&path, page.text).with_context(|| format!("cannot write {}", path.display()))?;
                outln!("{}", path.display());
            }
        }
    }
    Ok(super::SUCCESS)
}
