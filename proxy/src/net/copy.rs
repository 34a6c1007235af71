//! Relays bytes both ways: adaptive buffers, half-close, idle timeout, byte counts as they happen.

use std::{cell::Cell, io, time::Duration};

use super::Io;

/// Bytes moved so far; readable while the relay runs.
#[derive(Debug, Default)]
pub struct Moved {
    pub to_server: Cell<u64>,
    pub to_client: Cell<u64>,
}

/// Relays until both sides are done, either fails, or nothing moves for `idle`. EOF on one side is
/// passed on as a half-close (for TLS: close_notify) and the other direction goes on.
pub async fn relay<C: Io, S: Io>(_client: C, _server: S, _idle: Duration, _moved: &Moved) -> io::Result<()> {
    todo!("transport")
}
