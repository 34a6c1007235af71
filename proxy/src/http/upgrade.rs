//! Connections that stop being HTTP: WebSocket and other upgrades, and CONNECT tunnels. After the answer's head,
//! bytes go both ways until both sides are done; the exchange is recorded then.

use http::Version;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{exchange::Exchange, watch::Overdue};
use crate::{
    config::limits,
    drain::Drain,
    net::copy::{self, Moved},
};

/// Relays between the two sides once both have changed protocols, in a task of its own.
pub(crate) fn spawn(client: OnUpgrade, server: OnUpgrade, exchange: Box<Exchange>) {
    // An HTTP/1 connection ends as such when it becomes a tunnel, and must be waited for without a gap; a tunnel in an
    // HTTP/2 stream is part of its connection, which is.
    let waited_for = (exchange.record.version != Version::HTTP_2).then(|| exchange.ctx().drain.clone());
    tokio::task::spawn_local(relay(client, server, exchange, waited_for));
}

async fn relay(client: OnUpgrade, server: OnUpgrade, mut exchange: Box<Exchange>, _waited_for: Option<Drain>) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            exchange.broke();
            return;
        }
    };
    let moved = Moved::default();
    let ended = copy::relay(TokioIo::new(client), TokioIo::new(server), limits::TCP_IDLE, &moved).await;
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
