//! Where requests go: backends and their endpoints, the choice among them, and connections to them.
//!
//! [`Backend`] and [`Endpoint`] are shared by all workers: what policy says, and what is counted for the
//! whole proxy (retry budget, ejection). [`Upstreams`] is one worker's own: latency estimates, requests
//! in flight, connection pools; it follows a backend's endpoint set by looking at its serial number.
//!
//! A request's way: [`Upstreams::pick`] → [`Pick::http`] or [`Pick::tcp`] → `send` → [`Pick::report`]. The
//! [`Pick`] must live as long as the response's body: until then it counts as in flight.

pub mod backend;
pub mod balance;
mod balancer;
pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod dial;
pub mod dns;
mod local;
pub mod outlier;
pub mod pool;
pub mod shield;
pub mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod worker;

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

pub use backend::{Backend, Endpoint, EndpointSet, HostName};
use balance::{Algorithm, settings::HashKey};
use balancer::{Balancer, Wanted};
use bulkhead::Place;
pub use dial::DialError;
use dial::Dialed;
use local::LocalEndpoint;
use outlier::Role;

use crate::{
    config::limits,
    error::Error,
    http::persistence::Session,
    net::Io,
    policy::Protocol,
    tls::{CredentialStore, MeshProtocol},
};

/// A worker's balancers and pools.
pub struct Upstreams {
    state: Rc<worker::State>,
}

/// How a try ended, as balancing sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// 5xx, reset, timeout: counts against the endpoint and is never taken for fast.
    Failure,
    /// It was turned away (429, RESOURCE_EXHAUSTED, the mesh's `overload`): does not count against the endpoint, but is never taken for fast.
    Refused,
    /// The client waited no longer, or time ran out that it had set: does not count against the endpoint, but it was not faster.
    GivenUp,
    /// The client left in the middle of its request, or the fault is not the endpoint's: says nothing.
    Neutral,
}

/// An endpoint chosen for one try; counts as in flight until dropped.
pub struct Pick {
    pub endpoint: Arc<Endpoint>,
    local: Rc<LocalEndpoint>,
    /// Whose policy it is under; None for [`Upstreams::plain`].
    balancer: Option<Rc<Balancer>>,
    started: Instant,
    /// What the endpoint speaks.
    protocol: Protocol,
    /// What this try decides if the endpoint is ejected.
    role: Cell<Role>,
    /// See [`Self::asks`].
    asked: Cell<Option<Instant>>,
    reported: Cell<bool>,
    /// The stream's place on a shared HTTP/2 connection, held as long as the pick.
    stream: pool::StreamSlot,
    /// That of an opaque connection among those that policy allows, held as long.
    connection: Cell<Option<Place>>,
}

impl Upstreams {
    /// `mark`: see `config::Transparent::mark`. Needs no runtime yet.
    pub fn new(mark: Option<u32>, credentials: Arc<CredentialStore>, resolver: dns::Resolver) -> Self {
        Self { state: worker::State::new(mark, credentials, resolver) }
    }

    /// Chooses an endpoint as the backend's policy says, among those that are ready and not ejected, avoiding `tried` while
    /// there is another. Waits (CONNECT_TIMEOUT at most) only while the backend's endpoints are not known yet. `key`: of the request, asked
    /// for only if the policy goes by it.
    pub async fn pick(
        &self,
        backend: &Arc<Backend>,
        tried: &[SocketAddr],
        key: impl FnOnce(&HashKey) -> Option<u64>,
    ) -> Result<Pick, Error> {
        self.pick_and_tell(backend, tried, key, None).await
    }

    /// As [`Self::pick`]; `why` is where it is said why.
    pub(crate) async fn pick_and_tell(
        &self,
        backend: &Arc<Backend>,
        tried: &[SocketAddr],
        key: impl FnOnce(&HashKey) -> Option<u64>,
        why: Option<&RefCell<String>>,
    ) -> Result<Pick, Error> {
        if !self.state.is_settled(backend) {
            self.await_endpoints(backend).await?;
        }
        let now = Instant::now();
        let (balancer, protocol) = self.state.balancer(backend);
        let wanted = Wanted { tried, key: balancer.key(key), now, why };
        let Some((local, role)) = balancer.choose(wanted, || self.state.random.next()) else {
            return Err(Error::NoEndpoint(backend.key.to_string()));
        };
        Ok(Pick::new(local, Some(balancer), now, protocol, role))
    }

