//! Clients that stop reading, or read slowly: exchanges end in time, and only those that do not move.

use std::{
    cell::Cell,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use leno_proto::v1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Notify, mpsc},
    time::sleep,
};

use super::http2::{Bytewise, channel, client_of, full};
use crate::{
    policy::{Protocol, Target},
    telemetry::{
        exposition,
        recorder::{Recorder, Registry},
    },
    testing::{
        BOTH, LocalExecutor, Sidecar, Through, application, reach, read_until, run, server_id, talk, workload,
        workload_source,
    },
};

const CHUNK: usize = 64 * 1024;
/// More than all buffers on the way hold.
const MUCH: usize = 64 * 1024 * 1024;

/// Runs a test whose requests are counted.
pub(super) fn counted<F: Future<Output = ()>>(test: impl FnOnce(Arc<Registry>) -> F) {
    let registry = Arc::new(Registry::default());
    let recorder = Recorder(Arc::clone(&registry));
    let _installed = metrics::set_default_local_recorder(&recorder);
    run(test(registry));
}

/// Requests that the client's sidecar recorded with this reason.
fn recorded(registry: &Registry, reason: &str) -> usize {
    let page = exposition::render(registry);
    let of_interest = |line: &&str| line.starts_with("leno_requests_total") && line.contains("direction=\"outbound\"");
    let with_reason = format!("reason=\"{reason}\"");
    page.lines().filter(of_interest).filter(|line| line.contains(&with_reason)).count()
}

/// A client's sidecar with a route to the application.
fn routed(app: SocketAddr, timeout: Option<Duration>) -> Sidecar {
    let sidecar = Sidecar::new("client", || Target::Outside);
    let timeout = timeout.map(|timeout| prost_types::Duration::try_from(timeout).unwrap());
    // A rule of its own: handles of the same labels are shared, also by tests that run beside this one.
    static RULES: AtomicU32 = AtomicU32::new(0);
    let rule = format!("stalled-{}", RULES.fetch_add(1, Relaxed));
    let origin = Some(v1::RuleOrigin { route: None, rule });
    let action = v1::HttpAction { origin, request_timeout: timeout, ..Default::default() };
    sidecar.route(v1::Protocol::Http, action, &[app]);
    sidecar
}

/// A client's sidecar with little patience, and the application behind it or behind another.
async fn impatient(app: SocketAddr, through: Through, idle: Duration) -> Sidecar {
    let endpoint = match through {
        Through::Outbound => (app, None),
        Through::Mesh => (Sidecar::new("server", || Target::Outside).inbound(app).await, Some(server_id())),
    };
    let mut sidecar = Sidecar::new("client", workload_source(vec![endpoint]));
    Rc::get_mut(&mut sidecar.ctx).unwrap().stream_idle = idle;
    sidecar
}

/// Sends `length` bytes over HTTP/1 and tells when that failed.
async fn sends(length: usize) -> (SocketAddr, mpsc::Receiver<()>) {
    let (broke, broken) = mpsc::channel(1);
    let app = application(move |mut stream| {
        let broke = broke.clone();
        async move {
            while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                for _ in 0..length / CHUNK {
                    if stream.write_all(&[7; CHUNK]).await.is_err() {
                        broke.send(()).await.unwrap();
                        return;
                    }
                }
            }
        }
    })
    .await;
    (app, broken)
}

/// The same over HTTP/2. It also tells when the request's body breaks off; /small is answered at once.
async fn streams(length: usize) -> (SocketAddr, mpsc::Receiver<()>) {
    let (broke, broken) = mpsc::channel(2);
    let app = application(move |stream| {
        let broke = broke.clone();
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (of_request, of_response) = (broke.clone(), broke.clone());
                async move {
                    if request.uri().path() == "/small" {
                        return Ok::<_, Infallible>(Response::new(full(b"hi")));
                    }
                    let (sender, body) = channel();
                    tokio::task::spawn_local(async move {
                        for _ in 0..length / CHUNK {
                            if sender.send(Ok(Frame::data(vec![7; CHUNK].into()))).await.is_err() {
                                of_response.send(()).await.unwrap();
                                return;
                            }
                        }
                    });
                    tokio::task::spawn_local(async move {
                        let mut body = request.into_body();
                        while let Some(frame) = body.frame().await {
                            if frame.is_err() {
                                of_request.send(()).await.unwrap();
                                return;
                            }
                        }
                    });
                    Ok(Response::new(body))
                }
            });
            let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
    (app, broken)
}

/// A connection whose client's kernel takes little.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.connect(address).await.unwrap()
}

async fn get(address: SocketAddr) -> TcpStream {
    let mut stream = narrow(address).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    stream
}

/// The connection was closed before the whole body came.
async fn is_cut(mut stream: TcpStream) {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    assert!(all.starts_with(b"HTTP/1.1 200 OK\r\n") && all.len() < MUCH, "{} bytes", all.len());
}

