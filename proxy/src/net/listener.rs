//! Listeners: one per worker and address, with SO_REUSEPORT, TCP_NODELAY and keep-alive; refuse
//! before descriptors run out; close without losing who is connected already.

use std::{
    cell::Cell,
    fmt, io,
    net::SocketAddr,
    os::fd::AsRawFd,
    pin::pin,
    sync::OnceLock,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
};

use super::{Accepted, Io as _, original_dst::original_dst, set_keepalive};
use crate::config::descriptor_limits;

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 1024;
/// Wait before the next try when accepting fails for want of resources.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Descriptors kept for what accepted connections need: at most this many, at most an eighth.
const RESERVED_DESCRIPTORS: u64 = 256;

const REFUSED: &str = "leno_connections_refused_total";

/// Binds with SO_REUSEADDR, SO_REUSEPORT, backlog 1024; IPv6 sockets are IPv6-only.
///
/// # Errors
/// Those of the kernel, with the address.
pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    metrics::describe_counter!(REFUSED, "Connections closed as soon as they were accepted, by reason.");
    let listen = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Linux hands these on to accepted connections, which saves their calls.
        socket.set_tcp_nodelay(true)?;
        set_keepalive(&SockRef::from(&socket))?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error| io::Error::new(error.kind(), format!("listening on {addr}: {error}")))
}

/// Gives `accepted` each connection, with its original destination if `redirected`, until `closing` says true: then those that
/// the kernel has taken already, which would be reset, and no more. `closing` is dropped when that is done. Transient accept errors (ECONNABORTED, EMFILE …) are logged,
/// backed off from and not returned. When descriptors run low, connections are closed at once.
///
/// A redirected listener closes connections made to its own port: nobody redirected them, and
/// forwarding them to where they were meant to go would come back here.
pub async fn accept(
    listener: TcpListener,
    redirected: bool,
    mut closing: watch::Receiver<bool>,
    mut accepted: impl FnMut(Accepted),
) {
    {
        let mut told = pin!(closing.wait_for(|closing| *closing));
        loop {
            let next = select! {
                biased;
                next = listener.accept() => next,
                // An error means that the process is ending.
                _ = &mut told => break,
            };
            match next {
                Ok((stream, peer)) => fit(stream, peer, redirected).into_iter().for_each(&mut accepted),
                Err(error) => back_off(&error).await,
            }
        }
    }
    // Asked of the kernel: the runtime may not have heard of them yet.
    loop {
        let (socket, peer) = match SockRef::from(&listener).accept() {
            Ok(next) => next,
            Err(error) if of_one_connection(&error) => continue,
            Err(_) => break, // Nobody is left, or there are no descriptors for them.
        };
        let stream = socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket.into()));
        if let (Ok(stream), Some(peer)) = (stream, peer.as_socket()) {
            fit(stream, peer, redirected).into_iter().for_each(&mut accepted);
        }
    }
    // In this order: whoever waits for it takes it that nobody can connect any longer.
    drop(listener);
    drop(closing);
}

/// The connection, if it is to be served.
fn fit(stream: TcpStream, peer: SocketAddr, redirected: bool) -> Option<Accepted> {
    if descriptors_low(&stream) {
        warn_each_second(&format_args!("refusing connections: {} descriptors are nearly used up", descriptors()));
        metrics::counter!(REFUSED, "reason" => "descriptors").increment(1);
        // The client knows at once, and nothing lingers here.
        stream.reset();
        return None;
    }
    // An error here and below: the client is gone already.
    let local = stream.local_addr().ok()?;
    if !redirected {
        return Some(Accepted { stream, peer, destination: local });
    }
    let destination = original_dst(&stream).ok()?;
    if destination == local {
        warn_each_second(&format_args!(
            "refused {peer}: it called {local} directly, which only takes redirected connections"
        ));
        metrics::counter!(REFUSED, "reason" => "not-redirected").increment(1);
        return None;
    }
    Some(Accepted { stream, peer, destination })
}

/// How many descriptors this process may have open; asked once.
fn descriptors() -> u64 {
    static LIMIT: OnceLock<u64> = OnceLock::new();
    *LIMIT.get_or_init(|| descriptor_limits().map_or(u64::MAX, |(soft, _)| soft))
}

/// The kernel gives the lowest free number, so a high one says that nearly all are taken.
fn descriptors_low(stream: &TcpStream) -> bool {
    let limit = descriptors();
    let reserved = RESERVED_DESCRIPTORS.min(limit / 8);
    u64::try_from(stream.as_raw_fd()).is_ok_and(|number| number >= limit - reserved)
}

/// accept(2): these belong to one connection, the rest to the process or the host.
fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn back_off(error: &io::Error) {
    if of_one_connection(error) {
        return;
    }
    warn_each_second(&format_args!("cannot accept connections: {error}"));
    tokio::time::sleep(ACCEPT_BACKOFF).await;
}

/// A flood of refusals must not become a flood of lines.
fn warn_each_second(message: &dyn fmt::Display) {
    thread_local!(static LAST: Cell<Option<Instant>> = const { Cell::new(None) });
    let now = Instant::now();
    if LAST.get().is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1)) {
        LAST.set(Some(now));
        tracing::warn!("{message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_connections_inherit_the_options() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = bind(addr.parse().unwrap()).unwrap();
            let local = listener.local_addr().unwrap();
            let again = bind(local).unwrap();
            assert_eq!(again.local_addr().unwrap(), local, "a second worker binds the same address");
            drop(again);
            let client = super::super::connect::connect(local, None, Duration::from_secs(5)).await.unwrap();
            let mut accepted = Vec::new();
            accept(listener, false, watch::channel(true).1, |connection| accepted.push(connection)).await;
            let accepted = accepted.pop().unwrap();
            assert_eq!(accepted.peer, client.local_addr().unwrap());
            assert_eq!(accepted.destination, local);
            for stream in [&client, &accepted.stream] {
                assert!(stream.nodelay().unwrap());
                assert!(SockRef::from(stream).keepalive().unwrap());
                assert_eq!(SockRef::from(stream).tcp_keepalive_time().unwrap(), super::super::KEEPALIVE_IDLE);
            }
        }
    }

    #[tokio::test]
    async fn who_is_connected_when_it_closes_is_accepted_and_nobody_after() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || super::super::connect::connect(address, None, Duration::from_secs(5));
        let clients = [connect().await.unwrap(), connect().await.unwrap(), connect().await.unwrap()];
        let mut accepted = Vec::new();
        let (close, closing) = watch::channel(true);
        accept(listener, false, closing, |connection| {
            assert!(!close.is_closed(), "who waits for the listener to be closed would not wait for this connection");
            accepted.push(connection.peer);
        })
        .await;
        assert!(close.is_closed());
        assert_eq!(accepted, clients.map(|client| client.local_addr().unwrap()));
        connect().await.unwrap_err();
    }

    #[tokio::test]
    async fn a_redirected_listener_refuses_who_calls_it_directly() {
        use tokio::io::AsyncReadExt;
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let client = async {
            let mut stream = super::super::connect::connect(addr, None, Duration::from_secs(5)).await.unwrap();
            stream.read(&mut [0; 1]).await.unwrap()
        };
        let (_close, closing) = watch::channel(false);
        tokio::select! {
            read = client => assert_eq!(read, 0),
            () = accept(listener, true, closing, |_| panic!("accepted")) => {}
        }
    }
}
