//! Reads SNI and ALPN out of a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3, RFC 7301), which may span
//! several records and reads. Never decrypts, never allocates more than the names.
