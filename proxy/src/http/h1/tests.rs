//! Both roles over loopback, with each other and with peers that are slow or broken.

mod client;
mod differential;
mod server;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::LocalSet,
};

use super::*;
use crate::http::{
    body::{BodyError, Frame},
    head::{Fields, ResponseHead},
};

const IDLE: Duration = Duration::from_secs(300);

/// A body in parts, those that are there and those that are still sent to it.
#[derive(Default)]
struct Parts {
    parts: VecDeque<Result<Frame, BodyError>>,
    more: Option<mpsc::UnboundedReceiver<Result<Frame, BodyError>>>,
    exact: Option<u64>,
}

type Sender = mpsc::UnboundedSender<Result<Frame, BodyError>>;

impl Parts {
    fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { exact: Some(bytes.len() as u64), parts: [Ok(Frame::Data(bytes))].into(), more: None }
    }

    fn chunks(parts: &[&'static str]) -> Self {
        Self { parts: parts.iter().map(|part| Ok(data(part))).collect(), ..Self::default() }
    }

    /// Complete when the sender is dropped.
    fn channel(exact: Option<u64>) -> (Sender, Self) {
        let (sender, more) = mpsc::unbounded_channel();
        (sender, Self { more: Some(more), exact, ..Self::default() })
    }

    fn with_trailers(mut self, trailers: Fields) -> Self {
        self.exact = None;
        self.parts.push_back(Ok(Frame::Trailers(Box::new(trailers))));
        self
    }
}

fn data(text: &'static str) -> Frame {
    Frame::Data(Bytes::from_static(text.as_bytes()))
}

impl Outgoing for Parts {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match (self.parts.pop_front(), &mut self.more) {
            (Some(part), _) => Poll::Ready(Some(part)),
            (None, Some(more)) => more.poll_recv(cx),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_end(&self) -> bool {
        self.parts.is_empty() && self.more.is_none()
    }

    fn exact_length(&self) -> Option<u64> {
        self.exact
    }
}

/// The two ends of a connection.
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
    let guarded = async { tokio::time::timeout(Duration::from_secs(60), test).await.unwrap() };
    LocalSet::new().block_on(&runtime, guarded);
}

/// The body as a whole, and its trailers.
async fn read_all(body: &mut Incoming) -> Result<(Vec<u8>, Option<Fields>), BodyError> {
    let mut all = Vec::new();
    loop {
        match poll_fn(|cx| body.poll_frame(cx)).await.transpose()? {
            Some(Frame::Data(data)) => all.extend_from_slice(&data),
            Some(Frame::Trailers(trailers)) => return Ok((all, Some(*trailers))),
            None => return Ok((all, None)),
        }
    }
}

fn response(status: u16) -> ResponseHead {
    ResponseHead::new(StatusCode::from_u16(status).unwrap())
}
