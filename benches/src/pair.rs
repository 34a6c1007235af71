//! A pair of sidecars with mTLS between, side by side with no sidecar at all: wrk → (client's sidecar → server's sidecar →) nginx.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use leno_e2e::{
    mesh::{Mesh, documents},
    ports,
    process::{Process, run as run_to_end},
    wait::eventually,
};
use serde_json::{Map, Value, json};

use crate::report::{median, save};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connections, one row each.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    connections: Vec<u32>,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bytes of each response's body.
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    /// Of both sidecars together; 0 if there is none.
    cpu_us: f64,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let mesh = Mesh::start().await?;
    let nginx = nginx(&mesh, args.body).await?;
    mesh.apply("service.yaml", &documents::service(documents::NAMESPACE, "shop", 80, ""))?;
    let server = mesh.workload("shop").serves("shop", nginx).start().await?;
    let client = mesh.workload("web").outbound("shop.default:80").start().await?;
    let through = client.calls("shop.default:80")?;
    let sidecars = [client.process()?.clone(), server.process()?.clone()];
    for sidecar in &sidecars {
        taskset("1", sidecar.pid()).await?;
    }
    let idle: Vec<_> = sidecars.iter().map(Process::resident).collect::<Result<_>>()?;
    println!("\nTwo sidecars, idle: {} KiB and {} KiB resident.", idle[0] / 1024, idle[1] / 1024);
    println!("\n| connections | | requests/s | p50 | p99 | CPU of the pair per request |\n|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for &connections in &args.connections {
        let (mut direct, mut pair) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            direct.push(measure(nginx, connections, args.seconds, &[]).await?);
            pair.push(measure(through, connections, args.seconds, &sidecars).await?);
        }
        for (contender, all) in [("direct", &direct), ("leno", &pair)] {
            rows.push(row(contender, connections, args.body, all, &sidecars)?);
        }
    }
    save(rows)?;
    mesh.end().await
}

fn row(
    contender: &str,
    connections: u32,
    body: usize,
    all: &[Figures],
    sidecars: &[Process],
) -> Result<Map<String, Value>> {
    let of = |figure: fn(&Figures) -> f64| median(all.iter().map(figure).collect());
    let (rps, p50, p99, cpu) = (of(|f| f.rps), of(|f| f.p50_us), of(|f| f.p99_us), of(|f| f.cpu_us));
    let shown = if contender == "direct" { "–".to_owned() } else { format!("{cpu:.0} µs") };
    println!("| {connections} | {contender} | {rps:.0} | {p50:.0} µs | {p99:.0} µs | {shown} |");
    let mut row = Map::new();
    row.insert("work".into(), json!(format!("h1-{body}B-c{connections}")));
    row.insert("contender".into(), json!(contender));
    row.insert("rps".into(), json!(rps.round()));
    row.insert("p50_us".into(), json!(p50));
    row.insert("p99_us".into(), json!(p99));
    if contender != "direct" {
        row.insert("cpu_us_per_request".into(), json!((cpu * 10.0).round() / 10.0));
        let resident: Vec<_> = sidecars.iter().map(Process::resident).collect::<Result<_>>()?;
        row.insert("rss_mib".into(), json!((resident.iter().sum::<u64>() as f64 / 104_857.6).round() / 10.0));
    }
    Ok(row)
}

/// One run of wrk, and the CPU time that the sidecars spent meanwhile.
async fn measure(address: SocketAddr, connections: u32, seconds: u64, sidecars: &[Process]) -> Result<Figures> {
    let before = cpu(sidecars)?;
    let mut wrk = Command::new("taskset");
    wrk.args(["-c", "0", "wrk", "-t", "1", "--latency", "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
    wrk.arg(format!("http://{address}/"));
    let printed = run_to_end(wrk, Duration::from_secs(seconds + 30)).await?;
    let spent = cpu(sidecars)? - before;
    ensure!(!printed.contains("Non-2xx") && !printed.contains("Socket errors"), "requests failed:\n{printed}");
    let number = |label: &str| -> Result<&str> {
        let line = printed.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(str::trim).with_context(|| format!("wrk printed no {label}:\n{printed}"))
    };
    let rps: f64 = number("Requests/sec:")?.parse()?;
    let requests: f64 = printed
        .lines()
        .find(|line| line.contains("requests in"))
        .and_then(|line| line.split_whitespace().next())
        .context("the number of requests")?
        .parse()?;
    Ok(Figures {
        rps,
        p50_us: micros(number("50%")?)?,
        p99_us: micros(number("99%")?)?,
        cpu_us: spent * 1e6 / requests,
    })
}

/// "1.23ms" in microseconds.
fn micros(text: &str) -> Result<f64> {
    let (number, factor) = match text {
        text if text.ends_with("us") => (text.trim_end_matches("us"), 1.0),
        text if text.ends_with("ms") => (text.trim_end_matches("ms"), 1e3),
        text if text.ends_with('s') => (text.trim_end_matches('s'), 1e6),
        _ => bail!("not a duration of wrk's: {text}"),
    };
    Ok(number.parse::<f64>().with_context(|| format!("a duration: {text}"))? * factor)
}

/// User and system time so far, seconds.
fn cpu(processes: &[Process]) -> Result<f64> {
    /// USER_HZ, the unit of /proc/PID/stat: 100 on every architecture that Linux runs on here.
    const TICKS: f64 = 100.0;
    let mut ticks = 0.0;
    for process in processes {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).context("read a process's times")?;
        let after_name = stat.rsplit_once(')').context("a process's times")?.1;
        for field in after_name.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / TICKS)
}

async fn taskset(cpus: &str, pid: u32) -> Result<()> {
    let mut command = Command::new("taskset");
    command.args(["-a", "-c", "-p", cpus, &pid.to_string()]);
    run_to_end(command, Duration::from_secs(10)).await?;
    Ok(())
}

async fn nginx(mesh: &Mesh, body: usize) -> Result<SocketAddr> {
    let address = ports::free()?;
    let folder = mesh.folder().join("nginx");
    fs::create_dir_all(folder.join("www")).context("nginx's folder")?;
    fs::write(folder.join("www/index.html"), vec![b'x'; body])?;
    fs::write(folder.join("nginx.conf"), configuration(&folder, address))?;
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "nginx", "-g", "daemon off;", "-e", "stderr"]);
    command.arg("-p").arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
    mesh.processes().spawn("nginx", command)?;
    eventually("nginx answers", Duration::from_secs(20), async || {
        let answer = leno_e2e::client::get(address, "shop", "/").await?;
        ensure!(answer.body.len() == body, "{}: {} bytes", answer.status, answer.body.len());
        Ok(())
    })
    .await?;
    Ok(address)
}

fn configuration(folder: &Path, address: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "pid {folder}/pid;\nmaster_process off;\nworker_processes 1;\nevents {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 100000000;\n  client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n  \
         fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n  \
         server {{ listen {address}; root {folder}/www; }}\n}}\n"
    )
}
