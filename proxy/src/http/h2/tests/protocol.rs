//! What peers may and may not do, frame by frame, without I/O.

use std::task::Poll;

use http::{Method, StatusCode};

use super::side::{Side, block, body, capacity, cx, framed, get_with};
use crate::{
    config::limits,
    http::{
        h2::{
            Code, Frame, Kind, RecvStream, SendStream, Settings, StreamError,
            frame::{self, ACK, END_HEADERS, END_STREAM, PADDED, WITH_PRIORITY},
            state::Role,
        },
        head::{Fields, ResponseHead},
    },
};

#[test]
fn what_breaks_the_connection() {
    let ended = |kind, flags, stream, payload: &[u8]| Side::server().fault(kind, flags, stream, payload);
    let protocol = Code::PROTOCOL_ERROR;
    assert_eq!(ended(frame::DATA, 0, 1, b"x"), protocol, "idle stream");
    assert_eq!(ended(frame::HEADERS, END_HEADERS, 0, &get_with(&[])), protocol, "stream 0");
    assert_eq!(ended(frame::HEADERS, END_HEADERS, 2, &get_with(&[])), protocol, "an even stream");
    assert_eq!(ended(frame::HEADERS, END_HEADERS, 1, &[0x80]), Code::COMPRESSION_ERROR);
    assert_eq!(ended(frame::HEADERS, END_HEADERS | PADDED, 1, &[5, 0x82]), protocol, "padding");
    assert_eq!(ended(frame::HEADERS, END_HEADERS | WITH_PRIORITY, 1, &[0; 4]), Code::FRAME_SIZE_ERROR);
    assert_eq!(ended(frame::CONTINUATION, END_HEADERS, 1, &get_with(&[])), protocol);
    assert_eq!(ended(frame::PUSH_PROMISE, END_HEADERS, 1, &[0; 4]), protocol);
    assert_eq!(ended(frame::PRIORITY, 0, 0, &[0; 5]), protocol);
    assert_eq!(ended(frame::RST_STREAM, 0, 0, &[0; 4]), protocol);
    assert_eq!(ended(frame::RST_STREAM, 0, 1, &[0; 4]), protocol, "idle stream");
    assert_eq!(ended(frame::RST_STREAM, 0, 1, &[0; 3]), Code::FRAME_SIZE_ERROR);
    assert_eq!(ended(frame::PING, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR);
    assert_eq!(ended(frame::PING, 0, 1, &[0; 8]), protocol);
    assert_eq!(ended(frame::GOAWAY, 0, 1, &[0; 8]), protocol);
    assert_eq!(ended(frame::GOAWAY, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR);
    assert_eq!(ended(frame::WINDOW_UPDATE, 0, 0, &[0; 4]), protocol);
    assert_eq!(ended(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), protocol, "idle stream");
    assert_eq!(ended(frame::WINDOW_UPDATE, 0, 0, &[0; 5]), Code::FRAME_SIZE_ERROR);
    assert_eq!(ended(frame::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), Code::FLOW_CONTROL_ERROR);
    assert_eq!(ended(frame::SETTINGS, 0, 1, &[]), protocol);
    assert_eq!(ended(frame::SETTINGS, 0, 0, &[0; 5]), Code::FRAME_SIZE_ERROR);
    assert_eq!(ended(frame::SETTINGS, ACK, 0, &[0; 6]), Code::FRAME_SIZE_ERROR);
    assert_eq!(ended(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), protocol, "ENABLE_PUSH");
    assert_eq!(ended(frame::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), Code::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE");
    assert_eq!(ended(frame::SETTINGS, 0, 0, &[0, 5, 0, 0, 0x3f, 0xff]), protocol, "MAX_FRAME_SIZE");
    assert_eq!(ended(frame::DATA, 0, 1, &[0; 65_537]), Code::FRAME_SIZE_ERROR);
}

#[test]
fn a_connection_begins_as_it_must() {
    let mut side = Side::new(Role::Server, Settings::new());
    assert_eq!(side.feed(b"GET / HTTP/1.1\r\n\r\n").unwrap_err().code, Code::PROTOCOL_ERROR);
    let mut side = Side::new(Role::Server, Settings::new());
    side.feed(frame::PREFACE).unwrap();
    assert_eq!(side.frame(frame::PING, 0, 0, &[0; 8]).unwrap_err().code, Code::PROTOCOL_ERROR);
    assert_eq!(Side::new(Role::Client, Settings::new()).fault(frame::SETTINGS, ACK, 0, &[]), Code::PROTOCOL_ERROR);
    // Byte by byte.
    let mut side = Side::new(Role::Server, Settings::new());
    let hello = [&frame::PREFACE[..], &framed(frame::SETTINGS, 0, 0, &[0, 9, 0, 0, 0, 1])].concat();
    for byte in hello {
        side.feed(&[byte]).unwrap();
    }
    assert_eq!(side.sent().len(), 1);
}

#[test]
fn lengths_hold() {
    for (sent, end, code) in [
        (&b"12345"[..], true, None),
        (b"1234", true, Some(Code::PROTOCOL_ERROR)),
        (b"123456", false, Some(Code::PROTOCOL_ERROR)),
    ] {
        let mut side = Side::server();
        side.frame(frame::HEADERS, END_HEADERS, 1, &get_with(&[("content-length", "5")])).unwrap();
        let (_, _send, mut receive) = side.arrived().pop().unwrap();
        assert_eq!(receive.exact_length(), Some(5));
        side.frame(frame::DATA, if end { END_STREAM } else { 0 }, 1, sent).unwrap();
        assert_eq!(side.resets(), code.map(|code| (1, code)).into_iter().collect::<Vec<_>>());
        assert_eq!(body(&mut receive).is_ok(), code.is_none());
    }
}

#[test]
fn streams_that_have_ended_take_no_more() {
    let mut side = Side::server();
    let (mut send, mut receive) = side.open();
    side.frame(frame::DATA, PADDED, 1, b"\x02hello..").unwrap();
    assert_eq!(body(&mut receive).unwrap(), b"hello");
    side.frame(frame::HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("grpc-status", "0")])).unwrap();
    let Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) = receive.poll_frame(&mut cx()) else { panic!("no trailers") };
    assert_eq!(*trailers, Fields::from_iter([("grpc-status", "0")]));
    assert!(matches!(receive.poll_frame(&mut cx()), Poll::Ready(None)) && receive.is_end());
    side.frame(frame::DATA, 0, 1, b"x").unwrap();
    assert_eq!(side.resets(), [(1, Code::STREAM_CLOSED)]);
    // Already reset: what still comes means nothing, but does count for the window.
    side.frame(frame::DATA, END_STREAM, 1, b"x").unwrap();
    side.frame(frame::HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("a", "b")])).unwrap();
    side.frame(frame::RST_STREAM, 0, 1, &[0; 4]).unwrap();
    side.frame(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).unwrap();
    assert_eq!(side.resets(), []);
    assert!(poll_reset(&mut send).is_some());
    send.send_response(&ResponseHead::new(StatusCode::OK), true);
    assert_eq!(side.sent(), []);
    // One that was closed long ago.
    let mut side = Side::server();
    let (mut send, receive) = side.open();
    side.frame(frame::DATA, END_STREAM, 1, b"").unwrap();
    send.send_response(&ResponseHead::new(StatusCode::OK), true);
    drop((send, receive));
    side.sent();
    assert_eq!(side.link.borrow().streams(), 0);
    assert!(side.link.borrow().is_idle());
    side.frame(frame::DATA, 0, 1, b"x").unwrap();
    side.frame(frame::DATA, 0, 1, b"x").unwrap();
    assert_eq!(side.resets(), [(1, Code::STREAM_CLOSED)]);
}

