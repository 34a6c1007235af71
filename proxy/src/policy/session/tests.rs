use leno_proto::v1::resource::Body;

use super::*;
use crate::policy::{
    Store,
    apply::{
        apply,
        tests::{delta, name, resource, service, to_backends},
    },
};

const CART: &str = "10.0.0.1:80";

fn key(text: &str) -> DestinationKey {
    text.into()
}

fn named(interest: &[ResourceName]) -> Vec<&str> {
    let mut keys: Vec<_> = interest.iter().map(|name| name.key.as_str()).collect();
    keys.sort_unstable();
    keys
}

fn subscribed(session: &mut Session) -> (Vec<String>, Vec<String>) {
    let Interest { subscribe, unsubscribe } = session.interest().unwrap_or_default();
    let owned = |names: &[ResourceName]| named(names).into_iter().map(str::to_owned).collect();
    (owned(&subscribe), owned(&unsubscribe))
}

/// The store, after these destinations, each to a backend of its name, came.
fn holding(session: &Session, store: &Store, keys: &[&str]) {
    let bring = |key: &&str| {
        let backend = format!("shop/{}:80", key.split([':', '.']).next().unwrap_or_default());
        let body = Body::Destination(service(to_backends(&[(1, &backend)])));
        resource(ResourceKind::Destination, key, "d1", body)
    };
    let changed = keys.iter().map(bring).collect();
    let wants = |name: &ResourceName| session.wants(name);
    let rejected = apply(&store.snapshot(), delta(changed, vec![]), wants, &mut |_, _| Ok(())).commit(store);
    assert_eq!(rejected, []);
}

#[test]
fn opens_with_what_is_wanted_and_held() {
    let now = Instant::now();
    let (store, _asks) = Store::new();
    let mut session = Session::new([key("shop.default:80")], now);
    let open = session.open(&store.snapshot(), "cart-1", 1);
    assert_eq!((open.workload.as_str(), open.version.is_empty()), ("cart-1", false));
    assert_eq!(open.held.len(), 4);
    assert!(open.held.iter().all(|held| held.version.is_empty()));
    assert_eq!(session.interest(), None, "all was said in Open");

    session.ask(&key(CART), now).unwrap();
    assert_eq!(subscribed(&mut session), (vec![CART.to_owned()], vec![]));
    holding(&session, &store, &[CART]);
    assert_eq!(session.follow(&store.snapshot(), &[], &[]), []);
    assert_eq!(subscribed(&mut session), (vec!["shop/10:80".to_owned()], vec![]));

    let open = session.open(&store.snapshot(), "cart-1", 1);
    let versions: HashMap<_, _> = open.held.into_iter().map(|held| (held.name.unwrap().key, held.version)).collect();
    assert_eq!(versions[CART], "d1");
    assert_eq!(versions["shop/10:80"], "", "subscribed, and nothing came yet");
}

#[test]
fn what_does_not_exist_is_asked_for_anew() {
    let now = Instant::now();
    let (store, _asks) = Store::new();
    let mut session = Session::new([], now);
    session.open(&store.snapshot(), "cart-1", 1);
    session.ask(&key(CART), now).unwrap();
    session.interest();
    let gone = session.follow(&store.snapshot(), &[name(ResourceKind::Destination, CART)], &[]);
    assert_eq!(gone, [key(CART)]);
    assert_eq!(subscribed(&mut session), (vec![], vec![CART.to_owned()]));
    session.ask(&key(CART), now).unwrap();
    assert_eq!(subscribed(&mut session), (vec![CART.to_owned()], vec![]));
}

#[test]
fn what_cannot_be_used_stays_subscribed_and_fails_at_once() {
    let now = Instant::now();
    let (store, _asks) = Store::new();
    let mut session = Session::new([], now);
    session.open(&store.snapshot(), "cart-1", 1);
    session.ask(&key(CART), now).unwrap();
    session.interest();
    let rejection = Rejection { name: Some(name(ResourceKind::Destination, CART)), ..Rejection::default() };
    assert_eq!(session.follow(&store.snapshot(), &[], std::slice::from_ref(&rejection)), [key(CART)]);
    assert_eq!(session.interest(), None);
    assert_eq!(session.ask(&key(CART), now), Err(Denied::Refused));
    // A later version is good; a bad one after it leaves it in force.
    holding(&session, &store, &[CART]);
    assert_eq!(session.follow(&store.snapshot(), &[], &[]), []);
    assert_eq!(session.follow(&store.snapshot(), &[], &[rejection]), []);
    assert_eq!(session.ask(&key(CART), now), Ok(()));
}

