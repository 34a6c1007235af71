//! What Leno means to reach, checked against what was measured. Ratios are medians of ratios within one round.

use crate::{
    contender::LENO,
    figures::name,
    kubernetes,
    results::{Row, figure, ratio, text},
};

/// One claim, and whether it holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    pub text: String,
    pub limit: String,
    pub found: String,
    pub met: bool,
}

const HAPROXY_PAIRS: &[&str] = &["haproxy-chain-h1", "haproxy-chain-h2"];
const ENVOY_PAIRS: &[&str] = &["envoy-chain-h1", "envoy-chain-h2"];
const TCP_PAIRS: &[&str] = &["envoy-chain-tcp", "ztunnel-chain"];
const TCP_HOPS: &[&str] = &["haproxy-hop", "haproxy-hop-splice"];

/// A ratio of ours to the best of others.
struct Relative {
    text: &'static str,
    contender: &'static str,
    works: &'static [&'static str],
    figure: &'static str,
    peers: &'static [&'static str],
    limit: f64,
    /// Ours must be at most the limit, or else at least.
    at_most: bool,
}

const fn at_most(
    text: &'static str,
    works: &'static [&'static str],
    figure: &'static str,
    peers: &'static [&'static str],
    limit: f64,
) -> Relative {
    Relative { text, contender: LENO, works, figure, peers, limit, at_most: true }
}

const RELATIVE: &[Relative] = &[
    at_most(
        "CPU per request, of HAProxy's best pair's",
        &["h1-c16", "h1-c64", "paced-1000", "paced-4000"],
        name::CPU,
        HAPROXY_PAIRS,
        0.75,
    ),
    at_most("CPU per request, of Envoy's best pair's", &["h1-c16", "h1-c64"], name::CPU, ENVOY_PAIRS, 0.2),
    at_most("p50, of HAProxy's best pair's", &["h1-c1", "paced-1000", "paced-4000"], name::P50, HAPROXY_PAIRS, 1.0),
    at_most("p99, of HAProxy's best pair's", &["h1-c1", "paced-1000", "paced-4000"], name::P99, HAPROXY_PAIRS, 1.0),
    at_most(
        "CPU per request or message, of HAProxy's pair's",
        &["h2-c8m8", "grpc-c8m8", "grpc-stream"],
        name::CPU,
        &["haproxy-chain-h2"],
        1.0,
    ),
    Relative {
        at_most: false,
        ..at_most(
            "throughput over mTLS, of Envoy's (and ztunnel's)",
            &["tcp-up", "tcp-down"],
            name::GBIT,
            TCP_PAIRS,
            1.0,
        )
    },
    Relative {
        contender: "leno-hop",
        at_most: false,
        ..at_most("throughput of a plaintext hop, of HAProxy's", &["tcp-up", "tcp-down"], name::GBIT, TCP_HOPS, 1.0)
    },
    at_most("CPU per mTLS handshake, of HAProxy's", &["handshake-x25519"], name::CPU, &["haproxy-chain-tcp"], 1.0),
];

/// A figure of ours that must stay at or below a limit.
struct Absolute {
    text: &'static str,
    work: &'static str,
    figure: &'static str,
    limit: f64,
    unit: &'static str,
    /// How many of the figure's units are one of the limit's.
    scale: f64,
}

const fn below(
    text: &'static str,
    work: &'static str,
    figure: &'static str,
    limit: f64,
    unit: &'static str,
) -> Absolute {
    Absolute { text, work, figure, limit, unit, scale: 1.0 }
}

/// Of a change in a real API server.
const fn to_the_last(work: &'static str) -> Absolute {
    let text = "from the API server's write to the last subscriber, at rest, p99";
    Absolute { scale: 1000.0, ..below(text, work, name::P99, kubernetes::BOUND_MS, "ms") }
}

const ABSOLUTE: &[Absolute] = &[
    below("idle sidecar at the client, resident", "idle-client", name::RSS_OUT, 8.0, "MiB"),
    below("idle sidecar at the server, resident", "idle-client", name::RSS_IN, 8.0, "MiB"),
    below("per idle keep-alive connection of a client, resident", "idle-client", name::KIB_EACH, 2.0, "KiB"),
    below("ready after its start, certificate issued", "start-client", name::READY, 100.0, "ms"),
    below("memory of the control plane, per proxy", "control-plane-10000-idle", "kib_per_proxy", 100.0, "KiB"),
    Absolute {
        scale: 1000.0,
        ..below("to the last subscriber, p99", "control-plane-10000-endpoint", name::P99, 200.0, "ms")
    },
    below(
        "CPU of the control plane at a change per second",
        "control-plane-10000-endpoint",
        "cpu_percent_of_core",
        10.0,
        "% of a core",
    ),
    to_the_last("kubernetes-endpoint"),
    to_the_last("kubernetes-endpoint-anywhere"),
];

