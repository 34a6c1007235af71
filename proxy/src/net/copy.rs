//! Relays bytes both ways: half-close, idle timeout, byte counts as they happen.
//!
//! Each thread has one scratch buffer, large enough for bulk data, that all its relays read into; what
//! the other side does not take at once is kept, and only that. So an idle relay holds no buffer at all,
//! a busy one makes few calls, and a slow reader costs [`SCRATCH_BYTES`] per direction at most.
//!
//! Two ways are shorter. From a socket into TLS, bytes are read into the records that they are sealed in
//! ([`Io::poll_write_from`]). Bulk data from socket to socket stays in the kernel ([`splice`]).

mod splice;

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Instant, sleep},
};

use self::splice::Pipe;
use super::{Io, of_reader};
use crate::tls;

/// Largest single read, and the most kept for a side that does not read.
const SCRATCH_BYTES: usize = tls::READ_BYTES;
/// Reads of one direction before the other has its turn, and other tasks theirs.
const READS_PER_TURN: usize = 8;
/// How long nothing may move when the server takes nothing any more.
const LAST_WORDS: Duration = Duration::from_secs(5);

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes moved so far; readable while the relay runs.
#[derive(Debug, Default)]
pub struct Moved {
    pub to_server: Cell<u64>,
    pub to_client: Cell<u64>,
}

