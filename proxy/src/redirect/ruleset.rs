//! The nftables ruleset as text. Pure: the same options give the same text.

use std::{
    fmt::{self, Display, Write},
    str::FromStr,
};

use ipnet::IpNet;

use crate::net::connect::PEER_PRIORITY;

/// Which connections go through the proxy. Lists are sorted and do not overlap (nft refuses overlaps).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) inbound_port: u16,
    pub(super) outbound_port: u16,
    /// Empty: all.
    pub(super) include_inbound_ports: Vec<PortRange>,
    pub(super) exclude_inbound_ports: Vec<PortRange>,
    pub(super) exclude_outbound_ports: Vec<PortRange>,
    pub(super) exclude_networks: Vec<IpNet>,
    pub(super) proxy_uid: Option<u32>,
    pub(super) proxy_mark: Option<u32>,
}

/// A port or a range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortRange {
    first: u16,
    last: u16,
}

/// Makes the table's absence certain: `add` makes it exist, so that `delete` cannot fail.
pub(super) const REMOVE: &str = "add table inet leno\ndelete table inet leno\n";

impl Ruleset {
    /// One transaction: in place of whatever was installed.
    pub(super) fn install(&self) -> String {
        format!("{REMOVE}{}", self.table())
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    /// Whether an inbound connection to `port` goes to the proxy.
    pub(super) fn redirects_inbound(&self, port: u16) -> bool {
        let listed = |ranges: &[PortRange]| ranges.iter().any(|range| (range.first..=range.last).contains(&port));
        (self.include_inbound_ports.is_empty() || listed(&self.include_inbound_ports))
            && !listed(&self.exclude_inbound_ports)
    }

    fn write(&self, out: &mut impl Write) -> fmt::Result {
        writeln!(out, "table inet leno {{")?;
        self.write_inbound(out)?;
        writeln!(out)?;
        self.write_outbound(out)?;
        writeln!(out)?;
        self.write_to_inbound(out)?;
        writeln!(out, "}}")
    }

    fn write_inbound(&self, out: &mut impl Write) -> fmt::Result {
        writeln!(out, "\tchain inbound {{")?;
        writeln!(out, "\t\ttype nat hook prerouting priority dstnat; policy accept;")?;
        writeln!(out, "{ONLY_NEW}")?;
        writeln!(out, "\t\tiif \"lo\" return")?;
        writeln!(out, "\t\tfib daddr type local jump to_inbound")?;
        writeln!(out, "\t}}")
    }

    fn write_outbound(&self, out: &mut impl Write) -> fmt::Result {
        writeln!(out, "\tchain outbound {{")?;
        writeln!(out, "\t\ttype nat hook output priority -100; policy accept;")?;
        writeln!(out, "{ONLY_NEW}")?;
        let mark = self.proxy_mark.map(|mark| format!("meta mark {mark:#x}"));
        let user = self.proxy_uid.map(|uid| format!("meta skuid {uid}"));
        for own in mark.iter().chain(&user) {
            writeln!(
                out,
                "\t\t# the proxy's own: to this very workload as a mesh peer, as from outside; else untouched"
            )?;
            writeln!(out, "\t\t{own} meta priority 0:{PEER_PRIORITY:x} oif \"lo\" jump to_inbound")?;
            writeln!(out, "\t\t{own} return")?;
        }
        writeln!(out, "\t\toif \"lo\" return")?;
        let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) =
            self.exclude_networks.iter().partition(|network| matches!(network, IpNet::V4(_)));
        write_unless_empty(out, "ip daddr", &v4)?;
        write_unless_empty(out, "ip6 daddr", &v6)?;
        write_unless_empty(out, "tcp dport", &self.exclude_outbound_ports)?;
        writeln!(out, "\t\tmeta l4proto tcp redirect to :{}", self.outbound_port)?;
        writeln!(out, "\t}}")
    }

    fn write_to_inbound(&self, out: &mut impl Write) -> fmt::Result {
        writeln!(out, "\tchain to_inbound {{")?;
        writeln!(out, "\t\tip daddr 127.0.0.0/8 return")?;
        writeln!(out, "\t\tip6 daddr ::1 return")?;
        write_unless_empty(out, "tcp dport !=", &self.include_inbound_ports)?;
        write_unless_empty(out, "tcp dport", &self.exclude_inbound_ports)?;
        writeln!(out, "\t\tmeta l4proto tcp redirect to :{}", self.inbound_port)?;
        writeln!(out, "\t}}")
    }
}

/// NAT is decided by a connection's first packet; without this, one that was open before connection tracking
/// began would be redirected, and broken, by the first of its packets that is seen.
const ONLY_NEW: &str = "\t\ttcp flags & (fin | syn | rst | ack) != syn return";

/// Leaves alone what is, or is not, among `items`.
fn write_unless_empty(out: &mut impl Write, what: &str, items: &[impl Display]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    writeln!(out, "\t\t{what} {{ {} }} return", items.join(", "))
}

impl PortRange {
    /// Sorted, with overlapping and adjacent ranges made one.
    pub(super) fn merge(ranges: &[Self]) -> Vec<Self> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let mut merged: Vec<Self> = Vec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(before) if range.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(range.last)
                }
                _ => merged.push(range),
            }
        }
        merged
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.trim().parse().ok().filter(|port| *port != 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err("expected a port (1 to 65535) or a range of ports (8000-8010)".to_owned()),
        }
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}
