//! What an operator is told of requests that failed, wherever on their way they did.

use std::time::{Duration, Instant};

use leno_proto::v1::{self, CarriedRequest, RequestsToFind};

use super::policy::{nobody, routed};
use crate::{
    policy::Target,
    testing::{Sidecar, metrics_page, run, scripted, server_id, talk, workload_source},
};

const CART: &[u8] = b"GET /cart HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// The latest that failed, once it has ended.
async fn last_failed(sidecar: &Sidecar) -> CarriedRequest {
    let found = async {
        loop {
            match failed(sidecar).pop() {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("none is kept")
}

fn failed(sidecar: &Sidecar) -> Vec<CarriedRequest> {
    let wanted = RequestsToFind { failed: true, most: 1, ..RequestsToFind::default() };
    sidecar.ctx.telemetry.kept.find(&wanted, Instant::now()).0
}

fn filter(kind: v1::http_filter::Kind) -> v1::HttpFilter {
    v1::HttpFilter { kind: Some(kind) }
}

fn millis(millis: u64) -> Option<prost_types::Duration> {
    Duration::from_millis(millis).try_into().ok()
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
            let failed = last_failed(&sidecar).await;
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
        let failed = last_failed(&sidecar).await;
        let told: Vec<_> = failed.decisions.iter().map(|told| (told.subject.as_str(), told.text.as_str())).collect();
        assert!(told[0].1.starts_with("shop.shop:80 is Service shop/shop"), "{told:?}");
        assert_eq!(told[1], ("rule", "the path is not under /other"), "{told:?}");
    });
}

#[test]
fn what_the_servers_proxy_refuses_is_found_at_the_client() {
    run(async {
        let (app, _) = scripted(super::OK).await;
        let server = Sidecar::new("server", || Target::Outside);
        let address = server.inbound(app).await;
        let policy = v1::InboundPolicy { max_head_bytes: 200, ..v1::InboundPolicy::default() };
        let port =
            v1::InboundPort { port: address.port().into(), protocol: v1::Protocol::Http.into(), policy: Some(policy) };
        let inbound = v1::Inbound { mode: v1::inbound::Mode::Strict.into(), ports: vec![port], ..Default::default() };
        server.apply(vec![(v1::ResourceKind::Inbound, "", v1::resource::Body::Inbound(inbound))]);
        let client = Sidecar::new("client", workload_source(vec![(address, Some(server_id()))]));
        let listens = client.outbound().await;
        let big = format!("GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\nx-big: {}\r\n\r\n", "x".repeat(300));
        let answer = talk(listens, big.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("leno-request-id: "), "{answer}");
        let (at_client, at_server) = (last_failed(&client).await, last_failed(&server).await);
        assert_eq!((at_client.path.as_str(), at_client.status, at_client.failed), ("/big", 431, true));
        assert_eq!(at_client.id, at_server.id, "known as the same");
        assert!(at_client.decisions.iter().any(|told| told.text.contains("leno-reason head-too-large")));

        // What the application says itself is not the mesh's refusal.
        let (app, _) = scripted(b"HTTP/1.1 404 Not Found\r\nleno-reason: no-rule\r\ncontent-length: 0\r\n\r\n").await;
        let server = Sidecar::new("server", || Target::Outside);
        let address = server.inbound(app).await;
        let client = Sidecar::new("client", workload_source(vec![(address, Some(server_id()))]));
        let answer = talk(client.outbound().await, CART).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && !answer.contains("leno-re"), "{answer}");
        assert_eq!(failed(&client), []);
    });
}

#[test]
fn tries_are_not_told_as_endpoints() {
    run(async {
        let sidecar = routed(&[nobody().await], Default::default());
        talk(sidecar.outbound().await, CART).await;
        let failed = last_failed(&sidecar).await;
        let told = |text: &str| failed.decisions.iter().any(|told| told.text.ends_with(text));
        assert!(told("no further try: no connection in 5 tries"), "{failed:#?}");
        assert!(told("of 1 endpoints are ready, 1 tried before") && !told(", 4 tried before"), "{failed:#?}");
    });
}

#[test]
fn connections_that_go_nowhere_are_counted_by_route_and_reason() {
    run(async {
        let sidecar = Sidecar::new("client", || Target::Outside);
        let listens = sidecar.outbound().await;
        let route = v1::ObjectRef { kind: "TCPRoute".into(), namespace: "shop".into(), name: "lost".into() };
        let invalid = v1::WeightedBackend {
            weight: 1,
            kind: Some(v1::weighted_backend::Kind::Invalid("no such Service".into())),
            ..Default::default()
        };
        let tcp = |backends| v1::TcpRoute {
            origin: Some(v1::RuleOrigin { route: Some(route.clone()), rule: "0".into() }),
            backends,
        };
        for (tcp, route, backend, reason) in [
            (Some(tcp(vec![invalid])), "TCPRoute shop/lost", "invalid", "invalid-backend"),
            (Some(tcp(vec![])), "TCPRoute shop/lost", "", "invalid-backend"),
            (None, "", "", "no-rule"),
        ] {
            sidecar.routes(v1::Protocol::Tcp, v1::HttpRoutes::default(), tcp, &[]);
            talk(listens, b"anybody?").await;
            let page = metrics_page();
            let counted = page.lines().any(|line| {
                line.starts_with("leno_tcp_connection_failures_total{")
                    && line.contains(&format!("route=\"{route}\""))
                    && line.contains(&format!("backend=\"{backend}\""))
                    && line.contains(&format!("reason=\"{reason}\""))
            });
            assert!(counted, "{route} {backend} {reason}: {page}");
        }
        sidecar.routes(v1::Protocol::Tls, v1::HttpRoutes::default(), None, &[]);
        talk(listens, b"GET / HTTP/1.1\r\n\r\n").await;
        let refused = "leno_refused_total{direction=\"outbound\",reason=\"not-tls\"}";
        assert!(metrics_page().contains(refused), "{}", metrics_page());
    });
}
