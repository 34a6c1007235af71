//! Connections of opaque bytes, perhaps TLS of the application's own: each sends a line and reads its answer. Each comes from an
//! address of its own, so that a proxy's access log tells which it was.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpSocket,
};
use tokio_rustls::TlsConnector;

use super::{LIMIT, Load, Pace, Tally, failure::Source};
use crate::{ports, tcp::ask};

pub(super) async fn run(load: Arc<Load>, mut pace: Pace, tally: Arc<Tally>) {
    let mut turn = 0;
    while pace.next().await {
        let since = Instant::now();
        let source = ports::loopback_ip();
        let outcome = match tokio::time::timeout(LIMIT, connection(&load, source, turn)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("no answer within {LIMIT:?}")),
        };
        tally.count(since, outcome.context(Source(source)));
        turn += 1;
    }
}

async fn connection(load: &Load, source: IpAddr, turn: usize) -> Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source, 0))?;
    let stream = socket.connect(load.address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let Some((names, config)) = &load.tls else { return lines(load, stream).await };
    let name = names.get(turn % names.len().max(1)).context("a server name")?;
    let tls = TlsConnector::from(config.clone()).connect(ServerName::try_from(*name)?, stream);
    lines(load, tls.await.context("handshake")?).await
}

async fn lines(load: &Load, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<String> {
    let instance = exchange(&mut stream, "load").await?;
    if !load.pause.is_zero() {
        tokio::time::sleep(load.pause).await;
        let second = exchange(&mut stream, "more").await.context("the second line")?;
        ensure!(second == instance, "{instance} answered, then {second}");
    }
    Ok(instance)
}

/// Who answers a line.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), line: &str) -> Result<String> {
    let answer = ask(stream, line).await?;
    match answer.split_once(": ") {
        Some((instance, same)) if same == line => Ok(instance.to_owned()),
        _ => anyhow::bail!("{line:?} was answered with {answer:?}"),
    }
}
