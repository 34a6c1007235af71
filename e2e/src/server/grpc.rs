//! The gRPC half of the server: all four kinds of call.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Result, Streaming};

use crate::echo::{Ping, Pong, echo_server::Echo};

#[derive(Debug)]
pub(super) struct Service {
    instance: Arc<str>,
}

impl Service {
    pub(super) fn new(instance: Arc<str>) -> Self {
        Self { instance }
    }

    async fn pong(instance: &str, ping: &Ping, seen: u32) -> Result<Pong> {
        if ping.delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(ping.delay_ms.into())).await;
        }
        if ping.fail_with != 0 {
            return Err(tonic::Status::new(Code::from(ping.fail_with), "as asked"));
        }
        Ok(Pong { text: ping.text.clone(), instance: instance.to_owned(), seen })
    }
}

type Pongs = Pin<Box<dyn Stream<Item = Result<Pong>> + Send>>;

#[tonic::async_trait]
impl Echo for Service {
    type ServerStreamStream = Pongs;
    type BothStream = Pongs;

    async fn unary(&self, request: Request<Ping>) -> Result<Response<Pong>> {
        Self::pong(&self.instance, request.get_ref(), 1).await.map(Response::new)
    }

    async fn server_stream(&self, request: Request<Ping>) -> Result<Response<Pongs>> {
        let (instance, ping) = (self.instance.clone(), request.into_inner());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for seen in 1..=ping.count.max(1) {
                // A client that left wants no more.
                if sender.send(Self::pong(&instance, &ping, seen).await).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn client_stream(&self, request: Request<Streaming<Ping>>) -> Result<Response<Pong>> {
        let mut pings = request.into_inner();
        let (mut seen, mut last) = (0, Ping::default());
        while let Some(ping) = pings.next().await {
            (seen, last) = (seen + 1, ping?);
        }
        Self::pong(&self.instance, &last, seen).await.map(Response::new)
    }

    async fn both(&self, request: Request<Streaming<Ping>>) -> Result<Response<Pongs>> {
        let (instance, mut pings) = (self.instance.clone(), request.into_inner());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut seen = 0;
            while let Some(Ok(ping)) = pings.next().await {
                seen += 1;
                if sender.send(Self::pong(&instance, &ping, seen).await).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
