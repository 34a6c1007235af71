use std::{cell::RefCell, collections::BTreeMap};

use leno_proto::v1::{
    Delta, Destination, Endpoint, Endpoints, HeldResource, ObjectRef, Outside, Protocol, Rejection, Resource,
    destination::Target,
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// A world of numbered resources; a number of 0 does not exist.
#[derive(Default)]
struct Fake {
    generation: u64,
    /// Name → (value, the generation it got it).
    values: HashMap<ResourceName, (u64, u64)>,
    compiled: RefCell<HashMap<ResourceName, Arc<Compiled>>>,
}

impl Fake {
    fn set(&mut self, name: &ResourceName, value: u64) {
        self.generation += 1;
        self.values.insert(name.clone(), (value, self.generation));
    }

    fn version(&self, name: &ResourceName) -> Option<String> {
        self.values.get(name).filter(|(value, _)| *value != 0).map(|(value, _)| format!("v{value}"))
    }
}

impl View for Fake {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn current(&self, name: &ResourceName, have: Option<&Arc<Compiled>>) -> Arc<Compiled> {
        let (value, since) = self.values.get(name).copied().unwrap_or_default();
        if let Some(have) = have
            && have.generation >= since
        {
            return Arc::clone(have);
        }
        let mut compiled = self.compiled.borrow_mut();
        if let Some(known) = compiled.get(name)
            && known.generation >= since
        {
            return Arc::clone(known);
        }
        let resource = (value != 0).then(|| resource(name, value, since));
        let new = Arc::new(Compiled::new(resource, Vec::new(), self.generation));
        compiled.insert(name.clone(), Arc::clone(&new));
        new
    }
}

/// Endpoints 1..=9, of which the value says, bit by bit, which are draining.
fn resource(name: &ResourceName, value: u64, generation: u64) -> Resource {
    let body = match name.kind() {
        ResourceKind::Endpoints => Body::Endpoints(endpoints_of(value)),
        _ => Body::Destination(Destination { target: Some(Target::Outside(Outside {})) }),
    };
    let object = ObjectRef { kind: "Service".into(), namespace: "shop".into(), name: name.key.clone() };
    Resource {
        name: Some(name.clone()),
        version: format!("v{value}"),
        origins: vec![ObjectGeneration { object: Some(object), generation, ..ObjectGeneration::default() }],
        body: Some(body),
    }
}

fn endpoints_of(value: u64) -> Endpoints {
    let endpoints = (1..=9).filter(|i| value >> i & 1 == 0).map(|i| Endpoint {
        address: format!("10.0.0.{i}:80"),
        weight: if i == 1 { u32::try_from(value).unwrap() } else { 1 },
        ..Endpoint::default()
    });
    Endpoints { protocol: Protocol::Detect.into(), endpoints: endpoints.collect(), ..Endpoints::default() }
}

fn destination(key: &str) -> ResourceName {
    ResourceName { kind: ResourceKind::Destination.into(), key: key.to_owned() }
}

fn endpoints(key: &str) -> ResourceName {
    ResourceName { kind: ResourceKind::Endpoints.into(), key: key.to_owned() }
}

fn subscribe(names: &[ResourceName]) -> Interest {
    Interest { subscribe: names.to_vec(), unsubscribe: Vec::new() }
}

fn accept(delta: &Delta) -> Verdict {
    Verdict { nonce: delta.nonce, rejected: Vec::new() }
}

fn step(session: &mut Session, world: &Fake) -> Option<Delta> {
    session.refresh(world);
    session.poll().map(|update| update.message())
}

#[test]
fn one_delta_is_outstanding_and_the_latest_wins() {
    let (mut world, name) = (Fake::default(), destination("a"));
    world.set(&name, 1);
    let mut session = Session::open(Open::default()).unwrap();
    session.interest(subscribe(std::slice::from_ref(&name))).unwrap();
    let first = step(&mut session, &world).unwrap();
    assert_eq!(first.changed[0].version, "v1");

    world.set(&name, 2);
    assert_eq!(step(&mut session, &world), None);
    world.set(&name, 3);
    assert_eq!(step(&mut session, &world), None);
    assert_eq!(session.answered(), 0);

    session.verdict(accept(&first)).unwrap();
    let second = step(&mut session, &world).unwrap();
    assert_eq!((second.changed.len(), second.changed[0].version.as_str()), (1, "v3"));
    session.verdict(accept(&second)).unwrap();
    assert_eq!(step(&mut session, &world), None);
    assert_eq!(session.answered(), world.generation);
}

#[test]
fn what_is_held_is_not_sent_again() {
    let (mut world, same, other) = (Fake::default(), destination("same"), destination("other"));
    world.set(&same, 1);
    world.set(&other, 2);
    let held = |name: &ResourceName| HeldResource { name: Some(name.clone()), version: "v1".into() };
    let open = Open { held: vec![held(&same), held(&other)], ..Open::default() };
    let mut session = Session::open(open).unwrap();
    let delta = step(&mut session, &world).unwrap();
    assert_eq!(delta.changed.len(), 1);
    assert_eq!(delta.changed[0].name.as_ref(), Some(&other));
    let standing: HashMap<_, _> = session.take_changes().into_iter().collect();
    assert_eq!(standing[&same].as_ref().unwrap().lag, None);
    assert_eq!(standing[&other].as_ref().unwrap().lag, Some(Lag::Pending));
}

#[test]
fn what_does_not_exist_is_said_once_and_again_when_asked_again() {
    let (mut world, name) = (Fake::default(), destination("none"));
    world.set(&destination("some"), 1);
    let mut session = Session::open(Open::default()).unwrap();
    session.interest(subscribe(std::slice::from_ref(&name))).unwrap();
    let delta = step(&mut session, &world).unwrap();
    assert_eq!((delta.changed.len(), delta.removed.as_slice()), (0, [name.clone()].as_slice()));
    session.verdict(accept(&delta)).unwrap();
    assert_eq!(step(&mut session, &world), None);

    session.interest(subscribe(std::slice::from_ref(&name))).unwrap();
    let again = step(&mut session, &world).unwrap();
    assert_eq!(again.removed.as_slice(), std::slice::from_ref(&name));
    session.verdict(accept(&again)).unwrap();

    world.set(&name, 7);
    let now = step(&mut session, &world).unwrap();
    assert_eq!(now.changed[0].version, "v7");
    session.verdict(accept(&now)).unwrap();
    world.set(&name, 0);
    assert_eq!(step(&mut session, &world).unwrap().removed, vec![name]);
}

#[test]
fn what_was_refused_is_sent_again_only_when_it_changes() {
    let (mut world, name) = (Fake::default(), endpoints("a"));
    world.set(&name, 1);
    let mut session = Session::open(Open::default()).unwrap();
    session.interest(subscribe(std::slice::from_ref(&name))).unwrap();
    let first = step(&mut session, &world).unwrap();
    session.verdict(accept(&first)).unwrap();

    world.set(&name, 2);
    let second = step(&mut session, &world).unwrap();
    assert!(matches!(second.changed[0].body, Some(Body::EndpointsDelta(_))));
    let rejected = Rejection {
        name: Some(name.clone()),
        version: "v2".into(),
        field: "endpoints[0]".into(),
        reason: "no".repeat(5000),
    };
    session.verdict(Verdict { nonce: second.nonce, rejected: vec![rejected] }).unwrap();
    assert_eq!(step(&mut session, &world), None);
    let changes = session.take_changes();
    let standing = changes[0].1.as_ref().unwrap();
    assert!(
        matches!(&standing.lag, Some(Lag::Rejected { field, reason, .. })
            if field == "endpoints[0]" && reason.len() == limits::REASON_CHARS),
        "{standing:?}"
    );
    // The first version is in force still, of the first generation.
    assert_eq!(standing.in_force.as_ref().unwrap()[0].generation, 1);

    world.set(&name, 3);
    let third = step(&mut session, &world).unwrap();
    assert!(matches!(third.changed[0].body, Some(Body::Endpoints(_))), "whole after a refusal");

    // Back to what is in force: nothing to send, nothing to hold against it.
    session
        .verdict(Verdict {
            nonce: third.nonce,
            rejected: vec![Rejection { name: Some(name.clone()), ..Rejection::default() }],
        })
        .unwrap();
    world.set(&name, 1);
    assert_eq!(step(&mut session, &world), None);
    let changes = session.take_changes();
    assert_eq!(changes[0].1.as_ref().unwrap().lag, None);
    assert_eq!(changes[0].1.as_ref().unwrap().in_force.as_ref().unwrap()[0].generation, world.generation);
}

#[test]
fn a_name_in_both_lists_starts_over() {
    let (mut world, name) = (Fake::default(), destination("a"));
    world.set(&name, 1);
    let mut session = Session::open(Open::default()).unwrap();
    session.interest(subscribe(std::slice::from_ref(&name))).unwrap();
    let first = step(&mut session, &world).unwrap();
    let both = Interest { subscribe: vec![name.clone()], unsubscribe: vec![name.clone()] };
    session.interest(both).unwrap();
    // The answer is about the subscription that has ended.
    session.verdict(accept(&first)).unwrap();
    let second = step(&mut session, &world).unwrap();
    assert_eq!(second.changed[0].version, "v1");
}

#[test]
fn limits_hold() {
    let mut session = Session::open(Open::default()).unwrap();
    let names: Vec<_> = (0..=limits::SUBSCRIPTIONS).map(|i| destination(&i.to_string())).collect();
    assert_eq!(session.interest(subscribe(&names)), Err(Violation::TooManySubscriptions));
    let long = destination(&"x".repeat(limits::KEY_BYTES + 1));
    let mut session = Session::open(Open::default()).unwrap();
    assert_eq!(session.interest(subscribe(&[long])), Err(Violation::KeyTooLong));
    assert_eq!(
        session.verdict(Verdict { nonce: 9, rejected: Vec::new() }),
        Err(Violation::StrayVerdict(9)),
        "nothing is outstanding"
    );
    let nameless = Open { held: vec![HeldResource::default()], ..Open::default() };
    assert_eq!(Session::open(nameless).map(|_| ()), Err(Violation::NoName));
}

#[test]
fn a_long_delta_is_cut_and_goes_on() {
    let mut world = Fake::default();
    let names: Vec<_> = (0..6000).map(|i| destination(&format!("{i:0>400}"))).collect();
    for name in &names {
        world.set(name, 1);
    }
    let mut session = Session::open(Open::default()).unwrap();
    session.interest(subscribe(&names)).unwrap();
    let mut received = HashSet::new();
    let mut deltas = 0;
    while let Some(delta) = step(&mut session, &world) {
        assert!(delta.encoded_len() < 2 * limits::DELTA_BYTES);
        assert!(session.answered() < world.generation, "not all of it is answered");
        session.verdict(accept(&delta)).unwrap();
        received.extend(delta.changed.into_iter().filter_map(|r| r.name));
        deltas += 1;
    }
    assert!(deltas > 1);
    assert_eq!(received.len(), names.len());
    assert_eq!(session.answered(), world.generation);
}

/// The proxy's side, as the protocol has it.
#[derive(Default)]
struct Proxy {
    interest: HashSet<ResourceName>,
    held: HashMap<ResourceName, (String, Option<Endpoints>)>,
    refused: HashMap<ResourceName, String>,
    inbox: Option<Delta>,
    /// Unsubscribed while a delta was on its way.
    restarted: HashSet<ResourceName>,
}

impl Proxy {
    fn answer(&mut self, refuse: bool) -> Option<Verdict> {
        let delta = self.inbox.take()?;
        let mut verdict = accept(&delta);
        for name in &delta.removed {
            self.held.remove(name);
            self.refused.remove(name);
        }
        for resource in delta.changed {
            let name = resource.name.unwrap();
            if !self.interest.contains(&name) {
                continue;
            }
            if refuse && name.key == "0" {
                verdict.rejected.push(Rejection { name: Some(name.clone()), ..Rejection::default() });
                self.refused.insert(name, resource.version);
                continue;
            }
            let whole = match resource.body {
                Some(Body::EndpointsDelta(_)) if self.restarted.contains(&name) => {
                    // Sent before the server knew that the proxy had let go of the base.
                    verdict.rejected.push(Rejection { name: Some(name), ..Rejection::default() });
                    continue;
                }
                Some(Body::EndpointsDelta(delta)) => {
                    let (version, base) = self.held.get(&name).unwrap();
                    assert_eq!(&delta.base_version, version, "a delta against what is not held");
                    Some(apply(base.as_ref().unwrap(), delta))
                }
                Some(Body::Endpoints(endpoints)) => Some(endpoints),
                _ => None,
            };
            self.refused.remove(&name);
            self.held.insert(name, (resource.version, whole));
        }
        self.restarted.clear();
        Some(verdict)
    }

    fn open(&self) -> Open {
        let held = |name: &ResourceName| HeldResource {
            name: Some(name.clone()),
            version: self.held.get(name).map(|(version, _)| version.clone()).unwrap_or_default(),
        };
        Open { held: self.interest.iter().map(held).collect(), ..Open::default() }
    }
}

fn apply(base: &Endpoints, delta: leno_proto::v1::EndpointsDelta) -> Endpoints {
    let mut by_address: BTreeMap<String, Endpoint> =
        base.endpoints.iter().map(|e| (e.address.clone(), e.clone())).collect();
    for address in &delta.removed {
        assert!(by_address.remove(address).is_some(), "removed what was not there");
    }
    by_address.extend(delta.upserted.into_iter().map(|e| (e.address.clone(), e)));
    Endpoints { endpoints: by_address.into_values().collect(), ..base.clone() }
}

#[derive(Debug, Clone)]
enum Event {
    Change(usize, u64),
    Subscribe(usize),
    Unsubscribe(usize),
    Answer { refuse: bool },
    Reconnect,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6usize, 0..1024u64).prop_map(|(i, value)| Event::Change(i, value)),
        2 => (0..6usize).prop_map(Event::Subscribe),
        1 => (0..6usize).prop_map(Event::Unsubscribe),
        4 => proptest::bool::weighted(0.3).prop_map(|refuse| Event::Answer { refuse }),
        1 => Just(Event::Reconnect),
    ]
}

