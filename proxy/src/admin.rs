//! The admin server: HTTP/1.1 on loopback, on the control runtime. Whether the proxy is live and ready, what it
//! counts, what it holds, who it is; and a few things it can be told.
//!
//! It has no access control but its address. A browser on the same machine is no operator: requests that come
//! from a web page are refused.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header, uri::Authority};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::json;
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    drain::DrainOwner,
    policy,
    small_server::{self, Answer, Limits, json, text},
    telemetry::{access_log::rfc3339, exposition, log::LogControl, recorder::Registry},
    tls::CredentialStore,
};

/// Bytes of a request body.
const BODY_BYTES: usize = 4096;
/// A whole connection's life.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

const INDEX: &str = "leno-proxy

GET  /live       the process runs
GET  /ready      200 when it serves, else 503 with what is missing (JSON)
GET  /metrics    Prometheus text format
GET  /config     policy in force: destinations with their routes, backends with their endpoints, and the objects and
                 generations they were compiled from (JSON)
GET  /identity   the workload's certificate (JSON)
GET  /log-level  the log's filter
PUT  /log-level  sets it: curl -X PUT -d info,leno_proxy::policy=debug …/log-level
POST /drain      finishes what is open, then ends, as SIGTERM does
";

/// What the server tells of, and what it can tell.
pub(crate) struct Status {
    pub(crate) policy: Arc<policy::Store>,
    pub(crate) credentials: Arc<CredentialStore>,
    pub(crate) drain: Arc<DrainOwner>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) log: LogControl,
    pub(crate) started: SystemTime,
    /// Told by POST /drain.
    pub(crate) drain_requested: Notify,
}

/// Listens.
///
/// # Errors
/// Those of the kernel, with the address.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("--admin: listening on {address}"))
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, status: Arc<Status>) {
    let limits = Limits { what: "admin", connection: CONNECTION_TIMEOUT, silence: CONNECTION_TIMEOUT };
    small_server::serve(listener, limits, async move |request, _| answer(request, &status).await).await;
}

async fn answer(request: Request<Incoming>, status: &Status) -> Answer {
    let (head, body) = request.into_parts();
    if is_from_a_web_page(&head.headers) {
        return text(StatusCode::FORBIDDEN, "refused: the request comes from a web page\n");
    }
    if !names_us(&head.uri, &head.headers) {
        return text(StatusCode::FORBIDDEN, "refused: call the admin server by its IP address, or as localhost\n");
    }
    let path = head.uri.path();
    let method = if head.method == Method::HEAD { &Method::GET } else { &head.method };
    match (method.as_str(), path) {
        ("GET", "/") => text(StatusCode::OK, INDEX),
        ("GET", "/live") => text(StatusCode::OK, "live\n"),
        ("GET", "/ready") => ready(status),
        ("GET", "/metrics") => metrics_answer(metrics_page(status)),
        ("GET", "/config") => json(StatusCode::OK, &status.policy.dump()),
        ("GET", "/identity") => identity(status),
        ("GET", "/log-level") => text(StatusCode::OK, status.log.filter() + "\n"),
        ("PUT", "/log-level") => set_log_level(body, status).await,
        ("POST", "/drain") => {
            status.drain_requested.notify_one();
            text(StatusCode::ACCEPTED, "draining\n")
        }
        (_, "/" | "/live" | "/ready" | "/metrics" | "/config" | "/identity") => not_allowed("GET, HEAD"),
        (_, "/log-level") => not_allowed("GET, HEAD, PUT"),
        (_, "/drain") => not_allowed("POST"),
        _ => text(StatusCode::NOT_FOUND, "not found; / lists what there is\n"),
    }
}

/// Browsers say so themselves: `Origin` with whatever may change something, `Sec-Fetch-Site` with everything.
fn is_from_a_web_page(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != b"none" && site != b"same-origin")
}

/// Whether the request is for an IP address or localhost, if it says whom it is for. A web page may have its own name
/// point here (DNS rebinding) and is then of the same origin to its browser, which says nothing more; but that name is
/// no address.
fn names_us(uri: &Uri, headers: &HeaderMap) -> bool {
    let is_ours = |authority: &Authority| {
        let host = authority.host();
        let ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        host.eq_ignore_ascii_case("localhost") || ipv6.unwrap_or(host).parse::<IpAddr>().is_ok()
    };
    let mut hosts = headers.get_all(header::HOST).iter();
    uri.authority().is_none_or(is_ours)
        && hosts.all(|host| Authority::try_from(host.as_bytes()).is_ok_and(|host| is_ours(&host)))
}

