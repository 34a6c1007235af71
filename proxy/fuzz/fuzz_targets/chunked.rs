//! Chunked bodies: cut anywhere they are read the same, and as hyper reads them; what the codec refuses is never something that
//! it reads otherwise. The first byte says where to cut.
#![no_main]

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use leno_proxy::http::h1::{Decoded, Decoder, Framing};
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWriteExt as _;

/// The body and how many bytes follow it; None: it is not complete; Err: it is broken.
fn read(bytes: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut held = BytesMut::new();
    let mut body = Vec::new();
    let mut left = bytes.len();
    for part in bytes.chunks(step) {
        held.extend_from_slice(part);
        left -= part.len();
        loop {
            match decoder.decode(&mut held).map_err(drop)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::More => break,
                Decoded::End | Decoded::Trailers(_) => return Ok(Some((body, left + held.len()))),
            }
        }
    }
    Ok(None)
}

/// As hyper's server reads it.
fn by_hyper(bytes: &[u8]) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(bytes.len() + 4096);
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write_all(head).await.expect("there is room");
        client.write_all(bytes).await.expect("there is room");
        client.shutdown().await.expect("a pipe");
        let read = std::cell::RefCell::new(None);
        let first = std::cell::Cell::new(true);
        let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async {
            if first.take() {
                *read.borrow_mut() = request.into_body().collect().await.ok().map(|body| body.to_bytes().to_vec());
            }
            Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .max_headers(256)
            .header_read_timeout(None)
            .serve_connection(hyper_util::rt::TokioIo::new(server), service)
            .await;
        read.take()
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let step = usize::from(*step).max(1);
    let whole = read(bytes, bytes.len().max(1));
    let cut = read(bytes, step);
    // A body that is broken after the end of what has come may be noticed later.
    if whole.is_ok() || cut.is_ok() {
        assert_eq!(whole, cut);
    }
    if let Ok(Some((body, _))) = whole {
        assert_eq!(by_hyper(bytes), Some(body));
    }
});
