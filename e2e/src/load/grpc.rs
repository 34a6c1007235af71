//! gRPC clients: long-lived bidirectional streams, and unary calls.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{LIMIT, Load, Pace, Tally};
use crate::{
    client::grpc,
    echo::{Ping, Pong, echo_client::EchoClient},
};

/// One stream, kept open as long as it lives; opened anew when it ended.
pub(super) async fn stream(load: Arc<Load>, mut pace: Pace, tally: Arc<Tally>) {
    let Ok(mut client) = grpc(load.address, &load.authority) else { return };
    let mut open: Option<Conversation> = None;
    while pace.next().await {
        let since = Instant::now();
        let exchange = async {
            let mut conversation = match open.take() {
                Some(conversation) => conversation,
                None => Conversation::open(&mut client).await?,
            };
            let instance = conversation.exchange().await?;
            open = Some(conversation);
            Ok(instance)
        };
        tally.count(since, limited(exchange).await);
    }
}

/// Unary calls, one after the other.
pub(super) async fn calls(load: Arc<Load>, mut pace: Pace, tally: Arc<Tally>) {
    let Ok(mut client) = grpc(load.address, &load.authority) else { return };
    while pace.next().await {
        let since = Instant::now();
        let call = async {
            let pong = client.unary(Ping { text: "load".to_owned(), ..Ping::default() }).await.context("call")?;
            Ok(pong.into_inner().instance)
        };
        tally.count(since, limited(call).await);
    }
}

async fn limited(work: impl Future<Output = Result<String>>) -> Result<String> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("no answer within {LIMIT:?}")),
    }
}

struct Conversation {
    pings: mpsc::Sender<Ping>,
    pongs: Streaming<Pong>,
    sent: u32,
}

impl Conversation {
    async fn open(client: &mut EchoClient<Channel>) -> Result<Self> {
        let (pings, receiver) = mpsc::channel(1);
        let pongs = client.both(ReceiverStream::new(receiver)).await.context("open the stream")?.into_inner();
        Ok(Self { pings, pongs, sent: 0 })
    }

    async fn exchange(&mut self) -> Result<String> {
        self.sent += 1;
        let ping = Ping { text: self.sent.to_string(), ..Ping::default() };
        if self.pings.send(ping).await.is_err() {
            let end = self.pongs.message().await;
            anyhow::bail!("the stream ended after {} messages: {end:?}", self.sent - 1);
        }
        let pong = self.pongs.message().await.with_context(|| format!("after {} messages", self.sent - 1))?;
        let pong = pong.context("the stream ended")?;
        ensure!(pong.seen == self.sent && pong.text == self.sent.to_string(), "expected {}, got {pong:?}", self.sent);
        Ok(pong.instance)
    }
}
