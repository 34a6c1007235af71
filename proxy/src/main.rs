//! The `leno-proxy` binary: see `leno-proxy --help`.

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use leno_proxy::{app, config, redirect};

/// Leno's data plane: the proxy beside each workload.
#[derive(Debug, Parser)]
#[command(name = "leno-proxy", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (`leno-proxy run --help` lists its options)
    #[command(disable_help_flag = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
    /// Send the workload's connections through the proxy (transparent mode), or no longer
    Redirect(redirect::Args),
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    let matches = config::environment::without_empty(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        // Parsed where file, environment and flags are put together.
        Command::Run { arguments } => match config::args::parse(arguments) {
            Ok(config) => app::run(config),
            Err(error) => error.exit(),
        },
        Command::Redirect(args) => redirect::run(&args),
        Command::Version => {
            println!("leno-proxy {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
