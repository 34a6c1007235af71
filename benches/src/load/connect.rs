//! New connections: connect (with mutual TLS if asked), send a byte, get it back, close. The byte shows that the other
//! side has verified the client's certificate and let the connection through.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustls::{
    ClientConfig, ClientConnection, StreamOwned,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

use super::Outcome;
use crate::work::Group;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    address: SocketAddr,
    /// How many at a time.
    #[arg(long)]
    parallel: usize,
    #[arg(long)]
    seconds: f64,
    #[command(flatten)]
    tls: Tls,
}

/// Mutual TLS, if there is a certificate.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Tls {
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    #[arg(long)]
    key: Option<PathBuf>,
    #[arg(long, default_value = "")]
    alpn: String,
    /// The only key exchange that is offered.
    #[arg(long, default_value = "X25519")]
    group: Group,
}

/// Longest wait for one connection.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let tls = args.tls.config()?;
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(args.seconds);
    let threads: Vec<_> = (0..args.parallel)
        .map(|_| {
            let (tls, address) = (tls.clone(), args.address);
            std::thread::spawn(move || {
                let (mut latencies, mut failed) = (Vec::new(), 0);
                while Instant::now() < end {
                    let since = Instant::now();
                    match exchange(address, tls.clone()) {
                        Ok(()) => latencies.push(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)),
                        Err(error) => {
                            if failed == 0 {
                                eprintln!("a connection failed: {error:#}");
                            }
                            failed += 1;
                        }
                    }
                }
                (latencies, failed)
            })
        })
        .collect();
    let (mut latencies, mut failed) = (Vec::new(), 0);
    for thread in threads {
        let (of_thread, failed_of_thread) = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
        latencies.extend(of_thread);
        failed += failed_of_thread;
    }
    Ok(Outcome::new(latencies, failed, begin.elapsed()))
}

fn exchange(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Result<()> {
    let mut stream = connect(address)?;
    match tls {
        None => echo(&mut stream),
        Some(config) => echo(&mut secured(stream, config)?),
    }
}

fn echo(stream: &mut (impl Read + Write)) -> Result<()> {
    let mut answer = [0];
    stream.write_all(b"x").context("send")?;
    stream.flush()?;
    stream.read_exact(&mut answer).context("receive")?;
    ensure!(answer == *b"x", "something else came back");
    Ok(())
}

pub(super) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// The handshake is made with the first bytes sent.
pub(super) fn secured(
    stream: TcpStream,
    config: Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from("server").context("a server's name")?;
    Ok(StreamOwned::new(ClientConnection::new(config, name)?, stream))
}

impl Tls {
    pub(super) fn config(&self) -> Result<Option<Arc<ClientConfig>>> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else { return Ok(None) };
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let chain = CertificateDer::pem_slice_iter(&read(certificate)?).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&read(key)?)?;
        let group = match self.group {
            Group::X25519 => aws_lc_rs::kx_group::X25519,
            Group::X25519Mlkem768 => aws_lc_rs::kx_group::X25519MLKEM768,
        };
        let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
        let mut config = leno_e2e::forge::trusting_client_with(provider, Some((chain, key)))?;
        config.alpn_protocols = if self.alpn.is_empty() { Vec::new() } else { vec![self.alpn.clone().into_bytes()] };
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Some(Arc::new(config)))
    }
}
