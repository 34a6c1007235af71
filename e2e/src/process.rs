//! Programs as child processes: output kept in files, killed when dropped, shown when a test fails.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// Lines of each log that a failed test prints.
const TAIL: usize = 40;

/// All processes of one test. Dropped without [`Processes::end`], it takes the test for failed and prints their logs.
#[derive(Debug)]
pub struct Processes {
    logs: PathBuf,
    /// In process groups of their own.
    apart: bool,
    running: Mutex<Vec<Process>>,
    ended: std::sync::atomic::AtomicBool,
}

impl Processes {
    /// `logs`: the folder for their output. `apart`: a terminal's Ctrl-C does not reach them.
    pub fn new(logs: impl Into<PathBuf>, apart: bool) -> Result<Self> {
        let logs = logs.into();
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        Ok(Self { logs, apart, running: Mutex::default(), ended: false.into() })
    }

    /// Starts a program; `name` is that of its log.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        if self.apart {
            command.process_group(0);
        }
        let process = Process::spawn(name, command, &self.logs)?;
        lock(&self.running).push(process.clone());
        Ok(process)
    }

    /// Ends the test well: every program still running must end on SIGTERM within `limit`, and none may have panicked.
    pub async fn end(&self, limit: Duration) -> Result<()> {
        let all: Vec<_> = lock(&self.running).iter().rev().cloned().collect();
        // All at once: each takes its time to drain.
        let mut ending = Vec::new();
        for process in &all {
            if process.begin_end()? {
                ending.push(process);
            }
        }
        for process in ending {
            process.ends(limit).await?;
        }
        for process in &all {
            let log = process.log()?;
            if let Some(panic) = log.lines().find(|line| line.contains("panicked at")) {
                bail!("{} panicked: {panic}", process.name());
            }
        }
        self.ended.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let running = std::mem::take(&mut *lock(&self.running));
        for process in &running {
            // It may have ended by itself.
            let _ = process.kill();
        }
        if !self.ended.load(std::sync::atomic::Ordering::Relaxed) {
            for process in running {
                eprintln!(
                    "---- {} (pid {}), last lines of its log:\n{}",
                    process.name(),
                    process.pid(),
                    process.tail()
                );
            }
        }
    }
}

/// One child process. Clones are the same process.
#[derive(Debug, Clone)]
pub struct Process {
    name: Arc<str>,
    pid: u32,
    log: Arc<Path>,
    child: Arc<Mutex<Child>>,
}

impl Process {
    fn spawn(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).context("open a log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share a log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self { name: name.into(), pid: child.id(), log: log.into(), child: Arc::new(Mutex::new(child)) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        lock(&self.child).try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&self) -> Result<()> {
        let mut child = lock(&self.child);
        child.kill().with_context(|| format!("kill {}", self.name))?;
        child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // The lock keeps the process from being reaped, so the id is still its own.
        let mut child = lock(&self.child);
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, signal).with_context(|| format!("signal {}", self.name))
    }

    /// SIGTERM, then the end with status 0 (or by that very signal) within `limit`. Nothing if it was killed before.
    pub async fn terminate(&self, limit: Duration) -> Result<()> {
        if self.begin_end()? { self.ends(limit).await } else { Ok(()) }
    }

    /// SIGTERM; false if it had ended before, well or killed.
    fn begin_end(&self) -> Result<bool> {
        if let Some(status) = self.ended()? {
            ensure!(status.success() || status.signal().is_some(), "{} had ended with {status}", self.name);
            return Ok(false);
        }
        self.signal(Signal::TERM)?;
        Ok(true)
    }

    async fn ends(&self, limit: Duration) -> Result<()> {
        let status = eventually(&format!("{} ends after SIGTERM", self.name), limit, async || {
            self.ended()?.ok_or_else(|| anyhow!("still running"))
        })
        .await?;
        let terminated = status.signal() == Some(Signal::TERM.as_raw());
        ensure!(status.success() || terminated, "{} ended with {status}", self.name);
        Ok(())
    }

    /// Everything it has printed.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Waits until its output holds `text`.
    pub async fn logged(&self, text: &str, limit: Duration) -> Result<()> {
        eventually(&format!("the log of {} says {text:?}", self.name), limit, async || {
            ensure!(self.log()?.contains(text), "it does not");
            Ok(())
        })
        .await
    }

    /// Resident memory, bytes.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Of that, what the program itself holds; the rest is code, which comes and goes.
    pub fn anonymous(&self) -> Result<u64> {
        self.memory("RssAnon:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))
            .with_context(|| format!("memory of {}", self.name))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| field.to_owned())?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{field} {line:?}"))?;
        Ok(kib * 1024)
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        let folder = format!("/proc/{}/fd", self.pid);
        Ok(fs::read_dir(folder).with_context(|| format!("descriptors of {}", self.name))?.count())
    }
}

/// Runs a program to its end; fails unless it succeeds within `limit`. Returns what it printed.
pub async fn run(command: Command, limit: Duration) -> Result<String> {
    let shown = format!("{command:?}");
    let output = output(command, limit).await?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{shown} ended with {}:\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}

/// Runs a program to its end, whatever its status.
pub async fn output(command: Command, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    match tokio::time::timeout(limit, command.output()).await {
        Ok(output) => output.with_context(|| format!("run {shown}")),
        Err(_) => bail!("{shown} did not end within {limit:?}"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
