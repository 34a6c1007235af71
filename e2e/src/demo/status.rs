//! What an operator can know of the running mesh: what the control plane says of its proxies and the route, and what
//! the sidecars say of themselves.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, anyhow, bail};
use leno_proto::v1::ListProxiesRequest;
use serde::Deserialize;

use super::cast::Cast;

/// As of the last look.
#[derive(Debug, Default, Clone)]
pub(super) struct Status {
    /// Of the route.
    pub(super) generation: u64,
    pub(super) programmed: u32,
    pub(super) subscribed: u32,
    /// "shop-v1 90, shop-v2 10", as a client's sidecar serves it.
    pub(super) weights: String,
    pub(super) connected: usize,
    pub(super) proxies: usize,
    /// Connected proxies by identity.
    pub(super) identities: BTreeMap<String, usize>,
    pub(super) backends: BTreeMap<String, Held>,
    /// Tries beyond a request's first.
    pub(super) retries: u64,
    /// When each sidecar's certificate ends (RFC 3339): its first, and the one it has.
    certificates: BTreeMap<String, (String, String)>,
    /// Processes that ended and should not have, and who could not be asked.
    pub(super) problems: BTreeSet<String>,
}

/// A backend as the clients' sidecars see it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// By state: ready, draining, ejected.
    pub(super) endpoints: BTreeMap<String, u64>,
    /// Requests and connections that failed, after all retries.
    pub(super) failed: u64,
}

impl Status {
    /// Sidecars that have a newer certificate than their first.
    pub(super) fn renewed(&self) -> usize {
        self.certificates.values().filter(|(first, now)| first != now).count()
    }

    /// A sidecar that starts anew has its first certificate again.
    pub(super) fn forget(&mut self, name: &str) {
        self.certificates.remove(name);
    }

    /// Asks everybody. `dead`: what is not missed.
    pub(super) async fn look(&mut self, cast: &Cast, dead: &BTreeSet<String>) {
        self.problems.clear();
        self.route(cast);
        let outcomes = [
            self.proxies(cast).await.context("the control plane"),
            self.policy(cast).await.context("what the sidecar of web-1 serves"),
            self.counters(cast).await.context("what the clients' sidecars count"),
        ];
        self.problems.extend(outcomes.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
        for sidecar in cast.sidecars().filter(|sidecar| !dead.contains(sidecar.name())) {
            if let Err(error) = self.sidecar(sidecar).await {
                self.problems.insert(format!("{}: {error:#}", sidecar.name()));
            }
        }
    }

    /// Costs nothing: what the control plane told last.
    pub(super) fn route(&mut self, cast: &Cast) {
        let route = cast.route.borrow();
        (self.generation, self.programmed, self.subscribed) = (route.generation, route.programmed, route.subscribed);
    }

    async fn proxies(&mut self, cast: &Cast) -> Result<()> {
        if let Some(ended) = cast.mesh.control_plane().ended()? {
            bail!("it ended: {ended}");
        }
        let answer = cast.operator.clone().list_proxies(ListProxiesRequest {}).await;
        let answer = answer.map_err(|status| anyhow!("it does not answer: {}", status.message()))?.into_inner();
        self.proxies = answer.proxies.len();
        self.identities.clear();
        for proxy in answer.proxies.into_iter().filter(|proxy| proxy.connected) {
            *self.identities.entry(proxy.identity).or_default() += 1;
        }
        self.connected = self.identities.values().sum();
        Ok(())
    }

    async fn policy(&mut self, cast: &Cast) -> Result<()> {
        let client = cast.clients.first().context("no client")?;
        let policy: Policy = serde_json::from_str(&client.admin("/config").await?)?;
        let shop = policy.destinations.iter().find(|held| held.target.service.as_deref() == Some("default/shop"));
        let rule = shop.and_then(|held| held.target.http.as_ref()?.first());
        let weights = rule.iter().flat_map(|rule| &rule.backends);
        let weights = weights.map(|held| format!("{} {}", short(&held.backend.key), held.weight));
        self.weights = weights.collect::<Vec<_>>().join(", ");
        Ok(())
    }

    async fn counters(&mut self, cast: &Cast) -> Result<()> {
        let mut backends = BTreeMap::<String, Held>::new();
        let mut retries = 0;
        for (n, client) in cast.clients.iter().enumerate() {
            let metrics = client.metrics().await?;
            retries += metrics.sum("leno_retries_total", &[]) as u64;
            for sample in metrics.samples() {
                let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
                let failed = match sample.name.as_str() {
                    "leno_requests_total" => ["failed", "5xx"].contains(&label("class")),
                    "leno_tcp_connection_failures_total" => true,
                    // Each client has all endpoints: one of them is asked.
                    "leno_endpoints" if n == 0 => false,
                    _ => continue,
                };
                let backend = backends.entry(short(label("backend")).to_owned()).or_default();
                if failed {
                    backend.failed += sample.value as u64;
                } else if sample.name == "leno_endpoints" {
                    backend.endpoints.insert(label("state").to_owned(), sample.value as u64);
                }
            }
        }
        (self.backends, self.retries) = (backends, retries);
        Ok(())
    }

    async fn sidecar(&mut self, sidecar: &crate::mesh::Workload) -> Result<()> {
        if let Some(ended) = sidecar.process()?.ended()? {
            bail!("its sidecar ended: {ended}");
        }
        let identity: Identity = serde_json::from_str(&sidecar.admin("/identity").await?).context("its identity")?;
        let ends = self
            .certificates
            .entry(sidecar.name().to_owned())
            .or_insert_with(|| (identity.not_after.clone(), String::new()));
        ends.1 = identity.not_after;
        Ok(())
    }
}

/// "shop-v1" of "default/shop-v1:80".
fn short(key: &str) -> &str {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    name.split_once(':').map_or(name, |(name, _)| name)
}

/// Part of the admin server's `/identity`.
#[derive(Debug, Deserialize)]
struct Identity {
    not_after: String,
}

/// Part of the admin server's `/config`.
#[derive(Debug, Deserialize)]
struct Policy {
    destinations: Vec<Destination>,
}

#[derive(Debug, Deserialize)]
struct Destination {
    target: Target,
}

#[derive(Debug, Deserialize)]
struct Target {
    service: Option<String>,
    http: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    backends: Vec<Weighted>,
}

#[derive(Debug, Deserialize)]
struct Weighted {
    weight: u64,
    backend: Backend,
}

#[derive(Debug, Deserialize)]
struct Backend {
    #[serde(default)]
    key: String,
}
