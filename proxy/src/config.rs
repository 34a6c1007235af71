//! Process configuration: flags, environment and file in one type, immutable after start; and every
//! limit of the proxy by name.
//!
//! [`args`] defines the flags, which `leno-proxy run --help` shows; [`file`] merges a configuration file
//! into them; [`environment`] leaves out empty variables; [`values`] parses what they hold; [`listeners`] keeps
//! addresses apart.

pub mod args;
pub mod environment;
mod file;
mod listeners;
pub mod probes;
pub mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use self::probes::Probes;

/// Everything the proxy is told when it starts. See `leno-proxy run --help`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Control plane, `host:port`.
    pub control_plane: String,
    /// PEM file with the mesh's trust anchors.
    pub trust_bundle: PathBuf,
    /// File with the join token, read anew at each renewal that needs it.
    pub token_file: Option<PathBuf>,
    /// Name of this workload instance, unique in its namespace. Default: the host name.
    pub workload: String,
    /// Explicit mode: local listeners for named destinations.
    pub outbound: Vec<OutboundListener>,
    /// Explicit mode: mesh listeners, and the local port each stands for.
    pub inbound: Vec<InboundListener>,
    /// Transparent mode: ports that the redirect points to.
    pub transparent: Option<Transparent>,
    /// Admin server; loopback by default.
    pub admin: SocketAddr,
    /// Port where kubelets ask, on every address; none: nobody does.
    pub probe_port: Option<u16>,
    /// Whether metrics are served there, too.
    pub probe_metrics: bool,
    /// What they ask of the application.
    pub probes: Probes,
    /// Worker threads, at least one. Default 1.
    pub workers: usize,
    /// Longest wait for open streams after SIGTERM.
    pub drain_timeout: Duration,
    pub access_log: LogFormat,
    /// OTLP (gRPC) collector, "http://host:4317"; none: no spans.
    pub otlp_endpoint: Option<String>,
    /// Share of new traces that are sampled, 0.0..=1.0; an incoming decision is kept.
    pub trace_sample: f64,
    /// Name server for names outside the mesh; none: the system's.
    pub dns_server: Option<SocketAddr>,
    /// What the proxy's own log tells: a filter such as "info,leno_proxy::policy=debug".
    pub log: String,
    pub log_format: LogFormat,
}

/// `--outbound 127.0.0.1:8001=shop.default:80`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundListener {
    pub listen: SocketAddr,
    /// The destination key: "shop.default:80" or "host:port".
    pub destination: String,
}

/// `--inbound 0.0.0.0:9443=127.0.0.1:8080`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundListener {
    pub listen: SocketAddr,
    pub application: SocketAddr,
}

/// Transparent mode (`--transparent`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transparent {
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// SO_MARK of the proxy's own connections, which the redirect leaves alone; needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Off,
    Text,
    Json,
}

/// The soft and the hard limit of open file descriptors; None: no limit.
pub fn descriptor_limits() -> Option<(u64, u64)> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map(|soft| (soft, limit.maximum.unwrap_or(u64::MAX)))
}

/// Limits: everything a peer can make grow is bounded by one of these.
pub mod limits {
    use std::time::Duration;

    /// Default port that `leno-proxy redirect` sends outbound connections to.
    pub const OUTBOUND_PORT: u16 = 4140;
    /// Default port that `leno-proxy redirect` sends inbound connections to.
    pub const INBOUND_PORT: u16 = 4143;
    /// Default SO_MARK of the proxy's own connections.
    pub const MARK: u32 = 0x1e40;

