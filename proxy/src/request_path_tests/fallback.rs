//! What serves in place of a backend that nobody can be reached of, and what it must not serve.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use leno_proto::v1;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::policy::{GET, nobody, routed};
use crate::{
    policy::{BackendPolicy, Protocol},
    testing::{application, read_until, run, talk},
    upstream::{Endpoint, EndpointSet, breaker::Settings},
};

/// Answers 203 if nobody can be reached.
fn stood_in(action: v1::HttpAction) -> v1::HttpAction {
    let answer = v1::StaticAnswer { status: 203, body: b"stands in".as_slice().into(), ..Default::default() };
    v1::HttpAction { fallback: Some(v1::Fallback { kind: Some(v1::fallback::Kind::Answer(answer)) }), ..action }
}

#[test]
fn what_was_never_sent_has_its_fallback() {
    run(async {
        let address = routed(&[nobody().await], stood_in(Default::default())).outbound().await;
        let answer = talk(address, GET).await;
        assert!(answer.starts_with("HTTP/1.1 203 ") && answer.ends_with("stands in"), "{answer}");
        assert!(answer.contains("leno-reason: connect\r\n"), "{answer}");
    });
}

#[test]
fn what_a_fallback_served_was_not_tried_in_vain() {
    run(async {
        let nowhere = [nobody().await, nobody().await, nobody().await];
        let answer = talk(routed(&nowhere, stood_in(Default::default())).outbound().await, GET).await;
        assert!(answer.ends_with("stands in") && !answer.contains("leno-retried"), "{answer}");
        let answer = talk(routed(&nowhere, Default::default()).outbound().await, GET).await;
        assert!(
            answer.contains("leno-reason: connect\r\n") && answer.contains("leno-retried: in-vain\r\n"),
            "{answer}"
        );
    });
}

/// A host that is gone answers no SYN; here it is a listener whose backlog is full, of 1.
async fn fill(listens: SocketAddr) -> Vec<TcpStream> {
    let connect = async || timeout(Duration::from_millis(100), TcpStream::connect(listens)).await;
    let mut held = Vec::new();
    while let Ok(connected) = connect().await {
        held.push(connected.unwrap());
    }
    held
}

fn small_listener() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(1).unwrap()
}

#[test]
fn whose_time_ended_before_anybody_was_reached_has_a_fallback_and_its_own_time() {
    run(async {
        let listener = small_listener();
        let silent = listener.local_addr().unwrap();
        let _held = fill(silent).await;
        let slow = application(|mut stream| async move {
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            stream.write_all(b"HTTP/1.1 203 OK\r\nContent-Length: 9\r\n\r\nstands in").await.unwrap();
        })
        .await;
        let set = |address, request_timeout: Option<Duration>| {
            let policy = BackendPolicy { request_timeout, ..BackendPolicy::default() };
            EndpointSet::new(true, Protocol::Http, vec![Endpoint::plain(address)]).under(Arc::new(policy))
        };
        let to = v1::BackendRef { key: "shop/other:80".into() };
        let to = Some(v1::Fallback { kind: Some(v1::fallback::Kind::Backend(to)) });
        let answer = stood_in(Default::default()).fallback;
        let millis = Duration::from_millis;
        for (fallback, of_route, of_backend, of_fallback, status) in [
            (None, None, 400, None, "504"),
            (to.clone(), None, 400, None, "203"),
            // It answers 200 ms after it was asked, 1.7 s after the request came.
            (to.clone(), None, 1500, Some(millis(1600)), "203"),
            (to.clone(), None, 400, Some(millis(50)), "504"),
            (to, Some(millis(300)), 400, None, "504"),
            (answer.clone(), None, 400, None, "203"),
            (answer, Some(millis(300)), 400, None, "203"),
        ] {
            let request_timeout = of_route.map(|timeout| timeout.try_into().unwrap());
            let action = v1::HttpAction { fallback, request_timeout, ..Default::default() };
            let sidecar = routed(&[silent], action);
            let snapshot = sidecar.ctx.policy.snapshot();
            snapshot.backends["shop/shop:80"].publish(set(silent, Some(millis(of_backend))));
            if let Some(other) = snapshot.backends.get("shop/other:80") {
                other.publish(set(slow, of_fallback));
            }
            let answer = talk(sidecar.outbound().await, GET).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(status != "203" || answer.ends_with("stands in"), "{answer}");
        }
    });
}

