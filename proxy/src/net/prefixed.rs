//! A stream whose first bytes were already read (to detect what is spoken), put back in front.

use bytes::Bytes;

/// Reads `prefix` first, then the stream itself. Writes go straight through.
#[derive(Debug)]
pub struct Prefixed<T> {
    prefix: Bytes,
    inner: T,
}

impl<T> Prefixed<T> {
    pub fn new(prefix: Bytes, inner: T) -> Self {
        Self { prefix, inner }
    }

    /// The bytes not yet read again, and the stream.
    pub fn into_parts(self) -> (Bytes, T) {
        (self.prefix, self.inner)
    }
}
// transport: implement AsyncRead, AsyncWrite (vectored passed through) for T: AsyncRead/AsyncWrite + Unpin
