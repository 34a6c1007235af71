//! Policies of group leno.dev: attached, refused, overridden, and what is said of each.

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    mesh::{LIMIT, documents::route_head},
    scenario::Scenario,
    wait::eventually,
};

/// A RoutePolicy for HTTPRoute `shop`, or a rule of it.
fn route_policy(name: &str, section: &str, timeouts: &str) -> String {
    let section = if section.is_empty() { String::new() } else { format!(", sectionName: {section}") };
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: RoutePolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop{section}}}]\n  \
         timeouts: {timeouts}\n"
    )
}

async fn status_of(scenario: &Scenario, object: &str) -> Result<String> {
    Ok(scenario.mesh.object(object).await?.with_context(|| format!("{object} is not there"))?.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_in_force_where_it_is_attached_and_says_so() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let rules = "  rules:
    - name: slow
      matches: [{path: {type: PathPrefix, value: /delay}}]
      backendRefs: [{name: shop, port: 80}]
    - name: rest
      backendRefs: [{name: shop, port: 80}]
";
    scenario.route(&format!("{}{rules}", route_head("HTTPRoute", "shop", "shop")), "httproute/shop").await?;
    ensure!(scenario.get("/delay/400").await?.status == 200, "without a policy nothing is cut off");

    // In force once `leno wait` says so.
    let strict = route_policy("strict", "slow", "{request: 200ms}");
    scenario.mesh.change("strict.yaml", &strict, "routepolicy/strict").await?;
    let late = scenario.get("/delay/30000").await?;
    ensure!(late.status == 504 && late.header("leno-reason") == "request-timeout", "{late:?}");
    ensure!(scenario.get("/status/200?other=rule").await?.status == 200, "the other rule has no policy");

    // One for the whole route does not reach the rule that has its own.
    let lenient = route_policy("lenient", "", "{request: 60s}");
    scenario.mesh.change("lenient.yaml", &lenient, "routepolicy/lenient").await?;
    ensure!(scenario.get("/delay/30000").await?.status == 504, "the rule's own policy was overridden");
    ensure!(status_of(&scenario, "routepolicy/lenient").await?.contains("more specific"), "nobody is told");

    // A second one for the same place is told that it lost.
    scenario.mesh.apply("zz.yaml", &route_policy("zz", "slow", "{request: 60s}"))?;
    eventually("the later policy is told of the conflict", LIMIT, async || {
        let status = status_of(&scenario, "routepolicy/zz").await?;
        ensure!(status.contains("Conflicted") && status.contains("strict"), "{status}");
        Ok(())
    })
    .await?;
    ensure!(scenario.get("/delay/30000").await?.status == 504, "the older policy must stay in force");

    // A bad value is refused with its field; what was in force stays.
    scenario.mesh.apply("strict.yaml", &strict.replace("200ms", "-1s"))?;
    eventually("the bad value is reported", LIMIT, async || {
        let told = status_of(&scenario, "routepolicy/strict").await?;
        ensure!(told.contains("spec.timeouts.request"), "{told}");
        Ok(())
    })
    .await?;
    ensure!(scenario.get("/delay/30000").await?.status == 504, "the last good version must stay in force");

    // Removed, it is the next one's turn.
    scenario.mesh.remove("strict.yaml")?;
    eventually("the other policy takes its place", LIMIT, async || {
        let answer = scenario.get("/delay/400").await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
    .await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_explained_by_the_proxy_that_would_send_it() -> Result<()> {
    let scenario = Scenario::start(&["shop", "canary"]).await?;
    let rules = "  rules:
    - name: checkout
      matches: [{path: {type: PathPrefix, value: /checkout}}]
      backendRefs: [{name: shop, port: 80}]
    - name: rest
      backendRefs: [{name: shop, port: 80, weight: 9}, {name: canary, port: 80, weight: 1}]
";
    scenario.route(&format!("{}{rules}", route_head("HTTPRoute", "shop", "shop")), "httproute/shop").await?;
    let patient = route_policy("patient", "rest", "{request: 7s}");
    scenario.mesh.change("patient.yaml", &patient, "routepolicy/patient").await?;

    let told = scenario.mesh.leno(&["explain", "client", "http://shop.default/cart"]).await?;
    for part in [
        "the path is not under /checkout",
        "matches  [HTTPRoute default/shop, rule rest, generation 1]",
        "the whole request: 7s  [RoutePolicy default/patient, generation 1]",
        "default/shop:80 gets 90 %",
        "default/canary:80 gets 10 %",
        "ready; mTLS, must be spiffe://cluster.local/ns/default/sa/",
    ] {
        ensure!(told.contains(part), "{part:?} is not told:\n{told}");
    }
    // Nothing was sent by it.
    for instance in &scenario.instances {
        ensure!(instance.server.requests() == 0, "the explanation reached the application");
    }
    let absent = scenario.mesh.leno(&["explain", "nobody", "http://shop.default/"]).await;
    ensure!(absent.is_err_and(|error| format!("{error:#}").contains("no proxy default/nobody")), "nobody answered");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_about_a_request_with_method_and_headers_is_about_that_request() -> Result<()> {
    let scenario = Scenario::start(&["shop", "canary"]).await?;
    let rules = "  rules:
    - name: writes
      matches: [{method: POST, headers: [{name: x-version, value: two}]}]
      backendRefs: [{name: canary, port: 80}]
    - name: rest
      backendRefs: [{name: shop, port: 80}]
";
    scenario.route(&format!("{}{rules}", route_head("HTTPRoute", "shop", "shop")), "httproute/shop").await?;
    let url = "http://shop.default/cart";
    let cases: [(&[&str], &str, &str); 5] = [
        (&["-X", "POST", "-H", "x-version: two"], "writes", "canary"),
        (&["-X", "POST", "-H", "x-version: one"], "rest", "shop"),
        (&["-X", "POST"], "rest", "shop"),
        (&["-H", "x-version: two"], "rest", "shop"),
        (&[], "rest", "shop"),
    ];
    for (asked, rule, backend) in cases {
        let told = scenario.mesh.leno(&[&["explain", "client", url], asked].concat()).await?;
        for part in [
            format!("matches  [HTTPRoute default/shop, rule {rule}, generation 1]"),
            format!("default/{backend}:80 gets 100 %"),
        ] {
            ensure!(told.contains(&part), "{part:?} is not told of {asked:?}:\n{told}");
        }
    }
    scenario.mesh.end().await
}
