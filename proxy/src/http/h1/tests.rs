//! Both roles over loopback, with each other and with peers that are slow or broken.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use super::*;
use crate::{
    drain::DrainOwner,
    http::{
        body::{BodyError, Frame},
        head::{Fields, Name, RequestHead, ResponseHead},
    },
};

const IDLE: Duration = Duration::from_secs(300);

/// A body in parts.
#[derive(Default)]
struct Parts {
    parts: VecDeque<Result<Frame, BodyError>>,
    exact: Option<u64>,
}

impl Parts {
    fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { exact: Some(bytes.len() as u64), parts: [Ok(Frame::Data(bytes))].into() }
    }

    fn chunks(parts: &[&'static str]) -> Self {
        Self {
            exact: None,
            parts: parts.iter().map(|part| Ok(Frame::Data(Bytes::from_static(part.as_bytes())))).collect(),
        }
    }
}

impl Outgoing for Parts {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Poll::Ready(self.parts.pop_front())
    }

    fn is_end(&self) -> bool {
        self.parts.is_empty()
    }

    fn exact_length(&self) -> Option<u64> {
        self.exact
    }
}

/// A server and a client for it.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (server, client)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guarded = async { tokio::time::timeout(Duration::from_secs(30), test).await.unwrap() };
    LocalSet::new().block_on(&runtime, guarded);
}

/// The body as a whole, and its trailers.
async fn read_all(mut body: Incoming) -> Result<(Vec<u8>, Option<Fields>), BodyError> {
    let mut all = Vec::new();
    loop {
        match std::future::poll_fn(|cx| body.poll_frame(cx)).await.transpose()? {
            Some(Frame::Data(data)) => all.extend_from_slice(&data),
            Some(Frame::Trailers(trailers)) => return Ok((all, Some(*trailers))),
            None => return Ok((all, None)),
        }
    }
}

fn response(status: u16) -> ResponseHead {
    ResponseHead::new(StatusCode::from_u16(status).unwrap())
}

/// Answers with what it was sent, and its method and target.
async fn echo(request: Request) -> (ResponseHead, Parts) {
    let mut head = response(200);
    let asked = format!("{} {}", request.head.method, request.head.target());
    head.fields.push(b"x-asked", asked.as_bytes());
    let Ok((body, trailers)) = read_all(request.body).await else { return (response(400), Parts::default()) };
    let mut parts = Parts::full(body);
    if let Some(trailers) = trailers {
        parts.exact = None;
        parts.parts.push_back(Ok(Frame::Trailers(Box::new(trailers))));
    }
    (head, parts)
}

/// Serves `client`'s connection with [`echo`], and what became of it.
async fn echoed(send: &[u8]) -> String {
    let (server, mut client) = pair().await;
    let drain = DrainOwner::default();
    let served = tokio::task::spawn_local(serve(server, drain.handle(), IDLE, echo));
    client.write_all(send).await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = String::new();
    client.read_to_string(&mut received).await.unwrap();
    let _ = served.await.unwrap();
    received
}

#[test]
fn requests_are_answered_in_order() {
    run(async {
        let received = echoed(
            b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\
              POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\nx: y\r\n\r\n",
        )
        .await;
        assert_eq!(
            received,
            "HTTP/1.1 200 OK\r\nx-asked: GET /a\r\ncontent-length: 0\r\n\r\n\
             HTTP/1.1 200 OK\r\nx-asked: POST /b\r\ncontent-length: 2\r\n\r\nhi\
             HTTP/1.1 200 OK\r\nx-asked: POST /c\r\ntransfer-encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\nx: y\r\n\r\n"
        );
    });
}

#[test]
fn both_roles_speak_with_each_other_on_one_connection() {
    run(async {
        let (server, client) = pair().await;
        let drain = DrainOwner::default();
        let served = tokio::task::spawn_local(serve(server, drain.handle(), IDLE, echo));
        let home: Rc<RefCell<Option<ClientConnection>>> = Rc::default();
        home.replace(Some(ClientConnection::new(Box::new(client))));
        for (number, body) in [
            Parts::default(),
            Parts::full("hello"),
            Parts::full(vec![b'x'; 1_000_000]),
            Parts::chunks(&["a", "bc", "def"]),
        ]
        .into_iter()
        .enumerate()
        {
            let mut head = RequestHead::new(Version::HTTP_11, Method::POST, "/x?y");
            head.set_authority("shop:80");
            let connection = home.take().expect("the connection came back");
            let at = Rc::clone(&home);
            let sent = connection.send(&head, body, move |connection| drop(at.replace(Some(connection)))).await;
            let (head, body) = sent.map_err(|error| error.reason).unwrap();
            assert_eq!(head.status, 200);
            assert_eq!(head.fields.values(b"x-asked").next(), Some(&b"POST /x?y"[..]));
            let (body, trailers) = read_all(body).await.unwrap();
            assert_eq!(body.len(), [0, 5, 1_000_000, 6][number]);
            assert_eq!(trailers, None);
        }
        drop(home);
        assert!(matches!(served.await.unwrap(), Ok(Ended::Closed)));
    });
}
