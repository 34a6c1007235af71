//! TLS 1.3 records (RFC 8446 5): sealing and opening them with keys that a handshake gave. No I/O.
//!
//! rustls makes the handshake and derives every key; only what is done for each record is here, because done here it
//! needs no buffer of its own: a record is sealed where it is sent from, and opened into the reader's buffer.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use rustls::{
    ConnectionTrafficSecrets, Error,
    crypto::cipher::{Iv, Nonce, make_tls13_aad},
};

/// Type, version, length.
pub(super) const HEADER_BYTES: usize = 5;
/// Most content of one record (RFC 8446 5.1).
pub(super) const CONTENT_BYTES: usize = 1 << 14;
/// What sealing adds to content at most (RFC 8446 5.2).
const EXPANSION_MOST: usize = 256;
/// What it adds here: the content's type and the tag.
pub(super) const EXPANSION: usize = 1 + TAG_BYTES;
/// Of every cipher of TLS 1.3.
const TAG_BYTES: usize = 16;
/// The longest record that anybody makes.
pub(super) const LONGEST_BYTES: usize = HEADER_BYTES + CONTENT_BYTES + EXPANSION_MOST;
/// The longest one that is made here.
pub(super) const RECORD_BYTES: usize = HEADER_BYTES + CONTENT_BYTES + EXPANSION;

/// What a record holds (RFC 8446 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// One direction's key.
struct Key {
    aead: LessSafeKey,
    iv: Iv,
    /// Of the next record.
    sequence: u64,
}

impl Key {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher that we did not offer".to_owned())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| Error::General("a key that does not fit its cipher".to_owned()))?;
        Ok(Self { aead: LessSafeKey::new(key), iv, sequence })
    }

    /// The nonce of this record; no two records have the same.
    fn nonce(&mut self) -> Result<aead::Nonce, Error> {
        let nonce = Nonce::new(&self.iv, self.sequence).0;
        // An error is made where there is one: made before, it would have to be dropped with each record.
        let Some(next) = self.sequence.checked_add(1) else { return Err(Error::EncryptError) };
        self.sequence = next;
        Ok(aead::Nonce::assume_unique_for_key(nonce))
    }
}

/// Makes records.
pub(super) struct Sealer(Key);

impl Sealer {
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        Ok(Self(Key::new(secrets)?))
    }

    /// How many records this key has sealed.
    pub(super) fn sealed(&self) -> u64 {
        self.0.sequence
    }

    /// Makes a record of `room`, whose content is in its place: behind [`HEADER_BYTES`], and [`EXPANSION`] before the end.
    pub(super) fn seal(&mut self, content: Content, room: &mut [u8]) -> Result<(), Error> {
        self.seal_typed(content as u8, room)
    }

    fn seal_typed(&mut self, content: u8, room: &mut [u8]) -> Result<(), Error> {
        let nonce = self.0.nonce()?;
        let parts = room.split_at_mut_checked(HEADER_BYTES).and_then(|(header, sealed)| {
            let (inside, tag) = sealed.split_at_mut_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
            Some((header, inside, tag))
        });
        let Some((header, inside, tag)) = parts else { return Err(Error::EncryptError) };
        let Some(last) = inside.last_mut() else { return Err(Error::EncryptError) };
        *last = content;
        let aad = make_tls13_aad(inside.len() + TAG_BYTES);
        header.copy_from_slice(&aad);
        let made = self.0.aead.seal_in_place_separate_tag(nonce, Aad::from(aad), inside);
        tag.copy_from_slice(made.map_err(|_| Error::EncryptError)?.as_ref());
        Ok(())
    }
}

#[cfg(test)]
impl Sealer {
    /// The same, of content that ends with its type and padding.
    pub(super) fn seal_padded(&mut self, room: &mut [u8]) -> Result<(), Error> {
        self.seal_typed(0, room)
    }
}

/// A record as it was read, whole.
pub(super) struct Record<'a> {
    /// Type of the record itself, which is application data whatever is inside.
    pub(super) outer: u8,
    sealed: &'a [u8],
}

impl<'a> Record<'a> {
    /// Length of the record that `bytes` begin with; None: that is not there yet.
    ///
    /// # Errors
    /// If it is longer than records may be.
    pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Error> {
        let Some(&[.., high, low]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > CONTENT_BYTES + EXPANSION_MOST {
            return Err(Error::InvalidMessage(rustls::InvalidMessage::MessageTooLarge));
        }
        Ok(Some(HEADER_BYTES + length))
    }

    /// The first record in `bytes`, and its length there; None: it is not whole yet.
    ///
    /// # Errors
    /// If it is longer than records may be.
    pub(super) fn first(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Error> {
        let length = Self::length(bytes)?;
        Ok(length.and_then(|length| match bytes.get(..length)? {
            [outer, _, _, _, _, sealed @ ..] => Some((Self { outer: *outer, sealed }, length)),
            _ => None,
        }))
    }

    /// How much room [`Opener::open`] needs.
    pub(super) fn room(&self) -> usize {
        self.sealed.len().saturating_sub(TAG_BYTES)
    }
}

/// Opens records.
pub(super) struct Opener(Key);

impl Opener {
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        Ok(Self(Key::new(secrets)?))
    }

    /// Opens the next record into `room` ([`Record::room`] bytes of it); what it holds, and how much.
    ///
    /// # Errors
    /// If it is not what the peer sent as its next record, or not as records must be.
    pub(super) fn open(&mut self, record: &Record<'_>, room: &mut [u8]) -> Result<(Content, usize), Error> {
        use rustls::PeerMisbehaved::{IllegalMiddleboxChangeCipherSpec, IllegalTlsInnerPlaintext};
        if record.outer != Content::Data as u8 {
            return Err(IllegalMiddleboxChangeCipherSpec.into());
        }
        let nonce = self.0.nonce()?;
        let aad = Aad::from(make_tls13_aad(record.sealed.len()));
        let (Some((sealed, tag)), Some(room)) =
            (record.sealed.split_at_checked(record.room()), room.get_mut(..record.room()))
        else {
            return Err(Error::DecryptError);
        };
        self.0.aead.open_separate_gather(nonce, aad, sealed, tag, room).map_err(|_| Error::DecryptError)?;
        // RFC 8446 5.4: the type comes after the content, and zeros may follow it.
        let Some(end) = room.iter().rposition(|byte| *byte != 0) else { return Err(IllegalTlsInnerPlaintext.into()) };
        if end > CONTENT_BYTES {
            return Err(Error::PeerSentOversizedRecord);
        }
        let content = match room.get(end) {
            Some(21) => Content::Alert,
            Some(22) => Content::Handshake,
            Some(23) => Content::Data,
            _ => return Err(IllegalTlsInnerPlaintext.into()),
        };
        Ok((content, end))
    }
}
