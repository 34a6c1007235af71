//! Header compression (RFC 7541).

mod decode;
mod encode;
mod huffman;
mod table;

pub use decode::Decoder;
pub use encode::{Encoder, TABLE_BYTES};

/// A header block that cannot be read; its connection cannot go on (COMPRESSION_ERROR).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed header block")]
pub struct Malformed;

#[cfg(test)]
mod tests;
