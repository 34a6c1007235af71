//! A panic is a bug; it ends the task it is in, not the process. Each is counted and logged with its place.

use std::{panic, thread};

use crate::telemetry::panic_counter;

/// Replaces the process's panic hook.
pub(super) fn count_and_log() {
    // Registered beforehand: a panic may come from anywhere, the registry included.
    let counter = panic_counter();
    panic::set_hook(Box::new(move |info| {
        counter.increment(1);
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = thread::current();
        let thread = thread.name().unwrap_or_default();
        tracing::error!(place, thread, "panic (a bug; please report it): {message}");
    }));
}
