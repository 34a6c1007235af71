//! Frames about streams and the connection: RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE.

use std::time::Instant;

use super::{DRAIN_PING, Intake};
use crate::http::h2::{
    error::{Code, Fault, StreamError},
    frame::{self, Header},
    load::Load,
    slot::Stream,
    state::{LAST_STREAM, Role, State},
};

impl Intake {
    pub(super) fn rst_stream(&mut self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
        let length = Fault::new(Code::FRAME_SIZE_ERROR, "RST_STREAM of another length than 4");
        let code = Code(u32::from_be_bytes(payload.try_into().map_err(|_| length)?));
        if header.stream == 0 || Self::is_unknown(state, header.stream) {
            return Err(Fault::protocol("RST_STREAM of a stream that is not open"));
        }
        let Some(key) = state.key_of(header.stream) else { return self.useless() };
        let unanswered = |stream: &mut Stream| (!stream.send.begun).then_some(stream.born);
        let born = state.stream(key).and_then(unanswered).filter(|_| state.role == Role::Server);
        state.fail(key, StreamError::reset(code));
        let Some(born) = born else { return Ok(()) };
        // Taken back before anybody can have looked at it, it is not deadlines that run out, or people who lose patience.
        let rapid = self.turn.wrapping_sub(born) <= 1;
        if self.early_resets.is_beyond(Instant::now) || (rapid && self.rapid_resets.is_beyond(Instant::now)) {
            return Err(Fault::flood("too many requests taken back"));
        }
        Ok(())
    }

    pub(super) fn settings(&mut self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.stream != 0 {
            return Err(Fault::protocol("SETTINGS of a stream"));
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() || (header.has(frame::ACK) && !payload.is_empty()) {
            return Err(Fault::new(Code::FRAME_SIZE_ERROR, "SETTINGS of a length that cannot be"));
        }
        if header.has(frame::ACK) {
            state.acknowledged = true;
            return self.useless();
        }
        if self.settled {
            self.useless()?;
        }
        self.settled = true;
        if !std::mem::replace(&mut state.peer.known, true) {
            state.peer.most_streams = u32::MAX;
        }
        for &[a, b, v0, v1, v2, v3] in settings {
            apply(state, u16::from_be_bytes([a, b]), u32::from_be_bytes([v0, v1, v2, v3]))?;
        }
        state.wake_unsettled();
        state.output.frame(frame::SETTINGS, frame::ACK, 0, &[]);
        state.answers += frame::HEADER_BYTES;
        Ok(())
    }

    pub(super) fn ping(&mut self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.stream != 0 {
            return Err(Fault::protocol("PING of a stream"));
        }
        let length = Fault::new(Code::FRAME_SIZE_ERROR, "PING of another length than 8");
        let payload: [u8; 8] = payload.try_into().map_err(|_| length)?;
        if header.has(frame::ACK) {
            self.drain_seen |= payload == DRAIN_PING;
            return self.useless();
        }
        state.output.frame(frame::PING, frame::ACK, 0, &payload);
        state.answers += frame::HEADER_BYTES + 8;
        Ok(())
    }

    /// See [`frame::LOAD`].
    pub(super) fn load(&mut self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.stream != 0 {
            return Err(Fault::protocol("LOAD of a stream"));
        }
        match (state.role, header.has(frame::ACK)) {
            (Role::Server, false) => {
                let Some(load) = state.settings.reports.now() else { return self.useless() };
                state.output.frame(frame::LOAD, frame::ACK, 0, &load.to_bytes());
                state.answers += frame::HEADER_BYTES + 8;
                Ok(())
            }
            (Role::Client, true) => {
                let length = Fault::new(Code::FRAME_SIZE_ERROR, "LOAD of another length than 8");
                let load = Load::from_bytes(payload.try_into().map_err(|_| length)?);
                state.settings.heard.hear(load, Instant::now());
                self.useless()
            }
            _ => self.useless(),
        }
    }

    pub(super) fn window_update(&mut self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
        let length = Fault::new(Code::FRAME_SIZE_ERROR, "WINDOW_UPDATE of another length than 4");
        let more = u32::from_be_bytes(payload.try_into().map_err(|_| length)?) & 0x7fff_ffff;
        if header.stream == 0 {
            state.send_left += i64::from(more);
            return if more == 0 {
                Err(Fault::protocol("WINDOW_UPDATE by 0"))
            } else if state.send_left > frame::LARGEST_WINDOW {
                Err(Fault::new(Code::FLOW_CONTROL_ERROR, "the connection's window is too large"))
            } else {
                Ok(())
            };
        }
        let Some(key) = state.key_of(header.stream) else {
            return if Self::is_unknown(state, header.stream) {
                Err(Fault::protocol("WINDOW_UPDATE of a stream that is not open"))
            } else {
                Ok(())
            };
        };
        if more == 0 {
            return self.fail(state, key, Code::PROTOCOL_ERROR, "WINDOW_UPDATE by 0");
        }
        if !state.widen(key, more) {
            return self.fail(state, key, Code::FLOW_CONTROL_ERROR, "the stream's window is too large");
        }
        Ok(())
    }
}

/// One of the peer's settings (RFC 9113, 6.5.2).
fn apply(state: &mut State, name: u16, value: u32) -> Result<(), Fault> {
    match name {
        frame::HEADER_TABLE_SIZE => state.encoder.set_most(value as usize),
        frame::ENABLE_PUSH if value > 1 || (value == 1 && state.role == Role::Client) => {
            return Err(Fault::protocol("ENABLE_PUSH that cannot be"));
        }
        frame::MAX_CONCURRENT_STREAMS => state.peer.most_streams = value,
        frame::INITIAL_WINDOW_SIZE if i64::from(value) > frame::LARGEST_WINDOW => {
            return Err(Fault::new(Code::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large"));
        }
        frame::INITIAL_WINDOW_SIZE => state.set_window(value)?,
        frame::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
            return Err(Fault::protocol("MAX_FRAME_SIZE that cannot be"));
        }
        frame::MAX_FRAME_SIZE => state.peer.frame_bytes = value,
        frame::ENABLE_CONNECT_PROTOCOL if value > 1 => {
            return Err(Fault::protocol("ENABLE_CONNECT_PROTOCOL that cannot be"));
        }
        frame::ENABLE_CONNECT_PROTOCOL => state.peer.connect_protocol = value == 1,
        frame::REPORTS_LOAD => state.peer.reports_load = value == 1,
        _ => {}
    }
    Ok(())
}

pub(super) fn goaway(state: &mut State, header: Header, payload: &[u8]) -> Result<(), Fault> {
    if header.stream != 0 {
        return Err(Fault::protocol("GOAWAY of a stream"));
    }
    let Some((&[a, b, c, d, c0, c1, c2, c3], _)) = payload.split_first_chunk() else {
        return Err(Fault::new(Code::FRAME_SIZE_ERROR, "GOAWAY too short"));
    };
    let code = Code(u32::from_be_bytes([c0, c1, c2, c3]));
    state.goaway = Some(code);
    if state.role == Role::Client {
        state.closing = true;
        state.abandon_after(u32::from_be_bytes([a, b, c, d]) & LAST_STREAM, code);
    }
    Ok(())
}
