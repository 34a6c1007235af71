//! The `leno` binary: see `leno --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    leno::cli::main()
}
