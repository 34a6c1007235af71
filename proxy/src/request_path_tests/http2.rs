//! HTTP/2 and gRPC through the sidecars.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, client::conn, service::service_fn};
use hyper_util::rt::TokioIo;
use leno_proto::v1;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    policy::{Protocol, Target},
    testing::LocalExecutor,
    testing::{BOTH, Sidecar, Through, application, ejected, reach, run, talk, workload, workload_source},
};

pub(super) type Bytewise = BoxBody<Bytes, Infallible>;

/// A body fed by the sender, frame by frame.
pub(super) fn channel() -> (mpsc::Sender<Result<Frame<Bytes>, Infallible>>, Bytewise) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))))
}

pub(super) fn full(bytes: &'static [u8]) -> Bytewise {
    Full::new(Bytes::from_static(bytes)).boxed()
}

async fn client(address: std::net::SocketAddr) -> conn::http2::SendRequest<Bytewise> {
    client_of(TcpStream::connect(address).await.unwrap()).await
}

pub(super) async fn client_of(stream: TcpStream) -> conn::http2::SendRequest<Bytewise> {
    let (sender, connection) = conn::http2::handshake(LocalExecutor, TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

/// A server that echoes messages and ends with a gRPC status.
async fn grpc_echo() -> std::net::SocketAddr {
    application(|stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            assert_eq!(request.version(), Version::HTTP_2);
            assert_eq!(request.uri().authority().unwrap().as_str(), "shop:80");
            assert_eq!(request.headers()["te"], "trailers");
            if request.uri().path() == "/echo/Refuse" {
                let response = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "7")
                    .body(full(b""));
                return Ok::<_, Infallible>(response.unwrap());
            }
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                let mut messages = request.into_body();
                while let Some(Ok(frame)) = messages.frame().await {
                    if let Ok(data) = frame.into_data() {
                        sender.send(Ok(Frame::data(data))).await.unwrap();
                    }
                }
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
                let _ = sender.send(Ok(Frame::trailers(trailers))).await;
            });
            Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
        });
        let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

fn grpc(path: &str, body: Bytewise) -> Request<Bytewise> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://shop:80{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

#[test]
fn grpc_streams_both_ways_with_trailers() {
    for through in BOTH {
        run(async move {
            let mut client = client(reach(grpc_echo().await, through).await).await;
            let (sender, body) = channel();
            let response = client.send_request(grpc("/echo/Echo", body)).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let mut messages = response.into_body();
            for message in ["one", "two", "three"] {
                sender.send(Ok(Frame::data(message.into()))).await.unwrap();
                let frame = messages.frame().await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), message);
            }
            drop(sender);
            let trailers = messages.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            assert!(messages.frame().await.is_none());

            let refused = client.send_request(grpc("/echo/Refuse", full(b"x"))).await.unwrap();
            assert_eq!(refused.headers()["grpc-status"], "7");
        });
    }
}

