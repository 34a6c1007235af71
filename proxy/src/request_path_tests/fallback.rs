//! What serves in place of a backend that nobody can be reached of, and what it must not serve.

use std::sync::Arc;

use leno_proto::v1;
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::mpsc};

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
