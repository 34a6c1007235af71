//! The probe port: where a kubelet asks, without TLS, whether the proxy is ready and how the application is, and a
//! Prometheus, if it may, what the proxy counts.
//!
//! The application's probes come here because a kubelet is in no mesh: its plaintext would be refused by a strict
//! policy. They are asked of the application at the address that the kubelet called, as it would have done ([`ask`]).
//! Whoever reaches the Pod can ask here, too, but only what the Pod lists, and learns no more than yes or no; the same
//! question is asked of the application once at a time.
//!
//! Lifecycle hooks come here, too, by paths that stand in the Pod's spec alone. It takes any status for done and only a connection
//! that fails for a failure, so the one is passed on, and without it the connection is closed.

mod ask;

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, time};

use crate::{
    admin,
    config::{
        Config, limits,
        probes::{Probe, Probes},
    },
    net::{self, listener},
    small_server::{self, Answer, Limits, json, text},
};

/// How often readiness is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(10);

/// Listens, if it is to.
///
/// # Errors
/// Those of the kernel, with the address.
pub(crate) fn bind(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    let Some(port) = config.probe_port else { return Ok(Vec::new()) };
    // SO_REUSEPORT would share the port with another proxy without a word; see `app::workers`. All are asked for before
    // any is ours: without IPV6_V6ONLY, which std leaves unset, [::] takes in 0.0.0.0.
    for any in net::any_address(port) {
        std::net::TcpListener::bind(any).map_err(|error| anyhow::anyhow!("--probe-port: {any}: {error}"))?;
    }
    net::any_address(port).map(|any| Ok(listener::bind(any)?)).collect()
}

/// Serves until the process ends.
pub(crate) fn start(listeners: Vec<TcpListener>, config: &Config, status: &Arc<admin::Status>) {
    let mark = config.transparent.as_ref().and_then(|transparent| transparent.mark);
    let asker = Rc::new(Asker { probes: config.probes.clone(), mark, asking: RefCell::default() });
    let metrics = config.probe_metrics.then(|| Rc::new(Metrics::default()));
    for listener in listeners {
        let (asker, status) = (Rc::clone(&asker), Arc::clone(status));
        let limits = Limits { what: "probe", connection: limits::PROBE_TIMEOUT, silence: limits::PROBE_SILENCE };
        let metrics = metrics.clone();
        tokio::task::spawn_local(small_server::serve(listener, limits, async move |request, local| {
            answer(request, local, &asker, &status, metrics.as_deref()).await
        }));
    }
}

async fn answer(
    request: Request<Incoming>,
    local: SocketAddr,
    asker: &Rc<Asker>,
    status: &admin::Status,
    metrics: Option<&Metrics>,
) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed: GET, HEAD\n");
    }
    match (request.uri().path(), metrics) {
        ("/ready", _) => ready(status).await,
        ("/metrics", Some(metrics)) => metrics.answer(Instant::now(), || admin::metrics_page(status)),
        (path, _) => match asker.probes.iter().position(|probe| probe.path == path) {
            Some(index) => asker.ask(index, local, request.headers()).await,
            None => text(StatusCode::NOT_FOUND, "no such probe\n"),
        },
    }
}

/// The page of metrics, for whoever reaches the port: it is made on the thread that answers probes, so not for each who asks.
#[derive(Default)]
struct Metrics {
    /// As it was last made.
    page: RefCell<Option<(Instant, Bytes)>>,
}

impl Metrics {
    fn answer(&self, now: Instant, render: impl FnOnce() -> String) -> Answer {
        let mut page = self.page.borrow_mut();
        let fresh = page.take().filter(|(at, _)| now.saturating_duration_since(*at) < limits::METRICS_PACE);
        let (at, bytes) = fresh.unwrap_or_else(|| (now, render().into()));
        *page = Some((at, bytes.clone()));
        small_server::long(admin::metrics_answer(bytes))
    }
}

/// Whether the proxy serves; held back while it is about to, so that who waits for it need not wait for the next question.
async fn ready(status: &admin::Status) -> Answer {
    let missing = || admin::missing(status, SystemTime::now());
    let becomes_ready = async {
        while !missing().is_empty() && !status.drain.has_begun() {
            time::sleep(POLL).await;
        }
    };
    // Whether it became so or not is asked next.
    let _ = time::timeout(limits::READY_HOLD, becomes_ready).await;
    let missing = missing();
    let code = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(code, &json!({ "ready": missing.is_empty(), "missing": missing }))
}

/// What the application said: its status, or why there is none.
type Said = Result<StatusCode, String>;

struct Asker {
    probes: Probes,
    mark: Option<u32>,
    /// Questions under way, by their place in the list: who comes with the same gets the same answer.
    asking: RefCell<HashMap<usize, watch::Receiver<Option<Said>>>>,
}

impl Asker {
    async fn ask(self: &Rc<Self>, index: usize, local: SocketAddr, headers: &HeaderMap) -> Answer {
        let is_hook = self.probes.get(index).is_some_and(Probe::is_hook);
        let under_way = self.asking.borrow().get(&index).cloned();
        let mut answer = match under_way {
            Some(answer) => answer,
            None => self.start(index, local, headers),
        };
        let said = match answer.wait_for(Option::is_some).await {
            Ok(said) => said.clone(),
            Err(_) => None,
        };
        let said = said.unwrap_or_else(|| Err("the question was given up".to_owned()));
        match said {
            Ok(status) if is_hook => text(status, ""),
            Err(_) if is_hook => small_server::none(),
            Ok(status) if (200..400).contains(&status.as_u16()) => text(StatusCode::OK, "ok\n"),
            Ok(status) => text(StatusCode::SERVICE_UNAVAILABLE, format!("the application answered {status}\n")),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        }
    }

    fn start(self: &Rc<Self>, index: usize, local: SocketAddr, headers: &HeaderMap) -> watch::Receiver<Option<Said>> {
        let (sender, receiver) = watch::channel(None);
        let Some(probe) = self.probes.get(index).cloned() else { return receiver };
        self.asking.borrow_mut().insert(index, receiver.clone());
        let caller = ask::Caller { ip: local.ip(), mark: self.mark, agent: headers.get(header::USER_AGENT).cloned() };
        let asker = Rc::clone(self);
        // Of its own, so that a kubelet that goes takes nobody else's answer with it.
        tokio::task::spawn_local(async move {
            let said = asked(&probe, &caller).await;
            asker.asking.borrow_mut().remove(&index);
            // An error means that nobody waits any longer.
            let _ = sender.send(Some(said));
        });
        receiver
    }
}

async fn asked(probe: &Probe, caller: &ask::Caller) -> Said {
    match time::timeout(probe.timeout(), ask::ask(&probe.question, caller)).await {
        Ok(said) => said,
        // Kubelets wait for hooks as long as they take: that this proxy does not is no failure.
        Err(_) if probe.is_hook() => Ok(StatusCode::GATEWAY_TIMEOUT),
        Err(_) => Err(format!("no answer from the application within {:?}", probe.timeout())),
    }
}

#[cfg(test)]
mod tests;
