//! The commands of `leno`.
//!
//! Exit codes: 0 it is so; 1 it failed, or is not (yet) so; 2 the command line is wrong.

#[macro_use]
mod print;

mod check;
mod connect;
mod control_plane;
mod crds;
mod describe;
mod duration;
mod explain;
mod get;
mod inject;
mod kinds;
mod replicas;
mod token;
mod wait;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use connect::State;

/// Done, and it is so.
const SUCCESS: u8 = 0;
/// It failed, or is not so.
const FAILURE: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;

/// Leno, a service mesh: its control plane, and the operator's command line.
#[derive(Debug, Parser)]
#[command(
    name = "leno",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 it is so; 1 it failed, or is not so; 2 the command line is wrong.\n\
                  Every option can be given as an environment variable, LENO_ and its name. \
                  NO_COLOR turns colours off."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    ControlPlane(Box<control_plane::Args>),
    Get(get::Args),
    Describe(describe::Args),
    Explain(explain::Args),
    Wait(wait::Args),
    Check(check::Args),
    Token(token::Args),
    Crds(crds::Args),
    Inject(inject::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let done = match parsed(&matches).command {
        Command::ControlPlane(args) => control_plane::run(*args),
        Command::Get(args) => get::run(args),
        Command::Describe(args) => describe::run(args),
        Command::Wait(args) => wait::run(args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Token(args) => token::run(args),
        Command::Crds(args) => crds::run(args),
        Command::Inject(args) => inject::run(args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("leno: {error:#}");
            ExitCode::from(FAILURE)
        }
    }
}

/// What the matches say, which clap has checked already.
fn parsed(matches: &ArgMatches) -> Cli {
    let mut cli = Cli::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
    if let (Command::Check(args), Some(("check", matches))) = (&mut cli.command, matches.subcommand()) {
        args.settle(matches);
    }
    cli
}

/// A runtime for one command's questions.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Says what is wrong with the command line.
fn usage(wrong: &str) -> anyhow::Result<u8> {
    eprintln!("leno: {wrong}");
    Ok(USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_command_line_says_is_checked_and_nothing_else() {
        let checked = |line: &[&str]| {
            let matches = Cli::command().try_get_matches_from([&["leno", "check"], line].concat()).unwrap();
            match parsed(&matches).command {
                Command::Check(args) => args.checked(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(checked(&["--config", "a"]), (true, false));
        assert_eq!(checked(&["--state", "a", "--mesh-networks", "10.0.0.0/8"]), (false, true));
        assert_eq!(checked(&["--config", "a", "--state", "b"]), (true, true));
        assert_eq!(checked(&["--pre"]), (false, false));
        assert_eq!(checked(&[]), (false, false));
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for option in command.get_opts() {
                let name = option.get_long().map(str::to_owned);
                let expected = name.as_ref().map(|name| format!("LENO_{}", name.to_uppercase().replace('-', "_")));
                let actual = option.get_env().map(|env| env.to_string_lossy().into_owned());
                assert_eq!(actual, expected, "{} --{}", command.get_name(), name.unwrap_or_default());
            }
        }
    }
}
