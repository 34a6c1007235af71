//! Environment variables that are set to nothing count as not set, as for most programs: a template that leaves one empty
//! means the default.

use std::{
    env,
    ffi::{OsStr, OsString},
};

use clap::{Arg, Command, builder::Resettable};

/// The command, and those below it, without the environment variables that are empty.
pub fn without_empty(command: Command) -> Command {
    without(command, &|name| env::var_os(name))
}

fn without(command: Command, variable: &impl Fn(&OsStr) -> Option<OsString>) -> Command {
    let unset = |arg: Arg| {
        let empty = arg.get_env().and_then(variable).is_some_and(|value| value.is_empty());
        if empty { arg.env(Resettable::Reset) } else { arg }
    };
    command.mut_args(unset).mut_subcommands(|below| without(below, variable))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::args::RunArgs;

    #[test]
    fn empty_is_not_set() {
        let variables = |name: &OsStr| match name.to_str() {
            Some("LENO_OTLP_ENDPOINT") => Some(OsString::new()),
            Some("LENO_WORKERS") => Some(OsString::from("2")),
            _ => None,
        };
        let root = Command::new("root").subcommand(RunArgs::command().name("run"));
        let command = without(root, &variables);
        let run = command.find_subcommand("run").unwrap();
        let variable = |id: &str| run.get_arguments().find(|arg| arg.get_id() == id).unwrap().get_env();
        assert_eq!(variable("otlp_endpoint"), None);
        assert_eq!(variable("workers"), Some(OsStr::new("LENO_WORKERS")));
        assert_eq!(variable("admin"), Some(OsStr::new("LENO_ADMIN")));
    }
}
