//! The thread that everything else hangs on: one request, through both sidecars, by a route from a file.

use anyhow::{Result, ensure};
use leno_e2e::{
    client,
    mesh::{Mesh, documents},
    server::Server,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_through_both_sidecars() -> Result<()> {
    let mesh = Mesh::start().await?;
    let (main, canary) = (Server::start("shop-main").await?, Server::start("shop-canary").await?);
    mesh.apply(
        "shop.yaml",
        &documents::file(&[
            documents::service("default", "shop", 80, "http"),
            documents::service("default", "shop-canary", 80, "http"),
            documents::http_route("shop", "shop", &[("shop-canary", 1)]),
        ]),
    )?;
    let _main = mesh.workload("shop-1").account("shop").serves("shop", main.address()).start().await?;
    let canary_sidecar =
        mesh.workload("canary-1").account("canary").serves("shop-canary", canary.address()).start().await?;
    let client_sidecar = mesh.workload("client").outbound("shop.default:80").start().await?;

    let answer = client::get(client_sidecar.calls("shop.default:80")?, "shop.default", "/hello?a=b").await?;
    let seen = answer.seen()?;
    ensure!(answer.status == 200 && seen.instance == "shop-canary", "the route was not followed: {answer:?}");
    ensure!(seen.path == "/hello?a=b" && seen.authority == "shop.default", "the request was changed: {seen:?}");
    let caller = seen.headers.get("leno-client-id").map(String::as_str);
    ensure!(caller == Some("spiffe://cluster.local/ns/default/sa/client"), "mTLS said it was {caller:?}: {seen:?}");

    // The same connection without mesh TLS is nobody's.
    let plain = client::get(canary_sidecar.listener(0)?, "shop.default", "/").await;
    ensure!(!plain.is_ok_and(|answer| answer.status == 200), "plaintext reached the application");
    ensure!(canary.requests() == 1, "{} requests arrived", canary.requests());
    mesh.wait("httproute/shop").await?;
    mesh.end().await
}
