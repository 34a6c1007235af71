//! Informational responses (1xx) on their way to the client: as they come, over HTTP/1.1 and HTTP/2 on either side.

use std::{cell::RefCell, future::poll_fn, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use leno_proto::v1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

use super::OK;
use crate::{
    config::limits,
    drain::DrainOwner,
    http::{
        h2::{self, Frame, RecvStream, SendStream},
        head::{Fields, RequestHead, ResponseHead},
    },
    policy::{Protocol, Target},
    testing::{
        BOTH, Sidecar, Through, application, read_until, run, scripted, server_id, talk, workload, workload_source,
    },
};

const HINTS: &str =
    "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n";

/// Where a client reaches an application that speaks HTTP/2, or HTTP/1.1.
async fn reach(app: SocketAddr, through: Through, http2: bool) -> SocketAddr {
    let (spoken, declared) =
        if http2 { (Protocol::Http2, v1::Protocol::Http2) } else { (Protocol::Http1, v1::Protocol::Http1) };
    if through == Through::Outbound {
        let Target::Workload(backend) = workload(&[(app, None)], spoken) else { unreachable!() };
        return Sidecar::new("client", move || Target::Workload(Arc::clone(&backend))).outbound().await;
    }
    let server = Sidecar::new("server", || Target::Outside);
    let inbound = server.inbound(app).await;
    server.permit(v1::inbound::Mode::Strict, inbound.port(), declared);
    Sidecar::new("client", workload_source(vec![(inbound, Some(server_id()))])).outbound().await
}

#[derive(Clone, Copy)]
struct Client {
    http2: bool,
    /// Whether it gets more than `100 Continue`: not of HTTP/2, if it speaks HTTP/1.1.
    hints: bool,
}

/// Through one sidecar and two, from and to each version. `test` gets: where, who the client is, a name for all that.
async fn each<F: Future<Output = ()>>(
    app: impl AsyncFn(bool) -> SocketAddr,
    test: impl Fn(SocketAddr, Client, String) -> F,
) {
    for through in BOTH {
        for (client, server) in [(false, false), (false, true), (true, false), (true, true)] {
            let name = format!("{through:?}, client HTTP/2: {client}, application HTTP/2: {server}");
            let client = Client { http2: client, hints: client || !server };
            test(reach(app(server).await, through, server).await, client, name).await;
        }
    }
}

/// A request that was sent.
enum Asked {
    Http1(TcpStream),
    Http2(SendStream, RecvStream),
}

impl Asked {
    /// `waits`: has a body, which the server must ask for.
    async fn new(address: SocketAddr, http2: bool, path: &str, waits: bool) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if !http2 {
            let request = if waits {
                format!("PUT {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            } else {
                format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
            };
            stream.write_all(request.as_bytes()).await.unwrap();
            return Self::Http1(stream);
        }
        let (connection, driver) = h2::connect(stream, h2::Settings::new());
        tokio::task::spawn_local(driver);
        let method = if waits { Method::PUT } else { Method::GET };
        let mut head = RequestHead::new(Version::HTTP_2, method, path);
        head.set_authority("a");
        if waits {
            head.fields.push(b"expect", b"100-continue");
            head.fields.push(b"content-length", b"5");
        }
        let (send, receive) = connection.open(&head, !waits).unwrap();
        Self::Http2(send, receive)
    }

    /// Status and fields of the next head.
    async fn head(&mut self) -> (u16, Vec<String>) {
        let stream = match self {
            Self::Http1(stream) => stream,
            Self::Http2(_, receive) => {
                let head = poll_fn(|cx| receive.poll_response(cx)).await.unwrap();
                let text =
                    |(name, value)| format!("{}: {}", str::from_utf8(name).unwrap(), str::from_utf8(value).unwrap());
                return (head.status.as_u16(), head.fields.iter().map(text).collect());
            }
        };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        (status, lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    async fn send_body(&mut self) {
        match self {
            Self::Http1(stream) => stream.write_all(b"hello").await.unwrap(),
            Self::Http2(send, _) => {
                poll_fn(|cx| send.poll_send(cx, &mut Bytes::from_static(b"hello"), true)).await.unwrap();
            }
        }
    }

    /// The rest of the answer, whose head was read.
    async fn body(&mut self) -> String {
        match self {
            Self::Http1(stream) => {
                let mut body = [0; 2];
                stream.read_exact(&mut body).await.unwrap();
                String::from_utf8(body.into()).unwrap()
            }
            Self::Http2(_, receive) => read(receive).await,
        }
    }
}

async fn read(receive: &mut RecvStream) -> String {
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| receive.poll_frame(cx)).await {
        if let Frame::Data(data) = frame.unwrap() {
            all.extend_from_slice(&data);
        }
    }
    String::from_utf8(all).unwrap()
}

/// An application that speaks HTTP/2, and answers each request by `answer`.
async fn http2_application<F: Future<Output = ()> + 'static>(
    answer: impl Fn(h2::Request) -> F + 'static,
) -> SocketAddr {
    let answer = Rc::new(answer);
    application(move |stream| {
        let answer = Rc::clone(&answer);
        async move {
            let on_request = |request| {
                tokio::task::spawn_local(answer(request));
            };
            let drain = DrainOwner::default();
            let _ = h2::serve(stream, h2::Settings::new(), drain.handle(), on_request, |_, _| {}).await;
        }
    })
    .await
}

fn response(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
    let fields = fields.iter().copied().collect::<Fields>();
    ResponseHead { status: StatusCode::from_u16(status).unwrap(), fields }
}

fn answer_ok(send: &mut SendStream) {
    send.send_response(&response(200, &[]), false);
    assert_eq!(send.send_data(b"hi", true), 2);
}

#[test]
fn a_client_that_waits_for_continue_hears_it() {
    let app = async |http2: bool| {
        if http2 {
            return http2_application(|request| async move {
                let h2::Request { mut send, mut receive, .. } = request;
                send.send_informational(&response(100, &[]));
                assert_eq!(read(&mut receive).await, "hello");
                // Once was enough.
                send.send_informational(&response(100, &[]));
                answer_ok(&mut send);
            })
            .await;
        }
        application(|mut stream| async move {
            let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").await.unwrap()).unwrap();
            assert!(head.contains("expect: 100-continue\r\n") && head.ends_with("\r\n\r\n"), "{head}");
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            read_until(&mut stream, b"hello").await.unwrap();
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            stream.write_all(OK).await.unwrap();
            let _ = stream.read(&mut [0; 1]).await;
        })
        .await
    };
    run(each(app, |address, client, name| async move {
        for round in 1.. {
            let begun = std::time::Instant::now();
            let mut asked = Asked::new(address, client.http2, "/", true).await;
            assert_eq!(asked.head().await.0, 100, "{name}");
            asked.send_body().await;
            assert_eq!((asked.head().await.0, asked.body().await), (200, "hi".into()), "{name}");
            // Not on a machine that stands still.
            if begun.elapsed() < limits::CONTINUE_WAIT {
                break;
            }
            assert!(round < 5, "{name}: the server's word counts, and no timer");
        }
    }));
}

#[test]
fn a_server_that_knows_nothing_of_continue_stalls_nobody() {
    run(async {
        for through in BOTH {
            let app = application(|mut stream| async move {
                read_until(&mut stream, b"hello").await.unwrap();
                stream.write_all(OK).await.unwrap();
                let _ = stream.read(&mut [0; 1]).await;
            });
            let mut asked = Asked::new(reach(app.await, through, false).await, true, "/", true).await;
            assert_eq!(asked.head().await.0, 100);
            asked.send_body().await;
            assert_eq!(asked.head().await.0, 200);
        }
    });
}

#[test]
fn hints_come_before_the_answer_and_without_what_was_for_one_hop() {
    run(async {
        let heard = Rc::new(Notify::new());
        let app = async |http2: bool| {
            let heard = Rc::clone(&heard);
            if http2 {
                return http2_application(move |request| {
                    let heard = Rc::clone(&heard);
                    async move {
                        let mut send = request.send;
                        // Nobody asked for it.
                        send.send_informational(&response(100, &[]));
                        send.send_informational(&response(103, &[("link", "</a.css>")]));
                        heard.notified().await;
                        send.send_informational(&response(102, &[]));
                        answer_ok(&mut send);
                    }
                })
                .await;
            }
            application(move |mut stream| {
                let heard = Rc::clone(&heard);
                async move {
                    while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                        let early = format!("HTTP/1.1 100 Continue\r\n\r\n{HINTS}");
                        stream.write_all(early.as_bytes()).await.unwrap();
                        heard.notified().await;
                        // All at once.
                        let rest = [b"HTTP/1.1 102 Processing\r\n\r\n", OK].concat();
                        stream.write_all(&rest).await.unwrap();
                    }
                }
            })
            .await
        };
        each(app, |address, client, name| {
            let heard = Rc::clone(&heard);
            async move {
                let mut asked = Asked::new(address, client.http2, "/", false).await;
                if client.hints {
                    assert_eq!(asked.head().await, (103, vec!["link: </a.css>".to_owned()]), "{name}");
                }
                heard.notify_one();
                if client.hints {
                    assert_eq!(asked.head().await, (102, vec![]), "{name}");
                }
                assert_eq!((asked.head().await.0, asked.body().await), (200, "hi".into()), "{name}");
            }
        })
        .await;
    });
}

