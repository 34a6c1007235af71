//! What must be refused is refused: at the door, with a line in the log and a counter.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_e2e::{
    client::{self, LIMIT},
    forge::{Forger, trusting_client},
    mesh::{Options, Workload, documents},
    scenario::{Scenario, destination},
    server::{Seen, Server},
    wait::eventually,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A request over mesh TLS with a certificate of the test's own making.
async fn request(address: SocketAddr, config: Arc<ClientConfig>, claim: Option<&str>) -> Result<Bytes> {
    let exchange = async {
        let tcp = TcpStream::connect(address).await?;
        // With TLS 1.3 the handshake may seem done at the client before the server has judged its certificate.
        let tls = TlsConnector::from(config).connect("mesh.invalid".try_into()?, tcp).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        let mut request = Request::get("/").header("host", "shop").body(Empty::<Bytes>::new())?;
        if let Some(claim) = claim {
            request.headers_mut().insert("leno-client-id", claim.parse()?);
        }
        let response = sender.send_request(request).await?;
        ensure!(response.status() == 200, "{}", response.status());
        Ok(response.into_body().collect().await?.to_bytes())
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

/// The same in what a peer says are opaque bytes: HTTP/1.1, or HTTP/2.
async fn smuggled(address: SocketAddr, mut config: ClientConfig, claim: &str, http2: bool) -> Result<Seen> {
    config.alpn_protocols = vec![leno_proto::alpn::TCP.to_vec()];
    let exchange = async {
        let tcp = TcpStream::connect(address).await?;
        let tls = TlsConnector::from(Arc::new(config)).connect("mesh.invalid".try_into()?, tcp).await?;
        let request = Request::get("http://shop/").header("leno-client-id", claim).body(Empty::<Bytes>::new())?;
        let response = if http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        ensure!(response.status() == 200, "{}", response.status());
        Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

/// Waits until a sidecar has counted a refusal and logged it.
async fn refused(sidecar: &Workload, direction: &str, reason: &str) -> Result<()> {
    eventually(&format!("{} refuses {direction}: {reason}", sidecar.name()), LIMIT, async || {
        let metrics = sidecar.metrics().await?;
        let counted = metrics.sum("leno_refused_total", &[("direction", direction), ("reason", reason)]);
        let all: Vec<_> = metrics.matching("leno_refused_total", &[]).collect();
        ensure!(counted >= 1.0, "counted: {all:?}");
        let log = sidecar.process()?.log()?;
        let line = log.lines().find(|line| line.contains("WARN") && line.contains(reason));
        ensure!(line.is_some(), "no warning with {reason:?} in its log");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let shop = scenario.instance("shop-1")?;
    let (listener, server) = (shop.sidecar.listener(0)?, &shop.server);
    let forger = Forger::of(&scenario.mesh)?;

    // Plaintext, and TLS that is not the mesh's.
    ensure!(client::get(listener, "shop", "/").await.is_err(), "plaintext was answered");
    refused(&shop.sidecar, "inbound", "plaintext").await?;
    let mut not_mesh = trusting_client(None)?;
    not_mesh.alpn_protocols = vec![b"http/1.1".to_vec()];
    ensure!(request(listener, Arc::new(not_mesh), None).await.is_err(), "TLS of the application's own was answered");
    refused(&shop.sidecar, "inbound", "unmeshed-tls").await?;

    // Certificates that look right but for one thing.
    let good = "spiffe://cluster.local/ns/default/sa/client";
    let cases = [
        ("tls-wrong-trust-domain", forger.signed("spiffe://elsewhere.example/ns/default/sa/client", DAY)?),
        ("tls-expired", forger.expired(good)?),
        ("tls-unknown-issuer", Forger::stranger()?.signed(good, DAY)?),
        ("tls-no-certificate", trusting_client(None)?),
        ("tls-not-an-identity", forger.signed("https://example.org/", DAY)?),
    ];
    for (reason, config) in cases {
        ensure!(request(listener, Arc::new(config), None).await.is_err(), "{reason}: it was answered");
        refused(&shop.sidecar, "inbound", reason).await?;
    }
    ensure!(server.requests() == 0, "{} requests of strangers reached the application", server.requests());

    // The same with nothing wrong: it was not the forger's clumsiness that was refused.
    request(listener, Arc::new(forger.signed(good, DAY)?), None).await.context("a good certificate")?;
    ensure!(server.requests() == 1, "it did not arrive");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_forged_in_a_header_counts_for_nothing() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let forged = "spiffe://cluster.local/ns/default/sa/admin";
    let seen = scenario.send(Request::get("/").header("leno-client-id", forged)).await?.seen()?;
    let id = seen.headers.get("leno-client-id").map(String::as_str);
    ensure!(id == Some("spiffe://cluster.local/ns/default/sa/client"), "the application was told {id:?}");

    // A client with a good certificate, and no sidecar that would take the header away.
    let shop = scenario.instance("shop-1")?;
    let config = Forger::of(&scenario.mesh)?.signed("spiffe://cluster.local/ns/default/sa/rogue", DAY)?;
    let seen: Seen =
        serde_json::from_slice(&request(shop.sidecar.listener(0)?, Arc::new(config), Some(forged)).await?)?;
    let id = seen.headers.get("leno-client-id").map(String::as_str);
    ensure!(id == Some("spiffe://cluster.local/ns/default/sa/rogue"), "the application was told {id:?}");
    refused(&shop.sidecar, "inbound", "forged-identity").await?;

    // From a client without the mesh, where that is permitted at all.
    let server = Server::start("open").await?;
    let namespace = "apiVersion: v1
kind: Namespace
metadata:
  name: default
  annotations: {leno.dev/inbound: permissive}
";
    scenario.mesh.apply("namespace.yaml", namespace)?;
    let open = scenario.mesh.workload("open").inbound(server.address()).start().await?;
    let request = Request::get("/").header("host", "open").header("leno-client-id", forged).body(Bytes::new())?;
    let seen = client::http1(open.listener(0)?, request).await?.seen()?;
    ensure!(!seen.headers.contains_key("leno-client-id"), "an unmeshed client passed for {:?}", seen.headers);
    refused(&open, "inbound", "forged-identity").await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_forged_among_opaque_bytes_counts_for_nothing() -> Result<()> {
    // Nobody declared what is spoken to `shop`; to `declared`, HTTP.
    let scenario = Scenario::with(Options::default(), &["shop"], 1, "").await?;
    let forger = Forger::of(&scenario.mesh)?;
    let rogue = || forger.signed("spiffe://cluster.local/ns/default/sa/rogue", DAY);
    let forged = "spiffe://cluster.local/ns/default/sa/admin";
    let shop = &scenario.instance("shop-1")?.sidecar;
    for http2 in [false, true] {
        let seen = smuggled(shop.listener(0)?, rogue()?, forged, http2).await?;
        let id = seen.headers.get("leno-client-id").map(String::as_str);
        ensure!(id == Some("spiffe://cluster.local/ns/default/sa/rogue"), "the application was told {id:?}");
    }
    refused(shop, "inbound", "forged-identity").await?;

    scenario.mesh.apply("declared.yaml", &documents::service("default", "declared", 80, "http"))?;
    let server = Server::start("declared").await?;
    let declared = scenario.mesh.workload("declared-1").serves("declared", server.address()).start().await?;
    // What its own sidecar was told is made from the Service.
    scenario.mesh.wait("service/declared").await?;
    let answer = smuggled(declared.listener(0)?, rogue()?, forged, false).await;
    ensure!(answer.is_err(), "opaque bytes reached a port that is declared HTTP: {answer:?}");
    refused(&declared, "inbound", "not-http").await?;
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_must_be_who_it_should_be() -> Result<()> {
    let scenario = Scenario::start(&["shop", "other"]).await?;
    // The configuration promises shop's identity at an address where `other` answers.
    let wrong = scenario.instance("other-1")?.sidecar.listener(0)?;
    scenario.instance("shop-1")?.sidecar.withdraw(&scenario.mesh)?;
    let content = documents::file(&[
        documents::pod("default", "shop-9", "shop", &["127.0.0.99".to_owned()]),
        documents::endpoint_slice("default", "shop", Some("shop-9"), wrong, true),
    ]);
    scenario.mesh.change("wrong.yaml", &content, "endpointslice/shop-shop-9").await?;
    let answer = eventually("only the wrong endpoint is left", LIMIT, async || {
        let answer = scenario.get("/").await?;
        ensure!(answer.status != 200, "still answered by {}", answer.header("x-instance"));
        Ok(answer)
    })
    .await?;
    ensure!(answer.status == 502 && answer.header("leno-reason") == "tls", "{answer:?}");
    ensure!(scenario.instance("other-1")?.server.requests() == 0, "the request reached the wrong server");
    scenario.mesh.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_does_not_exist_is_never_plaintext() -> Result<()> {
    let scenario = Scenario::start(&["shop"]).await?;
    let nowhere = destination("nowhere");
    let client = scenario.mesh.workload("other").outbound(&nowhere).start().await?;
    let answer = client::get(client.calls(&nowhere)?, "nowhere", "/").await?;
    ensure!(answer.status == 503 && answer.header("leno-reason") == "discovery", "{answer:?}");
    scenario.mesh.end().await
}
