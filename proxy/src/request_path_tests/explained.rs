//! What an operator is told of requests that failed, wherever on their way they did.

use std::time::Instant;

use leno_proto::v1::{self, CarriedRequest, RequestsToFind};

use super::policy::{nobody, routed};
use crate::{
    policy::Target,
    testing::{Sidecar, run, talk},
};

pub(super) const CART: &[u8] = b"GET /cart HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// The latest that failed.
pub(super) fn last_failed(sidecar: &Sidecar) -> CarriedRequest {
    let wanted = RequestsToFind { failed: true, most: 1, ..RequestsToFind::default() };
    sidecar.ctx.telemetry.kept.find(&wanted, Instant::now()).0.pop().expect("none is kept")
}

fn filter(kind: v1::http_filter::Kind) -> v1::HttpFilter {
    v1::HttpFilter { kind: Some(kind) }
}

pub(super) fn millis(millis: u64) -> Option<prost_types::Duration> {
    std::time::Duration::from_millis(millis).try_into().ok()
}

#[test]
fn a_failure_is_known_by_method_path_and_destination_wherever_it_fails() {
    let unsupported = filter(v1::http_filter::Kind::Unsupported("x".into()));
    let delay = v1::FaultDelay {
        when: Some(v1::FaultCondition { share: 1_000_000, matches: Vec::new() }),
        duration: millis(1000),
    };
    let faults = v1::Faults { delay: Some(delay), ..v1::Faults::default() };
    let late = v1::HttpAction { faults: Some(faults), request_timeout: millis(20), ..Default::default() };
    let filtered = v1::HttpAction { filters: vec![unsupported], ..Default::default() };
    for (action, reason) in [(filtered, "invalid-backend"), (late, "request-timeout"), (Default::default(), "connect")]
    {
        run(async move {
            let sidecar = routed(&[nobody().await], action);
            talk(sidecar.outbound().await, CART).await;
            let failed = last_failed(&sidecar);
            assert_eq!(
                (failed.method.as_str(), failed.path.as_str(), failed.reason.as_str()),
                ("GET", "/cart", reason)
            );
            let destinations = failed.decisions.iter().filter(|told| told.subject == "destination");
            assert_eq!(destinations.count(), 1, "{failed:#?}");
            let first = failed.decisions.first().unwrap();
            assert_eq!(first.text, "shop.shop:80 is Service shop/shop port 80, which speaks http");
            let times: Vec<u64> = failed.decisions.iter().map(|told| told.after_us).collect();
            assert!(times.is_sorted(), "{times:?}");
        });
    }
}

#[test]
fn what_no_rule_takes_names_the_rules_that_were_looked_at() {
    run(async {
        let sidecar = Sidecar::new("client", || Target::Outside);
        let path = v1::PathMatch { kind: Some(v1::path_match::Kind::Prefix("/other".into())) };
        let matched = v1::HttpMatch { path: Some(path), ..Default::default() };
        let route = v1::ObjectRef { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "cart".into() };
        let origin = Some(v1::RuleOrigin { route: Some(route), rule: "other".into() });
        let routes = v1::HttpRoutes {
            rules: vec![v1::HttpRule { r#match: Some(matched), action: 0 }],
            actions: vec![v1::HttpAction { origin, ..Default::default() }],
        };
        sidecar.routes(v1::Protocol::Http, routes, None, &[]);
        talk(sidecar.outbound().await, CART).await;
        let failed = last_failed(&sidecar);
        let told: Vec<_> = failed.decisions.iter().map(|told| (told.subject.as_str(), told.text.as_str())).collect();
        assert!(told[0].1.starts_with("shop.shop:80 is Service shop/shop"), "{told:?}");
        assert_eq!(told[1], ("rule", "the path is not under /other"), "{told:?}");
    });
}
