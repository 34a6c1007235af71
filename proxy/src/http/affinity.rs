//! The key of a request, by which consistent hashing chooses its endpoint; and the cookie that gives a key to a client that
//! has none.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use super::head::{Name, RequestHead, ResponseHead};
use crate::upstream::balance::{
    hash,
    settings::{HashCookie, HashKey},
};

/// What a request's client is known by beside the request, and the cookie made for it.
pub(crate) struct Affinity<'a> {
    /// Where its connection came from.
    source: Option<SocketAddr>,
    /// The proxy's own workload: whoever calls from the same machine is part of it.
    workload: &'a str,
    cookie: Option<NewCookie>,
}

struct NewCookie {
    key: u64,
    /// For Set-Cookie.
    text: String,
}

impl<'a> Affinity<'a> {
    pub(crate) fn new(source: Option<SocketAddr>, workload: &'a str) -> Self {
        Self { source, workload, cookie: None }
    }

    /// The key that `by` says; None: the request has none. The same for every try.
    pub(crate) fn key(&mut self, by: &HashKey, head: &RequestHead, random: impl FnOnce() -> u64) -> Option<u64> {
        if let Some(value) = value(by, head) {
            return Some(hash::of(value));
        }
        match by {
            HashKey::Header(_) | HashKey::Query(_) => None,
            HashKey::SourceAddress => self.source.map(|source| of_source(source, self.workload)),
            HashKey::Cookie(cookie) => Some(self.cookie.get_or_insert_with(|| NewCookie::new(cookie, random())).key),
        }
    }

    /// Gives the client the cookie that was made for it.
    pub(crate) fn tell(&self, answer: &mut ResponseHead) {
        if let Some(cookie) = &self.cookie {
            answer.fields.push(b"set-cookie", cookie.text.as_bytes());
        }
    }
}

impl NewCookie {
    fn new(HashCookie { name, ttl, path }: &HashCookie, random: u64) -> Self {
        let value = format!("{random:016x}");
        let mut text = format!("{name}={value}; Path={path}; HttpOnly; SameSite=Lax");
        if let Some(ttl) = ttl {
            // Writing to a String does not fail.
            let _ = write!(text, "; Max-Age={}", ttl.as_secs());
        }
        Self { key: hash::of(value.as_bytes()), text }
    }
}

/// What a request itself has for a key; its hash is the key.
pub(crate) fn value<'h>(by: &'h HashKey, head: &'h RequestHead) -> Option<&'h [u8]> {
    match by {
        HashKey::Header(name) if **name == *b"host" => head.authority().map(str::as_bytes),
        HashKey::Header(name) => head.fields.values(name).next(),
        HashKey::Query(name) => parameter(head.query()?, name).map(str::as_bytes),
        HashKey::Cookie(cookie) => cookie_value(head, &cookie.name),
        HashKey::SourceAddress => None,
    }
}

/// The key of what comes from an address. From a loopback address comes the workload itself, by its name, since all of them have
/// the same.
pub(crate) fn of_source(source: SocketAddr, workload: &str) -> u64 {
    match source.ip().to_canonical() {
        address if address.is_loopback() => of_workload(workload),
        IpAddr::V4(address) => hash::of(&address.octets()),
        IpAddr::V6(address) => hash::of(&address.octets()),
    }
}

/// The key of what comes from a loopback address.
pub(crate) fn of_workload(workload: &str) -> u64 {
    hash::of(workload.as_bytes())
}

/// A parameter's first value, as it was written.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// RFC 6265 4.2: `name=value`, with `; ` between cookies.
fn cookie_value<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    let pairs = head.fields.all(Name::Cookie).flat_map(|value| value.split(|byte| *byte == b';'));
    let value = pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    value.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode, Version};

    use super::*;

    fn head(target: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new(Version::HTTP_11, Method::GET, target);
        for (name, value) in fields {
            head.fields.push(name.as_bytes(), value.as_bytes());
        }
        head.set_authority("shop");
        head
    }

    fn key(by: &HashKey, head: &RequestHead) -> Option<u64> {
        Affinity::new("10.0.0.9:1234".parse().ok(), "shop-1").key(by, head, || 7)
    }

    #[test]
    fn keys_are_found_where_policy_says() {
        let of = |text: &str| Some(hash::of(text.as_bytes()));
        let header = HashKey::Header((*b"x-user").into());
        assert_eq!(key(&header, &head("/", &[("X-User", "ann"), ("x-user", "bob")])), of("ann"));
        assert_eq!(key(&header, &head("/", &[])), None);
        assert_eq!(key(&HashKey::Header((*b"host").into()), &head("/", &[])), of("shop"));
        let query = HashKey::Query("user".into());
        assert_eq!(key(&query, &head("/?a=1&user=ann%20b&user=c", &[])), of("ann%20b"));
        assert_eq!(key(&query, &head("/?users=1", &[])), None);
        assert_eq!(key(&query, &head("/", &[])), None);
        assert_eq!(key(&HashKey::SourceAddress, &head("/", &[])), Some(hash::of(&[10, 0, 0, 9])));
        assert_eq!(of_source("[::ffff:10.0.0.9]:1".parse().unwrap(), "w"), hash::of(&[10, 0, 0, 9]));
        assert_eq!(of_source("127.0.0.1:1".parse().unwrap(), "w"), hash::of(b"w"));
    }

    #[test]
    fn a_client_without_the_cookie_is_given_one_that_is_its_key() {
        let settings = HashCookie { name: "shop".into(), ttl: Some(Duration::from_secs(60)), path: "/a".into() };
        let by = HashKey::Cookie(settings);
        let mut affinity = Affinity::new(None, "");
        let first = affinity.key(&by, &head("/", &[("cookie", "shopper=1; shop=")]), || 7);
        assert_eq!(affinity.key(&by, &head("/", &[]), || 8), first, "every try");
        let mut answer = ResponseHead::new(StatusCode::OK);
        affinity.tell(&mut answer);
        let told = answer.fields.values(b"set-cookie").next().unwrap().to_vec();
        assert_eq!(told, b"shop=0000000000000007; Path=/a; HttpOnly; SameSite=Lax; Max-Age=60");

        let mut next = Affinity::new(None, "");
        let cookies = [("cookie", "a=b"), ("cookie", "c=d; shop=0000000000000007")];
        assert_eq!(next.key(&by, &head("/", &cookies), || 9), first);
        let mut answer = ResponseHead::new(StatusCode::OK);
        next.tell(&mut answer);
        assert!(answer.fields.is_empty(), "it has it already");
    }
}
