//! Each reason of docs/reasons.md, which is the closed list, has a producer here: it is in the answer's head, in the access log
//! and in a metric, and gRPC clients get the status that the list says.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use leno_e2e::{
    client,
    forge::Forger,
    mesh::{
        LIMIT, Mesh, Workload,
        documents::{self, backend_policy, inbound_policy, pod, route_head, service},
        write_atomically,
    },
    ports, raw,
    scenario::destination,
    server::Server,
    tcp::{LineServer, Manner, ask},
    wait::eventually,
};
use leno_proto::grpc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;

/// One line of the list: the reason, and what HTTP and gRPC clients get, if it is always the same.
struct Listed {
    reason: String,
    status: Option<u16>,
    grpc: Option<u16>,
}

/// As docs/reasons.md has them, which a test of the proxy's keeps equal to its list.
fn listed() -> Result<Vec<Listed>> {
    let page = include_str!("../../docs/reasons.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| row.split_once("` | "));
    let reasons = rows.map(|(reason, rest)| {
        let mut cells = rest.split(" | ");
        let (status, grpc) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        Listed { reason: reason.to_owned(), status: status.parse().ok(), grpc: grpc::code(grpc) }
    });
    // The first is the table's head.
    let reasons: Vec<Listed> = reasons.skip(1).collect();
    ensure!(reasons.len() > 10, "the list in docs/reasons.md was not found");
    Ok(reasons)
}

/// Rules of the route `shop`: /REASON goes where that is produced. Nothing holds for /no-rule.
const RULES: &str = r#"  rules:
    - matches: [{path: {value: /invalid-backend}}]
      backendRefs: [{name: nowhere, port: 80}]
    - matches: [{path: {value: /no-endpoint}}]
      backendRefs: [{name: empty, port: 80}]
    - matches: [{path: {value: /circuit-open}}]
      backendRefs: [{name: failing, port: 80}]
    - matches: [{path: {value: /rate-limit}}]
      backendRefs: [{name: limited, port: 80}]
    - matches: [{path: {value: /overload}}]
      backendRefs: [{name: busy, port: 80}]
    - matches: [{path: {value: /connect}}]
      backendRefs: [{name: dead, port: 80}]
    - matches: [{path: {value: /tls}}]
      backendRefs: [{name: imposter, port: 80}]
    - matches: [{path: {value: /reset}}]
      backendRefs: [{name: broken, port: 80}]
    - matches: [{path: {value: /cors}}]
      filters: [{type: CORS, cors: {allowOrigins: ["https://shop.example"]}}]
      backendRefs: [{name: shop, port: 80}]
    - {name: fault, matches: [{path: {value: /fault}}], backendRefs: [{name: shop, port: 80}]}
    - {name: direct, matches: [{path: {value: /direct-response}}], backendRefs: [{name: shop, port: 80}]}
    - matches: [{path: {value: /deadline}}]
      backendRefs: [{name: shop, port: 80}]
    - matches: [{path: {value: /request-timeout}}]
      timeouts: {request: 300ms}
      backendRefs: [{name: slow, port: 80}]
    - matches: [{path: {value: /try-timeout}}]
      timeouts: {backendRequest: 300ms}
      backendRefs: [{name: slow, port: 80}]
    - {name: idle, matches: [{path: {value: /idle}}], backendRefs: [{name: slow, port: 80}]}
    - matches: [{path: {value: /client-left}}]
      backendRefs: [{name: slow, port: 80}]
"#;

/// As [`RULES`], of the route `more`: a route has 16 rules at most.
const MORE_RULES: &str = r#"  rules:
    - matches: [{path: {value: /head-too-large}}, {path: {value: /body-too-large}}]
      backendRefs: [{name: small, port: 80}]
    - {name: response, matches: [{path: {value: /response-timeout}}], backendRefs: [{name: slow, port: 80}]}
    - {name: again, matches: [{path: {value: /retry-budget}}], backendRefs: [{name: few, port: 80}]}
"#;

/// Hardly any retries, and 503 for those that there is no budget for (GEP-3388).
const FEW_RETRIES: &str = "apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: {name: few, namespace: default}
spec:
  targetRefs: [{group: \"\", kind: Service, name: few}]
  retryConstraint: {budget: {percent: 0, interval: 10s}, minRetryRate: {count: 1, interval: 10m}}
";

fn rule_policy(kind: &str, rule: &str, says: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1
kind: {kind}
metadata: {{name: {rule}, namespace: default}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: {rule}}}]
  {says}
"
    )
}

/// A client that calls everything, and services by name, each with its server and its sidecar.
struct Cast {
    mesh: Mesh,
    client: Workload,
    servers: BTreeMap<&'static str, (Server, Workload)>,
    /// Its application breaks off whatever it is asked.
    broken: Workload,
    lines: (LineServer, Workload),
}

impl Cast {
    async fn assemble() -> Result<Self> {
        let mesh = Mesh::start().await?;
        let served = ["shop", "failing", "limited", "busy", "slow", "opened", "small", "few"];
        let http = served.into_iter().chain(["empty", "dead", "imposter", "broken"]);
        let mut known: Vec<String> = http.map(|name| service("default", name, 80, "http")).collect();
        known.push(service("default", "lines", 80, ""));
        mesh.apply("services.yaml", &documents::file(&known))?;
        let mut client = mesh.workload("client").access_log();
        for name in ["shop", "lines", "nobody"] {
            client = client.outbound(&destination(name));
        }
        let client = client.start().await?;
        let mut servers = BTreeMap::new();
        for name in served {
            let server = Server::start(name).await?;
            let sidecar = mesh.workload(name).serves(name, server.address()).access_log().start().await?;
            servers.insert(name, (server, sidecar));
        }
        let breaks_off = breaks_off().await?;
        let broken = mesh.workload("broken").serves("broken", breaks_off).access_log().start().await?;
        let line_server = LineServer::start("lines", Manner::Listens).await?;
        let lines = mesh.workload("lines").serves("lines", line_server.address()).access_log().start().await?;
        let cast = Self { mesh, client, servers, broken, lines: (line_server, lines) };
        cast.misbehave().await?;
        Ok(cast)
    }

    /// Whatever fails requests.
    async fn misbehave(&self) -> Result<()> {
        let nobody = ports::free_on(ports::loopback_ip())?;
        let imposter = self.sidecar("shop")?.listener(0)?;
        let endpoints = [("dead", "127.0.0.9", nobody), ("imposter", "127.0.0.10", imposter)].map(|(name, ip, at)| {
            let slice = documents::endpoint_slice("default", name, Some(name), at, true);
            documents::file(&[pod("default", name, name, &[ip.to_owned()]), slice])
        });
        self.mesh.apply("endpoints.yaml", &documents::file(&endpoints))?;
        let policies = [
            backend_policy("failing", "failing", "  circuitBreaker: {consecutiveFailures: 1, openTime: 10m}\n"),
            backend_policy("busy", "busy", "  limits: {requests: 1}\n"),
            inbound_policy("small", "small", "  requestSize: {headBytes: 1024, bodyBytes: 1000}\n"),
            FEW_RETRIES.to_owned(),
            inbound_policy("limited", "limited", "  rateLimits: [{name: all, requests: 1, per: 24h}]\n"),
            route_head("HTTPRoute", "shop", "shop") + RULES,
            route_head("HTTPRoute", "more", "shop") + MORE_RULES,
            // The server knows no call of that name.
            rule_policy(
                "RoutePolicy",
                "again",
                "retry: {attempts: 1, statuses: [\"500\"], grpcCodes: [UNIMPLEMENTED]}",
            )
            .replace("name: shop", "name: more"),
            rule_policy("RoutePolicy", "response", "timeouts: {response: 300ms}").replace("name: shop", "name: more"),
            rule_policy("FaultPolicy", "fault", "abort: {httpStatus: 418, grpcStatus: ABORTED}"),
            rule_policy("RoutePolicy", "direct", "directResponse: {status: 451, grpcStatus: DATA_LOSS}"),
            rule_policy("RoutePolicy", "idle", "timeouts: {streamIdle: 300ms}"),
        ];
        self.mesh.apply("policies.yaml", &documents::file(&policies))?;
        for object in [
            "faultpolicy/fault",
            "routepolicy/direct",
            "routepolicy/idle",
            "inboundpolicy/limited",
            "inboundpolicy/small",
            "routepolicy/again",
            "routepolicy/response",
            "xbackendtrafficpolicy/few",
        ] {
            self.mesh.wait(object).await?;
        }
        self.server("failing")?.control().status.store(503, Relaxed);
        self.server("few")?.control().status.store(500, Relaxed);
        for name in ["slow", "busy"] {
            self.server(name)?.control().delay_ms.store(u64::MAX, Relaxed);
        }
        Ok(())
    }

    fn server(&self, name: &str) -> Result<&Server> {
        self.servers.get(name).map(|(server, _)| server).with_context(|| format!("server {name}"))
    }

    fn sidecar(&self, name: &str) -> Result<&Workload> {
        self.servers.get(name).map(|(_, sidecar)| sidecar).with_context(|| format!("sidecar {name}"))
    }

    fn shop(&self) -> Result<SocketAddr> {
        self.client.calls(&destination("shop"))
    }

    async fn http(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Result<client::Answer> {
        let mut request = Request::builder().method(method).uri(path).header("host", "shop");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        client::http1(self.shop()?, request.body(Bytes::new())?).await
    }

    /// An empty message to that path, whatever it is called.
    async fn grpc(&self, at: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<client::Answer> {
        let mut request = Request::post(format!("http://shop{path}"));
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        client::http2(at, request.body(Bytes::from_static(&[0; 5]))?).await
    }

    /// A GET, and a gRPC call, which are both to be answered for that reason.
    async fn both(&self, reason: &str) -> Result<Vec<client::Answer>> {
        let path = format!("/{reason}");
        Ok(vec![self.http(Method::GET, &path, &[]).await?, self.grpc(self.shop()?, &path, &[]).await?])
    }
}

/// An application that reads a request and breaks off.
async fn breaks_off() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 1024];
            // Whatever came, it is enough.
            let _ = stream.read(&mut bytes).await;
        }
    });
    Ok(address)
}

/// What a producer saw: the proxy that gave the reason, and its answers, if there are any.
struct Produced<'a> {
    at: &'a Workload,
    /// The proxy that may say it in its place: both keep the time, and whichever notices first that it is up says so.
    or: Option<&'a Workload>,
    answers: Vec<client::Answer>,
    /// None: the proxy has ended.
    counted: Option<&'static str>,
}

impl<'a> Produced<'a> {
    fn proxies(&self) -> impl Iterator<Item = &'a Workload> + use<'a> {
        [Some(self.at), self.or].into_iter().flatten()
    }
}

/// Makes a proxy give this reason. A reason that is new needs an arm here.
async fn produce<'a>(cast: &'a Cast, reason: &str) -> Result<Produced<'a>> {
    let mut produced =
        Produced { at: &cast.client, or: None, answers: Vec::new(), counted: Some("leno_requests_total") };
    match reason {
        "no-rule" | "invalid-backend" | "no-endpoint" | "connect" | "tls" | "fault" | "direct-response"
        | "response-timeout" | "try-timeout" | "idle" => produced.answers = cast.both(reason).await?,
        "request-timeout" => {
            produced.or = Some(cast.sidecar("slow")?);
            produced.answers = cast.both(reason).await?;
        }
        "bad-request" => produced.answers = bad_requests(cast).await?,
        "refused" => {
            produced.at = cast.sidecar("opened")?;
            produced.answers = refused(cast).await?;
        }
        "discovery" => {
            let nobody = cast.client.calls(&destination("nobody"))?;
            produced.answers = vec![client::get(nobody, "nobody", "/").await?, cast.grpc(nobody, "/", &[]).await?];
        }
        "circuit-open" => {
            let opens = cast.http(Method::GET, "/circuit-open", &[]).await?;
            ensure!(opens.status == 503 && opens.header("leno-reason").is_empty(), "the server's own: {opens:?}");
            produced.answers = cast.both(reason).await?;
        }
        "rate-limit" => {
            ensure!(cast.http(Method::GET, "/rate-limit", &[]).await?.status == 200, "one is admitted");
            produced.at = cast.sidecar("limited")?;
            produced.answers = cast.both(reason).await?;
        }
        "retry-budget" => produced.answers = retry_budget(cast).await?,
        "head-too-large" => {
            produced.at = cast.sidecar("small")?;
            let long = "x".repeat(2000);
            let headers = [("x-long", long.as_str())];
            let plain = cast.http(Method::GET, "/head-too-large", &headers).await?;
            produced.answers = vec![plain, cast.grpc(cast.shop()?, "/head-too-large", &headers).await?];
        }
        "body-too-large" => {
            produced.at = cast.sidecar("small")?;
            produced.answers = too_large_bodies(cast.shop()?).await?;
        }
        "overload" => produced.answers = overload(cast).await?,
        "reset" => {
            produced.at = &cast.broken;
            produced.answers = cast.both(reason).await?;
        }
        "cors" => {
            let asked = [("origin", "https://elsewhere.example"), ("access-control-request-method", "PUT")];
            produced.answers = vec![cast.http(Method::OPTIONS, "/cors", &asked).await?];
        }
        "deadline" => {
            produced.at = cast.sidecar("shop")?;
            produced.answers = deadline(cast).await?;
            let call = cast.grpc(cast.shop()?, "/deadline", &[("grpc-timeout", "0m")]).await?;
            ensure!(call.header("grpc-status") == "4" && call.header("leno-reason") == "deadline", "{call:?}");
        }
        "client-left" => client_left(cast).await?,
        "late-http" => {
            produced.counted = Some("leno_tcp_connection_failures_total");
            late_http(cast).await?;
        }
        "aborted" => {
            // Its sidecar ends with the last test of it.
            produced.at = &cast.lines.1;
            produced.counted = None;
            aborted(cast).await?;
        }
        other => bail!("the reason {other} has no producer: add one to this table"),
    }
    Ok(produced)
}

/// What fails is tried again until there is no budget for that.
async fn retry_budget(cast: &Cast) -> Result<Vec<client::Answer>> {
    let mut spent = cast.http(Method::GET, "/retry-budget", &[]).await?;
    for _ in 0..40 {
        if spent.status == 503 {
            break;
        }
        ensure!(spent.status == 500 && spent.header("leno-reason").is_empty(), "the server's own: {spent:?}");
        spent = cast.http(Method::GET, "/retry-budget", &[]).await?;
    }
    Ok(vec![spent, cast.grpc(cast.shop()?, "/retry-budget", &[]).await?])
}

/// One byte more than the policy allows, which their length says in advance.
async fn too_large_bodies(shop: SocketAddr) -> Result<Vec<client::Answer>> {
    let body = || Bytes::from(vec![0; 1001]);
    let plain = Request::post("/body-too-large").header("host", "shop").body(body())?;
    let call = Request::post("http://shop/body-too-large").header("content-type", "application/grpc");
    let call = call.header("te", "trailers").body(body())?;
    Ok(vec![client::http1(shop, plain).await?, client::http2(shop, call).await?])
}

/// More than the one request at a time that is allowed.
async fn overload(cast: &Cast) -> Result<Vec<client::Answer>> {
    let holds = cast.http(Method::GET, "/overload", &[]);
    let refused = async {
        let server = cast.server("busy")?;
        eventually("its one place is taken", LIMIT, async || {
            ensure!(server.control().in_flight.load(Relaxed) == 1, "not yet");
            Ok(())
        })
        .await?;
        cast.both("overload").await
    };
    tokio::select! {
        held = holds => bail!("it was answered: {held:?}"),
        refused = refused => refused,
    }
}

/// A client that does not wait for its answer.
async fn client_left(cast: &Cast) -> Result<()> {
    let server = cast.server("slow")?;
    let before = server.requests();
    let mut stream = TcpStream::connect(cast.shop()?).await?;
    stream.write_all(b"GET /client-left HTTP/1.1\r\nhost: shop\r\n\r\n").await?;
    eventually("the request is under way", LIMIT, async || {
        ensure!(server.requests() > before, "not yet");
        Ok(())
    })
    .await
}

/// Two lengths, which two readers would understand differently.
async fn bad_requests(cast: &Cast) -> Result<Vec<client::Answer>> {
    let mut answers = Vec::new();
    for kind in ["text/plain", "application/grpc"] {
        let request = format!(
            "POST /bad-request HTTP/1.1\r\nhost: shop\r\ncontent-type: {kind}\r\ncontent-length: 1\r\n\
             transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        );
        let text = String::from_utf8_lossy(&raw::send(cast.shop()?, request.as_bytes()).await?).into_owned();
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("a status")?.parse()?;
        let mut headers = http::HeaderMap::new();
        for (name, value) in lines.map_while(|line| line.split_once(": ")) {
            headers.append(http::HeaderName::try_from(name)?, value.parse()?);
        }
        answers.push(client::Answer { status, headers, body: Bytes::new(), trailers: None });
    }
    Ok(answers)
}

/// Plaintext to a port that becomes strict while the connection is open.
async fn refused(cast: &Cast) -> Result<Vec<client::Answer>> {
    let file = cast.mesh.config().join("workload-default-opened.yaml");
    let strict = std::fs::read_to_string(&file)?;
    let named = "  name: opened\n";
    let permissive = strict.replacen(named, &format!("{named}  annotations: {{leno.dev/inbound: permissive}}\n"), 1);
    let listener = cast.sidecar("opened")?.listener(0)?;
    let mut answers = Vec::new();
    for kind in ["text/plain", "application/grpc"] {
        write_atomically(&file, &permissive)?;
        let (mut sender, connection) = eventually("plaintext is let in", LIMIT, async || {
            let io = TokioIo::new(TcpStream::connect(listener).await?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            let connection = tokio::spawn(connection);
            let request = Request::get("/").header("host", "opened").body(Full::new(Bytes::new()))?;
            let answer = sender.send_request(request).await?;
            ensure!(answer.status() == 200, "{}", answer.status());
            answer.into_body().collect().await?;
            Ok((sender, connection))
        })
        .await?;
        write_atomically(&file, &strict)?;
        cast.mesh.wait("pod/opened").await?;
        let request = Request::post("/refused").header("host", "opened").header("content-type", kind);
        let answer = sender.send_request(request.body(Full::new(Bytes::new()))?).await?;
        let (head, _) = answer.into_parts();
        answers.push(client::Answer { status: head.status, headers: head.headers, body: Bytes::new(), trailers: None });
        connection.abort();
    }
    Ok(answers)
}

/// A peer of the mesh that sends what is too late already, by HTTP's deadline and by gRPC's.
async fn deadline(cast: &Cast) -> Result<Vec<client::Answer>> {
    let rogue =
        Forger::of(&cast.mesh)?.signed("spiffe://cluster.local/ns/default/sa/rogue", Duration::from_secs(3600))?;
    let tcp = TcpStream::connect(cast.sidecar("shop")?.listener(0)?).await?;
    let tls = TlsConnector::from(Arc::new(rogue)).connect("mesh.invalid".try_into()?, tcp).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for (name, value, kind) in [("leno-timeout-ms", "0", "text/plain"), ("grpc-timeout", "0m", "application/grpc")] {
        let request =
            Request::post("/deadline").header("host", "shop").header(name, value).header("content-type", kind);
        sender.ready().await?;
        let answer = sender.send_request(request.body(Full::new(Bytes::new()))?).await?;
        let (head, body) = answer.into_parts();
        body.collect().await?;
        answers.push(client::Answer { status: head.status, headers: head.headers, body: Bytes::new(), trailers: None });
    }
    connection.abort();
    ensure!(cast.server("shop")?.seen("/deadline") == 0, "it reached the application");
    Ok(answers)
}

/// Bytes that are waited for and then taken for opaque; the rest of them makes them a request.
async fn late_http(cast: &Cast) -> Result<()> {
    let mut stream = TcpStream::connect(cast.client.calls(&destination("lines"))?).await?;
    stream.write_all(b"GET").await?;
    eventually("they go on", LIMIT, async || {
        let metrics = cast.client.metrics().await?;
        let open = metrics.sum("leno_tcp_connections_total", &[("direction", "outbound")]);
        ensure!(open > 0.0, "not yet: {:?}", metrics.matching("leno_tcp_connections_total", &[]).collect::<Vec<_>>());
        Ok(())
    })
    .await?;
    stream.write_all(b" / HTTP/1.1\r\nhost: lines\r\n\r\n").await?;
    let mut rest = Vec::new();
    // Cut one way or another.
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
    ensure!(ended.is_ok() && rest.is_empty(), "{ended:?} {rest:?}");
    Ok(())
}

/// A connection that outlasts its proxy.
async fn aborted(cast: &Cast) -> Result<()> {
    let mut stream = TcpStream::connect(cast.client.calls(&destination("lines"))?).await?;
    ensure!(ask(&mut stream, "x").await? == "lines: x", "no answer");
    cast.lines.1.terminate(LIMIT).await
}

/// The line of a proxy's access log that tells of it.
async fn logged(produced: &Produced<'_>, reason: &str) -> Result<()> {
    eventually(&format!("{} logs {reason}", produced.at.name()), LIMIT, async || {
        for proxy in produced.proxies() {
            let log = proxy.process()?.log()?;
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            if lines.any(|line| line.get("reason") == Some(&reason.into())) {
                return Ok(());
            }
        }
        bail!("no such line yet")
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reason_is_given_and_told_everywhere() -> Result<()> {
    let cast = Cast::assemble().await?;
    for Listed { reason, status, grpc } in listed()? {
        let produced = produce(&cast, &reason).await.with_context(|| reason.clone())?;
        // What a policy spells out is as it says.
        let (status, grpc) = match reason.as_str() {
            "fault" => (Some(418), grpc::code("ABORTED")),
            "direct-response" => (Some(451), grpc::code("DATA_LOSS")),
            _ => (status, grpc),
        };
        let expected = usize::from(status.is_some()) + usize::from(grpc.is_some());
        ensure!(produced.answers.len() == expected, "{reason}: {:?}", produced.answers);
        for (n, answer) in produced.answers.iter().enumerate() {
            ensure!(answer.header("leno-reason") == reason, "{reason}: {answer:?}");
            let told = (answer.status.as_u16(), answer.header("grpc-status").parse::<u16>().ok());
            let wanted = if n == 0 { (status.unwrap_or_default(), None) } else { (200, grpc) };
            ensure!(told == wanted, "{reason}: {told:?} in place of {wanted:?}: {answer:?}");
        }
        logged(&produced, &reason).await?;
        if let Some(counter) = produced.counted {
            eventually(&format!("{reason} is counted"), LIMIT, async || {
                let mut count = 0.0;
                for proxy in produced.proxies() {
                    count += proxy.metrics().await?.sum(counter, &[("reason", &reason)]);
                }
                ensure!(count >= produced.answers.len().max(1) as f64, "{count} are counted");
                Ok(())
            })
            .await?;
        }
    }
    cast.mesh.end().await
}
