//! Path, query and header matching over whatever a client sends.
#![no_main]

use std::sync::Arc;

use leno_proto::pattern;
use leno_proxy::{
    http::h1::parse::{Parsed, parse_request},
    policy::http_match::{HeaderMatch, HttpMatch, PathMatch, QueryMatch, ValueMatch},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&str, &[u8], &str, &str)| {
    let (target, header, name, pattern) = parts;
    let head = format!("GET {target} HTTP/1.1\r\nhost: a\r\nx-a: b\r\nx-a: ");
    let Parsed::Request(request) = parse_request(&[head.as_bytes(), header, b"\r\n\r\n"].concat()) else { return };
    let request = request.head;
    let value = || match pattern::whole(pattern) {
        Ok(regex) => ValueMatch::Regex(Arc::new(regex)),
        Err(_) => ValueMatch::Exact(pattern.as_bytes().into()),
    };
    let query = QueryMatch { name: name.into(), value: value() };
    let header = HeaderMatch { name: http::HeaderName::from_static("x-a"), value: value() };
    let length = request.path().len();
    for path in [PathMatch::prefix(name), PathMatch::Exact(name.into()), PathMatch::Any] {
        let matches = HttpMatch { path, ..HttpMatch::default() };
        assert!(matches.holds(&request).is_none_or(|prefix| prefix <= length), "a prefix longer than the path");
    }
    let matches = HttpMatch { query: [query].into(), headers: [header].into(), ..HttpMatch::default() };
    matches.holds(&request);
});
