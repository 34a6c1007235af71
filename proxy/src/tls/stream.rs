//! A TLS stream after its handshake, made for a proxy: buffers belong to the thread, not to the connection.
//!
//! Ciphertext is read into a buffer that all streams of a thread share and opened from there into the caller's; what is
//! written is sealed into another and sent from there. A stream holds bytes only while a record is in pieces, the
//! caller's buffer is smaller than a record, or the peer does not take what was sealed: an idle one holds its keys, and
//! nothing else. Reads and writes of many records are one system call each.

use std::{
    array,
    cell::Cell,
    io::{self, IoSlice, IoSliceMut},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{
    AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets, PeerMisbehaved, client::ClientConnectionData,
    kernel::KernelConnection, server::ServerConnectionData,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::record::{
    CONTENT_BYTES, Content, EXPANSION, HEADER_BYTES, LONGEST_BYTES, Opener, RECORD_BYTES, Record, Sealer,
};
use crate::net::of_reader;

/// Records of one read or write, at most.
const BATCH: usize = 8;
/// Ciphertext of one read or write, at most.
const BATCH_BYTES: usize = BATCH * RECORD_BYTES;
/// A buffer of so much is filled by one read of bulk data.
pub(crate) const READ_BYTES: usize = BATCH * CONTENT_BYTES + 1;
/// Records without data in a row, after which the peer is taken for one that wants to keep us busy.
const EMPTY_RECORDS: u32 = 32;

/// Handshake messages that may come after the handshake (RFC 8446 4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

thread_local! {
    static SEALED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What a handshake leaves.
pub(super) struct Keys {
    pub(super) secrets: ExtractedSecrets,
    pub(super) session: Session,
}

/// Derives the keys that follow the present ones.
pub(super) enum Session {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Session {
    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(connection) => connection.update_tx_secret(),
            Self::Server(connection) => connection.update_tx_secret(),
        }
    }

    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(connection) => connection.update_rx_secret(),
            Self::Server(connection) => connection.update_rx_secret(),
        }
    }

    /// After how many records a key must be replaced.
    fn records_per_key(&self) -> u64 {
        let suite = match self {
            Self::Client(connection) => connection.negotiated_cipher_suite(),
            Self::Server(connection) => connection.negotiated_cipher_suite(),
        };
        suite.tls13().map_or(0, |suite| suite.common.confidentiality_limit)
    }
}

/// TLS 1.3 over `T`, after the handshake.
pub struct TlsStream<T> {
    io: T,
    // What is moved about is small.
    state: Box<State>,
}

struct State {
    opener: Opener,
    sealer: Sealer,
    session: Session,
    /// Read, and not yet opened.
    sealed: Kept,
    /// Opened, and not yet taken.
    opened: Kept,
    /// Sealed, and not yet sent.
    unsent: Kept,
    reading: Reading,
    /// Found after data that is still to be taken: what reading fails with next.
    failure: Option<Error>,
    /// Bytes of a session ticket that are in records to come.
    ticket_left: usize,
    /// The peer asked for our next key.
    update_asked: bool,
    /// close_notify was sealed.
    closed: bool,
    /// Records without data since the last with some.
    empty: u32,
}

/// How reading goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    /// The peer said close_notify.
    Closed,
    Failed,
}

/// Bytes that could not go on yet; holds no memory once they have gone.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    gone: usize,
}

impl Kept {
    fn left(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.left().is_empty()
    }

