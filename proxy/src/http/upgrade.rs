//! Connections that stop being HTTP: WebSocket and other upgrades, and CONNECT tunnels. After the answer's head,
//! bytes go both ways until both sides are done; the exchange is recorded then.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::{
    exchange::Exchange,
    h2::{Code, RecvStream, SendStream, Tunnel},
    watch::Overdue,
};
use crate::{
    config::limits,
    drain::Drain,
    net::{
        self, Io, Prefixed,
        copy::{self, Moved},
    },
};

/// One side of a connection that changes protocols.
pub enum Upgraded {
    /// An HTTP/1.1 connection, by hyper.
    Hyper(hyper::upgrade::OnUpgrade),
    /// An HTTP/2 stream; an error means that it never became a tunnel.
    Stream(oneshot::Receiver<Box<dyn Io>>),
}

impl Upgraded {
    /// The bytes, once the head that grants the change has been sent or received.
    async fn bytes(self) -> Result<Box<dyn Io>, &'static str> {
        match self {
            Self::Hyper(upgrade) => match upgrade.await {
                // To a server it is what was dialled, which can be reset.
                Ok(upgraded) => Ok(match upgraded.downcast::<TokioIo<Box<dyn Io>>>() {
                    Ok(parts) => Box::new(Prefixed::new(parts.read_buf, parts.io.into_inner())),
                    Err(upgraded) => Box::new(TokioIo::new(upgraded)),
                }),
                Err(_) => Err("the connection did not change protocols"),
            },
            Self::Stream(tunnel) => tunnel.await.map_err(|_| "the stream did not become a tunnel"),
        }
    }
}

/// A stream of HTTP/2 that has become a tunnel, as bytes of its own. The stream belongs to its connection's thread, which
/// what is relayed need not know: its bytes are passed on by a task (tunnels are few).
pub(crate) fn tunnel(sender: SendStream, receiver: RecvStream) -> Box<dyn Io> {
    let mut stream = Tunnel::new(sender, receiver);
    let (near, mut far) = net::pipe::pipe(limits::HTTP1_BUFFER);
    tokio::task::spawn_local(async move {
        // The far side hears of it because its end of the pipe is dropped.
        let watch = stream.watch();
        let failed = {
            let mut copying = pin!(tokio::io::copy_bidirectional(&mut stream, &mut far));
            poll_fn(|cx| match copying.as_mut().poll(cx) {
                Poll::Ready(copied) => Poll::Ready(copied.is_err()),
                // After the peer's END_STREAM nobody reads, and while there is nothing to write nobody else hears of it.
                Poll::Pending => watch.poll(cx).map(|_| true),
            })
            .await
        };
        if failed {
            // RFC 9113 8.5.
            stream.reset(Code::CONNECT_ERROR);
        }
    });
    Box::new(near)
}

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upgraded")
    }
}

/// Relays between the two sides once both have changed protocols, in a task of its own.
pub(crate) fn spawn(client: Upgraded, server: Upgraded, exchange: Box<Exchange>) {
    // Waited for without a gap: an HTTP/1 connection ends as such when it becomes a tunnel, and one of HTTP/2 may end while the
    // last of a stream is still on its way to the server.
    let waited_for = exchange.ctx().drain.clone();
    tokio::task::spawn_local(relay(client, server, exchange, waited_for));
}

async fn relay(client: Upgraded, server: Upgraded, mut exchange: Box<Exchange>, _waited_for: Drain) {
    let (client, server) = match tokio::try_join!(client.bytes(), server.bytes()) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(error, "upgrade failed");
            exchange.broke();
            return;
        }
    };
    let moved = Moved::default();
    // As for a TCP connection, policy's word on streams holds; a tunnel that it says nothing of is often idle for long.
    let idle = exchange.watch().policy_idle().unwrap_or(exchange.ctx().tcp_idle);
    let ended = copy::relay(client, server, idle, &moved).await;
    exchange.relayed(moved.to_server.get(), moved.to_client.get());
    match ended {
        Ok(()) => exchange.completed(),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            exchange.record.reason.get_or_insert_with(|| Overdue::Idle.reason());
        }
        // Either side may end a tunnel as it likes.
        Err(_) => exchange.completed(),
    }
}

#[cfg(test)]
mod tests;
