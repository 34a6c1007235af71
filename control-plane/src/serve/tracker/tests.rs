use std::{future::ready, sync::Arc};

use leno_proto::v1::{ObjectGeneration, Resource, ResourceKind};

use super::*;
use crate::serve::{compiled::Compiled, session::Origins};

fn route() -> ObjectRef {
    ObjectRef { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "cart".into() }
}

fn opened(workload: &str) -> Opened {
    Opened {
        identity: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
        workload: workload.into(),
        instance: 0,
        address: "10.0.0.9:4000".parse().unwrap(),
        version: "0.1.0".into(),
        has_pod: true,
        certificate_not_after: SystemTime::UNIX_EPOCH,
    }
}

fn open(tracker: &Tracker, opened: Opened) -> (StreamId, Orders) {
    match tracker.claim(&opened, None) {
        Claim::Granted(id, orders) => (id, orders),
        Claim::Contested(holder) => panic!("contested by {holder:?}"),
    }
}

/// A process of its own.
fn process(workload: &str, instance: u64) -> Opened {
    Opened { instance, ..opened(workload) }
}

fn contest(tracker: &Tracker, opened: &Opened) -> Holder {
    match tracker.claim(opened, None) {
        Claim::Granted(..) => panic!("granted"),
        Claim::Contested(holder) => holder,
    }
}

fn laggards(tracker: &Tracker, generation: Option<u64>) -> Vec<(String, String)> {
    tracker.progress(&route(), generation, "").laggards.into_iter().map(|l| (l.proxy, l.reason)).collect()
}

fn origins(generation: u64) -> Vec<ObjectGeneration> {
    vec![ObjectGeneration { object: Some(route()), generation, ..ObjectGeneration::default() }]
}

fn name() -> ResourceName {
    ResourceName { kind: ResourceKind::Destination.into(), key: "cart.shop:80".into() }
}

/// Of the route: the generation wanted (None: it is not made from the route), and the one in force.
fn standing(wanted: Option<u64>, in_force: Option<u64>, lag: Option<Lag>) -> Standing {
    let resource = Resource { origins: wanted.map(origins).unwrap_or_default(), ..Resource::default() };
    Standing {
        wanted: Arc::new(Compiled::new(Some(resource), Vec::new(), 1)),
        in_force: in_force.map(|g| Origins::Known(origins(g))),
        lag,
    }
}

fn report(seen: u64, standing: Option<Standing>) -> Report {
    Report { answered: seen, seen, subscriptions: 1, changes: vec![(name(), standing)], ..Report::default() }
}

#[test]
fn proxies_that_lag_are_named_with_the_reason() {
    let tracker = Tracker::default();
    let (a, _keep_a) = open(&tracker, opened("a"));
    let (b, _keep_b) = open(&tracker, opened("b"));
    let (c, _keep_c) = open(&tracker, opened("c"));
    let (_, _keep_d) = open(&tracker, opened("unconcerned"));
    tracker.report(a, report(2, Some(standing(Some(2), Some(2), None))));
    tracker.report(b, report(2, Some(standing(Some(2), Some(1), Some(Lag::Pending)))));
    let rejected = Lag::Rejected { version: "v".into(), field: "http.rules[0]".into(), reason: "bad regex".into() };
    tracker.report(c, report(2, Some(standing(Some(2), None, Some(rejected)))));

    let progress = tracker.progress(&route(), Some(2), "");
    assert_eq!((progress.subscribed, progress.programmed), (3, 1));
    let laggards: Vec<_> =
        progress.laggards.iter().map(|l| (l.proxy.as_str(), l.generation, l.reason.as_str())).collect();
    assert_eq!(laggards, [("shop/b", 1, "pending"), ("shop/c", 0, "rejected")]);
    assert_eq!(progress.laggards[1].message, "http.rules[0]: bad regex");
    assert!(!tracker.settled(2).is_so(), "one has not been compared yet");
}