fn poll_reset(send: &mut SendStream) -> Option<StreamError> {
    match send.poll_reset(&mut cx()) {
        Poll::Ready(error) => Some(error),
        Poll::Pending => None,
    }
}

#[test]
fn trailers_end_the_stream_and_have_no_pseudo_fields() {
    for (flags, fields) in [(END_HEADERS, ("a", "b")), (END_HEADERS | END_STREAM, (":path", "/"))] {
        let mut side = Side::server();
        let (_send, _receive) = side.open();
        side.frame(frame::HEADERS, flags, 1, &block(&[fields])).unwrap();
        assert_eq!(side.resets(), [(1, Code::PROTOCOL_ERROR)]);
    }
}

#[test]
fn no_more_streams_than_announced() {
    let mut side = Side::new(Role::Server, Settings { most_streams: 2, ..Settings::new() });
    side.feed(frame::PREFACE).unwrap();
    side.frame(frame::SETTINGS, 0, 0, &[]).unwrap();
    for id in [1, 3, 5] {
        side.frame(frame::HEADERS, END_HEADERS, id, &get_with(&[])).unwrap();
    }
    assert_eq!(side.resets(), [(5, Code::REFUSED_STREAM)]);
    let mut open = side.arrived();
    assert_eq!(open.len(), 2);
    open.pop();
    assert_eq!(side.resets(), [(3, Code::CANCEL)]);
    side.frame(frame::HEADERS, END_HEADERS, 7, &get_with(&[])).unwrap();
    assert_eq!(side.resets(), []);
}

