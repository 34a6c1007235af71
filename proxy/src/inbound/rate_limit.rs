//! Rate limits of one port of the workload: which of them a request falls under, whether all of them admit it, and what it
//! is told. Decided before the application sees the request.
//!
//! A request is admitted if every limit whose matches hold for it has a token, and takes one of each; if one has none,
//! nothing is taken from any. A client's key is its verified service account, its address (an IPv6 client's /64, all of
//! which it has), or a header's value; requests without one (no mesh identity, no such header) share a bucket of their
//! own, so that nobody escapes by leaving it out. Limits are this proxy's, shared by its workers ([`ledger`]).

pub mod bucket;
mod fields;
pub mod ledger;

use std::{fmt, net::IpAddr, sync::Arc, time::Instant};

use http::HeaderName;
use leno_proto::spiffe::SpiffeId;
use metrics::{Counter, Label};

use self::{
    bucket::{Rate, nanos},
    ledger::{Bucket, Ledger},
};
use super::Client;
use crate::{
    error::RateLimited,
    http::head::{Fields, RequestHead},
    policy::http_match::HttpMatch,
    telemetry::register_counter,
};

/// The limits of one port, in the policy's order.
#[derive(Debug)]
pub struct RateLimits {
    /// "InboundPolicy shop/cart"
    pub origin: Arc<str>,
    /// Whether answers to admitted requests tell how much is left.
    pub headers: bool,
    pub limits: Box<[RateLimit]>,
}

/// See [`RateLimits`].
#[derive(Debug)]
pub struct RateLimit {
    /// Unique in its policy.
    pub name: Arc<str>,
    pub requests: u32,
    /// The time for so many, in seconds.
    pub per: u32,
    pub rate: Rate,
    /// One must hold; none: all requests.
    pub matches: Box<[HttpMatch]>,
    pub key: Option<Key>,
    ledger: Arc<Ledger>,
    refused: Counter,
}

/// What a limit is counted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The service account that the client's certificate names.
    ClientIdentity,
    SourceAddress,
    Header(HeaderName),
}

/// What an admitted request is told in its answer.
#[derive(Debug)]
pub struct Standing {
    policy: String,
    standing: String,
}

impl RateLimits {
    /// Takes over what was spent of limits that stay the same.
    pub fn carry_over(&mut self, held: &Self) {
        if held.origin != self.origin {
            return;
        }
        for limit in &mut self.limits {
            let same = |old: &&RateLimit| old.name == limit.name && old.rate == limit.rate && old.key == limit.key;
            if let Some(old) = held.limits.iter().find(same) {
                limit.ledger = Arc::clone(&old.ledger);
            }
        }
    }

    /// Admits a request or not; in any case with what it is told.
    pub(crate) fn admit(
        &self,
        request: &RequestHead,
        client: &Client,
        now: Instant,
    ) -> Result<Option<Standing>, Box<RateLimited>> {
        let now = nanos(now);
        let mut taken: Vec<Taken<'_>> = Vec::new();
        let mut refused = None;
        for limit in self.limits.iter().filter(|limit| limit.holds(request)) {
            let key = limit.key_of(request, client);
            if refused.is_none() {
                match limit.ledger.take(&limit.rate, key, now) {
                    Ok((bucket, full_at)) => {
                        taken.push(Taken { limit, key, bucket: Some(bucket), full_at });
                        continue;
                    }
                    Err(wait) => refused = Some((limit, wait)),
                }
            }
            let full_at = limit.ledger.full_at(key);
            let wait = limit.rate.wait(full_at, now);
            refused = refused.map(|(by, longest)| if wait > longest { (limit, wait) } else { (by, longest) });
            taken.push(Taken { limit, key, bucket: None, full_at });
        }
        if taken.is_empty() {
            return Ok(None);
        }
        let Some((by, wait)) = refused else {
            return Ok(self.headers.then(|| told(&taken, now)));
        };
        for one in &mut taken {
            if let Some(bucket) = one.bucket {
                one.limit.ledger.put_back(&one.limit.rate, bucket);
                one.full_at = one.limit.ledger.full_at(one.key);
            }
        }
        by.refused.increment(1);
        let Standing { policy, standing } = told(&taken, now);
        Err(Box::new(RateLimited {
            origin: Arc::clone(&self.origin),
            limit: Arc::clone(&by.name),
            retry_after: fields::seconds(wait).max(1),
            policy,
            standing,
        }))
    }
}

/// How full a limit is for a request, which takes nothing by being asked about.
#[derive(Debug)]
pub(crate) struct Fill {
    name: Arc<str>,
    amount: (u32, u32),
    key: String,
    /// Its matches hold for the request.
    pub(crate) matches: bool,
    /// Tokens that are left. None: who asks is not known, and each has a bucket of its own.
    left: Option<u64>,
}

