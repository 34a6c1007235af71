use http::{HeaderName, HeaderValue, Uri};
use proptest::prelude::*;

use super::*;

fn plain(bytes: &[u8]) -> Request {
    match parse_request(bytes) {
        Parsed::Request(request) => request,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

fn is_unusual(head: &str) -> bool {
    // Also when only some of it has come it must not be taken for something else.
    for end in 0..head.len() {
        assert!(!matches!(parse_request(&head.as_bytes()[..end]), Parsed::Request(_)), "{:?}", &head[..end]);
    }
    matches!(parse_request(head.as_bytes()), Parsed::Unusual)
}

#[test]
fn plain_requests_are_read() {
    let request = plain(
        b"POST /a/b%20c?d=[1]&e HTTP/1.1\r\nX-Some:  a \t b\t \r\nHOST:shop:80\r\nConnection: Keep-Alive\r\n\
          content-LENGTH: 12\r\nempty:\r\nx-some: 2\r\n\r\nGET",
    );
    assert_eq!(request.head.method, Method::POST);
    assert_eq!(request.head.target(), "/a/b%20c?d=[1]&e");
    assert_eq!(request.head.authority(), Some("shop:80"));
    let fields: Vec<_> = request.head.fields.iter().collect();
    let expected: [(&[u8], &[u8]); 4] =
        [(b"x-some", b"a \t b"), (b"content-length", b"12"), (b"empty", b""), (b"x-some", b"2")];
    assert_eq!(fields, expected);
    assert_eq!((request.framing, request.close), (Framing::Length(12), false));

    let request = plain(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert_eq!((request.framing, request.close, request.length), (Framing::Length(0), true, 46));
    assert!(request.head.fields.is_empty());
    let request = plain(b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n");
    assert_eq!(request.framing, Framing::Chunked);
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let head = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(plain(head.as_bytes()).head.method.as_str(), method);
        for end in 0..head.len() {
            assert!(matches!(parse_request(&head.as_bytes()[..end]), Parsed::Incomplete), "{:?}", &head[..end]);
        }
    }
}

#[test]
fn what_is_not_plain_is_left_to_hyper() {
    for line in [
        "get / HTTP/1.1",
        "GET / HTTP/1.0",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET /",
        "GET",
        "CONNECT a:80 HTTP/1.1",
        "TRACE / HTTP/1.1",
        "PURGE / HTTP/1.1",
        "GETS / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET a HTTP/1.1",
        "GET http://a/ HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /#a HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET /{a} HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET ?a HTTP/1.1",
        "\r\nGET / HTTP/1.1",
        "\nGET / HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET / HTTP/1.1\r",
        "\x16\x03\x01",
    ] {
        assert!(is_unusual(&format!("{line}\r\nHost: a\r\n\r\n")), "{line:?}");
    }
    for fields in [
        // Host.
        "",
        "Host: \r\n",
        "Host: a\r\nhost: a\r\n",
        "Host: a b\r\n",
        "Host: a/\r\n",
        "Host: u@a\r\n",
        "Host: a:b\r\n",
        "Host: [::1\r\n",
        "Host: a,b:c\r\n",
        "Hosts: a\r\n",
        // Lines.
        "Host: a\n",
        "Host: a\r\nX: y\n",
        "Host: a\r\nX: y\r\r\n",
        "Host: a\r\nX: a\rb\r\n",
        "Host: a\r\nX: a\nb\r\n",
        "Host: a\r\n folded\r\n",
        "Host: a\r\nX: y\r\n\tfolded\r\n",
        "Host : a\r\n",
        "Host: a\r\nX : y\r\n",
        "Host: a\r\n: y\r\n",
        "Host: a\r\nX\r\n",
        "Host: a\r\nX y: z\r\n",
        "Host: a\r\nX\x00: z\r\n",
        "Host: a\r\nX: \0\r\n",
        "Host: a\r\nX: \x7f\r\n",
        "Host: a\r\nX: \x01\r\n",
        "Host: a\r\nX: \u{e9}\r\n",
        "Host: a\r\n\u{e9}: x\r\n",
        "Host: a\r\nX(: y\r\n",
        " Host: a\r\n",
        "Host: a\r\n\rX: y\r\n",
        "Host: a\r\nX:\u{b}y\r\n",
        // The connection.
        "Host: a\r\nUpgrade: websocket\r\n",
        "Host: a\r\nExpect: 100-continue\r\n",
        "Host: a\r\nExpect:\r\n",
        "Host: a\r\nHTTP2-Settings: x\r\n",
        "Host: a\r\nConnection: upgrade\r\n",
        "Host: a\r\nConnection: close, te\r\n",
        "Host: a\r\nConnection: X-Name\r\n",
        "Host: a\r\nConnection: keep-alive\r\nConnection: te\r\n",
        // The body's length.
        "Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Host: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
        "Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        "Host: a\r\nContent-Length: 5, 5\r\n",
        "Host: a\r\nContent-Length: +5\r\n",
        "Host: a\r\nContent-Length: -5\r\n",
        "Host: a\r\nContent-Length: 5 5\r\n",
        "Host: a\r\nContent-Length: 0x5\r\n",
        "Host: a\r\nContent-Length:\r\n",
        "Host: a\r\nContent-Length: 5a\r\n",
        "Host: a\r\nContent-Length: 05\r\n",
        "Host: a\r\nContent-Length: 1_0\r\n",
        "Host: a\r\nContent-Length: 9999999999999999999\r\n",
        "Host: a\r\nContent-Length: 18446744073709551621\r\n",
        "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Host: a\r\nTransfer-Encoding: chunked, identity\r\n",
        "Host: a\r\nTransfer-Encoding: identity, chunked\r\n",
        "Host: a\r\nTransfer-Encoding: identity\r\n",
        "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n",
        "Host: a\r\nTransfer-Encoding: xchunked\r\n",
        "Host: a\r\nTransfer-Encoding:\r\n",
        "Host: a\r\nTransfer-Encoding: chunked;a\r\n",
        "Host: a\r\nTransfer-Encoding: \"chunked\"\r\n",
        "Host: a\r\nTransfer-Encoding : chunked\r\n",
        "Host: a\r\nTransfer-Encoding:\r\n chunked\r\n",
        "Host: a\r\nTransfer-Encoding: \x0bchunked\r\n",
    ] {
        assert!(is_unusual(&format!("POST / HTTP/1.1\r\n{fields}\r\n")), "{fields:?}");
    }
}

#[test]
fn heads_have_limits() {
    let with = |fields: usize, value: usize| {
        let field = format!("x: {}\r\n", "y".repeat(value));
        format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", field.repeat(fields))
    };
    assert!(matches!(parse_request(with(limits::HEADERS - 1, 1).as_bytes()), Parsed::Request(_)));
    assert!(matches!(parse_request(with(limits::HEADERS, 1).as_bytes()), Parsed::Unusual));
    let around = with(1, 0).len();
    let largest = with(1, limits::HEAD_BYTES - around);
    assert!(matches!(parse_request(largest.as_bytes()), Parsed::Request(_)));
    assert!(matches!(parse_request(with(1, limits::HEAD_BYTES - around + 1).as_bytes()), Parsed::Unusual));
    // What can no longer become one is not waited for.
    assert!(matches!(parse_request(&largest.as_bytes()[..limits::HEAD_BYTES - 1]), Parsed::Incomplete));
    let endless = "GET / HTTP/1.1\r\nhost: a\r\nx: ".to_owned() + &"y".repeat(limits::HEAD_BYTES);
    assert!(matches!(parse_request(endless.as_bytes()), Parsed::Unusual));
}

#[test]
fn an_empty_line_is_noticed_wherever_it_was_cut() {
    for head in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\n\n", "GET / HTTP/1.1\n\r\n", "GET / HTTP/1.1\r\n\n"] {
        for seen in 0..head.len() {
            assert!(has_empty_line(head.as_bytes(), seen), "{head:?} at {seen}");
        }
        assert!(!has_empty_line(&head.as_bytes()[..head.len() - 1], 0));
    }
}

fn answer(head: &str) -> Result<Response, Refused> {
    let read = parse_response(head.as_bytes(), &Method::GET)?;
    for end in 0..head.len() {
        assert!(matches!(parse_response(&head.as_bytes()[..end], &Method::GET), Ok(None)), "{:?}", &head[..end]);
    }
    Ok(read.expect("a whole head"))
}

#[test]
fn responses_are_delimited_as_the_rfc_says() {
    for (head, framing, close) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Framing::Length(5), false),
        ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", Framing::Length(0), false),
        ("HTTP/1.1 200 \r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0050\r\n\r\n", Framing::Length(50), false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 000\r\n\r\n", Framing::Length(0), false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n", Framing::Chunked, true),
        ("HTTP/1.1 404 Not Here (\u{e9})\r\n\r\n", Framing::Close, true),
        ("HTTP/1.1 204 No Content\r\n\r\n", Framing::Length(0), false),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Framing::Length(0), false),
        ("HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", Framing::Length(0), false),
        ("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", Framing::Length(0), false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", Framing::Length(5), true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: Keep-Alive\r\n\r\n", Framing::Length(5), false),
        ("HTTP/1.0 200 OK\r\n\r\n", Framing::Close, true),
        ("HTTP/1.1 599 ?\r\nx: \u{e9}\r\ncontent-length: 1\r\n\r\n", Framing::Length(1), false),
    ] {
        let read = answer(head).unwrap();
        assert_eq!((read.framing, read.close, read.length), (framing, close, head.len()), "{head:?}");
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    let read = parse_response(head, &Method::HEAD).unwrap().unwrap();
    assert_eq!(read.framing, Framing::Length(0));
    assert_eq!(read.head.fields.values(b"content-length").next(), Some(&b"5"[..]));
    // What names fields is for the path to see to.
    let read = answer("HTTP/1.1 200 OK\r\nconnection: close, x-one\r\ncontent-length: 0\r\n\r\n").unwrap();
    assert!(read.close && read.head.fields.values(b"connection").next().is_some());
}

