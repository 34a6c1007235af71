use std::{future::poll_fn, sync::Arc};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    net::Prefixed,
    tls::{Credentials, MeshProtocol, testing::Authority},
};

const CLIENT: &str = "spiffe://mesh/ns/a/sa/client";
const SERVER: &str = "spiffe://mesh/ns/a/sa/server";

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn credentials() -> (Credentials, Credentials) {
    let authority = Authority::new();
    (authority.credentials(&CLIENT.parse().unwrap()), authority.credentials(&SERVER.parse().unwrap()))
}

/// Ours at both ends.
async fn pair() -> (TlsStream<TcpStream>, TlsStream<TcpStream>) {
    let (client, server) = credentials();
    let (near, far) = tcp_pair().await;
    let id = SERVER.parse().unwrap();
    let (near, far) = tokio::join!(
        client.connect(near, &id, MeshProtocol::Tcp),
        server.accept(Prefixed::new(Default::default(), far))
    );
    (near.unwrap().0, far.unwrap().0)
}

/// The same keys over a pipe in memory, where what is sent can be looked at and changed.
async fn in_memory() -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (near, far) = pair().await;
    let (one, other) = duplex(1 << 20);
    (TlsStream { io: one, state: near.state }, TlsStream { io: other, state: far.state })
}

async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), other: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(b"question").await.unwrap();
    stream.flush().await.unwrap();
    let mut got = [0; 8];
    other.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"question");
}

fn refused(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// rustls' own stream at the other end, in both roles, with every cipher and with data in each direction at once.
#[tokio::test]
async fn it_speaks_with_rustls() {
    let (client, server) = credentials();
    let sent: Vec<u8> = (0..300_000u32).map(|index| (index % 251) as u8).collect();
    for suite in 0..3 {
        let (near, far) = tcp_pair().await;
        let mut config = rustls::ClientConfig::clone(&client.configs.tcp);
        let mut provider = rustls::crypto::CryptoProvider::clone(config.crypto_provider());
        provider.cipher_suites = vec![provider.cipher_suites[suite]];
        let builder = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let mut other = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(crate::tls::tests::TrustAll))
            .with_client_cert_resolver(config.client_auth_cert_resolver.clone());
        other.alpn_protocols = mem::take(&mut config.alpn_protocols);
        let name = ServerName::try_from("a.example").unwrap();
        let (theirs, ours) = tokio::join!(
            TlsConnector::from(Arc::new(other)).connect(name, near),
            server.accept(Prefixed::new(Default::default(), far))
        );
        both_ways(theirs.unwrap(), ours.unwrap().0, &sent).await;
    }
    let (near, far) = tcp_pair().await;
    let id = SERVER.parse().unwrap();
    let (ours, theirs) = tokio::join!(
        client.connect(near, &id, MeshProtocol::Tcp),
        TlsAcceptor::from(server.configs.server.clone()).accept(far)
    );
    both_ways(theirs.unwrap(), ours.unwrap().0, &sent).await;
}

async fn both_ways(one: impl AsyncRead + AsyncWrite + Unpin, other: impl AsyncRead + AsyncWrite + Unpin, sent: &[u8]) {
    let ((mut one_read, mut one_write), (mut other_read, mut other_write)) =
        (tokio::io::split(one), tokio::io::split(other));
    let (mut at_one, mut at_other) = (Vec::new(), Vec::new());
    let up = async {
        one_write.write_all(sent).await.unwrap();
        one_write.shutdown().await.unwrap();
    };
    let down = async {
        other_write.write_all(sent).await.unwrap();
        other_write.shutdown().await.unwrap();
    };
    let reads = async {
        tokio::try_join!(one_read.read_to_end(&mut at_one), other_read.read_to_end(&mut at_other)).unwrap();
    };
    tokio::join!(up, down, reads);
    assert!(at_one == sent && at_other == sent);
}

