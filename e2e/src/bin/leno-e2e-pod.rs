//! What tests run in Pods: the application that a service is, and the load that a client makes.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use leno_e2e::{
    kubernetes::summary::Summary,
    load::{Load, Report},
    server::Server,
    wait::eventually,
};

/// Longest wait for whoever holds a load.
const HELD: Duration = Duration::from_secs(600);

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Serves HTTP/1.1, HTTP/2 and gRPC, and says who it is.
    Serve {
        /// Comes back in the header x-instance.
        name: String,
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Makes requests, and prints how they went as JSON.
    Load {
        /// host:port; the name is looked up once.
        authority: String,
        #[arg(long, default_value_t = 50)]
        connections: usize,
        /// HTTP/2 connections, each with one request at a time.
        #[arg(long, default_value_t = 0)]
        multiplexed: usize,
        /// Requests per second.
        #[arg(long, default_value_t = 500.0)]
        rate: f64,
        /// At least so long.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// And until so many requests were answered.
        #[arg(long, default_value_t = 0)]
        at_least: u64,
        /// And until this file is gone. It is made once the load has gone on for a second's worth of answers.
        #[arg(long = "while")]
        held: Option<PathBuf>,
        #[arg(long, default_value = "/load")]
        path: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-e2e-pod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(what: What) -> Result<()> {
    match what {
        What::Serve { name, port } => {
            // Both families, where there are both.
            let server = match Server::listen(&name, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
                Ok(server) => server,
                Err(_) => Server::listen(&name, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?,
            };
            let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            end.recv().await;
            // As an application that was told to end does: what it is busy with is finished.
            while server.control().in_flight.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        }
        What::Load { authority, connections, multiplexed, rate, seconds, at_least, held, path } => {
            let mut found =
                tokio::net::lookup_host(&authority).await.with_context(|| format!("look up {authority}"))?;
            let address = found.next().with_context(|| format!("{authority} has no address"))?;
            let load = Load::new(address, &authority).connections(connections).multiplexed(multiplexed);
            let load = load.rate(rate).path(&path).start();
            let time = tokio::time::sleep(Duration::from_secs_f64(seconds));
            if let Some(file) = held {
                load.answered(rate as u64).await?;
                std::fs::write(&file, "").with_context(|| format!("write {}", file.display()))?;
                let let_go = async || {
                    ensure!(!file.exists(), "{} is there", file.display());
                    Ok(())
                };
                told(eventually("the load may end", HELD, let_go).await);
            }
            time.await;
            told(load.answered(at_least).await);
            let report = load.stop().await?;
            println!("{}", serde_json::to_string(&summary(&report))?);
            Ok(())
        }
    }
}

/// The summary follows in any case: it says more.
fn told(outcome: Result<()>) {
    if let Err(error) = outcome {
        eprintln!("leno-e2e-pod: {error:#}");
    }
}

fn summary(report: &Report) -> Summary {
    let ms = |share| report.latency(share).as_secs_f64() * 1000.0;
    Summary {
        ok: report.ok,
        failed: report.failed,
        unsent: report.failures.iter().filter(|failure| failure.unsent).count() as u64,
        rate: report.rate(),
        reasons: report.reasons(),
        instances: report.instances.clone(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
    }
}
