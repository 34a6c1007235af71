//! Against another implementation, both ways.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::task::spawn_local;

use super::{answer, head_of, read, request, run, send};
use crate::{
    drain::DrainOwner,
    http::{
        h2::{Code, Connection, Kind, Settings, connect, serve},
        head::Fields,
    },
};

type Body = h2::RecvStream;

async fn all(body: &mut Body) -> Result<Vec<u8>, h2::Error> {
    let mut whole = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

async fn send_all(stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let Some(capacity) = poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
        let piece = bytes.split_to(capacity?.min(bytes.len()));
        stream.send_data(piece, false)?;
    }
    if end { stream.send_data(Bytes::new(), true) } else { Ok(()) }
}

/// Their client, our server.
async fn their_client(drain: &DrainOwner) -> h2::client::SendRequest<Bytes> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let handle = drain.handle();
    spawn_local(serve(far, Settings::new(), handle, |request| drop(spawn_local(answer(request))), |_, _| {}));
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_connection_window_size(1 << 20).handshake(near).await.unwrap();
    spawn_local(connection);
    client
}

fn theirs(method: Method, path: &str) -> http::Request<()> {
    http::Request::builder()
        .method(method)
        .uri(format!("http://shop:80{path}"))
        .header("x-tenant", "blue")
        .body(())
        .unwrap()
}

#[test]
fn their_client_gets_bodies_and_trailers() {
    run(async {
        let mut client = their_client(&DrainOwner::default()).await;
        for size in [0, 1, 100_000, 3_000_000] {
            let (response, mut stream) = client.send_request(theirs(Method::POST, "/echo"), false).unwrap();
            let body = Bytes::from(vec![b'a'; size]);
            let sent = body.clone();
            let sending = spawn_local(async move {
                send_all(&mut stream, sent, false).await.unwrap();
                stream
                    .send_trailers(http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]))
            });
            let (head, mut receive) = response.await.unwrap().into_parts();
            assert_eq!((head.status, head.headers["x-tenant"].as_bytes()), (StatusCode::OK, &b"blue"[..]));
            assert!(all(&mut receive).await.unwrap() == body);
            assert_eq!(receive.trailers().await.unwrap().unwrap()["grpc-status"], "0");
            sending.await.unwrap().unwrap();
        }
        let (response, _) = client.send_request(theirs(Method::GET, "/nothing"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::NOT_FOUND);
    });
}

