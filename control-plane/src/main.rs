//! The `leno` binary: see `leno --help`.

fn main() {}
