//! Sending: header blocks and bodies into the output, as windows and room allow, in turns.

use std::task::Waker;

use super::{State, set_waker};
use crate::http::h2::{
    error::{Code, Fault},
    frame::{self, LARGEST_WINDOW},
    hpack::Encoder,
    slot::Key,
};

/// Output that waits, from which on streams have to wait with more.
const OUTPUT_BYTES: usize = 256 * 1024;
/// What one stream may send at a time while others wait.
const TURN_BYTES: usize = 64 * 1024;
/// What a stream whose turn has come is expected to send.
const EXPECTED_BYTES: usize = 16 * 1024;

impl State {
    /// Appends HEADERS, and CONTINUATION as needed.
    pub(in crate::http::h2) fn send_block(
        &mut self,
        id: u32,
        end: bool,
        encode: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        let most = self.peer.frame_bytes as usize;
        let out = self.output.buffer();
        let start = out.len();
        out.extend_from_slice(&[0; frame::HEADER_BYTES]);
        encode(&mut self.encoder, out);
        let end_stream = if end { frame::END_STREAM } else { 0 };
        let length = out.len() - start - frame::HEADER_BYTES;
        if length <= most {
            let header = frame::header_bytes(length, frame::HEADERS, end_stream | frame::END_HEADERS, id);
            if let Some(place) = out.get_mut(start..start + frame::HEADER_BYTES) {
                place.copy_from_slice(&header);
            }
        } else {
            let block = out.split_off(start + frame::HEADER_BYTES);
            out.truncate(start);
            let count = block.len().div_ceil(most);
            for (place, piece) in block.chunks(most).enumerate() {
                let kind = if place == 0 { frame::HEADERS } else { frame::CONTINUATION };
                let last = if place + 1 == count { frame::END_HEADERS } else { 0 };
                frame::frame(out, kind, last | if place == 0 { end_stream } else { 0 }, id, piece);
            }
        }
        self.wake_driver();
    }

    /// Whether as much waits to be written as may.
    pub(in crate::http::h2) fn is_crowded(&self) -> bool {
        self.output.len() >= OUTPUT_BYTES
    }

    /// What a stream may send now, as far as the connection is concerned.
    fn room(&self) -> usize {
        let window = usize::try_from(self.send_left).unwrap_or(0);
        window.min(OUTPUT_BYTES.saturating_sub(self.output.len()))
    }

    /// What the stream may send now; 0: `waker` is woken when that changes.
    pub(in crate::http::h2) fn capacity(&mut self, key: Key, waker: &Waker) -> usize {
        let room = self.room();
        let crowded = !self.waiting.is_empty();
        let Some(stream) = self.stream(key) else { return 0 };
        let send = &mut stream.send;
        let window = usize::try_from(send.left).unwrap_or(0);
        if window > 0 && room > 0 && (send.granted || !crowded) {
            send.granted = false;
            return window.min(room).min(TURN_BYTES);
        }
        set_waker(&mut send.waker, waker);
        if window > 0 && !std::mem::replace(&mut send.queued, true) {
            send.granted = false;
            self.waiting.push_back(key);
            if room > 0 {
                // It is the driver that gives turns.
                self.wake_driver();
            }
        }
        0
    }

    /// Gives turns to streams that wait. True: there is room, and others wait still.
    pub(in crate::http::h2) fn give_turns(&mut self) -> bool {
        let mut room = self.room();
        while room > 0 {
            let Some(key) = self.waiting.pop_front() else { return false };
            let Some(stream) = self.stream(key) else { continue };
            stream.send.queued = false;
            stream.send.granted = true;
            stream.wake_sender();
            room = room.saturating_sub(EXPECTED_BYTES);
        }
        self.room() > 0 && !self.waiting.is_empty()
    }

    /// Appends DATA as far as windows and room allow. How many bytes; `end` holds only if these are all.
    pub(in crate::http::h2) fn send_data(&mut self, key: Key, bytes: &[u8], end: bool) -> usize {
        let room = self.room();
        let most = self.peer.frame_bytes as usize;
        let Some(stream) = self.stream(key).filter(|stream| stream.open && !stream.send.ended) else { return 0 };
        let id = stream.id;
        let count = bytes.len().min(room).min(usize::try_from(stream.send.left).unwrap_or(0));
        let end = end && count == bytes.len();
        if count == 0 && !end {
            return 0;
        }
        stream.send.left -= count as i64;
        self.send_left -= count as i64;
        let mut rest = bytes.get(..count).unwrap_or_default();
        let out = self.output.buffer();
        out.reserve(count + (count / most + 1) * frame::HEADER_BYTES);
        loop {
            let (piece, after) = rest.split_at(rest.len().min(most));
            let flags = if end && after.is_empty() { frame::END_STREAM } else { 0 };
            frame::frame(out, frame::DATA, flags, id, piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        self.wake_driver();
        if end {
            self.end_send(key);
        }
        count
    }

    /// END_STREAM was sent.
    pub(in crate::http::h2) fn end_send(&mut self, key: Key) {
        let Some(stream) = self.stream(key) else { return };
        stream.send.ended = true;
        let (received, unread) = (stream.receive.ended, stream.is_unread());
        if received {
            self.close(key);
        } else if unread {
            self.cancel(key, Code::NO_ERROR);
        }
    }

    /// The peer's WINDOW_UPDATE for a stream. False: its window is too large.
    pub(in crate::http::h2) fn widen(&mut self, key: Key, more: u32) -> bool {
        let Some(stream) = self.stream(key) else { return true };
        let before = stream.send.left;
        stream.send.left += i64::from(more);
        if before <= 0 && stream.send.left > 0 {
            stream.wake_sender();
        }
        stream.send.left <= LARGEST_WINDOW
    }

    /// The peer's SETTINGS_INITIAL_WINDOW_SIZE, for streams open (RFC 9113, 6.9.2).
    pub(in crate::http::h2) fn set_window(&mut self, window: u32) -> Result<(), Fault> {
        let change = i64::from(window) - i64::from(self.peer.window);
        self.peer.window = window;
        for stream in self.slots.iter_mut().flatten().filter(|stream| stream.open) {
            let before = stream.send.left;
            stream.send.left += change;
            if stream.send.left > LARGEST_WINDOW {
                return Err(Fault::new(Code::FLOW_CONTROL_ERROR, "a window too large by SETTINGS"));
            }
            if before <= 0 && stream.send.left > 0 {
                stream.wake_sender();
            }
        }
        Ok(())
    }
}
