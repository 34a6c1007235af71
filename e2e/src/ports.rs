//! Addresses that nobody else uses, for listeners of programs that must be told theirs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use anyhow::{Result, bail};

/// The lowest port that is given out.
const FIRST: u16 = 10_000;
/// As many as all processes of a run may ask for.
const ENOUGH: usize = 2_000;

/// Outside of Linux's ephemeral range, so that no outgoing connection takes a port between choice and use.
static PORTS: LazyLock<Vec<u16>> = LazyLock::new(|| {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|end| end.parse().ok());
    let ephemeral = ends.next().unwrap_or(32_768)..=ends.next().unwrap_or(60_999);
    let outside: Vec<u16> = (FIRST..=u16::MAX).filter(|port| !ephemeral.contains(port)).collect();
    // Where nearly all are ephemeral, there is no better choice.
    if outside.len() < ENOUGH { (FIRST..=u16::MAX).collect() } else { outside }
});

/// A port on which nothing listens on `ip`, given out once per process.
pub fn free_on(ip: IpAddr) -> Result<SocketAddr> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Test processes that run side by side start at different places.
    let start = std::process::id() as usize * 911;
    for _ in 0..PORTS.len() {
        let n = start + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.get(n % PORTS.len()).copied().unwrap_or(FIRST);
        let address = SocketAddr::new(ip, port);
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port on {ip}")
}

/// A free port on 127.0.0.1.
pub fn free() -> Result<SocketAddr> {
    free_on(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// A loopback address (127.x.y.z) of its own for a workload: no two have the same in one process.
pub fn loopback_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = n.to_be_bytes();
    let network = 1 + u8::try_from(std::process::id() % 250).unwrap_or_default();
    IpAddr::V4(Ipv4Addr::new(127, network, high, low))
}