/// The mesh carries HTTP/1 in streams, too, whose other side takes bytes behind such a head for a fault.
#[test]
fn what_the_proxy_answers_to_head_has_no_body() {
    for through in BOTH {
        run(async move {
            let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let address = reach(nowhere, through).await;
            let mut client = client(address).await;
            for _ in 0..3 {
                let head = Request::builder().method(Method::HEAD).uri("http://shop:80/").body(full(b"")).unwrap();
                let response = client.send_request(head).await.unwrap();
                assert_eq!(
                    (response.status(), response.headers()["leno-reason"].to_str().unwrap()),
                    (StatusCode::BAD_GATEWAY, "connect")
                );
                assert!(response.into_body().frame().await.is_none());
            }
            let head = b"HEAD / HTTP/1.1\r\nHost: shop:80\r\nConnection: close\r\n\r\n";
            let answer = talk(address, head).await;
            assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("leno-reason: connect\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        });
    }
}

#[test]
fn grpc_clients_are_told_of_failures_in_grpc() {
    run(async {
        let client_side = Sidecar::new("client", workload_source(vec![]));
        let mut client = client(client_side.outbound().await).await;
        let response = client.send_request(grpc("/echo/Echo", full(b"x"))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["leno-reason"], "no-endpoint");
        assert!(response.headers()["grpc-message"].to_str().unwrap().contains("no ready endpoint"));
    });
}

#[test]
fn a_client_that_resets_its_stream_ends_it_at_the_server() {
    run(async {
        let (gone, mut left) = mpsc::channel(1);
        let app = application(move |stream| {
            let gone = gone.clone();
            async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let gone = gone.clone();
                    async move {
                        let mut body = request.into_body();
                        // It has begun, and then ends.
                        gone.send(()).await.unwrap();
                        while let Some(Ok(_)) = body.frame().await {}
                        gone.send(()).await.unwrap();
                        std::future::pending::<Result<Response<Bytewise>, Infallible>>().await
                    }
                });
                let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await;
        let mut client = client(reach(app, Through::Mesh).await).await;
        let (sender, body) = channel();
        sender.send(Ok(Frame::data("begun".into()))).await.unwrap();
        let request =
            tokio::task::spawn_local(async move { client.send_request(grpc("/x/Y", body)).await.map(|_| client) });
        left.recv().await.unwrap();
        request.abort();
        left.recv().await.unwrap();
    });
}

#[test]
fn extended_connect_becomes_a_tunnel() {
    for through in BOTH {
        run(async move {
            let app = application(|stream| async move {
                let service = service_fn(|mut request: Request<Incoming>| async move {
                    assert_eq!(request.method(), Method::CONNECT);
                    let protocol = request.extensions().get::<hyper::ext::Protocol>().unwrap();
                    assert_eq!(protocol.as_str(), "websocket");
                    assert_eq!(request.uri().path(), "/chat");
                    let upgrade = hyper::upgrade::on(&mut request);
                    tokio::task::spawn_local(async move {
                        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    });
                    Ok::<_, Infallible>(Response::new(full(b"")))
                });
                let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
                    .enable_connect_protocol()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            })
            .await;
            let mut client = client(reach(app, through).await).await;
            // The server's settings must have come before the extension may be used.
            client.ready().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let mut request =
                Request::builder().method(Method::CONNECT).uri("http://shop:80/chat").body(full(b"")).unwrap();
            request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
            let mut response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            tunnel.write_all(b"ping").await.unwrap();
            let mut echoed = [0; 4];
            tunnel.read_exact(&mut echoed).await.unwrap();
            assert_eq!(&echoed, b"ping");
        });
    }
}

#[test]
fn a_client_that_asks_for_what_cannot_be_sent_has_nobody_ejected() {
    run(async {
        let (app, seen) = crate::testing::scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        let Target::Workload(backend) = workload(&[(app, None), (app, None)], Protocol::Http1) else { unreachable!() };
        let held = Arc::clone(&backend);
        let sidecar = Sidecar::new("client", move || Target::Workload(Arc::clone(&held)));
        let mut client = client(sidecar.outbound().await).await;
        // The server's settings must have come before the extension may be used.
        client.ready().await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        for _ in 0..20 {
            let mut request =
                Request::builder().method(Method::CONNECT).uri("http://shop:80/chat").body(full(b"")).unwrap();
            request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        }
        let target = http::Uri::builder().scheme("http").authority("shop:80").path_and_query("*").build();
        let request = Request::builder().uri(target.unwrap()).body(full(b"")).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::BAD_REQUEST, "GET *");
        assert_eq!((seen.borrow().len(), ejected(&backend)), (0, 0));
    });
}

#[test]
fn an_application_that_speaks_http1_only_is_spoken_to_so() {
    run(async {
        let (app, seen) = crate::testing::scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        let server = Sidecar::new("server", || Target::Outside);
        let inbound = server.inbound(app).await;
        server.permit(v1::inbound::Mode::Strict, inbound.port(), v1::Protocol::Http1);
        let client_side = Sidecar::new("client", workload_source(vec![(inbound, Some(crate::testing::server_id()))]));
        let mut client = client(client_side.outbound().await).await;
        let request = Request::builder()
            .uri("http://shop:80/x")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(full(b""))
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi");
        let seen = String::from_utf8(seen.take()).unwrap();
        assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && seen.contains("host: shop:80\r\n"), "{seen}");
        assert!(seen.contains("cookie: a=1; b=2\r\n"), "{seen}");
    });
}
