//! What the contenders are made to do: each work is one kind of load, and one table of the report.

use std::fmt;

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Its name on the command line and in the results.
    pub name: &'static str,
    /// Works that are shown together; also a name on the command line.
    pub family: &'static str,
    /// One line for the report.
    pub about: &'static str,
    pub upstream: Upstream,
    pub load: Load,
    /// Contenders with a single proxy take part too.
    pub hops: bool,
}

/// What stands behind the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// nginx.
    Http1,
    /// nginx, HTTP/2 without TLS.
    Http2,
    /// A gRPC server that sends each message back, on HTTP/2 streams that stay open.
    Stream,
    /// A TCP server that sends back what it gets.
    Echo,
    /// iperf3.
    Bulk,
}

/// What passes through the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    H1,
    H2,
    Tcp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// wrk: each connection sends its next request when it has its answer.
    Closed { connections: u32, path: &'static str, upload: bool },
    /// Open loop: requests are due at a fixed rate, whatever became of those before.
    Paced { rate: u32 },
    /// h2load: so many connections, each with so many streams in use.
    Http2 { connections: u32, streams: u32, grpc: bool },
    /// gRPC streams on which a message is answered by a message.
    Stream { connections: u32, streams: u32 },
    /// Connections made through the proxies, one byte each way, and closed.
    Connect,
    /// TLS handshakes with the inbound proxy, both sides showing certificates; then as [`Load::Connect`].
    Handshake { group: Group },
    /// iperf3, one TCP connection.
    Bulk { down: bool },
    /// Memory of keep-alive connections after one request each, at the client's proxy or (over mTLS) at the server's.
    Idle { mesh: bool },
    /// From the start of the process until it takes work.
    Start,
}

/// Key exchange of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
pub(crate) enum Group {
    #[serde(rename = "X25519")]
    #[value(name = "X25519")]
    X25519,
    #[serde(rename = "X25519MLKEM768")]
    #[value(name = "X25519MLKEM768")]
    X25519Mlkem768,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X25519 => "X25519",
            Self::X25519Mlkem768 => "X25519MLKEM768",
        })
    }
}

impl Upstream {
    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::Http1 => Protocol::H1,
            Self::Http2 | Self::Stream => Protocol::H2,
            Self::Echo | Self::Bulk => Protocol::Tcp,
        }
    }
}

impl Work {
    /// What one unit of it is called.
    pub(crate) fn unit(&self) -> &'static str {
        match self.load {
            Load::Closed { .. } | Load::Paced { .. } | Load::Http2 { .. } => "request",
            Load::Stream { .. } => "message",
            Load::Connect => "connection",
            Load::Handshake { .. } => "handshake",
            Load::Bulk { .. } => "MB",
            Load::Idle { .. } | Load::Start => "",
        }
    }

    /// Goes straight to the inbound proxy, so that only pairs can take part.
    pub(crate) fn at_inbound(&self) -> bool {
        matches!(self.load, Load::Handshake { .. } | Load::Idle { mesh: true })
    }

    /// Part of a first look.
    pub(crate) fn quick(&self) -> bool {
        const LEFT_OUT: [&str; 7] =
            ["h1-c256", "paced-1000", "grpc-c1m1", "large-up", "handshake-x25519mlkem768", "connect", "idle-mesh"];
        !LEFT_OUT.contains(&self.name)
    }

    /// Can be done without any proxy.
    pub(crate) fn direct(&self) -> bool {
        !matches!(self.load, Load::Handshake { .. } | Load::Idle { .. } | Load::Start)
    }
}

/// Bytes of the usual body.
pub(crate) const BODY: usize = 1024;
/// Bytes of the large one.
pub(crate) const LARGE_BODY: usize = 1 << 20;
/// Paths of the two at nginx.
pub(crate) const PATH: &str = "/1k";
const LARGE_PATH: &str = "/1m";
/// Takes a body, answers a few bytes.
const UPLOAD_PATH: &str = "/upload";

const fn keep_alive(name: &'static str, about: &'static str, connections: u32) -> Work {
    let load = Load::Closed { connections, path: PATH, upload: false };
    Work { name, family: "h1", about, upstream: Upstream::Http1, load, hops: true }
}

const fn pairs(name: &'static str, family: &'static str, about: &'static str, upstream: Upstream, load: Load) -> Work {
    Work { name, family, about, upstream, load, hops: false }
}

