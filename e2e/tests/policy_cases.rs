//! A case for what policies say that no other test drives through both sidecars: limits on connections, breakers and ejection by
//! share, hedging by percentile, slow start, sessions by a Service's policy, every kind of match, and opaque connections.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use leno_e2e::{
    client::{self, Answer},
    echo::Ping,
    mesh::{
        LIMIT, Mesh, Options,
        documents::{self, backend_policy, endpoint_slice, pod, route_head, service},
    },
    ports,
    scenario::{Scenario, destination},
    server::Server,
    tcp::{LineServer, Manner, ask},
    wait::eventually,
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use tonic::Code;

fn overloaded(answer: &Answer, by: &str) -> Result<()> {
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status == 503 && answer.header("leno-reason") == "overload" && text.contains(by), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_those_who_wait_for_them_are_limited() -> Result<()> {
    let mesh = Mesh::start().await?;
    // Outside the mesh a request has its connection for itself; in it, a handshake is waited for.
    let plain = Server::start("plain").await?;
    let silent = TcpListener::bind((ports::loopback_ip(), 0)).await?;
    let documents = [
        service("default", "plain", 80, "http"),
        endpoint_slice("default", "plain", None, plain.address(), true),
        service("default", "silent", 80, "http"),
        pod("default", "silent", "silent", &[ports::loopback_ip().to_string()]),
        endpoint_slice("default", "silent", Some("silent"), silent.local_addr()?, true),
        backend_policy("plain", "plain", "  limits: {connections: 1}\n"),
        backend_policy("silent", "silent", "  limits: {pendingRequests: 1}\n  timeouts: {connect: 20s}\n"),
    ];
    mesh.apply("all.yaml", &documents::file(&documents))?;
    // In force for the very first call: a policy is not known later than what it is for.
    mesh.wait("backendpolicy/silent").await?;
    let client =
        mesh.workload("client").outbound(&destination("plain")).outbound(&destination("silent")).start().await?;
    let get = async |service: &str, path: &str| client::get(client.calls(&destination(service))?, service, path).await;

    plain.control().delay_ms.store(u64::MAX, Relaxed);
    let refused = async {
        eventually("the connection is taken", LIMIT, async || {
            ensure!(plain.control().in_flight.load(Relaxed) == 1, "not yet");
            Ok(())
        })
        .await?;
        overloaded(&get("plain", "/").await?, "connections")
    };
    tokio::select! {
        held = get("plain", "/") => anyhow::bail!("it was answered: {held:?}"),
        refused = refused => refused?,
    }

    let refused = async {
        let (_first, _) = silent.accept().await?;
        overloaded(&get("silent", "/").await?, "pending requests")
    };
    tokio::select! {
        held = get("silent", "/") => anyhow::bail!("it was answered: {held:?}"),
        refused = refused => refused?,
    }
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_too_large_a_share_of_the_time_is_left_alone() -> Result<()> {
    let mut scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    // Who comes late gets a tenth of its share at first.
    scenario.backend("  loadBalancing: {algorithm: RoundRobin, zonePreference: None, slowStart: 1h}").await?;
    ensure!(scenario.answers(20).await?.len() == 2, "both serve");
    scenario.add("shop", "shop-late").await?;
    let counts = scenario.answers(210).await?;
    let late = counts.get("shop-late").copied().unwrap_or_default();
    ensure!((5..=20).contains(&late) && counts.len() == 3, "a tenth of a share is ten of 210: {counts:?}");

    // An endpoint, while the others serve.
    scenario
        .backend(
            "  loadBalancing: {algorithm: RoundRobin, zonePreference: None}
  outlierDetection:
    consecutiveFailures: 0
    failureShare: {percent: 60, window: 10m, minimumRequests: 10}
    baseEjection: 1h",
        )
        .await?;
    scenario.instance("shop-2")?.server.control().status.store(500, Relaxed);
    let counts = scenario.answers(60).await?;
    let failed = counts.get("500").copied().unwrap_or_default();
    ensure!((10..=12).contains(&failed), "nothing is concluded from fewer than ten, and no more than that: {counts:?}");

    // A backend as a whole: half of its answers are failures, though never two in a row.
    scenario.instance("shop-2")?.server.control().status.store(0, Relaxed);
    scenario
        .backend(
            "  outlierDetection: {consecutiveFailures: 0}
  circuitBreaker: {failurePercent: 50, window: 10m, minimumVolume: 20, openTime: 10m}",
        )
        .await?;
    for n in 0..19 {
        let path = if n % 2 == 0 { "/status/503" } else { "/" };
        let answer = scenario.get(path).await?;
        ensure!(answer.header("leno-reason").is_empty(), "after {n} tries: {answer:?}");
    }
    scenario.get("/").await?;
    eventually("the circuit is open", LIMIT, async || {
        let answer = scenario.get("/status/503").await?;
        ensure!(answer.status == 503 && answer.header("leno-reason") == "circuit-open", "{answer:?}");
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_than_most_is_sent_twice() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    let policy = "apiVersion: leno.dev/v1alpha1
kind: RoutePolicy
metadata: {name: shop, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}]
  hedging: {percentile: 50, delay: 20ms}
";
    let route = documents::http_route("shop", "shop", &[("shop", 1)]);
    scenario.mesh.change("routes.yaml", &documents::file(&[route, policy.into()]), "routepolicy/shop").await?;
    scenario
        .backend("  retryBudget: {percent: 100, minPerSecond: 1000}\n  loadBalancing: {algorithm: RoundRobin}")
        .await?;
    // As long as it is not known how long answers take, nothing is.
    let control = |name: &str| anyhow::Ok(scenario.instance(name)?.server.control());
    control("shop-1")?.delay_ms.store(100, Relaxed);
    control("shop-2")?.delay_ms.store(100, Relaxed);
    let requests = async || {
        anyhow::Ok(scenario.instance("shop-1")?.server.requests() + scenario.instance("shop-2")?.server.requests())
    };
    ensure!(scenario.get("/").await?.status == 200 && requests().await? == 1, "sent twice before anything was learnt");
    control("shop-1")?.delay_ms.store(0, Relaxed);
    control("shop-2")?.delay_ms.store(0, Relaxed);
    scenario.answers(150).await?;
    control("shop-1")?.delay_ms.store(15_000, Relaxed);
    let counts = scenario.answers(20).await?;
    ensure!(counts == BTreeMap::from([("shop-2".to_owned(), 20)]), "{counts:?}");
    scenario.mesh.end().await
}

fn traffic_policy(session: &str) -> String {
    format!(
        "apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: {{name: shop, namespace: default}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: shop}}]
  sessionPersistence: {session}
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_hedging_nor_retries_move_a_session() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop"], 2, "http").await?;
    let sections = "  retryBudget: {percent: 100, minPerSecond: 100}
  outlierDetection: {consecutiveFailures: 0}
  loadBalancing: {algorithm: RoundRobin}
";
    scenario.backend(sections).await?;
    let route = route_head("HTTPRoute", "shop", "shop")
        + "  rules:\n    - backendRefs: [{name: shop, port: 80}]\n      sessionPersistence: {type: Header, sessionName: X-Session}\n";
    let policy = "apiVersion: leno.dev/v1alpha1
kind: RoutePolicy
metadata: {name: shop, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}]
  hedging: {delay: 50ms}
  retry: {attempts: 1, statuses: [\"503\"], backoff: {base: 1ms, max: 1ms}}
";
    scenario.route(&documents::file(&[route, policy.to_owned()]), "routepolicy/shop").await?;
    let first = scenario.get("/").await?;
    let (token, home) = (first.header("x-session").to_owned(), first.seen()?.instance);
    ensure!(!token.is_empty(), "{first:?}");
    let of_session = async || scenario.send(Request::get("/").header("x-session", &token)).await;
    let server = &scenario.instance(&home)?.server;

    server.control().delay_ms.store(500, Relaxed);
    // Others are: the wait is over long before the answer comes.
    eventually("a request without a session is sent elsewhere, too", LIMIT, async || {
        let (before, answered) = (server.requests(), scenario.answered_by(Request::get("/")).await?);
        ensure!(server.requests() > before && answered != home, "{answered}");
        Ok(())
    })
    .await?;
    let before = server.requests();
    let answer = of_session().await?;
    ensure!(answer.seen()?.instance == home && answer.header("x-session").is_empty(), "{answer:?}");
    ensure!(server.requests() - before == 1, "{} tries", server.requests() - before);

    server.control().delay_ms.store(0, Relaxed);
    server.control().status.store(503, Relaxed);
    let answer = of_session().await?;
    ensure!(answer.status == 200 && answer.seen()?.instance != home, "{answer:?}");
    ensure!(answer.header("x-session").is_empty(), "the session moved: {answer:?}");
    server.control().status.store(0, Relaxed);
    let answer = of_session().await?;
    ensure!(answer.seen()?.instance == home && answer.header("x-session").is_empty(), "{answer:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_services_policy_keeps_sessions_where_the_route_does_not() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop", "next"], 3, "http").await?;
    let policy = traffic_policy("{type: Header, sessionName: X-Shop-Session}");
    scenario.mesh.change("traffic.yaml", &policy, "xbackendtrafficpolicy/shop").await?;
    let with = async |name: &'static str, token: &str| scenario.send(Request::get("/").header(name, token)).await;

    // Without any route.
    let first = scenario.get("/").await?;
    let (token, home) = (first.header("x-shop-session").to_owned(), first.seen()?.instance);
    ensure!(!token.is_empty(), "{first:?}");
    for _ in 0..20 {
        let answer = with("x-shop-session", &token).await?;
        ensure!(answer.seen()?.instance == home && answer.header("x-shop-session").is_empty(), "{answer:?}");
    }

    // Where a route shares out requests, the session stays with the Service that keeps it; the other one keeps none.
    let weights = |rest: &str| {
        route_head("HTTPRoute", "shop", "shop")
            + &format!(
                "  rules:\n    - backendRefs: [{{name: shop, port: 80, weight: 1}}, {{name: next, port: 80, weight: 9}}]\n{rest}"
            )
    };
    scenario.route(&weights(""), "httproute/shop").await?;
    for _ in 0..20 {
        let answer = with("x-shop-session", &token).await?;
        ensure!(answer.seen()?.instance == home, "{answer:?}");
    }
    eventually("the other Service serves, and gives no token", LIMIT, async || {
        let answer = scenario.get("/").await?;
        ensure!(
            answer.seen()?.instance.starts_with("next-") && answer.header("x-shop-session").is_empty(),
            "{answer:?}"
        );
        Ok(())
    })
    .await?;
    let told = scenario.mesh.leno(&["explain", "client", "http://shop.default/"]).await?;
    ensure!(told.contains("one with default/shop:80, told of by the header x-shop-session, goes back there"), "{told}");

    // What the route says itself goes before it.
    scenario
        .route(&weights("      sessionPersistence: {type: Header, sessionName: X-Rule}\n"), "httproute/shop")
        .await?;
    let first = scenario.get("/").await?;
    let (own, home) = (first.header("x-rule").to_owned(), first.seen()?.instance);
    ensure!(!own.is_empty() && first.header("x-shop-session").is_empty(), "{first:?}");
    for _ in 0..20 {
        let answer = with("x-rule", &own).await?;
        ensure!(answer.seen()?.instance == home, "{answer:?}");
    }

    // A bad one is refused, and the last good one stays.
    scenario.mesh.apply("traffic.yaml", &traffic_policy("{type: Header, sessionName: \"a b\"}"))?;
    eventually("it is refused", LIMIT, async || {
        let told = scenario.mesh.object("xbackendtrafficpolicy/shop").await?.context("the policy")?.to_string();
        ensure!(told.contains("spec.sessionPersistence.sessionName"), "{told}");
        Ok(())
    })
    .await?;
    scenario.mesh.remove("routes.yaml")?;
    scenario.mesh.leno(&["wait", "httproute/shop", "-n", "default", "--for", "removed", "--timeout", "30s"]).await?;
    let first = scenario.get("/").await?;
    let (token, home) = (first.header("x-shop-session").to_owned(), first.seen()?.instance);
    ensure!(!token.is_empty(), "the last good policy is gone: {first:?}");

    // At a weight of 0 a session stays, until nobody is left who serves it.
    scenario.route(&weights("").replace("weight: 1}", "weight: 0}"), "httproute/shop").await?;
    for _ in 0..20 {
        ensure!(with("x-shop-session", &token).await?.seen()?.instance == home);
    }
    for one in scenario.instances.iter().filter(|one| one.server.name().starts_with("shop-")) {
        one.sidecar.withdraw(&scenario.mesh)?;
    }
    eventually("the session is balanced anew", LIMIT, async || {
        let answer = with("x-shop-session", &token).await?;
        ensure!(answer.status == 200 && answer.seen()?.instance.starts_with("next-"), "{answer:?}");
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_match_in_every_way_there_is() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop", "a", "b"], 1, "kubernetes.io/h2c").await?;
    let rules = r#"  rules:
    - matches:
        - {path: {type: Exact, value: /exact}}
        - {path: {type: PathPrefix, value: /prefix}, method: DELETE}
        - {path: {type: RegularExpression, value: "/(v1|v2)/[a-z]+"}}
        - headers: [{type: RegularExpression, name: x-version, value: "2\\.[0-9]+"}]
        - headers: [{name: x-a, value: "1"}, {name: x-b, value: "2"}]
        - queryParams: [{type: RegularExpression, name: page, value: "[0-9]{1,3}"}]
        - queryParams: [{name: q, value: "a b"}, {name: lang, value: de}]
      backendRefs: [{name: a, port: 80}]
    - backendRefs: [{name: b, port: 80}]
"#;
    scenario.route(&(route_head("HTTPRoute", "shop", "shop") + rules), "httproute/shop").await?;
    let get = Request::get;
    for (request, expected) in [
        (get("/exact"), "a-1"),
        (get("/exact/"), "b-1"),
        (get("/exact?x=y"), "a-1"),
        (Request::delete("/prefix/x"), "a-1"),
        (get("/prefix/x"), "b-1"),
        (get("/v1/abc"), "a-1"),
        (get("/v1/abc/d"), "b-1"),
        (get("/x/v1/abc"), "b-1"),
        (get("/").header("x-version", "2.17"), "a-1"),
        (get("/").header("X-Version", "2.17b"), "b-1"),
        (get("/").header("x-version", "1"), "b-1"),
        (get("/").header("x-a", "1").header("x-b", "2"), "a-1"),
        (get("/").header("x-a", "1"), "b-1"),
        (get("/?page=12"), "a-1"),
        (get("/?page=1234"), "b-1"),
        (get("/?page=a&page=12"), "b-1"),
        (get("/?lang=de&q=a+b"), "a-1"),
        (get("/?lang=de&q=a%20b"), "a-1"),
        (get("/?lang=de"), "b-1"),
    ] {
        let shown = format!("{request:?}");
        let answered = scenario.answered_by(request).await?;
        ensure!(answered == expected, "{shown}: expected {expected}, got {answered}");
    }

    let rules = r#"  rules:
    - matches: [{method: {type: RegularExpression, service: "leno\\..*", method: "Un.*"}}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-added, value: "1"}]}}]
      backendRefs: [{name: a, port: 80}]
    - matches: [{method: {method: ClientStream}, headers: [{type: RegularExpression, name: tenant, value: "t[0-9]"}]}]
      backendRefs: [{name: b, port: 80}]
"#;
    scenario.mesh.remove("routes.yaml")?;
    scenario.mesh.change("grpc.yaml", &(route_head("GRPCRoute", "shop", "shop") + rules), "grpcroute/shop").await?;
    let mut calls = client::grpc(scenario.address("shop")?, "shop.default")?;
    eventually("the GRPCRoute is in force alone", LIMIT, async || {
        let pong = calls.unary(Ping::default()).await?.into_inner();
        ensure!(pong.instance == "a-1", "{pong:?}");
        Ok(())
    })
    .await?;
    for (tenant, expected) in [("t1", None), ("t11", Some(Code::Unimplemented))] {
        let mut request = tonic::Request::new(tokio_stream::iter([Ping::default()]));
        request.metadata_mut().insert("tenant", tenant.parse()?);
        let code = match calls.client_stream(request).await {
            Ok(pong) => {
                ensure!(pong.into_inner().instance == "b-1", "{tenant}");
                None
            }
            Err(status) => Some(status.code()),
        };
        ensure!(code == expected, "{tenant}: {code:?}");
    }
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opaque_connections_keep_to_policies_too() -> Result<()> {
    let mesh = Mesh::start().await?;
    let lines = LineServer::start("lines", Manner::Listens).await?;
    let dead = ports::free_on(ports::loopback_ip())?;
    mesh.apply("service.yaml", &service("default", "lines", 80, "tcp"))?;
    let content = documents::file(&[
        pod("default", "dead", "lines", &[ports::loopback_ip().to_string()]),
        endpoint_slice("default", "lines", Some("dead"), dead, true),
    ]);
    mesh.apply("dead.yaml", &content)?;
    mesh.workload("lines").serves("lines", lines.address()).start().await?;
    // Its proxy is there, and the application is not.
    mesh.workload("down").serves("lines", ports::free_on(ports::loopback_ip())?).start().await?;
    let client = mesh.workload("client").outbound(&destination("lines")).start().await?;
    let connect = async || anyhow::Ok(TcpStream::connect(client.calls(&destination("lines"))?).await?);
    let failures = async |reason: &str| {
        anyhow::Ok(client.metrics().await?.sum("leno_tcp_connection_failures_total", &[("reason", reason)]))
    };

    // Who does not answer is passed over, be it a proxy or the application behind one.
    for n in 0..40 {
        let answer = ask(&mut connect().await?, &format!("line {n}")).await?;
        ensure!(answer == format!("lines: line {n}"), "{answer}");
    }
    ensure!(failures("connect").await? == 0.0, "a connection failed");

    let policy = |sections: &str| backend_policy("lines", "lines", sections);
    mesh.change("policy.yaml", &policy("  timeouts: {streamIdle: 2s}\n"), "backendpolicy/lines").await?;
    let mut idle = connect().await?;
    ensure!(ask(&mut idle, "a").await? == "lines: a", "it works at first");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(LIMIT, idle.read_to_end(&mut rest)).await;
    ensure!(ended.is_ok() && rest.is_empty(), "{ended:?} {rest:?}");
    eventually("idleness is counted", LIMIT, async || {
        ensure!(failures("idle").await? >= 1.0, "not yet");
        Ok(())
    })
    .await?;

    mesh.change("policy.yaml", &policy("  limits: {connections: 2}\n"), "backendpolicy/lines").await?;
    let (mut one, mut two) = (connect().await?, connect().await?);
    for stream in [&mut one, &mut two] {
        ensure!(ask(stream, "x").await? == "lines: x", "within the limit");
    }
    ensure!(ask(&mut connect().await?, "y").await.is_err(), "beyond the limit");
    ensure!(failures("overload").await? >= 1.0, "it is not counted");
    drop((one, two));
    eventually("places are given back", LIMIT, async || {
        ensure!(ask(&mut connect().await?, "z").await? == "lines: z", "another answer");
        Ok(())
    })
    .await?;
    mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_keep_to_the_breaker_and_the_limits_of_the_mirror() -> Result<()> {
    let scenario = Scenario::start(&["shop", "next"]).await?;
    let rules = "  rules:
    - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}}}]
      backendRefs: [{name: shop, port: 80}]
";
    scenario.route(&(route_head("HTTPRoute", "shop", "shop") + rules), "httproute/shop").await?;
    let next = &scenario.instance("next-1")?.server;
    let copies = async |result: &str, expected: f64| {
        eventually(&format!("{expected} copies are {result}"), LIMIT, async || {
            let metrics = scenario.client.metrics().await?;
            let labels = [("backend", "default/next:80"), ("result", result)];
            let count = metrics.sum("leno_mirrored_requests_total", &labels);
            ensure!(count == expected, "{count}");
            Ok(())
        })
        .await
    };
    let ask = async || {
        ensure!(scenario.answered_by(Request::get("/")).await? == "shop-1", "the request itself");
        Ok(())
    };
    let policy = async |sections: &str| {
        let document = backend_policy("next", "next", sections);
        scenario.mesh.change("next.yaml", &document, "backendpolicy/next").await
    };

    ask().await?;
    copies("sent", 1.0).await?;
    policy("  limits: {requests: 1}\n").await?;
    next.control().delay_ms.store(10_000, Relaxed);
    let before = next.requests();
    ask().await?;
    eventually("a copy is under way", LIMIT, async || {
        ensure!(next.requests() == before + 1);
        Ok(())
    })
    .await?;
    for _ in 0..2 {
        ask().await?;
    }
    copies("overload", 2.0).await?;
    copies("sent", 2.0).await?;

    policy("  circuitBreaker: {consecutiveFailures: 1, openTime: 10m}\n").await?;
    next.control().delay_ms.store(0, Relaxed);
    next.control().status.store(500, Relaxed);
    ask().await?;
    copies("sent", 3.0).await?;
    ask().await?;
    copies("overload", 3.0).await?;
    scenario.mesh.end().await
}