#[test]
fn windows_are_kept_and_given_back_as_bytes_are_taken() {
    let mut side = Side::server();
    let (_send, mut receive) = side.open();
    let chunk = vec![0; 65_536];
    let chunks = limits::H2_STREAM_WINDOW as usize / chunk.len();
    for _ in 0..chunks {
        side.frame(frame::DATA, 0, 1, &chunk).unwrap();
    }
    assert_eq!(side.sent(), [], "nothing was taken");
    assert_eq!(body(&mut receive).unwrap().len(), limits::H2_STREAM_WINDOW as usize);
    let update = limits::H2_STREAM_WINDOW.to_be_bytes().to_vec();
    assert_eq!(side.sent(), [0, 1].map(|stream| (frame::WINDOW_UPDATE, 0, stream, update.clone())));
    for _ in 0..chunks {
        side.frame(frame::DATA, 0, 1, &chunk).unwrap();
    }
    side.frame(frame::DATA, 0, 1, b"x").unwrap();
    assert_eq!(side.resets(), [(1, Code::FLOW_CONTROL_ERROR)]);
    // What nobody reads any more does not fill the connection's window.
    drop(receive);
    let window = limits::H2_CONNECTION_WINDOW as usize / chunk.len();
    let mut told = 0;
    for n in 0..window as u32 * 3 {
        side.frame(frame::HEADERS, END_HEADERS, 2 * n + 3, &get_with(&[])).unwrap();
        side.frame(frame::DATA, 0, 2 * n + 3, &chunk).unwrap();
        drop(side.arrived());
        told += side.sent().iter().filter(|(kind, _, stream, _)| (*kind, *stream) == (frame::WINDOW_UPDATE, 0)).count();
    }
    assert!(told >= 5);
}

#[test]
fn the_connections_window_is_kept() {
    let mut side = Side::server();
    let mut open = Vec::new();
    for n in 0..limits::H2_CONNECTION_WINDOW / limits::H2_STREAM_WINDOW {
        side.frame(frame::HEADERS, END_HEADERS, 2 * n + 1, &get_with(&[])).unwrap();
        open.extend(side.arrived());
        for _ in 0..limits::H2_STREAM_WINDOW / 65_536 {
            side.frame(frame::DATA, 0, 2 * n + 1, &[0; 65_536]).unwrap();
        }
    }
    side.frame(frame::HEADERS, END_HEADERS, 999, &get_with(&[])).unwrap();
    assert_eq!(side.fault(frame::DATA, 0, 999, b"x"), Code::FLOW_CONTROL_ERROR);
}

#[test]
fn no_more_is_sent_than_windows_allow() {
    let mut side = Side::server();
    let (mut send, _receive) = side.open();
    send.send_response(&ResponseHead::new(StatusCode::OK), false);
    side.sent();
    assert_eq!(capacity(&mut send), 65_535);
    assert_eq!(send.send_data(&[0; 70_000], true), 65_535);
    let sizes: Vec<usize> = side.sent().iter().map(|(_, flags, _, payload)| payload.len() + *flags as usize).collect();
    assert_eq!(sizes, [16_384, 16_384, 16_384, 16_383]);
    assert_eq!((capacity(&mut send), send.send_data(b"x", false)), (0, 0));
    side.frame(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 10]).unwrap();
    assert_eq!(capacity(&mut send), 0, "the connection's");
    side.frame(frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 5]).unwrap();
    side.link.borrow_mut().give_turns();
    assert_eq!(capacity(&mut send), 5);
    // A smaller window takes back what was allowed, even beyond nothing.
    side.frame(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).unwrap();
    assert_eq!(capacity(&mut send), 0);
    side.frame(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0xff, 0xff]).unwrap();
    assert_eq!(capacity(&mut send), 5, "10 of 65,545");
    side.frame(frame::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).unwrap_err();
}

#[test]
fn too_wide_a_window_ends_the_stream() {
    let mut side = Side::server();
    let (_send, _receive) = side.open();
    side.frame(frame::WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]).unwrap();
    assert_eq!(side.resets(), [(1, Code::FLOW_CONTROL_ERROR)]);
    let mut side = Side::server();
    let (_send, _receive) = side.open();
    side.frame(frame::WINDOW_UPDATE, 0, 1, &[0; 4]).unwrap();
    assert_eq!(side.resets(), [(1, Code::PROTOCOL_ERROR)]);
}

