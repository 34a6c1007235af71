//! Hosts of their own for programs: network namespaces inside a user namespace, so that no root is needed.
//!
//! [`sandbox`] runs a test again as a child inside new user, network, mount and process namespaces, where it
//! is root, `/run` and `/etc/hosts` are its own, and everything ends with it. There, a [`Network`] is a bridge, and each
//! [`Host`] a network namespace that hangs on it with an IPv4 and an IPv6 address. Addresses of Services
//! (10.96.0.0/12, fd96::/16) are routed out of every host, for the redirect to catch.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::process::run;

/// Set inside the sandbox.
const INSIDE: &str = "LENO_E2E_SANDBOX";
/// Longest life of a sandbox: more than what is done in one may take.
const LIMIT: Duration = Duration::from_secs(2400);
/// For commands that only set something up.
const QUICK: Duration = Duration::from_secs(20);

/// Where the test itself, and the control plane, are reached from every host.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Runs `test` inside a sandbox. `name`: the test's own, as `cargo test` prints it.
pub fn sandbox<F: Future<Output = Result<()>>>(name: &str, test: impl FnOnce() -> F) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if std::env::var_os(INSIDE).is_some() {
        return runtime.block_on(test());
    }
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(std::env::current_exe()?).args(["--exact", name, "--nocapture", "--include-ignored"]);
    command.env(INSIDE, "1").kill_on_drop(true);
    let status = runtime.block_on(async { tokio::time::timeout(LIMIT, command.status()).await });
    let status = status.context("the sandbox took too long")?.context("run unshare (package util-linux)")?;
    ensure!(
        status.success(),
        "{name}, in its sandbox, ended with {status} (if namespaces are refused here, see e2e/README.md)"
    );
    Ok(())
}

/// A bridge that hosts hang on.
#[derive(Debug)]
pub struct Network {
    hosts: std::sync::atomic::AtomicU8,
}

impl Network {
    /// To be made once per sandbox.
    pub async fn new() -> Result<Self> {
        ensure!(std::env::var_os(INSIDE).is_some(), "a network can only be made inside netns::sandbox");
        shell(&format!(
            "mount -t tmpfs tmpfs /run && mkdir -p /run/netns
            ip link set lo up
            ip link add bridge type bridge && ip link set bridge up
            ip addr add {GATEWAY}/24 dev bridge && ip addr add fd77::fe/64 dev bridge nodad"
        ))
        .await
        .context("the sandbox's network")?;
        Ok(Self { hosts: 0.into() })
    }

    /// A new host. Its programs may listen on any port without privilege.
    pub async fn host(&self, name: &str) -> Result<Host> {
        let n = 1 + self.hosts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (v4, v6) = (Ipv4Addr::new(10, 77, 0, n), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, n.into()));
        let host = Host { name: name.to_owned(), addresses: vec![v4.into(), v6.into()] };
        shell(&format!(
            "ip netns add {name}
            ip link add veth{n} type veth peer name eth0 netns {name}
            ip link set veth{n} master bridge up
            ip -n {name} link set lo up && ip -n {name} link set eth0 up
            ip -n {name} addr add {v4}/24 dev eth0 && ip -n {name} addr add {v6}/64 dev eth0 nodad
            ip -n {name} route add default via {GATEWAY} && ip -n {name} -6 route add default via fd77::fe
            nsenter --net=/run/netns/{name} sysctl -qw net.ipv4.ip_unprivileged_port_start=0"
        ))
        .await
        .with_context(|| format!("host {name}"))?;
        Ok(host)
    }
}

/// A network namespace with addresses.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    addresses: Vec<IpAddr>,
}

impl Host {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// IPv4, then IPv6.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// A program that will run on this host, with the sandbox's root rights.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// A program that will run on this host as an ordinary user (PostgreSQL refuses root, nginx would try to
    /// become another user). Files it makes are the sandbox user's all the same.
    pub fn user_command(&self, program: &str) -> Command {
        let mut command = self.command("unshare");
        command.args(["--user", "--map-user=1000", "--map-group=1000", program]);
        command
    }

    /// Runs a shell script on this host to its end, as an ordinary user, and returns what it prints.
    pub async fn shell(&self, script: &str, limit: Duration) -> Result<String> {
        let mut command = self.user_command("bash");
        command.args(["-euo", "pipefail", "-c", script]);
        run(command, limit).await.with_context(|| format!("on host {}: {script}", self.name))
    }
}

/// Gives names to addresses in the sandbox's `/etc/hosts`; there are no others (and no DNS server to ask in vain).
pub async fn name_hosts(folder: &std::path::Path, names: &[(&str, IpAddr)]) -> Result<()> {
    let mut content = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for (name, ip) in names {
        content.push_str(&format!("{ip} {name}\n"));
    }
    let (hosts, resolver) = (folder.join("hosts"), folder.join("resolv.conf"));
    fs::write(&hosts, content)?;
    fs::write(&resolver, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
    let mount =
        format!("mount --bind {} /etc/hosts; mount --bind {} /etc/resolv.conf", hosts.display(), resolver.display());
    shell(&mount).await.context("names in the sandbox")
}

async fn shell(script: &str) -> Result<()> {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]);
    run(command, QUICK).await.map(drop)
}
