//! The client's role.

use std::{cell::RefCell, rc::Rc};

use http::{Method, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{drain::DrainOwner, http::head::RequestHead};

/// Where connections come back to.
type Home = Rc<RefCell<Vec<ClientConnection>>>;

fn get(method: Method) -> RequestHead {
    let mut head = RequestHead::new(Version::HTTP_11, method, "/x?y");
    head.set_authority("shop:80");
    head
}

async fn send<B: Outgoing>(
    stream: TcpStream,
    head: RequestHead,
    body: B,
) -> (Result<(ResponseHead, Incoming), SendError<B>>, Home) {
    let home = Home::default();
    let at = Rc::clone(&home);
    let connection = ClientConnection::new(Box::new(stream));
    let sent = connection.send(&head, body, |_| (), move |connection| at.borrow_mut().push(connection)).await;
    (sent, home)
}

/// A server that reads until it has seen `wanted`, then says `response`, and closes.
async fn server_of(wanted: &'static str, response: impl Into<String>) -> TcpStream {
    let (mut server, client) = pair().await;
    let response = response.into();
    tokio::task::spawn_local(async move {
        let mut received = String::new();
        while !received.ends_with(wanted) {
            let mut byte = [0];
            server.read_exact(&mut byte).await.unwrap();
            received.push(char::from(byte[0]));
        }
        server.write_all(response.as_bytes()).await.unwrap();
        server.shutdown().await.unwrap();
        let _ = server.read_to_end(&mut Vec::new()).await;
    });
    client
}

#[test]
fn both_roles_speak_with_each_other_on_one_connection() {
    run(async {
        let (server, client) = pair().await;
        let drain = DrainOwner::default();
        let answer = |mut request: Request| async move {
            let mut head = response(200);
            head.fields.push(b"x-asked", request.head.target().as_bytes());
            head.fields.push(b"x-host", request.head.authority().unwrap().as_bytes());
            let (body, trailers) = read_all(&mut request.body).await.unwrap();
            let parts = Parts::full(body);
            (head, if let Some(trailers) = trailers { parts.with_trailers(trailers) } else { parts })
        };
        let answer = move |request| Box::pin(answer(request));
        let served = tokio::task::spawn_local(serve(server, drain.handle(), Patience::new(IDLE), answer));
        let mut connection = Some(ClientConnection::new(Box::new(client)));
        for (body, length, sum) in [
            (Parts::default(), 0, None),
            (Parts::full("hello"), 5, None),
            (Parts::full(vec![b'x'; 3_000_000]), 3_000_000, None),
            (Parts::chunks(&["a", "bc", "def"]), 6, None),
            (Parts::chunks(&["a"]).with_trailers(Fields::from_iter([("sum", "1")])), 1, Some("1")),
            (Parts::full(""), 0, None),
        ] {
            let home = Home::default();
            let at = Rc::clone(&home);
            let mut used = connection.take().expect("it came back");
            assert!(used.is_reusable());
            let sent =
                used.send(&get(Method::POST), body, |_| (), move |connection| at.borrow_mut().push(connection)).await;
            let (head, mut body) = sent.map_err(|error| error.reason).unwrap();
            assert_eq!(head.status, 200);
            assert_eq!(head.fields.values(b"x-asked").next(), Some(&b"/x?y"[..]));
            assert_eq!(head.fields.values(b"x-host").next(), Some(&b"shop:80"[..]));
            let (body, trailers) = read_all(&mut body).await.unwrap();
            assert_eq!(body.len(), length);
            assert_eq!(trailers, sum.map(|sum| Fields::from_iter([("sum", sum)])));
            connection = home.borrow_mut().pop();
        }
        drop(connection);
        assert!(matches!(served.await.unwrap(), Ok(Ended::Closed)));
    });
}

#[test]
fn what_cannot_be_sent_again_is_not_sent_to_a_server_that_has_left() {
    run(async {
        for (method, lost) in [(Method::POST, false), (Method::GET, true)] {
            let (mut server, client) = pair().await;
            let home = Home::default();
            let at = Rc::clone(&home);
            let connection = ClientConnection::new(Box::new(client));
            let head = get(Method::GET);
            let first = connection.send(&head, Parts::default(), |_| (), move |back| at.borrow_mut().push(back));
            let answer = async {
                assert!(server.read(&mut [0; 1000]).await.unwrap() > 0);
                server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            };
            let (first, ()) = tokio::join!(first, answer);
            first.map_err(|error| error.reason).unwrap();
            let mut connection = home.borrow_mut().pop().unwrap();
            // The runtime has no occasion to hear of it.
            drop(server);
            assert!(connection.is_reusable());
            let head = get(method);
            let sent = connection.send(&head, Parts::default(), |_| (), |_| ()).await;
            assert_eq!(sent.err().map(|error| error.written), Some(lost));
        }
    });
}

#[test]
fn requests_are_written_as_they_are_framed() {
    run(async {
        let length = |method, value: &str| {
            let mut head = get(method);
            head.fields.push(b"X-One", b"1");
            head.fields.push(b"content-length", value.as_bytes());
            head
        };
        for (head, body, expected) in [
            (get(Method::GET), Parts::default(), "GET /x?y HTTP/1.1\r\nhost: shop:80\r\n\r\n"),
            (get(Method::POST), Parts::default(), "POST /x?y HTTP/1.1\r\nhost: shop:80\r\ncontent-length: 0\r\n\r\n"),
            (
                length(Method::PUT, "2"),
                Parts::chunks(&["a", "b"]),
                "PUT /x?y HTTP/1.1\r\nhost: shop:80\r\nx-one: 1\r\ncontent-length: 2\r\n\r\nab",
            ),
            (
                get(Method::GET),
                Parts::channel(None).1.with_trailers(Fields::from_iter([("a", "b")])),
                "GET /x?y HTTP/1.1\r\nhost: shop:80\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\r\n\r\n",
            ),
        ] {
            let (mut server, client) = pair().await;
            let sent = tokio::task::spawn_local(send(client, head, body));
            let mut received = vec![0; expected.len()];
            server.read_exact(&mut received).await.unwrap();
            assert_eq!(String::from_utf8(received).unwrap(), expected);
            server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            let (sent, home) = sent.await.unwrap();
            assert_eq!(sent.map_err(|error| error.reason).unwrap().0.status, 204);
            assert_eq!(home.borrow().len(), 1);
        }
    });
}

#[test]
fn responses_are_read_as_they_are_framed() {
    run(async {
        for (method, answer, body, reusable) in [
            (Method::GET, "200 OK\r\ncontent-length: 2\r\n\r\nhi", "hi", true),
            (Method::GET, "200 OK\r\ncontent-length: 0\r\n\r\n", "", true),
            (Method::HEAD, "200 OK\r\ncontent-length: 2\r\n\r\n", "", true),
            (Method::GET, "304 Not Modified\r\ncontent-length: 2\r\n\r\n", "", true),
            (Method::GET, "204 No Content\r\n\r\n", "", true),
            (Method::GET, "200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n", "hi!", true),
            (Method::GET, "200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", "hi", false),
            (Method::GET, "200 OK\r\n\r\nuntil the end", "until the end", false),
            // Whoever says more than it may is not asked again.
            (Method::GET, "200 OK\r\ncontent-length: 2\r\n\r\nhi!", "hi", false),
            (Method::GET, "200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1", "hi", false),
            (Method::HEAD, "200 OK\r\ncontent-length: 2\r\n\r\nhi", "", false),
            (
                Method::GET,
                "103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
                "hi",
                true,
            ),
        ] {
            // At once, and byte for byte.
            for step in [answer.len() + 9, 1] {
                let (mut server, client) = pair().await;
                let served = tokio::task::spawn_local(async move {
                    let mut request = [0; 1000];
                    assert!(server.read(&mut request).await.unwrap() > 0);
                    for part in format!("HTTP/1.1 {answer}").as_bytes().chunks(step) {
                        // Some are left before the end.
                        let _ = server.write_all(part).await;
                        tokio::task::yield_now().await;
                    }
                    server
                });
                let (sent, home) = send(client, get(method.clone()), Parts::default()).await;
                let (_, mut incoming) = sent.map_err(|error| error.reason).unwrap();
                let server = served.await.unwrap();
                if !reusable {
                    drop(server);
                }
                let (read, _) = read_all(&mut incoming).await.unwrap();
                assert_eq!(String::from_utf8(read).unwrap(), body, "{answer:?}");
                let back = home.borrow_mut().pop();
                let back = back.is_some_and(|mut connection| connection.is_reusable());
                assert_eq!(back, reusable, "{answer:?} in steps of {step}");
            }
        }
    });
}

#[test]
fn a_body_that_breaks_off_is_an_error() {
    run(async {
        for answer in [
            "200 OK\r\ncontent-length: 5\r\n\r\nhi",
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhellos\r\n",
        ] {
            let stream = server_of("\r\n\r\n", format!("HTTP/1.1 {answer}")).await;
            let (sent, home) = send(stream, get(Method::GET), Parts::default()).await;
            let (_, mut body) = sent.map_err(|error| error.reason).unwrap();
            assert!(read_all(&mut body).await.is_err(), "{answer:?}");
            assert!(home.borrow().is_empty());
        }
    });
}

#[test]
fn what_is_no_response_is_an_error_that_says_how_far_it_came() {
    run(async {
        for (answer, answered) in [
            ("", false),
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", true),
            ("HTTP/1.1 100 Continue\r\n\r\n", true),
            ("SSH-2.0-OpenSSH\r\n", true),
        ] {
            let stream = server_of("\r\n\r\n", answer).await;
            let (sent, home) = send(stream, get(Method::GET), Parts::default()).await;
            let error = sent.map(|(head, _)| head).unwrap_err();
            assert_eq!((error.written, error.answered), (true, answered), "{answer:?}");
            assert!(home.borrow().is_empty());
        }
        let hints = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100);
        let stream = server_of("\r\n\r\n", hints).await;
        assert!(send(stream, get(Method::GET), Parts::default()).await.0.is_err());
    });
}

