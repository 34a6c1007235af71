//! What comes in: each frame checked, and what it means for the connection's state. No I/O.

mod control;

use std::time::Instant;

use super::{
    error::{Code, Fault, Kind, StreamError},
    flood::Rate,
    frame::{self, Header, Part, Reader},
    heads::{Most, Read, RequestReader, ResponseReader, TrailerReader, content_length},
    hpack::{Decoder, TABLE_BYTES},
    slot::Key,
    state::{LAST_STREAM, Role, State},
};
use crate::{
    config::limits,
    http::head::{Fields, RequestHead, Unfit},
};

/// Payload of the ping that asks whether our first GOAWAY has arrived, and of those that ask whether the peer lives.
pub(super) const DRAIN_PING: [u8; 8] = *b"leno end";
pub(super) const LIVE_PING: [u8; 8] = *b"leno now";
/// By how much, at least, room grows for bytes that nobody has taken yet.
const GROWTH_BYTES: usize = 32 * 1024;
/// Compressed bytes of one header block: no block within the limits of a head has more.
const BLOCK_BYTES: usize = 2 * limits::HEAD_BYTES;
/// Frames of one header block.
const BLOCK_FRAMES: usize = 128;
/// Frames per second that carry nothing and change nothing.
const USELESS_FRAMES: u32 = 10_000;

/// A request that came, not handed out yet.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) key: Key,
    pub(super) head: RequestHead,
    /// It is to be refused, and why.
    pub(super) refused: Option<Unfit>,
}

/// What a client sent.
pub(super) enum Came {
    Request(Arrived),
    /// One that was reset, and why; what could be read of its head.
    Malformed(RequestHead, &'static str),
}

/// One connection's reading side.
pub(super) struct Intake {
    reader: Reader,
    decoder: Decoder,
    /// Of the client's preface, still to come.
    preface: &'static [u8],
    /// The peer's first SETTINGS have come.
    settled: bool,
    block: Option<Block>,
    /// Bytes of the DATA frame in progress.
    data: u32,
    /// In order.
    pub(super) arrived: Vec<Arrived>,
    /// Requests that were reset, not told of yet.
    pub(super) malformed: Vec<(RequestHead, &'static str)>,
    useless: Rate,
    rapid_resets: Rate,
    early_resets: Rate,
    faults: Rate,
    /// Our first GOAWAY has arrived.
    pub(super) drain_seen: bool,
    /// The last stream taken, once our final GOAWAY is sent.
    pub(super) last_taken: u32,
    /// Something has come since this was last cleared.
    pub(super) heard: bool,
    /// How often something was read.
    turn: u32,
    /// Frames and whole header blocks that have come.
    pub(super) complete: u64,
}

/// A header block in progress.
struct Block {
    id: u32,
    end: bool,
    bytes: Vec<u8>,
    frames: usize,
}

impl Intake {
    pub(super) fn new(state: &State) -> Self {
        Self {
            reader: Reader::new(state.settings.frame_bytes),
            decoder: Decoder::new(TABLE_BYTES),
            preface: if state.role == Role::Server { frame::PREFACE } else { &[] },
            settled: false,
            block: None,
            data: 0,
            arrived: Vec::new(),
            malformed: Vec::new(),
            useless: Rate::new(USELESS_FRAMES),
            rapid_resets: Rate::new(limits::H2_RAPID_RESETS),
            early_resets: Rate::new(limits::H2_EARLY_RESETS),
            faults: Rate::new(limits::H2_LOCAL_RESETS as u32),
            drain_seen: false,
            last_taken: LAST_STREAM,
            heard: false,
            turn: 0,
            complete: 0,
        }
    }

    /// Whether the peer owes the rest of a frame (other than DATA) or head that it began.
    pub(super) fn is_amid(&self) -> bool {
        !self.preface.is_empty() || !self.settled || self.block.is_some() || self.reader.is_amid()
    }