/// It is there, and busy.
#[test]
fn who_waits_for_a_connection_with_room_has_none() {
    run(async {
        let listener = small_listener();
        let address = listener.local_addr().unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        // One request at a time; answers the first alone.
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let handshake = h2::server::Builder::new().max_concurrent_streams(1).handshake::<_, bytes::Bytes>(stream);
            let mut connection = handshake.await.unwrap();
            let mut held = Vec::new();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let _ = tell.send(());
                if held.is_empty() {
                    respond.send_response(http::Response::new(()), true).unwrap();
                }
                held.push(respond);
            }
        });
        let sidecar = routed(&[address], stood_in(Default::default()));
        let snapshot = sidecar.ctx.policy.snapshot();
        let under = |policy| {
            let set = EndpointSet::new(true, Protocol::Http2, vec![Endpoint::plain(address)]).under(Arc::new(policy));
            snapshot.backends["shop/shop:80"].publish(set);
        };
        under(BackendPolicy::default());
        let proxy = sidecar.outbound().await;
        let answer = talk(proxy, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let _held = fill(address).await;
        tokio::task::spawn_local(async move { talk(proxy, GET).await });
        for _ in 0..2 {
            told.recv().await.unwrap();
        }
        let short = Duration::from_millis(200);
        for (policy, status, reason) in [
            (BackendPolicy { request_timeout: Some(short), ..BackendPolicy::default() }, 504, "request-timeout"),
            (BackendPolicy { connect_timeout: short, ..BackendPolicy::default() }, 502, "connect"),
        ] {
            under(policy);
            let answer = talk(proxy, GET).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.contains(&format!("leno-reason: {reason}\r\n")), "{answer}");
        }
    });
}

#[test]
fn what_was_sent_before_nobody_could_be_reached_has_none() {
    run(async {
        // Reads one request, listens no longer, and breaks off.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            drop(listener);
        });
        let put = b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let answer = talk(routed(&[address], stood_in(Default::default())).outbound().await, put).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("leno-reason: reset\r\n"), "{answer}");
    });
}

#[test]
fn a_circuit_that_opens_while_a_retry_waits_is_no_reason_for_one() {
    run(async {
        let (asked, mut requests) = mpsc::channel(8);
        let app = application(move |mut stream| {
            let asked = asked.clone();
            async move {
                let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
                while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                    stream.write_all(answer).await.unwrap();
                    asked.send(()).await.unwrap();
                }
            }
        })
        .await;
        let retry = v1::Retry { statuses: vec![503], attempts: 1, backoff: None };
        let sidecar = routed(&[app], stood_in(v1::HttpAction { retry: Some(retry), ..Default::default() }));
        let policy = BackendPolicy { breaker: Some(Settings::opens_after(2)), ..BackendPolicy::default() };
        let set = EndpointSet::new(true, Protocol::Http, vec![Endpoint::plain(app)]).under(Arc::new(policy));
        sidecar.ctx.policy.snapshot().backends["shop/shop:80"].publish(set);

        let address = sidecar.outbound().await;
        let waiting = tokio::task::spawn_local(talk(address, GET));
        requests.recv().await.unwrap();
        // The second failure opens the circuit.
        talk(address, GET).await;
        let answer = waiting.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && !answer.contains("stands in"), "{answer}");
        assert!(!answer.contains("leno-reason"), "it was the application's answer: {answer}");
        assert!(answer.contains("retry-after: 1\r\n"), "and not the circuit's time: {answer}");
        let answer = talk(address, GET).await;
        assert!(answer.contains("leno-reason: circuit-open\r\n") && answer.ends_with("stands in"), "{answer}");
    });
}
