//! The rig: servers behind the proxies, and contenders as processes in front of them. Load generators and servers run
//! on the first CPU, all proxies of a contender on the second.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use leno_e2e::{
    client, ports,
    process::{Process, Processes},
    wait::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    certificates::{Authority, Identity},
    contender::{Contender, Definition, How, Program, render},
    leno,
    work::{BODY, LARGE_BODY, PATH, Protocol, Upstream},
};

/// Where load generators and servers run.
pub(crate) const LOAD_CPU: &str = "0";
/// Where proxies run.
pub(crate) const PROXY_CPU: &str = "1";

const LIMIT: Duration = Duration::from_secs(20);
/// How often a starting program is looked at: what the start's measurement resolves.
const LOOK: Duration = Duration::from_millis(1);

/// A program on a CPU of its own.
pub(crate) fn pinned(cpu: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu, program]);
    command
}

/// Servers behind the proxies.
pub(crate) struct Servers {
    http1: SocketAddr,
    http2: SocketAddr,
    stream: SocketAddr,
    echo: SocketAddr,
    bulk: SocketAddr,
    processes: Vec<Process>,
}

impl Servers {
    pub(crate) async fn start(processes: &Processes, folder: &Path) -> Result<Self> {
        let mut addresses = [ports::free()?; 5];
        for address in &mut addresses {
            *address = ports::free()?;
        }
        let [http1, http2, stream, echo, bulk] = addresses;
        let mut started = vec![nginx(processes, &folder.join("nginx"), http1, http2)?];
        let me = std::env::current_exe().context("this program")?.display().to_string();
        for (kind, address) in [("stream", stream), ("echo", echo)] {
            let mut command = pinned(LOAD_CPU, &me);
            command.args(["serve", kind, "--listen", &address.to_string()]);
            started.push(processes.spawn(&format!("serve-{kind}"), command)?);
        }
        let mut iperf3 = pinned(LOAD_CPU, "iperf3");
        iperf3.args(["--server", "--bind", "127.0.0.1", "--port", &bulk.port().to_string()]);
        started.push(processes.spawn("iperf3", iperf3)?);
        for address in addresses {
            accepts(address).await.with_context(|| format!("the server on {address}"))?;
        }
        let answer = client::get(http1, "bench", PATH).await?;
        ensure!(answer.body.len() == BODY, "nginx answered {} with {} bytes", answer.status, answer.body.len());
        Ok(Self { http1, http2, stream, echo, bulk, processes: started })
    }

    /// Some of them would make a failure of being asked to end.
    pub(crate) fn stop(&self) -> Result<()> {
        self.processes.iter().try_for_each(Process::kill)
    }

    pub(crate) fn address(&self, upstream: Upstream) -> SocketAddr {
        match upstream {
            Upstream::Http1 => self.http1,
            Upstream::Http2 => self.http2,
            Upstream::Stream => self.stream,
            Upstream::Echo => self.echo,
            Upstream::Bulk => self.bulk,
        }
    }
}

fn nginx(processes: &Processes, folder: &Path, http1: SocketAddr, http2: SocketAddr) -> Result<Process> {
    fs::create_dir_all(folder.join("www")).context("nginx's folder")?;
    fs::write(folder.join("www/1k"), vec![b'x'; BODY])?;
    fs::write(folder.join("www/1m"), vec![b'x'; LARGE_BODY])?;
    let template = include_str!("rig/nginx.conf");
    let variables =
        [("folder", folder.display().to_string()), ("http1", http1.to_string()), ("http2", http2.to_string())];
    let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
    fs::write(folder.join("nginx.conf"), render(template, &variables)?)?;
    let mut command = pinned(LOAD_CPU, "nginx");
    command.args(["-g", "daemon off;", "-e", "stderr"]).arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    processes.spawn("nginx", command)
}

/// A contender that takes work.
pub(crate) struct Running {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where the client's proxy connects, and how.
    pub mesh: Option<MeshEnd>,
    /// The client's proxy, then the server's.
    pub proxies: Vec<Process>,
    /// From the start of the client's proxy until it took connections.
    pub ready: Duration,
    keep: Keep,
}

/// The inbound proxy as mTLS clients see it.
#[derive(Debug, Clone)]
pub(crate) struct MeshEnd {
    pub address: SocketAddr,
    pub client: Identity,
    pub alpn: String,
}

/// What lives as long as the contender.
enum Keep {
    Nothing,
    Programs(Processes),
    Leno(Box<leno::Pair>),
}

