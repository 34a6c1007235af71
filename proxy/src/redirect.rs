//! `leno-proxy redirect`: makes the kernel send connections through the proxy (transparent mode).
//!
//! A ruleset is rendered ([`ruleset`], pure) and handed to the `nft` program as one transaction
//! ([`nft`]): it is in force whole or not at all. It is one table of its own, so it goes without a trace.

mod nft;
mod ruleset;

#[cfg(test)]
mod tests;

use std::{env, io::Write};

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, Subcommand};
use ipnet::IpNet;

use self::ruleset::{PortRange, Ruleset};
use crate::config::{limits, values};

/// Sends the workload's connections through the proxy, by nftables (IPv4 and IPv6). Needs root or CAP_NET_ADMIN.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Puts the rules in force, in place of earlier ones. Connections already open stay as they are.
    Install(Options),
    /// Takes the rules away. Connections that go through the proxy then break.
    Remove,
    /// Prints the rules that `install` with the same options puts in force.
    Show {
        /// Prints the rules that are in force instead.
        #[arg(long)]
        installed: bool,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, ClapArgs)]
struct Options {
    /// Port of the proxy that takes inbound connections.
    #[arg(long, env = "LENO_INBOUND_PORT", hide_env_values = true, default_value_t = limits::INBOUND_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    inbound_port: u16,
    /// Port of the proxy that takes outbound connections.
    #[arg(long, env = "LENO_OUTBOUND_PORT", hide_env_values = true, default_value_t = limits::OUTBOUND_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port: u16,
    /// Redirect inbound connections to these ports only, e.g. 80,8000-8010. Default: all ports.
    #[arg(
        long,
        env = "LENO_INCLUDE_INBOUND_PORTS",
        hide_env_values = true,
        value_name = "PORTS",
        value_delimiter = ','
    )]
    include_inbound_ports: Vec<PortRange>,
    /// Leave inbound connections to these ports alone, e.g. 22,9100-9110.
    #[arg(
        long,
        env = "LENO_EXCLUDE_INBOUND_PORTS",
        hide_env_values = true,
        value_name = "PORTS",
        value_delimiter = ','
    )]
    exclude_inbound_ports: Vec<PortRange>,
    /// Leave outbound connections to these ports alone.
    #[arg(
        long,
        env = "LENO_EXCLUDE_OUTBOUND_PORTS",
        hide_env_values = true,
        value_name = "PORTS",
        value_delimiter = ','
    )]
    exclude_outbound_ports: Vec<PortRange>,
    /// Leave outbound connections to these networks alone, e.g. 169.254.169.254/32,fd00::/8.
    #[arg(long, env = "LENO_EXCLUDE_NETWORKS", hide_env_values = true, value_name = "CIDRS", value_delimiter = ',', value_parser = parse_network)]
    exclude_networks: Vec<IpNet>,
    /// User the proxy runs as, whose connections are left alone. No other process of the workload may run as it.
    #[arg(long, env = "LENO_PROXY_UID", hide_env_values = true, value_name = "UID")]
    proxy_uid: Option<u32>,
    /// SO_MARK of the proxy's connections (`run --mark`), which are left alone. 0: none. Default: 0x1e40, or none if
    /// --proxy-uid is given.
    #[arg(long, env = "LENO_MARK", hide_env_values = true, value_name = "MARK", value_parser = values::mark)]
    proxy_mark: Option<u32>,
}

impl Options {
    fn ruleset(&self) -> anyhow::Result<Ruleset> {
        let proxy_mark = match (self.proxy_mark, self.proxy_uid) {
            (Some(mark), _) => Some(mark).filter(|mark| *mark != 0),
            (None, Some(_)) => None,
            (None, None) => Some(limits::MARK),
        };
        if proxy_mark.is_none() && self.proxy_uid.is_none() {
            bail!(
                "the proxy's own connections would come back to it: give --proxy-uid, or a --proxy-mark other than 0"
            );
        }
        Ok(Ruleset {
            inbound_port: self.inbound_port,
            outbound_port: self.outbound_port,
            include_inbound_ports: PortRange::merge(&self.include_inbound_ports),
            exclude_inbound_ports: PortRange::merge(&self.exclude_inbound_ports),
            exclude_outbound_ports: PortRange::merge(&self.exclude_outbound_ports),
            exclude_networks: IpNet::aggregate(&self.exclude_networks),
            proxy_uid: self.proxy_uid,
            proxy_mark,
        })
    }
}

/// Does what the command line says.
///
/// # Errors
/// If `nft` is missing, not permitted or refuses the rules; nothing has been changed then.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.action {
        Action::Install(options) => {
            let ruleset = options.ruleset()?;
            warn_if_ssh_is_redirected(&ruleset);
            nft::apply(&ruleset.install()).context("installing the redirect")
        }
        Action::Remove => nft::apply(ruleset::REMOVE).context("removing the redirect"),
        Action::Show { installed: true, .. } => match nft::installed()? {
            Some(rules) => print(&rules),
            None => bail!("no redirect is installed"),
        },
        Action::Show { installed: false, options } => print(&options.ruleset()?.table()),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("writing to standard output")
}

/// Who works on the machine over SSH should not lock himself out of it.
fn warn_if_ssh_is_redirected(ruleset: &Ruleset) {
    // "client address, client port, server address, server port"
    let connection = env::var("SSH_CONNECTION").unwrap_or_default();
    let Some(port) = connection.split(' ').nth(3).and_then(|port| port.parse::<u16>().ok()) else {
        return;
    };
    if ruleset.redirects_inbound(port) {
        eprintln!(
            "warning: you are logged in over SSH (port {port}); new SSH connections now go through the proxy too, and a strict policy refuses them. \
             To leave them alone: --exclude-inbound-ports {port}"
        );
    }
}

/// A network; bits beyond the prefix are dropped, a bare address is itself alone.
fn parse_network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "expected a network (10.0.0.0/8, fd00::/8) or an address".to_owned())
}
