//! An HTTP/2 connection, in either role, whose peer sends anything: nothing breaks it, it ends or waits, and what it sends is
//! frames within the limits.
#![no_main]

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use leno_proxy::{
    drain::DrainOwner,
    http::{
        h2::{Code, Connection, Frame, RecvStream, Request, SendStream, Settings, connect, serve},
        head::{Fields, RequestHead, ResponseHead},
    },
};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the peer sends, one piece per read; what is sent to it.
#[derive(Default)]
struct Wire {
    pieces: Vec<Vec<u8>>,
    ended: bool,
    sent: Vec<u8>,
}

#[derive(Clone, Default)]
struct Io(Rc<RefCell<Wire>>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        match wire.pieces.pop() {
            Some(piece) => buf.put_slice(&piece),
            None if wire.ended => {}
            None => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(10_000);
        self.0.borrow_mut().sent.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type Streams = Rc<RefCell<Vec<(SendStream, RecvStream)>>>;

/// Does one thing to each stream that is open.
fn use_streams(streams: &Streams, choice: u8, server: bool) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut streams = streams.borrow_mut();
    for (send, receive) in streams.iter_mut() {
        match choice % 9 {
            0 => drop(receive.poll_frame(&mut cx)),
            1 => while matches!(receive.poll_frame(&mut cx), Poll::Ready(Some(Ok(Frame::Data(_))))) {},
            2 => drop(receive.poll_response(&mut cx)),
            3 if server => send.send_response(&ResponseHead::new(StatusCode::OK), false),
            4 if server => send.send_response(&ResponseHead::new(StatusCode::NO_CONTENT), true),
            5 => drop(send.poll_send(&mut cx, &mut Bytes::from(vec![0; 100_000]), false)),
            6 => {
                let _ = send.send_data(b"end", true);
            }
            7 => send.send_trailers(&Fields::from_iter([("a", "b")])),
            _ => send.reset(Code::CANCEL),
        }
        let _ = (receive.is_end(), receive.exact_length(), send.is_end(), send.poll_reset(&mut cx).is_ready());
    }
    if choice % 7 == 0 {
        streams.pop();
    }
}

/// Every byte sent belongs to a frame, and none is larger than a peer must take unless it said so.
fn check(sent: &[u8]) {
    let mut rest = sent.strip_prefix(PREFACE).unwrap_or(sent);
    while !rest.is_empty() {
        let (header, after) = rest.split_at_checked(9).expect("a frame's header");
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        assert!(header[3] <= 9, "kind {}", header[3]);
        rest = after.get(length..).expect("a whole frame");
    }
}

fn pieces(mut bytes: &[u8], server: bool) -> Vec<Vec<u8>> {
    let mut all = vec![if server { PREFACE.to_vec() } else { Vec::new() }];
    all[0].extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // Each piece begins with its length.
    while let Some((&length, after)) = bytes.split_first() {
        let (piece, after) = after.split_at(after.len().min(usize::from(length) + 1));
        all.push(piece.to_vec());
        bytes = after;
    }
    all.retain(|piece| !piece.is_empty());
    all
}

fn drive(driver: impl Future, wire: &Io, pieces: Vec<Vec<u8>>, mut between: impl FnMut(u8)) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut driver = pin!(driver);
    for piece in pieces {
        let choice = piece[0];
        wire.0.borrow_mut().pieces.push(piece);
        if driver.as_mut().poll(&mut cx).is_ready() {
            return;
        }
        between(choice);
    }
    wire.0.borrow_mut().ended = true;
    for _ in 0..100 {
        if driver.as_mut().poll(&mut cx).is_ready() {
            return;
        }
    }
    panic!("the connection goes on without a peer");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let streams = Streams::default();
    let wire = Io::default();
    let server = first % 2 == 0;
    if server {
        let drain = DrainOwner::default();
        let handle = drain.handle();
        let taken = streams.clone();
        let on_request = move |request: Request| taken.borrow_mut().push((request.send, request.receive));
        let serving = serve(wire.clone(), Settings::new(), handle, on_request, |_, _| {});
        drive(serving, &wire, pieces(bytes, true), |choice| {
            use_streams(&streams, choice, true);
            if choice == 255 {
                drain.begin();
            }
        });
    } else {
        let (client, driver) = connect_to(&wire);
        let mut head = RequestHead::new(Version::HTTP_2, Method::POST, "/");
        drive(driver, &wire, pieces(bytes, false), |choice| {
            head.method = if choice % 5 == 0 { Method::HEAD } else { Method::POST };
            if let Ok(stream) = client.open(&head, choice % 2 == 0) {
                streams.borrow_mut().push(stream);
            }
            use_streams(&streams, choice, false);
        });
    }
    streams.borrow_mut().clear();
    check(&wire.0.borrow().sent);
});

fn connect_to(wire: &Io) -> (Connection, impl Future + use<>) {
    connect(wire.clone(), Settings::new())
}