impl Running {
    /// Starts a contender in front of a server; its files are in `folder`.
    pub(crate) async fn start(
        contender: &Contender,
        contenders: &Path,
        upstream: SocketAddr,
        kind: Upstream,
        folder: &Path,
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let running = match &contender.how {
            How::Direct => {
                Self { address: upstream, mesh: None, proxies: Vec::new(), ready: Duration::ZERO, keep: Keep::Nothing }
            }
            How::Leno { churn } => {
                let pair = leno::Pair::start(contender.kind, *churn, upstream, kind.protocol(), folder).await?;
                Self {
                    address: pair.address,
                    mesh: pair.mesh_end.clone(),
                    proxies: pair.proxies.clone(),
                    ready: pair.ready,
                    keep: Keep::Leno(Box::new(pair)),
                }
            }
            How::Programs(definition) => programs(definition, contenders, upstream, kind.protocol(), folder).await?,
        };
        carries(running.address, kind).await.with_context(|| format!("{} does not carry", contender.name))?;
        Ok(running)
    }

    pub(crate) async fn stop(self) -> Result<()> {
        match self.keep {
            Keep::Nothing => Ok(()),
            Keep::Programs(processes) => {
                self.proxies.iter().try_for_each(Process::kill)?;
                processes.end(LIMIT).await
            }
            Keep::Leno(pair) => pair.stop().await,
        }
    }
}

async fn programs(
    definition: &Definition,
    contenders: &Path,
    upstream: SocketAddr,
    protocol: Protocol,
    folder: &Path,
) -> Result<Running> {
    let variables_of_protocol = definition.protocols.get(&protocol).context("it does not speak this protocol")?;
    let (outbound, inbound) = (ports::free()?, ports::free()?);
    let authority = Authority::new(folder)?;
    let identity = |name: &str| authority.issue(folder, name, &format!("spiffe://bench/ns/default/sa/{name}"));
    let (client, _) = (identity("client")?, identity("server")?);
    let mut variables = variables_of_protocol.clone();
    variables.extend(
        [
            ("folder", folder.display().to_string()),
            ("contenders", contenders.display().to_string()),
            ("outbound_port", outbound.port().to_string()),
            ("inbound_port", inbound.port().to_string()),
            ("upstream_port", upstream.port().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let processes = Processes::new(folder.join("logs"), false)?;
    let mut proxies = Vec::new();
    let mut mesh = None;
    if let Some(program) = &definition.inbound {
        proxies.push(launch(&processes, "inbound", program, contenders, folder, &variables)?);
        accepts(inbound).await.context("the inbound proxy")?;
        let alpn = definition.mesh_alpn.get(&protocol).cloned().unwrap_or_default();
        mesh = Some(MeshEnd { address: inbound, client, alpn });
    }
    let started = Instant::now();
    let process = launch(&processes, "outbound", &definition.outbound, contenders, folder, &variables)?;
    accepts(outbound).await.context("the outbound proxy")?;
    let ready = started.elapsed();
    proxies.insert(0, process);
    Ok(Running { address: outbound, mesh, proxies, ready, keep: Keep::Programs(processes) })
}

fn launch(
    processes: &Processes,
    role: &str,
    program: &Program,
    contenders: &Path,
    folder: &Path,
    variables: &BTreeMap<String, String>,
) -> Result<Process> {
    let mut variables = variables.clone();
    if let Some(config) = &program.config {
        let template = contenders.join(config);
        let text = fs::read_to_string(&template).with_context(|| format!("read {}", template.display()))?;
        let file: PathBuf = folder.join(format!("{role}-{}", config.replace('/', "-")));
        fs::write(&file, render(&text, &variables).with_context(|| config.clone())?)?;
        variables.insert("config".to_owned(), file.display().to_string());
    }
    let words: Vec<String> = program.command.iter().map(|word| render(word, &variables)).collect::<Result<_>>()?;
    let (executable, arguments) = words.split_first().context("an empty command")?;
    let mut command = pinned(PROXY_CPU, executable);
    command.args(arguments).current_dir(folder);
    processes.spawn(role, command)
}

/// Waits until something listens.
pub(crate) async fn accepts(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => bail!("nothing listens on {address}: {error}"),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Waits until a request, or a byte, gets through and back.
async fn carries(address: SocketAddr, kind: Upstream) -> Result<()> {
    eventually("a request gets through", LIMIT, async || match kind {
        Upstream::Http1 => {
            let answer = client::get(address, "shop", PATH).await?;
            ensure!(answer.status == 200 && answer.body.len() == BODY, "{}", answer.status);
            Ok(())
        }
        Upstream::Http2 => {
            let request = Request::get(format!("http://shop{PATH}")).body(Bytes::new())?;
            let answer = client::http2(address, request).await?;
            ensure!(answer.status == 200 && answer.body.len() == BODY, "{}", answer.status);
            Ok(())
        }
        Upstream::Echo => {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"x").await?;
            ensure!(stream.read_u8().await? == b'x', "something else came back");
            Ok(())
        }
        // Their load generators say if they do not.
        Upstream::Stream | Upstream::Bulk => accepts(address).await,
    })
    .await
}