#[test]
fn floods_are_ended() {
    let flood = |open: bool, frames: &dyn Fn(u32) -> Vec<u8>| {
        let mut side = Side::server();
        let _open = open.then(|| side.open());
        (0..100_000).find_map(|n| side.feed(&frames(n)).err()).map(|fault| fault.code)
    };
    let calm = Some(Code::ENHANCE_YOUR_CALM);
    let request = get_with(&[]);
    let taken_back = |n: u32| {
        let head = framed(frame::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &request);
        [head, framed(frame::RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()
    };
    assert_eq!(flood(false, &taken_back), calm, "rapid reset");
    // Later, and each for its own reason, perhaps.
    let open = |n: u32| framed(frame::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &request);
    let reset = |n: u32| framed(frame::RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]);
    let mut side = Side::server();
    for n in 0..5000 {
        side.feed(&open(n)).unwrap();
        if let Some(earlier) = n.checked_sub(50) {
            side.feed(&reset(earlier)).unwrap();
        }
    }
    let malformed = |n: u32| framed(frame::HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &[0x82]);
    assert_eq!(flood(false, &malformed), calm, "made-you-reset");
    assert_eq!(flood(true, &|_| framed(frame::DATA, 0, 1, &[])), calm, "empty DATA");
    assert_eq!(flood(true, &|_| framed(frame::PRIORITY, 0, 1, &[0; 5])), calm);
    assert_eq!(flood(false, &|_| framed(frame::SETTINGS, 0, 0, &[])), calm);
    assert_eq!(flood(false, &|_| framed(0x42, 0, 0, &[])), calm, "unknown frames");
    assert_eq!(flood(true, &|_| framed(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])), None, "allowed");
}

#[test]
fn answers_are_counted_until_they_are_written() {
    let mut side = Side::server();
    side.frame(frame::PING, 0, 0, b"12345678").unwrap();
    side.frame(frame::PING, ACK, 0, b"12345678").unwrap();
    assert_eq!(side.sent(), [(frame::PING, ACK, 0, b"12345678".to_vec())]);
    assert_eq!(side.link.borrow().answers, 9 + 17, "SETTINGS and PING");
}

fn response(fields: &[(&str, &str)]) -> Vec<u8> {
    block(&[&[(":status", "200")], fields].concat())
}

#[test]
fn responses_are_checked_too() {
    for (flags, bad) in [
        (0, block(&[("a", "b")])),
        (0, block(&[(":status", "20")])),
        (0, block(&[(":status", "101")])),
        (END_STREAM, block(&[(":status", "100")])),
        (0, block(&[(":status", "200"), (":status", "200")])),
        (0, block(&[("a", "b"), (":status", "200")])),
        (0, response(&[(":path", "/")])),
        (0, response(&[("connection", "close")])),
        (0, response(&[("content-length", "x")])),
        (END_STREAM, response(&[("content-length", "1")])),
    ] {
        let mut side = Side::client();
        let (_send, mut receive) = side.ask(Method::GET, true);
        side.frame(frame::HEADERS, END_HEADERS | flags, 1, &bad).unwrap();
        assert_eq!(side.resets(), [(1, Code::PROTOCOL_ERROR)], "{bad:?}");
        let error = body(&mut receive).unwrap_err();
        assert_eq!((error.kind, error.code), (Kind::Malformed, Code::PROTOCOL_ERROR));
    }
    let mut side = Side::client();
    let (_send, _receive) = side.ask(Method::GET, true);
    side.frame(frame::DATA, 0, 1, b"x").unwrap();
    assert_eq!(side.resets(), [(1, Code::PROTOCOL_ERROR)], "DATA before the head");
    let mut side = Side::client();
    let (_send, _receive) = side.ask(Method::GET, true);
    assert_eq!(side.fault(frame::HEADERS, END_HEADERS, 3, &response(&[])), Code::PROTOCOL_ERROR);
}

#[test]
fn responses_without_body() {
    for (method, status) in [(Method::HEAD, "200"), (Method::GET, "304"), (Method::GET, "204")] {
        let mut side = Side::client();
        let (_send, mut receive) = side.ask(method, true);
        let head = block(&[(":status", status), ("content-length", "10")]);
        side.frame(frame::HEADERS, END_HEADERS | END_STREAM, 1, &head).unwrap();
        assert_eq!(side.resets(), []);
        assert_eq!(receive.exact_length(), Some(0));
        assert_eq!(body(&mut receive).unwrap(), b"");
        assert!(receive.is_end());
    }
    let mut side = Side::client();
    let (_send, _receive) = side.ask(Method::HEAD, true);
    side.frame(frame::HEADERS, END_HEADERS, 1, &response(&[])).unwrap();
    side.frame(frame::DATA, 0, 1, b"x").unwrap();
    assert_eq!(side.resets(), [(1, Code::PROTOCOL_ERROR)]);
}

