use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use leno_proto::v1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Purpose;
use crate::{
    config::limits,
    detect::Spoken,
    error::Error,
    net::Prefixed,
    policy::{BackendPolicy, Protocol, Target},
    testing::{BOTH, Sidecar, Through, application, reach, read_until, run, scripted, server_id, talk},
    tls::{MeshProtocol, TlsStream},
    upstream::{Backend, Endpoint, EndpointSet, breaker, budget},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const FORGED: &[u8] =
    b"GET / HTTP/1.1\r\nHost: a\r\nleno-client-id: spiffe://cluster.local/ns/shop/sa/admin\r\nConnection: close\r\n\r\n";

/// A server's sidecar whose policy for the port it listens on is `protocol`, and where that is.
async fn inbound(application: SocketAddr, mode: v1::inbound::Mode, protocol: v1::Protocol) -> (Sidecar, SocketAddr) {
    let server = Sidecar::new("server", || Target::Outside);
    let address = server.inbound(application).await;
    server.permit(mode, address.port(), protocol);
    (server, address)
}

/// A peer with a good certificate that says it carries opaque bytes.
async fn rogue(address: SocketAddr) -> TlsStream<TcpStream> {
    let rogue = Sidecar::new("rogue", || Target::Outside);
    let tcp = TcpStream::connect(address).await.unwrap();
    let credentials = rogue.ctx.credentials.current().unwrap();
    credentials.connect(tcp, &server_id(), MeshProtocol::Tcp).await.unwrap().0
}

/// What is answered to these pieces, sent one after the other.
async fn ask(mut stream: impl crate::net::Io, pieces: &[&[u8]]) -> String {
    for piece in pieces {
        if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_peer_says_that_the_application_is_there_and_ends_what_it_does_not_take() {
    run(async {
        for protocol in [v1::Protocol::Detect, v1::Protocol::Tcp] {
            let greets = application(|mut stream| async move {
                stream.write_all(b"220 ready").await.unwrap();
                let _ = stream.read(&mut [0; 1]).await;
            });
            let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            for (app, said) in [(greets.await, Some(leno_proto::alpn::READY)), (nobody, None)] {
                let (_server, address) = inbound(app, v1::inbound::Mode::Strict, protocol).await;
                let client = Sidecar::new("client", || Target::Outside);
                let credentials = client.ctx.credentials.current().unwrap();
                let tcp = TcpStream::connect(address).await.unwrap();
                let (mut stream, agreed) =
                    credentials.connect(tcp, &server_id(), MeshProtocol::TcpReady).await.unwrap();
                assert_eq!((agreed, stream.read_u8().await.ok()), (MeshProtocol::TcpReady, said));
                if said.is_some() {
                    let mut greeting = [0; 9];
                    stream.read_exact(&mut greeting).await.unwrap();
                    assert_eq!(&greeting, b"220 ready");
                }
            }
        }
    });
}

#[test]
fn requests_among_opaque_bytes_are_requests() {
    run(async {
        let (app, seen) = scripted(OK).await;
        let (_server, address) = inbound(app, v1::inbound::Mode::Strict, v1::Protocol::Detect).await;
        let (first, rest) = FORGED.split_at(2);
        for pieces in [&[FORGED][..], &[first, rest]] {
            let answer = ask(rogue(address).await, pieces).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let text = String::from_utf8(seen.take()).unwrap();
            let ids: Vec<_> = text.lines().filter(|line| line.starts_with("leno-client-id")).collect();
            assert_eq!(ids, ["leno-client-id: spiffe://cluster.local/ns/shop/sa/rogue"]);
        }
        // As no client should write it, but some servers read it.
        let forged = std::str::from_utf8(FORGED).unwrap();
        for request in [
            forged.replacen("GET / ", "GET\x0b/\t", 1),
            format!(" {forged}"),
            forged.replacen("GET / ", "POST a b ", 1),
            forged.replacen('/', &"a".repeat(20_000), 1).replacen("GET", "ODD", 1),
        ] {
            ask(rogue(address).await, &[request.as_bytes()]).await;
            let text = String::from_utf8(seen.take()).unwrap();
            assert!(!text.contains("sa/admin"), "{request:.80} passed:\n{text:.300}");
        }
    });
}

#[test]
fn on_ports_declared_tcp_bytes_pass_as_they_are() {
    run(async {
        let (app, seen) = scripted(OK).await;
        let (_server, address) = inbound(app, v1::inbound::Mode::Permissive, v1::Protocol::Tcp).await;
        let mut stream = rogue(address).await;
        stream.write_all(FORGED).await.unwrap();
        stream.read_exact(&mut [0; OK.len()]).await.unwrap();
        assert_eq!(seen.take(), FORGED);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(FORGED).await.unwrap();
        read_until(&mut stream, b"hi").await.unwrap();
        assert_eq!(seen.take(), FORGED);
    });
}

#[test]
fn an_http_server_that_speaks_first_is_still_spoken_http_to() {
    run(async {
        for (greeting, answered) in
            [(&b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64"[..], true), (b"HTTP/1.1 408 Request Timeout\r\n\r\n", false)]
        {
            let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
            let log = Rc::clone(&seen);
            // Greets only who is silent, so that requests can be answered.
            let app = application(move |mut stream| {
                let log = Rc::clone(&log);
                async move {
                    let mut buffer = [0; 4096];
                    loop {
                        let read = stream.read(&mut buffer);
                        let answer = match tokio::time::timeout(Duration::from_millis(100), read).await {
                            Ok(Ok(read @ 1..)) => {
                                log.borrow_mut().extend_from_slice(&buffer[..read]);
                                OK
                            }
                            Ok(_) => return,
                            Err(_) => greeting,
                        };
                        stream.write_all(answer).await.unwrap();
                    }
                }
            })
            .await;
            let (_server, address) = inbound(app, v1::inbound::Mode::Strict, v1::Protocol::Detect).await;
            let mut stream = rogue(address).await;
            let said = tokio::time::timeout(Duration::from_millis(300), stream.read_u8()).await;
            assert_eq!(said.is_err(), answered, "{said:?}");
            let answer = ask(stream, &[FORGED]).await;
            assert_eq!(answer.starts_with("HTTP/1.1 200 "), answered, "{answer}");
            let text = String::from_utf8(seen.take()).unwrap();
            assert!(text.is_empty() != answered && !text.contains("sa/admin"), "{text}");
        }
    });
}

#[test]
fn short_words_without_an_end_are_answered_and_late_requests_are_not() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                let mut word = [0; 4];
                stream.read_exact(&mut word).await.unwrap();
                stream.write_all(b"imok").await.unwrap();
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                assert!(!rest.windows(4).any(|window| window == b"HTTP"), "a request passed");
            })
            .await;
            let address = reach(app, through).await;
            let mut stream = TcpStream::connect(address).await.unwrap();
            for (word, rest, passes) in [("ruok", "\n", true), ("POST", " / HTTP/1.1\r\n", false)] {
                let mut answer = [0; 4];
                stream.write_all(word.as_bytes()).await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"imok");
                stream.write_all(rest.as_bytes()).await.unwrap();
                if passes {
                    stream.shutdown().await.unwrap();
                }
                let ended = stream.read(&mut answer).await;
                assert_eq!(ended.is_ok(), passes, "{ended:?}");
                stream = TcpStream::connect(address).await.unwrap();
            }
        });
    }
}

