//! Both roles against each other, over a pipe.

mod differential;
mod heads;
mod interop;
mod protocol;
mod side;

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    task::{JoinHandle, LocalSet, spawn_local},
};

use super::*;
use crate::{
    drain::DrainOwner,
    http::head::{Fields, Name, RequestHead, ResponseHead},
};

/// Runs on one thread, as a worker does.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

fn request(method: Method, path: &str) -> RequestHead {
    let mut head = RequestHead::new(Version::HTTP_2, method, path);
    head.set_authority("shop:80");
    head.fields.push(b"x-tenant", b"blue");
    head
}

/// The whole body, and the trailers.
async fn read(receive: &mut RecvStream) -> Result<(Vec<u8>, Option<Fields>), StreamError> {
    let (mut body, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| receive.poll_frame(cx)).await {
        match frame? {
            Frame::Data(bytes) => body.extend_from_slice(&bytes),
            Frame::Trailers(fields) => trailers = Some(*fields),
        }
    }
    Ok((body, trailers))
}

async fn send(stream: &mut SendStream, body: &[u8], end: bool) -> Result<(), StreamError> {
    let mut bytes = Bytes::copy_from_slice(body);
    poll_fn(|cx| stream.poll_send(cx, &mut bytes, end)).await
}

async fn head_of(receive: &mut RecvStream) -> Result<ResponseHead, StreamError> {
    poll_fn(|cx| receive.poll_response(cx)).await
}

/// Answers by the path: `/echo` the body, its trailers, and the head's x-tenant; `/bytes/N` so many; `/never`; `/drop`.
async fn answer(request: Request) {
    let Request { head, mut send, mut receive, .. } = request;
    let mut response = ResponseHead::new(StatusCode::OK);
    match head.path() {
        "/echo" => {
            if let Some(tenant) = head.fields.values(b"x-tenant").next() {
                response.fields.push(b"x-tenant", tenant);
            }
            send.send_response(&response, false);
            while let Some(Ok(frame)) = poll_fn(|cx| receive.poll_frame(cx)).await {
                match frame {
                    Frame::Data(bytes) => {
                        if self::send(&mut send, &bytes, false).await.is_err() {
                            return;
                        }
                    }
                    Frame::Trailers(trailers) => return send.send_trailers(&trailers),
                }
            }
            send.send_data(&[], true);
        }
        "/never" => {
            poll_fn(|cx| send.poll_reset(cx)).await;
        }
        "/drop" => {}
        "/early" => {
            send.send_response(&response, true);
        }
        path => match path.strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
            Some(count) => {
                send.send_response(&response, false);
                let _ = self::send(&mut send, &vec![b'x'; count], true).await;
            }
            None => {
                response.status = StatusCode::NOT_FOUND;
                send.send_response(&response, true);
            }
        },
    }
}

struct Pair {
    client: Connection,
    ended: JoinHandle<Result<(), H2Error>>,
    served: JoinHandle<Result<(), H2Error>>,
    drain: DrainOwner,
}

fn pair_with(client: Settings, server: Settings) -> Pair {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let drain = DrainOwner::default();
    let handle = drain.handle();
    let served = spawn_local(serve(far, server, handle, |request| drop(spawn_local(answer(request))), |_, _| {}));
    let (client, drive) = connect(near, client);
    Pair { client, ended: spawn_local(drive), served, drain }
}

fn pair() -> Pair {
    pair_with(Settings::new(), Settings::new())
}

async fn get(client: &Connection, path: &str) -> Result<(ResponseHead, Vec<u8>), StreamError> {
    let (send, mut receive) = client.open(&request(Method::GET, path), true).unwrap();
    let head = head_of(&mut receive).await?;
    let (body, _) = read(&mut receive).await?;
    drop(send);
    Ok((head, body))
}

