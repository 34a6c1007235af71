//! Socket to socket through a pipe: the bytes stay in the kernel (splice(2)).

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream};

use crate::net::of_reader;

/// What a pipe is to hold, in bytes; the kernel may give less. Received data comes in pieces that fill a page or less
/// each, so that it often holds less, too.
const PIPE_BYTES: usize = 256 * 1024;
/// Empty pipes that a thread keeps for the next relay.
const SPARE_PIPES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and how much is in it. Empty ones belong to the thread, so that a relay has one only while its writer takes
/// less than its reader gives.
pub(super) struct Pipe {
    exit: OwnedFd,
    entry: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty one.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(spare);
        }
        let (exit, entry) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // A smaller one does, too: unprivileged users may have so much in pipes and no more.
        let _ = fcntl_setpipe_size(&entry, PIPE_BYTES);
        Ok(Self { exit, entry, held: 0 })
    }

    /// Itself, if it is not empty.
    pub(super) fn give_back(self) -> Option<Self> {
        if self.held > 0 {
            return Some(self);
        }
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_PIPES {
                spare.push(self);
            }
        });
        None
    }

    /// Moves what can be moved at once; how much went to `sink`. 0: `source` is at its end, and nothing is held.
    pub(super) fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
        while self.held == 0 {
            ready!(source.poll_read_ready(cx))?;
            let fill = || Ok(splice(source, None, &self.entry, None, PIPE_BYTES, FLAGS)?);
            match source.try_io(Interest::READABLE, fill) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(count) => self.held = count,
                // The pipe is empty, so it is the socket that has nothing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(of_reader(error))),
            }
        }
        let mut moved = 0;
        while self.held > 0 {
            if moved == 0 {
                ready!(sink.poll_write_ready(cx))?;
            }
            let drain = || Ok(splice(&self.exit, None, sink, None, self.held, FLAGS)?);
            match sink.try_io(Interest::WRITABLE, drain) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.held = self.held.saturating_sub(count);
                    moved += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && moved == 0 => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A splice that moves some does not tell what ended it, and takes it: a reset is told as EPIPE then.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe && moved > 0 => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(moved))
    }
}