/// All that can be checked with these rows; rows may bring targets of their own, in `targets`.
pub(crate) fn check(rows: &[Row]) -> Vec<Target> {
    let row = |work: &str, contender: &str| {
        rows.iter().find(|row| text(row, "work") == work && text(row, "contender") == contender)
    };
    let mut targets = Vec::new();
    for relative in RELATIVE {
        for work in relative.works {
            let Some(row) = row(work, relative.contender) else { continue };
            targets.extend(relative.check(work, row));
        }
    }
    for absolute in ABSOLUTE {
        let Some(found) = row(absolute.work, LENO).and_then(|row| figure(row, absolute.figure)) else { continue };
        let (found, limit, unit) = (found / absolute.scale, absolute.limit, absolute.unit);
        targets.push(Target {
            text: format!("{}: {}", absolute.work, absolute.text),
            limit: format!("≤ {limit} {unit}"),
            found: format!("{found:.1} {unit}"),
            met: found <= limit,
        });
    }
    targets.extend(rows.iter().flat_map(brought));
    targets
}

impl Relative {
    /// Against the best of the peers: the one that makes it hardest. Rows of failed or absent peers say nothing.
    fn check(&self, work: &str, row: &Row) -> Option<Target> {
        let ratios = self.peers.iter().filter_map(|peer| ratio(row, peer, self.figure));
        let found = if self.at_most { ratios.reduce(f64::max) } else { ratios.reduce(f64::min) }?;
        Some(Target {
            text: format!("{work}: {}", self.text),
            limit: format!("{} {}×", if self.at_most { "≤" } else { "≥" }, self.limit),
            found: format!("{found:.2}×"),
            met: if self.at_most { found <= self.limit } else { found >= self.limit },
        })
    }
}

fn brought(row: &Row) -> Vec<Target> {
    let Some(listed) = row.get("targets").and_then(|targets| targets.as_array()) else { return Vec::new() };
    let parse = |target: &serde_json::Value| {
        let field = |name: &str| Some(target.get(name)?.as_str()?.to_owned());
        Some(Target {
            text: format!("{}: {}", text(row, "work"), field("text")?),
            limit: field("limit")?,
            found: field("found")?,
            met: target.get("met")?.as_bool()?,
        })
    };
    listed.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(value: serde_json::Value) -> Vec<Row> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn ratios_are_to_the_best_peer() {
        let rows = rows(json!([{"work": "h1-c16", "contender": "leno", "ratio_to": {
            "haproxy-chain-h1": {"cpu_us_per_request": 0.5}, "haproxy-chain-h2": {"cpu_us_per_request": 0.8},
            "envoy-chain-h2": {"cpu_us_per_request": 0.1}}}]));
        let targets = check(&rows);
        assert_eq!(targets.len(), 2);
        assert_eq!((targets[0].found.as_str(), targets[0].met), ("0.80×", false));
        assert_eq!((targets[1].found.as_str(), targets[1].met), ("0.10×", true));
    }

    #[test]
    fn limits_and_targets_that_rows_bring() {
        let rows = rows(json!([
            {"work": "start-client", "contender": "leno", "ready_ms": 99.5},
            {"work": "control", "contender": "leno",
             "targets": [{"text": "fast", "limit": "≤ 1 s", "found": "2 s", "met": false}]},
            {"work": "tcp-up", "contender": "leno-hop", "ratio_to": {"haproxy-hop": {"gbit_per_s": 1.2}}}
        ]));
        let met: Vec<_> = check(&rows).into_iter().map(|target| (target.text, target.met)).collect();
        assert_eq!(
            met,
            [
                ("tcp-up: throughput of a plaintext hop, of HAProxy's".to_owned(), true),
                ("start-client: ready after its start, certificate issued".to_owned(), true),
                ("control: fast".to_owned(), false),
            ]
        );
    }
}