#[test]
fn a_request_and_its_answer() {
    run(async {
        let pair = pair();
        let (head, body) = get(&pair.client, "/bytes/10").await.unwrap();
        assert_eq!((head.status, body.len()), (StatusCode::OK, 10));
        let (head, body) = get(&pair.client, "/nothing").await.unwrap();
        assert_eq!((head.status, body.len()), (StatusCode::NOT_FOUND, 0));
        assert_eq!(pair.client.streams(), 0);
        assert_eq!(pair.client.most_streams(), 256);
        assert_eq!(pair.client.takes_connect_protocol(), Some(true));
        drop(pair.client);
        pair.ended.await.unwrap().unwrap();
        pair.served.await.unwrap().unwrap();
    });
}

#[test]
fn bodies_and_trailers_both_ways() {
    run(async {
        let pair = pair();
        for size in [1, 16_384, 16_385, 1_000_000] {
            let (mut sender, mut receive) = pair.client.open(&request(Method::POST, "/echo"), false).unwrap();
            let body: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let sent = body.clone();
            let sending = spawn_local(async move {
                send(&mut sender, &sent, false).await.unwrap();
                sender.send_trailers(&Fields::from_iter([("grpc-status", "0")]));
                sender
            });
            let head = head_of(&mut receive).await.unwrap();
            assert_eq!(head.fields.values(b"x-tenant").next(), Some(&b"blue"[..]));
            let (echoed, trailers) = read(&mut receive).await.unwrap();
            assert!(echoed == body, "{size}");
            assert_eq!(trailers.unwrap().get(Name::GrpcStatus), Some(&b"0"[..]));
            assert!(sending.await.unwrap().is_end() && receive.is_end());
        }
    });
}