#[test]
fn a_permissive_port_declared_tcp_lets_the_server_speak_first() {
    run(async {
        let app = application(|mut stream| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            read_until(&mut stream, b"QUIT\r\n").await;
        })
        .await;
        for protocol in [v1::Protocol::Tcp, v1::Protocol::Detect] {
            let (_server, address) = inbound(app, v1::inbound::Mode::Permissive, protocol).await;
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(read_until(&mut stream, b"\r\n").await.unwrap(), b"220 ready\r\n");
        }
        // What a client in plaintext says first is looked at for HTTP all the same.
        let (app, seen) = scripted(OK).await;
        let (_server, address) = inbound(app, v1::inbound::Mode::Permissive, v1::Protocol::Detect).await;
        assert!(talk(address, FORGED).await.starts_with("HTTP/1.1 200 "));
        assert!(!String::from_utf8(seen.take()).unwrap().contains("leno-client-id"));
    });
}

#[test]
fn a_hello_in_pieces_gets_no_greeting_in_clear() {
    // The beginning of a ClientHello, and what is enough of it to tell.
    let (half, rest) = (b"\x16\x03\x01\x40\x00", b"\x01\x00\x50\x00");
    run(async {
        let (mut client, near) = tokio::io::duplex(100);
        let (mut application, far) = tokio::io::duplex(100);
        application.write_all(b"220 ready\r\n").await.unwrap();
        let race = super::race(Prefixed::new(Bytes::from_static(half), near), Box::new(far), limits::TCP_IDLE);
        let speaks = async {
            tokio::task::yield_now().await;
            client.write_all(rest).await.unwrap();
        };
        let (first, ()) = tokio::join!(race, speaks);
        assert!(matches!(first, super::First::Client(Spoken::Tls { .. }, ..)));
    });
    run(async {
        let app = application(|mut stream| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let (_server, to_server) = inbound(app, v1::inbound::Mode::Permissive, v1::Protocol::Detect).await;
        for address in [to_server, reach(app, Through::Outbound).await] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(half).await.unwrap();
            let early = tokio::time::timeout(limits::PEEK_WAIT * 5, stream.read_u8()).await;
            assert!(early.is_err(), "{early:?}");
            stream.write_all(rest).await.unwrap();
            // It is the application's own TLS: what it answers is the application's own affair.
            read_until(&mut stream, b"\r\n").await.unwrap();
        }
    });
}

