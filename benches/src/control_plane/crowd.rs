//! The processes that simulate proxies, and what they say.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use leno_e2e::wait::within;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{LIMIT, plan::Plan};

/// See the module.
pub(crate) struct Crowd {
    processes: Vec<Members>,
    /// By Service: how many subscribe to it, in all processes.
    subscribers: HashMap<usize, usize>,
}

/// One process.
struct Members {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    called: BTreeSet<usize>,
}

/// The end of one change.
pub(crate) struct Answered {
    /// When the last proxy that it concerned answered.
    pub(crate) at: SystemTime,
    /// Of deltas that were received since the change before.
    pub(crate) bytes: u64,
}

impl Crowd {
    pub(crate) fn start(
        plan: Plan,
        proxies: usize,
        at_most: usize,
        address: SocketAddr,
        tokens: &Path,
    ) -> Result<Self> {
        let mut crowd = Self { processes: Vec::new(), subscribers: HashMap::new() };
        for first in (0..proxies).step_by(at_most.max(1)) {
            let count = at_most.min(proxies - first);
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("simulated-proxies").arg("--tokens").arg(tokens);
            for (option, value) in [
                ("--address", address.to_string()),
                ("--first", first.to_string()),
                ("--count", count.to_string()),
                ("--services", plan.services.to_string()),
                ("--endpoints", plan.endpoints.to_string()),
                ("--calls", plan.calls.to_string()),
                ("--subscribed", plan.subscribed.to_string()),
            ] {
                command.args([option, &value]);
            }
            if plan.by_name {
                command.arg("--by-name");
            }
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn().context("start simulated proxies")?;
            let stdout = child.stdout.take().context("the output of simulated proxies")?;
            let called: Vec<usize> = (first..first + count).flat_map(|proxy| plan.called_by(proxy)).collect();
            for service in &called {
                *crowd.subscribers.entry(*service).or_default() += 1;
            }
            let lines = BufReader::new(stdout).lines();
            crowd.processes.push(Members { child, lines, called: called.into_iter().collect() });
        }
        Ok(crowd)
    }

    /// Returns once every proxy has everything that it subscribed to.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        for members in &mut self.processes {
            let line = within("simulated proxies connect", LIMIT * 3, members.line()).await?;
            ensure!(line == "ready", "simulated proxies said {line:?}");
        }
        Ok(())
    }

    /// How many subscribe to a Service.
    pub(crate) fn subscribers(&self, service: usize) -> usize {
        self.subscribers.get(&service).copied().unwrap_or_default()
    }

    /// A Service that somebody subscribes to, and that is not the popular one. None: there is none.
    pub(crate) fn some_service(&self, random: &mut fastrand::Rng) -> Option<usize> {
        let mut called: Vec<usize> = self.subscribers.keys().copied().filter(|service| *service != 0).collect();
        called.sort_unstable();
        random.choice(called)
    }

    /// Returns once every subscriber of `service` has answered for that change of it.
    pub(crate) async fn answered(&mut self, change: u32, service: usize) -> Result<Answered> {
        let mut answered = Answered { at: SystemTime::UNIX_EPOCH, bytes: 0 };
        for members in self.processes.iter_mut().filter(|members| members.called.contains(&service)) {
            let line = within("a change reaches every subscriber", LIMIT, members.line()).await?;
            let words: Vec<&str> = line.split(' ').collect();
            let ["acked", number, micros, bytes] = words.as_slice() else { bail!("simulated proxies said {line:?}") };
            ensure!(number.parse::<u32>()? == change, "simulated proxies said {line:?}, of change {change}");
            answered.at = answered.at.max(SystemTime::UNIX_EPOCH + Duration::from_micros(micros.parse()?));
            answered.bytes += bytes.parse::<u64>()?;
        }
        Ok(answered)
    }

    pub(crate) async fn end(self) -> Result<()> {
        for mut members in self.processes {
            drop(members.child.stdin.take());
            let status = within("simulated proxies end", LIMIT, async { Ok(members.child.wait().await?) }).await?;
            ensure!(status.success(), "simulated proxies ended with {status}");
        }
        Ok(())
    }
}

impl Members {
    async fn line(&mut self) -> Result<String> {
        self.lines.next_line().await?.context("simulated proxies ended")
    }
}
