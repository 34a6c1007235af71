//! Header blocks: no bytes break the decoder, and what it reads, the encoder writes so that it is read the same.
#![no_main]

use leno_proxy::http::{
    h2::hpack::{Decoder, Encoder, TABLE_BYTES},
    head::Fields,
};
use libfuzzer_sys::fuzz_target;

/// Fields looked at, and bytes of each: one byte may stand for a whole entry of the table.
const FIELDS: usize = 200;

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new(TABLE_BYTES);
    let mut encoder = Encoder::default();
    let mut again = Decoder::new(TABLE_BYTES);
    // Blocks of one connection: each begins with its length.
    let mut rest = bytes;
    while let Some((&length, after)) = rest.split_first() {
        let (block, after) = after.split_at(after.len().min(usize::from(length)));
        rest = after;
        let mut fields = Fields::new();
        let read = decoder.decode(block, |name, value, _| {
            if fields.len() < FIELDS {
                fields.push_lower(name, value);
            }
        });
        if read.is_err() {
            return;
        }
        if length % 16 == 0 {
            encoder.set_most(usize::from(length) * 16);
        }
        let mut written = Vec::new();
        encoder.trailers(&fields, &mut written);
        let mut fields_again = Fields::new();
        again
            .decode(&written, |name, value, _| {
                fields_again.push_lower(name, value);
            })
            .expect("our own block");
        assert_eq!(fields, fields_again);
    }
});
