use std::future::Future;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    net::Prefixed,
    tls::{MeshProtocol, testing::Authority},
};

const IDLE: Duration = Duration::from_secs(60);

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Both ends of a connection over mesh TLS.
async fn mesh_pair() -> (impl Io, impl Io) {
    let authority = Authority::new();
    let (client_id, server_id) = ("spiffe://mesh/ns/a/sa/client".parse(), "spiffe://mesh/ns/a/sa/server".parse());
    let (client_id, server_id) = (client_id.unwrap(), server_id.unwrap());
    let (near, far) = (authority.credentials(&client_id), authority.credentials(&server_id));
    let (to_peer, from_peer) = tcp_pair().await;
    let (to_peer, from_peer) = tokio::join!(
        near.connect(to_peer, &server_id, MeshProtocol::Tcp),
        far.accept(Prefixed::new(Bytes::new(), from_peer))
    );
    (to_peer.unwrap().0, from_peer.unwrap().0)
}

/// Runs a relay between two TCP connections beside `test`, which gets their outer ends.
async fn relayed<F: Future<Output = ()>>(test: impl FnOnce(TcpStream, TcpStream) -> F) -> (io::Result<()>, Moved) {
    let ((client, near), (far, server)) = (tcp_pair().await, tcp_pair().await);
    let moved = Moved::default();
    let (done, ()) = tokio::join!(relay(near, far, IDLE, &moved), test(client, server));
    (done, moved)
}

#[tokio::test]
async fn half_close_lets_the_answer_through() {
    let (done, moved) = relayed(|mut client, mut server| async move {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"a longer answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "a longer answer");
    })
    .await;
    done.unwrap();
    assert_eq!((moved.to_server.get(), moved.to_client.get()), (8, 15));
}

#[tokio::test]
async fn bulk_arrives_whole_both_ways_through_slow_readers() {
    const SIZE: usize = 3_000_000;
    let sent: Vec<u8> = (0..SIZE).map(|i| (i * 7 % 251) as u8).collect();
    let (done, moved) = relayed(|client, server| {
        let sent = &sent;
        async move {
            let ((mut client_read, mut client_write), (mut server_read, mut server_write)) =
                (client.into_split(), server.into_split());
            let up = async {
                client_write.write_all(sent).await.unwrap();
                client_write.shutdown().await.unwrap();
            };
            let down = async {
                server_write.write_all(sent).await.unwrap();
                server_write.shutdown().await.unwrap();
            };
            let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
            let read = async {
                client_read.read_to_end(&mut at_client).await.unwrap();
                server_read.read_to_end(&mut at_server).await.unwrap();
            };
            tokio::join!(up, down, read);
            assert!(at_server == *sent && at_client == *sent);
        }
    })
    .await;
    done.unwrap();
    assert_eq!((moved.to_server.get(), moved.to_client.get()), (SIZE as u64, SIZE as u64));
}

#[tokio::test]
async fn through_mesh_tls_nothing_stays_behind_and_half_close_holds() {
    let (mut client, from_client) = tcp_pair().await;
    let (to_peer, mut server) = mesh_pair().await;
    let moved = Moved::default();
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 253) as u8).collect();
    let test = async {
        // One byte each way, without more to push it out.
        client.write_all(b"?").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        server.write_all(b"!").await.unwrap();
        server.flush().await.unwrap();
        client.read_exact(&mut [0; 1]).await.unwrap();
        let (mut got, mut answer) = (Vec::new(), Vec::new());
        let up = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_end(&mut answer).await.unwrap();
        };
        let down = async {
            server.read_to_end(&mut got).await.unwrap();
            server.write_all(&got).await.unwrap();
            server.shutdown().await.unwrap();
        };
        tokio::join!(up, down);
        assert!(answer == sent);
    };
    let (done, ()) = tokio::join!(relay(from_client, to_peer, IDLE, &moved), test);
    done.unwrap();
    assert_eq!((moved.to_server.get(), moved.to_client.get()), (1_000_001, 1_000_001));
}

/// Closes with a reset.
fn break_off(stream: &TcpStream) {
    stream.reset();
}

#[tokio::test]
async fn who_waits_for_more_is_reset() {
    for client_breaks in [false, true] {
        let began = Instant::now();
        let (done, _) = relayed(|mut client, mut server| async move {
            if client_breaks {
                std::mem::swap(&mut client, &mut server);
            }
            server.write_all(b"half").await.unwrap();
            client.read_exact(&mut [0; 4]).await.unwrap();
            break_off(&server);
            drop(server);
            let ended = client.read(&mut [0; 1]).await;
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        })
        .await;
        done.unwrap_err();
        // At once: a client that broke off is no server that might say why.
        assert!(began.elapsed() < LAST_WORDS);
    }
}

