//! Who ends what does not move: the client's proxy, which knows the policy, and tells the server's where that allows more time
//! than is usual. With opaque bytes nothing can be told: the server's waits for those of peers as long as any policy may say. To
//! others it gives the usual. Nor is a request idle whose answer goes on.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use leno_proto::v1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::{
    policy::{BackendPolicy, Protocol, Target},
    testing::{BOTH, Sidecar, Through, application, read_until, run, scripted, server_id, talk},
    tls::MeshProtocol,
    upstream::{Backend, Endpoint, EndpointSet},
};

/// What the server's proxy, and a client's that no policy tells otherwise, allow in these tests.
const USUAL: Duration = Duration::from_millis(250);
/// What is idle for so long is ended for certain: idleness is noticed within twice its limit.
const SILENCE: Duration = Duration::from_millis(1000);

/// A sidecar that waits USUAL for a byte.
fn impatient(service_account: &str, target: impl Fn() -> Target + 'static, idle: Duration) -> Sidecar {
    let mut sidecar = Sidecar::new(service_account, target);
    let ctx = Rc::get_mut(&mut sidecar.ctx).unwrap();
    (ctx.stream_idle, ctx.tcp_idle) = (idle, idle);
    sidecar
}

/// Where a client calls `app` through two impatient sidecars, under a policy that says `stream_idle`; and where the server's
/// own listens.
async fn two(app: SocketAddr, protocol: Protocol, stream_idle: Option<Duration>) -> (SocketAddr, SocketAddr) {
    between(impatient("server", || Target::Outside, USUAL), app, protocol, stream_idle).await
}

/// The same with this server's proxy.
async fn between(
    server: Sidecar,
    app: SocketAddr,
    protocol: Protocol,
    stream_idle: Option<Duration>,
) -> (SocketAddr, SocketAddr) {
    let inbound = server.inbound(app).await;
    server.permit(v1::inbound::Mode::Permissive, inbound.port(), v1::Protocol::Detect);
    let backend = Arc::new(Backend::new("shop/shop:80".into()));
    let endpoint = Endpoint::new(inbound, Some(server_id()), "w", "", 1);
    let policy = BackendPolicy { stream_idle, ..BackendPolicy::default() };
    backend.publish(EndpointSet::new(true, protocol, vec![endpoint]).under(Arc::new(policy)));
    let client = impatient("client", move || Target::Workload(Arc::clone(&backend)), USUAL);
    (client.outbound().await, inbound)
}