/// What the proxy lacks before it can serve.
pub(crate) fn missing(status: &Status, now: SystemTime) -> Vec<&'static str> {
    let mut missing = Vec::new();
    match status.credentials.current() {
        None => missing.push("identity"),
        Some(credentials) if credentials.not_after <= now => missing.push("identity (expired)"),
        Some(_) => {}
    }
    if !status.policy.is_ready() {
        missing.push("policy");
    }
    if status.drain.has_begun() {
        missing.push("draining");
    }
    missing
}

fn ready(status: &Status) -> Answer {
    let missing = missing(status, SystemTime::now());
    let code = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(code, &json!({ "ready": missing.is_empty(), "missing": missing }))
}

/// In Prometheus' text format.
pub(crate) fn metrics_page(status: &Status) -> String {
    let mut page = exposition::render(&status.registry);
    exposition::render_process(&mut page, status.started);
    exposition::render_gauge(
        &mut page,
        "leno_open_connections",
        "Connections of clients, and tunnels in their streams, that a drain waits for.",
        status.drain.open() as f64,
    );
    page
}

pub(crate) fn metrics_answer(page: impl Into<Bytes>) -> Answer {
    let mut answer = text(StatusCode::OK, page);
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(exposition::CONTENT_TYPE));
    answer
}

fn identity(status: &Status) -> Answer {
    let Some(credentials) = status.credentials.current() else {
        return json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "id": null }));
    };
    let certificate = credentials.certificate().and_then(|der| x509_parser::parse_x509_certificate(der).ok());
    let certificate = certificate.as_ref().map(|(_, certificate)| certificate);
    let identity = json!({
        "id": credentials.id.as_str(),
        "serial": certificate.map(|certificate| certificate.raw_serial_as_string()),
        "issuer": certificate.map(|certificate| certificate.issuer().to_string()),
        "epoch": credentials.epoch,
        "not_before": rfc3339(credentials.not_before),
        "not_after": rfc3339(credentials.not_after),
        "trust_domain": credentials.bundle().trust_domain(),
    });
    json(StatusCode::OK, &identity)
}

async fn set_log_level(body: Incoming, status: &Status) -> Answer {
    let body = match Limited::new(body, BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}\n")),
    };
    let filter = String::from_utf8_lossy(&body);
    match status.log.set_filter(filter.trim()) {
        Ok(()) => {
            tracing::warn!(filter = %filter.trim(), "the log's filter was changed by the admin server");
            text(StatusCode::OK, status.log.filter() + "\n")
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    }
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("method not allowed: {allowed}\n"));
    answer.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(allowed));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_pages_are_refused_and_tools_are_not() {
        let headers = |entries: &[(&'static str, &'static str)]| {
            let entries = entries.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            entries.collect::<HeaderMap>()
        };
        assert!(!is_from_a_web_page(&headers(&[("user-agent", "curl")])));
        assert!(!is_from_a_web_page(&headers(&[("sec-fetch-site", "none")])));
        assert!(is_from_a_web_page(&headers(&[("origin", "https://example.com")])));
        assert!(is_from_a_web_page(&headers(&[("origin", "null")])));
        assert!(is_from_a_web_page(&headers(&[("sec-fetch-site", "cross-site")])));
    }

    #[test]
    fn names_that_anybody_may_own_are_refused() {
        let accepts = |uri: &'static str, host: &'static str| {
            let headers = HeaderMap::from_iter([(header::HOST, http::HeaderValue::from_static(host))]);
            names_us(&Uri::from_static(uri), &headers)
        };
        for host in ["127.0.0.1", "127.0.0.1:4191", "[::1]:4191", "10.1.2.3:4191", "localhost", "LocalHost:4191"] {
            assert!(accepts("/config", host), "{host}");
            assert!(!accepts("http://evil.example/config", host), "{host}");
        }
        for host in ["evil.example", "evil.example:4191", "127.0.0.1.evil.example", "localhost.evil.example", "a b", ""]
        {
            assert!(!accepts("/config", host), "{host}");
        }
        assert!(names_us(&Uri::from_static("/live"), &HeaderMap::new()), "HTTP/1.0 names nobody");
    }
}
