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

/// A header whose name has one of these in it carries secrets: whoever keeps requests for operators does not keep its value. In lower
/// case, with hyphens.
pub const SECRET: [&str; 12] = [
    "api-key",
    "apikey",
    "assertion",
    "authorization",
    "cookie",
    "credential",
    "jwt",
    "passwd",
    "password",
    "secret",
    "session",
    "token",
];

/// Whether a header, in lower case, must be taken to carry secrets. An underscore counts as a hyphen.
pub fn is_secret(name: &str) -> bool {
    let name = name.replace('_', "-");
    SECRET.iter().any(|part| name.contains(part))
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
    #[test]
    fn credentials_are_known_by_parts_of_their_names() {
        let known = [
            "authorization",
            "proxy-authorization",
            "cookie",
            "set-cookie",
            "x-api-key",
            "x_api_key",
            "apikey",
            "x-auth-token",
            "x-csrf-token",
            "x-amz-security-token",
            "x-goog-iap-jwt-assertion",
            "cf-access-jwt-assertion",
            "x-vault-token",
            "private-token",
            "x-client-secret",
            "x-session-id",
            "x-db-password",
            "x-passwd",
            "x-amz-credential",
        ];
        for name in known {
            assert!(is_secret(name), "{name}");
        }
        for name in ["x-request-id", "x-order", "traceparent", "user-agent", "x-author", "idempotency-key", "x-tenant"]
        {
            assert!(!is_secret(name), "{name}");
        }
    }
}
