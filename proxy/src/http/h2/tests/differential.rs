//! What the h2 crate refuses of a request, so do we.

use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
};

use super::{
    run,
    side::{Side, block, framed},
};
use crate::http::h2::{Settings, frame, state::Role};

type Sample = Vec<(&'static str, &'static str)>;

fn fields() -> impl Strategy<Value = Sample> {
    let wanted = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "shop")];
    let pseudo = prop::sample::select(vec![
        (":method", "POST"),
        (":method", "CONNECT"),
        (":method", "OPTIONS"),
        (":method", "G T"),
        (":method", ""),
        (":scheme", "https"),
        (":scheme", "h ttp"),
        (":scheme", ""),
        (":path", ""),
        (":path", "*"),
        (":path", "a"),
        (":path", "/a?b#c"),
        (":path", "/a b"),
        (":path", "/\u{e4}"),
        (":path", "/a\0"),
        (":path", "?"),
        (":authority", ""),
        (":authority", "a b"),
        (":authority", "user@shop:80"),
        (":authority", "[::1]:80"),
        (":protocol", "websocket"),
        (":status", "200"),
        (":other", "x"),
        (":", "x"),
    ]);
    let regular = prop::sample::select(vec![
        ("a", "b"),
        ("A", "b"),
        ("", "b"),
        ("a b", "c"),
        ("a:", "c"),
        ("a\u{e4}", "c"),
        ("a", "b\n"),
        ("a", "b\rc"),
        ("a", "\0"),
        ("a", "\u{7f}"),
        ("a", "\u{1}"),
        ("a", " b "),
        ("a", "\u{e4}"),
        ("connection", "close"),
        ("keep-alive", "x"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("te", "gzip"),
        ("te", "trailers"),
        ("te", "trailers, gzip"),
        ("host", "shop"),
        ("content-length", "0"),
        ("content-length", "5"),
        ("content-length", "x"),
        ("content-length", "-1"),
        ("content-length", "99999999999999999999"),
    ]);
    let some = prop::collection::vec(prop_oneof![2 => pseudo, 1 => regular], 0..4);
    (some, 0_usize..6, 0_usize..5).prop_map(move |(some, at, without)| {
        let mut all: Sample = wanted.into_iter().enumerate().filter(|(n, _)| *n != without).map(|(_, f)| f).collect();
        let replaces = |name: &str| some.iter().any(|(other, _)| *other == name);
        if at < 4 {
            // What is given stands for what is wanted, or comes twice.
            all.retain(|(name, _)| !replaces(name));
        }
        let place = at.min(all.len());
        all.splice(place..place, some.iter().copied());
        all
    })
}

fn ours(fields: &Sample, end: bool) -> bool {
    let mut side = Side::new(Role::Server, Settings::new());
    side.feed(&said(fields, end)).is_ok() && side.arrived().len() == 1
}

fn said(fields: &Sample, end: bool) -> Vec<u8> {
    let end = if end { frame::END_STREAM } else { 0 };
    [
        &frame::PREFACE[..],
        &framed(frame::SETTINGS, 0, 0, &[]),
        &framed(frame::HEADERS, frame::END_HEADERS | end, 1, &block(fields)),
        &framed(frame::PING, 0, 0, b"the end."),
    ]
    .concat()
}

/// Whether the h2 crate hands the request on.
async fn theirs(fields: &Sample, end: bool) -> bool {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let serving = spawn_local(async move {
        let mut builder = h2::server::Builder::new();
        builder.enable_connect_protocol();
        let Ok(mut connection) = builder.handshake::<_, bytes::Bytes>(far).await else { return false };
        let mut taken = false;
        let mut held = Vec::new();
        while let Some(Ok(request)) = connection.accept().await {
            taken = true;
            held.push(request);
        }
        taken
    });
    near.write_all(&said(fields, end)).await.unwrap();
    // Until the ping is answered, or all is over.
    let mut read = Vec::new();
    while !read.windows(8).any(|bytes| bytes == b"the end.") && near.read_buf(&mut read).await.unwrap() > 0 {}
    drop(near);
    serving.await.unwrap()
}

#[test]
fn what_the_h2_crate_refuses_is_refused() {
    let mut runner = TestRunner::new(ProptestConfig::with_cases(2000));
    let taken = std::cell::Cell::new(0);
    runner
        .run(&(fields(), any::<bool>()), |(fields, end)| {
            let (ours, theirs) = (ours(&fields, end), run(theirs(&fields, end)));
            taken.set(taken.get() + u32::from(ours));
            prop_assert!(theirs || !ours, "taken by us alone: {:?}", fields);
            Ok(())
        })
        .unwrap();
    assert!(taken.get() > 50, "too few cases say anything");
}
