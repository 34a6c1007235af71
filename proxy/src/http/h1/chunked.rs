//! Bodies out of the bytes of a connection, by how they are delimited.

use bytes::{Buf, Bytes, BytesMut};

use super::{Framing, parse};
use crate::http::head::Fields;

/// Digits of a chunk's size.
const SIZE_DIGITS: u8 = 15;
/// Chunk extensions of one body, which say nothing to us.
const EXTENSION_BYTES: usize = 16 * 1024;
/// Longest trailer section.
const TRAILER_BYTES: usize = 16 * 1024;
/// Chunks of fewer bytes are put together as long as more are there.
const SMALL_CHUNK: usize = 8 * 1024;
/// What small chunks are put together to at most.
const TOGETHER: usize = 64 * 1024;

/// A body that is not what its framing says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed request or response body: {0}")]
pub struct Malformed(pub &'static str);

/// What was found next.
#[derive(Debug, PartialEq)]
pub enum Decoded {
    Data(Bytes),
    Trailers(Fields),
    /// The body is complete.
    End,
    /// Nothing, until more bytes come.
    More,
}

/// Takes a body off the front of a connection's bytes.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of chunk extensions so far; then bytes of trailers that were looked at.
    seen: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are left.
    Length(u64),
    /// All until the connection's end.
    Close,
    /// In a chunk's size; after how many digits, and so far.
    Size(u8, u64),
    /// In blanks after a chunk's size.
    Blank(u64),
    /// In a chunk's extensions.
    Extension(u64),
    /// Before the LF of the size line.
    SizeEnd(u64),
    /// So many bytes of the chunk are left.
    Chunk(u64),
    /// Before the CR after a chunk.
    ChunkCr,
    /// Before the LF after a chunk.
    ChunkLf,
    Trailers,
    Done,
}

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0, 0),
            Framing::Close => State::Close,
        };
        Self { state, seen: 0 }
    }

    /// The body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes still to come, if that is known.
    pub fn exact(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// If the body had not.
    pub fn end(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::Close | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Malformed("the connection ended in the middle of it")),
        }
    }

    /// Takes what comes next off `bytes`.
    ///
    /// # Errors
    /// The chunked coding is broken; nothing after it can be understood.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Decoded, Malformed> {
        match self.state {
            State::Done => Ok(Decoded::End),
            _ if bytes.is_empty() => Ok(Decoded::More),
            State::Close => Ok(Decoded::Data(take(bytes, u64::MAX))),
            State::Length(left) => {
                let data = take(bytes, left);
                let left = left - data.len() as u64;
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                Ok(Decoded::Data(data))
            }
            _ => self.chunks(bytes),
        }
    }

    /// As [`Self::decode`], for the chunked coding: small chunks that are there are put together.
    fn chunks(&mut self, bytes: &mut BytesMut) -> Result<Decoded, Malformed> {
        let mut together = Vec::new();
        loop {
            match self.step(bytes)? {
                Step::Data(left) => {
                    let here = left.min(bytes.len() as u64) as usize;
                    let alone = together.is_empty() && (here >= SMALL_CHUNK || here == bytes.len());
                    if !alone && together.len() + here > TOGETHER && !together.is_empty() {
                        return Ok(Decoded::Data(together.into()));
                    }
                    let left = left - here as u64;
                    self.state = if left == 0 { State::ChunkCr } else { State::Chunk(left) };
                    if alone {
                        return Ok(Decoded::Data(take(bytes, here as u64)));
                    }
                    together.extend_from_slice(bytes.get(..here).unwrap_or_default());
                    consume(bytes, here);
                }
                Step::End if !together.is_empty() => return Ok(Decoded::Data(together.into())),
                Step::Trailers if !together.is_empty() => return Ok(Decoded::Data(together.into())),
                Step::More if !together.is_empty() => return Ok(Decoded::Data(together.into())),
                Step::End => return Ok(Decoded::End),
                Step::More => return Ok(Decoded::More),
                Step::Trailers => return self.trailers(bytes),
            }
        }
    }

    /// Reads up to the next bytes of a chunk, or to the trailers.
    fn step(&mut self, bytes: &mut BytesMut) -> Result<Step, Malformed> {
        let mut at = 0;
        let step = loop {
            match self.state {
                State::Chunk(left) if at < bytes.len() => break Step::Data(left),
                State::Trailers => break Step::Trailers,
                State::Done => break Step::End,
                _ => {}
            }
            let Some(&byte) = bytes.get(at) else { break Step::More };
            at += 1;
            self.state = self.next(byte)?;
        };
        consume(bytes, at);
        Ok(step)
    }

    /// The state after a byte between two chunks.
    fn next(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::Size(1.., size) | State::Blank(size) | State::Extension(size), b'\r') => State::SizeEnd(size),
            (State::Size(1.., size) | State::Blank(size), b';') => State::Extension(size),
            (State::Size(1.., size) | State::Blank(size), b' ' | b'\t') => State::Blank(size),
            (State::Size(digits, size), _) => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed("an invalid chunk size"))?;
                // So that no sum of it can overflow.
                if digits >= SIZE_DIGITS {
                    return Err(Malformed("a chunk size beyond any limit"));
                }
                State::Size(digits + 1, size << 4 | u64::from(digit))
            }
            (State::Extension(size), b'\t' | b' '..=b'~' | 0x80..) => {
                self.seen += 1;
                if self.seen > EXTENSION_BYTES {
                    return Err(Malformed("chunk extensions beyond the limit"));
                }
                State::Extension(size)
            }
            (State::SizeEnd(0), b'\n') => {
                self.seen = 0;
                State::Trailers
            }
            (State::SizeEnd(size), b'\n') => State::Chunk(size),
            (State::ChunkCr, b'\r') => State::ChunkLf,
            (State::ChunkLf, b'\n') => State::Size(0, 0),
            (State::ChunkCr | State::ChunkLf, _) => return Err(Malformed("a chunk is longer than its size")),
            _ => return Err(Malformed("a malformed chunk size line")),
        })
    }

    fn trailers(&mut self, bytes: &mut BytesMut) -> Result<Decoded, Malformed> {
        // Most have none; the others are looked at when they are complete.
        if !b"\r\n".starts_with(bytes.get(..2).unwrap_or(bytes)) && !parse::has_empty_line(bytes, self.seen) {
            self.seen = bytes.len();
            return if self.seen > TRAILER_BYTES {
                Err(Malformed("trailers beyond the limit"))
            } else {
                Ok(Decoded::More)
            };
        }
        match parse::parse_trailers(bytes).map_err(Malformed)? {
            None => Ok(Decoded::More),
            Some((_, length)) if length > TRAILER_BYTES => Err(Malformed("trailers beyond the limit")),
            Some((fields, length)) => {
                consume(bytes, length);
                self.state = State::Done;
                Ok(if fields.is_empty() { Decoded::End } else { Decoded::Trailers(fields) })
            }
        }
    }
}

enum Step {
    /// Some of so many bytes of a chunk are there.
    Data(u64),
    Trailers,
    End,
    More,
}

/// Drops the first `count` bytes, and the buffer with the last.
pub(super) fn consume(bytes: &mut BytesMut, count: usize) {
    if count >= bytes.len() {
        *bytes = BytesMut::new();
    } else {
        bytes.advance(count);
    }
}

/// Takes the first `limit` bytes, or all; and the buffer with the last.
pub(super) fn take(bytes: &mut BytesMut, limit: u64) -> Bytes {
    if limit >= bytes.len() as u64 { std::mem::take(bytes).freeze() } else { bytes.split_to(limit as usize).freeze() }
}

#[cfg(test)]
mod tests;
