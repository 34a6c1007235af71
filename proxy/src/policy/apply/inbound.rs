//! The workload's own ports.

use std::{collections::HashSet, sync::Arc};

use http::HeaderName;
use leno_proto::{
    pattern::{self, Patterns},
    v1::{self, concurrency::Mode, rate_limit},
};

use super::{Invalid, destination::object_text, http::parse_match, parse_port, parse_protocol};
use crate::{
    config::limits,
    inbound::{
        concurrency::Concurrency,
        protection::PortPolicy,
        rate_limit::{Key, RateLimit, RateLimits, bucket::Rate},
    },
    policy::{Inbound, InboundPort},
};

/// `held`: what is in force, of which limits that stay the same keep what was spent.
pub(super) fn parse(inbound: v1::Inbound, held: Option<&Inbound>) -> Result<Inbound, Invalid> {
    let strict = match v1::inbound::Mode::try_from(inbound.mode) {
        Ok(v1::inbound::Mode::Strict) => true,
        Ok(v1::inbound::Mode::Permissive) => false,
        Ok(v1::inbound::Mode::Unspecified) | Err(_) => {
            return Err(Invalid::new("mode", format!("{} is not a mode that is known", inbound.mode)));
        }
    };
    let mode_origin = inbound.mode_origin.as_ref().map(object_text);
    let zone = inbound.zone.as_str().into();
    let mut patterns = Patterns::within(pattern::OF_RESOURCE);
    let mut ports = Vec::with_capacity(inbound.ports.len());
    for (index, entry) in inbound.ports.into_iter().enumerate() {
        let port = port(entry, held, &mut patterns);
        ports.push(port.map_err(|invalid| invalid.within(format!("ports[{index}]")))?);
    }
    ports.sort_by_key(|port| port.port);
    ports.dedup_by_key(|port| port.port);
    Ok(Inbound { strict, mode_origin, zone, ports })
}

fn port(entry: v1::InboundPort, held: Option<&Inbound>, patterns: &mut Patterns) -> Result<InboundPort, Invalid> {
    let (port, protocol) = (parse_port(entry.port)?, parse_protocol(entry.protocol)?);
    let mut policy = match entry.policy {
        Some(policy) => self::policy(port, policy, patterns).map_err(|invalid| invalid.within("policy"))?,
        None => PortPolicy::default(),
    };
    let before = held.and_then(|held| held.port(port)).and_then(|held| held.policy.rate_limits.as_ref());
    if let (Some(limits), Some(before)) = (policy.rate_limits.as_mut().and_then(Arc::get_mut), before) {
        limits.carry_over(before);
    }
    Ok(InboundPort { port, protocol, policy })
}

fn policy(port: u16, policy: v1::InboundPolicy, patterns: &mut Patterns) -> Result<PortPolicy, Invalid> {
    let origin: Option<Arc<str>> = policy.origin.as_ref().map(object_text);
    let named = origin.clone().unwrap_or_default();
    if policy.rate_limits.len() > limits::RATE_LIMITS {
        let reason = format!("{} limits; at most {} are possible", policy.rate_limits.len(), limits::RATE_LIMITS);
        return Err(Invalid::new("rate_limits", reason));
    }
    let mut parsed: Vec<RateLimit> = Vec::with_capacity(policy.rate_limits.len());
    let mut names = HashSet::new();
    for (index, one) in policy.rate_limits.into_iter().enumerate() {
        let at = |invalid: Invalid| invalid.within(format!("rate_limits[{index}]"));
        if !names.insert(one.name.clone()) {
            return Err(at(Invalid::new("name", format!("{:?} is there twice", one.name))));
        }
        parsed.push(rate_limit((port, &named), one, patterns).map_err(at)?);
    }
    let headers = !policy.quiet;
    let rate_limits =
        (!parsed.is_empty()).then(|| Arc::new(RateLimits { origin: named, headers, limits: parsed.into() }));
    Ok(PortPolicy {
        origin,
        rate_limits,
        concurrency: concurrency(policy.concurrency).map_err(|invalid| invalid.within("concurrency"))?,
        max_connections: Some(policy.max_connections).filter(|most| *most != 0),
        max_head: Some(policy.max_head_bytes).filter(|most| *most != 0),
        max_body: Some(policy.max_body_bytes).filter(|most| *most != 0),
    })
}

fn rate_limit(place: (u16, &str), limit: v1::RateLimit, patterns: &mut Patterns) -> Result<RateLimit, Invalid> {
    // It is written into structured fields as it is.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if limit.name.is_empty() || limit.name.len() > 253 || !limit.name.bytes().all(plain) {
        return Err(Invalid::new("name", format!("{:?} is not a name", limit.name)));
    }
    let rate = Rate::new(limit.requests, limit.per_seconds, limit.burst)
        .map_err(|(field, reason)| Invalid::new(if field == "per" { "per_seconds" } else { field }, reason))?;
    let mut matches = Vec::with_capacity(limit.matches.len());
    for (index, one) in limit.matches.into_iter().enumerate() {
        matches.push(parse_match(one, patterns).map_err(|invalid| invalid.within(format!("matches[{index}]")))?);
    }
    let key = match rate_limit::Key::try_from(limit.key) {
        Ok(rate_limit::Key::None) => None,
        Ok(rate_limit::Key::ClientIdentity) => Some(Key::ClientIdentity),
        Ok(rate_limit::Key::SourceAddress) => Some(Key::SourceAddress),
        Ok(rate_limit::Key::Header) => Some(Key::Header(
            HeaderName::from_bytes(limit.header.as_bytes())
                .map_err(|_| Invalid::new("header", format!("{:?} is not a header name", limit.header)))?,
        )),
        Err(_) => return Err(Invalid::new("key", format!("{} is not a key that is known", limit.key))),
    };
    let amount = (limit.requests, limit.per_seconds);
    Ok(RateLimit::new(place, limit.name.into(), amount, rate, matches.into(), key))
}

fn concurrency(concurrency: Option<v1::Concurrency>) -> Result<Concurrency, Invalid> {
    let Some(v1::Concurrency { mode, min, max }) = concurrency else { return Ok(Concurrency::default()) };
    let given = |number: u32, default: u32| if number == 0 { default } else { number };
    match Mode::try_from(mode) {
        Ok(Mode::Off) => Ok(Concurrency::Off),
        Ok(Mode::Fixed) if max == 0 => Err(Invalid::new("max", "a fixed limit must be more than 0")),
        Ok(Mode::Fixed) => Ok(Concurrency::Fixed(max)),
        Ok(Mode::Adaptive) => {
            let (min, max) = (given(min, limits::CONCURRENCY_MIN), given(max, limits::CONCURRENCY_MAX));
            if min > max {
                return Err(Invalid::new("min", format!("{min} is more than max, {max}")));
            }
            Ok(Concurrency::Adaptive { min, max })
        }
        Ok(Mode::Unspecified) | Err(_) => Err(Invalid::new("mode", format!("{mode} is not a mode that is known"))),
    }
}