    /// Where the proxy's own zone is found.
    pub fn placed_by(&self, policy: Arc<crate::policy::Store>) {
        self.state.placed_by(policy);
    }

    /// Whether a session's endpoint still serves this backend: it is in the set (it may drain) and is not ejected. `kept`: whether one
    /// counts that is only kept for a while, because the control plane knows of none any longer. As long as nothing is known of
    /// the backend it does: a session moves for good, and not because nobody could be asked for a moment.
    pub(crate) async fn serves(&self, backend: &Arc<Backend>, session: &Session, kept: bool) -> bool {
        if !self.state.is_settled(backend) && self.await_endpoints(backend).await.is_err() {
            return true;
        }
        let (balancer, _) = self.state.balancer(backend);
        let local = balancer.at(session.address, Instant::now()).filter(|_| kept || !balancer.is_kept());
        local.is_some_and(|local| session.is_with_workload(&local.endpoint.name()))
    }

    /// The endpoint of a session, if it still serves: also while it drains, which is not what new sessions get. None: the
    /// session needs another.
    ///
    /// # Errors
    /// If nothing is known of the backend.
    pub(crate) async fn pick_of_session(
        &self,
        backend: &Arc<Backend>,
        session: &Session,
    ) -> Result<Option<Pick>, Error> {
        if !self.state.is_settled(backend) {
            self.await_endpoints(backend).await?;
        }
        let now = Instant::now();
        let (balancer, protocol) = self.state.balancer(backend);
        let local = balancer.at(session.address, now);
        let local = local.filter(|local| session.is_with_workload(&local.endpoint.name()));
        Ok(local.map(|local| Pick::new(local, Some(balancer), now, protocol, Role::Ordinary)))
    }

    /// The endpoint at `addr`, in plaintext, for what is not balanced: the local application behind the inbound
    /// side, and addresses outside the mesh. Connections are pooled like any other's.
    pub fn plain(&self, addr: SocketAddr) -> Pick {
        Pick::new(self.state.plain(addr), None, Instant::now(), Protocol::Detect, Role::Ordinary)
    }

    /// The backend for a name outside the mesh, "host:port" (explicit mode); its endpoints come from DNS. None: not
    /// a host and port.
    pub fn outside(&self, name: &str) -> Option<Arc<Backend>> {
        self.state.outside(name)
    }

    async fn await_endpoints(&self, backend: &Arc<Backend>) -> Result<(), Error> {
        Self::heard_of(backend, backend.known()).await
    }

    /// Waits (CONNECT_TIMEOUT at most) until it is known how policy has the backend called.
    pub(crate) async fn await_policy(&self, backend: &Arc<Backend>) -> Result<(), Error> {
        Self::heard_of(backend, backend.told()).await
    }

    async fn heard_of(backend: &Backend, heard: impl Future<Output = ()>) -> Result<(), Error> {
        match tokio::time::timeout(limits::CONNECT_TIMEOUT, heard).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::Discovery(backend.key.to_string())),
        }
    }
}

impl Pick {
    fn new(
        local: Rc<LocalEndpoint>,
        balancer: Option<Rc<Balancer>>,
        started: Instant,
        protocol: Protocol,
        role: Role,
    ) -> Self {
        local.begin();
        Self {
            endpoint: Arc::clone(&local.endpoint),
            local,
            balancer,
            started,
            protocol,
            role: Cell::new(role),
            asked: Cell::new(None),
            reported: Cell::new(false),
            stream: pool::StreamSlot::default(),
            connection: Cell::new(None),
        }
    }

    /// Reports the try's latency (to the response head) and outcome to estimate and outlier detection. Only the first
    /// report counts; a connection that could not be made has reported itself.
    pub fn report(&self, outcome: Outcome, now: Instant) {
        if self.reported.replace(true) {
            return;
        }
        if self.is_asked() {
            self.local.over();
        }
        let latency = now.saturating_duration_since(self.started);
        let success = match outcome {
            Outcome::Success => true,
            Outcome::Failure => false,
            Outcome::Refused => {
                self.local.refused(latency, now);
                return self.abandon_probe(now);
            }
            Outcome::GivenUp => {
                let ignored = self.asked.get().map(|asked| now.saturating_duration_since(asked));
                self.local.given_up(latency, ignored.unwrap_or_default(), now);
                return self.abandon_probe(now);
            }
            Outcome::Neutral => return self.abandon_probe(now),
        };
        let role = self.role.replace(Role::Ordinary);
        self.local.observe(success, role, latency, now);
        // What is not balanced is not ejected either.
        let Some(balancer) = &self.balancer else { return };
        let roster = balancer.roster();
        let may_eject = || roster.may_eject_one_more(now);
        if self.endpoint.outlier.record(success, role, now, roster.outlier(), may_eject) {
            self.local.pool.close_idle();
            self.local.pool.stats.ejections.increment(1);
            tracing::warn!(endpoint = %self.endpoint.address, workload = %self.endpoint.workload,
                "endpoint ejected: it failed too often");
        }
    }

