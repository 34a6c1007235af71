//! Whether the addresses that the proxy is to listen on are as many listeners: with SO_REUSEPORT the kernel would let
//! two share one address, and hand connections to either.

use std::net::SocketAddr;

use super::Config;

/// The first two listeners of `config` that would share connections, each as its option says it.
pub(super) fn conflict(config: &Config) -> Option<(String, String)> {
    let listeners = listeners(config);
    listeners.iter().enumerate().find_map(|(index, (address, name))| {
        let (_, earlier) = listeners.iter().take(index).find(|(other, _)| share(*address, *other))?;
        Some((earlier.clone(), name.clone()))
    })
}

fn listeners(config: &Config) -> Vec<(SocketAddr, String)> {
    let mut listeners = vec![(config.admin, format!("--admin {}", config.admin))];
    listeners.extend(
        config
            .inbound
            .iter()
            .map(|inbound| (inbound.listen, format!("--inbound {}={}", inbound.listen, inbound.application))),
    );
    listeners.extend(
        config
            .outbound
            .iter()
            .map(|outbound| (outbound.listen, format!("--outbound {}={}", outbound.listen, outbound.destination))),
    );
    if let Some(transparent) = &config.transparent {
        for (flag, port) in [("inbound", transparent.inbound_port), ("outbound", transparent.outbound_port)] {
            for any in [SocketAddr::from(([0; 4], port)), SocketAddr::from(([0; 8], port))] {
                listeners.push((any, format!("--transparent with --{flag}-port {port}")));
            }
        }
    }
    if let Some(port) = config.probe_port {
        for any in [SocketAddr::from(([0; 4], port)), SocketAddr::from(([0; 8], port))] {
            listeners.push((any, format!("--probe-port {port}")));
        }
    }
    listeners
}

/// Whether a connection could be either's. IPv6 listeners take no IPv4; port 0 is another one each time.
fn share(one: SocketAddr, other: SocketAddr) -> bool {
    let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && overlap
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn addresses_share_connections_if_one_connection_could_be_eithers() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::1]:80", "[::]:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("0.0.0.0:80", "[::]:80", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(share(one.parse().unwrap(), other.parse().unwrap()), expected, "{one} {other}");
            assert_eq!(share(other.parse().unwrap(), one.parse().unwrap()), expected, "{other} {one}");
        }
    }
}
