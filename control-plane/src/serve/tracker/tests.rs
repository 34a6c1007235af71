use std::{sync::Arc, time::Duration};

use leno_proto::v1::{ObjectGeneration, Resource, ResourceKind};

use super::*;
use crate::serve::compiled::Compiled;

fn route() -> ObjectRef {
    ObjectRef { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "cart".into() }
}

fn opened(workload: &str) -> Opened {
    Opened {
        identity: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
        workload: workload.into(),
        version: "0.1.0".into(),
        has_pod: true,
        certificate_not_after: SystemTime::UNIX_EPOCH,
    }
}

fn origins(generation: u64) -> Vec<ObjectGeneration> {
    vec![ObjectGeneration { object: Some(route()), generation }]
}

fn name() -> ResourceName {
    ResourceName { kind: ResourceKind::Destination.into(), key: "cart.shop:80".into() }
}

/// Of the route: the generation wanted (None: it is not made from the route), and the one in force.
fn standing(wanted: Option<u64>, in_force: Option<u64>, lag: Option<Lag>) -> Standing {
    let resource = Resource { origins: wanted.map(origins).unwrap_or_default(), ..Resource::default() };
    Standing { wanted: Arc::new(Compiled::new(Some(resource), Vec::new(), 1)), in_force: in_force.map(origins), lag }
}

fn report(seen: u64, standing: Option<Standing>) -> Report {
    Report { answered: seen, seen, subscriptions: 1, changes: vec![(name(), standing)], ..Report::default() }
}

#[test]
fn proxies_that_lag_are_named_with_the_reason() {
    let tracker = Tracker::default();
    let (a, _keep_a) = tracker.opened(opened("a"));
    let (b, _keep_b) = tracker.opened(opened("b"));
    let (c, _keep_c) = tracker.opened(opened("c"));
    let (_, _keep_d) = tracker.opened(opened("unconcerned"));
    tracker.report(a, report(2, Some(standing(Some(2), Some(2), None))));
    tracker.report(b, report(2, Some(standing(Some(2), Some(1), Some(Lag::Pending)))));
    let rejected = Lag::Rejected { version: "v".into(), field: "http.rules[0]".into(), reason: "bad regex".into() };
    tracker.report(c, report(2, Some(standing(Some(2), None, Some(rejected)))));

    let progress = tracker.progress(&route(), Some(2));
    assert_eq!((progress.subscribed, progress.programmed), (3, 1));
    let laggards: Vec<_> =
        progress.laggards.iter().map(|l| (l.proxy.as_str(), l.generation, l.reason.as_str())).collect();
    assert_eq!(laggards, [("shop/b", 1, "pending"), ("shop/c", 0, "rejected")]);
    assert_eq!(progress.laggards[1].message, "http.rules[0]: bad regex");
    assert!(!tracker.settled(2), "one has not been compared yet");
}

#[test]
fn a_removed_object_lags_where_it_is_still_in_force() {
    let tracker = Tracker::default();
    let (a, _keep) = tracker.opened(opened("a"));
    tracker.report(a, report(3, Some(standing(None, Some(2), Some(Lag::Pending)))));
    let progress = tracker.progress(&route(), None);
    assert_eq!((progress.subscribed, progress.programmed, progress.laggards.len()), (1, 0, 1));
    tracker.report(a, report(3, Some(standing(None, None, None))));
    assert_eq!(tracker.progress(&route(), None), Progress::default());
    tracker.report(a, report(3, None));
    assert!(tracker.state.lock().by_object.is_empty());
}

#[test]
fn a_proxy_that_vanishes_is_named_for_a_while_and_one_that_leaves_is_not() {
    let tracker = Tracker::default();
    let now = Instant::now();
    let (a, _keep_a) = tracker.opened(opened("a"));
    let (b, _keep_b) = tracker.opened(opened("b"));
    for id in [a, b] {
        tracker.report(id, report(1, Some(standing(Some(1), Some(1), None))));
    }
    tracker.closed(a, false, now);
    tracker.closed(b, true, now);
    assert_eq!(tracker.connected(), 0);
    assert_eq!(tracker.progress(&route(), Some(1)).programmed, 1, "what it had then is in force");
    let behind = tracker.progress(&route(), Some(2));
    assert_eq!(behind.laggards[0].reason, "disconnected");
    assert!(tracker.settled(9), "nothing more is to be heard of it");

    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT - Duration::from_secs(1), |_, _| true);
    assert_eq!(tracker.proxies().len(), 1);
    tracker.forget_vanished(now + limits::DISCONNECTED_KEPT, |_, _| true);
    assert_eq!(tracker.proxies().len(), 0);
    assert!(tracker.state.lock().by_name.is_empty());

    let (c, _keep_c) = tracker.opened(opened("c"));
    tracker.forget_vanished(now, |_, _| false);
    assert_eq!(tracker.proxies().len(), 1, "it is connected, Pod or not");
    tracker.closed(c, false, now);
    tracker.forget_vanished(now, |namespace, pod| (namespace, pod) != ("shop", "c"));
    assert_eq!(tracker.proxies().len(), 0);
}

#[test]
fn a_second_stream_supersedes_the_first() {
    let tracker = Tracker::default();
    let (first, superseded) = tracker.opened(opened("a"));
    tracker.report(first, report(1, Some(standing(Some(1), Some(1), None))));
    let (second, _keep) = tracker.opened(opened("a"));
    assert!(*superseded.borrow());
    assert_eq!(tracker.progress(&route(), Some(1)), Progress::default());
    // Late words of the first change nothing.
    tracker.report(first, report(1, Some(standing(Some(1), Some(1), None))));
    tracker.closed(first, false, Instant::now());
    assert_eq!(tracker.proxies().len(), 1);
    tracker.report(second, report(1, Some(standing(Some(1), Some(1), None))));
    assert_eq!(tracker.progress(&route(), Some(1)).programmed, 1);
}