#[test]
fn who_waits_for_more_of_a_broken_connection_is_told() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                stream.read_exact(&mut [0; 3]).await.unwrap();
                stream.write_all(b"half").await.unwrap();
                stream.read_exact(&mut [0; 3]).await.unwrap();
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            })
            .await;
            let mut stream = TcpStream::connect(reach(app, through).await).await.unwrap();
            stream.write_all(b"\0\0\0").await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
            stream.write_all(b"\0\0\0").await.unwrap();
            let ended = stream.read(&mut [0; 1]).await;
            assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{through:?}");
        });
    }
}

/// A backend of three endpoints that end each connection before its handshake, called as `policy` says; and how many they took.
async fn unreachable(policy: BackendPolicy) -> (Arc<Backend>, Rc<Cell<u32>>) {
    let taken = Rc::new(Cell::new(0));
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        let count = Rc::clone(&taken);
        let address = application(move |stream| {
            count.set(count.get() + 1);
            drop(stream);
            std::future::ready(())
        });
        endpoints.push(Endpoint::new(address.await, Some(server_id()), "w", "", 1));
    }
    let backend = Arc::new(Backend::new("shop/lines:80".into()));
    backend.publish(EndpointSet::new(true, Protocol::Tcp, endpoints).under(Arc::new(policy)));
    (backend, taken)
}

#[test]
fn connections_that_cannot_be_made_open_the_breaker() {
    run(async {
        let policy = BackendPolicy { breaker: Some(breaker::Settings::opens_after(2)), ..BackendPolicy::default() };
        let (backend, taken) = unreachable(policy).await;
        let client = Sidecar::new("client", || Target::Outside);
        let source = SocketAddr::from(([127, 0, 0, 1], 1));
        let error = super::connect(&client.ctx, &backend, source, Purpose::Opaque).await.err();
        assert!(matches!(error, Some(Error::Tls { .. } | Error::Connect { .. })), "{error:?}");
        assert_eq!(taken.get(), 2, "it is open, and there is no third try");
        let error = super::connect(&client.ctx, &backend, source, Purpose::Opaque).await.err();
        assert!(matches!(error, Some(Error::CircuitOpen { .. })), "{error:?}");
        assert_eq!(taken.get(), 2);
    });
}