impl Fill {
    /// Whether a request would be refused now.
    pub(crate) fn is_empty(&self) -> bool {
        self.left == Some(0)
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, per) = self.amount;
        write!(f, "{}: {requests} in {per} s, {}", self.name, self.key)?;
        match self.left {
            _ if !self.matches => f.write_str("; not for this request"),
            Some(0) => f.write_str("; nothing is left: refused"),
            Some(left) => write!(f, "; {left} left"),
            None => f.write_str("; what is left depends on the client"),
        }
    }
}

impl RateLimits {
    /// How full each limit is for a request. `address`: None if it is not known where it comes from.
    pub(crate) fn fills(
        &self,
        request: &RequestHead,
        identity: Option<&SpiffeId>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Vec<Fill> {
        let now = nanos(now);
        let fill = |limit: &RateLimit| {
            let key = match &limit.key {
                None => Some(0),
                Some(Key::ClientIdentity) => Some(limit.identity_key(identity)),
                Some(Key::SourceAddress) => address.map(|address| limit.address_key(address)),
                Some(Key::Header(name)) => Some(limit.header_key(request, name)),
            };
            Fill {
                name: Arc::clone(&limit.name),
                amount: (limit.requests, limit.per),
                key: limit.key.as_ref().map_or_else(|| "all together".to_owned(), Key::to_string),
                matches: limit.holds(request),
                left: key.map(|key| limit.rate.remaining(limit.ledger.full_at(key), now)),
            }
        };
        self.limits.iter().map(fill).collect()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientIdentity => f.write_str("for each client identity"),
            Self::SourceAddress => f.write_str("for each source address"),
            Self::Header(name) => write!(f, "for each value of the header {name}"),
        }
    }
}

/// A limit that a request falls under.
struct Taken<'a> {
    limit: &'a RateLimit,
    key: u64,
    /// None: nothing was taken.
    bucket: Option<Bucket>,
    full_at: u64,
}

fn told(taken: &[Taken<'_>], now: u64) -> Standing {
    let mut told = Standing { policy: String::new(), standing: String::new() };
    for Taken { limit, full_at, .. } in taken {
        if !told.policy.is_empty() {
            told.policy.push_str(", ");
        }
        told.policy.push_str(&fields::policy(&limit.name, limit.requests, limit.per));
        fields::standing(&mut told.standing, &limit.name, &limit.rate, *full_at, now);
    }
    told
}

impl Standing {
    /// Into an answer's head. Fields of these names by the application stay: they are lists.
    pub fn write(&self, head: &mut Fields) {
        head.push(b"ratelimit-policy", self.policy.as_bytes());
        head.push(b"ratelimit", self.standing.as_bytes());
    }
}

impl RateLimit {
    /// A limit of which nothing is spent. `port` and `origin` are for its metrics.
    pub fn new(
        (port, origin): (u16, &str),
        name: Arc<str>,
        (requests, per): (u32, u32),
        rate: Rate,
        matches: Box<[HttpMatch]>,
        key: Option<Key>,
    ) -> Self {
        let labels = [
            Label::new("port", port.to_string()),
            Label::new("policy", origin.to_owned()),
            Label::new("limit", name.to_string()),
        ];
        let refused = register_counter("leno_rate_limited_total", &labels, &[]);
        let ledger = Arc::new(Ledger::new(key.is_some()));
        Self { name, requests, per, rate, matches, key, ledger, refused }
    }

    fn holds(&self, request: &RequestHead) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.holds(request).is_some())
    }

    fn key_of(&self, request: &RequestHead, client: &Client) -> u64 {
        match &self.key {
            None => 0,
            Some(Key::ClientIdentity) => self.identity_key(client.identity.as_ref()),
            Some(Key::SourceAddress) => self.address_key(client.address.ip()),
            Some(Key::Header(name)) => self.header_key(request, name),
        }
    }

    fn identity_key(&self, identity: Option<&SpiffeId>) -> u64 {
        self.ledger.key(identity.map_or(b"", |identity| identity.as_str().as_bytes()))
    }

    fn address_key(&self, address: IpAddr) -> u64 {
        match address.to_canonical() {
            IpAddr::V4(address) => self.ledger.key(&address.octets()),
            IpAddr::V6(address) => self.ledger.key(address.octets().get(..8).unwrap_or_default()),
        }
    }

    fn header_key(&self, request: &RequestHead, name: &HeaderName) -> u64 {
        self.ledger.header_key(request.fields.values(name.as_str().as_bytes()))
    }

    /// Clients that have a bucket of their own.
    pub fn keys(&self) -> usize {
        self.ledger.keys()
    }
}

#[cfg(test)]
mod tests;
