//! Connections over real sockets: counted once each, waited for from the start, refused when policy turns.

use std::{cell::Cell, net::SocketAddr, time::Duration};

use http::Request;
use leno_proto::v1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::yield_now,
};

use super::{
    OK,
    http2::{client_of, full},
    stalled::counted,
};
use crate::{
    net::Io,
    policy::Target,
    telemetry::exposition,
    testing::{BOTH, Sidecar, application, reach, read_until, run, scripted, server_id, talk, workload_source},
    tls::MeshProtocol,
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";

/// A client's sidecar with a route to the application, whose port speaks `protocol`.
fn client_side(app: SocketAddr, protocol: v1::Protocol) -> Sidecar {
    let sidecar = Sidecar::new("client", || Target::Outside);
    sidecar.route(protocol, v1::HttpAction::default(), &[app]);
    sidecar
}

/// A server's sidecar, and where it listens.
async fn server_side(app: SocketAddr, mode: v1::inbound::Mode, protocol: v1::Protocol) -> (Sidecar, SocketAddr) {
    let sidecar = Sidecar::new("server", || Target::Outside);
    let address = sidecar.inbound(app).await;
    sidecar.permit(mode, address.port(), protocol);
    (sidecar, address)
}

async fn connected(sidecar: &Sidecar, address: SocketAddr) -> TcpStream {
    let before = sidecar.drain.open();
    let stream = TcpStream::connect(address).await.unwrap();
    while sidecar.drain.open() == before {
        yield_now().await;
    }
    stream
}

#[test]
fn a_port_turned_strict_refuses_requests_on_connections_already_open() {
    counted(async |registry| {
        // An application for each version, since it is spoken to as the client speaks.
        let (app, seen) = scripted(OK).await;
        let (server, address) = server_side(app, v1::inbound::Mode::Permissive, v1::Protocol::Http1).await;
        let mut kept = TcpStream::connect(address).await.unwrap();
        kept.write_all(GET).await.unwrap();
        read_until(&mut kept, b"hi").await.unwrap();
        let mut client = client_of(TcpStream::connect(address).await.unwrap()).await;
        let request = || Request::get("http://a/").body(full(b"")).unwrap();
        assert_eq!(client.send_request(request()).await.unwrap().status(), 200);

        server.permit(v1::inbound::Mode::Strict, address.port(), v1::Protocol::Http1);
        seen.take();
        kept.write_all(GET).await.unwrap();
        let mut answer = String::new();
        kept.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(client.send_request(request()).await.unwrap().status(), 403);
        assert!(seen.take().is_empty());
        let page = exposition::render(&registry);
        assert!(page.contains("leno_refused_total{direction=\"inbound\",reason=\"plaintext\"} 2"), "{page}");
    });
}

/// A client whose connection was accepted says nothing until draining has begun, and is answered.
async fn speaks_late<S: Io>(sidecar: &Sidecar, address: SocketAddr, secured: impl AsyncFnOnce(TcpStream) -> S) {
    let stream = connected(sidecar, address).await;
    sidecar.drain.begin();
    let asked = Cell::new(false);
    let drained = async {
        assert_eq!(sidecar.drain.wait(Duration::from_secs(10)).await, 0);
        assert!(asked.get(), "the drain ended before the client spoke");
    };
    let asks = async {
        for _ in 0..100 {
            yield_now().await;
        }
        asked.set(true);
        let mut stream = secured(stream).await;
        stream.write_all(POST).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close\r\n"), "{answer}");
    };
    tokio::join!(drained, asks);
}

#[test]
fn a_drain_waits_for_connections_that_have_not_spoken_yet() {
    run(async {
        let (app, _) = scripted(OK).await;
        for protocol in [v1::Protocol::Http, v1::Protocol::Detect] {
            let sidecar = client_side(app, protocol);
            let address = sidecar.outbound().await;
            speaks_late(&sidecar, address, async |stream| stream).await;
            let (sidecar, address) = server_side(app, v1::inbound::Mode::Permissive, protocol).await;
            speaks_late(&sidecar, address, async |stream| stream).await;
            let (sidecar, address) = server_side(app, v1::inbound::Mode::Strict, protocol).await;
            let peer = Sidecar::new("client", || Target::Outside);
            speaks_late(&sidecar, address, async |stream| {
                let credentials = peer.ctx.credentials.current().unwrap();
                credentials.connect(stream, &server_id(), MeshProtocol::Http1).await.unwrap().0
            })
            .await;
        }
    });
}

#[test]
fn a_drain_does_not_wait_for_who_says_nothing() {
    run(async {
        // The application is as silent.
        let app = application(|mut stream| async move {
            let _ = stream.read(&mut [0; 1]).await;
        })
        .await;
        for protocol in [v1::Protocol::Http, v1::Protocol::Detect, v1::Protocol::Tls] {
            let outbound = client_side(app, protocol);
            let address = outbound.outbound().await;
            let _one = connected(&outbound, address).await;
            let (inbound, address) = server_side(app, v1::inbound::Mode::Permissive, protocol).await;
            let _other = connected(&inbound, address).await;
            for sidecar in [&outbound, &inbound] {
                sidecar.drain.begin();
                assert_eq!(sidecar.drain.wait(Duration::from_secs(10)).await, 0, "{protocol:?}");
            }
        }
    });
}

/// It is counted otherwise between proxies, and there is more of it.
#[test]
fn a_head_that_the_first_proxy_takes_the_next_one_takes_too() {
    let fields = format!("x: {}\r\n", "y".repeat(240)).repeat(250);
    for through in BOTH {
        let fields = fields.clone();
        run(async move {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{fields}\r\nok");
            let app = application(move |mut stream| {
                let answer = answer.clone();
                async move {
                    let head = read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                    assert_eq!(head.windows(4).filter(|window| window == b"\nx: ").count(), 250);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            })
            .await;
            let request = format!("GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n{fields}\r\n");
            let answer = talk(reach(app, through).await, request.as_bytes()).await;
            assert!(
                answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"),
                "{}",
                answer.lines().next().unwrap()
            );
            assert_eq!(answer.matches("\nx: ").count(), 250);
        });
    }
}

#[test]
fn what_only_http_1_may_have_passes_between_proxies_too() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                let head = read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                let line = head.split(|byte| *byte == b'\r').next().unwrap();
                let chunks = format!("{:x}\r\n{}\r\n0\r\n", line.len(), String::from_utf8_lossy(line));
                let trailers = "keep-alive: 5\r\nproxy-connection: x\r\nhttp2-settings: y\r\nx-sum: 1\r\n\r\n";
                let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{trailers}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            })
            .await;
            let proxy = reach(app, through).await;
            for (target, seen) in [("/?q=`id`", "/?q=`id`"), ("http://shop?echo", "/?echo"), ("http://shop", "/")] {
                let request =
                    format!("GET {target} HTTP/1.1\r\nhost: shop\r\nconnection: close, te\r\nte: trailers\r\n\r\n");
                let answer = talk(proxy, request.as_bytes()).await;
                assert!(answer.contains(&format!("GET {seen} HTTP/1.1")), "{target}: {answer}");
                assert!(answer.contains("\r\n0\r\n") && !answer.contains("keep-alive"), "{target}: {answer}");
            }
        });
    }
}

