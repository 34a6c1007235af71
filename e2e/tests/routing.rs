//! Each route kind routes, as Gateway API defines it for Services.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use http::{Request, request::Builder};
use leno_e2e::{
    client,
    echo::Ping,
    mesh::{Options, documents::route_head},
    scenario::Scenario,
    wait::eventually,
};
use tonic::{Code, metadata::MetadataValue};

/// An HTTPRoute `shop` on Service `shop` with these rules.
fn http_route(rules: &str) -> String {
    format!("{}  rules:\n{rules}", route_head("HTTPRoute", "shop", "shop"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_matches_and_their_precedence() -> Result<()> {
    let scenario = Scenario::start(&["shop", "a", "b", "c", "d", "e"]).await?;
    let rules = r#"
    - matches: [{path: {type: PathPrefix, value: /v2}}]
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {type: Exact, value: /v2/exact}}]
      backendRefs: [{name: b, port: 80}]
    - matches:
        - path: {type: PathPrefix, value: /v2}
          headers: [{name: X-Version, value: two}]
        - path: {type: PathPrefix, value: /only}
          method: POST
      backendRefs: [{name: c, port: 80}]
    - matches: [{path: {type: RegularExpression, value: "/items/[0-9]+"}}]
      backendRefs: [{name: d, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /query}, queryParams: [{name: animal, value: whale}]}]
      backendRefs: [{name: e, port: 80}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;
    let cases: [(Builder, &str); 15] = [
        (Request::get("/v2"), "a-1"),
        (Request::get("/v2/"), "a-1"),
        (Request::get("/v2/anything?x=y"), "a-1"),
        (Request::get("/v2example"), "404"),
        (Request::get("/v2/exact"), "b-1"),
        (Request::get("/v2/exact/not"), "a-1"),
        (Request::get("/v2/x").header("x-version", "two"), "c-1"),
        (Request::get("/v2/x").header("x-version", "twofold"), "a-1"),
        (Request::post("/only"), "c-1"),
        (Request::get("/only"), "404"),
        (Request::get("/items/42"), "d-1"),
        (Request::get("/items/42/x"), "404"),
        (Request::get("/query?animal=whale&x=1"), "e-1"),
        (Request::get("/query?animal=dolphin"), "404"),
        (Request::get("/"), "404"),
    ];
    for (request, expected) in cases {
        let shown = format!("{request:?}");
        let answered = scenario.answered_by(request).await?;
        ensure!(answered == expected, "{shown}: expected {expected}, got {answered}");
    }
    let refused = scenario.get("/nowhere").await?;
    ensure!(refused.header("leno-reason") == "no-rule", "{refused:?}");

    // Without its route, the Service's own endpoints answer.
    scenario.mesh.remove("routes.yaml")?;
    eventually("the Service answers by itself", leno_e2e::mesh::LIMIT, async || {
        let answered = scenario.answered_by(Request::get("/")).await?;
        ensure!(answered == "shop-1", "{answered}");
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_filters_change_what_they_say() -> Result<()> {
    let scenario = Scenario::start(&["shop", "a"]).await?;
    let rules = r#"
    - matches: [{path: {type: PathPrefix, value: /headers}}]
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier:
            set: [{name: X-Set, value: set}]
            add: [{name: X-Add, value: added}]
            remove: [X-Remove]
        - type: ResponseHeaderModifier
          responseHeaderModifier:
            set: [{name: X-Instance, value: overwritten}]
            add: [{name: X-Response, value: added}]
            remove: [Content-Type]
      backendRefs:
        - name: a
          port: 80
          filters:
            - type: RequestHeaderModifier
              requestHeaderModifier: {add: [{name: X-Backend, value: a}]}
    - matches: [{path: {type: PathPrefix, value: /old}}]
      filters:
        - type: RequestRedirect
          requestRedirect:
            scheme: https
            hostname: example.org
            port: 8443
            path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}
            statusCode: 301
    - matches: [{path: {type: PathPrefix, value: /away}}]
      filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org}}]
    - matches: [{path: {type: PathPrefix, value: /prefix}}]
      filters:
        - type: URLRewrite
          urlRewrite: {hostname: rewritten.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /other}}
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /full}}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /whole}}}]
      backendRefs: [{name: a, port: 80}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;

    let request = Request::get("/headers").header("x-set", "old").header("x-add", "first").header("x-remove", "gone");
    let answer = scenario.send(request).await?;
    let seen = answer.seen()?;
    let header = |name: &str| seen.headers.get(name).map(String::as_str);
    ensure!(header("x-set") == Some("set") && header("x-remove").is_none(), "{seen:?}");
    ensure!(matches!(header("x-add"), Some("first, added" | "first,added")), "{seen:?}");
    ensure!(header("x-backend") == Some("a"), "{seen:?}");
    ensure!(answer.header("x-instance") == "overwritten" && answer.header("x-response") == "added", "{answer:?}");
    ensure!(!answer.headers.contains_key("content-type"), "{answer:?}");

    for (path, status, location) in [
        ("/old/page?q=1", 301, "https://example.org:8443/new/page?q=1"),
        ("/away/page", 302, "http://example.org/away/page"),
    ] {
        let answer = scenario.get(path).await?;
        ensure!(answer.status == status && answer.header("location") == location, "{path}: {answer:?}");
    }

    let seen = scenario.get("/prefix/page?q=1").await?.seen()?;
    ensure!(seen.path == "/other/page?q=1" && seen.authority == "rewritten.example", "{seen:?}");
    let seen = scenario.get("/full/page?q=1").await?.seen()?;
    ensure!(seen.path == "/whole?q=1" && seen.authority == "shop", "{seen:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_weights_share_out_requests() -> Result<()> {
    let scenario = Scenario::start(&["shop", "a", "b", "c"]).await?;
    let rules = r#"
    - matches: [{path: {type: PathPrefix, value: /split}}]
      backendRefs: [{name: a, port: 80, weight: 70}, {name: b, port: 80, weight: 30}, {name: c, port: 80, weight: 0}]
    - matches: [{path: {type: PathPrefix, value: /broken}}]
      backendRefs: [{name: a, port: 80, weight: 50}, {name: nowhere, port: 80, weight: 50}]
    - matches: [{path: {type: PathPrefix, value: /none}}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;

    let count = async |path: &str| {
        let mut counts = BTreeMap::<String, u32>::new();
        for _ in 0..500 {
            *counts.entry(scenario.answered_by(Request::get(path)).await?).or_default() += 1;
        }
        anyhow::Ok(counts)
    };
    // 500 tries at 70 %: 350 ± 10; six standard deviations either way.
    let counts = count("/split").await?;
    let a = counts.get("a-1").copied().unwrap_or_default();
    ensure!((288..=412).contains(&a) && counts.keys().eq(["a-1", "b-1"]), "70/30 came out as {counts:?}");
    let counts = count("/broken").await?;
    let failed = counts.get("500").copied().unwrap_or_default();
    ensure!((180..=320).contains(&failed) && counts.len() == 2, "half must be 500: {counts:?}");
    ensure!(scenario.answered_by(Request::get("/none")).await? == "500", "a rule without backends must answer 500");

    // The status says what is wrong.
    let status = scenario.mesh.object("httproute/shop").await?.context("the route")?.to_string();
    ensure!(status.contains("ResolvedRefs") && status.contains("BackendNotFound"), "{status}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_timeouts_and_retries() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let rules = r#"
    - matches: [{path: {type: PathPrefix, value: /delay}}]
      timeouts: {request: 3s}
      backendRefs: [{name: shop, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /count}}]
      retry: {codes: [503], attempts: 3, backoff: 10ms}
      backendRefs: [{name: shop, port: 80}]
    - backendRefs: [{name: shop, port: 80}]
"#;
    scenario.route(&http_route(rules), "httproute/shop").await?;
    let late = scenario.get("/delay/30000").await?;
    ensure!(late.status == 504 && late.header("leno-reason") == "request-timeout", "{late:?}");
    ensure!(scenario.get("/delay/1").await?.status == 200, "an answer in time was lost");

    ensure!(scenario.get("/count/one/2").await?.status == 200, "two failures and three retries: must succeed");
    let given_up = scenario.get("/count/two/9").await?;
    ensure!(given_up.status == 503, "nine failures and three retries: {given_up:?}");
    // Where no policy asks for it, a status is the answer.
    let server = &scenario.instance("shop-1")?.server;
    let before = server.requests();
    let once = scenario.get("/status/503").await?;
    ensure!(once.status == 503 && server.requests() == before + 1, "retried without a policy: {once:?}");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_routes_by_method_and_header() -> Result<()> {
    let scenario = Scenario::with(Options::default(), &["shop", "a", "b"], 1, "kubernetes.io/h2c").await?;
    let rules = r#"
  rules:
    - matches: [{method: {service: leno.e2e.Echo, method: Unary}}]
      backendRefs: [{name: a, port: 80}]
    - matches: [{method: {service: leno.e2e.Echo}, headers: [{name: tenant, value: b}]}]
      backendRefs: [{name: b, port: 80}]
"#;
    let route = route_head("GRPCRoute", "shop", "shop") + rules;
    scenario.route(&route, "grpcroute/shop").await?;
    let mut client = client::grpc(scenario.address("shop")?, "shop.default")?;

    let pong = client.unary(Ping::default()).await?.into_inner();
    ensure!(pong.instance == "a-1", "{pong:?}");
    let mut request = tonic::Request::new(Ping { count: 3, ..Ping::default() });
    request.metadata_mut().insert("tenant", MetadataValue::from_static("b"));
    let mut pongs = client.server_stream(request).await?.into_inner();
    let mut seen = Vec::new();
    while let Some(pong) = pongs.message().await? {
        seen.push((pong.instance, pong.seen));
    }
    ensure!(seen == [("b-1".to_owned(), 1), ("b-1".to_owned(), 2), ("b-1".to_owned(), 3)], "{seen:?}");

    let refused =
        client.server_stream(Ping::default()).await.err().context("no rule matches, and yet it was answered")?;
    ensure!(refused.code() == Code::Unimplemented, "{refused:?}");
    let failed = client.unary(Ping { fail_with: Code::DataLoss.into(), ..Ping::default() }).await.err();
    ensure!(failed.as_ref().is_some_and(|status| status.code() == Code::DataLoss), "{failed:?}");
    scenario.mesh.end().await
}
