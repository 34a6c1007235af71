//! What waits to be written on a connection, in buffers that a thread's connections share: an idle one holds none.

use std::cell::RefCell;

use super::frame;

/// Spare buffers kept per thread, and the room they have together.
const SPARES: usize = 16;
const SPARE_BYTES: usize = 512 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Frames to be written, in order, and how far writing has come.
#[derive(Debug, Default)]
pub(super) struct Output {
    queued: Vec<u8>,
    /// Taken by the driver, and not written yet.
    writing: usize,
    written: u64,
}

impl Output {
    /// To append to.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.queued.capacity() == 0 {
            self.queued = SPARE.try_with(|spares| spares.borrow_mut().pop()).ok().flatten().unwrap_or_default();
        }
        &mut self.queued
    }

    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        frame::frame(self.buffer(), kind, flags, stream, payload);
    }

    /// Bytes not written yet.
    pub(super) fn len(&self) -> usize {
        self.queued.len() + self.writing
    }

    /// Bytes ever queued: what was queued last ends there.
    pub(super) fn end(&self) -> u64 {
        self.written + self.len() as u64
    }

    /// Bytes ever handed to the connection below.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// All that is queued, to be written; the rest of what was taken before must have been.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let taken = std::mem::take(&mut self.queued);
        self.writing = taken.len();
        taken
    }

    pub(super) fn wrote(&mut self, count: usize) {
        self.writing = self.writing.saturating_sub(count);
        self.written += count as u64;
    }
}

/// Gives a buffer back to its thread.
pub(super) fn spare(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    // While the thread ends there is no use for it.
    let _ = SPARE.try_with(|spares| {
        let mut spares = spares.borrow_mut();
        let held: usize = spares.iter().map(Vec::capacity).sum();
        if spares.len() < SPARES && held + buffer.capacity() <= SPARE_BYTES {
            spares.push(buffer);
        }
    });
}