#[test]
fn so_many_and_no_more() {
    const SENT: usize = 3 * limits::INFORMATIONAL;
    let app = async |http2: bool| {
        if http2 {
            return http2_application(|request| async move {
                let mut send = request.send;
                (0..SENT).for_each(|_| send.send_informational(&response(103, &[("link", "</a.css>")])));
                answer_ok(&mut send);
            })
            .await;
        }
        application(|mut stream| async move {
            while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                stream.write_all(HINTS.repeat(SENT).as_bytes()).await.unwrap();
                stream.write_all(OK).await.unwrap();
            }
        })
        .await
    };
    run(each(app, |address, client, name| async move {
        let mut asked = Asked::new(address, client.http2, "/", false).await;
        for _ in 0..if client.hints { limits::INFORMATIONAL } else { 0 } {
            assert_eq!(asked.head().await.0, 103, "{name}");
        }
        assert_eq!((asked.head().await.0, asked.body().await), (200, "hi".into()), "{name}");
    }));
}

#[test]
fn http10_knows_none() {
    run(async {
        for through in BOTH {
            let (app, _) =
                scripted(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
                    .await;
            let address = reach(app, through, false).await;
            let answer = talk(address, b"GET / HTTP/1.0\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("hi"), "{answer}");
            assert!(!answer.contains("103"), "{answer}");
            let one_one = talk(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(one_one.starts_with("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 "), "{one_one}");
        }
    });
}

#[test]
fn of_two_tries_at_once_none_is_told() {
    run(async {
        let seen = Rc::new(RefCell::new(0));
        let count = Rc::clone(&seen);
        // Whoever is asked first answers nothing: the other's answer counts.
        let app = move || {
            let count = Rc::clone(&count);
            application(move |mut stream| {
                let count = Rc::clone(&count);
                async move {
                    while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                        let first = count.replace_with(|count| *count + 1) == 0;
                        if first {
                            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </1>\r\n\r\n").await.unwrap();
                            std::future::pending::<()>().await;
                        }
                        let late = b"HTTP/1.1 103 Early Hints\r\nLink: </2>\r\n\r\n";
                        stream.write_all(&[late, OK].concat()).await.unwrap();
                    }
                }
            })
        };
        let delay = Some(Duration::from_millis(200).try_into().unwrap());
        let hedging = Some(v1::Hedging { delay, percentile: 0, any_method: false });
        let sidecar = Sidecar::new("client", || Target::Outside);
        let action = v1::HttpAction { hedging, ..Default::default() };
        sidecar.route(v1::Protocol::Http, action, &[app().await, app().await]);
        let mut asked = Asked::new(sidecar.outbound().await, false, "/", false).await;
        assert_eq!(asked.head().await, (103, vec!["link: </1>".to_owned()]), "one try, so far");
        assert_eq!((asked.head().await.0, asked.body().await), (200, "hi".into()));
        assert_eq!(*seen.borrow(), 2);
    });
}