    /// The endpoint asks to be left alone for so long (Retry-After): it is, if there are others, as long as policy allows.
    pub fn rest(&self, time: Duration, now: Instant) {
        let Some(balancer) = &self.balancer else { return };
        let roster = balancer.roster();
        let until = now.checked_add(time.min(roster.outlier().most_rest)).filter(|until| *until > now);
        if let Some(until) = until.filter(|_| roster.may_rest(self.endpoint.address, now)) {
            self.local.rest(until);
        }
    }

    /// Whether endpoints are chosen by what they are expected to take: one that turns requests away then gets fewer, and need not be
    /// left alone for it.
    pub(crate) fn is_by_estimate(&self) -> bool {
        let Some(balancer) = &self.balancer else { return false };
        matches!(balancer.roster().policy.load_balancing.algorithm, Algorithm::PeakEwma | Algorithm::Prequal(_))
    }

    /// A connection for one HTTP exchange: pooled or new, to the mesh peer over mTLS (ALPN tells the version) or in
    /// plaintext. What the endpoint is known to speak overrides `carry`, see [`pool::HttpConnection::is_http1`]; a mesh
    /// peer speaks all versions and translates.
    pub async fn http(&self, carry: pool::Carry) -> Result<pool::HttpConnection, Error> {
        let connection = self.local.pool.connection(self.carry(carry), &self.stream, self.started).await;
        connection.map_err(|error| self.not_connected(error))
    }

    /// Whether there are connections that would serve, and have no room for one more request.
    pub(crate) fn has_no_room(&self, carry: pool::Carry) -> bool {
        self.local.pool.has_no_room(self.carry(carry))
    }

    fn carry(&self, carry: pool::Carry) -> pool::Carry {
        use pool::Carry;
        match (self.protocol, carry) {
            (Protocol::Http2, _) => Carry::Http2,
            (Protocol::Http1, Carry::Http2) if self.endpoint.identity.is_none() => Carry::Http1,
            _ => carry,
        }
    }

    /// A connection of its own for opaque bytes; the application has taken it (mesh: ALPN `leno1/tcp-ready`).
    pub async fn tcp(&self) -> Result<Box<dyn Io>, Error> {
        let dialed = self.local.pool.dial(MeshProtocol::TcpReady).await;
        let Dialed { io, place, .. } = dialed.map_err(|error| self.not_connected(error))?;
        self.connection.set(place);
        Ok(io)
    }

    /// The whole request is there, when it was begun or since `sent`: from here on it is the endpoint that is waited for.
    pub(crate) fn asks(&self, sent: Option<Instant>) {
        if !self.is_asked() {
            let asked = sent.unwrap_or(self.started);
            self.asked.set(Some(asked));
            self.local.asked(asked);
        }
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.get().is_some()
    }

    /// How long policy lets a connection be without a byte moved, if it says so.
    pub(crate) fn stream_idle(&self) -> Option<Duration> {
        self.balancer.as_ref()?.roster().policy.stream_idle
    }

    fn not_connected(&self, error: DialError) -> Error {
        let outcome = if error.is_own() { Outcome::Neutral } else { Outcome::Failure };
        self.report(outcome, Instant::now());
        error.at(&self.endpoint)
    }

    /// A probe that says nothing: another request may try.
    fn abandon_probe(&self, now: Instant) {
        if self.role.replace(Role::Ordinary) == Role::Probe {
            self.endpoint.outlier.abandon_probe(now);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        if !self.reported.get() {
            // The client has left: while it waited for the answer, or in the middle of its own request.
            let outcome = if self.is_asked() { Outcome::GivenUp } else { Outcome::Neutral };
            self.report(outcome, Instant::now());
        }
        self.local.end();
    }
}