/// A request whose path, query, host and headers are rewritten, together with a backend's own filters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rewritten_is_all_that_changes() -> Result<()> {
    let scenario = Scenario::start(&["shop", "a"]).await?;
    let rules = r#"  rules:
    - matches: [{path: {value: /old}}]
      filters:
        - {type: URLRewrite, urlRewrite: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: "1"}], add: [{name: X-Add, value: "2"}], remove: [X-Gone]}}
        - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Answer, value: "3"}]}}
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {value: /}}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /all}}}]
      backendRefs: [{name: a, port: 80}]
"#;
    scenario.route(&(route_head("HTTPRoute", "shop", "shop") + rules), "httproute/shop").await?;
    for (path, expected) in [
        ("/old", "/new"),
        ("/old/", "/new/"),
        ("/old/a%20b?q=%C3%A4&q=2", "/new/a%20b?q=%C3%A4&q=2"),
        ("/old?x", "/new?x"),
        ("/older", "/all"),
        ("/x/y?z=1", "/all?z=1"),
    ] {
        let seen = scenario.get(path).await?.seen()?;
        ensure!(seen.path == expected, "{path}: {}", seen.path);
    }
    let request = Request::post("/old/x").header("host", "shop").header("x-set", "0").header("x-gone", "0");
    let request = request.header("x-kept", "k").body(Bytes::from_static(b"body"))?;
    let answer = client::http1(scenario.address("shop")?, request).await?;
    let seen = answer.seen()?;
    let header = |name: &str| seen.headers.get(name).map(String::as_str).unwrap_or_default();
    ensure!(seen.method == "POST" && seen.body_bytes == 4 && seen.authority == "new.example", "{seen:?}");
    ensure!((header("x-set"), header("x-add"), header("x-gone"), header("x-kept")) == ("1", "2", "", "k"), "{seen:?}");
    ensure!(answer.header("x-answer") == "3", "{answer:?}");
    scenario.mesh.end().await
}