#[test]
fn a_closed_connection_is_not_written_to() {
    run(async {
        for said in ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"] {
            let (mut server, client) = pair().await;
            server.write_all(said.as_bytes()).await.unwrap();
            drop(server);
            client.readable().await.unwrap();
            let (sent, _) = send(client, get(Method::GET), Parts::full("hello")).await;
            let error = sent.map(|(head, _)| head).unwrap_err();
            assert_eq!((error.written, error.answered), (false, false));
            assert_eq!(error.body.map(|body| body.parts.len()), Some(1));
        }
    });
}

#[test]
fn a_target_that_would_hide_a_request_is_not_written() {
    run(async {
        for target in ["/ HTTP/1.1\r\nhost: b\r\n\r\nGET /", "/a b", "/\0", ""] {
            let (mut server, client) = pair().await;
            let head = RequestHead::new(Version::HTTP_11, Method::GET, target);
            let (sent, _) = send(client, head, Parts::default()).await;
            assert!(!sent.map(|(head, _)| head).unwrap_err().written, "{target:?}");
            assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        }
    });
}

#[test]
fn a_response_may_come_before_the_end_of_its_request() {
    run(async {
        let (mut server, client) = pair().await;
        let (sender, body) = Parts::channel(None);
        let sent = tokio::task::spawn_local(send(client, get(Method::POST), body));
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            request.push(char::from(server.read_u8().await.unwrap()));
        }
        server.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let (sent, home) = sent.await.unwrap();
        let (_, mut body) = sent.map_err(|error| error.reason).unwrap();
        for _ in 0..3 {
            sender.send(Ok(data("ab"))).unwrap();
            let mut chunk = [0; 7];
            server.read_exact(&mut chunk).await.unwrap();
            assert_eq!(&chunk, b"2\r\nab\r\n");
            server.write_all(&chunk).await.unwrap();
            let frame = poll_fn(|cx| body.poll_frame(cx)).await;
            assert!(matches!(frame, Some(Ok(Frame::Data(data))) if data == "ab"));
        }
        server.write_all(b"0\r\n\r\n").await.unwrap();
        assert!(poll_fn(|cx| body.poll_frame(cx)).await.is_none());
        assert!(home.borrow().is_empty(), "the request is not complete");
        drop(sender);
        let mut end = [0; 5];
        server.read_exact(&mut end).await.unwrap();
        assert_eq!(&end, b"0\r\n\r\n");
        while home.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_server_that_answers_and_closes_early_is_heard_out() {
    run(async {
        let answer = "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
        let stream = server_of("\r\n\r\n", answer).await;
        let (sender, body) = Parts::channel(Some(100_000_000));
        tokio::task::spawn_local(async move {
            // Goes on until nobody wants it.
            while sender.send(Ok(Frame::Data(vec![b'x'; 50_000].into()))).is_ok() {
                tokio::task::yield_now().await;
            }
        });
        let (sent, home) = send(stream, get(Method::POST), body).await;
        let (head, mut body) = sent.map_err(|error| error.reason).unwrap();
        assert_eq!(head.status, 413);
        assert_eq!(read_all(&mut body).await.unwrap().0, b"no");
        assert!(home.borrow().is_empty());
    });
}

#[test]
fn a_request_that_breaks_off_ends_the_connection() {
    run(async {
        for early in [false, true] {
            let (mut server, client) = pair().await;
            let (sender, body) = Parts::channel(Some(10));
            sender.send(Ok(data("half"))).unwrap();
            let sent = tokio::task::spawn_local(send(client, get(Method::POST), body));
            let mut request = String::new();
            while !request.ends_with("half") {
                request.push(char::from(server.read_u8().await.unwrap()));
            }
            if early {
                server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx").await.unwrap();
                let (sent, _home) = sent.await.unwrap();
                let (_, mut body) = sent.map_err(|error| error.reason).unwrap();
                let read = tokio::task::spawn_local(async move { read_all(&mut body).await });
                tokio::task::yield_now().await;
                sender.send(Err("gone".into())).unwrap();
                assert!(read.await.unwrap().is_err());
            } else {
                sender.send(Err("gone".into())).unwrap();
                let (sent, _) = sent.await.unwrap();
                assert!(sent.map(|(head, _)| head).unwrap_err().reason.contains("gone"));
            }
            assert_eq!(server.read(&mut [0]).await.unwrap_or(0), 0);
        }
    });
}

#[test]
fn a_response_that_is_dropped_closes_its_connection() {
    run(async {
        for uploading in [false, true] {
            let (mut server, client) = pair().await;
            let (sender, body) = Parts::channel(None);
            let sender = uploading.then_some(sender);
            let sent = tokio::task::spawn_local(send(client, get(Method::POST), body));
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                request.push(char::from(server.read_u8().await.unwrap()));
            }
            server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx").await.unwrap();
            let (sent, home) = sent.await.unwrap();
            drop(sent);
            let _ = server.read_to_end(&mut Vec::new()).await;
            assert!(home.borrow().is_empty());
            if let Some(sender) = sender {
                sender.closed().await;
            }
        }
    });
}

#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<ClientConnection>() <= 64);
}
