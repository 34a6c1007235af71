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
/// All of them, in the order of preference.
pub const ALL: [&[u8]; 4] = [HTTP1_MUX, HTTP2, HTTP1, TCP];