    /// To make a connection, TCP and TLS together; also to discover a destination.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// Addresses of the control plane that are tried, and kept for when its name cannot be looked up.
    pub const HOST_ADDRESSES: usize = 16;
    /// A peer's part of a TLS handshake at the inbound side.
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
    /// From the first byte of a request head to its end.
    pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
    /// Between two looks whether a client is still there of which nothing is read for now.
    pub const UNREAD_LOOK: Duration = Duration::from_secs(1);
    /// A stream on which no byte moves either way.
    pub const STREAM_IDLE: Duration = Duration::from_secs(300);
    /// A TCP connection on which no byte moves either way.
    pub const TCP_IDLE: Duration = Duration::from_secs(3600);
    /// The longest of either that policy may say, and a client's proxy may tell the server's; of opaque bytes, with which
    /// nothing can be told, the server's proxy expects it.
    pub const PEER_IDLE: Duration = Duration::from_secs(24 * 3600);
    /// What is left of a request's body once its response is complete, all of it together.
    pub const BODY_AFTER_RESPONSE: Duration = STREAM_IDLE;
    /// A keep-alive connection from a client without a request, or without a stream.
    pub const CLIENT_IDLE: Duration = Duration::from_secs(3600);
    /// From the drain's begin to the end of idle HTTP/1 connections: time for peers to learn of it.
    pub const DRAIN_LINGER: Duration = Duration::from_secs(1);
    /// Ports of the workload that handles are kept for, per worker; beyond it, all are made anew.
    pub const APPLICATIONS: usize = 1024;
    /// How long a request body is held back for the server's `100 Continue` before it is sent all the same.
    pub const CONTINUE_WAIT: Duration = Duration::from_secs(1);
    /// Informational responses (1xx) that one exchange passes on, beside `100 Continue`; what comes beyond it is dropped.
    pub const INFORMATIONAL: usize = 32;
    /// Their fields, all of them together.
    pub const INFORMATIONAL_BYTES: usize = 64 * 1024;
    /// A pooled connection without a request (below the usual server's 5 s and more).
    pub const POOL_IDLE: Duration = Duration::from_secs(4);
    /// The same to a mesh peer, which keeps its side open longer, and whose handshake costs more.
    pub const MESH_POOL_IDLE: Duration = Duration::from_secs(60);
    /// Idle HTTP/1 connections kept to one endpoint, per worker: as many as a burst may have needed, lest each further
    /// request of it makes one anew. [`POOL_IDLE`] bounds how long.
    pub const POOL_IDLE_PER_ENDPOINT: usize = 1024;
    /// A request or response head, HTTP/1 and HTTP/2.
    pub const HEAD_BYTES: usize = 64 * 1024;
    /// What one HTTP/1 connection buffers in either direction.
    pub const HTTP1_BUFFER: usize = 128 * 1024;
    /// Header fields in one head.
    pub const HEADERS: usize = 256;
    /// Streams a client may have open on one HTTP/2 connection.
    pub const STREAMS_PER_CONNECTION: u32 = 256;
    /// Streams opened on one upstream HTTP/2 connection before another is made.
    pub const STREAMS_BEFORE_NEXT: usize = 100;
    /// HTTP/2 windows. The connection's is that of [`STREAMS_BEFORE_NEXT`] streams, so that those that nobody reads stall no
    /// other: exchanges that have nothing to do with each other share connections.
    pub const H2_STREAM_WINDOW: u32 = 64 * 1024;
    /// See [`H2_STREAM_WINDOW`].
    pub const H2_CONNECTION_WINDOW: u32 = STREAMS_BEFORE_NEXT as u32 * H2_STREAM_WINDOW;
    /// Largest HTTP/2 frame taken.
    pub const H2_FRAME_BYTES: u32 = 64 * 1024;
    /// Bytes of one HTTP/2 stream waiting to be written.
    pub const H2_SEND_BUFFER: usize = 128 * 1024;
    /// Requests per second that an HTTP/2 client may take back as soon as they are sent (rapid reset, CVE-2023-44487).
    pub const H2_RAPID_RESETS: u32 = 1000;
    /// Requests per second that it may take back before they are answered: many do when a server stalls.
    pub const H2_EARLY_RESETS: u32 = 20_000;
    /// Streams that a client made us reset (CVE-2025-8671).
    pub const H2_LOCAL_RESETS: usize = 256;
    /// Pings on HTTP/2 connections with open streams, to notice a dead peer: one when nothing was heard for once or twice that time.
    pub const H2_PING_INTERVAL: Duration = Duration::from_secs(10);
    /// See [`H2_PING_INTERVAL`].
    pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
    /// The same of a client's proxy to the server's, behind which requests wait: one that is frozen, or whose node is gone, is found
    /// out 9 to 12 s after its last word. A ping may be lost four times in it (TCP sends again after 0.2, 0.6, 1.4 and 3 s); a
    /// machine that is moved may stand still for shorter.
    pub const PEER_PING_INTERVAL: Duration = Duration::from_secs(3);
    /// See [`PEER_PING_INTERVAL`].
    pub const PEER_PING_TIMEOUT: Duration = Duration::from_secs(6);
    /// A request body kept for a retry; larger ones are streamed and not retried.
    pub const REPLAY_BYTES: usize = 64 * 1024;
    /// The body of an answer that policy spells out (the control plane takes no larger one).
    pub const STATIC_BODY_BYTES: usize = 16 * 1024;
    /// Copies of requests under way to mirrors, per worker; beyond it none is made.
    pub const MIRRORS: usize = 128;
    /// A request body that is copied to mirrors; larger ones are not.
    pub const MIRROR_BODY_BYTES: usize = 256 * 1024;
    /// Bytes of bodies held for mirrors, per worker; beyond it bodies are not copied.
    pub const MIRRORED_BYTES: usize = 8 * 1024 * 1024;
    /// From a copy's sending to the last byte of its answer.
    pub const MIRROR_TIMEOUT: Duration = Duration::from_secs(30);
    /// First bytes kept while detecting (a post-quantum ClientHello is ~1.4 KiB; two may be needed).
    pub const PEEK_BYTES: usize = 16 * 1024;
    /// How long a silent client is waited for before the server is asked to speak first.
    pub const PEEK_WAIT: Duration = Duration::from_millis(20);
    /// How long first bytes that do not tell what they are are held back, on a port whose protocol is not declared, from a
    /// server that the client waits for. After it they go on, and are cut off should they become HTTP.
    pub const UNDECIDED_WAIT: Duration = Duration::from_secs(1);
    /// A destination not called for so long is forgotten (while the control plane is reachable).
    pub const DESTINATION_IDLE: Duration = Duration::from_secs(600);
    /// Destinations held at most; the least lately used go first.
    pub const DESTINATIONS: usize = 4096;
    /// Destinations remembered, per worker, because their server speaks first.
    pub const SERVERS_FIRST: usize = 256;
    /// Resources subscribed to at most, endpoints included (the control plane allows 10,000).
    pub const SUBSCRIPTIONS: usize = 8192;
    /// How long the last endpoints of a backend are still tried when the control plane says, all at once, that there are none.
    pub const EMPTY_GRACE: Duration = Duration::from_secs(30);
    /// Retry budget, unless a policy says otherwise: retries for each hundred requests that are answered well.
    pub const RETRY_PERCENT: u32 = 20;
    /// And per second, besides.
    pub const RETRIES_PER_SECOND: u32 = 10;
    /// Retries that may be saved up.
    pub const RETRY_BURST: u32 = 100;
    /// Traces whose hops are remembered, per proxy (deadline, attempt, retried in vain).
    pub const HOPS: usize = 16 * 1024;
    /// For so long, or until their deadline.
    pub const HOP_MEMORY: Duration = Duration::from_secs(30);
    /// Longest wait between two tries.
    pub const RETRY_WAIT: Duration = Duration::from_secs(10);
    /// Probes that are asked in a kubelet's place (a Pod's containers, five each).
    pub const PROBES: usize = 256;
    /// Longest that a kubelet's "are you ready" is held back for a yes.
    pub const READY_HOLD: Duration = Duration::from_secs(3);
    /// Redirects of a probe that are followed, as a kubelet does.
    pub const PROBE_REDIRECTS: usize = 10;
    /// Metrics at the probes' port are made anew that often, at most.
    pub const METRICS_PACE: Duration = Duration::from_secs(1);
    /// In which who asks at the probes' port must read the answer, and ask again.
    pub const PROBE_SILENCE: Duration = Duration::from_secs(5);
    /// Bytes of a probe's answer that are read.
    pub const PROBE_BYTES: usize = 10 * 1024;
    /// Longest that a probe or hook may take, whatever it says.
    pub const PROBE_TIMEOUT: Duration = Duration::from_secs(600);
    /// Requests whose decisions are kept for operators, of each cause that there is to keep them for (failures, refusals of
    /// clients, headers that are asked for, others).
    pub const KEPT_REQUESTS: usize = 256;
    /// Bytes of all of them.
    pub const KEPT_BYTES: usize = 512 * 1024;
    /// Bytes of what was decided over one request.
    pub const KEPT_REQUEST_BYTES: usize = 8 * 1024;
    /// Characters of one decision's text, of a path and of a header's value.
    pub const KEPT_TEXT_CHARS: usize = 512;
    /// For so long.
    pub const KEPT_FOR: Duration = Duration::from_secs(600);
    /// Requests that notes are taken of per second, of each cause.
    pub const KEPT_PER_SECOND: u64 = 100;
    /// Bytes of one answer to an operator's question for them.
    pub const ANSWER_BYTES: usize = 256 * 1024;
    /// Headers by which requests are kept.
    pub const KEPT_HEADERS: usize = 8;
    /// Rate limits of one port.
    pub const RATE_LIMITS: usize = 16;
    /// Clients with a bucket of their own, for each rate limit; those beyond share one.
    pub const RATE_LIMIT_KEYS: usize = 16 * 1024;
    /// Requests that a port may always have at a time under the adaptive limit, unless policy says otherwise.
    pub const CONCURRENCY_MIN: u32 = 100;
    /// And how many at most.
    pub const CONCURRENCY_MAX: u32 = 10_000;
    /// Series in the metrics registry; beyond it, series are folded into `overflow`.
    pub const METRIC_SERIES: usize = 10_000;
}