    /// All that was read.
    pub(super) fn feed(&mut self, state: &mut State, mut input: &[u8]) -> Result<(), Fault> {
        self.heard = true;
        self.turn = self.turn.wrapping_add(1);
        if !self.preface.is_empty() {
            let count = self.preface.len().min(input.len());
            let (read, rest) = input.split_at(count);
            let (expected, missing) = self.preface.split_at(count);
            if read != expected {
                return Err(Fault::protocol("no HTTP/2 preface"));
            }
            self.preface = missing;
            input = rest;
        }
        // The reader lends what it kept: it is out of its place meanwhile.
        let mut reader = std::mem::replace(&mut self.reader, Reader::new(0));
        let fed = self.feed_frames(state, &mut reader, input);
        self.reader = reader;
        fed
    }

    fn feed_frames(&mut self, state: &mut State, reader: &mut Reader, mut input: &[u8]) -> Result<(), Fault> {
        while let Some(part) = reader.next(&mut input)? {
            match part {
                Part::Data { header, bytes, begins, ends } => {
                    if begins {
                        self.check_order(header)?;
                    }
                    self.data(state, header, bytes, begins, ends)?;
                }
                Part::Frame(header, payload) => {
                    self.check_order(header)?;
                    self.frame(state, header, payload)?;
                    self.complete += u64::from(self.block.is_none());
                }
            }
        }
        Ok(())
    }

    fn check_order(&mut self, header: Header) -> Result<(), Fault> {
        if !self.settled && (header.kind != frame::SETTINGS || header.has(frame::ACK)) {
            return Err(Fault::protocol("no SETTINGS at first"));
        }
        let continues = header.kind == frame::CONTINUATION;
        match &self.block {
            Some(block) if !continues || header.stream != block.id => Err(Fault::protocol("a header block broken off")),
            None if continues => Err(Fault::protocol("CONTINUATION of nothing")),
            _ => Ok(()),
        }
    }

    fn frame(&mut self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
        match header.kind {
            frame::HEADERS => self.headers(state, header, payload),
            frame::CONTINUATION => self.continuation(state, header, payload),
            frame::RST_STREAM => self.rst_stream(state, header, payload),
            frame::SETTINGS => self.settings(state, header, payload),
            frame::PING => self.ping(state, header, payload),
            frame::GOAWAY => control::goaway(state, header, payload),
            frame::WINDOW_UPDATE => self.window_update(state, header, payload),
            frame::LOAD => self.load(state, header, payload),
            frame::PRIORITY if header.stream == 0 => Err(Fault::protocol("PRIORITY on stream 0")),
            frame::PRIORITY if payload.len() != 5 => {
                Err(Fault::new(Code::FRAME_SIZE_ERROR, "PRIORITY of another length than 5"))
            }
            frame::PUSH_PROMISE => Err(Fault::protocol("PUSH_PROMISE, which nobody allowed")),
            // PRIORITY is deprecated, and of others we know nothing.
            _ => self.useless(),
        }
    }

    /// Counts a frame that carries nothing and changes nothing.
    fn useless(&mut self) -> Result<(), Fault> {
        if self.useless.is_beyond(Instant::now) { Err(Fault::flood("too many frames of no use")) } else { Ok(()) }
    }

    /// Answers a stream that cannot be: an error of the stream alone, unless there are too many.
    fn refuse(&mut self, state: &mut State, id: u32, code: Code) -> Result<(), Fault> {
        state.send_reset(id, code);
        state.answers += frame::HEADER_BYTES + 4;
        if self.faults.is_beyond(Instant::now) {
            return Err(Fault::flood("too many malformed streams"));
        }
        Ok(())
    }

    /// As [`Self::refuse`], for a stream that is open.
    fn fail(&mut self, state: &mut State, key: Key, code: Code, what: &'static str) -> Result<(), Fault> {
        state.reset(key, code, StreamError::new(Kind::Malformed, code, what));
        state.answers += frame::HEADER_BYTES + 4;
        if self.faults.is_beyond(Instant::now) { Err(Fault::flood("too many malformed streams")) } else { Ok(()) }
    }