/// Relays until both sides are done, either fails, or nothing moves for `idle`. EOF on one side is
/// passed on as a half-close (for TLS: close_notify) and the other direction goes on.
///
/// A side that waits for more when the relay fails, or is dropped, is reset: what it got is not the whole. A side whose
/// end was passed on is closed the ordinary way, and loses nothing. A server that closes over what it did not read (why, its last
/// words may say) is heard out first.
///
/// # Errors
/// The first error of either side; `TimedOut` after `idle`.
pub async fn relay<C: Io, S: Io>(client: C, server: S, idle: Duration, moved: &Moved) -> io::Result<()> {
    let (to_server, to_client) = (Direction::default(), Direction::default());
    let mut ends = Ends { client, server, to_server, to_client, deaf: None };
    let mut last_move = Instant::now();
    let mut timer = pin!(sleep(idle));
    poll_fn(|cx| {
        let Ends { client, server, to_server, to_client, deaf } = &mut ends;
        let before = moved.to_server.get().wrapping_add(moved.to_client.get());
        let up = match deaf {
            None => to_server.poll(cx, client, server, &moved.to_server),
            Some(_) => Ok(Poll::Ready(())),
        };
        let up = match up {
            Err(error) if is_of_writing(&error) => {
                // A socket that had its end before says EPIPE.
                to_client.cut_short = error.kind() != io::ErrorKind::BrokenPipe;
                *deaf = Some(error);
                last_move = Instant::now();
                timer.as_mut().reset(last_move + idle.min(LAST_WORDS));
                Poll::Ready(())
            }
            polled => polled?,
        };
        let down = to_client.poll(cx, server, client, &moved.to_client)?;
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(deaf.take().map_or(Ok(()), Err));
        }
        if moved.to_server.get().wrapping_add(moved.to_client.get()) != before {
            last_move = Instant::now();
        }
        // Nobody else asks a side whose end came already, and which is written nothing.
        if client.poll_broken(cx).is_ready() || (deaf.is_none() && server.poll_broken(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        // The timer is moved when it fires, not at each byte.
        while timer.as_mut().poll(cx).is_ready() {
            let deadline = last_move + if deaf.is_some() { idle.min(LAST_WORDS) } else { idle };
            if deadline <= Instant::now() {
                let idle = || io::Error::new(io::ErrorKind::TimedOut, "nothing moved either way");
                return Poll::Ready(Err(deaf.take().unwrap_or_else(idle)));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    })
    .await
}

/// Whether a direction failed because its writer takes nothing any more: see [`of_reader`].
fn is_of_writing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Both sides of a relay, and how far each direction is.
struct Ends<C: Io, S: Io> {
    client: C,
    server: S,
    to_server: Direction,
    to_client: Direction,
    /// Why nothing can be written to the server any more.
    deaf: Option<io::Error>,
}

impl<C: Io, S: Io> Drop for Ends<C, S> {
    fn drop(&mut self) {
        if self.to_client.state != State::Done {
            self.client.reset();
        }
        if self.to_server.state != State::Done {
            self.server.reset();
        }
    }
}

/// One direction of a relay.
#[derive(Default)]
struct Direction {
    /// Read, and not yet taken by the writer.
    kept: Bytes,
    /// Spliced, and not yet taken by the writer.
    pipe: Option<Pipe>,
    bulk: Bulk,
    /// The writer may hold bytes back (TLS records).
    unflushed: bool,
    /// The reader broke off: its end is not to be passed on as one.
    cut_short: bool,
    state: State,
}

/// Whether so much comes at once that splicing is cheaper than copying.
#[derive(Default)]
struct Bulk {
    /// Large reads in a row; small ones while it is bulk.
    run: u8,
    is_bulk: bool,
}

impl Bulk {
    /// A read that makes splicing worth its calls.
    const LARGE_BYTES: usize = 32 * 1024;
    /// So many in a row are needed to change over, and small ones to change back.
    const RUN: u8 = 4;

    fn read(&mut self, count: usize) {
        if (count >= Self::LARGE_BYTES) == self.is_bulk {
            self.run = 0;
        } else {
            self.run += 1;
            if self.run == Self::RUN {
                *self = Self { run: 0, is_bulk: !self.is_bulk };
            }
        }
    }
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader is at its end; what is kept, and then the end, must reach the writer.
    Ending,
    Done,
}

impl Direction {
    /// Moves what can be moved now. Ready: the end was passed on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &Cell<u64>,
    ) -> io::Result<Poll<()>>
    where
        R: Io,
        W: Io,
    {
        match self.poll_move(cx, reader, writer, moved) {
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn poll_move<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &Cell<u64>,
    ) -> Poll<io::Result<()>>
    where
        R: Io,
        W: Io,
    {
        if self.state == State::Done {
            return Poll::Ready(Ok(()));
        }
        while !self.kept.is_empty() {
            let count = ready!(Pin::new(&mut *writer).poll_write(cx, &self.kept))?;
            self.wrote(count, moved)?;
            self.kept.advance(count);
        }
        self.kept = Bytes::new();
        if self.state == State::Open {
            match self.poll_through(cx, reader, writer, moved) {
                Poll::Ready(Ok(())) => self.state = State::Ending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.unflushed && self.kept.is_empty() {
                        ready!(Pin::new(&mut *writer).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.cut_short {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
        self.state = State::Done;
        Poll::Ready(Ok(()))
    }

    /// Reads and writes by the shortest way there is. Ready: the reader is at its end. Pending: the reader has nothing,
    /// or the writer takes no more.
    fn poll_through<R: Io, W: Io>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        if let Some(source) = reader.tcp() {
            if let Some(sink) = writer.tcp()
                && (self.bulk.is_bulk || self.pipe.is_some())
                && let Some(polled) = self.poll_splice(cx, source, sink, moved)
            {
                return polled;
            }
            for _ in 0..READS_PER_TURN {
                match writer.poll_write_from(cx, source) {
                    Some(written) => match ready!(written)? {
                        0 => return Poll::Ready(Ok(())),
                        count => self.wrote(count, moved)?,
                    },
                    None => return self.poll_copy(cx, reader, writer, moved),
                }
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.poll_copy(cx, reader, writer, moved)
    }

    /// Within the kernel. None: there is no pipe to be had, and bytes are to be copied.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
        moved: &Cell<u64>,
    ) -> Option<Poll<io::Result<()>>> {
        let mut pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => match Pipe::take() {
                Ok(pipe) => pipe,
                Err(error) => {
                    tracing::debug!(%error, "no pipe for bulk data: it is copied");
                    self.bulk = Bulk::default();
                    return None;
                }
            },
        };
        let mut polled = Poll::Pending;
        for _ in 0..READS_PER_TURN {
            polled = pipe.poll_move(cx, source, sink);
            match polled {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(count)) => {
                    moved.set(moved.get().wrapping_add(count as u64));
                    self.bulk.read(count);
                }
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        self.pipe = pipe.give_back();
        Some(match polled {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(_)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        })
    }

    fn poll_copy<R: Io, W: Io>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &Cell<u64>,
    ) -> Poll<io::Result<()>> {
        // Taken out of its place meanwhile, so that nothing can find it in use.
        let mut scratch = SCRATCH.take();
        scratch.resize(SCRATCH_BYTES, 0);
        let polled = self.poll_copy_through(cx, reader, writer, &mut scratch, moved);
        SCRATCH.set(scratch);
        polled
    }

    /// Reads into `scratch` and writes from there. Ready: the reader is at its end. Pending: the reader has
    /// nothing, or the writer takes no more and the rest is kept.
    fn poll_copy_through<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        scratch: &mut [u8],
        moved: &Cell<u64>,
    ) -> Poll<io::Result<()>>
    where
        R: Io,
        W: Io,
    {
        for _ in 0..READS_PER_TURN {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut buffer)).map_err(of_reader)?;
            let mut read = buffer.filled();
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.bulk.read(read.len());
            while !read.is_empty() {
                match Pin::new(&mut *writer).poll_write(cx, read)? {
                    Poll::Ready(count) => {
                        self.wrote(count, moved)?;
                        read = read.get(count..).unwrap_or_default();
                    }
                    Poll::Pending => {
                        self.kept = Bytes::copy_from_slice(read);
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn wrote(&mut self, count: usize, moved: &Cell<u64>) -> io::Result<()> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        moved.set(moved.get().wrapping_add(count as u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
