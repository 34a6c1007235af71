//! The harness itself, with no mesh between: what a test relies on must hold without what it tests.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use leno_e2e::{
    client,
    dns::Dns,
    load::Load,
    netns::{GATEWAY, Network, name_hosts, sandbox},
    server::Server,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_counts_every_answer() -> Result<()> {
    let server = Server::start("direct").await?;
    let load = Load::new(server.address(), "direct").connections(20).streams(5).calls(5).rate(300.0);
    let load = load.reconnect_after(10).start();
    load.answered(600).await?;
    let report = load.stop().await?;
    report.unharmed(600)?;
    ensure!(report.instances.keys().eq(["direct"]), "answers by {:?}", report.instances);
    // A stream counts once at the server, however many messages it carries.
    ensure!(server.requests() <= report.ok, "{} received, {} answered", server.requests(), report.ok);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_sees_failures() -> Result<()> {
    let mut server = Server::start("mortal").await?;
    let load = Load::new(server.address(), "mortal").connections(10).streams(2).rate(200.0).start();
    load.more(50).await?;
    server.kill().await;
    leno_e2e::wait::eventually("failures are seen", Duration::from_secs(10), async || {
        ensure!(load.failed() > 10, "{} so far", load.failed());
        Ok(())
    })
    .await?;
    let report = load.stop().await?;
    ensure!(report.unharmed(1).is_err(), "the load took a dead server for well: {report:?}");
    Ok(())
}

#[tokio::test]
async fn the_server_does_as_asked() -> Result<()> {
    let server = Server::start("one").await?;
    let seen = client::get(server.address(), "example", "/a?b=c").await?.seen()?;
    assert_eq!((seen.path.as_str(), seen.authority.as_str(), seen.version.as_str()), ("/a?b=c", "example", "HTTP/1.1"));
    assert_eq!(client::get(server.address(), "example", "/status/418").await?.status, 418);
    let request = http::Request::get("/trailers").header("host", "example").header("te", "trailers");
    let trailers = client::http1(server.address(), request.body(bytes::Bytes::new())?).await?.trailers;
    ensure!(trailers.is_some_and(|trailers| trailers.contains_key("x-checksum")), "no trailers");
    let request = http::Request::get("http://example/x").body(bytes::Bytes::new())?;
    assert_eq!(client::http2(server.address(), request).await?.seen()?.version, "HTTP/2.0");
    Ok(())
}

#[tokio::test]
async fn dns_answers_can_change() -> Result<()> {
    use hickory_resolver::{
        TokioResolver,
        config::{NameServerConfig, ResolverConfig},
        net::runtime::TokioRuntimeProvider,
    };
    let dns = Dns::start().await?;
    dns.set("one.test", &["127.0.0.9".parse()?], 0);
    let mut server = NameServerConfig::udp(dns.address().ip());
    server.connections[0].port = dns.address().port();
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build()?;
    let lookup =
        async || anyhow::Ok(resolver.lookup_ip("one.test.").await?.iter().map(|ip| ip.to_string()).collect::<Vec<_>>());
    assert_eq!(lookup().await?, ["127.0.0.9"]);
    dns.set("one.test", &["127.0.0.10".parse()?], 0);
    assert_eq!(lookup().await?, ["127.0.0.10"]);
    ensure!(resolver.lookup_ip("two.test.").await.is_err(), "a name that was never set");
    Ok(())
}

#[test]
fn hosts_reach_each_other() -> Result<()> {
    sandbox("hosts_reach_each_other", async || {
        let network = Network::new().await?;
        let (one, two) = (network.host("one").await?, network.host("two").await?);
        let server = Server::listen("gateway", SocketAddr::from((GATEWAY, 8080))).await?;
        let quick = Duration::from_secs(20);
        let printed = one.shell(&format!("curl -sS http://{}/from-one", server.address()), quick).await?;
        ensure!(printed.contains("/from-one"), "{printed}");
        let folder = tempfile::tempdir()?;
        name_hosts(folder.path(), &two.addresses().iter().map(|ip| ("two", *ip)).collect::<Vec<_>>()).await?;
        for ip in two.addresses() {
            let authority = SocketAddr::new(*ip, 80);
            let processes = leno_e2e::process::Processes::new(folder.path(), false)?;
            let mut command = two.user_command("/usr/bin/python3");
            command.args([
                "-m",
                "http.server",
                "80",
                "--bind",
                &ip.to_string(),
                "--directory",
                "/usr/share/common-licenses",
            ]);
            processes.spawn("python", command)?;
            let fetch = format!("curl -sS --retry 40 --retry-connrefused --retry-delay 1 http://{authority}/BSD");
            ensure!(one.shell(&fetch, quick).await?.contains("University"), "no licence from {authority}");
            processes.end(quick).await?;
        }
        Ok(())
    })
}
