//! Heads of requests: what is reset, what is there to be refused, and how they may come.

use super::side::{GET, Side, block, get_with};
use crate::{
    config::limits,
    http::{
        h2::{
            Code,
            frame::{self, END_HEADERS, END_STREAM},
            intake::Arrived,
        },
        head::Unfit,
        headers::is_grpc,
    },
};

#[test]
fn malformed_requests_end_their_stream_alone() {
    let cases: &[&[(&str, &str)]] = &[
        &[(":method", "GET"), (":scheme", "http"), (":authority", "x")],
        &[(":method", "GET"), (":path", "/"), (":authority", "x")],
        &[(":scheme", "http"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "a")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/a b")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/\u{7f}")],
        &[(":method", "GET"), (":scheme", "ftp"), (":path", "/")],
        &[(":method", "G T"), (":scheme", "http"), (":path", "/")],
        &[(":method", "GET"), (":method", "GET"), (":scheme", "http"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":status", "200")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":x", "200")],
        &[(":method", "GET"), (":scheme", "http"), ("a", "b"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a b")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":protocol", "websocket")],
        &[(":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", "x")],
        &[(":method", "CONNECT")],
        &[(":method", "CONNECT"), (":protocol", "websocket"), (":authority", "x")],
        &[("Name", "upper case")],
        &[("", "no name")],
        &[("a:b", "colon")],
        &[("a b", "blank")],
        &[("a\0", "zero")],
        &[("a", "b\r\nc: d")],
        &[("a", "b\0")],
        &[("a", " b")],
        &[("a", "b\t")],
        &[("connection", "close")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "h2c")],
        &[("te", "gzip")],
        &[("content-length", "1")],
        &[("content-length", "+0")],
        &[("content-length", "")],
        &[("content-length", "0"), ("content-length", "0")],
        &[("content-length", "18446744073709551616")],
    ];
    let mut side = Side::server();
    for (place, fields) in cases.iter().enumerate() {
        let id = 2 * place as u32 + 1;
        let whole = if fields[0].0.starts_with(':') { block(fields) } else { get_with(fields) };
        side.frame(frame::HEADERS, END_HEADERS | END_STREAM, id, &whole).unwrap();
        assert_eq!(side.resets(), [(id, Code::PROTOCOL_ERROR)], "{fields:?}");
        assert_eq!(side.malformed().len(), 1, "{fields:?}");
    }
    assert!(side.arrived().is_empty());
    let good =
        get_with(&[("te", "trailers"), ("cookie", "a"), ("cookie", "b"), ("x", "\t".trim()), ("y", "b\tc \u{e4}")]);
    side.frame(frame::HEADERS, END_HEADERS | END_STREAM, 1001, &good).unwrap();
    let (arrived, ..) = side.arrived().pop().unwrap();
    assert_eq!((arrived.head.authority(), arrived.head.target(), arrived.refused), (Some("shop"), "/", None));
    assert_eq!(arrived.head.fields.len(), 5);
}

#[test]
fn hosts_and_authorities() {
    let of = |fields: &[(&str, &str)]| {
        let mut side = Side::server();
        side.frame(frame::HEADERS, END_HEADERS | END_STREAM, 1, &block(fields)).unwrap();
        let (arrived, ..) = side.arrived().pop().unwrap();
        (arrived.head.authority().map(str::to_owned), arrived.refused.is_some())
    };
    let [method, scheme, path, _] = GET;
    let shop = Some("shop".to_owned());
    assert_eq!(of(&[method, scheme, path]), (None, false));
    assert_eq!(of(&[method, scheme, path, ("host", "shop")]), (shop.clone(), false));
    assert_eq!(of(&[method, scheme, path, (":authority", "shop"), ("host", "SHOP")]), (shop.clone(), false));
    assert_eq!(of(&[method, scheme, path, (":authority", "shop"), ("host", "other")]), (shop.clone(), true));
    assert_eq!(of(&[method, scheme, path, (":authority", "shop"), ("host", "")]), (shop.clone(), true));
    assert_eq!(of(&[method, scheme, path, ("host", "shop"), ("host", "shop")]), (shop, true));
}

#[test]
fn heads_may_come_in_pieces_and_not_interrupted() {
    let whole = get_with(&[("x", "y")]);
    let mut side = Side::server();
    side.frame(frame::HEADERS, END_STREAM, 1, &whole[..3]).unwrap();
    side.frame(frame::CONTINUATION, 0, 1, &whole[3..3]).unwrap();
    side.frame(frame::CONTINUATION, END_HEADERS, 1, &whole[3..]).unwrap();
    let (arrived, _, receive) = side.arrived().pop().unwrap();
    assert_eq!(arrived.head.fields.len(), 1);
    assert!(receive.is_end());
    for (kind, stream) in [(frame::CONTINUATION, 3), (frame::DATA, 1), (frame::PING, 0), (0x42, 0)] {
        let mut side = Side::server();
        side.frame(frame::HEADERS, END_STREAM, 1, &whole[..3]).unwrap();
        assert_eq!(side.fault(kind, END_HEADERS, stream, &[0; 8]), Code::PROTOCOL_ERROR);
    }
}

