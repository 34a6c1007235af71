use std::time::Duration;

use http::{Method, Version};
use leno_proto::spiffe::SpiffeId;

use super::*;
use crate::policy::http_match::PathMatch;

fn limit(name: &str, requests: u32, key: Option<Key>) -> RateLimit {
    let rate = Rate::new(requests, 1, requests).unwrap();
    RateLimit::new((8080, "InboundPolicy shop/cart"), name.into(), (requests, 1), rate, Box::default(), key)
}

fn limits(limits: Vec<RateLimit>) -> RateLimits {
    RateLimits { origin: "InboundPolicy shop/cart".into(), headers: true, limits: limits.into() }
}

fn client(address: &str, account: Option<&str>) -> Client {
    let identity = account.map(|name| format!("spiffe://mesh/ns/shop/sa/{name}").parse::<SpiffeId>().unwrap());
    Client { address: address.parse().unwrap(), identity }
}

fn request(path: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new(Version::HTTP_11, Method::GET, path);
    head.fields = fields.iter().copied().collect();
    head
}

/// Requests admitted until the first refusal.
fn admitted(limits: &RateLimits, request: &RequestHead, client: &Client, now: Instant) -> usize {
    std::iter::repeat_with(|| limits.admit(request, client, now)).take_while(Result::is_ok).count()
}

#[test]
fn each_key_has_its_own_tokens() {
    let now = Instant::now();
    let any = request("/", &[]);
    let keyed = |key| limits(vec![limit("a", 2, Some(key))]);

    let by_identity = keyed(Key::ClientIdentity);
    let (web, batch, nobody) =
        (client("10.0.0.1:1", Some("web")), client("10.0.0.1:1", Some("batch")), client("10.0.0.1:1", None));
    for who in [&web, &batch, &nobody] {
        assert_eq!(admitted(&by_identity, &any, who, now), 2);
    }
    assert_eq!(admitted(&by_identity, &any, &client("10.0.0.2:9", None), now), 0, "nobodies share");
    assert_eq!(admitted(&by_identity, &any, &client("10.0.0.2:9", Some("web")), now), 0, "wherever it is");

    let by_address = keyed(Key::SourceAddress);
    for (address, expected) in [
        ("10.0.0.1:1", 2),
        ("10.0.0.1:2", 0),
        ("[::ffff:10.0.0.1]:1", 0),
        ("10.0.0.2:1", 2),
        ("[fd00::1]:1", 2),
        ("[fd00::ffff:1]:1", 0),
        ("[fd00:0:0:1::1]:1", 2),
    ] {
        assert_eq!(admitted(&by_address, &any, &client(address, None), now), expected, "{address}");
    }

    let by_header = keyed(Key::Header("x-key".parse().unwrap()));
    for (fields, expected) in [
        (&[("x-key", "1")][..], 2),
        (&[("x-key", "1"), ("x-other", "2")], 0),
        (&[("x-key", "2")], 2),
        (&[("x-key", "1"), ("x-key", "2")], 2),
        (&[("x-key", "")], 2),
        (&[], 2),
        (&[("x-other", "2")], 0),
    ] {
        assert_eq!(admitted(&by_header, &request("/", fields), &web, now), expected, "{fields:?}");
    }
}

#[test]
fn all_must_admit_and_nothing_is_taken_if_one_refuses() {
    let now = Instant::now();
    let mut narrow = limit("narrow", 1, None);
    narrow.matches = Box::new([HttpMatch { path: PathMatch::prefix("/api"), ..HttpMatch::default() }]);
    let limits = limits(vec![limit("wide", 5, None), narrow]);
    let web = client("10.0.0.1:1", None);
    assert_eq!(admitted(&limits, &request("/api", &[]), &web, now), 1);
    for _ in 0..10 {
        assert!(limits.admit(&request("/api/x", &[]), &web, now).is_err());
    }
    assert_eq!(admitted(&limits, &request("/", &[]), &web, now), 4, "refusals took nothing of the wide limit");
    let refused = limits.admit(&request("/api", &[]), &web, now).unwrap_err();
    assert_eq!((&*refused.limit, refused.retry_after), ("narrow", 1), "the one that takes longest");
    assert_eq!(refused.policy, "\"wide\";q=5;w=1, \"narrow\";q=1;w=1");
    assert_eq!(refused.standing, "\"wide\";r=0;t=1, \"narrow\";r=0;t=1");
    assert!(limits.admit(&request("/", &[]), &web, now + Duration::from_millis(200)).is_ok());
}

#[test]
fn moments_before_the_first_look_are_told_apart() {
    let now = Instant::now();
    let length = nanos(now + Duration::from_millis(200)) - nanos(now);
    assert_eq!(length, 200_000_000);
}

#[test]
fn the_admitted_are_told_where_they_stand() {
    let now = Instant::now();
    let mut limits = limits(vec![limit("a", 3, None)]);
    let web = client("10.0.0.1:1", None);
    let told = limits.admit(&request("/", &[]), &web, now).unwrap().unwrap();
    let mut head = Fields::new();
    told.write(&mut head);
    assert_eq!(head.values(b"ratelimit-policy").next(), Some(&b"\"a\";q=3;w=1"[..]));
    assert_eq!(head.values(b"ratelimit").next(), Some(&b"\"a\";r=2;t=1"[..]));
    limits.headers = false;
    assert!(limits.admit(&request("/", &[]), &web, now).unwrap().is_none());
}

#[test]
fn what_stays_the_same_keeps_what_was_spent() {
    let now = Instant::now();
    let (web, any) = (client("10.0.0.1:1", None), request("/", &[]));
    let held = limits(vec![limit("a", 2, None), limit("b", 9, Some(Key::SourceAddress))]);
    assert_eq!(admitted(&held, &any, &web, now), 2);
    let mut same = limits(vec![limit("a", 2, None)]);
    same.carry_over(&held);
    assert_eq!(admitted(&same, &any, &web, now), 0);
    let mut wider = limits(vec![limit("a", 3, None)]);
    wider.carry_over(&held);
    assert_eq!(admitted(&wider, &any, &web, now), 3);
    let mut others = RateLimits { origin: "InboundPolicy shop/other".into(), ..limits(vec![limit("a", 2, None)]) };
    others.carry_over(&held);
    assert_eq!(admitted(&others, &any, &web, now), 2);
}
