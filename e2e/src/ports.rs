//! Addresses that nobody else uses, for listeners of programs that must be told theirs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail};

/// Below Linux's ephemeral range, so that no outgoing connection takes a port between choice and use.
const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port on which nothing listens on `ip`, given out once per process.
pub fn free_on(ip: IpAddr) -> Result<SocketAddr> {
    // Test processes that run side by side start at different places.
    let start = std::process::id().wrapping_mul(911);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let address = SocketAddr::new(ip, u16::try_from(FIRST + offset)?);
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