/// As browsers and curl send them, and HTTP/1 takes them.
#[test]
fn a_query_may_have_a_grave_accent() {
    for (path, fits) in [("/?q=`id`", true), ("/a?`", true), ("/`", false), ("/`?`", false), ("/?`#", false)] {
        let mut side = Side::server();
        let [method, scheme, _, authority] = GET;
        let whole = block(&[method, scheme, (":path", path), authority]);
        side.frame(frame::HEADERS, END_STREAM | END_HEADERS, 1, &whole).unwrap();
        let arrived: Vec<_> =
            side.arrived().into_iter().map(|(arrived, ..)| arrived.head.target().to_owned()).collect();
        assert_eq!(arrived, if fits { vec![path] } else { vec![] });
    }
}

#[test]
fn heads_have_an_end() {
    let mut side = Side::server();
    side.frame(frame::HEADERS, END_STREAM, 1, &get_with(&[])).unwrap();
    let filler = block(&[("a", &"x".repeat(16_000))]);
    let fault = (0..100).find_map(|_| side.frame(frame::CONTINUATION, 0, 1, &filler).err());
    assert_eq!(fault.unwrap().code, Code::ENHANCE_YOUR_CALM);
    let mut side = Side::server();
    side.frame(frame::HEADERS, END_STREAM, 1, &get_with(&[])).unwrap();
    let fault = (0..1000).find_map(|_| side.frame(frame::CONTINUATION, 0, 1, &[]).err());
    assert_eq!(fault.unwrap().code, Code::ENHANCE_YOUR_CALM);
}

/// What is left of the only request, which is beyond the limits: method and target, and whether it is gRPC.
fn beyond_the_limits(side: &mut Side) -> (String, bool) {
    let mut arrived = side.arrived();
    let (Arrived { head, refused, .. }, ..) = arrived.pop().unwrap();
    assert!(arrived.is_empty());
    assert_eq!(refused, Some(Unfit::TooLarge));
    let grpc = is_grpc(&head.fields);
    assert_eq!(head.fields.len(), usize::from(grpc));
    (format!("{} {}", head.method, head.target()), grpc)
}

#[test]
fn heads_beyond_the_limits_are_there_to_be_answered() {
    let one = "x".repeat(4000);
    let many: Vec<(&str, &str)> = (0..300).map(|_| ("a", "b")).collect();
    let large: Vec<(&str, &str)> = (0..20).map(|_| ("a", one.as_str())).collect();
    let of_grpc = [("content-type", "application/grpc+proto")];
    for fields in [&many, &large] {
        for (before, after) in [(&[][..], &[][..]), (&of_grpc, &[]), (&[], &of_grpc)] {
            let mut side = Side::server();
            let whole = get_with(&[before, fields, after].concat());
            let (first, rest) = whole.split_at(whole.len().min(60_000));
            side.frame(frame::HEADERS, END_STREAM, 1, first).unwrap();
            side.frame(frame::CONTINUATION, END_HEADERS, 1, rest).unwrap();
            assert_eq!(beyond_the_limits(&mut side), ("GET /".to_owned(), !before.is_empty() || !after.is_empty()));
            assert!(side.malformed().is_empty());
        }
    }
    // Its target alone.
    let mut side = Side::server();
    let long = format!("/{}", "x".repeat(limits::HEAD_BYTES));
    let [method, scheme, _, authority] = GET;
    let whole = block(&[method, scheme, (":path", &long), authority]);
    let (first, rest) = whole.split_at(60_000);
    side.frame(frame::HEADERS, END_STREAM, 1, first).unwrap();
    side.frame(frame::CONTINUATION, END_HEADERS, 1, rest).unwrap();
    assert_eq!(beyond_the_limits(&mut side), ("GET -".to_owned(), false));
    // A bomb: one large entry of the table, again and again.
    let mut bomb = get_with(&[]);
    bomb.extend([0x40, 1, b'a', 127, 0x81, 0x1e]);
    bomb.extend([b'x'; 0x7f + 0x01 + (0x1e << 7)]);
    bomb.extend([0xbe; 50_000]);
    let mut side = Side::server();
    side.frame(frame::HEADERS, END_STREAM | END_HEADERS, 1, &bomb).unwrap();
    assert_eq!(beyond_the_limits(&mut side), ("GET /".to_owned(), false));
}

#[test]
fn too_many_heads_beyond_the_limits_are_a_flood() {
    let mut side = Side::server();
    // By index: `accept-encoding: gzip, deflate`.
    let whole = [get_with(&[]), vec![0x90; limits::HEADERS + 1]].concat();
    let fault = (0..100_000).find_map(|n| {
        let ended = side.frame(frame::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &whole).err();
        side.arrived();
        ended
    });
    assert_eq!(fault.unwrap().code, Code::ENHANCE_YOUR_CALM);
}
