//! Heads from servers: what the codec takes, httparse reads the same.
#![no_main]

use http::Method;
use leno_proxy::{
    config::limits,
    http::h1::{Framing, parse::parse_response},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(response)) = parse_response(bytes, &Method::GET) else { return };
    let mut fields = vec![httparse::EMPTY_HEADER; limits::HEADERS];
    let mut theirs = httparse::Response::new(&mut fields);
    assert_eq!(theirs.parse(bytes), Ok(httparse::Status::Complete(response.length)));
    assert_eq!(theirs.code, Some(response.head.status.as_u16()));
    let mut ours = response.head.fields.iter().peekable();
    let (mut chunked, mut length) = (false, None);
    for field in theirs.headers.iter() {
        let name = field.name.to_ascii_lowercase();
        match name.as_str() {
            "transfer-encoding" => {
                assert!(!chunked && field.value.eq_ignore_ascii_case(b"chunked"));
                chunked = true;
                continue;
            }
            "content-length" => {
                let stated: u64 = std::str::from_utf8(field.value).expect("text").parse().expect("a number");
                if length.replace(stated).is_some_and(|held| held == stated) {
                    continue;
                }
            }
            "connection" if ours.peek() != Some(&(name.as_bytes(), field.value)) => continue,
            _ => {}
        }
        assert_eq!(ours.next(), Some((name.as_bytes(), field.value)));
    }
    assert_eq!(ours.next(), None);
    let status = response.head.status;
    let expected = match (chunked, length) {
        _ if status.is_informational() || status == 204 || status == 304 => Framing::Length(0),
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Close,
        (true, Some(_)) => panic!("two lengths"),
    };
    assert_eq!(response.framing, expected);
    for end in 0..response.length {
        assert!(matches!(parse_response(&bytes[..end], &Method::GET), Ok(None)));
    }
});