#[tokio::test]
async fn what_is_looked_at_while_a_proxy_comes_is_looked_at_again() {
    let tracker = Tracker::default();
    tracker.tell(None, 1);
    let (mut looks, mut kept) = (Vec::new(), Vec::new());
    let subscribed = tracker
        .look(1, Duration::from_secs(60), |settled| {
            let seen = tracker.progress(&route(), Some(1), "").subscribed;
            if looks.is_empty() {
                let (late, orders) = open(&tracker, opened("late"));
                kept.push(orders);
                tracker.report(late, report(1, Some(standing(Some(1), None, Some(Lag::Pending)))));
            }
            looks.push(settled);
            ready(seen)
        })
        .await;
    assert_eq!((subscribed, looks), (1, vec![true, true]));
    // Who never says what it has is not waited for for ever.
    let (_, _kept) = open(&tracker, opened("silent"));
    assert!(!tracker.look(1, Duration::ZERO, ready).await);
}

#[test]
fn who_is_not_touched_by_a_change_serves_it_at_once() {
    let tracker = Tracker::default();
    let (a, a_orders) = open(&tracker, opened("a"));
    let (b, b_orders) = open(&tracker, opened("b"));
    tracker.tell(None, 1);
    assert!(!tracker.settled(1).is_so());
    for id in [a, b] {
        tracker.report(id, Report { answered: 1, seen: 1, ..Report::default() });
    }
    tracker.tell(Some(&HashSet::from([a])), 2);
    assert_eq!((a_orders.borrow().compare, b_orders.borrow().compare), (2, 1));
    let served = || tracker.proxies().iter().map(|proxy| proxy.generation).collect::<Vec<_>>();
    assert_eq!((tracker.settled(2).is_so(), served()), (false, vec![1, 2]));
    // Compared, sent, and not answered yet.
    tracker.report(a, Report { answered: 1, seen: 2, ..Report::default() });
    assert_eq!((tracker.settled(2).is_so(), served()), (true, vec![1, 2]));
    tracker.report(a, Report { answered: 2, seen: 2, ..Report::default() });
    assert_eq!(served(), [2, 2]);
}

#[test]
fn a_removed_object_lags_where_it_is_still_in_force() {
    let tracker = Tracker::default();
    let (a, _keep) = open(&tracker, opened("a"));
    tracker.report(a, report(3, Some(standing(None, Some(2), Some(Lag::Pending)))));
    let progress = tracker.progress(&route(), None, "");
    assert_eq!((progress.subscribed, progress.programmed, progress.laggards.len()), (1, 0, 1));
    tracker.report(a, report(3, Some(standing(None, None, None))));
    assert_eq!(tracker.progress(&route(), None, ""), Progress::default());
    tracker.report(a, report(3, None));
    assert!(tracker.state.lock().by_object.is_empty());
}

