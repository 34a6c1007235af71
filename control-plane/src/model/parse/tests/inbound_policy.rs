//! InboundPolicy at the door.

use super::*;
use crate::model::{
    Object,
    policy::{Concurrency, InboundPolicy, PolicySpec, RateLimitKey},
};

fn policy(mut spec: Value) -> Value {
    spec["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "s"}]);
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "InboundPolicy", "metadata": {"name": "p"}, "spec": spec})
}

fn read(spec: Value) -> InboundPolicy {
    match &*good(policy(spec)).object {
        Object::Policy(policy) => match &policy.spec {
            PolicySpec::Inbound(inbound) => inbound.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults_and_all_fields() {
    assert_eq!(read(json!({})), InboundPolicy::default());
    let all = read(json!({
        "rateLimits": [
            {"name": "a", "requests": 100},
            {"name": "b", "requests": 5, "per": "1m30s", "burst": 7, "key": {"type": "Header", "header": "X-Key"},
             "matches": [{"path": {"value": "/a/"}, "method": "GET"}, {"headers": [{"name": "x", "value": "y"}]}]},
        ],
        "rateLimitHeaders": false,
        "concurrency": {"min": 50},
        "maxConnections": 9,
    }));
    assert!(all.quiet && all.max_connections == Some(9));
    assert_eq!(all.concurrency, Some(Concurrency::Adaptive { min: 50, max: 10_000 }));
    let [a, b] = all.rate_limits.as_slice() else { panic!("{all:?}") };
    assert_eq!((a.requests, a.per, a.burst, &a.key, a.matches.len()), (100, 1, 100, &None, 0));
    assert_eq!((b.requests, b.per, b.burst, b.matches.len()), (5, 90, 7, 2));
    assert_eq!(b.key, Some(RateLimitKey::Header("x-key".into())));
    for (spec, expected) in [
        (json!({"mode": "Off"}), Concurrency::Off),
        (json!({"mode": "Fixed", "limit": 3}), Concurrency::Fixed(3)),
        (json!({"mode": "Adaptive"}), Concurrency::Adaptive { min: 100, max: 10_000 }),
        (json!({"max": 5}), Concurrency::Adaptive { min: 5, max: 5 }),
        (json!({"min": 20_000}), Concurrency::Adaptive { min: 20_000, max: 20_000 }),
    ] {
        assert_eq!(read(json!({"concurrency": spec})).concurrency, Some(expected));
    }
}

#[test]
fn what_cannot_be_kept_is_named() {
    let field = |spec: Value| bad(policy(spec)).split(": ").next().unwrap_or_default().to_owned();
    let limit = |more: Value| {
        let mut limit = json!({"name": "a", "requests": 1});
        limit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"rateLimits": [limit]})
    };
    for (spec, expected) in [
        (limit(json!({"name": "A b"})), "spec.rateLimits[0].name"),
        (limit(json!({"requests": 0})), "spec.rateLimits[0].requests"),
        (limit(json!({"requests": -1})), "spec.rateLimits[0].requests"),
        (limit(json!({"requests": 1.5})), "spec.rateLimits[0].requests"),
        (limit(json!({"requests": 99_999_999_999_i64})), "spec.rateLimits[0].requests"),
        (limit(json!({"requests": 1_000_001})), "spec.rateLimits[0].requests"),
        (limit(json!({"per": "500ms"})), "spec.rateLimits[0].per"),
        (limit(json!({"per": "0s"})), "spec.rateLimits[0].per"),
        (limit(json!({"per": "25h"})), "spec.rateLimits[0].per"),
        (limit(json!({"burst": 0})), "spec.rateLimits[0].burst"),
        (limit(json!({"per": "24h", "burst": 31})), "spec.rateLimits[0].burst"),
        (limit(json!({"key": {"type": "Cookie"}})), "spec.rateLimits[0].key.type"),
        (limit(json!({"key": {"type": "Header"}})), "spec.rateLimits[0].key.header"),
        (limit(json!({"key": {"type": "Header", "header": "a b"}})), "spec.rateLimits[0].key.header"),
        (limit(json!({"key": {"type": "Header", "header": "Host"}})), "spec.rateLimits[0].key.header"),
        (limit(json!({"key": {"type": "Header", "header": "HOST"}})), "spec.rateLimits[0].key.header"),
        (limit(json!({"key": {"type": "SourceAddress", "header": "a"}})), "spec.rateLimits[0].key.header"),
        (
            limit(json!({"matches": [{"path": {"type": "RegularExpression", "value": "((a{100}){100}){100}"}}]})),
            "spec.rateLimits[0].matches[0].path.value",
        ),
        (limit(json!({"matches": [{"method": "get"}]})), "spec.rateLimits[0].matches[0].method"),
        (json!({"concurrency": {"mode": "Sometimes"}}), "spec.concurrency.mode"),
        (json!({"concurrency": {"mode": "Fixed"}}), "spec.concurrency.limit"),
        (json!({"concurrency": {"mode": "Fixed", "limit": 0}}), "spec.concurrency.limit"),
        (json!({"concurrency": {"mode": "Off", "limit": 5}}), "spec.concurrency.limit"),
        (json!({"concurrency": {"min": 9, "max": 5}}), "spec.concurrency.min"),
        (json!({"maxConnections": 0}), "spec.maxConnections"),
        (json!({"maxConnections": 1_000_001}), "spec.maxConnections"),
    ] {
        assert_eq!(field(spec.clone()), expected, "{spec}");
    }
    let twice = json!({"rateLimits": [{"name": "a", "requests": 1}, {"name": "a", "requests": 2}]});
    assert_eq!(field(twice), "spec.rateLimits[1].name");
    let many: Vec<Value> = (0..17).map(|n| json!({"name": format!("l{n}"), "requests": 1})).collect();
    assert_eq!(field(json!({"rateLimits": many})), "spec.rateLimits");
}
