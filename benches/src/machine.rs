//! What the kernel says: CPU time, context switches and memory of the programs under test, and how much of the
//! machine others took meanwhile.

use std::{collections::HashMap, fs};

use anyhow::{Context as _, Result};
use leno_e2e::process::Process;

/// USER_HZ, the unit of /proc/stat: 100 on every architecture that Linux runs on here.
const TICKS_PER_SECOND: f64 = 100.0;

/// Counters at one moment.
pub(crate) struct Snapshot {
    machine: Ticks,
    /// By CPU.
    cpus: Vec<Ticks>,
    /// Of this process and all it has started.
    ours: u64,
    /// One per watched process.
    processes: Vec<Spent>,
}

/// What a process has used so far, or between two snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Spent {
    /// User and system time, µs.
    pub cpu_us: f64,
    /// Context switches, asked for or not.
    pub switches: f64,
}

/// What happened between two snapshots.
pub(crate) struct Between {
    pub processes: Vec<Spent>,
    /// Share of the machine's CPU time that was used at all.
    pub busy: f64,
    /// The same of each CPU's.
    pub busy_cpus: Vec<f64>,
    /// Share of it that went to processes that are not ours.
    pub foreign: f64,
    /// Share of it that the hypervisor gave to others.
    pub steal: f64,
}

impl Snapshot {
    pub(crate) fn take(watched: &[Process]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Ok(Self {
            machine: stat.lines().next().and_then(Ticks::parse).context("the first line of /proc/stat")?,
            cpus: stat.lines().skip(1).map_while(Ticks::parse).collect(),
            ours: ticks_of_tree(std::process::id()),
            processes: watched.iter().map(spent).collect::<Result<_>>()?,
        })
    }

    pub(crate) fn since(&self, before: &Self) -> Between {
        let total = self.machine.total_since(before.machine);
        let busy = self.machine.busy_since(before.machine);
        let steal = self.machine.steal.saturating_sub(before.machine.steal) as f64;
        let ours = self.ours.saturating_sub(before.ours) as f64;
        let pairs = self.processes.iter().zip(&before.processes);
        Between {
            processes: pairs
                .map(|(after, before)| Spent {
                    cpu_us: after.cpu_us - before.cpu_us,
                    switches: after.switches - before.switches,
                })
                .collect(),
            busy: busy / total,
            busy_cpus: self
                .cpus
                .iter()
                .zip(&before.cpus)
                .map(|(after, before)| after.busy_since(*before) / after.total_since(*before))
                .collect(),
            foreign: ((busy - ours) / total).max(0.0),
            steal: steal / total,
        }
    }
}

/// The time of a CPU, or of all together, in ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    steal: u64,
    total: u64,
}

impl Ticks {
    /// Of a line that begins with `cpu`.
    fn parse(line: &str) -> Option<Self> {
        let (name, fields) = line.split_once(' ')?;
        let fields = fields.split_whitespace().map_while(|field| field.parse().ok());
        let fields: Vec<u64> = fields.take_while(|_| name.starts_with("cpu")).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = *fields.as_slice() else { return None };
        let busy = user + nice + system + irq + softirq;
        Some(Self { busy, steal, total: busy + idle + iowait + steal })
    }

    fn busy_since(self, before: Self) -> f64 {
        self.busy.saturating_sub(before.busy) as f64
    }

    /// At least 1.
    fn total_since(self, before: Self) -> f64 {
        self.total.saturating_sub(before.total).max(1) as f64
    }
}

/// Ticks that a process, its descendants, and those of them that ended have used.
fn ticks_of_tree(root: u32) -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let all: HashMap<u32, Stat> = pids
        .filter_map(|pid| Some((pid, Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let is_ours = |mut pid: u32| {
        while pid != root {
            match all.get(&pid) {
                Some(stat) => pid = stat.parent,
                None => return false,
            }
        }
        true
    };
    all.iter().filter(|(pid, _)| is_ours(**pid)).map(|(_, stat)| stat.ticks).sum()
}

/// Of /proc/PID/stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time, of it and of its children that ended.
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The program's name, in parentheses, may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Self { parent: fields.get(1)?.parse().ok()?, ticks })
    }
}

/// By thread, because that is where the kernel counts in nanoseconds.
fn spent(process: &Process) -> Result<Spent> {
    let mut spent = Spent::default();
    let folder = format!("/proc/{}/task", process.pid());
    for thread in fs::read_dir(&folder).with_context(|| format!("threads of {}", process.name()))?.flatten() {
        // A thread may end meanwhile.
        let Ok(schedstat) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        let nanoseconds: f64 = schedstat.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0.0);
        spent.cpu_us += nanoseconds / 1000.0;
        spent.switches += switches(&status);
    }
    Ok(spent)
}

fn switches(status: &str) -> f64 {
    let counts = status.lines().filter(|line| line.contains("voluntary_ctxt_switches:"));
    counts.filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok()).sum()
}

/// Resident memory, MiB.
pub(crate) fn resident_mib(process: &Process) -> Result<f64> {
    Ok(process.resident()? as f64 / (1 << 20) as f64)
}

/// A line for the report: CPUs, memory, kernel, distribution.
pub(crate) fn description() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once([':', '=']).map_or_else(String::new, |(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo");
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let virtual_machine = if cpuinfo.contains(" hypervisor") { " (virtual)" } else { "" };
    let kib: f64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    format!(
        "{cpus} CPUs{virtual_machine}, {}, {:.0} GiB, Linux {}, {}",
        field(&cpuinfo, "model name"),
        kib / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        field(&read("/etc/os-release"), "PRETTY_NAME"),
    )
}

/// Seconds of the whole process tree so far, for the note at the end of a run.
pub(crate) fn seconds_of_tree() -> f64 {
    ticks_of_tree(std::process::id()) as f64 / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_ticks() {
        let ticks = Some(Ticks { busy: 36, steal: 4, total: 945 });
        assert_eq!(Ticks::parse("cpu  10 1 20 900 5 2 3 4 0 0"), ticks);
        assert_eq!(Ticks::parse("cpu1 10 1 20 900 5 2 3 4 0 0"), ticks);
        assert_eq!(Ticks::parse("intr 10 1 20 900 5 2 3 4 0 0"), None);
        assert_eq!(Ticks::parse("cpu0 1 2 3"), None);
        assert_eq!(Ticks::parse(""), None);
    }

    #[test]
    fn a_processs_ticks() {
        let text = "42 (a) b) S 7 1 1 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 7, ticks: 110 }));
        assert_eq!(Stat::parse("42 (a)"), None);
    }

    #[test]
    fn context_switches_of_both_kinds() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(switches(status), 15.0);
    }
}