fn named(i: usize) -> ResourceName {
    if i < 3 { endpoints(&i.to_string()) } else { destination(&i.to_string()) }
}

fn deliver(session: &mut Session, world: &Fake, proxy: &mut Proxy) {
    if let Some(delta) = step(session, world) {
        assert!(proxy.inbox.is_none(), "two deltas are outstanding");
        assert!(!delta.changed.is_empty() || !delta.removed.is_empty());
        proxy.inbox = Some(delta);
    }
}

proptest! {
    /// Whatever happens in whatever order, the proxy ends up with the newest of everything that it subscribes to and
    /// did not refuse, and the session knows it.
    #[test]
    fn it_converges(events in proptest::collection::vec(event(), 0..60)) {
        let (mut world, mut proxy) = (Fake::default(), Proxy::default());
        let mut session = Session::open(Open::default()).unwrap();
        for event in events {
            match event {
                Event::Change(i, value) => world.set(&named(i), value),
                Event::Subscribe(i) => {
                    proxy.interest.insert(named(i));
                    session.interest(subscribe(&[named(i)])).unwrap();
                }
                Event::Unsubscribe(i) => {
                    proxy.interest.remove(&named(i));
                    proxy.held.remove(&named(i));
                    proxy.refused.remove(&named(i));
                    proxy.restarted.extend(proxy.inbox.is_some().then(|| named(i)));
                    session.interest(Interest { unsubscribe: vec![named(i)], subscribe: Vec::new() }).unwrap();
                }
                Event::Answer { refuse } => {
                    if let Some(verdict) = proxy.answer(refuse) {
                        session.verdict(verdict).unwrap();
                    }
                }
                Event::Reconnect => {
                    proxy.inbox = None;
                    proxy.restarted.clear();
                    session = Session::open(proxy.open()).unwrap();
                }
            }
            deliver(&mut session, &world, &mut proxy);
        }
        for _ in 0..10 {
            if let Some(verdict) = proxy.answer(false) {
                session.verdict(verdict).unwrap();
            }
            deliver(&mut session, &world, &mut proxy);
        }
        prop_assert!(proxy.inbox.is_none() && !session.has_outstanding(), "it never comes to rest");
        prop_assert_eq!(session.answered(), world.generation);
        for name in &proxy.interest {
            let held = proxy.held.get(name);
            let wanted = world.version(name);
            if wanted.is_some() && proxy.refused.get(name) == wanted.as_ref() {
                continue;
            }
            prop_assert_eq!(held.map(|(version, _)| version.clone()), wanted, "{:?}", name);
            if let Some((_, Some(held))) = held {
                let (value, _) = world.values[name];
                let mut expected = endpoints_of(value);
                let mut actual = held.clone();
                expected.endpoints.sort_by(|a, b| a.address.cmp(&b.address));
                actual.endpoints.sort_by(|a, b| a.address.cmp(&b.address));
                prop_assert_eq!(actual, expected);
            }
        }
    }
}

