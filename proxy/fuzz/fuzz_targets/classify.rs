//! What the first bytes of a connection are: no bytes break it, more bytes never change an answer, and nothing that an
//! HTTP/1 parser takes for a request passes for something else.
#![no_main]

use leno_proxy::detect::{Spoken, classify};
use libfuzzer_sys::fuzz_target;

/// Prefixes looked at; each costs a look at all of it.
const PREFIXES: usize = 600;

fuzz_target!(|bytes: &[u8]| {
    let whole = classify(bytes);
    let mut before = None;
    for end in 0..=bytes.len().min(PREFIXES) {
        let so_far = classify(&bytes[..end]);
        assert!(before.is_none() || before == so_far, "{end} bytes change {before:?} into {so_far:?}");
        before = so_far;
    }
    assert!(before.is_none() || before == whole, "all bytes change {before:?} into {whole:?}");

    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let mut lenient = httparse::ParserConfig::default();
    lenient.allow_multiple_spaces_in_request_line_delimiters(true);
    if lenient.parse_request(&mut request, bytes).is_ok_and(|status| status.is_complete()) {
        assert_eq!(whole, Some(Spoken::Http1), "a request passes");
    }
});