/// Its body ends with the connection.
#[test]
fn an_answer_that_broke_off_does_not_look_whole_over_http_1_0() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                let begun = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc";
                stream.write_all(begun).await.unwrap();
            })
            .await;
            let mut stream = TcpStream::connect(reach(app, through).await).await.unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\nhost: shop\r\n\r\n").await.unwrap();
            let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        });
    }
}

#[test]
fn each_connection_counts_once() {
    run(async {
        let (app, _) = scripted(OK).await;
        let (server, address) = server_side(app, v1::inbound::Mode::Permissive, v1::Protocol::Detect).await;
        let mut kept = TcpStream::connect(address).await.unwrap();
        kept.write_all(GET).await.unwrap();
        read_until(&mut kept, b"hi").await.unwrap();
        assert_eq!(server.drain.open(), 1);

        let echo = application(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await;
        let client = Sidecar::new("client", workload_source(vec![(echo, None)]));
        let mut opaque = TcpStream::connect(client.outbound().await).await.unwrap();
        opaque.write_all(b"\0\0\0").await.unwrap();
        opaque.read_exact(&mut [0; 3]).await.unwrap();
        assert_eq!(client.drain.open(), 1);

        let tunnel = application(|mut stream| async move {
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await;
        let client = Sidecar::new("client", workload_source(vec![(tunnel, None)]));
        let mut upgraded = TcpStream::connect(client.outbound().await).await.unwrap();
        upgraded.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap();
        read_until(&mut upgraded, b"\r\n\r\n").await.unwrap();
        upgraded.write_all(b"ping").await.unwrap();
        read_until(&mut upgraded, b"ping").await.unwrap();
        assert_eq!(client.drain.open(), 1);
        drop(upgraded);
        assert_eq!(client.drain.wait(Duration::from_secs(10)).await, 0);
    });
}

#[test]
fn heads_that_cannot_be_read_are_refused_by_count() {
    counted(async |registry| {
        let (app, _) = scripted(OK).await;
        let outbound = client_side(app, v1::Protocol::Http);
        let address = outbound.outbound().await;
        let (inbound, to_server) = server_side(app, v1::inbound::Mode::Permissive, v1::Protocol::Http).await;
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
        let malformed = "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n";
        for (head, status, reason) in [(malformed, "400", "bad-request"), (&long, "431", "head-too-large")] {
            for address in [address, to_server] {
                let answer = talk(address, head.as_bytes()).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
                assert!(answer.contains(&format!("\r\nleno-reason: {reason}\r\n")), "{answer}");
            }
        }
        // They are counted when their connections end.
        for sidecar in [&outbound, &inbound] {
            assert_eq!(sidecar.drain.wait(Duration::from_secs(10)).await, 0);
        }
        let page = exposition::render(&registry);
        for direction in ["inbound", "outbound"] {
            let line = format!("leno_refused_total{{direction=\"{direction}\",reason=\"malformed\"}} 2");
            assert!(page.contains(&line), "{line} in\n{page}");
        }
    });
}