#[test]
fn informational_responses_come_first() {
    let mut side = Side::client();
    let (_send, mut receive) = side.ask(Method::POST, false);
    let head = |receive: &mut RecvStream| match receive.poll_response(&mut cx()) {
        Poll::Ready(head) => Some(head.unwrap().status.as_u16()),
        Poll::Pending => None,
    };
    assert_eq!(head(&mut receive), None);
    side.frame(frame::HEADERS, END_HEADERS, 1, &block(&[(":status", "100")])).unwrap();
    assert_eq!(head(&mut receive), Some(100));
    side.frame(frame::HEADERS, END_HEADERS, 1, &block(&[(":status", "103")])).unwrap();
    side.frame(frame::HEADERS, END_HEADERS, 1, &response(&[])).unwrap();
    assert_eq!([head(&mut receive), head(&mut receive), head(&mut receive)], [Some(103), Some(200), None]);
}

#[test]
fn informational_responses_are_bounded() {
    let mut side = Side::client();
    let (_send, mut receive) = side.ask(Method::GET, true);
    for _ in 0..3 * limits::INFORMATIONAL {
        side.frame(frame::HEADERS, END_HEADERS, 1, &block(&[(":status", "103")])).unwrap();
    }
    side.frame(frame::HEADERS, END_HEADERS, 1, &response(&[])).unwrap();
    let mut taken = 0;
    while let Poll::Ready(head) = receive.poll_response(&mut cx()) {
        taken += 1;
        assert_eq!(head.unwrap().status == 200, taken == limits::INFORMATIONAL + 1);
    }
    assert_eq!(taken, limits::INFORMATIONAL + 1);
}

#[test]
fn a_server_that_leaves_says_what_it_did_not_process() {
    let mut side = Side::client();
    let (_first, mut taken) = side.ask(Method::GET, true);
    let (_second, mut not_taken) = side.ask(Method::GET, true);
    let (_third, mut refused) = side.ask(Method::GET, true);
    side.frame(frame::RST_STREAM, 0, 5, &7_u32.to_be_bytes()).unwrap();
    assert!(body(&mut refused).unwrap_err().is_unprocessed());
    side.frame(frame::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0, b'!']).unwrap();
    assert!(body(&mut not_taken).unwrap_err().is_unprocessed());
    assert!(side.link.borrow().closing);
    side.frame(frame::HEADERS, END_HEADERS | END_STREAM, 1, &response(&[])).unwrap();
    assert!(body(&mut taken).is_ok());
    assert_eq!(side.link.borrow().streams(), 0);
}

#[test]
fn what_came_before_a_reset_is_read() {
    let mut side = Side::client();
    let (_send, mut receive) = side.ask(Method::GET, true);
    side.frame(frame::HEADERS, END_HEADERS, 1, &response(&[])).unwrap();
    side.frame(frame::DATA, 0, 1, b"some").unwrap();
    side.frame(frame::RST_STREAM, 0, 1, &[0, 0, 0, 2]).unwrap();
    assert!(matches!(receive.poll_frame(&mut cx()), Poll::Ready(Some(Ok(Frame::Data(bytes)))) if bytes == "some"));
    let Poll::Ready(Some(Err(error))) = receive.poll_frame(&mut cx()) else { panic!("no error") };
    assert_eq!((error.kind, error.code), (Kind::Reset, Code::INTERNAL_ERROR));
    assert!(matches!(receive.poll_frame(&mut cx()), Poll::Ready(None)));
    assert!(!receive.is_end());
}

#[test]
fn everything_is_given_back() {
    let mut side = Side::server();
    for n in 0..200 {
        side.frame(frame::HEADERS, END_HEADERS, 2 * n + 1, &get_with(&[])).unwrap();
        side.frame(frame::DATA, 0, 2 * n + 1, b"some").unwrap();
    }
    let mut all = side.arrived();
    for (n, (_, send, _)) in all.iter_mut().enumerate() {
        match n % 3 {
            0 => send.send_response(&ResponseHead::new(StatusCode::OK), true),
            1 => send.reset(Code::CANCEL),
            _ => {}
        }
    }
    drop(all);
    assert!(side.link.borrow().is_idle());
    assert_eq!(side.link.borrow().streams(), 0);
    assert_eq!(side.resets().len(), 200);
}