    /// Adds to a record in pieces, which will be `whole` long.
    fn append(&mut self, bytes: &[u8], whole: usize) {
        self.bytes.drain(..self.gone);
        self.gone = 0;
        self.bytes.reserve_exact(whole.saturating_sub(self.bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }

    fn advance(&mut self, count: usize) {
        self.gone += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

impl From<&[u8]> for Kept {
    fn from(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), gone: 0 }
    }
}

impl<T> TlsStream<T> {
    /// `sealed`: what was read beyond the handshake.
    pub(super) fn new(io: T, keys: Keys, sealed: &[u8]) -> Result<Self, Error> {
        let Keys { secrets, session } = keys;
        let state = State {
            opener: Opener::new(secrets.rx)?,
            sealer: Sealer::new(secrets.tx)?,
            session,
            sealed: sealed.into(),
            opened: Kept::default(),
            unsent: Kept::default(),
            reading: Reading::Open,
            failure: None,
            ticket_left: 0,
            update_asked: false,
            closed: false,
            empty: 0,
        };
        Ok(Self { io, state: Box::new(state) })
    }

    /// The stream below.
    pub fn get_ref(&self) -> &T {
        &self.io
    }
}

impl State {
    /// Opens records at the beginning of `sealed` into `buf`, as many as are whole and fit; one that is larger than all
    /// of `buf` is opened aside. How many bytes they were. What is wrong after data came is told when that was taken.
    fn open(&mut self, sealed: &[u8], buf: &mut ReadBuf<'_>) -> Result<usize, Error> {
        let before = buf.filled().len();
        let mut used = 0;
        match self.open_records(sealed, buf, &mut used) {
            Err(error) if buf.filled().len() > before => self.failure = Some(error),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        Ok(used)
    }

    fn open_records(&mut self, sealed: &[u8], buf: &mut ReadBuf<'_>, used: &mut usize) -> Result<(), Error> {
        let before = buf.filled().len();
        while self.reading == Reading::Open
            && let Some((record, length)) = Record::first(sealed.get(*used..).unwrap_or_default())?
        {
            if record.room() <= buf.remaining() {
                let (content, count) = self.opener.open(&record, buf.initialize_unfilled())?;
                match content {
                    Content::Data => buf.advance(count),
                    _ => {
                        let inside = buf.initialize_unfilled().get(..count).unwrap_or_default().to_vec();
                        self.control(content, &inside)?;
                    }
                }
                self.count_empty(content == Content::Data && count > 0)?;
                *used += length;
            } else if buf.filled().len() == before {
                let mut opened = vec![0; record.room()];
                let (content, count) = self.opener.open(&record, &mut opened)?;
                opened.truncate(count);
                *used += length;
                self.count_empty(content == Content::Data && count > 0)?;
                if content == Content::Data {
                    self.opened = Kept { bytes: opened, gone: 0 };
                    return Ok(());
                }
                self.control(content, &opened)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn count_empty(&mut self, has_data: bool) -> Result<(), Error> {
        self.empty = if has_data { 0 } else { self.empty + 1 };
        match self.empty > EMPTY_RECORDS {
            true => Err(PeerMisbehaved::TooManyEmptyFragments.into()),
            false => Ok(()),
        }
    }

    /// A record that holds no data.
    fn control(&mut self, content: Content, inside: &[u8]) -> Result<(), Error> {
        match (content, inside) {
            (Content::Alert, &[_, description]) => match AlertDescription::from(description) {
                AlertDescription::CloseNotify => {
                    self.reading = Reading::Closed;
                    Ok(())
                }
                AlertDescription::UserCanceled => Ok(()),
                description => Err(Error::AlertReceived(description)),
            },
            (Content::Handshake, &[_, ..]) => self.handshake(inside),
            _ => Err(unexpected(content)),
        }
    }

    /// Messages of a handshake that is done: all that a record holds, a ticket perhaps not whole.
    fn handshake(&mut self, inside: &[u8]) -> Result<(), Error> {
        let is_client = matches!(self.session, Session::Client(_));
        let mut rest = inside;
        loop {
            let (ticket, after) = rest.split_at(self.ticket_left.min(rest.len()));
            self.ticket_left -= ticket.len();
            rest = match *after {
                [] => return Ok(()),
                // The last in its record, since what follows it is under another key (RFC 8446 5.1).
                [KEY_UPDATE, 0, 0, 1, asked @ (0 | 1)] => {
                    self.opener = Opener::new(self.session.next_to_open()?)?;
                    self.update_asked |= asked == 1;
                    return Ok(());
                }
                // Nothing is resumed. Servers of the mesh send none; others may.
                [NEW_SESSION_TICKET, a, b, c, ref ticket @ ..] if is_client => {
                    self.ticket_left = u32::from_be_bytes([0, a, b, c]) as usize;
                    ticket
                }
                _ => return Err(unexpected(Content::Handshake)),
            };
        }
    }

    /// Seals what `bufs` hold, [`BATCH`] records of it at most. How much it was.
    fn seal(&mut self, bufs: &[IoSlice<'_>], out: &mut Vec<u8>) -> Result<usize, Error> {
        let mut bufs = bufs.iter().map(|buf| &**buf).filter(|buf| !buf.is_empty());
        let mut rest = bufs.next();
        let mut taken = 0;
        for _ in 0..BATCH {
            let begin = out.len();
            out.extend_from_slice(&[0; HEADER_BYTES]);
            let mut room = CONTENT_BYTES;
            while let Some(buf) = rest
                && room > 0
            {
                let (now, later) = buf.split_at(buf.len().min(room));
                out.extend_from_slice(now);
                room -= now.len();
                rest = if later.is_empty() { bufs.next() } else { Some(later) };
            }
            if room == CONTENT_BYTES {
                out.truncate(begin);
                break;
            }
            out.extend_from_slice(&[0; EXPANSION]);
            self.sealer.seal(Content::Data, out.get_mut(begin..).unwrap_or_default())?;
            taken += CONTENT_BYTES - room;
        }
        Ok(taken)
    }

    /// Goes over to the next key, if it is time for one, or the peer asked for it: tells so behind what is unsent.
    fn update_key(&mut self) -> Result<(), Error> {
        if !self.update_asked && self.sealer.sealed() < self.session.records_per_key() {
            return Ok(());
        }
        const UPDATE_NOT_REQUESTED: u8 = 0;
        let update = [KEY_UPDATE, 0, 0, 1, UPDATE_NOT_REQUESTED];
        seal_small(&mut self.sealer, Content::Handshake, &update, &mut self.unsent.bytes)?;
        self.sealer = Sealer::new(self.session.next_to_seal()?)?;
        self.update_asked = false;
        Ok(())
    }

    /// Seals an alert behind what is unsent.
    fn alert(&mut self, description: AlertDescription) {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = if description == AlertDescription::CloseNotify { WARNING } else { FATAL };
        // A key that can seal no more leaves nothing to be said.
        let _ = seal_small(&mut self.sealer, Content::Alert, &[level, u8::from(description)], &mut self.unsent.bytes);
        self.closed = true;
    }
}

fn unexpected(content: Content) -> Error {
    Error::InappropriateMessage { expect_types: Vec::new(), got_type: (content as u8).into() }
}

/// Appends a record that holds `inside`.
fn seal_small(sealer: &mut Sealer, content: Content, inside: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let begin = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    out.extend_from_slice(inside);
    out.extend_from_slice(&[0; EXPANSION]);
    sealer.seal(content, out.get_mut(begin..).unwrap_or_default())
}

/// What the peer is told of an error; None: nothing, it told us.
fn alert_for(error: &Error) -> Option<AlertDescription> {
    match error {
        Error::AlertReceived(_) => None,
        Error::DecryptError => Some(AlertDescription::BadRecordMac),
        Error::PeerSentOversizedRecord | Error::InvalidMessage(_) => Some(AlertDescription::RecordOverflow),
        Error::PeerMisbehaved(_) | Error::InappropriateMessage { .. } => Some(AlertDescription::UnexpectedMessage),
        _ => Some(AlertDescription::InternalError),
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream<T> {
    /// Reads what may hold the next record. Ready: so much of `sealed` holds what was kept and what was read; None: that is still no
    /// whole record, and all of it is kept.
    fn poll_sealed(
        &mut self,
        cx: &mut Context<'_>,
        sealed: &mut Vec<u8>,
        room: usize,
    ) -> Poll<io::Result<Option<usize>>> {
        let kept = self.state.sealed.left();
        let first = kept.len();
        // No more than the caller takes now, or one record.
        let end = (room / CONTENT_BYTES).saturating_mul(RECORD_BYTES).clamp(LONGEST_BYTES, BATCH_BYTES);
        sealed.resize(BATCH_BYTES, 0);
        let mut read = ReadBuf::new(sealed.get_mut(first..end).unwrap_or_default());
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        let read = read.filled();
        if read.is_empty() {
            // Without close_notify it is no end.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let filled = first + read.len();
        // Pieces are put together as they come, and copied once more when they are all there.
        if let Ok(Some(whole)) = Record::length(kept)
            && whole > filled
        {
            self.state.sealed.append(read, whole);
            return Poll::Ready(Ok(None));
        }
        if let Some(begin) = sealed.get_mut(..first) {
            begin.copy_from_slice(kept);
        }
        Poll::Ready(Ok(Some(filled)))
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Vec<u8>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            if !self.state.opened.is_empty() {
                let opened = self.state.opened.left();
                let now = opened.get(..buf.remaining()).unwrap_or(opened);
                buf.put_slice(now);
                let count = now.len();
                self.state.opened.advance(count);
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match self.state.reading {
                Reading::Open => {}
                Reading::Closed => return Poll::Ready(Ok(())),
                Reading::Failed => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
            if let Some(error) = self.state.failure.take() {
                return Poll::Ready(Err(self.fail(cx, error)));
            }
            let opened = match Record::first(self.state.sealed.left()) {
                Ok(None) => {
                    let Some(filled) = ready!(self.poll_sealed(cx, scratch, buf.remaining()))? else { continue };
                    let sealed = scratch.get(..filled).unwrap_or_default();
                    self.state.open(sealed, buf).map(|used| {
                        self.state.sealed = sealed.get(used..).unwrap_or_default().into();
                    })
                }
                Ok(Some(_)) => {
                    let sealed = mem::take(&mut self.state.sealed);
                    let opened = self.state.open(sealed.left(), buf);
                    self.state.sealed = sealed;
                    opened.map(|used| self.state.sealed.advance(used))
                }
                Err(error) => Err(error),
            };
            if let Err(error) = opened {
                return Poll::Ready(Err(self.fail(cx, error)));
            }
        }
    }

    /// The peer is told why, if it can be told at once.
    fn fail(&mut self, cx: &mut Context<'_>, error: Error) -> io::Error {
        self.state.reading = Reading::Failed;
        self.state.sealed = Kept::default();
        if let Some(alert) = alert_for(&error)
            && !self.state.closed
        {
            self.state.alert(alert);
            let _ = self.poll_send(cx);
        }
        // RFC 8446 6.2: neither side sends any more, whoever found fault.
        self.state.closed = true;
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Sends what is unsent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.state.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, self.state.unsent.left()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.state.unsent.advance(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready: more can be sealed, with the key that is due.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // One new key at a time waits to be told: a peer that asks for more and does not read makes nothing grow.
        ready!(self.poll_send(cx))?;
        self.state.update_key().map_err(io::Error::other)?;
        self.poll_send(cx)
    }

    /// Seals into `out` and sends from there; what the socket does not take is kept.
    fn poll_seal(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_writable(cx))?;
        out.clear();
        let taken = self.state.seal(bufs, out).map_err(io::Error::other)?;
        self.send(cx, out)?;
        Poll::Ready(Ok(taken))
    }

    /// Sends what was sealed; what the socket does not take is kept.
    fn send(&mut self, cx: &mut Context<'_>, mut sealed: &[u8]) -> io::Result<()> {
        while !sealed.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, sealed)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) => sealed = sealed.get(count..).unwrap_or_default(),
                Poll::Pending => {
                    self.state.unsent = sealed.into();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads from `source`, right into the places of records, seals it there and sends it. How much it was; 0: `source`
    /// is at its end. What is sealed and cannot be sent is kept, and nothing is read until it is sent.
    pub(crate) fn poll_write_from(&mut self, cx: &mut Context<'_>, source: &TcpStream) -> Poll<io::Result<usize>> {
        ready!(self.poll_writable(cx))?;
        let mut scratch = SEALED.take();
        let polled = self.poll_seal_from(cx, &mut scratch, source);
        SEALED.set(scratch);
        polled
    }

    fn poll_seal_from(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
        source: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        out.resize(BATCH_BYTES, 0);
        let count = loop {
            ready!(source.poll_read_ready(cx))?;
            let mut contents = out.chunks_exact_mut(RECORD_BYTES).map(content_of);
            let mut contents: [IoSliceMut<'_>; BATCH] =
                array::from_fn(|_| contents.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            match source.try_read_vectored(&mut contents) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(of_reader(error))),
            }
        };
        let mut rest = count;
        let mut end = 0;
        for record in out.chunks_exact_mut(RECORD_BYTES) {
            if rest == 0 {
                break;
            }
            let content = rest.min(CONTENT_BYTES);
            let record = record.get_mut(..HEADER_BYTES + content + EXPANSION).unwrap_or_default();
            self.state.sealer.seal(Content::Data, record).map_err(io::Error::other)?;
            end += record.len();
            rest -= content;
        }
        self.send(cx, out.get(..end).unwrap_or_default())?;
        Poll::Ready(Ok(count))
    }
}

/// Where the content of a full record is.
fn content_of(record: &mut [u8]) -> IoSliceMut<'_> {
    IoSliceMut::new(record.get_mut(HEADER_BYTES..HEADER_BYTES + CONTENT_BYTES).unwrap_or_default())
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // Taken out of its place meanwhile, so that nothing can find it in use.
        let mut scratch = READ.take();
        let polled = self.get_mut().poll_open(cx, &mut scratch, buf);
        READ.set(scratch);
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut scratch = SEALED.take();
        let polled = self.get_mut().poll_seal(cx, &mut scratch, bufs);
        SEALED.set(scratch);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Says close_notify, then closes the stream below for writing.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.state.closed {
            this.state.alert(AlertDescription::CloseNotify);
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            // The peer is gone already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for TlsStream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("io", &self.io).field("reading", &self.state.reading).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
