//! Idle connections, in steps: at each step so many are open, have had one request, and wait. After each step it
//! prints `open N`, and goes on when it reads a line.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    connect::{Tls, connect, secured},
    http1,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    address: SocketAddr,
    /// Connections open at each step.
    #[arg(long, value_delimiter = ',')]
    steps: Vec<usize>,
    #[command(flatten)]
    tls: Tls,
}

pub(super) fn run(args: &Args) -> Result<()> {
    raise_descriptors()?;
    let tls = args.tls.config()?;
    let mut open: Vec<TcpStream> = Vec::new();
    for &step in &args.steps {
        while open.len() < step {
            let stream = connect(args.address)?;
            let mut kept = stream.try_clone().context("keep a connection")?;
            let outcome = match &tls {
                None => request(&mut kept),
                // What TLS would remember is not needed any more: nothing else is sent.
                Some(config) => request(&mut secured(stream, config.clone())?),
            };
            outcome.with_context(|| format!("connection {}", open.len() + 1))?;
            open.push(kept);
        }
        println!("open {step}");
        std::io::stdout().flush()?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
    }
    Ok(())
}

fn request(stream: &mut (impl Read + Write)) -> Result<()> {
    stream.write_all(&http1::request()).context("send a request")?;
    stream.flush()?;
    let (mut buffer, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut bytes).context("read the answer")?;
        ensure!(count > 0, "the connection was closed");
        buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if http1::answer_length(&buffer)?.is_some_and(|length| buffer.len() >= length) {
            return Ok(());
        }
    }
}

/// As many as this process may have.
pub(crate) fn raise_descriptors() -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raise the limit of descriptors")?;
    }
    Ok(())
}