    /// A stream that nobody has opened.
    fn is_unknown(state: &State, id: u32) -> bool {
        match state.role {
            Role::Client => id.is_multiple_of(2) || id >= state.next_id,
            Role::Server => id.is_multiple_of(2) || id > state.last_id,
        }
    }

    // DATA.

    fn data(&mut self, state: &mut State, header: Header, bytes: &[u8], begins: bool, ends: bool) -> Result<(), Fault> {
        let id = header.stream;
        if begins {
            self.data = 0;
            self.data_begins(state, header)?;
        }
        self.data += bytes.len() as u32;
        let padding = if ends { (header.length - self.data.min(header.length)) as usize } else { 0 };
        let Some(key) = state.key_of(id) else {
            // Reset meanwhile, or before.
            state.take(bytes.len() + padding);
            return Ok(());
        };
        let Some(stream) = state.stream(key) else { return Ok(()) };
        let unread = stream.is_unread();
        let receive = &mut stream.receive;
        receive.received += bytes.len() as u64;
        let beyond = receive.length.is_some_and(|length| receive.received > length);
        if beyond || (receive.bodiless && !bytes.is_empty()) {
            state.take(bytes.len() + padding);
            return self.fail(state, key, Code::PROTOCOL_ERROR, "more body than content-length says");
        }
        if unread {
            state.take(bytes.len());
        } else if !bytes.is_empty() {
            // Little more than what is there: it may stay for long, and is bounded by the window.
            if receive.data.capacity() - receive.data.len() < bytes.len() {
                let more = if receive.data.is_empty() { 0 } else { GROWTH_BYTES };
                receive.data.reserve_exact(bytes.len().max(more));
            }
            receive.data.extend_from_slice(bytes);
            stream.wake_receiver();
        }
        state.take_of(key, padding);
        if ends && header.has(frame::END_STREAM) { self.end_stream(state, key) } else { Ok(()) }
    }

    fn data_begins(&mut self, state: &mut State, header: Header) -> Result<(), Fault> {
        let length = i64::from(header.length);
        if length > state.receive_left {
            return Err(Fault::new(Code::FLOW_CONTROL_ERROR, "more DATA than the connection's window"));
        }
        state.receive_left -= length;
        if length == 0 && !header.has(frame::END_STREAM) {
            self.useless()?;
        }
        let Some(key) = state.key_of(header.stream) else {
            if Self::is_unknown(state, header.stream) {
                return Err(Fault::protocol("DATA on a stream that is not open"));
            }
            if !state.was_reset(header.stream) {
                state.send_reset(header.stream, Code::STREAM_CLOSED);
                state.answers += frame::HEADER_BYTES + 4;
            }
            return Ok(());
        };
        let Some(receive) = state.stream(key).map(|stream| &mut stream.receive) else { return Ok(()) };
        let (ended, begun) = (receive.ended, receive.begun);
        receive.left -= length;
        if ended {
            return self.fail(state, key, Code::STREAM_CLOSED, "DATA after END_STREAM");
        }
        if !begun {
            return self.fail(state, key, Code::PROTOCOL_ERROR, "DATA before a response's head");
        }
        if receive.left < 0 {
            return self.fail(state, key, Code::FLOW_CONTROL_ERROR, "more DATA than the stream's window");
        }
        Ok(())
    }

    /// END_STREAM has come.
    fn end_stream(&mut self, state: &mut State, key: Key) -> Result<(), Fault> {
        let Some(stream) = state.stream(key) else { return Ok(()) };
        if !stream.receive.bodiless && stream.receive.length.is_some_and(|length| length != stream.receive.received) {
            return self.fail(state, key, Code::PROTOCOL_ERROR, "less body than content-length says");
        }
        state.end_receive(key);
        Ok(())
    }

