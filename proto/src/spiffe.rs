//! SPIFFE ids in the one form the mesh uses: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest id accepted, in bytes (SPIFFE-ID 2.3).
pub const MAX_LEN: usize = 2048;

/// A workload's identity. Cheap to clone and compare.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Byte offsets of the end of the trust domain and of the namespace within `text`.
    trust_domain_end: u16,
    namespace_end: u16,
}

/// Why a text is not a SPIFFE id of the mesh's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a workload identity (expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>): {reason}"
)]
pub struct InvalidSpiffeId {
    text: String,
    reason: &'static str,
}

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const SERVICE_ACCOUNT: &str = "/sa/";

impl SpiffeId {
    /// Builds an id from its parts.
    ///
    /// # Errors
    /// If a part is empty or holds a character that SPIFFE does not allow there.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidSpiffeId> {
        format!("{SCHEME}{trust_domain}{NAMESPACE}{namespace}{SERVICE_ACCOUNT}{service_account}").parse()
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// "cluster.local"
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.trust_domain_end) + NAMESPACE.len()..usize::from(self.namespace_end)]
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + SERVICE_ACCOUNT.len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let refuse = |reason| Err(InvalidSpiffeId { text: text.chars().take(MAX_LEN).collect(), reason });
        if text.len() > MAX_LEN {
            return refuse("longer than 2048 bytes");
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return refuse("the scheme is not spiffe");
        };
        let Some((trust_domain, path)) = rest.split_once('/') else {
            return refuse("no path");
        };
        let mut segments = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (segments.next(), segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return refuse("the path is not /ns/<namespace>/sa/<service account>");
        };
        let domain_char = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        let path_char = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if trust_domain.is_empty() || !trust_domain.bytes().all(domain_char) {
            return refuse("the trust domain is empty or holds a character other than a-z 0-9 . - _");
        }
        for part in [namespace, service_account] {
            if part.is_empty() || part == "." || part == ".." || !part.bytes().all(path_char) {
                return refuse("a path segment is empty or holds a character other than a-z A-Z 0-9 . - _");
            }
        }
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + NAMESPACE.len() + namespace.len();
        let (Ok(trust_domain_end), Ok(namespace_end)) = (trust_domain_end.try_into(), namespace_end.try_into()) else {
            return refuse("longer than 2048 bytes");
        };
        Ok(Self { text: text.into(), trust_domain_end, namespace_end })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_trip() {
        let id = SpiffeId::new("cluster.local", "shop", "cart").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("cluster.local", "shop", "cart"));
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe:///ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://cluster.local:80/ns/a/sa/b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
