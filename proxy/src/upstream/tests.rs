mod mesh;

use std::{collections::HashMap, time::Duration};

use tokio::net::UdpSocket;

use super::{
    balance::{Algorithm, LoadBalancing, Standing},
    outlier::OutlierDetection,
    pool::Carry,
    testing::*,
    *,
};
use crate::{
    policy::{BackendPolicy, Protocol},
    telemetry::{
        exposition,
        recorder::{RETAIN, Recorder, Registry},
    },
};

/// Of endpoints that nobody connects to.
fn addresses(count: u8) -> Vec<SocketAddr> {
    (1..=count).map(|n| SocketAddr::from(([10, 0, 0, n], 80))).collect()
}

#[tokio::test]
async fn a_pick_waits_for_the_first_endpoints() {
    on_worker(async {
        let (upstreams, backend) = (Rc::new(upstreams()), Arc::new(Backend::new("shop/cart:80".into())));
        let waiting = {
            let (upstreams, backend) = (Rc::clone(&upstreams), Arc::clone(&backend));
            tokio::task::spawn_local(
                async move { upstreams.pick(&backend, &[], |_| None).await.unwrap().endpoint.address },
            )
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let address = nobody().await;
        backend.publish(set(&[address]));
        assert_eq!(waiting.await.unwrap(), address);
        backend.publish(set(&[]));
        assert_eq!(upstreams.pick(&backend, &[], |_| None).await.err().unwrap().reason().as_str(), "no-endpoint");
    })
    .await;
}

#[tokio::test]
async fn a_pick_does_not_wait_for_ever() {
    on_worker(async {
        let (upstreams, backend) = (upstreams(), Arc::new(Backend::new("shop/cart:80".into())));
        assert_eq!(upstreams.pick(&backend, &[], |_| None).await.err().unwrap().reason().as_str(), "discovery");
    })
    .await;
}

#[tokio::test]
async fn picks_spread_and_avoid_what_was_tried() {
    on_worker(async {
        let addresses = addresses(3);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        let mut counts: HashMap<SocketAddr, usize> = HashMap::new();
        for _ in 0..3000 {
            *counts.entry(upstreams.pick(&backend, &[], |_| None).await.unwrap().endpoint.address).or_default() += 1;
        }
        assert!(addresses.iter().all(|address| (700..1300).contains(&counts[address])), "{counts:?}");

        let tried = [addresses[0], addresses[2]];
        for _ in 0..100 {
            assert_eq!(upstreams.pick(&backend, &tried, |_| None).await.unwrap().endpoint.address, addresses[1]);
        }
        upstreams
            .pick(&backend, &addresses, |_| None)
            .await
            .expect("a second try at the same endpoint is better than none");
    })
    .await;
}

#[tokio::test]
async fn a_session_is_served_while_its_endpoint_is_there() {
    on_worker(async {
        let addresses = addresses(3);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        let endpoint = Arc::clone(&backend.endpoints.load().endpoints[1]);
        let session = Session::new(&backend.key, &endpoint.name(), endpoint.address, 0);
        assert!(upstreams.serves(&backend, &session, false).await);
        endpoint.draining.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(upstreams.serves(&backend, &session, false).await, "until it is gone");
        let other = Session::new(&backend.key, "another workload", endpoint.address, 0);
        assert!(!upstreams.serves(&backend, &other, true).await);

        let kept_until = Instant::now().checked_add(Duration::from_secs(60));
        let kept = EndpointSet::new(true, Protocol::Http, vec![endpoint]);
        backend.publish(EndpointSet { kept_until, ..kept });
        assert!(!upstreams.serves(&backend, &session, false).await, "the control plane knows of none");
        assert!(upstreams.serves(&backend, &session, true).await, "which may be a moment's error");
        let pick = upstreams.pick_of_session(&backend, &session).await.unwrap();
        assert!(pick.is_some(), "if there is no other backend");
        backend.publish(set(&[addresses[0], addresses[2]]));
        assert!(!upstreams.serves(&backend, &session, true).await);
    })
    .await;
}

#[tokio::test]
async fn a_session_stays_while_nothing_is_known_of_its_backend() {
    on_worker(async {
        let (upstreams, backend) = (upstreams(), Arc::new(Backend::new("shop/cart:80".into())));
        let session = Session::new(&backend.key, "cart-1", addresses(1)[0], 0);
        let serves = upstreams.serves(&backend, &session, false);
        let (serves, pick) = tokio::join!(serves, upstreams.pick_of_session(&backend, &session));
        assert!(serves);
        let error = pick.err().unwrap();
        assert_eq!(error.reason().as_str(), "discovery");
    })
    .await;
}

#[tokio::test]
async fn requests_in_flight_repel_others() {
    on_worker(async {
        let addresses = addresses(4);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        let mut held = Vec::new();
        for _ in 0..40 {
            held.push(upstreams.pick(&backend, &[], |_| None).await.unwrap());
        }
        for address in addresses {
            let count = held.iter().filter(|pick| pick.endpoint.address == address).count();
            assert!((6..=14).contains(&count), "{address}: {count}");
        }
    })
    .await;
}

#[tokio::test]
async fn draining_endpoints_get_nothing_new() {
    on_worker(async {
        let addresses = addresses(3);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        let drain = |index: usize| {
            let set = backend.endpoints.load_full();
            set.endpoints[index].draining.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        drain(0);
        drain(1);
        for _ in 0..300 {
            assert_eq!(upstreams.pick(&backend, &[], |_| None).await.unwrap().endpoint.address, addresses[2]);
        }
        drain(2);
        upstreams.pick(&backend, &[], |_| None).await.expect("terminating endpoints are the last resort");
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected_and_comes_back_by_a_probe() {
    on_worker(async {
        let (dead, alive) = (nobody().await, Server::start(|_, _| OK).await);
        let (upstreams, backend) = (upstreams(), backend(&[dead, alive.address]));
        let mut failed = 0;
        for _ in 0..500 {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            match pick.http(Carry::Http1).await {
                Ok(connection) => {
                    read(get(connection).await.unwrap()).await;
                    pick.report(Outcome::Success, Instant::now());
                }
                Err(error) => {
                    assert_eq!(error.reason().as_str(), "connect");
                    failed += 1;
                    // A caller that reports it too changes nothing.
                    pick.report(Outcome::Failure, Instant::now());
                }
            }
        }
        assert!(failed <= 5, "{failed} requests went to the dead endpoint");

        let endpoint = Arc::clone(&backend.endpoints.load().endpoints[0]);
        while endpoint.outlier.health(Instant::now()) == outlier::Health::InService {
            endpoint.outlier.record(false, Role::Ordinary, Instant::now(), &OutlierDetection::default(), || true);
        }
        let (balancer, _) = upstreams.state.balancer(&backend);
        let later = Instant::now() + Duration::from_secs(10);
        let mut probes = 0;
        for _ in 0..50 {
            let (local, role) = balancer
                .choose(Wanted { tried: &[], key: None, now: later, why: None }, || upstreams.state.random.next())
                .unwrap();
            assert_eq!(role == Role::Probe, local.endpoint.address == dead);
            probes += usize::from(role == Role::Probe);
        }
        assert_eq!(probes, 1);
    })
    .await;
}

#[tokio::test]
async fn requests_for_an_ejected_endpoint_are_no_ejections() {
    on_worker(async {
        let addresses = addresses(2);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        let endpoint = Arc::clone(&backend.endpoints.load().endpoints[0]);
        for _ in 0..OutlierDetection::default().consecutive_failures {
            endpoint.outlier.record(false, Role::Ordinary, Instant::now(), &OutlierDetection::default(), || true);
        }
        // The only one left.
        backend.publish(EndpointSet::new(true, Protocol::Http, vec![Arc::clone(&endpoint)]));
        for _ in 0..100 {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            assert_eq!(pick.role.get(), Role::LastResort);
            pick.report(Outcome::Failure, Instant::now());
        }
        let second = Instant::now() + OutlierDetection::default().base_ejection * 2;
        assert_eq!(endpoint.outlier.health(second), outlier::Health::ProbeDue, "ejected once, not a hundred times");
        upstreams.pick(&backend, &[], |_| None).await.unwrap().report(Outcome::Success, Instant::now());
        assert_eq!(endpoint.outlier.health(Instant::now()), outlier::Health::InService);
    })
    .await;
}

#[tokio::test]
async fn what_clients_give_up_ejects_nobody_but_shows_who_is_slow() {
    on_worker(async {
        let addresses = addresses(2);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        let mut at_slow = 0;
        for _ in 0..200 {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            if pick.endpoint.address == addresses[0] {
                at_slow += 1;
                pick.report(Outcome::GivenUp, pick.started + Duration::from_secs(1));
            } else {
                pick.report(Outcome::Success, pick.started + Duration::from_millis(1));
            }
        }
        let slow = Arc::clone(&backend.endpoints.load().endpoints[0]);
        assert_eq!(slow.outlier.health(Instant::now()), outlier::Health::InService);
        assert!(at_slow < 40, "{at_slow} of 200");
    })
    .await;
}

#[tokio::test]
async fn who_leaves_while_it_waits_shows_who_hangs() {
    on_worker(async {
        let addresses = addresses(2);
        for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
            for (is_sent, is_shunned) in [(true, true), (false, false)] {
                let (upstreams, backend) = (upstreams(), Arc::new(Backend::new("shop/cart:80".into())));
                let load_balancing = LoadBalancing { algorithm: algorithm.clone(), ..LoadBalancing::default() };
                backend
                    .publish(set(&addresses).under(Arc::new(BackendPolicy { load_balancing, ..Default::default() })));
                let mut at_hanging = 0;
                for _ in 0..200 {
                    let mut pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
                    if pick.endpoint.address == addresses[0] {
                        at_hanging += 1;
                        pick.started -= Duration::from_secs(1);
                        if is_sent {
                            pick.asks(None);
                        }
                    } else {
                        pick.report(Outcome::Success, pick.started + Duration::from_millis(100));
                    }
                }
                assert_eq!(at_hanging < 40, is_shunned, "{algorithm:?}: {at_hanging} of 200");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_is_gone_leaves_no_series() {
    on_worker(async {
        let registry = Arc::new(Registry::default());
        let (upstreams, backend) = (upstreams(), backend(&[nobody().await]));
        metrics::with_local_recorder(&Recorder(registry.clone()), || upstreams.state.balancer(&backend));
        upstreams.pick(&backend, &[], |_| None).await.unwrap().report(Outcome::Failure, Instant::now());
        drop(backend);
        let now = Instant::now();
        assert!(!upstreams.state.sweep(now), "nothing is left to sweep");
        registry.sweep(now);
        registry.sweep(now + RETAIN);
        let page = exposition::render(&registry);
        assert!(!page.contains("shop/cart:80"), "{page}");
    })
    .await;
}

#[tokio::test]
async fn at_most_half_are_ejected() {
    on_worker(async {
        let addresses = addresses(5);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        for _ in 0..2000 {
            upstreams.pick(&backend, &[], |_| None).await.unwrap().report(Outcome::Failure, Instant::now());
        }
        let set = backend.endpoints.load_full();
        let now = Instant::now();
        let ejected = set.endpoints.iter().filter(|e| e.outlier.health(now) != outlier::Health::InService).count();
        assert_eq!(ejected, 2);
    })
    .await;
}

#[tokio::test]
async fn who_asks_again_to_be_left_alone_rests_for_the_longest_time() {
    on_worker(async {
        let addresses = addresses(2);
        let (upstreams, backend) = (upstreams(), backend(&addresses));
        let first = async || upstreams.pick(&backend, &addresses[1..], |_| None).await.unwrap();
        let (one, other, third) = (first().await, first().await, first().await);
        let second = upstreams.pick(&backend, &addresses[..1], |_| None).await.unwrap();
        let (now, seconds) = (Instant::now(), Duration::from_secs);
        let rests = |after: u64| one.local.standing(&[], now + seconds(after)) == Standing::Resting;
        one.rest(seconds(1), now);
        assert!(rests(0) && !rests(2));
        other.rest(seconds(8), now);
        assert!(rests(7) && !rests(9), "it rests already, and may go on");
        third.rest(seconds(1), now);
        assert!(rests(7), "a shorter time takes nothing back");
        second.rest(seconds(1), now);
        assert_eq!(second.local.standing(&[], now), Standing::Ready, "half of them rest");
    })
    .await;
}

#[tokio::test]
async fn endpoints_that_drain_are_no_reason_against_rest_nor_for_it() {
    on_worker(async {
        let (upstreams, backend) = (upstreams(), backend(&addresses(4)));
        for endpoint in &backend.endpoints.load().endpoints[2..] {
            endpoint.draining.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        let one = upstreams.pick(&backend, &[], |_| None).await.unwrap();
        let other = upstreams.pick(&backend, &[one.endpoint.address], |_| None).await.unwrap();
        let now = Instant::now();
        one.rest(Duration::from_secs(5), now);
        assert_eq!(one.local.standing(&[], now), Standing::Resting);
        other.rest(Duration::from_secs(5), now);
        assert_eq!(other.local.standing(&[], now), Standing::Ready, "who else would serve?");
    })
    .await;
}

#[tokio::test]
async fn a_new_endpoint_starts_as_its_peers_are() {
    on_worker(async {
        let old: Vec<SocketAddr> = (1..=2).map(|n| SocketAddr::from(([10, 0, 0, n], 80))).collect();
        let (upstreams, backend) = (upstreams(), backend(&old));
        let start = Instant::now();
        for _ in 0..50 {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            pick.report(Outcome::Success, pick.started + Duration::from_millis(1));
        }
        let mut endpoints = backend.endpoints.load().endpoints.clone();
        let new = SocketAddr::from(([10, 0, 0, 3], 80));
        endpoints.push(Endpoint::plain(new));
        backend.publish(EndpointSet::new(true, Protocol::Http, endpoints));
        let mut count = 0;
        for _ in 0..300 {
            let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
            count += usize::from(pick.endpoint.address == new);
            pick.report(Outcome::Success, pick.started + Duration::from_millis(1));
        }
        assert!((50..200).contains(&count), "{count} of 300 after {:?}", start.elapsed());
    })
    .await;
}

/// A name server that knows one name: A records with a TTL, both as the test says; and how often it was asked for them.
async fn name_server(answer: Rc<RefCell<(Vec<[u8; 4]>, u32)>>, asked: Rc<Cell<usize>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut query = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut query).await.unwrap();
            // Header (12 bytes), name, type, class; then EDNS, which is left out of the response.
            let name_end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap() + 1;
            let is_a = query[name_end..name_end + 2] == [0, 1];
            let (addresses, ttl) = answer.borrow().clone();
            let known = query[12..name_end].starts_with(b"\x03api\x07example");
            let count = if is_a && known { addresses.len() as u8 } else { 0 };
            asked.set(asked.get() + usize::from(is_a));
            let code = if known { 0x80 } else { 0x83 };
            let mut response =
                [&query[..2], &[0x81, code, 0, 1, 0, count, 0, 0, 0, 0], &query[12..name_end + 4]].concat();
            for ip in addresses.iter().take(count.into()) {
                response.extend([0xc0, 12, 0, 1, 0, 1]);
                response.extend(ttl.to_be_bytes());
                response.extend([0, 4]);
                response.extend(ip);
            }
            socket.send_to(&response, client).await.unwrap();
        }
    });
    address
}

async fn until(condition: impl AsyncFn() -> bool) {
    while !condition().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn names_are_resolved_and_followed_by_ttl() {
    on_worker(async {
        let answer = Rc::new(RefCell::new((vec![[127, 0, 0, 1], [127, 0, 0, 2]], 1)));
        let asked = Rc::new(Cell::new(0));
        let server = name_server(Rc::clone(&answer), Rc::clone(&asked)).await;
        let resolver = dns::Resolver::new(tokio::runtime::Handle::current(), Some(server));
        let upstreams = Upstreams::new(None, Arc::new(CredentialStore::default()), resolver);
        let backend = upstreams.outside("api.example:8443").unwrap();
        assert!(Arc::ptr_eq(&backend, &upstreams.outside("api.example:8443").unwrap()));

        let mut seen = HashMap::new();
        for _ in 0..100 {
            *seen
                .entry(upstreams.pick(&backend, &[], |_| None).await.unwrap().endpoint.address.to_string())
                .or_insert(0) += 1;
        }
        assert_eq!(asked.get(), 1, "the answer holds for its TTL");
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen.contains_key("127.0.0.1:8443") && seen.contains_key("127.0.0.2:8443"));

        let kept = Arc::clone(&backend.endpoints.load().endpoints[1]);
        answer.replace((vec![[127, 0, 0, 2], [127, 0, 0, 3]], 1));
        let is_followed = async || {
            upstreams.pick(&backend, &[], |_| None).await.unwrap();
            backend.endpoints.load().endpoints.iter().any(|endpoint| endpoint.address.to_string() == "127.0.0.3:8443")
        };
        until(is_followed).await;
        let set = backend.endpoints.load_full();
        assert_eq!(set.endpoints.len(), 2);
        assert!(set.endpoints.iter().any(|endpoint| Arc::ptr_eq(endpoint, &kept)), "what stays keeps its state");

        // Nothing to be had: the last good answer stays.
        answer.replace((vec![], 1));
        let before = asked.get();
        let is_asked_again = async || {
            upstreams.pick(&backend, &[], |_| None).await.unwrap();
            asked.get() > before + 1
        };
        until(is_asked_again).await;
        assert_eq!(backend.endpoints.load().serial, set.serial);
    })
    .await;
}

#[tokio::test]
async fn an_external_name_and_what_does_not_exist() {
    on_worker(async {
        let answer = Rc::new(RefCell::new((vec![[127, 0, 0, 9]], 300)));
        let server = name_server(answer, Rc::default()).await;
        let resolver = dns::Resolver::new(tokio::runtime::Handle::current(), Some(server));
        let upstreams = Upstreams::new(None, Arc::new(CredentialStore::default()), resolver);

        let backend = Arc::new(Backend::new("shop/api:443".into()));
        backend.host_name.store(Some(Arc::new(HostName { host: "api.example".into(), port: 443 })));
        backend.publish(EndpointSet::new(false, Protocol::Tls, Vec::new()));
        assert_eq!(
            upstreams.pick(&backend, &[], |_| None).await.unwrap().endpoint.address.to_string(),
            "127.0.0.9:443"
        );
        assert_eq!(backend.endpoints.load().protocol, Protocol::Tls);

        // Renamed: what was known of the old name is not used.
        backend.host_name.store(Some(Arc::new(HostName { host: "127.0.0.10".into(), port: 444 })));
        backend.publish(EndpointSet::new(false, Protocol::Tls, Vec::new()));
        assert_eq!(
            upstreams.pick(&backend, &[], |_| None).await.unwrap().endpoint.address.to_string(),
            "127.0.0.10:444"
        );

        let started = Instant::now();
        let missing = upstreams.outside("nowhere.example:1").unwrap();
        assert_eq!(upstreams.pick(&missing, &[], |_| None).await.err().unwrap().reason().as_str(), "no-endpoint");
        assert!(started.elapsed() < limits::CONNECT_TIMEOUT);
        assert!(upstreams.outside("no-port").is_none());
    })
    .await;
}

/// Servers that close when they like, clients that leave when they like: in the end nothing is left over.
#[tokio::test]
async fn nothing_leaks_however_exchanges_end() {
    on_worker(async {
        let mut servers = Vec::new();
        for kind in 0..3_usize {
            let script = move |number: usize, request: usize| match (kind + number * 7 + request) % 11 {
                0 => Act::Close,
                1 => Act::AnswerAndClose("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
                2 => Act::AnswerAndClose("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\ncut off"),
                3 => Act::Answer("HTTP/1.1 503 Service Unavailable\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
                4 => Act::AnswerAndClose("not HTTP at all\r\n\r\n"),
                _ => OK,
            };
            servers.push(Server::start(script).await);
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let (upstreams, backend) = (Rc::new(upstreams()), backend(&addresses));
        let succeeded = Rc::new(Cell::new(0));
        let clients: Vec<_> = (0..20_u64)
            .map(|client| {
                let (upstreams, backend, succeeded) =
                    (Rc::clone(&upstreams), Arc::clone(&backend), Rc::clone(&succeeded));
                tokio::task::spawn_local(async move {
                    for request in 0..100 {
                        let pick = upstreams.pick(&backend, &[], |_| None).await.unwrap();
                        let Ok(connection) = pick.http(Carry::Http1).await else { continue };
                        let sent = get(connection);
                        if (client + request) % 13 == 0 {
                            // Leaves before the answer.
                            let _ = tokio::time::timeout(Duration::ZERO, sent).await;
                            continue;
                        }
                        let Ok(reply) = sent.await else {
                            pick.report(Outcome::Failure, Instant::now());
                            continue;
                        };
                        pick.report(Outcome::Success, Instant::now());
                        if (client + request) % 5 != 0 {
                            succeeded.set(succeeded.get() + usize::from(read_to_end(reply).await.is_ok()));
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        assert!(succeeded.get() > 500, "{}", succeeded.get());

        let (balancer, _) = upstreams.state.balancer(&backend);
        for local in balancer.roster().endpoints.iter() {
            assert_eq!(local.in_flight(), 0);
            local.pool.sweep(Instant::now() + limits::MESH_POOL_IDLE);
            assert_eq!(local.pool.len(), 0);
        }
        for server in &servers {
            server.until(|server| server.closed.get() == server.accepted.get()).await;
        }
    })
    .await;
}