/// Answers each request after SILENCE, in two halves with SILENCE between them.
async fn slow() -> SocketAddr {
    application(|mut stream| async move {
        while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
            sleep(SILENCE).await;
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsl").await.is_err() {
                return;
            }
            sleep(SILENCE).await;
            if stream.write_all(b"ow").await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Says "go on" to whoever has sent as much as `until`, then sends back what comes, each time after SILENCE.
async fn thoughtful(until: &'static [u8], go_on: &'static [u8]) -> SocketAddr {
    application(move |mut stream| async move {
        if read_until(&mut stream, until).await.is_none() {
            return;
        }
        stream.write_all(go_on).await.unwrap();
        let mut bytes = [0; 16];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            sleep(SILENCE).await;
            if stream.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    })
    .await
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";
const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";

/// By its reason, and in its text.
fn says_idle(answer: &str) -> bool {
    answer.contains("leno-reason: idle\r\n") && answer.contains("leno: not one byte moved")
}

#[test]
fn policy_gives_requests_more_time_than_the_servers_proxy_would() {
    run(async {
        let (client, server) = two(slow().await, Protocol::Http1, Some(Duration::from_secs(20))).await;
        let answer = talk(client, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("slow"), "{answer}");
        // Nobody else watches a client from outside.
        let answer = talk(server, GET).await;
        assert!(answer.starts_with("HTTP/1.1 504 ") && says_idle(&answer), "{answer}");
    });
}

#[test]
fn without_a_policy_the_clients_proxy_ends_what_does_not_move() {
    run(async {
        let (client, _) = two(slow().await, Protocol::Http1, None).await;
        let answer = talk(client, GET).await;
        assert!(answer.starts_with("HTTP/1.1 504 ") && says_idle(&answer), "{answer}");
    });
}

#[test]
fn the_servers_proxy_waits_longer_than_usual_only_for_peers_that_say_so() {
    run(async {
        let (_, server) = two(slow().await, Protocol::Http1, None).await;
        let rogue = Sidecar::new("rogue", || Target::Outside);
        let told = "leno-idle-ms: 20000\r\n";
        for (meshed, header, answered) in [(true, "", false), (true, told, true), (false, told, false)] {
            let request = format!("GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n{header}\r\n");
            let tcp = TcpStream::connect(server).await.unwrap();
            let mut stream: Box<dyn crate::net::Io> = if meshed {
                let credentials = rogue.ctx.credentials.current().unwrap();
                Box::new(credentials.connect(tcp, &server_id(), MeshProtocol::Http1).await.unwrap().0)
            } else {
                Box::new(tcp)
            };
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            let expected = if answered { "HTTP/1.1 200 " } else { "HTTP/1.1 504 " };
            assert!(answer.starts_with(expected), "{meshed} {header:?}: {answer}");
        }
    });
}

#[test]
fn a_peer_that_stalls_its_body_is_waited_for_no_longer_than_usual() {
    run(async {
        let app = application(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let (_, server) = two(app, Protocol::Http1, None).await;
        let rogue = Sidecar::new("rogue", || Target::Outside);
        let tcp = TcpStream::connect(server).await.unwrap();
        let credentials = rogue.ctx.credentials.current().unwrap();
        let mut stream = credentials.connect(tcp, &server_id(), MeshProtocol::Http1).await.unwrap().0;
        stream.write_all(b"POST / HTTP/1.1\r\nhost: shop\r\ncontent-length: 1000000\r\n\r\n12345").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 504");
    });
}

#[test]
fn applications_see_nothing_of_what_proxies_tell_each_other_of_idleness() {
    run(async {
        let (app, seen) = scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let patient = Sidecar::new("server", || Target::Outside);
        let (client, server) = between(patient, app, Protocol::Http1, Some(Duration::from_secs(20))).await;
        let told = b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\nleno-idle-ms: 5\r\n\r\n";
        for address in [client, server] {
            let answer = talk(address, told).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let text = String::from_utf8(seen.take()).unwrap();
            assert!(text.starts_with("GET / ") && !text.contains("leno-idle"), "{text}");
        }
    });
}

/// Its body ends with the connection.
#[test]
fn what_came_in_time_does_not_look_whole_over_http_1_0() {
    run(async {
        let app = application(|mut stream| async move {
            read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").await.unwrap();
            let _ = stream.read_u8().await;
        })
        .await;
        let (client, _) = two(app, Protocol::Http1, None).await;
        let mut stream = TcpStream::connect(client).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\nhost: shop\r\n\r\n").await.unwrap();
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn policy_gives_tunnels_more_time_than_the_servers_proxy_would() {
    run(async {
        let app = thoughtful(b"\r\n\r\n", SWITCHED).await;
        let (client, _) = two(app, Protocol::Http1, Some(Duration::from_secs(20))).await;
        let mut stream = TcpStream::connect(client).await.unwrap();
        stream.write_all(UPGRADE).await.unwrap();
        read_until(&mut stream, b"\r\n\r\n").await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"ping").await.unwrap();
            assert_eq!(read_until(&mut stream, b"ping").await.unwrap(), b"ping");
        }
    });
}

#[test]
fn policy_gives_connections_more_time_than_either_proxy_would() {
    run(async {
        let app = thoughtful(b"hello\n", b"welcome\n").await;
        let policy = Some(Duration::from_secs(20));
        let (through_both, alone) = two(app, Protocol::Tcp, policy).await;
        let (without_policy, _) = two(app, Protocol::Tcp, None).await;
        // Nobody else watches a client from outside.
        for (address, outlives) in [(through_both, true), (without_policy, false), (alone, false)] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"hello\n").await.unwrap();
            read_until(&mut stream, b"welcome\n").await.unwrap();
            stream.write_all(b"ping").await.unwrap();
            assert_eq!(read_until(&mut stream, b"ping").await.is_some(), outlives, "{address}");
        }
    });
}

#[test]
fn both_sides_of_a_connection_may_be_silent_from_the_beginning_for_as_long_as_policy_says() {
    run(async {
        let app = application(|mut stream| async move {
            sleep(SILENCE).await;
            let _ = stream.write_all(b"220 ready\n").await;
            let _ = stream.read_u8().await;
        })
        .await;
        for (stream_idle, outlives) in [(Some(Duration::from_secs(20)), true), (None, false)] {
            let (client, _) = two(app, Protocol::Detect, stream_idle).await;
            let mut stream = TcpStream::connect(client).await.unwrap();
            assert_eq!(read_until(&mut stream, b"ready\n").await.is_some(), outlives);
        }
    });
}

/// Answers at once, with a word every 60 ms, until all of the request has come; then says so.
async fn chatty() -> SocketAddr {
    application(|mut stream| async move {
        read_until(&mut stream, b"\r\n\r\n").await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"0\r\n\r\n") {
            let mut bytes = [0; 64];
            tokio::select! {
                read = stream.read(&mut bytes) => match read {
                    Ok(count @ 1..) => received.extend_from_slice(&bytes[..count]),
                    _ => return,
                },
                () = sleep(Duration::from_millis(60)) => stream.write_all(b"4\r\nword\r\n").await.unwrap(),
            }
        }
        stream.write_all(b"5\r\nwhole\r\n0\r\n\r\n").await.unwrap();
    })
    .await
}

#[test]
fn a_request_that_pauses_while_its_answer_goes_on_is_not_idle() {
    const IDLE: Duration = Duration::from_millis(1500);
    for through in BOTH {
        run(async move {
            let app = chatty().await;
            let endpoint = match through {
                Through::Outbound => (app, None),
                Through::Mesh => (impatient("server", || Target::Outside, IDLE).inbound(app).await, Some(server_id())),
            };
            let target = crate::testing::workload_source(vec![endpoint]);
            let mut stream = TcpStream::connect(impatient("client", target, IDLE).outbound().await).await.unwrap();
            let head = b"POST / HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let mut answer = read_until(&mut stream, b"\r\n\r\n").await.unwrap();
            // For more than twice as long as it may be idle.
            let mut words = 0;
            while words < 65 {
                answer.extend(read_until(&mut stream, b"\r\n").await.unwrap());
                words = answer.windows(4).filter(|window| window == b"word").count();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
            answer.extend(read_until(&mut stream, b"0\r\n\r\n").await.unwrap());
            assert!(answer.windows(5).any(|window| window == b"whole"), "{through:?}");
        });
    }
}
