//! Application protocols that proxies offer each other in the TLS handshake. Their presence is what
//! tells mesh traffic from the application's own TLS, and spares the inbound side any detection.

/// HTTP/1.1 inside mesh TLS.
pub const HTTP1: &[u8] = b"leno1/h1";
/// HTTP/2 inside mesh TLS.
pub const HTTP2: &[u8] = b"leno1/h2";
/// Opaque bytes inside mesh TLS.
pub const TCP: &[u8] = b"leno1/tcp";
/// All of them, in the order of preference.
pub const ALL: [&[u8]; 3] = [HTTP2, HTTP1, TCP];