#[test]
fn doubtful_responses_are_refused() {
    for head in [
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1\t200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "220 mail ESMTP\r\n",
        "<html>",
        "HTTP/1.1 200 OK\r\nx: y\n\r\n",
        "HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: y\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 204 OK\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        assert!(parse_response(head.as_bytes(), &Method::GET).is_err(), "{head:?}");
    }
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(limits::HEADERS + 1));
    assert!(parse_response(many.as_bytes(), &Method::GET).is_err());
    let endless = "HTTP/1.1 200 ".to_owned() + &"y".repeat(limits::HEAD_BYTES);
    assert!(parse_response(endless.as_bytes(), &Method::GET).is_err());
}

#[test]
fn values_end_where_they_end() {
    for length in 0..40 {
        for at in 0..=length {
            for stop in [b'\r', b'\n', 0, 0x1f, 0x7f, 0x80, 0xff] {
                let mut bytes = vec![b'a'; length];
                bytes.insert(at, stop);
                if at > 2 {
                    bytes[at - 2] = b'\t';
                }
                assert_eq!(end_of_value(&bytes, 0, false), at, "{stop} at {at} of {length}");
                let end = if stop >= 0x80 { length + 1 } else { at };
                assert_eq!(end_of_value(&bytes, 0, true), end);
            }
        }
    }
}