#[test]
fn a_proxy_that_vanishes_is_named_for_a_while_and_one_that_leaves_is_not() {
    let tracker = Tracker::default();
    let now = Instant::now();
    let (a, _keep_a) = open(&tracker, opened("a"));
    let (b, _keep_b) = open(&tracker, opened("b"));
    for id in [a, b] {
        tracker.report(id, report(1, Some(standing(Some(1), Some(1), None))));
    }
    tracker.closed(a, false, now);
    tracker.closed(b, true, now);
    assert_eq!(tracker.connected(), 0);
    assert_eq!(tracker.progress(&route(), Some(1), "").programmed, 1, "what it had then is in force");
    let behind = tracker.progress(&route(), Some(2), "");
    assert_eq!(behind.laggards[0].reason, "disconnected");
    assert!(!tracker.settled(2).is_so(), "nobody was told of it");
    tracker.tell(Some(&HashSet::from([a])), 2);
    assert!(!tracker.settled(2).is_so(), "it has not been compared yet");
    tracker.report(a, report(2, Some(standing(Some(2), Some(1), Some(Lag::Pending)))));
    assert!(tracker.settled(2).is_so());

    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT - Duration::from_secs(1), |_, _| limits::DISCONNECTED_KEPT);
    assert_eq!(tracker.proxies().len(), 1);
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT, |_, _| limits::DISCONNECTED_KEPT);
    assert_eq!(tracker.proxies().len(), 0);
    assert!(tracker.state.lock().by_name.is_empty());

    let (c, _keep_c) = open(&tracker, opened("c"));
    tracker.forget_vanished(now, |_, _| Duration::ZERO);
    assert_eq!(tracker.proxies().len(), 1, "it is connected, Pod or not");
    tracker.closed(c, false, now);
    // As long as its Pod is there, whatever it serves is served.
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT * 100, |_, _| Duration::MAX);
    assert_eq!(tracker.proxies().len(), 1);
    let kept = |namespace: &str, pod: &str| match (namespace, pod) {
        ("shop", "c") => Duration::ZERO,
        _ => Duration::MAX,
    };
    tracker.forget_vanished(now, kept);
    assert_eq!(tracker.proxies().len(), 0);
}

#[test]
fn a_second_stream_supersedes_the_first() {
    let tracker = Tracker::default();
    let (first, superseded) = open(&tracker, opened("a"));
    tracker.report(first, report(1, Some(standing(Some(1), Some(1), None))));
    let (second, _keep) = open(&tracker, opened("a"));
    assert!(superseded.has_changed().is_err());
    assert_eq!(tracker.progress(&route(), Some(1), ""), Progress::default());
    // Late words of the first change nothing.
    tracker.report(first, report(1, Some(standing(Some(1), Some(1), None))));
    tracker.closed(first, false, Instant::now());
    assert_eq!(tracker.proxies().len(), 1);
    tracker.report(second, report(1, Some(standing(Some(1), Some(1), None))));
    assert_eq!(tracker.progress(&route(), Some(1), "").programmed, 1);
}

#[test]
fn a_second_process_of_the_same_name_is_a_laggard_and_does_not_throw_out_the_first() {
    let tracker = Tracker::default();
    let now = Instant::now();
    let (first, mut orders) = open(&tracker, process("a", 1));
    tracker.report(first, report(2, Some(standing(Some(2), Some(2), None))));
    let holder = contest(&tracker, &process("a", 2));
    assert_eq!((holder.stream, tracker.answered(&holder)), (first, Some(false)));
    assert!(orders.has_changed().unwrap(), "it is asked to show that it is there");
    orders.mark_unchanged();
    tracker.report(first, Report { heard: 1, ..report(2, Some(standing(Some(2), Some(2), None))) });
    assert_eq!(tracker.answered(&holder), Some(true));

    let (refused, _keep, news) = tracker.refused(process("a", 2), now);
    assert!(news && !tracker.settled(2).is_so());
    tracker.report(refused, report(2, Some(standing(Some(2), None, Some(Lag::Pending)))));
    assert_eq!(laggards(&tracker, Some(2)), [("shop/a".into(), "duplicate-name".into())]);
    assert_eq!(tracker.progress(&route(), Some(2), "").programmed, 1);
    // It tries again and again, and is one. Until it is known anew what it has, nothing is said to be in force everywhere,
    // also to those who had found just before that all was known.
    tracker.tell(Some(&HashSet::new()), 2);
    let settled = tracker.settled(2);
    assert!(tracker.is_still(settled));
    let (again, _keep, news) = tracker.refused(process("a", 2), now);
    assert!(!news && !tracker.is_still(settled) && !tracker.settled(2).is_so());
    tracker.report(again, report(2, Some(standing(Some(2), None, Some(Lag::Pending)))));
    assert!(tracker.settled(2).is_so());
    assert_eq!(tracker.proxies().len(), 2);

    // The first loses its stream, and the second is faster: they have changed places.
    tracker.closed(first, false, now);
    let (second, _keep) = open(&tracker, process("a", 2));
    tracker.report(second, report(2, Some(standing(Some(2), Some(2), None))));
    tracker.report(first, report(3, Some(standing(Some(3), Some(2), Some(Lag::Pending)))));
    assert_eq!(laggards(&tracker, Some(3)).iter().filter(|(_, reason)| reason == "duplicate-name").count(), 1);
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT, |_, _| limits::DISCONNECTED_KEPT);
    assert_eq!(tracker.proxies().len(), 1);
    assert!(tracker.state.lock().duplicates.is_empty());
}

