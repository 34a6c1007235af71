//! Connections that stop being HTTP: WebSocket and other upgrades, and CONNECT tunnels. After the answer's head,
//! bytes go both ways until both sides are done; the exchange is recorded then.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{exchange::Exchange, watch::Overdue};
use crate::{
    config::limits,
    net::copy::{self, Moved},
};

/// Relays between the two sides once both have changed protocols, in a task of its own.
pub(crate) fn spawn(client: OnUpgrade, server: OnUpgrade, exchange: Box<Exchange>) {
    tokio::task::spawn_local(relay(client, server, exchange));
}

async fn relay(client: OnUpgrade, server: OnUpgrade, mut exchange: Box<Exchange>) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            exchange.broke();
            return;
        }
    };
    let moved = Moved::default();
    let _waited_for = exchange.ctx().drain.clone();
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
