//! InboundPolicy at the proxy's door.

use super::*;
use crate::inbound::{concurrency::Concurrency, rate_limit::Key};

fn limit(name: &str) -> v1::RateLimit {
    v1::RateLimit { name: name.into(), requests: 10, per_seconds: 60, burst: 5, ..Default::default() }
}

fn inbound(policy: v1::InboundPolicy) -> Resource {
    let ports = vec![v1::InboundPort { port: 80, protocol: 1, policy: Some(policy) }];
    let inbound = v1::Inbound { mode: v1::inbound::Mode::Strict.into(), ports, ..Default::default() };
    resource(ResourceKind::Inbound, "", "1", Body::Inbound(inbound))
}

#[test]
fn a_policy_is_in_force_at_its_port_and_changes_there() {
    let (store, _asks) = Store::new();
    let (early, other) = (store.protection(80), store.protection(81));
    assert!(early.rate_limits().is_none());
    let origin = v1::ObjectRef { kind: "InboundPolicy".into(), namespace: "shop".into(), name: "cart".into() };
    let policy = v1::InboundPolicy {
        origin: Some(origin),
        rate_limits: vec![
            v1::RateLimit { key: v1::rate_limit::Key::Header.into(), header: "x-a".into(), ..limit("a") },
            limit("b"),
        ],
        concurrency: Some(v1::Concurrency { mode: v1::concurrency::Mode::Fixed.into(), min: 0, max: 7 }),
        max_connections: 3,
        ..Default::default()
    };
    assert_eq!(take(&store, vec![inbound(policy.clone())], vec![]), []);
    let limits = early.rate_limits();
    let limits = limits.as_ref().unwrap();
    assert_eq!((&*limits.origin, limits.headers, limits.limits.len()), ("InboundPolicy shop/cart", true, 2));
    assert_eq!(limits.limits[0].key, Some(Key::Header("x-a".parse().unwrap())));
    assert_eq!((early.concurrency.limit(), store.protection(80).concurrency.limit()), (Some(7), Some(7)));
    assert!(other.rate_limits().is_none() && other.concurrency.limit() == Some(10_000));
    assert_eq!(store.inbound().port(80).unwrap().policy.max_connections, Some(3));

    let off = v1::Concurrency { mode: v1::concurrency::Mode::Off.into(), ..Default::default() };
    assert_eq!(take(&store, vec![inbound(v1::InboundPolicy { concurrency: Some(off), ..policy })], vec![]), []);
    assert_eq!(early.concurrency.limit(), None);
    assert_eq!(take(&store, vec![inbound(v1::InboundPolicy::default())], vec![]), []);
    assert!(early.rate_limits().is_none());
    assert_eq!(store.inbound().port(80).unwrap().policy.concurrency, Concurrency::default());
}

#[test]
fn what_cannot_be_kept_is_named() {
    let (store, _asks) = Store::new();
    let limits = |limits: Vec<v1::RateLimit>| v1::InboundPolicy { rate_limits: limits, ..Default::default() };
    let concurrency = |mode: i32, min, max| v1::InboundPolicy {
        concurrency: Some(v1::Concurrency { mode, min, max }),
        ..Default::default()
    };
    let header = v1::RateLimit { key: 3, header: "a b".into(), ..limit("a") };
    let path = path_match::Kind::Regex("(".into());
    let matches = vec![HttpMatch { path: Some(PathMatch { kind: Some(path) }), ..Default::default() }];
    let many = (0..=leno_proto::pattern::OF_RESOURCE.count).map(|n| {
        let path = PathMatch { kind: Some(path_match::Kind::Regex(format!("/{n}"))) };
        HttpMatch { path: Some(path), ..Default::default() }
    });
    for (policy, field) in [
        (limits(vec![limit("")]), "rate_limits[0].name"),
        (limits(vec![limit("a\"b")]), "rate_limits[0].name"),
        (limits(vec![limit("a"), limit("a")]), "rate_limits[1].name"),
        (limits(vec![v1::RateLimit { requests: 0, ..limit("a") }]), "rate_limits[0].requests"),
        (limits(vec![v1::RateLimit { requests: u32::MAX, ..limit("a") }]), "rate_limits[0].requests"),
        (limits(vec![v1::RateLimit { per_seconds: 0, ..limit("a") }]), "rate_limits[0].per_seconds"),
        (limits(vec![v1::RateLimit { burst: 0, ..limit("a") }]), "rate_limits[0].burst"),
        (limits(vec![v1::RateLimit { burst: u32::MAX, ..limit("a") }]), "rate_limits[0].burst"),
        (limits(vec![v1::RateLimit { key: 9, ..limit("a") }]), "rate_limits[0].key"),
        (limits(vec![header]), "rate_limits[0].header"),
        (limits(vec![v1::RateLimit { matches, ..limit("a") }]), "rate_limits[0].matches[0].path.regex"),
        (
            limits(vec![v1::RateLimit { matches: many.collect(), ..limit("a") }]),
            "rate_limits[0].matches[4096].path.regex",
        ),
        (limits((0..17).map(|n| limit(&n.to_string())).collect()), "rate_limits"),
        (concurrency(0, 0, 0), "concurrency.mode"),
        (concurrency(2, 0, 0), "concurrency.max"),
        (concurrency(3, 30, 20), "concurrency.min"),
    ] {
        let rejected = take(&store, vec![inbound(policy)], vec![]);
        let fields: Vec<_> = rejected.iter().map(|rejection| rejection.field.as_str()).collect();
        assert_eq!(fields, [format!("ports[0].policy.{field}")]);
    }
    assert!(!store.is_ready());
}