#[test]
fn a_restarted_process_gets_its_name_back() {
    let tracker = Tracker::default();
    let (first, orders) = open(&tracker, process("a", 1));
    tracker.report(first, report(1, Some(standing(Some(1), Some(1), None))));
    // The end of the old stream was seen: it is gone without a trace.
    tracker.closed(first, false, Instant::now());
    let (second, _keep) = open(&tracker, process("a", 2));
    assert!(orders.has_changed().is_err());
    assert_eq!((tracker.proxies().len(), laggards(&tracker, Some(2))), (1, Vec::new()));
    // It was not, and nobody answers there.
    let holder = contest(&tracker, &process("a", 3));
    assert!(matches!(tracker.claim(&process("a", 3), Some(holder.stream)), Claim::Granted(..)));
    assert_eq!((tracker.answered(&holder), holder.stream), (None, second));
    // Its own next stream needs no proof.
    open(&tracker, process("a", 3));
    // Another identity's does, whatever it says of itself.
    let identity = SpiffeId::new("cluster.local", "shop", "other").unwrap();
    contest(&tracker, &Opened { identity, ..process("a", 3) });
    assert_eq!(tracker.proxies().len(), 1);
}

#[test]
fn those_that_an_earlier_control_plane_knew_are_missed_until_they_are_back() {
    let tracker = Tracker::default();
    let now = Instant::now();
    let name = |workload: &str, has_pod| Name { namespace: "shop".into(), workload: workload.into(), has_pod };
    tracker.expect([name("a", true), name("b", true), name("c", false)], now);
    let missed = |name: &str| (name.to_owned(), "disconnected".to_owned());
    assert_eq!(laggards(&tracker, Some(1)), [missed("shop/a"), missed("shop/b"), missed("shop/c")]);
    assert_eq!(laggards(&tracker, None).len(), 3);
    assert_eq!((tracker.proxies().len(), tracker.connected()), (3, 0));
    open(&tracker, opened("a"));
    assert_eq!(tracker.names().len(), 3, "until all are back, the next control plane misses them too");
    assert_eq!(tracker.progress(&route(), Some(1), "").awaited, 2);
    tracker.forget_vanished(now, |_, pod| if pod == "b" { Duration::ZERO } else { Duration::MAX });
    assert_eq!(laggards(&tracker, Some(1)), [missed("shop/c")]);
    // Without a Pod nothing tells when it is gone for good.
    let without_pod = |_: &str, _: &str| Duration::ZERO;
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT - Duration::from_secs(1), without_pod);
    assert_eq!(laggards(&tracker, Some(1)), [missed("shop/c")]);
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT, without_pod);
    assert_eq!(tracker.progress(&route(), Some(1), ""), Progress::default());

    // One that has got a Pod since is named as long as any.
    tracker.expect([name("c", false)], now);
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT * 100, |_, _| Duration::MAX);
    assert_eq!(laggards(&tracker, Some(1)), [missed("shop/c")]);

    // A proxy that is cut off for longer than a control plane waits is not one that runs everything: its Pod is up.
    tracker.expect([name("b", true)], now);
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT * 100, |_, _| Duration::MAX);
    assert_eq!(
        (tracker.progress(&route(), Some(1), "").awaited, laggards(&tracker, Some(1))),
        (1, vec![missed("shop/b")])
    );
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT * 100, |_, _| Duration::ZERO);
    assert_eq!(tracker.progress(&route(), Some(1), ""), Progress::default());
}

