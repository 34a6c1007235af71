//! One stream, as its connection and its handles share it.

use std::task::Waker;

use super::error::StreamError;
use crate::http::{
    head::{Fields, ResponseHead},
    informational::Heads,
};

/// Where a stream is among its connection's.
pub(super) type Key = u32;

/// The handle that sends lives.
pub(super) const SENDER: u8 = 1;
/// The handle that receives lives.
pub(super) const RECEIVER: u8 = 2;

#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// [`SENDER`] and [`RECEIVER`].
    pub(super) handles: u8,
    /// Counts among the open ones: not ended both ways, nor reset.
    pub(super) open: bool,
    /// Why it ended early.
    pub(super) error: Option<StreamError>,
    /// Server: the read that its head came with.
    pub(super) born: u32,
    pub(super) receive: Receive,
    pub(super) send: Send,
}

#[derive(Debug, Default)]
pub(super) struct Receive {
    /// Informational ones that came; mostly none did.
    pub(super) informational: Option<Box<Heads>>,
    /// The response's, not taken yet.
    pub(super) head: Option<ResponseHead>,
    /// The head of a request, or a response's final one, has come.
    pub(super) begun: bool,
    pub(super) data: Vec<u8>,
    pub(super) trailers: Option<Box<Fields>>,
    /// END_STREAM has come.
    pub(super) ended: bool,
    /// The error was told.
    pub(super) told: bool,
    /// A response without body, whatever its head says (HEAD).
    pub(super) bodiless: bool,
    /// The answer to a CONNECT: a successful one's length means nothing.
    pub(super) tunnel: bool,
    /// As content-length states it.
    pub(super) length: Option<u64>,
    pub(super) received: u64,
    /// What the peer may still send.
    pub(super) left: i64,
    /// Taken since the peer was last told that it may send more.
    pub(super) taken: u32,
    pub(super) waker: Option<Waker>,
}

#[derive(Debug, Default)]
pub(super) struct Send {
    /// The head of a request, or a response's final one, was sent.
    pub(super) begun: bool,
    /// END_STREAM was sent.
    pub(super) ended: bool,
    /// What the peer takes.
    pub(super) left: i64,
    /// Waits for the connection's window, or room.
    pub(super) queued: bool,
    /// Its turn has come.
    pub(super) granted: bool,
    /// Where its head ends in the connection's output.
    pub(super) head_end: u64,
    pub(super) waker: Option<Waker>,
}

impl Stream {
    /// Whoever waits for something to come.
    pub(super) fn wake_receiver(&mut self) {
        if let Some(waker) = self.receive.waker.take() {
            waker.wake();
        }
    }

    /// Whoever waits to send, or for a reset.
    pub(super) fn wake_sender(&mut self) {
        if let Some(waker) = self.send.waker.take() {
            waker.wake();
        }
    }

    /// Whether the handle that receives is gone, so that what comes is of no use.
    pub(super) fn is_unread(&self) -> bool {
        self.handles & RECEIVER == 0
    }
}
