//! Makes load with the tools that everybody knows, and with our own where there is none, and reads what they print.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::process::run as run_to_end;
use serde_json::Value;

use crate::{
    figures::percentile,
    load::Outcome,
    rig::{LOAD_CPU, MeshEnd, pinned},
    work::{Group, Load},
};

/// What a load generator did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Done {
    /// Requests, messages, connections, or megabytes.
    pub units: f64,
    /// Of them, per second.
    pub rate: f64,
    /// µs: median, 99th and 99.9th percentile.
    pub latency: Option<[f64; 3]>,
}

/// More failures than this are no measurement.
const FAILED_SHARE: f64 = 0.001;
/// Longer than asked for a tool may take.
const GRACE: Duration = Duration::from_secs(30);
/// Connections of the paced load: what one would need at 4,000 requests/s that take 4 ms each.
const PACED_CONNECTIONS: &str = "16";
/// Connections being made at any time.
const PARALLEL: &str = "8";

/// Makes load on `address`; `mesh` is where work for the inbound proxy goes. `folder` is for files of the tools.
pub(crate) async fn make(
    load: Load,
    address: SocketAddr,
    mesh: Option<&MeshEnd>,
    seconds: u64,
    folder: &Path,
) -> Result<Done> {
    let time = seconds.to_string();
    match load {
        Load::Closed { connections, path, upload } => {
            let script = script(folder, upload)?;
            let mut wrk = pinned(LOAD_CPU, "wrk");
            wrk.args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{time}s"), "--timeout", "10s", "-s"]);
            wrk.arg(script).arg(format!("http://{address}{path}"));
            outcome(&run(wrk, seconds).await?)
        }
        Load::Http2 { connections, streams, grpc } => {
            h2load(address, [connections, streams], grpc, &time, folder).await
        }
        Load::Paced { rate } => {
            let mut own = own("paced", address, &time)?;
            own.args(["--connections", PACED_CONNECTIONS, "--rate", &rate.to_string()]);
            outcome(&run(own, seconds).await?)
        }
        Load::Stream { connections, streams } => {
            let mut own = own("stream", address, &time)?;
            own.args(["--connections", &connections.to_string(), "--streams", &streams.to_string()]);
            outcome(&run(own, seconds).await?)
        }
        Load::Connect => {
            let mut own = own("connect", address, &time)?;
            own.args(["--parallel", PARALLEL]);
            outcome(&run(own, seconds).await?)
        }
        Load::Handshake { group } => {
            let mesh = mesh.context("there is no inbound proxy")?;
            let mut own = own("connect", mesh.address, &time)?;
            own.args(["--parallel", PARALLEL]);
            mutual_tls(&mut own, mesh, group);
            outcome(&run(own, seconds).await?)
        }
        Load::Bulk { down } => {
            let mut iperf3 = pinned(LOAD_CPU, "iperf3");
            iperf3.args(["--client", &address.ip().to_string(), "--port", &address.port().to_string()]);
            iperf3.args(["--time", &time, "--json"]);
            if down {
                iperf3.arg("--reverse");
            }
            bulk(&run(iperf3, seconds).await?)
        }
        Load::Idle { .. } | Load::Start => anyhow::bail!("no load is made for this work"),
    }
}

/// This program as a load generator.
fn own(kind: &str, address: SocketAddr, seconds: &str) -> Result<Command> {
    let mut command = idle_command(kind, address)?;
    command.args(["--seconds", seconds]);
    Ok(command)
}

/// The same, without an end.
pub(crate) fn idle_command(kind: &str, address: SocketAddr) -> Result<Command> {
    let mut command = pinned(LOAD_CPU, &std::env::current_exe().context("this program")?.display().to_string());
    command.args(["load", kind, "--address", &address.to_string()]);
    Ok(command)
}

/// Makes a load generator of ours speak mTLS.
pub(crate) fn mutual_tls(command: &mut Command, mesh: &MeshEnd, group: Group) {
    command.arg("--certificate").arg(&mesh.client.certificate).arg("--key").arg(&mesh.client.key);
    command.args(["--alpn", &mesh.alpn, "--group", &group.to_string()]);
}

async fn run(command: Command, seconds: u64) -> Result<String> {
    run_to_end(command, Duration::from_secs(seconds) + GRACE).await
}

fn script(folder: &Path, upload: bool) -> Result<std::path::PathBuf> {
    let file = folder.join(if upload { "upload.lua" } else { "report.lua" });
    let upload = if upload { include_str!("tools/upload.lua") } else { "" };
    fs::write(&file, [upload, include_str!("tools/report.lua")].concat()).context("write wrk's script")?;
    Ok(file)
}

fn outcome(printed: &str) -> Result<Done> {
    let outcome = Outcome::parse(printed)?;
    let done = outcome.done as f64;
    ensure!(outcome.failed as f64 <= done * FAILED_SHARE && done > 0.0, "requests failed: {outcome:?}\n{printed}");
    let latency = Some([outcome.p50_us, outcome.p99_us, outcome.p999_us]);
    Ok(Done { units: done, rate: done / outcome.seconds, latency })
}

