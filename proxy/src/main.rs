//! The `leno-proxy` binary: see `leno-proxy --help`.

fn main() {}
