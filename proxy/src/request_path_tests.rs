//! HTTP over real sockets, through one sidecar and through two with mutual TLS between them.

mod connections;
mod explained;
mod fallback;
mod http2;
mod idle;
mod informational;
mod policy;
mod stalled;

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::testing::{BOTH, Through, application, reach, read_until, run, scripted, talk};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

#[test]
fn a_request_passes_with_its_headers_and_without_what_was_for_one_hop() {
    for through in BOTH {
        run(async move {
            let (app, seen) = scripted(OK).await;
            let address = reach(app, through).await;
            let answer = talk(
                address,
                b"GET /a/b?c=d HTTP/1.1\r\nHost: shop:80\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\
                  X-Kept: 2\r\nleno-client-id: spiffe://forged\r\n\r\n",
            )
            .await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhi"), "{answer}");
            let seen = String::from_utf8(seen.take()).unwrap();
            assert!(seen.starts_with("GET /a/b?c=d HTTP/1.1\r\n"), "{seen}");
            assert!(seen.contains("host: shop:80\r\n") && seen.contains("x-kept: 2\r\n"), "{seen}");
            for gone in ["x-mine", "keep-alive", "connection", "forged"] {
                assert!(!seen.contains(gone), "{gone}: {seen}");
            }
            let id = "leno-client-id: spiffe://cluster.local/ns/shop/sa/client\r\n";
            assert_eq!(seen.contains(id), through == Through::Mesh, "{seen}");
        });
    }
}

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    let corpus: &[&str] = &[
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b:c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:80x\r\n\r\n",
    ];
    run(async {
        let (app, seen) = scripted(OK).await;
        let address = reach(app, Through::Outbound).await;
        for request in corpus {
            let answer = tokio::time::timeout(Duration::from_secs(5), talk(address, request.as_bytes())).await;
            let answer = answer.unwrap_or_else(|_| panic!("{request:?} is waited on"));
            assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?} → {answer}");
        }
        assert_eq!(String::from_utf8(seen.take()).unwrap(), "");
    });
}

#[test]
fn a_head_behind_another_request_is_looked_at_too() {
    let ambiguous =
        "POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for through in BOTH {
        run(async move {
            for first in [
                "GET /first HTTP/1.1\r\nHost: a\r\n\r\n",
                "PUT /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
                "PUT /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ] {
                // Read whole before it is answered, so that no part of it is taken for a request.
                let end: &[u8] = if first.starts_with("GET") { b"\r\n\r\n" } else { b"hello" };
                let app = application(move |mut stream| async move {
                    while let Some(request) = read_until(&mut stream, end).await {
                        let text = String::from_utf8(request).unwrap();
                        assert!(text.contains(" /first ") && !text.contains("/second"), "{text}");
                        stream.write_all(OK).await.unwrap();
                    }
                })
                .await;
                let address = reach(app, through).await;
                let answer = talk(address, format!("{first}{ambiguous}{smuggled}").as_bytes()).await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{first:?} → {answer}");
                assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{first:?} → {answer}");
                assert!(answer.contains("HTTP/1.1 400 ") && answer.contains("connection: close\r\n"), "{answer}");
            }
        });
    }
}

#[test]
fn heads_have_limits() {
    run(async {
        let (app, _) = scripted(OK).await;
        let address = reach(app, Through::Outbound).await;
        let long = "x".repeat(100_000);
        let answer = talk(address, format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        let many = "X: y\r\n".repeat(300);
        let answer = talk(address, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    });
}

#[test]
fn connections_are_kept_on_both_sides() {
    run(async {
        let connections = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = connections.clone();
        let app = application(move |mut stream| {
            count.set(count.get() + 1);
            async move {
                while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                    stream.write_all(OK).await.unwrap();
                }
            }
        })
        .await;
        let mut stream = TcpStream::connect(reach(app, Through::Mesh).await).await.unwrap();
        for _ in 0..10 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            read_until(&mut stream, b"hi").await.unwrap();
        }
        // Pipelined requests are answered in their order.
        stream.write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3)).await.unwrap();
        let mut answers = Vec::new();
        while answers.windows(2).filter(|two| two == b"hi").count() < 3 {
            let mut buffer = [0; 1024];
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0);
            answers.extend_from_slice(&buffer[..n]);
        }
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn large_bodies_stream_both_ways() {
    for through in BOTH {
        run(async move {
            const SIZE: usize = 8 * 1024 * 1024;
            let app = application(|mut stream| async move {
                let request = read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                let head = request.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(&request[head..]).await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            })
            .await;
            let stream = TcpStream::connect(reach(app, through).await).await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
            let writer = tokio::task::spawn_local(async move {
                write.write_all(head.as_bytes()).await.unwrap();
                for _ in 0..SIZE / 4096 {
                    write.write_all(&[7; 4096]).await.unwrap();
                }
                write
            });
            let mut received = 0;
            let mut buffer = vec![0; 64 * 1024];
            while received < SIZE {
                let n = read.read(&mut buffer).await.unwrap();
                assert!(n > 0, "{received}");
                received += buffer[..n].iter().filter(|&&byte| byte == 7).count();
            }
            writer.await.unwrap();
        });
    }
}