/// All of it, in the report's order.
pub(crate) const ALL: [Work; 20] = [
    keep_alive("h1-c1", "HTTP/1.1 keep-alive, 1 KiB answers, 1 connection", 1),
    keep_alive("h1-c16", "HTTP/1.1 keep-alive, 1 KiB answers, 16 connections", 16),
    keep_alive("h1-c64", "HTTP/1.1 keep-alive, 1 KiB answers, 64 connections", 64),
    keep_alive("h1-c256", "HTTP/1.1 keep-alive, 1 KiB answers, 256 connections", 256),
    pairs(
        "paced-1000",
        "paced",
        "HTTP/1.1, 1 KiB answers, 1,000 requests/s on 16 connections, open loop: latency from the moment a request was due",
        Upstream::Http1,
        Load::Paced { rate: 1000 },
    ),
    pairs(
        "paced-4000",
        "paced",
        "HTTP/1.1, 1 KiB answers, 4,000 requests/s on 16 connections, open loop: latency from the moment a request was due",
        Upstream::Http1,
        Load::Paced { rate: 4000 },
    ),
    pairs(
        "h2-c8m8",
        "h2",
        "HTTP/2, 1 KiB answers, 8 connections with 8 streams each",
        Upstream::Http2,
        Load::Http2 { connections: 8, streams: 8, grpc: false },
    ),
    pairs(
        "grpc-c1m1",
        "h2",
        "gRPC unary calls with trailers, 100 bytes each way, one at a time",
        Upstream::Http2,
        Load::Http2 { connections: 1, streams: 1, grpc: true },
    ),
    pairs(
        "grpc-c8m8",
        "h2",
        "gRPC unary calls with trailers, 100 bytes each way, 8 connections with 8 streams each",
        Upstream::Http2,
        Load::Http2 { connections: 8, streams: 8, grpc: true },
    ),
    pairs(
        "grpc-stream",
        "h2",
        "gRPC streaming: 8 connections with 8 streams each, on every stream a message of 100 bytes answered by one of 100 bytes",
        Upstream::Stream,
        Load::Stream { connections: 8, streams: 8 },
    ),
    pairs(
        "large-down",
        "large",
        "HTTP/1.1, 1 MiB answers, 16 connections",
        Upstream::Http1,
        Load::Closed { connections: 16, path: LARGE_PATH, upload: false },
    ),
    pairs(
        "large-up",
        "large",
        "HTTP/1.1, POST of 1 MiB, 16 connections",
        Upstream::Http1,
        Load::Closed { connections: 16, path: UPLOAD_PATH, upload: true },
    ),
    pairs(
        "handshake-x25519",
        "handshake",
        "New mTLS connections at the inbound proxy: full mutual handshake (TLS 1.3, P-256 certificates, X25519), a byte each way, close; 8 at a time",
        Upstream::Echo,
        Load::Handshake { group: Group::X25519 },
    ),
    pairs(
        "handshake-x25519mlkem768",
        "handshake",
        "New mTLS connections at the inbound proxy as above, with X25519MLKEM768",
        Upstream::Echo,
        Load::Handshake { group: Group::X25519Mlkem768 },
    ),
    pairs(
        "connect",
        "handshake",
        "New TCP connections through the pair, each with a mutual handshake of its own between the proxies (each with the key exchange it prefers), a byte each way, close; 8 at a time",
        Upstream::Echo,
        Load::Connect,
    ),
    Work {
        hops: true,
        ..pairs("tcp-up", "tcp", "TCP, one connection, client to server", Upstream::Bulk, Load::Bulk { down: false })
    },
    Work {
        hops: true,
        ..pairs("tcp-down", "tcp", "TCP, one connection, server to client", Upstream::Bulk, Load::Bulk { down: true })
    },
    Work {
        hops: true,
        ..pairs(
            "idle-client",
            "idle",
            "Keep-alive connections from clients, one request each, then idle",
            Upstream::Http1,
            Load::Idle { mesh: false },
        )
    },
    pairs(
        "idle-mesh",
        "idle",
        "mTLS keep-alive connections at the inbound proxy, one request each, then idle",
        Upstream::Http1,
        Load::Idle { mesh: true },
    ),
    Work {
        hops: true,
        ..pairs(
            "start-client",
            "start",
            "From the start of the client's proxy until it takes connections (Leno: until it is ready, certificate issued)",
            Upstream::Http1,
            Load::Start,
        )
    },
];

/// Those that the names choose: a work's or a family's name, or the beginning of one up to a dash. None chosen: all.
pub(crate) fn chosen(names: &[String]) -> Vec<Work> {
    let wanted = |work: &Work| names.is_empty() || names.iter().any(|name| is_called(work, name));
    ALL.into_iter().filter(wanted).collect()
}

/// Whether a name of the command line means this work.
pub(crate) fn is_called(work: &Work, name: &str) -> bool {
    let begins = work.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    begins || work.family == name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> Vec<&'static str> {
        let of: Vec<_> = of.iter().map(|&name| name.to_owned()).collect();
        chosen(&of).iter().map(|work| work.name).collect()
    }

    #[test]
    fn works_are_chosen_by_name_family_or_beginning() {
        assert_eq!(names(&["h1-c1"]), ["h1-c1"]);
        assert_eq!(names(&["tcp"]), ["tcp-up", "tcp-down"]);
        assert_eq!(names(&["paced", "connect"]), ["paced-1000", "paced-4000", "connect"]);
        assert_eq!(names(&["h1"]), ["h1-c1", "h1-c16", "h1-c64", "h1-c256"]);
        assert_eq!(names(&[]).len(), ALL.len());
    }

    #[test]
    fn a_first_look_leaves_something_out() {
        assert_eq!(ALL.iter().filter(|work| !work.quick()).count(), 7);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|work| work.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
