//! Retries, timeouts, filters and refusals over real sockets.

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use leno_proto::v1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::OK;
use crate::{
    policy::Target,
    testing::{
        Sidecar, Through, application, ejected, metrics_page, reach, read_until, run, scripted, server_id, talk,
        workload_source,
    },
};

pub(super) fn routed(endpoints: &[SocketAddr], action: v1::HttpAction) -> Sidecar {
    let sidecar = Sidecar::new("client", || Target::Outside);
    sidecar.route(v1::Protocol::Http, action, endpoints);
    sidecar
}

/// An address where nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Breaks off the first `broken` requests after reading them; counts all.
async fn breaks(broken: u32) -> (SocketAddr, Rc<Cell<u32>>) {
    let requests = Rc::new(Cell::new(0));
    let count = Rc::clone(&requests);
    let address = application(move |mut stream| {
        let count = Rc::clone(&count);
        async move {
            while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                count.set(count.get() + 1);
                if count.get() <= broken {
                    return;
                }
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    (address, requests)
}

pub(super) const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

#[test]
fn what_was_never_sent_goes_to_another_endpoint() {
    run(async {
        let (app, _) = scripted(OK).await;
        let address = routed(&[nobody().await, app, nobody().await], Default::default()).outbound().await;
        for request in [GET, POST].repeat(4) {
            let answer = talk(address, request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    });
}

#[test]
fn the_hedge_of_a_retry_passes_over_who_failed() {
    run(async {
        for _ in 0..8 {
            let failed = Rc::new(Cell::new(0));
            let count = Rc::clone(&failed);
            let fails = application(move |mut stream| {
                let count = Rc::clone(&count);
                async move {
                    while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                        count.set(count.get() + 1);
                        stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                }
            })
            .await;
            let slow = application(|mut stream| async move {
                while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    stream.write_all(OK).await.unwrap();
                }
            })
            .await;
            let retry = v1::Retry { statuses: vec![503], attempts: 1, backoff: None };
            let delay = Some(Duration::from_millis(1).try_into().unwrap());
            let hedging = Some(v1::Hedging { delay, percentile: 0, any_method: false });
            let action = v1::HttpAction { retry: Some(retry), hedging, ..Default::default() };
            let answer = talk(routed(&[fails, slow], action).outbound().await, GET).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(failed.get() <= 1, "sent {} times to who failed", failed.get());
        }
    });
}

#[test]
fn nobody_there_is_said_so() {
    run(async {
        let address = routed(&[nobody().await], Default::default()).outbound().await;
        let answer = talk(address, GET).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("leno-reason: connect\r\n"), "{answer}");
        let address = routed(&[], Default::default()).outbound().await;
        let answer = talk(address, GET).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("leno-reason: no-endpoint\r\n"), "{answer}");
        assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    });
}

#[test]
fn what_cannot_be_discovered_is_the_last_on_its_connection() {
    run(async {
        let (app, _) = scripted(OK).await;
        let workload = workload_source(vec![(app, None)]);
        let left = Rc::new(Cell::new(false));
        let has_left = Rc::clone(&left);
        // In the mesh when the connection is opened, and then no longer.
        let sidecar = Sidecar::new("client", move || if has_left.get() { Target::Outside } else { workload() });
        let mut stream = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut stream, b"hi").await.unwrap();
        left.set(true);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("leno-reason: discovery\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");

        let bad = b"GET / HTTP/1.1\r\nHost: a:b\r\nConnection: close\r\n\r\n";
        let (app, _) = scripted(OK).await;
        assert!(talk(routed(&[app], Default::default()).outbound().await, bad).await.starts_with("HTTP/1.1 400 "));
        let page = metrics_page();
        for reason in ["discovery", "bad-request"] {
            let series = format!(
                "leno_requests_total{{backend=\"\",class=\"failed\",direction=\"outbound\",reason=\"{reason}\",route=\"\",\
                 rule=\"\",service=\"unknown\"}} "
            );
            assert!(page.contains(&series), "{series} in\n{page}");
        }
    });
}

#[test]
fn only_what_may_be_repeated_is_repeated_after_a_reset() {
    run(async {
        let (app, requests) = breaks(1).await;
        let answer = talk(routed(&[app], Default::default()).outbound().await, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(requests.get(), 2);

        let (app, requests) = breaks(1).await;
        let answer = talk(routed(&[app], Default::default()).outbound().await, POST).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("leno-reason: reset\r\n"), "{answer}");
        assert_eq!(requests.get(), 1);

        let (app, requests) = breaks(1).await;
        let keyed =
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nIdempotency-Key: 1\r\nContent-Length: 0\r\n\r\n";
        let answer = talk(routed(&[app], Default::default()).outbound().await, keyed).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(requests.get(), 2);

        let (app, requests) = breaks(100).await;
        let answer = talk(routed(&[app], Default::default()).outbound().await, GET).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(requests.get(), 3);
    });
}

/// Answers a request for `/`, and breaks off all others; counts all.
async fn poisoned() -> (SocketAddr, Rc<Cell<u32>>) {
    let requests = Rc::new(Cell::new(0));
    let count = Rc::clone(&requests);
    let address = application(move |mut stream| {
        let count = Rc::clone(&count);
        async move {
            while let Some(request) = read_until(&mut stream, b"\r\n\r\n").await {
                count.set(count.get() + 1);
                if !request.starts_with(b"GET / ") {
                    return;
                }
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    (address, requests)
}

#[test]
fn both_proxies_together_send_once_more_than_one_at_most() {
    const POISON: &[u8] = b"GET /poison HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    run(async {
        let (app, requests) = poisoned().await;
        let address = reach(app, Through::Mesh).await;
        // Each try has a connection of its own to the application: it is the client's proxy that tries again.
        let answer = talk(address, POISON).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("leno-reason: reset\r\n"), "{answer}");
        assert_eq!(requests.take(), 3);
        // One that was used before may have met its end: then the server's proxy sends once more.
        assert!(talk(address, GET).await.starts_with("HTTP/1.1 200 "));
        let answer = talk(address, POISON).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("leno-reason: reset\r\n"), "{answer}");
        assert_eq!(requests.take(), 1 + 1 + 3);
    });
}

#[test]
fn an_application_that_closes_what_is_idle_fails_no_request_that_may_be_repeated() {
    run(async {
        // Each connection takes one request, and reads the next.
        let requests = Rc::new(Cell::new(0));
        let count = Rc::clone(&requests);
        let app = application(move |mut stream| {
            let count = Rc::clone(&count);
            async move {
                for serves in [true, false] {
                    if read_until(&mut stream, b"\r\n\r\n").await.is_none() {
                        return;
                    }
                    count.set(count.get() + 1);
                    if serves {
                        stream.write_all(OK).await.unwrap();
                    }
                }
            }
        })
        .await;
        let address = reach(app, Through::Mesh).await;
        for _ in 0..3 {
            let answer = talk(address, GET).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        assert_eq!(requests.take(), 1 + 2 + 2);
        let answer = talk(address, POST).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(requests.take(), 1);
    });
}

#[test]
fn a_body_is_sent_again_whole() {
    run(async {
        let tries = Rc::new(Cell::new(0));
        let count = Rc::clone(&tries);
        let app = application(move |mut stream| {
            let count = Rc::clone(&count);
            async move {
                let request = String::from_utf8(read_until(&mut stream, b"world").await.unwrap()).unwrap();
                assert!(request.ends_with("hello, world") && request.contains("content-length: 12\r\n"), "{request}");
                count.set(count.get() + 1);
                assert_eq!(request.contains("leno-attempt: 2"), count.get() == 2);
                if count.get() == 2 {
                    stream.write_all(OK).await.unwrap();
                }
            }
        })
        .await;
        let address = routed(&[app], Default::default()).outbound().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nhello, ").await.unwrap();
        stream.write_all(b"world").await.unwrap();
        let answer = String::from_utf8(read_until(&mut stream, b"hi").await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(tries.get(), 2);
    });
}

#[test]
fn statuses_are_retried_as_the_route_says() {
    run(async {
        let (failing, seen) = scripted(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nbad").await;
        let retry = v1::Retry { statuses: vec![503], attempts: 2, backoff: None };
        let action = v1::HttpAction { retry: Some(retry), ..Default::default() };
        let answer = talk(routed(&[failing], action).outbound().await, POST).await;
        // The last answer is passed on as it is.
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("bad"), "{answer}");
        assert!(!answer.contains("leno-reason"), "{answer}");
        assert_eq!(String::from_utf8(seen.take()).unwrap().matches("POST /").count(), 3);
    });
}

#[test]
fn time_is_limited_for_the_request_and_for_each_try() {
    run(async {
        let silent = application(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let limit = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
        let action = v1::HttpAction { request_timeout: limit, ..Default::default() };
        let answer = talk(routed(&[silent], action).outbound().await, GET).await;
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("leno-reason: request-timeout"), "{answer}");
        let action = v1::HttpAction { backend_request_timeout: limit, ..Default::default() };
        let answer = talk(routed(&[silent], action).outbound().await, GET).await;
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("leno-reason: try-timeout"), "{answer}");
    });
}

#[test]
fn time_for_the_answers_head_is_over_all_tries_and_ends_with_it() {
    run(async {
        let millis = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
        let silent = application(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        // A try of its own would have all day; and a client that waits longer is not told that it gave up.
        let action = v1::HttpAction { response_timeout: millis(50), ..Default::default() };
        let patient = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nleno-timeout-ms: 20000\r\n\r\n";
        for request in [GET, patient.as_slice()] {
            let answer = talk(routed(&[silent], action.clone()).outbound().await, request).await;
            assert!(
                answer.starts_with("HTTP/1.1 504 ") && answer.contains("leno-reason: response-timeout"),
                "{answer}"
            );
        }
        // The earlier holds.
        let action =
            v1::HttpAction { request_timeout: millis(50), response_timeout: millis(900), ..Default::default() };
        let answer = talk(routed(&[silent], action).outbound().await, GET).await;
        assert!(answer.contains("leno-reason: request-timeout"), "{answer}");
        // It says nothing of what comes after the head.
        let slow = application(|mut stream| async move {
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsl").await.unwrap();
            tokio::time::sleep(Duration::from_millis(1200)).await;
            stream.write_all(b"ow").await.unwrap();
        })
        .await;
        let action = v1::HttpAction { response_timeout: millis(600), ..Default::default() };
        let answer = talk(routed(&[slow], action).outbound().await, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("slow"), "{answer}");
    });
}

#[test]
fn time_that_clients_set_or_waste_ejects_nobody() {
    const HASTY: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\ngrpc-timeout: 5m\r\n\r\n";
    const STALLED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel";
    run(async {
        let silent = application(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let other = application(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let millis = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
        let whole = |limit| v1::HttpAction { request_timeout: limit, ..Default::default() };
        let each = |limit| v1::HttpAction { backend_request_timeout: limit, ..Default::default() };
        for (action, request, expected) in [
            (whole(None), HASTY, 0),
            (whole(millis(900)), HASTY, 0),
            (whole(millis(50)), STALLED, 0),
            (each(millis(50)), STALLED, 0),
            (whole(millis(50)), GET, 1),
            (each(millis(50)), GET, 1),
        ] {
            let sidecar = routed(&[silent, other], action.clone());
            let address = sidecar.outbound().await;
            for _ in 0..12 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(request).await.unwrap();
                read_until(&mut stream, b"-timeout\r\n").await.unwrap();
            }
            let backend = sidecar.ctx.policy.snapshot().backends["shop/shop:80"].clone();
            assert_eq!(ejected(&backend), expected, "{action:?} {}", String::from_utf8_lossy(request));
        }
    });
}

#[test]
fn a_client_that_leaves_ends_its_request_at_the_server() {
    run(async {
        let (gone, mut left) = tokio::sync::mpsc::channel(1);
        let app = application(move |mut stream| {
            let gone = gone.clone();
            async move {
                read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                gone.send("begun").await.unwrap();
                assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
                gone.send("left").await.unwrap();
            }
        })
        .await;
        let sidecar = routed(&[app], Default::default());
        let mut stream = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(left.recv().await, Some("begun"));
        drop(stream);
        assert_eq!(left.recv().await, Some("left"));
    });
}

#[test]
fn draining_finishes_what_is_open_and_closes() {
    run(async {
        let (begun, mut has_begun) = tokio::sync::mpsc::channel(1);
        let app = application(move |mut stream| {
            let begun = begun.clone();
            async move {
                read_until(&mut stream, b"\r\n\r\n").await.unwrap();
                begun.send(()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.write_all(OK).await.unwrap();
                let _ = stream.read(&mut [0; 1]).await;
            }
        })
        .await;
        let sidecar = routed(&[app], Default::default());
        let mut busy = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        busy.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        has_begun.recv().await.unwrap();
        sidecar.drain.begin();
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(sidecar.drain.wait(Duration::from_secs(10)).await, 0);
    });
}

#[test]
fn redirects_and_rewrites_are_made() {
    run(async {
        let path = v1::PathModifier { kind: Some(v1::path_modifier::Kind::ReplaceFull("/new".into())) };
        let redirect =
            v1::Redirect { scheme: "https".into(), status: 301, path: Some(path.clone()), ..Default::default() };
        let filter = v1::HttpFilter { kind: Some(v1::http_filter::Kind::Redirect(redirect)) };
        let action = v1::HttpAction { filters: vec![filter], ..Default::default() };
        let answer = talk(routed(&[], action).outbound().await, GET).await;
        assert!(answer.starts_with("HTTP/1.1 301 ") && answer.contains("location: https://a/new\r\n"), "{answer}");

        let (app, seen) = scripted(OK).await;
        let rewrite = v1::Rewrite { hostname: "other".into(), path: Some(path) };
        let set = v1::Header { name: "x-set".into(), value: "1".into() };
        let headers = v1::HeaderModifier { set: vec![set], add: vec![], remove: vec![] };
        let filters = vec![
            v1::HttpFilter { kind: Some(v1::http_filter::Kind::Rewrite(rewrite)) },
            v1::HttpFilter { kind: Some(v1::http_filter::Kind::RequestHeaders(headers.clone())) },
            v1::HttpFilter { kind: Some(v1::http_filter::Kind::ResponseHeaders(headers)) },
        ];
        let action = v1::HttpAction { filters, ..Default::default() };
        let request = b"GET /old?q=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = talk(routed(&[app], action).outbound().await, request).await;
        assert!(answer.contains("x-set: 1\r\n"), "{answer}");
        let seen = String::from_utf8(seen.take()).unwrap();
        assert!(seen.starts_with("GET /new?q=1 HTTP/1.1\r\n") && seen.contains("host: other\r\n"), "{seen}");
        assert!(seen.contains("x-set: 1\r\n"), "{seen}");
    });
}

#[test]
fn a_port_declared_http_refuses_what_is_not() {
    run(async {
        let (app, _) = scripted(OK).await;
        let address = routed(&[app], Default::default()).outbound().await;
        let answer = talk(address, b"\x00\x01\x02\x03 binary\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    });
}

#[test]
fn strict_ports_take_mesh_tls_only_and_permissive_ones_plaintext_without_its_claims() {
    run(async {
        let (app, seen) = scripted(OK).await;
        let server = Sidecar::new("server", || Target::Outside);
        let address = server.inbound(app).await;
        assert_eq!(talk(address, GET).await, "");
        assert_eq!(seen.borrow().len(), 0);

        server.permit(v1::inbound::Mode::Permissive, address.port(), v1::Protocol::Detect);
        let forged =
            b"GET / HTTP/1.1\r\nHost: a\r\nleno-client-id: spiffe://x\r\nleno-attempt: 2\r\nConnection: close\r\n\r\n";
        assert!(talk(address, forged).await.starts_with("HTTP/1.1 200 "));
        let text = String::from_utf8(seen.take()).unwrap();
        assert!(!text.contains("leno-"), "{text}");
    });
}

#[test]
fn a_dead_application_behind_a_living_sidecar_is_gone_around() {
    run(async {
        let (app, _) = scripted(OK).await;
        let (dead, alive) = (Sidecar::new("server", || Target::Outside), Sidecar::new("server", || Target::Outside));
        let endpoints = vec![
            (dead.inbound(nobody().await).await, Some(server_id())),
            (alive.inbound(app).await, Some(server_id())),
        ];
        let client = Sidecar::new("client", workload_source(endpoints));
        let address = client.outbound().await;
        for request in [GET, POST].repeat(4) {
            let answer = talk(address, request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    });
}

#[test]
fn a_request_on_its_way_when_draining_begins_is_answered() {
    run(async {
        let (app, _) = scripted(OK).await;
        let sidecar = routed(&[app], Default::default());
        let mut kept = TcpStream::connect(sidecar.outbound().await).await.unwrap();
        let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        kept.write_all(request).await.unwrap();
        read_until(&mut kept, b"hi").await.unwrap();
        sidecar.drain.begin();
        tokio::task::yield_now().await;
        kept.write_all(request).await.unwrap();
        let mut answer = String::new();
        kept.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(sidecar.drain.wait(Duration::from_secs(10)).await, 0);
    });
}