fn request(path: &str, body: Bytewise) -> Request<Bytewise> {
    Request::post(format!("http://shop:80{path}")).body(body).unwrap()
}

#[test]
fn a_deadline_holds_for_an_http1_client_that_does_not_read() {
    counted(async |registry| {
        let (app, mut broken) = sends(MUCH).await;
        let sidecar = routed(app, Some(Duration::from_millis(200)));
        let stream = get(sidecar.outbound().await).await;
        broken.recv().await.unwrap();
        is_cut(stream).await;
        assert_eq!(recorded(&registry, "request-timeout"), 1);
        sidecar.drain.begin();
        assert_eq!(sidecar.drain.wait(Duration::from_secs(10)).await, 0);
    });
}

#[test]
fn a_deadline_holds_for_an_http2_client_that_does_not_read() {
    counted(async |registry| {
        let (app, mut broken) = streams(MUCH).await;
        let sidecar = routed(app, Some(Duration::from_millis(200)));
        let stream = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        let mut client = client_of(stream).await;
        // Its request goes on as well: that too is ended, at the server and here.
        let (sender, body) = channel();
        let mut response = client.send_request(request("/", body)).await.unwrap();
        broken.recv().await.unwrap();
        broken.recv().await.unwrap();
        let reset = loop {
            match response.frame().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        let reason = std::error::Error::source(&reset).and_then(|cause| cause.downcast_ref::<h2::Error>());
        assert_eq!(reason.and_then(h2::Error::reason), Some(h2::Reason::CANCEL), "{reset:?}");
        sender.closed().await;
        assert_eq!(recorded(&registry, "request-timeout"), 1);
        // The connection is as good as before.
        let response = client.send_request(request("/small", full(b""))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi");
    });
}

#[test]
fn an_http1_exchange_whose_client_does_not_read_is_idle() {
    for through in BOTH {
        run(async move {
            let (app, mut broken) = sends(MUCH).await;
            let sidecar = impatient(app, through, Duration::from_millis(200)).await;
            let stream = get(sidecar.outbound().await).await;
            broken.recv().await.unwrap();
            is_cut(stream).await;
        });
    }
}

#[test]
fn an_http2_exchange_whose_client_does_not_read_is_idle() {
    for through in BOTH {
        run(async move {
            let (app, mut broken) = streams(MUCH).await;
            let sidecar = impatient(app, through, Duration::from_millis(200)).await;
            let mut client = client_of(narrow(sidecar.outbound().await).await).await;
            let _unread = client.send_request(request("/", full(b""))).await.unwrap();
            broken.recv().await.unwrap();
        });
    }
}

#[test]
fn a_slow_http1_client_is_not_idle() {
    for through in BOTH {
        run(async move {
            let (app, _) = sends(MUCH).await;
            let sidecar = impatient(app, through, Duration::from_secs(2)).await;
            let mut stream = get(sidecar.outbound().await).await;
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            let mut buffer = vec![0; 16 * 1024];
            for _ in 0..150 {
                assert!(stream.read(&mut buffer).await.unwrap() > 0);
                sleep(Duration::from_millis(40)).await;
            }
            // Still there; its rest would come.
            for _ in 0..100 {
                assert!(stream.read(&mut buffer).await.unwrap() > 0);
            }
        });
    }
}

#[test]
fn a_slow_http2_client_is_not_idle() {
    for through in BOTH {
        run(async move {
            let (app, _) = streams(MUCH).await;
            let sidecar = impatient(app, through, Duration::from_secs(2)).await;
            let mut client = client_of(narrow(sidecar.outbound().await).await).await;
            let mut response = client.send_request(request("/", full(b""))).await.unwrap();
            for _ in 0..150 {
                response.frame().await.unwrap().unwrap();
                sleep(Duration::from_millis(40)).await;
            }
        });
    }
}

#[test]
fn a_client_that_only_sends_is_not_idle() {
    run(async {
        let received = Rc::new(Cell::new(0));
        let count = Rc::clone(&received);
        let app = application(move |mut stream| {
            let count = Rc::clone(&count);
            async move {
                read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
                while stream.read_u8().await.is_ok() {
                    count.set(count.get() + 1);
                }
            }
        })
        .await;
        let sidecar = impatient(app, Through::Outbound, Duration::from_secs(2)).await;
        let mut stream = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        stream.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
        // For three times as long as it may be idle.
        for _ in 0..60 {
            stream.write_all(b"x").await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        // The first may have come with the head.
        while received.get() < 59 {
            sleep(Duration::from_millis(1)).await;
        }
        // And then it is.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && !answer.ends_with(b"0\r\n\r\n"));
    });
}

#[test]
fn connections_outlive_the_time_between_two_requests() {
    run(async {
        let (app, _) = crate::testing::scripted(super::OK).await;
        let sidecar = impatient(app, Through::Outbound, Duration::from_millis(500)).await;
        let mut stream = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        for _ in 0..3 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            read_until(&mut stream, b"hi").await.unwrap();
            sleep(Duration::from_millis(1200)).await;
        }
    });
}

#[test]
fn a_tunnel_keeps_its_own_time() {
    run(async {
        let app = application(|mut stream| async move {
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        })
        .await;
        let sidecar = impatient(app, Through::Outbound, Duration::from_millis(500)).await;
        let mut stream = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(head).await.unwrap();
        read_until(&mut stream, b"\r\n\r\n").await.unwrap();
        sleep(Duration::from_millis(1200)).await;
        stream.write_all(b"ping").await.unwrap();
        assert_eq!(read_until(&mut stream, b"ping").await.unwrap(), b"ping");
    });
}

/// An application that sends far more than anybody reads, to whoever asks for it; to others, a word.
async fn generous() -> SocketAddr {
    application(|mut stream| async move {
        while let Some(head) = read_until(&mut stream, b"\r\n\r\n").await {
            let large = head.starts_with(b"GET /large ");
            let length = if large { 100 << 20 } else { 2 };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            if !large {
                stream.write_all(b"ok").await.unwrap();
            }
            if large {
                let piece = vec![b'x'; CHUNK];
                while stream.write_all(&piece).await.is_ok() {}
                return;
            }
        }
    })
    .await
}

#[test]
fn clients_that_do_not_read_stall_no_other_on_the_connection_they_share() {
    run(async {
        let address = reach(generous().await, Through::Mesh).await;
        let mut stalled = Vec::new();
        for _ in 0..40 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /large HTTP/1.1\r\nhost: shop\r\n\r\n").await.unwrap();
            // The answer has begun.
            client.readable().await.unwrap();
            stalled.push(client);
        }
        for _ in 0..10 {
            let answer = talk(address, b"GET /small HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await;
            assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
        }
    });
}

#[test]
fn a_body_that_breaks_off_never_looks_complete_to_an_http2_client() {
    run(async {
        let app = application(|mut stream| async move {
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        })
        .await;
        let address = Sidecar::new("client", move || workload(&[(app, None)], Protocol::Http1)).outbound().await;
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::get("http://shop/").body(()).unwrap();
        let answer = client.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut body = answer.into_body();
        let error = loop {
            match body.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("half a body looks whole"),
            }
        };
        assert_ne!(error.reason(), Some(h2::Reason::NO_ERROR), "{error}");
    });
}

#[test]
fn a_stream_keeps_nothing_of_the_one_before_it() {
    run(async {
        let (go, begun) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (gone, began) = (go.clone(), begun.clone());
        // /held is answered when told, /never not at all.
        let app = application(move |stream| {
            let (gone, began) = (gone.clone(), began.clone());
            async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (gone, began) = (gone.clone(), began.clone());
                    async move {
                        began.notify_one();
                        if request.uri().path() == "/never" {
                            std::future::pending::<()>().await;
                        }
                        gone.notified().await;
                        Ok::<_, Infallible>(Response::new(full(b"hi")))
                    }
                });
                let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await;
        let sidecar = Sidecar::new("client", || Target::Outside);
        let patience = |idle: Option<Duration>| {
            let stream_idle_timeout = idle.map(|idle| prost_types::Duration::try_from(idle).unwrap());
            let action = v1::HttpAction { stream_idle_timeout, ..Default::default() };
            sidecar.route(v1::Protocol::Http, action, &[app]);
        };
        patience(None);
        let mut client = client_of(TcpStream::connect(sidecar.outbound().await).await.unwrap()).await;
        let short = Duration::from_millis(50);
        let limited = || Request::get("http://shop:80/never").header("leno-timeout-ms", "50").body(full(b"")).unwrap();
        let asked = |path: &str| Request::get(format!("http://shop:80{path}")).body(full(b"")).unwrap();
        let failed = |response: &Response<Incoming>| response.headers()["leno-reason"].to_str().unwrap().to_owned();
        for _ in 0..2 {
            // A deadline.
            assert_eq!(failed(&client.send_request(limited()).await.unwrap()), "request-timeout");
            let held = client.send_request(asked("/held"));
            sleep(4 * short).await;
            go.notify_one();
            assert_eq!(held.await.unwrap().status(), StatusCode::OK);
            // Little patience.
            patience(Some(short));
            assert_eq!(failed(&client.send_request(asked("/never")).await.unwrap()), "idle");
            patience(None);
            let held = client.send_request(asked("/held"));
            sleep(4 * short).await;
            go.notify_one();
            assert_eq!(held.await.unwrap().status(), StatusCode::OK);
            // A client that gives up.
            begun.notified().await;
            let given_up = tokio::task::spawn_local(client.send_request(asked("/never")));
            begun.notified().await;
            given_up.abort();
        }
        let held = client.send_request(asked("/held"));
        go.notify_one();
        sidecar.drain.begin();
        assert_eq!(held.await.unwrap().status(), StatusCode::OK);
        assert_eq!(sidecar.drain.wait(Duration::from_secs(10)).await, 0);
    });
}
