use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::*;

fn http1() -> Option<Spoken> {
    Some(Spoken::Http1)
}

fn opaque() -> Option<Spoken> {
    Some(Spoken::Opaque)
}

fn tls(name: &str) -> Option<Spoken> {
    Some(Spoken::Tls { server_name: Some(name.to_owned()) })
}

/// A ClientHello as rustls sends it.
fn hello(name: Option<&str>, alpn: &[&[u8]]) -> Vec<u8> {
    hello_in_fragments(name, alpn, None)
}

fn hello_in_fragments(name: Option<&str>, alpn: &[&[u8]], fragment: Option<usize>) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.enable_sni = name.is_some();
    config.max_fragment_size = fragment;
    let name = ServerName::try_from(name.unwrap_or("unused.example").to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// The answer, and that every shorter read says either nothing or the same.
fn classify_each_prefix(bytes: &[u8]) -> Option<Spoken> {
    let whole = classify(bytes);
    for end in 0..bytes.len() {
        let so_far = classify(&bytes[..end]);
        assert!(so_far.is_none() || so_far == whole, "{end} bytes say {so_far:?}, all say {whole:?}");
    }
    whole
}

#[test]
fn http_1_by_its_request_line() {
    for line in [
        "GET / HTTP/1.1\r\n",
        "GET /",
        "POST /a?b=c",
        "GET http://example.com/ HTTP/1.1\r\n",
        "CONNECT example.com:443 HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "PROPFIND /dav HTTP/1.0\r\n",
        "M-SEARCH * HTTP/1.1\r\n",
        "PRI * HTTP/1.1\r\n",
        "GET h\u{e9} HTTP/1.1\r\n",
        "AVERYLONGMETHODTHATSOMESERVERSTAKEFORANYOTHER / HTTP/1.1\r\n",
    ] {
        assert_eq!(classify_each_prefix(line.as_bytes()), http1(), "{line}");
    }
    for partial in ["", "G", "GET", "GET ", "OPTIONS *", "OPTIONS * HTTP/1", "P", "PROPFIND /x HTTP"] {
        assert_eq!(classify(partial.as_bytes()), None, "{partial}");
    }
}

#[test]
fn http_2_by_its_whole_preface() {
    assert_eq!(classify_each_prefix(HTTP2_PREFACE), Some(Spoken::Http2));
    assert_eq!(classify_each_prefix(&[HTTP2_PREFACE, b"\0\0\0\x04"].concat()), Some(Spoken::Http2));
    assert_eq!(classify(&HTTP2_PREFACE[..23]), None);
    assert_eq!(classify(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r"), opaque());
}

#[test]
fn the_rest_is_opaque_at_the_first_byte_that_tells() {
    for bytes in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        b"GET key\r\n",
        b"EHLO example.com\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b" GET / HTTP/2.0\r\n",
        b"\r\nPING\r\n",
        b"SET key \"see HTTP/1.1, below\"\r\n",
        b"aaaaaaaaaabbbbbbbbbbccccccccccddd=",
        b"FOO /x HTTP/2.0\r\n",
        b"FOO /x HTTQ\r\n",
        b"\x16\x04\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x05\x02",
        b"\x16\x03\x01\xff",
    ] {
        assert_eq!(classify_each_prefix(bytes), opaque(), "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(classify(b"*1"), None, "could still be a method");
    assert_eq!(classify(b"\x15"), opaque());
}

#[test]
fn malformed_request_lines_are_http_to_be_refused() {
    for bytes in [
        &b"GET  / HTTP/1.1\r\n"[..],
        b"GET\t/ HTTP/1.1\r\n",
        b"POST /x  HTTP/1.1\n",
        b"\r\nGET / HTTP/1.1\r\n",
        b"FOO\t /x y HTTP/1.0\r\n",
        b" GET / HTTP/1.1\r\n",
        b"GET\x0b/\x0cHTTP/1.1 \r\n",
        b"POST a b HTTP/1.1\r\n",
        b"POST a\x00b HTTP/1.1\n",
        b"GET\r/ HTTP/1.1\r\n",
    ] {
        assert_eq!(classify_each_prefix(bytes), Some(Spoken::Http1), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn tls_by_its_client_hello() {
    assert_eq!(classify_each_prefix(&hello(Some("Shop.Example"), &[])), tls("shop.example"));
    assert_eq!(classify_each_prefix(&hello(Some("a.example"), &[b"h2", b"http/1.1"])), tls("a.example"));
    assert_eq!(classify_each_prefix(&hello(None, &[])), Some(Spoken::Tls { server_name: None }));
    assert_eq!(classify_each_prefix(&hello(None, &[b"leno1/h2"])), Some(Spoken::MeshTls));
    assert_eq!(classify_each_prefix(&hello(None, &leno_proto::alpn::ALL)), Some(Spoken::MeshTls));
    assert_eq!(
        classify_each_prefix(&hello(Some("a.example"), &[b"leno1/h2", b"h2"])),
        tls("a.example"),
        "an application may offer what it likes: all must be ours"
    );
}

#[test]
fn a_hello_in_several_records_is_one_hello() {
    for fragment in [32, 100, 512] {
        let bytes = hello_in_fragments(Some("split.example"), &[b"h2"], Some(fragment));
        assert_eq!(classify_each_prefix(&bytes), tls("split.example"));
        let bytes = hello_in_fragments(None, &[b"leno1/tcp"], Some(fragment));
        assert_eq!(classify_each_prefix(&bytes), Some(Spoken::MeshTls));
    }
}

#[test]
fn a_hello_too_large_to_wait_for_is_still_tls() {
    let large = b"\x16\x03\x01\x40\x00\x01\x00\x50\x00";
    assert_eq!(classify(large), Some(Spoken::Tls { server_name: None }));
    // Whatever follows.
    let split = b"\x16\x03\x01\x00\x04\x01\x00\x50\x00no record";
    assert_eq!(classify_each_prefix(split), Some(Spoken::Tls { server_name: None }));
}

proptest! {
    #[test]
    fn any_bytes_are_classified_and_more_change_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        classify_each_prefix(&bytes);
    }

    #[test]
    fn bytes_like_requests(text in "(GET|PRI|PUT|X!|[A-Z]{1,40})[ /*]{1,2}[ -~]{0,20}( HTTP/[12]\\.[01]\r\n)?[ -~\r\n]{0,9}") {
        classify_each_prefix(text.as_bytes());
    }

    #[test]
    fn bytes_like_hellos(mut bytes in Just(hello(Some("a.example"), &[b"leno1/h2"])), at in 0usize..1400, to in any::<u8>(), cut in 0usize..1500) {
        let at = at % bytes.len();
        bytes[at] = to;
        bytes.truncate(cut);
        classify_each_prefix(&bytes);
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn a_silent_client_is_waited_for_only_so_long_and_loses_no_byte() {
    let (mut client, server) = pair().await;
    client.write_all(b"GE").await.unwrap();
    let first = first_bytes(Bytes::new(), server, Some(Duration::from_millis(50))).await.unwrap();
    let FirstBytes::Silent(stream) = first else { panic!("{first:?}") };
    let (already, server) = stream.into_parts();
    assert_eq!(&already[..], b"GE");
    client.write_all(b"T / HTTP/1.1\r\n").await.unwrap();
    let first = first_bytes(already, server, None).await.unwrap();
    let FirstBytes::Spoken(Spoken::Http1, stream) = first else { panic!("{first:?}") };
    assert_eq!(&stream.prefix()[..], b"GET / HTTP/1.1\r\n");
}

#[tokio::test]
async fn no_timer_takes_a_hello_in_pieces_for_silence() {
    let bytes = hello(None, &[b"leno1/h2"]);
    for cut in [1, 5, 100] {
        let (half, rest) = bytes.split_at(cut);
        let (mut client, server) = tokio::io::duplex(bytes.len());
        client.write_all(half).await.unwrap();
        let rest = async {
            // Long past the wait.
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.write_all(rest).await.unwrap();
        };
        let (first, ()) = tokio::join!(first_bytes(Bytes::new(), server, Some(Duration::ZERO)), rest);
        let FirstBytes::Spoken(Spoken::MeshTls, stream) = first.unwrap() else { panic!("cut at {cut}") };
        assert_eq!(stream.prefix().len(), bytes.len());
    }
}

#[tokio::test]
async fn a_client_that_closes() {
    let (client, server) = pair().await;
    drop(client);
    assert!(matches!(first_bytes(Bytes::new(), server, None).await.unwrap(), FirstBytes::Closed));

    let (mut client, server) = pair().await;
    client.write_all(b"HEL").await.unwrap();
    drop(client);
    let first = first_bytes(Bytes::new(), server, None).await.unwrap();
    assert!(matches!(first, FirstBytes::Spoken(Spoken::Opaque, _)), "{first:?}");
}

#[tokio::test]
async fn a_request_line_without_end_is_http_at_the_limit() {
    for start in [&b"FOO /"[..], b"POST a ", b"\r\n"] {
        let (mut client, server) = pair().await;
        let endless: Vec<u8> = start.iter().chain([b'\r'].iter().cycle()).copied().take(limits::PEEK_BYTES).collect();
        let (sent, first) = tokio::join!(client.write_all(&endless), first_bytes(Bytes::new(), server, None));
        sent.unwrap();
        let FirstBytes::Spoken(Spoken::Http1, stream) = first.unwrap() else { panic!() };
        assert_eq!(stream.prefix().len(), limits::PEEK_BYTES);
    }
}

#[test]
fn a_server_that_speaks_http_still_waits() {
    assert_eq!(classify_server(b"HTTP/1.1 408 Request Timeout\r\n"), ServerSpeaks::Http1);
    // Settings of grpc-go, of nghttp2, and none.
    for settings in [&b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0"[..], b"\0\0\x12\x04\0\0\0\0\0", b"\0\0\0\x04\0\0\0\0\0"]
    {
        assert_eq!(classify_server(settings), ServerSpeaks::Http2);
    }
    for other in
        [&b""[..], b"220 ready\r\n", b"\x4a\0\0\0\x0a8.0", b"\0\0\x06\x04\0\0\0\0\x01", b"\0\0\x05\x04\0\0\0\0\0"]
    {
        assert_eq!(classify_server(other), ServerSpeaks::Opaque);
    }
}

#[tokio::test]
async fn waiting_for_bytes_holds_no_buffer() {
    let (_client, server) = pair().await;
    let waiting = first_bytes(Bytes::new(), server, None);
    assert!(size_of_val(&waiting) < 512, "{}", size_of_val(&waiting));
}