#[test]
fn who_could_never_have_an_object_is_not_waited_for_because_of_it() {
    let tracker = Tracker::default();
    let name = |namespace: &str| Name { namespace: namespace.into(), workload: "a".into(), has_pod: true };
    tracker.expect([name("shop"), name("office")], Instant::now());
    // What workloads accept is said in their own namespace; whom a route is for may have been another thing before.
    let policy = ObjectRef { kind: "InboundPolicy".into(), ..route() };
    assert_eq!(tracker.progress(&policy, Some(1), "").awaited, 1);
    assert_eq!(tracker.progress(&policy, Some(1), "").laggards[0].proxy, "shop/a");
    assert_eq!(tracker.progress(&route(), Some(1), "").awaited, 2);
}

#[test]
fn what_is_held_in_an_unknown_version_may_be_made_from_what_is_gone() {
    let tracker = Tracker::default();
    let (a, _keep) = open(&tracker, opened("a"));
    let held = Standing { in_force: Some(Origins::Known(Vec::new())), ..standing(None, None, Some(Lag::Pending)) };
    tracker.report(a, report(1, Some(held)));
    assert_eq!(laggards(&tracker, None), [("shop/a".into(), "pending".into())]);
    tracker.report(a, report(1, Some(standing(None, None, None))));
    assert_eq!(tracker.progress(&route(), None, ""), Progress::default());
}

#[test]
fn a_proxy_that_went_to_another_replica_is_that_replicas_to_answer_for() {
    let tracker = Tracker::default();
    let (a, _keep_a) = open(&tracker, opened("a"));
    let (_, _keep_b) = open(&tracker, opened("b"));
    tracker.report(a, report(1, Some(standing(Some(1), Some(1), None))));
    tracker.closed(a, false, Instant::now());
    assert_eq!(laggards(&tracker, Some(2)), [("shop/a".to_owned(), "disconnected".to_owned())]);
    assert_eq!(tracker.lost(10), ["shop/a"]);
    let asked = ["shop/a", "shop/b", "shop/c"].map(str::to_owned);
    assert_eq!(tracker.connected_of(&asked), ["shop/b"]);
    // One that is connected here is not given up for what another says of it.
    tracker.found_elsewhere(&asked);
    assert_eq!(laggards(&tracker, Some(2)), []);
    assert_eq!((tracker.connected(), tracker.lost(10)), (1, Vec::new()));
}

#[test]
fn who_runs_an_object_that_was_made_again_lags() {
    let tracker = Tracker::default();
    let (a, _keep) = open(&tracker, opened("a"));
    let of = |uid: &str| vec![ObjectGeneration { uid: uid.into(), ..origins(1).remove(0) }];
    let with = |wanted: &str, in_force: &str| {
        let resource = Resource { origins: of(wanted), ..Resource::default() };
        Standing {
            wanted: Arc::new(Compiled::new(Some(resource), Vec::new(), 1)),
            in_force: Some(Origins::Known(of(in_force))),
            lag: (wanted != in_force).then_some(Lag::Pending),
        }
    };
    let programmed = |uid: &str| tracker.progress(&route(), Some(1), uid).programmed;
    tracker.report(a, report(1, Some(with("old", "old"))));
    // A replica that has not heard of the new one says so by this.
    assert_eq!((programmed("old"), programmed("new"), programmed("")), (1, 0, 1));
    tracker.report(a, report(2, Some(with("new", "old"))));
    assert_eq!((programmed("old"), programmed("new")), (0, 0));
    tracker.report(a, report(2, Some(with("new", "new"))));
    assert_eq!((programmed("new"), laggards(&tracker, Some(1))), (1, vec![]));
}
