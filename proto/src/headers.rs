//! Header fields that are the proxy's own: no policy may set, add or remove them. The control plane refuses a document
//! that does, the proxy a resource.

/// Framing and connection management (RFC 9110, 7.6.1), and the host, which is for a rewrite to change. In lower case.
pub const RESERVED: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What proxies tell each other, and the application: `leno-client-id` must be what the certificate said.
/// Some applications take an underscore for a hyphen.
pub const PREFIXES: [&str; 2] = ["leno-", "leno_"];

/// Headers whose values are secrets: whoever keeps requests for operators does not keep these. In lower case.
pub const SECRET: [&str; 12] = [
    "api-key",
    "apikey",
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-auth-token",
    "x-csrf-token",
    "x-xsrf-token",
];

/// Whether a header, in lower case, is known to carry secrets.
pub fn is_secret(name: &str) -> bool {
    SECRET.contains(&name)
}

/// Whether a header, in lower case, is the proxy's own.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frames_a_message_is_the_proxys() {
        for name in RESERVED.into_iter().chain(["leno-client-id", "leno_x"]) {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["x-connection", "accept", "len", "cookie", "grpc-timeout", "authorization"] {
            assert!(!is_reserved(name), "{name}");
        }
    }
}
