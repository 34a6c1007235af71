//! Opaque protocols: servers that echo lines with their name before them, some speaking first, some over TLS.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufStream},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::client::LIMIT;

/// How a server begins.
#[derive(Clone)]
pub enum Manner {
    /// Waits for the client.
    Listens,
    /// Sends "hello from NAME" at once, as SMTP or MySQL do.
    SpeaksFirst,
    /// TLS of the application's own.
    Tls(Arc<ServerConfig>),
}

/// A server for lines: "x" is answered with "NAME: x". Gone when dropped.
#[derive(Debug)]
pub struct LineServer {
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl LineServer {
    pub async fn start(name: &str, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let name: Arc<str> = name.into();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (name, manner) = (name.clone(), manner.clone());
                // A client that leaves in the middle is its own affair.
                connections.spawn(async move { drop(serve(stream, &name, manner).await) });
            }
        });
        Ok(Self { address, serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for LineServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(stream: TcpStream, name: &str, manner: Manner) -> Result<()> {
    match manner {
        Manner::Listens => echo(stream, name).await,
        Manner::SpeaksFirst => {
            let mut stream = stream;
            stream.write_all(format!("hello from {name}\n").as_bytes()).await?;
            echo(stream, name).await
        }
        Manner::Tls(config) => echo(TlsAcceptor::from(config).accept(stream).await?, name).await,
    }
}

async fn echo(stream: impl AsyncRead + AsyncWrite + Unpin, name: &str) -> Result<()> {
    let mut stream = BufStream::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        stream.write_all(format!("{name}: {line}").as_bytes()).await?;
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}

/// Sends a line over a stream and reads one.
pub async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), line: &str) -> Result<String> {
    let exchange = async {
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        stream.flush().await?;
        read_line(stream).await
    };
    tokio::time::timeout(LIMIT, exchange).await.context("no answer in time")?
}

/// Reads one line, byte by byte, so that nothing after it is lost.
pub async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    use tokio::io::AsyncReadExt as _;
    let mut line = Vec::new();
    let reading = async {
        loop {
            match stream.read_u8().await? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                byte => line.push(byte),
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await.context("no line in time")?
}

/// A self-signed certificate for these names: for the server, and for clients that trust nothing else.
pub fn self_signed(names: &[&str]) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names)?;
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((Arc::new(server), Arc::new(client)))
}

/// TLS to `name` at `address`.
pub async fn tls(address: SocketAddr, name: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        Ok(TlsConnector::from(config).connect(ServerName::try_from(name.to_owned())?, stream).await?)
    };
    tokio::time::timeout(LIMIT, connecting).await.context("no handshake in time")?
}
