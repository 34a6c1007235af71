//! What tests run in Pods: the application that a service is, and the load that a client makes.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use leno_e2e::{
    kubernetes::summary::Summary,
    load::{Load, Report},
    server::Server,
};

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
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
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
        What::Load { authority, connections, multiplexed, rate, seconds, path } => {
            let mut found =
                tokio::net::lookup_host(&authority).await.with_context(|| format!("look up {authority}"))?;
            let address = found.next().with_context(|| format!("{authority} has no address"))?;
            let load = Load::new(address, &authority).connections(connections).multiplexed(multiplexed);
            let load = load.rate(rate).path(&path);
            let report = load.run(Duration::from_secs_f64(seconds)).await?;
            println!("{}", serde_json::to_string(&summary(&report))?);
            Ok(())
        }
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