    // Header blocks.

    fn headers(&mut self, state: &mut State, header: Header, mut payload: &[u8]) -> Result<(), Fault> {
        if header.stream == 0 {
            return Err(Fault::protocol("HEADERS on stream 0"));
        }
        let short = Fault::new(Code::FRAME_SIZE_ERROR, "HEADERS too short");
        let mut padding = 0;
        if header.has(frame::PADDED) {
            let (&length, rest) = payload.split_first().ok_or(short)?;
            (padding, payload) = (usize::from(length), rest);
        }
        if header.has(frame::WITH_PRIORITY) {
            payload = payload.get(5..).ok_or(short)?;
        }
        let length = payload.len().checked_sub(padding).ok_or(Fault::protocol("more padding than payload"))?;
        let block = payload.get(..length).unwrap_or_default();
        let end = header.has(frame::END_STREAM);
        if header.has(frame::END_HEADERS) {
            return self.block(state, header.stream, end, block);
        }
        self.block = Some(Block { id: header.stream, end, bytes: block.to_vec(), frames: 1 });
        Ok(())
    }

    fn continuation(&mut self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
        let Some(mut block) = self.block.take() else { return Ok(()) };
        block.bytes.extend_from_slice(payload);
        block.frames += 1;
        if block.bytes.len() > BLOCK_BYTES || block.frames > BLOCK_FRAMES {
            return Err(Fault::flood("a header block without end"));
        }
        if header.has(frame::END_HEADERS) {
            return self.block(state, block.id, block.end, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A complete header block. It is always read, because the ones that follow depend on it.
    fn block(&mut self, state: &mut State, id: u32, end: bool, block: &[u8]) -> Result<(), Fault> {
        let key = state.key_of(id);
        match (state.role, key) {
            (Role::Server, None) if id % 2 == 1 && id > state.last_id => self.request(state, id, end, block),
            (Role::Client, Some(key)) if !state.stream(key).is_some_and(|stream| stream.receive.begun) => {
                self.response(state, key, end, block)
            }
            (_, Some(key)) => self.trailers(state, key, end, block),
            (_, None) => {
                if Self::is_unknown(state, id) {
                    return Err(Fault::protocol("HEADERS on a stream that nobody can have opened"));
                }
                self.decode(block, |_, _, _| {})?;
                if !state.was_reset(id) {
                    state.send_reset(id, Code::STREAM_CLOSED);
                    state.answers += frame::HEADER_BYTES + 4;
                }
                Ok(())
            }
        }
    }

    fn decode(&mut self, block: &[u8], field: impl FnMut(&[u8], &[u8], bool)) -> Result<(), Fault> {
        let unreadable = Fault::new(Code::COMPRESSION_ERROR, "a header block that cannot be read");
        self.decoder.decode(block, field).map_err(|_| unreadable)
    }

    fn request(&mut self, state: &mut State, id: u32, end: bool, block: &[u8]) -> Result<(), Fault> {
        state.last_id = id;
        let mut reader = RequestReader::new(most(state));
        self.decode(block, |name, value, sealed| reader.field(name, value, sealed))?;
        if id > self.last_taken {
            // Told so by our GOAWAY.
            return Ok(());
        }
        if state.streams() >= state.settings.most_streams as usize {
            state.send_reset(id, Code::REFUSED_STREAM);
            state.answers += frame::HEADER_BYTES + 4;
            // Before it knows our settings, a client may open more than we take.
            return if state.acknowledged && self.faults.is_beyond(Instant::now) {
                Err(Fault::flood("more streams than announced"))
            } else {
                Ok(())
            };
        }
        let (head, refused, length) = match reader.finish(state.settings.connect_protocol) {
            Read::Request(head, refused) => match length_of(&head.fields, end) {
                Ok(length) => (head, refused, length),
                Err(why) => return self.malformed(state, id, head, why),
            },
            Read::Malformed(head, why) => return self.malformed(state, id, head, why),
        };
        let key = state.add(id);
        if let Some(stream) = state.stream(key) {
            stream.born = self.turn;
            stream.receive.begun = true;
            stream.receive.ended = end;
            stream.receive.length = length;
        }
        self.arrived.push(Arrived { key, head, refused });
        if refused == Some(Unfit::TooLarge) && self.faults.is_beyond(Instant::now) {
            return Err(Fault::flood("too many heads beyond the limits"));
        }
        Ok(())
    }

    fn malformed(&mut self, state: &mut State, id: u32, head: RequestHead, why: &'static str) -> Result<(), Fault> {
        tracing::debug!(why, "malformed HTTP/2 request");
        self.malformed.push((head, why));
        self.refuse(state, id, Code::PROTOCOL_ERROR)
    }

    fn response(&mut self, state: &mut State, key: Key, end: bool, block: &[u8]) -> Result<(), Fault> {
        let mut reader = ResponseReader::new(most(state));
        self.decode(block, |name, value, sealed| reader.field(name, value, sealed))?;
        let Some(stream) = state.stream(key) else { return Ok(()) };
        let head = match reader.finish() {
            Ok(head) => head,
            Err(Unfit::Malformed(why)) => return self.fail(state, key, Code::PROTOCOL_ERROR, why),
            Err(Unfit::TooLarge) => return self.fail(state, key, Code::CANCEL, "a response head beyond the limits"),
        };
        let receive = &mut stream.receive;
        if head.status.is_informational() {
            if end {
                return self.fail(state, key, Code::PROTOCOL_ERROR, "an informational response that ends");
            }
            receive.informational.get_or_insert_default().push(head);
        } else {
            match content_length(&head.fields) {
                Ok(length) => receive.length = length.filter(|_| !(receive.tunnel && head.status.is_success())),
                Err(_) => return self.fail(state, key, Code::PROTOCOL_ERROR, "a malformed content-length"),
            }
            receive.begun = true;
            receive.bodiless |= matches!(head.status.as_u16(), 204 | 304);
            receive.head = Some(head);
        }
        stream.wake_receiver();
        if end { self.end_stream(state, key) } else { Ok(()) }
    }

    fn trailers(&mut self, state: &mut State, key: Key, end: bool, block: &[u8]) -> Result<(), Fault> {
        let mut reader = TrailerReader::new(most(state));
        self.decode(block, |name, value, sealed| reader.field(name, value, sealed))?;
        let Some(stream) = state.stream(key) else { return Ok(()) };
        if stream.receive.ended {
            return self.fail(state, key, Code::STREAM_CLOSED, "HEADERS after END_STREAM");
        }
        if !end {
            return self.fail(state, key, Code::PROTOCOL_ERROR, "trailers that do not end the stream");
        }
        match reader.finish() {
            Ok(trailers) => {
                if !trailers.is_empty() {
                    stream.receive.trailers = Some(Box::new(trailers));
                }
                self.end_stream(state, key)
            }
            Err(Unfit::Malformed(why)) => self.fail(state, key, Code::PROTOCOL_ERROR, why),
            Err(Unfit::TooLarge) => self.fail(state, key, Code::CANCEL, "trailers beyond the limits"),
        }
    }

    /// Lets go of what is not needed while nothing comes.
    pub(super) fn release(&mut self) {
        self.decoder.release();
        self.arrived = Vec::new();
        self.malformed = Vec::new();
    }
}

fn most(state: &State) -> Most {
    Most { bytes: state.settings.head_bytes, fields: state.settings.head_fields }
}

/// What a request says of its body's length. `end`: there is no body.
///
/// # Errors
/// What is wrong with it.
fn length_of(fields: &Fields, end: bool) -> Result<Option<u64>, &'static str> {
    let length = content_length(fields)?;
    if end && length.is_some_and(|length| length > 0) {
        return Err("a content-length without body");
    }
    Ok(length)
}
