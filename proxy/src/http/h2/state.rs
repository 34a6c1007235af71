//! What a connection's driver and its streams' handles share: streams, windows, and what waits to be written.

mod sending;

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    task::Waker,
};

use super::{
    Settings,
    error::{Code, Kind, StreamError},
    frame::{self, DEFAULT_FRAME_BYTES, DEFAULT_WINDOW},
    hpack::Encoder,
    output::Output,
    slot::{Key, RECEIVER, SENDER, Stream},
};

/// Identifiers of streams remembered because we reset them.
const RESETS: usize = 64;
/// Streams before the peer's SETTINGS have arrived (RFC 9113, 6.5.2 recommends to allow at least 100).
const INITIAL_STREAMS: u32 = 100;
/// No stream has a larger identifier.
pub(super) const LAST_STREAM: u32 = 0x7fff_ffff;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// The peer's settings.
#[derive(Debug)]
pub(super) struct Peer {
    /// They have arrived.
    pub(super) known: bool,
    pub(super) frame_bytes: u32,
    pub(super) window: u32,
    pub(super) most_streams: u32,
    pub(super) connect_protocol: bool,
    /// It answers [`frame::LOAD`].
    pub(super) reports_load: bool,
}

pub(super) struct State {
    pub(super) role: Role,
    pub(super) settings: Settings,
    pub(super) peer: Peer,
    /// Our SETTINGS have been acknowledged.
    pub(super) acknowledged: bool,
    pub(super) output: Output,
    /// Bytes of answers that the peer made us queue, since all output was last written.
    pub(super) answers: usize,
    pub(super) encoder: Encoder,
    slots: Vec<Option<Box<Stream>>>,
    free: Vec<Key>,
    /// Room for one more, left by the last that ended.
    spare: Option<Box<Stream>>,
    ids: HashMap<u32, Key, BuildHasherDefault<IdHasher>>,
    /// Client: the next stream's. Server: the last that the client opened.
    pub(super) next_id: u32,
    pub(super) last_id: u32,
    /// What the peer takes, and what it may send.
    pub(super) send_left: i64,
    pub(super) receive_left: i64,
    taken: u32,
    /// Streams that wait for the connection's window, or room in the output.
    waiting: VecDeque<Key>,
    /// Latest streams that we reset: what still comes on them is of no interest.
    resets: VecDeque<u32>,
    /// The driver's task; None while it is not pending.
    pub(super) driver: Option<Waker>,
    /// The driver runs, or will.
    pub(super) awake: bool,
    /// No new streams; the connection ends with the last.
    pub(super) closing: bool,
    /// The peer's GOAWAY.
    pub(super) goaway: Option<Code>,
    /// Who waits for the peer's SETTINGS.
    pub(super) unsettled: Vec<Waker>,
    /// The connection is over.
    pub(super) over: bool,
    /// Handles to the connection itself.
    pub(super) handles: usize,
}

impl State {
    pub(super) fn new(role: Role, settings: Settings) -> Self {
        let peer = Peer {
            known: false,
            frame_bytes: DEFAULT_FRAME_BYTES,
            window: DEFAULT_WINDOW,
            most_streams: INITIAL_STREAMS,
            connect_protocol: false,
            reports_load: false,
        };
        let mut state = Self {
            role,
            peer,
            acknowledged: false,
            output: Output::default(),
            answers: 0,
            encoder: Encoder::default(),
            slots: Vec::new(),
            free: Vec::new(),
            spare: None,
            ids: HashMap::default(),
            next_id: 1,
            last_id: 0,
            send_left: i64::from(DEFAULT_WINDOW),
            receive_left: i64::from(settings.connection_window),
            taken: 0,
            waiting: VecDeque::new(),
            resets: VecDeque::new(),
            driver: None,
            awake: true,
            closing: false,
            goaway: None,
            unsettled: Vec::new(),
            over: false,
            handles: 1,
            settings,
        };
        state.greet();
        state
    }