#[tokio::test]
async fn keys_are_renewed_by_either_side() {
    let (mut near, mut far) = pair().await;
    for _ in 0..3 {
        // Ours, and the peer's because we ask for it.
        near.state.update_asked = true;
        echo(&mut near, &mut far).await;
        assert!(!near.state.update_asked);
        let ask = [KEY_UPDATE, 0, 0, 1, 1];
        seal_small(&mut near.state.sealer, Content::Handshake, &ask, &mut near.state.unsent.bytes).unwrap();
        near.state.sealer = Sealer::new(near.state.session.next_to_seal().unwrap()).unwrap();
        echo(&mut near, &mut far).await;
        assert!(far.state.update_asked);
        echo(&mut far, &mut near).await;
        assert!(!far.state.update_asked);
    }
}

#[tokio::test]
async fn rustls_asks_for_keys_and_gets_them() {
    let (client, server) = credentials();
    let (near, far) = tcp_pair().await;
    let id = SERVER.parse().unwrap();
    let (ours, theirs) = tokio::join!(
        client.connect(near, &id, MeshProtocol::Tcp),
        TlsAcceptor::from(server.configs.server.clone()).accept(far)
    );
    let (mut ours, mut theirs) = (ours.unwrap().0, theirs.unwrap());
    for _ in 0..3 {
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        echo(&mut theirs, &mut ours).await;
        assert!(ours.state.update_asked, "rustls asks for the peer's next key, too");
        echo(&mut ours, &mut theirs).await;
    }
}

#[tokio::test]
async fn small_buffers_get_everything() {
    let (mut near, mut far) = pair().await;
    let sent: Vec<u8> = (0..50_000u32).map(|index| (index % 253) as u8).collect();
    near.write_all(&sent).await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = Vec::new();
    let mut small = [0; 777];
    loop {
        match far.read(&mut small).await.unwrap() {
            0 => break,
            count => got.extend_from_slice(&small[..count]),
        }
        let held = far.state.sealed.bytes.capacity() + far.state.opened.bytes.capacity();
        assert!(held <= 2 * LONGEST_BYTES, "{held}");
    }
    assert!(got == sent);
    assert_eq!((far.state.sealed.bytes.capacity(), far.state.opened.bytes.capacity()), (0, 0));
}

#[tokio::test]
async fn an_idle_stream_holds_no_buffer() {
    let (mut near, mut far) = pair().await;
    echo(&mut near, &mut far).await;
    echo(&mut far, &mut near).await;
    for stream in [&near, &far] {
        for kept in [&stream.state.sealed, &stream.state.opened, &stream.state.unsent] {
            assert_eq!(kept.bytes.capacity(), 0);
        }
        assert!(size_of_val(stream) <= 64 && size_of_val(&*stream.state) <= 2048, "{}", size_of_val(&*stream.state));
    }
}

#[tokio::test]
async fn from_a_socket_into_records() {
    let (mut near, mut far) = pair().await;
    let (mut client, source) = tcp_pair().await;
    let sent: Vec<u8> = (0..1_000_000u32).map(|index| (index % 241) as u8).collect();
    let pass = async {
        loop {
            let polled = poll_fn(|cx| near.poll_write_from(cx, &source)).await.unwrap();
            if polled == 0 {
                return near.shutdown().await.unwrap();
            }
        }
    };
    let write = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (read, (), ()) = tokio::join!(far.read_to_end(&mut got), pass, write);
    read.unwrap();
    assert!(got == sent);
}

#[tokio::test]
async fn a_changed_record_is_refused_and_said_so() {
    let (mut near, mut far) = in_memory().await;
    let mut record = Vec::new();
    seal_small(&mut near.state.sealer, Content::Data, b"data", &mut record).unwrap();
    record[7] ^= 1;
    near.io.write_all(&record).await.unwrap();
    let error = far.read(&mut [0; 100]).await.unwrap_err();
    assert_eq!(refused(&error), Some(&Error::DecryptError));
    assert!(far.read(&mut [0; 100]).await.is_err(), "it stays so");
    assert!(far.write(b"more").await.is_err());
    let told = near.read(&mut [0; 100]).await.unwrap_err();
    assert_eq!(refused(&told), Some(&Error::AlertReceived(AlertDescription::BadRecordMac)));
}

