//! Servers for tests: HTTP/1.1 that does exactly what a script says, HTTP/2 by h2.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Response, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::LocalSet,
};

use super::pool::{Extras, HttpConnection, Reply, SendError};
use super::{Backend, Endpoint, EndpointSet, Upstreams, dns::Resolver};
use crate::{
    http::{
        Body,
        body::{BodyError, Frame},
        head::RequestHead,
    },
    policy::Protocol,
    tls::CredentialStore,
};

/// Runs a test as a worker would, and fails it if it hangs.
pub(super) async fn on_worker(test: impl Future<Output = ()>) {
    let worker = LocalSet::new();
    tokio::time::timeout(Duration::from_secs(30), worker.run_until(test)).await.expect("the test hangs");
}

pub(super) fn upstreams() -> Upstreams {
    Upstreams::new(None, Arc::new(CredentialStore::default()), Resolver::new(tokio::runtime::Handle::current(), None))
}

/// A backend of unmeshed endpoints.
pub(super) fn backend(addresses: &[SocketAddr]) -> Arc<Backend> {
    let backend = Backend::new("shop/cart:80".into());
    backend.publish(set(addresses));
    Arc::new(backend)
}

pub(super) fn set(addresses: &[SocketAddr]) -> EndpointSet {
    EndpointSet::new(true, Protocol::Http, addresses.iter().copied().map(Endpoint::plain).collect())
}

/// Sends a GET.
pub(super) async fn get(connection: HttpConnection) -> Result<Reply, SendError> {
    let mut head = RequestHead::new(Version::HTTP_11, Method::GET, "/");
    head.set_authority("cart");
    connection.send(&head, Body::empty(), Extras::default()).await
}

/// The whole body of an answer.
pub(super) async fn read(reply: Reply) -> Bytes {
    read_to_end(reply).await.unwrap()
}

/// The whole body of an answer, if it does not break off.
pub(super) async fn read_to_end(reply: Reply) -> Result<Bytes, BodyError> {
    let mut body = reply.body;
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.poll_frame(cx)).await {
        if let Frame::Data(data) = frame? {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.into())
}

/// An address on which nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// What a scripted server does with one request.
#[derive(Clone, Copy)]
pub(super) enum Act {
    Answer(&'static str),
    AnswerAndClose(&'static str),
    /// Reads the request and closes without a word.
    Close,
}

pub(super) const OK: Act = Act::Answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");

/// An HTTP/1.1 server; ends with the test.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) accepted: Rc<Cell<usize>>,
    pub(super) closed: Rc<Cell<usize>>,
    change: Rc<Notify>,
}

impl Server {
    /// `script`: what to do, by number of the connection and of its request, from 0.
    pub(super) async fn start(script: impl Fn(usize, usize) -> Act + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            accepted: Rc::default(),
            closed: Rc::default(),
            change: Rc::default(),
        };
        let (accepted, closed, change) =
            (Rc::clone(&server.accepted), Rc::clone(&server.closed), Rc::clone(&server.change));
        let script = Rc::new(script);
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = accepted.get();
                accepted.set(number + 1);
                change.notify_waiters();
                let (script, closed, change) = (Rc::clone(&script), Rc::clone(&closed), Rc::clone(&change));
                tokio::task::spawn_local(async move {
                    serve(stream, |request| script(number, request)).await;
                    closed.set(closed.get() + 1);
                    change.notify_waiters();
                });
            }
        });
        server
    }

    pub(super) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let change = self.change.notified();
            tokio::pin!(change);
            change.as_mut().enable();
            if condition(self) {
                return;
            }
            change.await;
        }
    }
}

async fn serve(mut stream: TcpStream, script: impl Fn(usize) -> Act) {
    let mut read = Vec::new();
    for request in 0.. {
        while !read.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let end = read.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        read.drain(..end + 4);
        match script(request) {
            Act::Answer(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
            Act::AnswerAndClose(answer) => {
                stream.write_all(answer.as_bytes()).await.unwrap();
                return;
            }
            Act::Close => return,
        }
    }
}

type OpenStream = (usize, h2::server::SendResponse<Bytes>);

/// An HTTP/2 server that collects streams, for the test to answer.
pub(super) struct Http2Server {
    pub(super) address: SocketAddr,
    pub(super) accepted: Rc<Cell<usize>>,
    /// Number of the connection, and the stream to answer.
    pub(super) streams: Rc<RefCell<Vec<OpenStream>>>,
    /// Connections told to finish (GOAWAY).
    shutdown: Rc<Cell<bool>>,
    change: Rc<Notify>,
}

impl Http2Server {
    pub(super) async fn start(most_streams: u32) -> Self {
        Self::start_each(move |_| most_streams).await
    }

    /// By the connection's number.
    pub(super) async fn start_each(most_streams: impl Fn(usize) -> u32 + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            accepted: Rc::default(),
            streams: Rc::default(),
            shutdown: Rc::default(),
            change: Rc::default(),
        };
        let (accepted, streams) = (Rc::clone(&server.accepted), Rc::clone(&server.streams));
        let (shutdown, change) = (Rc::clone(&server.shutdown), Rc::clone(&server.change));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = accepted.get();
                accepted.set(number + 1);
                let (streams, shutdown, change) = (Rc::clone(&streams), Rc::clone(&shutdown), Rc::clone(&change));
                let most_streams = most_streams(number);
                tokio::task::spawn_local(async move {
                    let handshake = h2::server::Builder::new().max_concurrent_streams(most_streams).handshake(stream);
                    let mut connection = handshake.await.unwrap();
                    loop {
                        tokio::select! {
                            next = connection.accept() => {
                                let Some(Ok((_, respond))) = next else { return };
                                streams.borrow_mut().push((number, respond));
                                change.notify_waiters();
                            }
                            () = change.notified() => {
                                if shutdown.get() && number == 0 {
                                    connection.graceful_shutdown();
                                }
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// Waits until so many streams are open and unanswered.
    pub(super) async fn until_open(&self, streams: usize) {
        loop {
            let change = self.change.notified();
            tokio::pin!(change);
            change.as_mut().enable();
            if self.streams.borrow().len() >= streams {
                return;
            }
            change.await;
        }
    }

    /// Answers all open streams with 200.
    pub(super) fn answer(&self) {
        for (_, mut respond) in self.streams.take() {
            respond.send_response(Response::new(()), true).unwrap();
        }
    }

    /// The first connection sends GOAWAY, and finishes what it has.
    pub(super) fn shut_down_first(&self) {
        self.shutdown.set(true);
        self.change.notify_waiters();
    }
}
