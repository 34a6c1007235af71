//! Instructions per request, counted by valgrind: unlike times they are the same on a busy machine, so that a
//! regression shows in review. Both sidecars run under callgrind, one request at a time passes through them.
//!
//! What is counted is everything that a sidecar does between two points in time, so timers that fire meanwhile
//! count too; it comes to well under a percent.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use leno_e2e::{
    binaries,
    mesh::{Mesh, documents},
    process::{Process, run as run_to_end},
    server::Server,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{load::answer_length, plot::shown};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What earlier counts are kept in.
    #[arg(long, default_value = "benches/instructions.json")]
    baseline: PathBuf,
    /// Writes the counts there, instead of comparing with it.
    #[arg(long)]
    write: bool,
    /// Folder with the programs made for it: set by the program itself.
    #[arg(long, hide = true)]
    within: Option<PathBuf>,
}

/// Requests before it is counted: connections are made, pools filled, code is translated.
const WARM_UP: u32 = 100;
/// Requests that are counted.
const COUNTED: u32 = 500;
const PATH: &str = "/bytes/1024";
const DESTINATION: &str = "shop.default:80";
const LIMIT: Duration = Duration::from_secs(120);
/// What the client sees as the programs' folder.
const BINARIES: &str = "LENO_E2E_BINARIES";

/// Instructions per request, by protocol.
type Counts = BTreeMap<String, Count>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Count {
    /// At the client's sidecar.
    out: u64,
    /// At the server's.
    #[serde(rename = "in")]
    inbound: u64,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let Some(folder) = &args.within else { return again_with_callgrind(args).await };
    let mut counts = Counts::new();
    for (protocol, app_protocol) in [("http1", "http"), ("http2", "kubernetes.io/h2c")] {
        counts.insert(protocol.to_owned(), count(folder, protocol, app_protocol).await?);
    }
    if args.write {
        let text = serde_json::to_string_pretty(&counts)? + "\n";
        fs::write(&args.baseline, text).with_context(|| format!("write {}", args.baseline.display()))?;
    }
    let before = match fs::read(&args.baseline) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{}", args.baseline.display()))?,
        Err(_) => Counts::new(),
    };
    print!("{}", compared(&counts, &before));
    Ok(())
}

/// Runs this program with a `leno-proxy` that is the real one under callgrind.
async fn again_with_callgrind(args: &Args) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("leno-instructions-").tempdir().context("a folder")?;
    let (proxy, wrapper) = (binaries::leno_proxy()?, folder.path().join("leno-proxy"));
    let script = format!(
        "#!/bin/sh\nexec valgrind --quiet --tool=callgrind --callgrind-out-file={}/out.%p {} \"$@\"\n",
        folder.path().display(),
        fs::canonicalize(proxy)?.display()
    );
    fs::write(&wrapper, script).context("write a script")?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    symlink(fs::canonicalize(binaries::leno()?)?, folder.path().join("leno"))?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("instructions").arg("--baseline").arg(&args.baseline).arg("--within").arg(folder.path());
    if args.write {
        command.arg("--write");
    }
    let status = command.env(BINARIES, folder.path()).kill_on_drop(true).status().await?;
    ensure!(status.success(), "the count ended with {status}");
    Ok(())
}

async fn count(folder: &Path, protocol: &str, app_protocol: &str) -> Result<Count> {
    let application = Server::start("shop").await?;
    let mesh = Mesh::start().await?;
    mesh.apply("service.yaml", &documents::service(documents::NAMESPACE, "shop", 80, app_protocol))?;
    let server = mesh.workload("shop").serves("shop", application.address()).start().await?;
    let client = mesh.workload("web").outbound(DESTINATION).start().await?;
    let mut connection = Connection::open(protocol, client.calls(DESTINATION)?).await?;
    connection.requests(WARM_UP).await?;
    let sidecars = [client.process()?, server.process()?];
    for sidecar in sidecars {
        callgrind(sidecar, "zero").await?;
    }
    connection.requests(COUNTED).await?;
    let mut each = Vec::new();
    for sidecar in sidecars {
        callgrind(sidecar, "dump").await?;
        each.push(counted(folder, sidecar.pid())? / u64::from(COUNTED));
    }
    sidecars.into_iter().try_for_each(Process::kill)?;
    mesh.end().await?;
    let [out, inbound] = *each.as_slice() else { anyhow::bail!("two sidecars") };
    Ok(Count { out, inbound })
}

