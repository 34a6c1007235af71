//! `./demo` runs this.

use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    leno_e2e::demo::run(leno_e2e::demo::Args::parse()).await
}
