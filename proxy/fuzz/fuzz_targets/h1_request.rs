//! Heads from clients: whatever the codec takes for plain, hyper reads the same (httparse, then the types of `http`), from the
//! same bytes and no fewer.
#![no_main]

use http::{HeaderName, HeaderValue, Method, Uri};
use leno_proxy::{
    config::limits,
    http::h1::{
        Framing,
        parse::{Parsed, has_empty_line, parse_request},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Parsed::Request(request) = parse_request(bytes) else { return };
    let mut fields = vec![httparse::EMPTY_HEADER; limits::HEADERS];
    let mut theirs = httparse::Request::new(&mut fields);
    assert_eq!(theirs.parse(bytes), Ok(httparse::Status::Complete(request.length)));
    assert_eq!(theirs.version, Some(1));
    assert_eq!(Method::from_bytes(theirs.method.expect("a method").as_bytes()).ok().as_ref(), Some(&request.head.method));
    let target: Uri = theirs.path.expect("a target").parse().expect("a target that `http` takes");
    assert!(target.scheme().is_none() && target.authority().is_none());
    assert_eq!(target.path(), request.head.path());
    assert_eq!(target.query(), request.head.query());

    let mut framing = Framing::Length(0);
    let mut hosts = 0;
    let mut ours = request.head.fields.iter();
    for field in theirs.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).expect("a name");
        let value = HeaderValue::from_bytes(field.value).expect("a value");
        match name.as_str() {
            "host" => {
                hosts += 1;
                assert_eq!(Some(value.as_bytes()), request.head.authority().map(str::as_bytes));
                continue;
            }
            "connection" => {
                let text = value.to_str().expect("text").to_ascii_lowercase();
                let mut tokens = text.split(',').map(str::trim).filter(|token| !token.is_empty());
                assert!(tokens.all(|token| token == "keep-alive" || (token == "close" && request.close)));
                continue;
            }
            "transfer-encoding" => {
                assert!(value.as_bytes().eq_ignore_ascii_case(b"chunked") && framing == Framing::Length(0));
                framing = Framing::Chunked;
                continue;
            }
            "content-length" => {
                assert_eq!(framing, Framing::Length(0));
                framing = Framing::Length(value.to_str().expect("text").parse().expect("a number"));
            }
            "upgrade" | "expect" | "http2-settings" => panic!("{name} is not plain"),
            _ => {}
        }
        assert_eq!(ours.next(), Some((name.as_str().as_bytes(), value.as_bytes())));
    }
    assert_eq!((ours.next(), hosts, framing), (None, 1, request.framing));
    for end in 0..request.length {
        assert!(matches!(parse_request(&bytes[..end]), Parsed::Incomplete));
        assert!(has_empty_line(&bytes[..request.length], end));
    }
});