/// A backend of one application that nobody says the protocol of, and its circuit, which one failure has just opened.
fn opened(app: SocketAddr, retry_budget: budget::Settings) -> Arc<Backend> {
    let breaker = breaker::Settings::opens_after(1);
    let policy = BackendPolicy { breaker: Some(Arc::clone(&breaker)), retry_budget, ..BackendPolicy::default() };
    let backend = Arc::new(Backend::new("shop/shop:80".into()));
    backend.publish(EndpointSet::new(true, Protocol::Detect, vec![Endpoint::plain(app)]).under(Arc::new(policy)));
    let permit = backend.shield.breaker.admit(&breaker, Instant::now()).unwrap();
    assert!(permit.report(Some(false), Instant::now()), "it has just been opened");
    backend
}

#[test]
fn who_has_not_spoken_yet_neither_asks_the_breaker_nor_tells_it() {
    run(async {
        let retry_budget = budget::Settings { percent: 100, per_second: 0, burst: 1, ..budget::Settings::default() };
        let breaker = Some(breaker::Settings::opens_after(1));
        let client = Sidecar::new("client", || Target::Outside);
        let source = SocketAddr::from(([127, 0, 0, 1], 1));
        let (backend, taken) = unreachable(BackendPolicy { breaker, retry_budget, ..BackendPolicy::default() }).await;
        assert!(backend.budget.withdraw(Instant::now()), "its last");
        assert!(super::connect(&client.ctx, &backend, source, Purpose::Undecided).await.is_err());
        assert_eq!((taken.get(), backend.shield.breaker.state()), (3, "closed"), "without a budget, too");

        let (app, _) = scripted(OK).await;
        let backend = opened(app, retry_budget);
        assert!(backend.budget.withdraw(Instant::now()), "its last");
        let connect = async |purpose| super::connect(&client.ctx, &backend, source, purpose).await;
        assert!(connect(Purpose::Undecided).await.is_ok());
        assert_eq!((backend.shield.breaker.state(), backend.budget.left()), ("open", 0), "nor pays into the budget");
        assert!(matches!(connect(Purpose::Opaque).await.err(), Some(Error::CircuitOpen { .. })));
    });
}

#[test]
fn a_silent_client_of_http_is_not_closed_by_an_open_circuit() {
    run(async {
        let (app, _) = scripted(OK).await;
        let backend = opened(app, budget::Settings::default());
        let client = Sidecar::new("client", move || Target::Workload(Arc::clone(&backend)));
        let mut stream = TcpStream::connect(client.outbound().await).await.unwrap();
        let closed = tokio::time::timeout(limits::PEEK_WAIT * 5, stream.read_u8()).await;
        assert!(closed.is_err(), "{closed:?}");
        let answer = ask(stream, &[b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"]).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("circuit-open"), "{answer}");
    });
}

#[test]
fn connections_are_tried_again_within_the_budget() {
    run(async {
        let client = Sidecar::new("client", || Target::Outside);
        let source = SocketAddr::from(([127, 0, 0, 1], 1));
        for (burst, tries) in [(100, 3), (1, 2), (0, 1)] {
            let retry_budget = budget::Settings { percent: 0, per_second: 0, burst, ..budget::Settings::default() };
            let (backend, taken) = unreachable(BackendPolicy { retry_budget, ..BackendPolicy::default() }).await;
            assert!(super::connect(&client.ctx, &backend, source, Purpose::Opaque).await.is_err());
            assert_eq!(taken.get(), tries, "with a budget of {burst}");
        }
    });
}
