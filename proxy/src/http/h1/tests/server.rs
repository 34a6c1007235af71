//! The server's role.

use std::{cell::Cell, rc::Rc, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinHandle,
};

use super::*;
use crate::{
    config::limits,
    drain::DrainOwner,
    http::{h1::server::LINGER, head::Unfit},
};

type Served = JoinHandle<std::io::Result<Ended<TcpStream>>>;

/// Answers with what it was sent, and its method and target.
async fn echo(mut request: Request) -> (ResponseHead, Parts) {
    let mut head = response(200);
    let asked = format!("{} {}", request.head.method, request.head.target());
    head.fields.push(b"x-asked", asked.as_bytes());
    let Ok((body, trailers)) = read_all(&mut request.body).await else { return (response(400), Parts::default()) };
    let parts = Parts::full(body);
    (head, if let Some(trailers) = trailers { parts.with_trailers(trailers) } else { parts })
}

/// A client of a server that answers by `handle`.
async fn client_of<F>(handle: impl Fn(Request) -> F + 'static) -> (TcpStream, Served, DrainOwner)
where
    F: Future<Output = (ResponseHead, Parts)> + 'static,
{
    client_waited_for(Patience::new(IDLE), handle).await
}

async fn client_waited_for<F>(
    patience: Patience,
    handle: impl Fn(Request) -> F + 'static,
) -> (TcpStream, Served, DrainOwner)
where
    F: Future<Output = (ResponseHead, Parts)> + 'static,
{
    let (server, client) = pair().await;
    let drain = DrainOwner::default();
    let handle = move |request| Box::pin(handle(request));
    let served = tokio::task::spawn_local(serve(server, drain.handle(), patience, handle));
    (client, served, drain)
}

async fn expect(client: &mut TcpStream, wanted: &str) {
    let mut received = vec![0; wanted.len()];
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(String::from_utf8(received).unwrap(), wanted);
}

/// Nothing more comes, and the connection was closed.
async fn expect_end(client: &mut TcpStream) {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(String::from_utf8(rest).unwrap(), "");
}

#[test]
fn requests_are_answered_in_order() {
    run(async {
        let (mut client, served, _drain) = client_of(echo).await;
        let requests = "GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\
             POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\nx: y\r\n\r\n\
             HEAD /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let responses = "HTTP/1.1 200 OK\r\nx-asked: GET /a\r\ncontent-length: 0\r\n\r\n\
             HTTP/1.1 200 OK\r\nx-asked: POST /b\r\ncontent-length: 2\r\n\r\nhi\
             HTTP/1.1 200 OK\r\nx-asked: POST /c\r\ntransfer-encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\nx: y\r\n\r\n\
             HTTP/1.1 200 OK\r\nx-asked: HEAD /d\r\nconnection: close\r\n\r\n";
        client.write_all(requests.as_bytes()).await.unwrap();
        expect(&mut client, responses).await;
        expect_end(&mut client).await;
        assert!(matches!(served.await.unwrap(), Ok(Ended::Closed)));
        // However they are cut.
        for cut in (1..requests.len()).step_by(7) {
            let (mut client, _served, _drain) = client_of(echo).await;
            client.write_all(&requests.as_bytes()[..cut]).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(&requests.as_bytes()[cut..]).await.unwrap();
            expect(&mut client, responses).await;
        }
        let (mut client, _served, _drain) = client_of(echo).await;
        for byte in requests.as_bytes() {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        expect(&mut client, responses).await;
    });
}

#[test]
fn what_nobody_can_serve_is_refused_with_an_answer() {
    let refuse = |request: Request| async move {
        let asked = format!("{} {}", request.head.method, request.head.target());
        let mut head = response(if request.refused.is_some() { 400 } else { 200 });
        head.fields.push(b"x-asked", asked.as_bytes());
        (head, Parts::default())
    };
    let large = format!("GET /a HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(200_000));
    run(async move {
        for (bytes, asked, unfit) in [
            ("GET /a HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\nGET /b", "GET /a", Unfit::Malformed("a malformed field name")),
            ("\0\0\0", "- -", Unfit::Malformed("a malformed request line")),
            (large.as_str(), "GET /a", Unfit::TooLarge),
        ] {
            for before in 0..2 {
                let (mut client, served, _drain) = client_of(refuse).await;
                let first = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n".repeat(before);
                client.write_all(format!("{first}{bytes}").as_bytes()).await.unwrap();
                let first = "HTTP/1.1 200 OK\r\nx-asked: GET /first\r\ncontent-length: 0\r\n\r\n".repeat(before);
                let refused = format!("HTTP/1.1 400 Bad Request\r\nx-asked: {asked}\r\n");
                let end = "content-length: 0\r\nconnection: close\r\n\r\n";
                expect(&mut client, &format!("{first}{refused}{end}")).await;
                expect_end(&mut client).await;
                drop(client);
                let Ok(Ended::Refused(why)) = served.await.unwrap() else { panic!("not refused") };
                assert_eq!(why, unfit);
            }
        }
    });
}

#[test]
fn what_is_unusual_is_handed_over_unread() {
    run(async {
        let unusual = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nrest";
        let plain = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
        let answered = "HTTP/1.1 200 OK\r\nx-asked: POST /b\r\ncontent-length: 2\r\n\r\nhi";
        for before in 0..3 {
            let (mut client, served, _drain) = client_of(echo).await;
            client.write_all(format!("{}{unusual}", plain.repeat(before)).as_bytes()).await.unwrap();
            expect(&mut client, &answered.repeat(before)).await;
            let Ok(Ended::Unusual(mut stream, bytes)) = served.await.unwrap() else { panic!("not handed over") };
            assert_eq!(bytes, unusual.as_bytes());
            client.write_all(b"more").await.unwrap();
            let mut more = [0; 4];
            stream.read_exact(&mut more).await.unwrap();
            assert_eq!(&more, b"more");
        }
    });
}

/// A client that looks for its answer only when it has sent all.
#[test]
fn the_answer_to_a_refused_upload_arrives() {
    run(async {
        const BYTES: usize = 16 * 1024 * 1024;
        for round in 1.. {
            let began = Instant::now();
            let (mut client, _served, _drain) = client_of(async |_| (response(413), Parts::default())).await;
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            let sent = client.write_all(&vec![0; BYTES]).await;
            let took = began.elapsed();
            let mut answer = String::new();
            let read = client.read_to_string(&mut answer).await;
            if sent.is_ok() && read.is_ok() && answer.starts_with("HTTP/1.1 413 ") {
                break;
            }
            // A machine that stands still sends less in the time for which it is read.
            assert!(took > LINGER / 2 && round < 5, "{answer:?}, {sent:?}, {read:?} after {took:?}");
        }
    });
}

#[test]
fn responses_are_framed_by_what_is_known() {
    run(async {
        let (sender, unknown) = Parts::channel(None);
        sender.send(Ok(data("later"))).unwrap();
        drop(sender);
        let length = |status, value: &str| {
            let mut head = response(status);
            head.fields.push(b"content-length", value.as_bytes());
            head
        };
        for (method, head, body, expected) in [
            ("GET", response(200), Parts::default(), "200 OK\r\ncontent-length: 0\r\n\r\n"),
            ("GET", response(200), Parts::full("x"), "200 OK\r\ncontent-length: 1\r\n\r\nx"),
            ("GET", response(299), unknown, "299 \r\ntransfer-encoding: chunked\r\n\r\n5\r\nlater\r\n0\r\n\r\n"),
            ("GET", length(200, "4"), Parts::chunks(&["ab", "", "cd"]), "200 OK\r\ncontent-length: 4\r\n\r\nabcd"),
            ("GET", length(200, "x"), Parts::full("ab"), "200 OK\r\ncontent-length: 2\r\n\r\nab"),
            ("GET", response(204), Parts::default(), "204 No Content\r\n\r\n"),
            ("GET", length(204, "0"), Parts::default(), "204 No Content\r\n\r\n"),
            ("GET", length(304, "7"), Parts::default(), "304 Not Modified\r\ncontent-length: 7\r\n\r\n"),
            ("HEAD", length(200, "7"), Parts::default(), "200 OK\r\ncontent-length: 7\r\n\r\n"),
            ("HEAD", response(404), Parts::full("not sent"), "404 Not Found\r\n\r\n"),
            (
                "GET",
                response(200),
                Parts::chunks(&["a", "bc"]).with_trailers(Fields::from_iter([("x", "y")])),
                "200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\nx: y\r\n\r\n",
            ),
        ] {
            let answer = Cell::new(Some((head, body)));
            let (mut client, _served, _drain) = client_of(move |request| {
                let answer = answer.take();
                async move { if let Some(answer) = answer { answer } else { echo(request).await } }
            })
            .await;
            client.write_all(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            expect(&mut client, &format!("HTTP/1.1 {expected}")).await;
            client.write_all(b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            expect(&mut client, "HTTP/1.1 200 OK\r\nx-asked: GET /next\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
}

#[test]
fn a_body_that_is_not_what_was_said_ends_the_connection() {
    run(async {
        let broken: BodyError = "broken".into();
        let mut halfway = Parts::chunks(&["ab"]);
        halfway.parts.push_back(Err(broken));
        for (body, length, received) in [
            (Parts::chunks(&["ab"]), Some("3"), "content-length: 3\r\n\r\nab"),
            (Parts::chunks(&["ab", "cd"]), Some("3"), "content-length: 3\r\n\r\nab"),
            (halfway, None, "transfer-encoding: chunked\r\n\r\n2\r\nab\r\n"),
        ] {
            let mut head = response(200);
            if let Some(length) = length {
                head.fields.push(b"content-length", length.as_bytes());
            }
            let answer = Cell::new(Some((head, body)));
            let (mut client, _served, _drain) = client_of(move |_| std::future::ready(answer.take().unwrap())).await;
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            expect(&mut client, &format!("HTTP/1.1 200 OK\r\n{received}")).await;
            expect_end(&mut client).await;
        }
    });
}

#[test]
fn malformed_chunks_are_an_error_and_nothing_is_read_after_them() {
    run(async {
        for chunks in ["5\r\nhello\nGET / HTTP/1.1\r\n", "x\r\n", "2\r\nabcGET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
            let (mut client, served, _drain) = client_of(echo).await;
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
            client.write_all(request.as_bytes()).await.unwrap();
            let refused = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            expect(&mut client, refused).await;
            expect_end(&mut client).await;
            drop(client);
            assert!(matches!(served.await.unwrap(), Ok(Ended::Closed)));
        }
    });
}

#[test]
fn a_body_that_nobody_reads_is_never_taken_for_a_request() {
    run(async {
        let ignore = |_: Request| async { (response(404), Parts::default()) };
        // What is there is skipped.
        let (mut client, _served, _drain) = client_of(ignore).await;
        let inner = "GET /inner HTTP/1.1\r\nhost: a\r\n\r\n";
        let answered = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        for head in ["content-length: 32\r\n\r\n", "transfer-encoding: chunked\r\n\r\n20\r\n"] {
            let end = if head.starts_with('t') { "\r\n0\r\n\r\n" } else { "" };
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{head}{inner}{end}");
            client.write_all(request.as_bytes()).await.unwrap();
            expect(&mut client, answered).await;
        }
        client.write_all(inner.as_bytes()).await.unwrap();
        expect(&mut client, answered).await;
        // What is not ends the connection, and the client hears of the answer however much it still sends.
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 500000\r\n\r\nGET").await.unwrap();
        expect(&mut client, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        client.write_all(&vec![b'x'; 499_997]).await.unwrap();
        expect_end(&mut client).await;
    });
}

#[test]
fn nothing_is_read_while_nobody_reads_the_body() {
    run(async {
        let (go, gone) = oneshot::channel::<()>();
        let gone = Cell::new(Some(gone));
        let (mut client, _served, _drain) = client_of(move |mut request| {
            let gone = gone.take();
            async move {
                gone.unwrap().await.unwrap();
                let length = read_all(&mut request.body).await.unwrap().0.len();
                (response(200), Parts::full(length.to_string()))
            }
        })
        .await;
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n").await.unwrap();
        let mut sent = 0;
        let chunk = vec![b'x'; 100_000];
        while let Ok(count) = tokio::time::timeout(Duration::from_millis(200), client.write(&chunk)).await {
            sent += count.unwrap();
            assert!(sent < 40_000_000, "all of it was taken");
        }
        go.send(()).unwrap();
        while sent < 50_000_000 {
            sent += client.write(&chunk[..chunk.len().min(50_000_000 - sent)]).await.unwrap();
        }
        expect(&mut client, "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n50000000").await;
    });
}

#[test]
fn a_client_that_leaves_ends_its_exchange() {
    run(async {
        struct Dropped(Option<oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(());
            }
        }
        for request in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nx",
        ] {
            let (dropped, was_dropped) = oneshot::channel();
            let dropped = Rc::new(Cell::new(Some(Dropped(Some(dropped)))));
            let (begun, has_begun) = oneshot::channel();
            let begun = Cell::new(Some(begun));
            let (mut client, served, _drain) = client_of(move |mut request| {
                let guard = dropped.take();
                let begun = begun.take();
                async move {
                    let _guard = guard;
                    let _ = begun.map(|begun| begun.send(()));
                    let _ = read_all(&mut request.body).await;
                    std::future::pending().await
                }
            })
            .await;
            client.write_all(request.as_bytes()).await.unwrap();
            has_begun.await.unwrap();
            client.shutdown().await.unwrap();
            was_dropped.await.unwrap();
            let _ = served.await.unwrap();
        }
    });
}

#[test]
fn draining_tells_the_client_and_ends_what_is_idle() {
    run(async {
        let (mut client, served, drain) = client_of(echo).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        expect(&mut client, "HTTP/1.1 200 OK\r\nx-asked: GET /\r\ncontent-length: 0\r\n\r\n").await;
        let (mut idle, idle_served, idle_drain) = client_of(echo).await;
        drain.begin();
        idle_drain.begin();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let last = "HTTP/1.1 200 OK\r\nx-asked: GET /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        expect(&mut client, last).await;
        expect_end(&mut client).await;
        assert!(matches!(served.await.unwrap(), Ok(Ended::Closed)));
        expect_end(&mut idle).await;
        assert!(matches!(idle_served.await.unwrap(), Ok(Ended::Closed)));
    });
}

#[test]
fn a_response_may_come_before_the_end_of_its_request() {
    run(async {
        let (mut client, _served, _drain) = client_of(|mut request| async move {
            let (sender, body) = Parts::channel(None);
            // Another task reads on.
            tokio::task::spawn_local(async move {
                while let Some(frame) = poll_fn(|cx| request.body.poll_frame(cx)).await {
                    let _ = sender.send(frame);
                }
            });
            (response(200), body)
        })
        .await;
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        expect(&mut client, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for _ in 0..3 {
            client.write_all(b"2\r\nhi\r\n").await.unwrap();
            expect(&mut client, "2\r\nhi\r\n").await;
        }
        client.write_all(b"0\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        expect(&mut client, "0\r\n\r\nHTTP/1.1 200 OK\r\n").await;
    });
}

#[test]
fn a_request_may_end_after_its_response() {
    run(async {
        let (done, is_done) = oneshot::channel();
        let done = Cell::new(Some(done));
        let (mut client, _served, _drain) = client_of(move |mut request| {
            let done = done.take();
            async move {
                if let Some(done) = done {
                    tokio::task::spawn_local(async move {
                        done.send(read_all(&mut request.body).await.unwrap().0.len()).unwrap();
                    });
                }
                (response(200), Parts::default())
            }
        })
        .await;
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n").await.unwrap();
        expect(&mut client, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        client.write_all(&vec![b'x'; 100_000]).await.unwrap();
        assert_eq!(is_done.await.unwrap(), 100_000);
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        expect(&mut client, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    });
}

#[test]
fn a_client_that_does_not_read_ends_by_its_idleness() {
    run(async {
        let (server, mut client) = pair().await;
        let drain = DrainOwner::default();
        let idle = Duration::from_millis(50);
        let answer = |request: Request| async move {
            // As an exchange does.
            request.watch.begin(Instant::now());
            request.watch.answered(false);
            let (sender, body) = Parts::channel(None);
            for _ in 0..1000 {
                sender.send(Ok(Frame::Data(vec![b'x'; 100_000].into()))).unwrap();
            }
            (response(200), body)
        };
        let ended = serve(server, drain.handle(), Patience::new(idle), |request| Box::pin(answer(request)));
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(matches!(ended.await, Ok(Ended::Closed)));
    });
}

/// Time that never comes, but for what `soon` sets.
fn patient(soon: impl Fn(&mut Patience, Duration)) -> Patience {
    let mut patience = Patience { head: IDLE, request: IDLE, rest: IDLE, exchange: IDLE };
    soon(&mut patience, Duration::from_millis(20));
    patience
}

async fn is_late(served: Served) {
    let Err(error) = served.await.unwrap() else { panic!("it ended as it should") };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_client_without_a_request_is_not_kept() {
    run(async {
        for before in 0..2 {
            let (mut client, served, _drain) = client_waited_for(patient(|p, soon| p.request = soon), echo).await;
            for _ in 0..before {
                client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                expect(&mut client, "HTTP/1.1 200 OK\r\nx-asked: GET /\r\ncontent-length: 0\r\n\r\n").await;
            }
            expect_end(&mut client).await;
            is_late(served).await;
        }
    });
}

/// Adds to what it sends as long as it is heard.
fn drip(mut client: TcpStream, drop: &'static [u8]) {
    tokio::task::spawn_local(async move {
        while client.write_all(drop).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_head_that_never_ends_is_not_waited_for() {
    run(async {
        for before in 0..2 {
            let (mut client, served, _drain) = client_waited_for(patient(|p, soon| p.head = soon), echo).await;
            for _ in 0..before {
                client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                expect(&mut client, "HTTP/1.1 200 OK\r\nx-asked: GET /\r\ncontent-length: 0\r\n\r\n").await;
            }
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: ").await.unwrap();
            drip(client, b"y");
            is_late(served).await;
        }
    });
}

#[test]
fn what_is_left_of_a_request_after_its_response_is_not_waited_for_long() {
    run(async {
        let (broke, is_broken) = oneshot::channel();
        let broke = Cell::new(Some(broke));
        let answer = move |mut request: Request| {
            let broke = broke.take().unwrap();
            tokio::task::spawn_local(async move { broke.send(read_all(&mut request.body).await.is_err()) });
            async { (response(200), Parts::default()) }
        };
        let (mut client, served, _drain) = client_waited_for(patient(|p, soon| p.rest = soon), answer).await;
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n").await.unwrap();
        expect(&mut client, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        drip(client, b"x");
        is_late(served).await;
        assert!(is_broken.await.unwrap(), "whoever reads it is told that it is not all");
    });
}

#[test]
fn what_nobody_reads_of_a_request_after_its_response_is_not_waited_for_either() {
    run(async {
        let answer = |request: Request| {
            tokio::task::spawn_local(async move {
                std::future::pending::<()>().await;
                drop(request);
            });
            async { (response(200), Parts::default()) }
        };
        let (mut client, served, _drain) = client_waited_for(patient(|p, soon| p.rest = soon), answer).await;
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n").await.unwrap();
        expect(&mut client, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        is_late(served).await;
    });
}

#[test]
fn a_client_that_breaks_off_is_missed_though_nothing_of_it_is_read() {
    run(async {
        // Whoever answers holds the body, and never reads it.
        let answer = |request: Request| async move {
            std::future::pending::<()>().await;
            drop(request);
            (response(200), Parts::default())
        };
        let (mut client, served, _drain) = client_of(answer).await;
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n").await.unwrap();
        let full = Duration::from_millis(200);
        while tokio::time::timeout(full, client.write_all(&[b'x'; 65536])).await.is_ok() {}
        crate::net::Io::reset(&client);
        drop(client);
        assert!(matches!(served.await.unwrap(), Ok(Ended::Closed)));
    });
}

#[test]
fn an_idle_connection_is_small() {
    run(async {
        let (server, _client) = pair().await;
        let drain = DrainOwner::default();
        let served = serve(server, drain.handle(), Patience::new(IDLE), |request| Box::pin(echo(request)));
        let size = size_of_val(&served);
        assert!(size <= 900, "{size}");
        assert!(size_of::<Incoming>() <= 40);
        const { assert!(limits::HTTP1_BUFFER >= limits::HEAD_BYTES) };
    });
}