#[test]
fn absolute_form_names_the_host_and_http_10_is_served() {
    run(async {
        let (app, seen) = scripted(OK).await;
        let address = reach(app, Through::Mesh).await;
        talk(address, b"GET http://real/x HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n").await;
        let text = String::from_utf8(seen.take()).unwrap();
        assert!(text.starts_with("GET /x HTTP/1.1\r\n") && text.contains("host: real\r\n"), "{text}");
        let answer = talk(address, b"GET /y HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("hi"), "{answer}");
        let text = String::from_utf8(seen.take()).unwrap();
        assert!(text.starts_with("GET /y HTTP/1.1\r\n") && text.contains("host: "), "{text}");
    });
}

#[test]
fn answers_without_a_body_keep_their_length() {
    for through in BOTH {
        run(async move {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n";
            let (app, _) = scripted(head).await;
            let address = reach(app, through).await;
            let answer = talk(address, b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(answer.contains("content-length: 1234\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");

            let (app, _) = scripted(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n").await;
            let address = reach(app, through).await;
            let answer = talk(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 304 ") && answer.contains("etag: \"x\"\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\n"), "{answer}");

            let (app, _) = scripted(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            let address = reach(app, through).await;
            let answer = talk(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 204 ") && !answer.contains("content-length"), "{answer}");
            assert!(!answer.contains("transfer-encoding"), "{answer}");
        });
    }
}

#[test]
fn chunked_bodies_and_their_trailers_pass_both_ways() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                let request = read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                let mut text = String::from_utf8(request).unwrap();
                while !text.contains("0\r\n") || !text[text.find("0\r\n").unwrap()..].ends_with("\r\n\r\n") {
                    let mut buffer = [0; 1024];
                    let n = stream.read(&mut buffer).await.unwrap();
                    assert!(n > 0, "{text}");
                    text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                }
                assert!(text.contains("transfer-encoding: chunked\r\n"), "{text}");
                assert!(text.contains("x-sum: 7\r\n"), "{text}");
                stream
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-After\r\n\r\n\
                          3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nX-After: done\r\n\r\n",
                    )
                    .await
                    .unwrap();
                let _ = stream.read(&mut [0; 1]).await;
            })
            .await;
            let address = reach(app, through).await;
            let answer = talk(
                address,
                b"POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\
                  Connection: TE, close\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
            )
            .await;
            assert!(answer.contains("transfer-encoding: chunked\r\n"), "{answer}");
            assert!(answer.contains("abc") && answer.contains("defg"), "{answer}");
            assert!(answer.ends_with("0\r\nx-after: done\r\n\r\n"), "{answer}");
        });
    }
}

#[test]
fn a_client_that_waits_for_continue_hears_it_from_the_server() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                let head = read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                let head = String::from_utf8(head).unwrap();
                assert!(head.contains("expect: 100-continue") && head.ends_with("\r\n\r\n"), "{head}");
                // Nothing of the body may come before it was asked for.
                let early = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0; 1])).await;
                assert!(early.is_err());
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                read_until(&mut stream, b"hello").await.unwrap();
                stream.write_all(OK).await.unwrap();
                let _ = stream.read(&mut [0; 1]).await;
            })
            .await;
            let mut stream = TcpStream::connect(reach(app, through).await).await.unwrap();
            let head =
                b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let interim = read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            assert_eq!(String::from_utf8(interim).unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
            stream.write_all(b"hello").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hi"), "{answer}");
        });
    }
}

#[test]
fn a_server_that_wants_no_body_says_so_before_it_is_sent() {
    run(async {
        let (app, _) = scripted(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await;
        let address = reach(app, Through::Mesh).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let answer = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
    });
}

#[test]
fn upgrades_become_a_tunnel() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").await.unwrap()).unwrap();
                assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
                assert!(head.contains("sec-websocket-key: abc\r\n"), "{head}");
                let answer =
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst";
                stream.write_all(answer).await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            })
            .await;
            let mut stream = TcpStream::connect(reach(app, through).await).await.unwrap();
            let head = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Key: abc\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let answer = String::from_utf8(read_until(&mut stream, b"first").await.unwrap()).unwrap();
            assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("upgrade: websocket\r\n"), "{answer}");
            stream.write_all(b"ping").await.unwrap();
            assert_eq!(read_until(&mut stream, b"ping").await.unwrap(), b"ping");
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        });
    }
}

#[test]
fn connect_becomes_a_tunnel() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").await.unwrap()).unwrap();
                assert!(head.starts_with("CONNECT db:5432 HTTP/1.1\r\n"), "{head}");
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            })
            .await;
            let mut stream = TcpStream::connect(reach(app, through).await).await.unwrap();
            stream.write_all(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await.unwrap();
            let answer = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").await.unwrap()).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            stream.write_all(b"ping").await.unwrap();
            assert_eq!(read_until(&mut stream, b"ping").await.unwrap(), b"ping");
        });
    }
}

#[test]
fn servers_that_speak_first_are_not_waited_for() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                stream.write_all(b"220 ready\r\n").await.unwrap();
                read_until(&mut stream, b"QUIT\r\n").await;
                stream.write_all(b"221 bye\r\n").await.unwrap();
            })
            .await;
            let address = reach(app, through).await;
            for _ in 0..2 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                assert_eq!(read_until(&mut stream, b"\r\n").await.unwrap(), b"220 ready\r\n");
                stream.write_all(b"QUIT\r\n").await.unwrap();
                assert_eq!(read_until(&mut stream, b"\r\n").await.unwrap(), b"221 bye\r\n");
                assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
            }
        });
    }
}

#[test]
fn opaque_bytes_and_half_closes_pass() {
    for through in BOTH {
        run(async move {
            let app = application(|mut stream| async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            })
            .await;
            let mut stream = TcpStream::connect(reach(app, through).await).await.unwrap();
            stream.write_all(b"\x00\x01\x02 not HTTP").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"\x00\x01\x02 not HTTP");
        });
    }
}