#[test]
fn a_thousand_at_once() {
    run(async {
        let pair = pair_with(Settings::new(), Settings { most_streams: 2000, ..Settings::new() });
        get(&pair.client, "/bytes/1").await.unwrap();
        let client = Rc::new(pair.client);
        let all: Vec<_> = (0..1000)
            .map(|n| {
                let client = client.clone();
                spawn_local(async move {
                    let (head, body) = get(&client, &format!("/bytes/{n}")).await.unwrap();
                    assert_eq!((head.status, body.len()), (StatusCode::OK, n));
                })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
        assert_eq!(client.streams(), 0);
    });
}

#[test]
fn who_does_not_read_stalls_nobody_else() {
    run(async {
        let pair = pair();
        let ask = || pair.client.open(&request(Method::GET, "/bytes/10000000"), true).unwrap();
        let (_send, mut unread) = ask();
        assert_eq!(head_of(&mut unread).await.unwrap().status, StatusCode::OK);
        let _more: Vec<_> = (0..98).map(|_| ask()).collect();
        for _ in 0..20 {
            assert_eq!(get(&pair.client, "/bytes/1000000").await.unwrap().1.len(), 1_000_000);
        }
        assert_eq!(read(&mut unread).await.unwrap().0.len(), 10_000_000);
    });
}

#[test]
fn streams_end_early_either_way() {
    run(async {
        let pair = pair();
        let error = get(&pair.client, "/drop").await.unwrap_err();
        assert_eq!((error.kind, error.code), (Kind::Reset, Code::CANCEL));
        let (send, receive) = pair.client.open(&request(Method::GET, "/never"), true).unwrap();
        assert_eq!(pair.client.streams(), 1);
        drop((send, receive));
        assert_eq!(pair.client.streams(), 0);
        // Answered before the request is complete.
        let (mut send, mut receive) = pair.client.open(&request(Method::POST, "/early"), false).unwrap();
        assert_eq!(head_of(&mut receive).await.unwrap().status, StatusCode::OK);
        assert_eq!(read(&mut receive).await.unwrap().0, b"");
        assert_eq!(poll_fn(|cx| send.poll_reset(cx)).await.code, Code::NO_ERROR);
        assert_eq!(get(&pair.client, "/bytes/5").await.unwrap().1.len(), 5);
    });
}

#[test]
fn draining_lets_streams_end() {
    run(async {
        let pair = pair();
        let (mut sender, mut receive) = pair.client.open(&request(Method::POST, "/echo"), false).unwrap();
        head_of(&mut receive).await.unwrap();
        pair.drain.begin();
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if pair.client.is_usable() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        assert_eq!(pair.client.open(&request(Method::GET, "/bytes/1"), true).err(), Some(Refused::Closed));
        send(&mut sender, b"the last", true).await.unwrap();
        assert_eq!(read(&mut receive).await.unwrap().0, b"the last");
        pair.served.await.unwrap().unwrap();
        pair.ended.await.unwrap().unwrap();
    });
}

#[test]
fn an_end_of_the_connection_ends_its_streams() {
    run(async {
        let (near, far) = tokio::io::duplex(1024);
        let (client, drive) = connect(near, Settings::new());
        let (_send, mut receive) = client.open(&request(Method::GET, "/"), true).unwrap();
        let ended = spawn_local(drive);
        tokio::task::yield_now().await;
        let (_send, mut unwritten) = client.open(&request(Method::GET, "/"), true).unwrap();
        drop::<DuplexStream>(far);
        let error = head_of(&mut receive).await.unwrap_err();
        assert_eq!((error.kind, error.is_unprocessed()), (Kind::Connection, false));
        assert!(head_of(&mut unwritten).await.unwrap_err().is_unprocessed());
        assert!(ended.await.unwrap().is_err());
        assert!(!client.is_usable());
    });
}

#[test]
fn tunnels_carry_bytes() {
    run(async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let drain = DrainOwner::default();
        let handle = drain.handle();
        let on_request = |request: Request| {
            assert_eq!(request.head.protocol.as_deref(), Some("websocket"));
            spawn_local(async move {
                let Request { mut send, receive, .. } = request;
                send.send_response(&ResponseHead::new(StatusCode::OK), false);
                let (mut read, mut write) = tokio::io::split(Tunnel::new(send, receive));
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        };
        spawn_local(serve(far, Settings::new(), handle, on_request, |_, _| {}));
        let (client, drive) = connect(near, Settings::new());
        spawn_local(drive);
        while client.takes_connect_protocol().is_none() {
            tokio::task::yield_now().await;
        }
        let mut head = request(Method::CONNECT, "/chat");
        head.protocol = Some("websocket".into());
        let (send, mut receive) = client.open(&head, false).unwrap();
        assert_eq!(head_of(&mut receive).await.unwrap().status, StatusCode::OK);
        let mut tunnel = Tunnel::new(send, receive);
        tunnel.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        tunnel.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"ping");
        tunnel.shutdown().await.unwrap();
        assert_eq!(tunnel.read(&mut echoed).await.unwrap(), 0);
    });
}

/// A connection of which nothing is read until something could not be written: as when a busy worker hears late of both.
struct Broken {
    io: DuplexStream,
    written: usize,
    reader: Option<Waker>,
}

/// So much can be written.
const TAKEN: usize = 200;

impl AsyncRead for Broken {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.written <= TAKEN {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Broken {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written += bytes.len();
        if self.written <= TAKEN {
            return Pin::new(&mut self.io).poll_write(cx, bytes);
        }
        self.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn what_a_server_said_is_heard_though_it_takes_nothing_any_more() {
    run(async {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let (client, drive) = connect(Broken { io: near, written: 0, reader: None }, Settings::new());
        let ended = spawn_local(drive);
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(client.open(&request(Method::POST, "/x"), false).unwrap());
        }
        tokio::task::yield_now().await;
        // One is answered, the second was taken and the third was not; then the server was gone.
        let said = [
            side::framed(frame::SETTINGS, 0, 0, &[]),
            side::framed(
                frame::HEADERS,
                frame::END_HEADERS | frame::END_STREAM,
                1,
                &side::block(&[(":status", "200")]),
            ),
            side::framed(frame::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]),
        ];
        far.write_all(&said.concat()).await.unwrap();
        drop(far);
        let mut heads = Vec::new();
        for (sender, receiver) in &mut streams {
            sender.send_data(&[b'x'; TAKEN], true);
            heads.push(head_of(receiver).await.map(|head| head.status).map_err(|error| error.kind));
        }
        assert_eq!(heads, [Ok(StatusCode::OK), Err(Kind::Connection), Err(Kind::Unprocessed)]);
        assert!(matches!(ended.await.unwrap(), Err(H2Error::Io(_))));
        assert!(!client.is_usable());
    });
}

/// The far end of a server's connection, after hello and `more`; and how the server ends.
async fn bare(settings: Settings, more: &[u8]) -> (DuplexStream, JoinHandle<Result<(), H2Error>>) {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let handle = DrainOwner::default().handle();
    let served = spawn_local(serve(far, settings, handle, |request| drop(spawn_local(answer(request))), |_, _| {}));
    let hello = side::framed(frame::SETTINGS, 0, 0, &[]);
    near.write_all(&[&frame::PREFACE[..], &hello, more].concat()).await.unwrap();
    (near, served)
}

#[test]
fn a_client_that_asks_for_nothing_is_told_to_leave() {
    run(async {
        let idle =
            Settings { idle: Duration::from_millis(50), ping_interval: Duration::from_millis(1), ..Settings::new() };
        let Pair { client, ended, served, drain: _drain } = pair_with(Settings::new(), idle.clone());
        // It is not idle while a stream is open, nor for the time before it.
        let (open, mut receive) = client.open(&request(Method::GET, "/never"), true).unwrap();
        let answered = tokio::time::timeout(4 * idle.idle, head_of(&mut receive)).await;
        assert!(answered.is_err() && client.is_usable());
        drop((open, receive));
        served.await.unwrap().unwrap();
        ended.await.unwrap().unwrap();
        assert!(!client.is_usable());
        // Not one stream ever, and nobody who answers.
        let (mut near, served) = bare(Settings { idle: idle.idle, ..hasty() }, &[]).await;
        let mut told = Vec::new();
        near.read_to_end(&mut told).await.unwrap();
        assert!(matches!(served.await.unwrap(), Err(H2Error::PingTimeout)));
        let mut goaway = vec![0x7f, 0xff, 0xff, 0xff];
        goaway.extend(Code::NO_ERROR.0.to_be_bytes());
        assert!(told.windows(8).any(|bytes| bytes == goaway));
    });
}

fn hasty() -> Settings {
    let soon = Duration::from_millis(5);
    Settings { ping_interval: soon, ping_timeout: soon, ..Settings::new() }
}

#[test]
fn a_peer_that_is_gone_is_noticed_while_a_stream_is_open() {
    run(async {
        let asks = side::block(&[(":method", "GET"), (":scheme", "http"), (":path", "/never"), (":authority", "shop")]);
        let head = side::framed(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &asks);
        let (mut near, served) = bare(hasty(), &head).await;
        assert!(matches!(served.await.unwrap(), Err(H2Error::PingTimeout)));
        let mut told = Vec::new();
        near.read_to_end(&mut told).await.unwrap();
        assert!(told.windows(12).any(|bytes| bytes == b"ping timeout"));
    });
}

#[test]
fn a_head_that_takes_too_long_is_not_waited_for() {
    run(async {
        let begun = side::framed(frame::HEADERS, frame::END_STREAM, 1, &side::get_with(&[]));
        let (mut near, served) = bare(hasty(), &begun).await;
        // It answers pings, and adds nothing to the head.
        let ping = side::framed(frame::HEADERS, 0, 1, b"");
        let _ = near.write_all(ping.get(..3).unwrap()).await;
        assert!(matches!(served.await.unwrap(), Err(H2Error::PingTimeout | H2Error::Fault { .. })));
    });
}

#[test]
fn who_does_not_read_its_answers_is_not_read() {
    run(async {
        let (mut near, served) = bare(Settings::new(), &[]).await;
        let pings = side::framed(frame::PING, 0, 0, b"12345678").repeat(1000);
        let mut written = 0;
        let mut stuck = 0;
        while stuck < 1000 {
            assert!(written < 100 << 20, "it reads on and on");
            let wrote =
                poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_write(cx, &pings[written % pings.len()..]))).await;
            match wrote {
                Poll::Ready(count) => (written, stuck) = (written + count.unwrap(), 0),
                Poll::Pending => stuck += 1,
            }
            tokio::task::yield_now().await;
        }
        assert!(!served.is_finished());
        // Read, it goes on.
        let mut answers = vec![0; 1 << 20];
        assert!(near.read(&mut answers).await.unwrap() > 0);
        drop(near);
        assert!(!matches!(served.await.unwrap(), Err(H2Error::Fault { .. })));
    });
}