    /// The preface and our SETTINGS.
    fn greet(&mut self) {
        let settings = &self.settings;
        let mut payload = Vec::with_capacity(42);
        let mut set = |name: u16, value: u32| {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        };
        match self.role {
            Role::Client => {
                set(frame::ENABLE_PUSH, 0);
                self.output.buffer().extend_from_slice(frame::PREFACE);
            }
            Role::Server => {
                set(frame::MAX_CONCURRENT_STREAMS, settings.most_streams);
                if settings.connect_protocol {
                    set(frame::ENABLE_CONNECT_PROTOCOL, 1);
                }
                if settings.reports.are_given() {
                    set(frame::REPORTS_LOAD, 1);
                }
            }
        }
        set(frame::INITIAL_WINDOW_SIZE, settings.stream_window);
        set(frame::MAX_FRAME_SIZE, settings.frame_bytes);
        set(frame::MAX_HEADER_LIST_SIZE, u32::try_from(settings.head_bytes).unwrap_or(u32::MAX));
        self.output.frame(frame::SETTINGS, 0, 0, &payload);
        let more = settings.connection_window.saturating_sub(DEFAULT_WINDOW);
        if more > 0 {
            self.output.frame(frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
    }

    /// The peer's SETTINGS have arrived, or never will.
    pub(super) fn wake_unsettled(&mut self) {
        for waker in self.unsettled.drain(..) {
            waker.wake();
        }
    }

    /// Lets go of what is not needed while there is no stream.
    pub(super) fn release(&mut self) {
        self.encoder.release();
        self.spare = None;
    }

    pub(super) fn wake_driver(&mut self) {
        if !self.awake {
            self.awake = true;
            if let Some(driver) = &self.driver {
                driver.wake_by_ref();
            }
        }
    }

    /// Streams open.
    pub(super) fn streams(&self) -> usize {
        self.ids.len()
    }

    /// Streams open, and those whose handles live.
    pub(super) fn is_idle(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    pub(super) fn stream(&mut self, key: Key) -> Option<&mut Stream> {
        self.slots.get_mut(key as usize)?.as_deref_mut()
    }

    pub(super) fn key_of(&self, id: u32) -> Option<Key> {
        self.ids.get(&id).copied()
    }

    /// A new stream, both of whose handles are to be made.
    pub(super) fn add(&mut self, id: u32) -> Key {
        let mut stream = self.spare.take().unwrap_or_default();
        stream.id = id;
        stream.handles = SENDER | RECEIVER;
        stream.open = true;
        stream.receive.left = i64::from(self.settings.stream_window);
        stream.send.left = i64::from(self.peer.window);
        let key = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as Key - 1
        });
        if let Some(slot) = self.slots.get_mut(key as usize) {
            *slot = Some(stream);
        }
        self.ids.insert(id, key);
        key
    }

    /// A stream that has ended both ways, or was reset, is open no longer.
    pub(super) fn close(&mut self, key: Key) {
        let Some(stream) = self.stream(key) else { return };
        if std::mem::take(&mut stream.open) {
            let (id, unused) = (stream.id, stream.handles == 0);
            self.ids.remove(&id);
            if unused {
                self.free(key);
            }
            if self.ids.is_empty() && self.closing {
                self.wake_driver();
            }
        }
    }

    fn free(&mut self, key: Key) {
        if let Some(mut stream) = self.slots.get_mut(key as usize).and_then(Option::take) {
            if stream.send.queued {
                self.waiting.retain(|waiting| *waiting != key);
            }
            self.free.push(key);
            if self.spare.is_none() {
                *stream = Stream::default();
                self.spare = Some(stream);
            }
        }
        if self.free.len() == self.slots.len() && self.slots.capacity() > 16 {
            self.slots = Vec::new();
            self.free = Vec::new();
            self.ids = HashMap::default();
            self.waiting = VecDeque::new();
        }
    }

    /// Ends a stream early, as the peer or the connection has it.
    pub(super) fn fail(&mut self, key: Key, error: StreamError) {
        let Some(stream) = self.stream(key) else { return };
        stream.error.get_or_insert(error);
        stream.wake_receiver();
        stream.wake_sender();
        let granted = stream.send.granted;
        self.close(key);
        if granted {
            self.wake_driver();
        }
    }

    /// Ends a stream early, and tells the peer.
    pub(super) fn reset(&mut self, key: Key, code: Code, error: StreamError) {
        let Some(id) = self.stream(key).filter(|stream| stream.open).map(|stream| stream.id) else { return };
        self.send_reset(id, code);
        self.fail(key, error);
    }

    pub(super) fn send_reset(&mut self, id: u32, code: Code) {
        self.output.frame(frame::RST_STREAM, 0, id, &code.0.to_be_bytes());
        if self.resets.len() >= RESETS {
            self.resets.pop_front();
        }
        self.resets.push_back(id);
        self.wake_driver();
    }

    /// Whether we reset that stream lately.
    pub(super) fn was_reset(&self, id: u32) -> bool {
        self.resets.contains(&id)
    }

    /// The connection is over: all its streams are.
    pub(super) fn end(&mut self, code: Code, why: &str) {
        self.over = true;
        self.wake_unsettled();
        let written = self.output.written();
        let open: Vec<Key> = self.ids.values().copied().collect();
        for key in open {
            let Some(stream) = self.stream(key) else { continue };
            let sent = stream.send.head_end <= written;
            self.fail(key, StreamError::connection(code, why, sent));
        }
    }

    /// Streams beyond `last` were not, and will not be, processed.
    pub(super) fn abandon_after(&mut self, last: u32, code: Code) {
        let beyond: Vec<Key> = self.ids.iter().filter(|(id, _)| **id > last).map(|(_, key)| *key).collect();
        for key in beyond {
            self.fail(key, StreamError::new(Kind::Unprocessed, code, "not processed: the peer closes the connection"));
        }
    }

    // Receiving.

    /// Bytes that came have been taken, or are of no use: the peer may send more.
    pub(super) fn take(&mut self, count: usize) {
        self.taken += count as u32;
        // As soon as a stream's window needs it: of the connection's, streams that nobody reads may hold all but that.
        if self.taken >= self.settings.stream_window / 2 && !self.over {
            let more = std::mem::take(&mut self.taken);
            self.receive_left += i64::from(more);
            self.output.frame(frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
            self.wake_driver();
        }
    }

    /// As [`Self::take`], for bytes of a stream.
    pub(super) fn take_of(&mut self, key: Key, count: usize) {
        self.take(count);
        let window = self.settings.stream_window;
        let Some(stream) = self.stream(key) else { return };
        let (id, receive) = (stream.id, &mut stream.receive);
        receive.taken += count as u32;
        if receive.taken >= window / 2 && !receive.ended && stream.open {
            let more = std::mem::take(&mut receive.taken);
            receive.left += i64::from(more);
            self.output.frame(frame::WINDOW_UPDATE, 0, id, &more.to_be_bytes());
            self.wake_driver();
        }
    }

    /// END_STREAM has come.
    pub(super) fn end_receive(&mut self, key: Key) {
        let Some(stream) = self.stream(key) else { return };
        stream.receive.ended = true;
        stream.wake_receiver();
        if stream.send.ended {
            self.close(key);
        }
    }

    /// The handle that receives is gone.
    pub(super) fn drop_receiver(&mut self, key: Key) {
        let role = self.role;
        let Some(stream) = self.stream(key) else { return };
        stream.handles &= !RECEIVER;
        stream.receive.waker = None;
        let unread = std::mem::take(&mut stream.receive.data).len();
        let (ended, sent) = (stream.receive.ended, stream.send.ended);
        self.take(unread);
        if !ended {
            match (role, sent) {
                (Role::Client, _) => self.cancel(key, Code::CANCEL),
                // Complete without the rest of the request (RFC 9113, 8.1).
                (Role::Server, true) => self.cancel(key, Code::NO_ERROR),
                (Role::Server, false) => {}
            }
        }
        self.drop_handle(key);
    }

    /// The handle that sends is gone.
    pub(super) fn drop_sender(&mut self, key: Key) {
        let Some(stream) = self.stream(key) else { return };
        stream.handles &= !SENDER;
        stream.send.waker = None;
        if !stream.send.ended {
            self.cancel(key, Code::CANCEL);
        }
        self.drop_handle(key);
    }

    fn drop_handle(&mut self, key: Key) {
        if self.stream(key).is_some_and(|stream| stream.handles == 0 && !stream.open) {
            self.free(key);
        }
    }

    /// See [`Self::reset`]: by the stream's owner.
    pub(super) fn cancel(&mut self, key: Key, code: Code) {
        self.reset(key, code, StreamError::new(Kind::Cancelled, code, "stream cancelled"));
    }
}

pub(super) fn set_waker(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(held) if held.will_wake(waker) => {}
        _ => *place = Some(waker.clone()),
    }
}

/// Stream identifiers are counted up: any mixing will do.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}