/// A server that refuses, and closes over what it was sent: the client would hear why without a relay between them.
#[tokio::test]
async fn a_servers_last_words_arrive_though_it_takes_nothing_any_more() {
    let (done, _) = relayed(|mut client, mut server| async move {
        client.write_all(b"question").await.unwrap();
        while server.peek(&mut [0; 8]).await.unwrap() < 8 {}
        server.write_all(b"421 no").await.unwrap();
        drop(server);
        // Both there when the relay looks, as with a client that goes on sending.
        client.try_write(b"more").unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        // Over unread bytes it is no end.
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    })
    .await;
    done.unwrap_err();
}

/// A server that had ended its side when it went.
struct Gone(tokio::io::DuplexStream);

impl Io for Gone {
    fn reset(&self) {}
}

impl AsyncRead for Gone {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gone {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
}

#[tokio::test]
async fn a_servers_end_is_passed_on_though_it_takes_nothing_any_more() {
    let ((mut client, near), (far, mut server)) = (duplex(64), duplex(64));
    client.write_all(b"more").await.unwrap();
    server.write_all(b"bye").await.unwrap();
    drop(server);
    let moved = Moved::default();
    let done = relay(near, Gone(far), IDLE, &moved).await;
    assert_eq!(done.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "bye");
}

#[tokio::test]
async fn whose_end_was_passed_on_is_not_reset() {
    let (done, _) = relayed(|mut client, mut server| async move {
        client.write_all(b"question").await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        // The end is there, and not yet read, when the server breaks off.
        let mut peeked = [0; 6];
        while client.peek(&mut peeked).await.unwrap() < peeked.len() {}
        tokio::task::yield_now().await;
        break_off(&server);
        drop(server);
        client.write_all(b"more").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    })
    .await;
    done.unwrap_err();
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both() {
    let ((mut client, near), (far, mut server)) = (tcp_pair().await, tcp_pair().await);
    let moved = Moved::default();
    tokio::select! {
        _ = relay(near, far, IDLE, &moved) => unreachable!(),
        () = tokio::task::yield_now() => {}
    }
    for stream in [&mut client, &mut server] {
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn tls_without_its_end_is_no_end() {
    let (mut client, from_client) = tcp_pair().await;
    let (to_peer, mut server) = mesh_pair().await;
    let moved = Moved::default();
    let test = async {
        server.write_all(b"half").await.unwrap();
        server.flush().await.unwrap();
        client.read_exact(&mut [0; 4]).await.unwrap();
        // A FIN, and no close_notify.
        drop(server);
        let ended = client.read(&mut [0; 1]).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    };
    let (done, ()) = tokio::join!(relay(from_client, to_peer, IDLE, &moved), test);
    done.unwrap_err();
}

#[tokio::test]
async fn a_writer_that_takes_little_at_a_time_gets_everything() {
    // Pipes of 3 bytes: every write is partial, and what is left is kept.
    let ((mut client, near), (far, mut server)) = (duplex(100), duplex(3));
    let moved = Moved::default();
    let test = async {
        client.write_all(b"hello, slow world").await.unwrap();
        let mut got = [0; 17];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello, slow world");
        drop((client, server));
    };
    let (done, ()) = tokio::join!(relay(near, far, IDLE, &moved), test);
    done.unwrap();
}

#[tokio::test]
async fn idle_is_counted_from_the_last_byte() {
    // Far more than a busy machine stalls between two bytes.
    const SHORT: Duration = Duration::from_secs(1);
    let ((mut client, near), (far, mut server)) = (duplex(100), duplex(100));
    let moved = Moved::default();
    let last = Cell::new(Instant::now());
    let test = async {
        for _ in 0..5 {
            sleep(SHORT / 10).await;
            client.write_all(b"x").await.unwrap();
            last.set(Instant::now());
            server.read_exact(&mut [0; 1]).await.unwrap();
        }
        // Both ends stay open.
        std::future::pending::<()>().await;
    };
    let done = tokio::select! {
        done = relay(near, far, SHORT, &moved) => done,
        () = test => unreachable!(),
    };
    assert_eq!(done.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(moved.to_server.get(), 5);
    assert!(last.get().elapsed() >= SHORT);
}

#[tokio::test]
async fn an_idle_relay_is_small() {
    let ((_client, near), (far, _server)) = (tcp_pair().await, tcp_pair().await);
    let moved = Moved::default();
    let future = relay(near, far, IDLE, &moved);
    assert!(size_of_val(&future) < 512, "{}", size_of_val(&future));
}
