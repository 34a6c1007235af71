//! Buffers that a worker's connections share: what is read goes through one of them, and a connection keeps only what is left
//! over; what is written is put together in another, and a connection keeps only what its peer does not take.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// What is read at once.
pub(super) const READ: usize = 64 * 1024;
/// A larger buffer is not kept for others.
const KEPT: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads once, and hands the bytes to `look`; none: the peer has ended its side. `look` must not read in its turn.
pub(super) fn poll_read<S: AsyncRead + Unpin + ?Sized, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    look: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.is_empty() {
            scratch.resize(READ, 0);
        }
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(look(buffer.filled())))
    })
}

/// An empty buffer to write into.
pub(super) fn take_spare() -> Vec<u8> {
    SPARE.take()
}

/// Gives a buffer back.
pub(super) fn give_back(mut spare: Vec<u8>) {
    spare.clear();
    if spare.capacity() <= KEPT {
        SPARE.with_borrow_mut(|held| {
            if held.capacity() < spare.capacity() {
                *held = spare;
            }
        });
    }
}
