//! Application protocols that proxies offer each other in the TLS handshake. Their presence is what
//! tells mesh traffic from the application's own TLS, and spares the inbound side any detection.

/// HTTP/1.1 inside mesh TLS.
pub const HTTP1: &[u8] = b"leno1/h1";
/// HTTP/1.1 requests inside mesh TLS, as streams of HTTP/2: what the client and the application speak stays HTTP/1.1, and
/// many requests share a connection and its writes.
pub const HTTP1_MUX: &[u8] = b"leno1/h1-mux";
/// HTTP/2 inside mesh TLS.
pub const HTTP2: &[u8] = b"leno1/h2";
/// Opaque bytes inside mesh TLS.
pub const TCP: &[u8] = b"leno1/tcp";
/// Opaque bytes inside mesh TLS; the server's proxy says [`READY`] before all others, once the application has taken the
/// connection. If it does not, the client's proxy tries another endpoint.
pub const TCP_READY: &[u8] = b"leno1/tcp-ready";
/// The first byte of [`TCP_READY`]: ASCII's ACK.
pub const READY: u8 = 6;
/// All of them, in the order of preference.
pub const ALL: [&[u8]; 5] = [HTTP1_MUX, HTTP2, HTTP1, TCP_READY, TCP];