#[test]
fn what_was_sent_and_not_answered_is_in_doubt_once_the_stream_is_lost() {
    let mut fake = Fake::default();
    let name = destination("a");
    fake.set(&name, 1);
    let mut session = Session::open(Open {
        held: vec![HeldResource { name: Some(name.clone()), version: String::new() }],
        ..Open::default()
    })
    .unwrap();
    session.refresh(&fake);
    let delta = session.poll().unwrap().message();
    session.verdict(Verdict { nonce: delta.nonce, rejected: Vec::new() }).unwrap();
    fake.set(&name, 2);
    session.refresh(&fake);
    session.poll().unwrap();
    session.lost();
    session.take_changes();
    // What it may have got is taken back: the first version is not surely in force.
    fake.set(&name, 1);
    session.refresh(&fake);
    let changes = session.take_changes();
    let standing = changes.iter().find(|(n, _)| *n == name).and_then(|(_, s)| s.as_ref()).unwrap();
    assert_eq!(standing.lag, Some(Lag::Pending));
    assert_eq!(standing.in_force.as_ref().unwrap()[0].generation, 1);
}

#[test]
fn a_probe_is_answered_like_a_delta() {
    let mut session = Session::open(Open::default()).unwrap();
    let probe = session.probe().unwrap();
    assert!(probe.changed.is_empty() && probe.removed.is_empty());
    assert_eq!(session.probe(), None, "an answer is due already");
    session.verdict(Verdict { nonce: probe.nonce, rejected: Vec::new() }).unwrap();
    assert!(session.probe().unwrap().nonce > probe.nonce);
}

#[test]
fn a_proxy_is_not_sent_limits_that_it_would_pass_over() {
    use leno_proto::v1::{Inbound, InboundPolicy, InboundPort};
    let compiled = |policy: InboundPolicy| {
        let port = InboundPort { port: 80, policy: Some(policy), ..InboundPort::default() };
        let body = Some(Body::Inbound(Inbound { ports: vec![port], ..Inbound::default() }));
        Compiled::new(Some(Resource { body, ..Resource::default() }), Vec::new(), 1)
    };
    let (older, newer) = (HashSet::new(), HashSet::from([capability::REQUEST_SIZE.to_owned()]));
    for policy in [
        InboundPolicy { max_head_bytes: 2048, ..InboundPolicy::default() },
        InboundPolicy { max_body_bytes: 1, ..InboundPolicy::default() },
    ] {
        let compiled = compiled(policy);
        assert!(unsupported(&compiled, &older).is_some_and(|why| why.contains("request-size")));
        assert_eq!(unsupported(&compiled, &newer), None);
    }
    let plain = compiled(InboundPolicy { max_connections: 7, ..InboundPolicy::default() });
    assert_eq!(unsupported(&plain, &older), None);
}
