//! SNI and ALPN of a ClientHello: no bytes break it, and what rustls accepts is read as rustls reads it.
#![no_main]

use leno_proxy::detect::client_hello::{ClientHello, Parsed, parse};
use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;

fuzz_target!(|bytes: &[u8]| {
    let parsed = parse(bytes);
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(1..) => {}
            _ => return,
        }
        let accepted = match acceptor.accept() {
            Ok(Some(accepted)) => accepted,
            Ok(None) => continue,
            Err(_) => return,
        };
        let theirs = accepted.client_hello();
        // Our limit is lower than theirs, and we let through what they refuse.
        let Parsed::Hello(ClientHello { server_name, mesh }) = parsed else {
            assert!(bytes.len() > 16 * 1024, "{parsed:?}, but rustls takes it for a hello");
            return;
        };
        if bytes.len() > 16 * 1024 {
            return;
        }
        let all_mesh = theirs.alpn().is_some_and(|mut names| names.all(|name| name.starts_with(b"leno1/")));
        assert_eq!(mesh, all_mesh, "what rustls takes for mesh TLS must be taken for it here, and nothing else");
        if let (Some(ours), Some(theirs)) = (server_name, theirs.server_name()) {
            assert!(ours.eq_ignore_ascii_case(theirs.trim_end_matches('.')), "{ours:?}, for rustls {theirs:?}");
        }
        return;
    }
});