async fn h2load(
    address: SocketAddr,
    [connections, streams]: [u32; 2],
    grpc: bool,
    time: &str,
    folder: &Path,
) -> Result<Done> {
    let log = folder.join("h2load.log");
    // h2load appends to it.
    let _ = fs::remove_file(&log);
    let mut command = pinned(LOAD_CPU, "h2load");
    command.args(["-c", &connections.to_string(), "-m", &streams.to_string(), "-D", time, "--log-file"]).arg(&log);
    if grpc {
        let message = folder.join("message");
        fs::write(&message, [b"\0\0\0\0\x5f".as_slice(), &[b'a'; 95]].concat()).context("write a message")?;
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"]).arg(message);
        command.arg(format!("http://{address}/leno.bench.Echo/Unary"));
    } else {
        command.arg(format!("http://{address}{}", crate::work::PATH));
    }
    let printed = run(command, time.parse()?).await?;
    let (done, seconds) = h2load_summary(&printed)?;
    let log = fs::read_to_string(&log).context("read h2load's log")?;
    Ok(Done { units: done, rate: done / seconds, latency: Some(h2load_latency(&log)) })
}

/// Requests done, and seconds; an error if requests failed.
fn h2load_summary(printed: &str) -> Result<(f64, f64)> {
    let line =
        |start: &str| printed.lines().find_map(|line| line.strip_prefix(start)).with_context(|| printed.to_owned());
    let counts = line("requests: ")?;
    let count = |what: &str| -> Option<f64> {
        counts.split(", ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
    };
    let done = count("succeeded").with_context(|| format!("h2load's counts: {counts}"))?;
    let failed: f64 = ["failed", "errored", "timeout"].into_iter().filter_map(count).sum();
    ensure!(failed <= done * FAILED_SHARE && done > 0.0, "requests failed: {counts}");
    let time = line("finished in ")?.split(',').next().unwrap_or_default();
    Ok((done, micros(time)? / 1e6))
}

/// From its log: start, status and duration (µs) of each request.
fn h2load_latency(log: &str) -> [f64; 3] {
    let mut latencies: Vec<u64> = log.lines().filter_map(|line| line.rsplit('\t').next()?.parse().ok()).collect();
    latencies.sort_unstable();
    [0.5, 0.99, 0.999].map(|share| percentile(&latencies, share) as f64)
}

/// "1.23ms" in microseconds.
fn micros(text: &str) -> Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let parsed = units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    parsed.with_context(|| format!("not a duration: {text}"))
}

/// From iperf3's JSON.
fn bulk(printed: &str) -> Result<Done> {
    let json: Value = serde_json::from_str(printed).with_context(|| format!("iperf3 printed {printed}"))?;
    let number = |name: &str| json.pointer(&format!("/end/sum_received/{name}")).and_then(Value::as_f64);
    let bytes = number("bytes").with_context(|| format!("iperf3: {}", json.get("error").unwrap_or(&json)))?;
    let bits = number("bits_per_second").context("iperf3's bits_per_second")?;
    Ok(Done { units: bytes / 1e6, rate: bits / 8e6, latency: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_with_our_script() {
        let printed = "Running 2s test @ http://127.0.0.1:1/1k\n  1 threads and 16 connections\n\
            Transfer/sec:     24.53MB\n\
            {\"done\":40000,\"failed\":0,\"seconds\":2.000000,\"p50_us\":522,\"p99_us\":5353,\"p999_us\":5973}\n";
        let expected = Done { units: 40000.0, rate: 20000.0, latency: Some([522.0, 5353.0, 5973.0]) };
        assert_eq!(outcome(printed).unwrap(), expected);
        assert!(outcome(&printed.replace("\"failed\":0", "\"failed\":99")).is_err());
    }

    #[test]
    fn h2load_prints_a_summary() {
        let printed = "finished in 2.00s, 26497.00 req/s, 5.08MB/s\n\
            requests: 52994 total, 53058 started, 52994 done, 52994 succeeded, 0 failed, 0 errored, 0 timeout\n";
        assert_eq!(h2load_summary(printed).unwrap(), (52994.0, 2.0));
        assert!(h2load_summary(&printed.replace("0 failed", "5000 failed")).is_err());
        assert!(h2load_summary("").is_err());
        assert_eq!(h2load_latency("1\t200\t30\n2\t200\t10\n3\t200\t20\n"), [20.0, 30.0, 30.0]);
    }

    #[test]
    fn durations() {
        assert_eq!(micros("12us").unwrap(), 12.0);
        assert_eq!(micros("1.5ms").unwrap(), 1500.0);
        assert_eq!(micros("2.00s").unwrap(), 2e6);
        assert!(micros("soon").is_err());
    }

    #[test]
    fn iperf3_prints_json() {
        let printed = r#"{"end":{"sum_received":{"bytes":2000000,"seconds":1.0,"bits_per_second":16000000.0}}}"#;
        assert_eq!(bulk(printed).unwrap(), Done { units: 2.0, rate: 2.0, latency: None });
        assert!(bulk(r#"{"error":"unable to connect"}"#).unwrap_err().to_string().contains("unable"));
    }
}
