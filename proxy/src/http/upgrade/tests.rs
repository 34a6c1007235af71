use std::{future::poll_fn, io::ErrorKind, time::Duration};

use http::{Method, StatusCode, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

use super::*;
use crate::{
    drain::DrainOwner,
    http::{
        body::Frame,
        h2::{self, Kind, Settings},
        head::{RequestHead, ResponseHead},
    },
};

/// A tunnel from a client of HTTP/2 to a TCP server, and both ends.
async fn tunnelled() -> (h2::Connection, SendStream, RecvStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let drain = DrainOwner::default().handle();
    let on_request = move |request: h2::Request| {
        let h2::Request { mut send, receive, .. } = request;
        send.send_response(&ResponseHead::new(StatusCode::OK), false);
        spawn_local(async move {
            let server = TcpStream::connect(address).await.unwrap();
            let _ = copy::relay(tunnel(send, receive), server, Duration::from_secs(60), &Moved::default()).await;
        });
    };
    spawn_local(async move { h2::serve(far, Settings::new(), drain, on_request, |_, _| {}).await });
    let (client, driver) = h2::connect(near, Settings::new());
    spawn_local(driver);
    let mut head = RequestHead::new(Version::HTTP_2, Method::CONNECT, "");
    head.set_authority("shop:80");
    let (send, mut receive) = client.open(&head, false).unwrap();
    assert_eq!(poll_fn(|cx| receive.poll_response(cx)).await.unwrap().status, StatusCode::OK);
    let (server, _) = listener.accept().await.unwrap();
    (client, send, receive, server)
}

async fn run(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(30), LocalSet::new().run_until(test)).await.expect("the test hangs");
}

async fn next(receive: &mut RecvStream) -> Option<Result<Frame, h2::StreamError>> {
    poll_fn(|cx| receive.poll_frame(cx)).await
}

#[tokio::test]
async fn a_servers_reset_is_one_of_the_stream() {
    run(async {
        let (_client, _send, mut receive, mut server) = tunnelled().await;
        server.write_all(b"some").await.unwrap();
        let Some(Ok(Frame::Data(some))) = next(&mut receive).await else { panic!("no data") };
        assert_eq!(some, "some");
        Io::reset(&server);
        drop(server);
        let error = next(&mut receive).await.unwrap().unwrap_err();
        assert_eq!((error.kind, error.code), (Kind::Reset, Code::CONNECT_ERROR));
    })
    .await;
}

#[tokio::test]
async fn a_reset_of_the_stream_is_one_for_the_server() {
    run(async {
        let (_client, mut send, _receive, mut server) = tunnelled().await;
        assert_eq!(send.send_data(b"some", false), 4);
        let mut some = [0; 4];
        server.read_exact(&mut some).await.unwrap();
        send.reset(Code::CANCEL);
        assert_eq!(server.read(&mut some).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    })
    .await;
}

#[tokio::test]
async fn a_reset_after_the_end_is_one_for_the_server_too() {
    run(async {
        let (_client, mut send, _receive, mut server) = tunnelled().await;
        assert_eq!(send.send_data(b"all", true), 3);
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"all");
        // The server has more to say, and nobody listens.
        send.reset(Code::CANCEL);
        let error = loop {
            if let Err(error) = server.write_all(b"more").await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    })
    .await;
}

#[tokio::test]
async fn ends_are_passed_on_as_ends() {
    run(async {
        let (_client, mut send, mut receive, mut server) = tunnelled().await;
        assert_eq!(send.send_data(b"all", true), 3);
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"all");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        while let Some(frame) = next(&mut receive).await {
            let Frame::Data(bytes) = frame.unwrap() else { panic!("no data") };
            answer.extend_from_slice(&bytes);
        }
        assert_eq!(answer, b"answer");
    })
    .await;
}