#[tokio::test]
async fn data_before_a_fault_is_not_lost() {
    for room in [100, 3] {
        let (mut near, mut far) = in_memory().await;
        let mut records = Vec::new();
        seal_small(&mut near.state.sealer, Content::Data, b"data", &mut records).unwrap();
        seal_small(&mut near.state.sealer, Content::Alert, &[2, 80], &mut records).unwrap();
        near.io.write_all(&records).await.unwrap();
        let (mut got, mut buf) = (Vec::new(), vec![0; room]);
        let error = loop {
            match far.read(&mut buf).await {
                Ok(count) => got.extend_from_slice(&buf[..count]),
                Err(error) => break error,
            }
        };
        assert_eq!(got, b"data");
        assert_eq!(refused(&error), Some(&Error::AlertReceived(AlertDescription::InternalError)));
    }
}

#[tokio::test]
async fn messages_after_the_handshake_may_share_a_record() {
    let ticket = |count: u8| [&[NEW_SESSION_TICKET, 0, 0, count][..], &vec![7; count.into()]].concat();
    let update = vec![KEY_UPDATE, 0, 0, 1, 1];
    for messages in
        [[ticket(10), update.clone()].concat(), [ticket(0), ticket(200), ticket(1), update.clone()].concat(), ticket(3)]
    {
        // All in one record, and cut in two wherever a ticket's content is.
        let cuts = (4..messages.len()).filter(|cut| messages[*cut] == 7 || messages[cut - 1] == 7);
        for cut in [0].into_iter().chain(cuts) {
            let (mut near, mut far) = in_memory().await;
            for part in [&messages[..cut], &messages[cut..]] {
                if !part.is_empty() {
                    seal_small(&mut far.state.sealer, Content::Handshake, part, &mut far.state.unsent.bytes).unwrap();
                }
            }
            let updated = messages.ends_with(&update);
            if updated {
                far.state.sealer = Sealer::new(far.state.session.next_to_seal().unwrap()).unwrap();
            }
            echo(&mut far, &mut near).await;
            assert_eq!((near.state.update_asked, near.state.ticket_left), (updated, 0), "{cut}");
        }
    }
    // Of a server's messages, a client sends none.
    let (mut near, mut far) = in_memory().await;
    let mut record = Vec::new();
    seal_small(&mut near.state.sealer, Content::Handshake, &ticket(10), &mut record).unwrap();
    near.io.write_all(&record).await.unwrap();
    assert!(far.read(&mut [0; 100]).await.is_err());
}