/// What hyper takes the head for: method, target, fields, length of the head.
type Read = (String, String, Vec<(String, Vec<u8>)>, usize);

/// As hyper reads a head: httparse, then the types of `http`.
fn as_hyper_reads(bytes: &[u8]) -> Option<Read> {
    let mut fields = vec![httparse::EMPTY_HEADER; limits::HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(bytes).ok()? else { return None };
    assert_eq!(request.version, Some(1));
    let method = Method::from_bytes(request.method.unwrap().as_bytes()).unwrap();
    let target: Uri = request.path.unwrap().parse().unwrap();
    assert!(target.authority().is_none() && target.scheme().is_none());
    let fields = request.headers.iter().map(|field| {
        let name = HeaderName::from_bytes(field.name.as_bytes()).unwrap();
        (name.as_str().to_owned(), HeaderValue::from_bytes(field.value).unwrap().as_bytes().to_owned())
    });
    Some((method.to_string(), target.path_and_query().unwrap().as_str().to_owned(), fields.collect(), length))
}

/// Whatever is taken for plain is read as hyper reads it, however much follows it, and from no fewer bytes.
fn check(bytes: &[u8]) -> bool {
    let Parsed::Request(request) = parse_request(bytes) else { return false };
    let (method, target, mut fields, length) = as_hyper_reads(bytes).expect("hyper reads it too");
    assert_eq!((request.head.method.as_str(), request.head.target()), (method.as_str(), target.as_str()));
    assert_eq!(request.length, length);
    fields.retain(|(name, value)| match name.as_str() {
        "host" => {
            assert_eq!(Some(value.as_slice()), request.head.authority().map(str::as_bytes));
            false
        }
        "connection" => false,
        "transfer-encoding" => {
            assert_eq!(request.framing, Framing::Chunked);
            false
        }
        "content-length" => {
            let length = std::str::from_utf8(value).unwrap().parse().unwrap();
            assert_eq!(request.framing, Framing::Length(length));
            true
        }
        _ => true,
    });
    let read: Vec<_> = request
        .head
        .fields
        .iter()
        .map(|(name, value)| (String::from_utf8(name.to_owned()).unwrap(), value.to_owned()))
        .collect();
    assert_eq!(read, fields);
    assert!(matches!(parse_request(&bytes[..length]), Parsed::Request(_)));
    for end in 0..length {
        assert!(matches!(parse_request(&bytes[..end]), Parsed::Incomplete), "at {end}");
    }
    true
}

const PIECES: &[&str] = &[
    "GET",
    "POST",
    "PUT",
    "HEAD",
    "OPTIONS",
    " ",
    " ",
    "/",
    "/a?b",
    "/%20",
    "*",
    "http://a/",
    " HTTP/1.1\r\n",
    "HTTP/1.0",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    "\t",
    "Host: a\r\n",
    "host:b:80\r\n",
    "Content-Length: 5\r\n",
    "Content-Length:",
    "0",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding:",
    "chunked",
    "x: y\r\n",
    "X-A:",
    "Connection: close\r\n",
    "Connection: x\r\n",
    ":",
    ",",
    "\0",
    "\u{e9}",
    "Upgrade: x\r\n",
    "a",
    "#",
    "?",
    "{",
];

proptest! {
    #[test]
    fn plain_requests_are_read_as_hyper_reads_them(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..20),
    ) {
        check(pieces.concat().as_bytes());
    }

    #[test]
    fn likely_requests_are_read_as_hyper_reads_them(
        method in "(GET|POST|PUT|HEAD|DELETE|PATCH|OPTIONS)",
        target in "/[!-~]{0,20}",
        fields in proptest::collection::vec("[!-~]{1,12}:[ \t]{0,2}[ -~\t]{0,20}\r\n", 0..6),
        framing in "((content-length: [0-9]{1,20}|transfer-encoding: chunked)\r\n)?",
        rest in "[ -~\r\n]{0,20}",
    ) {
        let head = format!("{method} {target} HTTP/1.1\r\nhost: a\r\n{}{framing}\r\n{rest}", fields.concat());
        check(head.as_bytes());
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
        let _ = parse_response(&bytes, &Method::GET);
        let _ = parse_trailers(&bytes);
    }
}