#[test]
fn their_client_may_ask_much_at_once_and_take_it_back() {
    run(async {
        let client = their_client(&DrainOwner::default()).await;
        let mut tasks = Vec::new();
        for n in 0..1000 {
            let client = client.clone();
            tasks.push(spawn_local(async move {
                let mut client = client.ready().await.unwrap();
                let (response, mut stream) =
                    client.send_request(theirs(Method::GET, &format!("/bytes/{n}")), true).unwrap();
                if n % 10 == 0 {
                    stream.send_reset(h2::Reason::CANCEL);
                    return;
                }
                let mut body = response.await.unwrap().into_body();
                assert_eq!(all(&mut body).await.unwrap().len(), n);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn their_client_reads_slowly_and_nobody_else_waits() {
    run(async {
        let mut client = their_client(&DrainOwner::default()).await;
        let (response, _) = client.send_request(theirs(Method::GET, "/bytes/1000000"), true).unwrap();
        let mut slow = response.await.unwrap().into_body();
        for _ in 0..10 {
            let (response, _) = client.send_request(theirs(Method::GET, "/bytes/30"), true).unwrap();
            assert_eq!(all(response.await.unwrap().body_mut()).await.unwrap().len(), 30);
            // It reads without giving the window back.
            let _ = tokio::time::timeout(Duration::from_millis(1), slow.data()).await;
        }
    });
}

#[test]
fn their_client_is_told_to_leave() {
    run(async {
        let drain = DrainOwner::default();
        let mut client = their_client(&drain).await;
        let (response, mut stream) = client.send_request(theirs(Method::POST, "/echo"), false).unwrap();
        let (_, mut body) = response.await.unwrap().into_parts();
        drain.begin();
        send_all(&mut stream, Bytes::from_static(b"the last"), true).await.unwrap();
        assert_eq!(all(&mut body).await.unwrap(), b"the last");
        // The connection ends; whoever asks for more is refused.
        while client.send_request(theirs(Method::GET, "/bytes/1"), true).is_ok() {
            client = match client.ready().await {
                Ok(client) => client,
                Err(_) => break,
            };
        }
    });
}

/// Our client, their server, which answers as [`answer`] does.
fn their_server() -> Connection {
    let (near, far) = tokio::io::duplex(64 * 1024);
    spawn_local(async move {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(50).initial_window_size(100_000).enable_connect_protocol();
        let mut connection: h2::server::Connection<_, Bytes> = builder.handshake(far).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            if request.uri().path() == "/leave" {
                connection.graceful_shutdown();
            }
            spawn_local(they_answer(request, respond));
        }
    });
    let (client, drive) = connect(near, Settings::new());
    spawn_local(drive);
    client
}

async fn they_answer(request: http::Request<Body>, mut respond: h2::server::SendResponse<Bytes>) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    if path == "/drop" {
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
    let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
    match path.strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
        Some(count) => drop(send_all(&mut stream, Bytes::from(vec![b'x'; count]), true).await),
        None => {
            while let Some(Ok(bytes)) = body.data().await {
                let _ = body.flow_control().release_capacity(bytes.len());
                if send_all(&mut stream, bytes, false).await.is_err() {
                    return;
                }
            }
            match body.trailers().await {
                Ok(Some(trailers)) => drop(stream.send_trailers(trailers)),
                _ => drop(stream.send_data(Bytes::new(), true)),
            }
        }
    }
}

#[test]
fn their_server_gets_bodies_and_trailers() {
    run(async {
        let client = their_server();
        for size in [0, 1, 100_000, 3_000_000] {
            let (mut sender, mut receive) = client.open(&request(Method::POST, "/echo"), false).unwrap();
            let body = vec![b'a'; size];
            let sent = body.clone();
            let sending = spawn_local(async move {
                send(&mut sender, &sent, false).await.unwrap();
                sender.send_trailers(&Fields::from_iter([("grpc-status", "0")]));
                sender
            });
            assert_eq!(head_of(&mut receive).await.unwrap().status, StatusCode::OK);
            let (echoed, trailers) = read(&mut receive).await.unwrap();
            assert!(echoed == body);
            assert_eq!(trailers.unwrap(), Fields::from_iter([("grpc-status", "0")]));
            sending.await.unwrap();
        }
        assert_eq!((client.most_streams(), client.takes_connect_protocol()), (50, Some(true)));
    });
}

#[test]
fn their_server_is_asked_no_more_at_once_than_it_takes() {
    run(async {
        let client = their_server();
        while client.most_streams() != 50 {
            tokio::task::yield_now().await;
        }
        let open: Vec<_> =
            (0..60).map_while(|_| client.open(&request(Method::GET, "/bytes/300000"), true).ok()).collect();
        assert_eq!((open.len(), client.streams()), (50, 50));
        // All of them together, because 50 unread would fill the connection's window.
        let reading: Vec<_> = open
            .into_iter()
            .map(|(_, mut receive)| spawn_local(async move { read(&mut receive).await.unwrap().0.len() }))
            .collect();
        for one in reading {
            assert_eq!(one.await.unwrap(), 300_000);
        }
        let (_, mut receive) = client.open(&request(Method::GET, "/drop"), true).unwrap();
        assert!(head_of(&mut receive).await.unwrap_err().is_unprocessed());
        assert!(client.is_usable());
    });
}

#[test]
fn their_server_leaves() {
    run(async {
        let client = their_server();
        let (_send, mut receive) = client.open(&request(Method::GET, "/leave"), true).unwrap();
        assert!(read(&mut receive).await.is_ok());
        while client.is_usable() {
            tokio::task::yield_now().await;
        }
        let (_send, mut receive) = (client.open(&request(Method::GET, "/"), true).err(), receive);
        assert!(receive.is_end());
        let _ = read(&mut receive).await;
    });
}

#[test]
fn their_server_sees_what_we_take_back() {
    run(async {
        let client = their_server();
        let (mut sender, mut receive) = client.open(&request(Method::POST, "/echo"), false).unwrap();
        send(&mut sender, b"some", false).await.unwrap();
        assert_eq!(head_of(&mut receive).await.unwrap().status, StatusCode::OK);
        sender.reset(Code::CANCEL);
        assert_eq!(poll_fn(|cx| sender.poll_reset(cx)).await.kind, Kind::Cancelled);
        drop((sender, receive));
        let (_send, mut receive) = client.open(&request(Method::GET, "/bytes/10"), true).unwrap();
        assert_eq!(read(&mut receive).await.unwrap().0.len(), 10);
    });
}
