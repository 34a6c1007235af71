//! Path, query and header matching over whatever a client sends.
#![no_main]

use http::Request;
use leno_proxy::policy::http_match::{HeaderMatch, HttpMatch, PathMatch, QueryMatch, ValueMatch, whole};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&str, &[u8], &str, &str)| {
    let (target, header, name, pattern) = parts;
    let request = Request::builder().uri(target).header("x-a", header).header("x-a", "b").body(());
    let Ok((request, ())) = request.map(Request::into_parts) else { return };
    let value = || match whole(pattern) {
        Ok(regex) => ValueMatch::Regex(regex),
        Err(_) => ValueMatch::Exact(pattern.as_bytes().into()),
    };
    let query = QueryMatch { name: name.into(), value: value() };
    let header = HeaderMatch { name: http::HeaderName::from_static("x-a"), value: value() };
    let length = request.uri.path().len();
    for path in [PathMatch::prefix(name), PathMatch::Exact(name.into()), PathMatch::Any] {
        let matches = HttpMatch { path, ..HttpMatch::default() };
        assert!(matches.holds(&request).is_none_or(|prefix| prefix <= length), "a prefix longer than the path");
    }
    let matches = HttpMatch { query: [query].into(), headers: [header].into(), ..HttpMatch::default() };
    matches.holds(&request);
});