#[test]
fn idle_destinations_go_with_their_endpoints_and_pinned_ones_stay() {
    let start = Instant::now();
    let (store, _asks) = Store::new();
    let mut session = Session::new([key("pinned.shop:80")], start);
    for text in ["a.shop:80", "b.shop:80"] {
        session.ask(&key(text), start).unwrap();
    }
    session.ask(&key("unanswered.shop:80"), start).unwrap();
    session.open(&store.snapshot(), "cart-1", 1);
    holding(&session, &store, &["pinned.shop:80", "a.shop:80", "b.shop:80"]);
    session.follow(&store.snapshot(), &[], &[]);
    session.interest();
    assert_eq!(session.idle(&store.snapshot(), start), []);
    let almost = start + limits::DESTINATION_IDLE - Duration::from_secs(1);
    store.get(&key("b.shop:80"));
    assert_eq!(session.idle(&store.snapshot(), almost), []);
    let idle = session.idle(&store.snapshot(), start + limits::DESTINATION_IDLE);
    assert_eq!(idle, [key("a.shop:80")]);
    for key in &idle {
        session.forget(key);
    }
    store.swap(store.snapshot().without(&idle));
    session.follow(&store.snapshot(), &[], &[]);
    assert_eq!(subscribed(&mut session), (vec![], vec!["a.shop:80".to_owned(), "shop/a:80".to_owned()]));
    assert!(store.get(&key("a.shop:80")).is_none() && store.get(&key("b.shop:80")).is_some());
}

#[test]
fn no_more_destinations_than_the_limit_and_the_oldest_make_room() {
    let start = Instant::now();
    let (store, _asks) = Store::new();
    let mut session = Session::new([], start);
    let keys: Vec<String> = (0..limits::DESTINATIONS).map(|n| format!("n{n}.shop:80")).collect();
    for (index, text) in (0_u64..).zip(&keys) {
        session.ask(&key(text), start + Duration::from_millis(index)).unwrap();
    }
    assert_eq!(session.ask(&key("one.more:80"), start), Err(Denied::Full));
    assert_eq!(session.ask(&key(&keys[0]), start), Ok(()), "what is wanted already is no more");
    assert_eq!(session.idle(&store.snapshot(), start), [], "nothing is held that could go");
    holding(&session, &store, &keys.iter().map(String::as_str).collect::<Vec<_>>());
    for held in store.snapshot().destinations.values() {
        held.used.store(false, Ordering::Relaxed);
    }
    let idle = session.idle(&store.snapshot(), start + Duration::from_secs(5));
    assert_eq!(idle.len(), limits::DESTINATIONS / 16);
    assert_eq!(idle.first(), Some(&key(&keys[0])));
    assert_eq!(session.ask(&key(&"x".repeat(KEY_BYTES + 1)), start), Err(Denied::Full));
}

#[test]
fn subscriptions_are_bounded_with_the_endpoints_they_bring() {
    let start = Instant::now();
    let (store, _asks) = Store::new();
    let mut session = Session::new([], start);
    let backends: Vec<String> = (0..2500).map(|n| format!("shop/b{n}:80")).collect();
    let mut changed = Vec::new();
    for n in 0..4 {
        let text = format!("n{n}.shop:80");
        session.ask(&key(&text), start + Duration::from_secs(n)).unwrap();
        let own: Vec<_> = backends.iter().map(|backend| backend.replace("/b", &format!("/n{n}b"))).collect();
        let own: Vec<_> = own.iter().map(|backend| (1, backend.as_str())).collect();
        let body = Body::Destination(service(to_backends(&own)));
        changed.push(resource(ResourceKind::Destination, &text, "1", body));
    }
    apply(&store.snapshot(), delta(changed, vec![]), |_| true, &mut |_, _| Ok(())).commit(&store);
    session.follow(&store.snapshot(), &[], &[]);
    assert!(session.size() > limits::SUBSCRIPTIONS);
    for held in store.snapshot().destinations.values() {
        held.used.store(false, Ordering::Relaxed);
    }
    let idle = session.idle(&store.snapshot(), start + Duration::from_secs(5));
    assert_eq!(idle, [key("n0.shop:80")]);
}

#[test]
fn backoff_grows_to_its_limit() {
    let waits: Vec<_> = (1..8).map(|failures| backoff(failures, 1.0).as_millis()).collect();
    assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(backoff(1, 0.0).as_millis(), 100);
    assert_eq!(backoff(u32::MAX, 0.0).as_millis(), 2500);
}