#[tokio::test]
async fn records_in_pieces_are_put_together() {
    for piece in [1, 4, 5, 6, 1000, 16_384] {
        let (mut near, mut far) = in_memory().await;
        let sent: Vec<u8> = (0..20_000u32).map(|index| (index % 239) as u8).collect();
        let mut sealed = Vec::new();
        near.state.seal(&[IoSlice::new(&sent)], &mut sealed).unwrap();
        let mut got = vec![0; sent.len()];
        let write = async {
            for piece in sealed.chunks(piece) {
                near.io.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (read, ()) = tokio::join!(far.read_exact(&mut got), write);
        read.unwrap();
        assert!(got == sent && far.state.sealed.bytes.capacity() == 0, "{piece}");
    }
}

#[tokio::test]
async fn records_that_must_not_come_are_refused() {
    let data = Content::Data as u8;
    for (what, record) in [
        ("too long", vec![data, 3, 3, 0x41, 1]),
        ("change cipher spec", vec![20, 3, 3, 0, 1, 1]),
        ("an alert in clear", vec![21, 3, 3, 0, 2, 2, 40]),
        ("nothing but a tag", [vec![data, 3, 3, 0, 16], vec![0; 16]].concat()),
        ("less than a tag", vec![data, 3, 3, 0, 1, 0]),
        ("empty", vec![data, 3, 3, 0, 0]),
    ] {
        let (mut near, mut far) = in_memory().await;
        near.io.write_all(&record).await.unwrap();
        let error = far.read(&mut [0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
    }
    // Sealed with the right key, and yet nothing that may come.
    for (content, inside) in [
        (Content::Handshake, &[1, 0, 0, 1, 0][..]),
        (Content::Handshake, &[KEY_UPDATE, 0, 0, 1, 2]),
        (Content::Handshake, &[KEY_UPDATE, 0, 0, 1]),
        (Content::Handshake, &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0]),
        (Content::Handshake, &[NEW_SESSION_TICKET, 0, 0, 1, 0]),
        (Content::Handshake, &[]),
        (Content::Alert, &[1]),
        (Content::Alert, &[2, 80]),
    ] {
        let (mut near, mut far) = in_memory().await;
        let mut record = Vec::new();
        seal_small(&mut near.state.sealer, content, inside, &mut record).unwrap();
        near.io.write_all(&record).await.unwrap();
        assert!(far.read(&mut [0; 100]).await.is_err(), "{content:?} {inside:?}");
    }
}

#[tokio::test]
async fn records_without_data_are_taken_up_to_a_number() {
    for (count, passes) in [(EMPTY_RECORDS, true), (EMPTY_RECORDS + 1, false)] {
        let (mut near, mut far) = in_memory().await;
        let mut records = Vec::new();
        for _ in 0..count {
            seal_small(&mut near.state.sealer, Content::Data, b"", &mut records).unwrap();
        }
        seal_small(&mut near.state.sealer, Content::Data, b"data", &mut records).unwrap();
        near.io.write_all(&records).await.unwrap();
        assert_eq!(far.read(&mut [0; 100]).await.is_ok(), passes);
    }
}

/// RFC 8446 5.4.
#[tokio::test]
async fn padding_is_taken_off() {
    let (mut near, mut far) = in_memory().await;
    let mut record = Vec::new();
    // The type that sealing appends is the padding's last byte: zero it by sealing by hand.
    record.extend_from_slice(&[0; HEADER_BYTES]);
    record.extend_from_slice(b"data\x17\0\0\0");
    record.extend_from_slice(&[0; EXPANSION]);
    near.state.sealer.seal_padded(&mut record).unwrap();
    near.io.write_all(&record).await.unwrap();
    let mut got = [0; 100];
    assert_eq!(far.read(&mut got).await.unwrap(), 4);
    assert_eq!(&got[..4], b"data");
}

#[tokio::test]
async fn an_end_without_close_notify_is_none() {
    let (mut near, mut far) = in_memory().await;
    echo(&mut near, &mut far).await;
    near.io.shutdown().await.unwrap();
    assert_eq!(far.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let (mut near, mut far) = in_memory().await;
    near.write_all(b"last").await.unwrap();
    near.shutdown().await.unwrap();
    // After close_notify, nothing counts.
    near.io.write_all(b"\x17\x03\x03").await.unwrap_or_default();
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    far.write_all(b"answer").await.unwrap();
    let mut got = [0; 6];
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"answer");
}

/// Whoever stops reading costs one batch at most, and gets everything when it goes on.
#[tokio::test]
async fn what_cannot_be_sent_is_kept_and_bounded() {
    let (near, far) = pair().await;
    let (one, other) = duplex(1000);
    let (mut near, mut far) = (TlsStream { io: one, state: near.state }, TlsStream { io: other, state: far.state });
    let sent = vec![5; 400_000];
    let mut taken = 0;
    let waker = std::task::Waker::noop();
    let mut cx = Context::from_waker(waker);
    while let Poll::Ready(count) = Pin::new(&mut near).poll_write(&mut cx, &sent[taken..]) {
        taken += count.unwrap();
    }
    assert!(taken <= BATCH * CONTENT_BYTES && near.state.unsent.left().len() <= BATCH_BYTES, "{taken}");
    let write = async {
        near.write_all(&sent[taken..]).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (read, ()) = tokio::join!(far.read_to_end(&mut got), write);
    read.unwrap();
    assert!(got == sent);
}