/// A command for callgrind, in a process that runs under it.
async fn callgrind(process: &Process, order: &str) -> Result<()> {
    let mut command = Command::new("vgdb");
    command.args([&format!("--pid={}", process.pid()), order]);
    run_to_end(command, LIMIT).await.with_context(|| format!("tell callgrind to {order}"))?;
    Ok(())
}

/// Of its last dump.
fn counted(folder: &Path, pid: u32) -> Result<u64> {
    let prefix = format!("out.{pid}");
    let files = fs::read_dir(folder)?.flatten();
    let dumps = files.filter(|file| file.file_name().to_string_lossy().starts_with(&prefix));
    let last = dumps.max_by_key(|file| file.metadata().and_then(|metadata| metadata.modified()).ok());
    let last = last.with_context(|| format!("callgrind wrote no {prefix} in {}", folder.display()))?.path();
    let text = fs::read_to_string(&last).with_context(|| format!("read {}", last.display()))?;
    total(&text).with_context(|| format!("{} has no total", last.display()))
}

/// Callgrind writes `summary: N` into each dump.
fn total(dump: &str) -> Option<u64> {
    dump.lines().find_map(|line| line.strip_prefix("summary: "))?.trim().parse().ok()
}

fn compared(counts: &Counts, before: &Counts) -> String {
    let mut text = String::from("Instructions per request (client's sidecar + server's), and before:\n");
    for (protocol, count) in counts {
        let sum = |count: &Count| (count.out + count.inbound) as f64;
        let change = before.get(protocol).map(|before| {
            let percent = (sum(count) / sum(before) - 1.0) * 100.0;
            format!("{percent:+.1} %, was {} + {}", shown(before.out as f64), shown(before.inbound as f64))
        });
        let change = change.unwrap_or_else(|| "no earlier count".to_owned());
        text += &format!("  {protocol}: {} + {} ({change})\n", shown(count.out as f64), shown(count.inbound as f64));
    }
    text
}

/// A client's connection, one request at a time.
enum Connection {
    Http1(TcpStream),
    Http2(h2::client::SendRequest<Bytes>),
}

impl Connection {
    async fn open(protocol: &str, address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        if protocol == "http1" {
            return Ok(Self::Http1(stream));
        }
        let (client, connection) = h2::client::handshake(stream).await.context("HTTP/2")?;
        // Its failure is that of its requests.
        tokio::spawn(connection);
        Ok(Self::Http2(client))
    }

    async fn requests(&mut self, count: u32) -> Result<()> {
        for n in 0..count {
            let request = async {
                match self {
                    Self::Http1(stream) => http1(stream).await,
                    Self::Http2(client) => http2(client).await,
                }
            };
            let outcome = tokio::time::timeout(LIMIT, request).await.context("no answer in time");
            outcome.and_then(|answer| answer).with_context(|| format!("request {n}"))?;
        }
        Ok(())
    }
}

async fn http1(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(format!("GET {PATH} HTTP/1.1\r\nhost: shop\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while answer_length(&answer)?.is_none_or(|length| answer.len() < length) {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the connection was closed");
    }
    Ok(())
}

async fn http2(client: &mut h2::client::SendRequest<Bytes>) -> Result<()> {
    let request = http::Request::get(format!("http://shop{PATH}")).body(())?;
    let mut ready = client.clone().ready().await?;
    let response = ready.send_request(request, true)?.0.await?;
    ensure!(response.status() == 200, "{}", response.status());
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_dump() {
        assert_eq!(total("version: 1\nevents: Ir\nsummary: 12345\n\nfn=(1)\n"), Some(12345));
        assert_eq!(total("version: 1\n"), None);
    }

    #[test]
    fn changes_are_shown_in_percent() {
        let counts = |out, inbound| Counts::from([("http1".to_owned(), Count { out, inbound })]);
        let text = compared(&counts(55_000, 55_000), &counts(50_000, 50_000));
        assert!(text.contains("http1: 55,000 + 55,000 (+10.0 %, was 50,000 + 50,000)"), "{text}");
        assert!(compared(&counts(1, 1), &Counts::new()).contains("no earlier count"));
    }
}
