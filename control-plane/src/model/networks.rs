//! Which addresses may be somebody's of the mesh, where the options do not say: proxies ask about these and let connections
//! to all others through at once, also while there is no control plane to ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::shared_map::SharedMap;

/// What the Internet does not route: RFC 1122 (loopback), RFC 1918, RFC 6598 (shared), RFC 3927 (link-local), RFC 1112 (class E, which
/// some clusters give to Pods).
const PRIVATE_V4: [Ipv4Net; 7] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// RFC 4291 (loopback, link-local), RFC 4193 (unique local).
const PRIVATE_V6: [Ipv6Net; 3] = [
    Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];
/// The network that is asked about because of one public address in it: some registries give out no smaller ones.
const PUBLIC_V4_BITS: u8 = 16;
const PUBLIC_V6_BITS: u8 = 48;
/// With more public networks than this, everything is asked about.
const MOST_PUBLIC: usize = 64;

/// The public networks in which Services and Pods have addresses, with how many.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Networks(SharedMap<IpNet, usize>);

impl Networks {
    pub(crate) fn add(&mut self, ip: IpAddr) {
        if let Some(network) = public(ip) {
            self.0.change(&network, |addresses| *addresses += 1, |_| true);
        }
    }

    /// Undoes [`Self::add`].
    pub(crate) fn remove(&mut self, ip: IpAddr) {
        if let Some(network) = public(ip) {
            self.0.change(&network, |addresses| *addresses = addresses.saturating_sub(1), |addresses| *addresses > 0);
        }
    }

    /// Whether proxies are told the same.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }

    /// What proxies are to ask about; none: everything.
    pub(crate) fn asked(&self) -> Vec<IpNet> {
        if self.0.len() > MOST_PUBLIC {
            return Vec::new();
        }
        let private = PRIVATE_V4.map(IpNet::V4).into_iter().chain(PRIVATE_V6.map(IpNet::V6));
        private.chain(self.0.keys().copied()).collect()
    }
}

/// The network of a public address.
fn public(ip: IpAddr) -> Option<IpNet> {
    let bits = match ip.to_canonical() {
        IpAddr::V4(v4) if PRIVATE_V4.iter().any(|network| network.contains(&v4)) => return None,
        IpAddr::V6(v6) if PRIVATE_V6.iter().any(|network| network.contains(&v6)) => return None,
        IpAddr::V4(_) => PUBLIC_V4_BITS,
        IpAddr::V6(_) => PUBLIC_V6_BITS,
    };
    IpNet::new(ip.to_canonical(), bits).ok().map(|network| network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn public_ones(networks: &Networks) -> Vec<String> {
        let all = networks.asked();
        all[PRIVATE_V4.len() + PRIVATE_V6.len()..].iter().map(ToString::to_string).collect()
    }

    #[test]
    fn public_networks_count_as_long_as_somebody_is_there() {
        let mut networks = Networks::default();
        for private in ["10.1.2.3", "127.0.0.5", "100.100.0.1", "fd00::1", "::1", "::ffff:192.168.0.1"] {
            networks.add(ip(private));
        }
        assert!(networks.same_as(&Networks::default()) && public_ones(&networks).is_empty());
        for address in ["198.51.100.7", "198.51.100.8", "2001:db8:1:2::3"] {
            networks.add(ip(address));
        }
        assert_eq!(public_ones(&networks), ["198.51.0.0/16", "2001:db8:1::/48"]);
        assert!(networks.asked().iter().any(|network| network.contains(&ip("172.31.0.1"))));
        assert!(!networks.asked().iter().any(|network| network.contains(&ip("203.0.113.1"))));
        networks.remove(ip("198.51.100.7"));
        networks.remove(ip("2001:db8:1:2::3"));
        assert_eq!(public_ones(&networks), ["198.51.0.0/16"]);
    }

    #[test]
    fn with_too_many_of_them_everything_is_asked_about() {
        let mut networks = Networks::default();
        (0..=MOST_PUBLIC).for_each(|n| networks.add(IpAddr::V4(Ipv4Addr::new(8, n as u8, 0, 1))));
        assert!(networks.asked().is_empty());
    }
}
