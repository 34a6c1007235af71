//! The same bytes through the codec with hyper behind it, and through hyper alone.

use std::{cell::RefCell, convert::Infallible, rc::Rc};

use http::{Request as HyperRequest, Response as HyperResponse, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming as HyperIncoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::{config::limits, drain::DrainOwner, net::Prefixed};

/// What a request was understood as: method, target, fields, body; the body is None if it broke off.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    line: String,
    host: Option<Vec<u8>>,
    fields: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
}

type All = Rc<RefCell<Vec<Seen>>>;

async fn by_hyper<S>(stream: S, all: &All)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: HyperRequest<HyperIncoming>| async {
        let (head, body) = request.into_parts();
        let mut seen = Seen {
            line: format!("{} {}", head.method, head.uri),
            host: head.headers.get("host").map(|host| host.as_bytes().to_owned()),
            fields: Vec::new(),
            body: None,
        };
        for (name, value) in &head.headers {
            // Those are for the connection.
            if !["host", "connection", "transfer-encoding"].contains(&name.as_str()) {
                seen.fields.push((name.to_string(), value.as_bytes().to_owned()));
            }
        }
        seen.fields.sort();
        let number = all.borrow().len();
        all.borrow_mut().push(seen);
        if let Ok(body) = body.collect().await {
            all.borrow_mut()[number].body = Some(body.to_bytes().to_vec());
        }
        let mut response = HyperResponse::new(Empty::<Bytes>::new());
        *response.version_mut() = Version::HTTP_11;
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .half_close(false)
        .max_headers(limits::HEADERS)
        .max_header_size(limits::HEAD_BYTES)
        .max_buf_size(limits::HTTP1_BUFFER)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = connection.await;
}

async fn by_codec(stream: DuplexStream, all: &All) {
    let drain = DrainOwner::default();
    let answer = |mut request: Request| async move {
        if request.refused.is_some() {
            return (response(400), Parts::default());
        }
        let mut seen = Seen {
            line: format!("{} {}", request.head.method, request.head.target()),
            host: request.head.authority().map(|host| host.as_bytes().to_owned()),
            fields: Vec::new(),
            body: None,
        };
        for (name, value) in request.head.fields.iter() {
            seen.fields.push((String::from_utf8(name.to_owned()).unwrap(), value.to_owned()));
        }
        seen.fields.sort();
        let number = all.borrow().len();
        all.borrow_mut().push(seen);
        if let Ok((body, _)) = read_all(&mut request.body).await {
            all.borrow_mut()[number].body = Some(body);
        }
        (response(200), Parts::default())
    };
    let ended = serve(stream, drain.handle(), Patience::new(IDLE), |request| Box::pin(answer(request)));
    if let Ok(Ended::Unusual(stream, bytes)) = ended.await {
        by_hyper(Prefixed::new(bytes, stream), all).await;
    }
}

/// What is understood of `bytes`, which come in parts of `step`, and how many responses there are.
async fn understood(bytes: &[u8], step: usize, codec: bool) -> (Vec<Seen>, usize) {
    let (server, client) = tokio::io::duplex(1 << 20);
    let all = All::default();
    let (mut reading, mut writing) = tokio::io::split(client);
    let serving = async {
        if codec {
            by_codec(server, &all).await;
        } else {
            by_hyper(server, &all).await;
        }
    };
    let asking = async {
        for part in bytes.chunks(step) {
            if writing.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Whoever still waits for more has then been served all there is.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let _ = writing.shutdown().await;
        let mut responses = Vec::new();
        let _ = reading.read_to_end(&mut responses).await;
        String::from_utf8_lossy(&responses).matches("HTTP/1.1 200").count()
    };
    let ((), responses) = tokio::join!(serving, asking);
    (all.take(), responses)
}

fn check(bytes: &[u8], step: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (by_hyper, responses) = understood(bytes, step, false).await;
        let (by_codec, answered) = understood(bytes, step, true).await;
        let text = String::from_utf8_lossy(bytes);
        // The codec is stricter about chunks: then it serves less, never something else.
        assert!(by_codec.len() <= by_hyper.len(), "{text:?}\n{by_codec:?}\n{by_hyper:?}");
        let mut refused = false;
        for (codec, hyper) in by_codec.iter().zip(&by_hyper) {
            assert!(!refused, "served after a body that broke off: {text:?}");
            let same = (&codec.line, &codec.host, &codec.fields) == (&hyper.line, &hyper.host, &hyper.fields);
            assert!(same, "{text:?}\n{codec:?}\n{hyper:?}");
            if codec.body != hyper.body {
                assert_eq!(codec.body, None, "{text:?}\n{codec:?}\n{hyper:?}");
                refused = true;
            }
        }
        if !refused && by_codec.iter().all(|seen| seen.body.is_some()) {
            assert_eq!((by_codec.len(), answered), (by_hyper.len(), responses), "{text:?}");
        }
    });
}

const PIECES: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /b?c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, y\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\nHost: a\n\n",
    "PUT / HTTP/1.1\r\nHost: a\r\nx:\t y \t\r\n",
    "Content-Length: 2\r\n",
    "Transfer-Encoding: identity\r\n",
    "\r\n",
    "\n",
    "hello",
    "5\r\nhello\r\n",
    "2;x=y\r\nab\r\n",
    "03\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nSum: 1\r\n\r\n",
    "0\r\n",
    "1 \r\nx\r\n",
    "x",
    "\0",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn requests_are_understood_as_by_hyper_alone(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 1..8),
        step in prop_oneof![Just(1_usize), 2_usize..50, Just(100_000)],
    ) {
        check(pieces.concat().as_bytes(), step);
    }
}

#[test]
fn smuggled_requests_are_not_understood_otherwise() {
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \x0bchunked",
        "Content-Length: +3",
        "Content-Length: 3 ",
        "Content-Length:\t3",
        "Content-Length: 0003",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3, 3",
        "Content-Length\0: 3",
        "X: y\nContent-Length: 3",
        "X: y\rContent-Length: 3",
        "Content-Length: 3\r\n Transfer-Encoding: chunked",
        "Expect: 100-continue\r\nContent-Length: 3",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    ] {
        for body in ["0\r\n\r\n", "abc", "3\r\nabc\r\n0\r\n\r\n", "3\nabc\n0\n\n", "3;\nx\r\nabc\r\n0\r\n\r\n", ""] {
            for step in [1, 7, 100_000] {
                check(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}{inner}").as_bytes(), step);
            }
        }
    }
}
