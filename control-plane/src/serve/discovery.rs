//! `Discovery.Subscribe`: one task per proxy, which owns its [`Session`].

use std::{
    future::{Ready, ready},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use leno_proto::v1::{Goodbye, Resource, SubscribeRequest, subscribe_request};
use rustls::crypto::aws_lc_rs;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant as TokioInstant, sleep_until, timeout},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, body::Body, codegen::http, server::StreamingService};

use super::{
    compiled::{Compiled, Compiler},
    interests::Interests,
    limits,
    listener::{Peer, PeerCertificate},
    metrics::Metrics,
    session::{Session, Violation},
    tracker::{Claim, Holder, Opened, Order, Orders, Report, StreamId, Tracker},
    wire::{Outgoing, Update, Wire},
};
use crate::{
    authority::issue,
    compile::Subscriber,
    model::{Topic, TopicId, World},
};
use leno_proto::spiffe::SpiffeId;

/// A proxy that opens a stream and then says nothing is not waited for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers `Discovery.Subscribe`.
#[derive(Clone)]
pub struct Distributor {
    bundle: watch::Receiver<Arc<Resource>>,
    world: watch::Receiver<Arc<World>>,
    compiler: Arc<Compiler>,
    interests: Arc<Interests>,
    tracker: Arc<Tracker>,
    metrics: Arc<Metrics>,
    stopping: watch::Receiver<bool>,
}

impl Distributor {
    pub fn new(
        bundle: watch::Receiver<Arc<Resource>>,
        world: watch::Receiver<Arc<World>>,
        tracker: Arc<Tracker>,
        metrics: Arc<Metrics>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { bundle, world, compiler: Arc::default(), interests: Arc::default(), tracker, metrics, stopping }
    }

    /// Tells streams of changes that touch them, until the control plane stops.
    ///
    /// # Errors
    /// If nobody reads the configuration any more.
    pub async fn tell(self) -> anyhow::Result<()> {
        let Self { mut world, mut stopping, .. } = self;
        let mut told = 0;
        loop {
            let now = Arc::clone(&world.borrow_and_update());
            let touched = now.recent_changes(told).map(|changes| self.interests.in_any(changes.flatten()));
            told = now.generation();
            self.tracker.tell(touched.as_ref(), told);
            tokio::select! {
                changed = world.changed() => changed.context("the configuration is no longer read")?,
                _ = stopping.wait_for(|s| *s) => return Ok(()),
            }
        }
    }
}

/// What [`authorize`] depends on.
fn workload_topic(identity: &SpiffeId, workload: &str) -> TopicId {
    Topic::Workload(format!("{}/{workload}", identity.namespace()).into()).id()
}

/// That the workload's Pod runs as the service account of the certificate. Returns whether there is such a Pod.
fn authorize(world: &World, identity: &SpiffeId, workload: &str) -> Result<bool, Status> {
    let namespace = identity.namespace();
    match world.service_account(namespace, workload) {
        // Not (or not yet) a Pod that is known: it may call others, and is nobody's endpoint.
        None => Ok(false),
        Some(account) if &*account == identity.service_account() => Ok(true),
        Some(account) => Err(Status::permission_denied(format!(
            "Pod {namespace}/{workload} runs as service account {account}, but the certificate is for {identity}: \
             start the proxy with a token for {account} (leno token --namespace {namespace} --service-account \
             {account}), or correct --workload or the Pod's serviceAccountName"
        ))),
    }
}

/// The path of `Discovery.Subscribe`.
pub const SUBSCRIBE: &str = "/leno.v1.Discovery/Subscribe";

type Outgoings = Pin<Box<dyn Stream<Item = Result<Outgoing, Status>> + Send>>;

impl StreamingService<SubscribeRequest> for Distributor {
    type Response = Outgoing;
    type ResponseStream = Outgoings;
    type Future = Ready<Result<Response<Outgoings>, Status>>;

    fn call(&mut self, request: Request<Streaming<SubscribeRequest>>) -> Self::Future {
        ready(self.subscribe(request))
    }
}

impl Distributor {
    /// Answers a request for [`SUBSCRIBE`].
    pub async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        tonic::server::Grpc::new(Wire)
            .apply_max_message_size_config(Some(limits::REQUEST_BYTES), Some(2 * limits::RESOURCE_BYTES))
            .streaming(self, request)
            .await
    }

    fn subscribe(&self, request: Request<Streaming<SubscribeRequest>>) -> Result<Response<Outgoings>, Status> {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::internal("the connection has no peer"));
        };
        let Some(certificate) = peer.certificate else {
            return Err(Status::unauthenticated("a client certificate is needed: ask Identity.Certify for one first"));
        };
        if SystemTime::now() >= certificate.not_after {
            return Err(Status::unauthenticated(format!(
                "the client certificate expired at {}: connect again with a new one",
                issue::display(certificate.not_after)
            )));
        }
        // At most one delta is outstanding, and one goodbye follows it: sending never waits for a slow proxy.
        let (responses, receiver) = mpsc::channel(4);
        let distributor = self.clone();
        tokio::spawn(distributor.serve(peer.address, certificate, request.into_inner(), responses));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(|response| *response))))
    }
}

/// Boxed, because a channel has room for many more than there ever are.
type Responses = mpsc::Sender<Box<Result<Outgoing, Status>>>;

impl Distributor {
    /// One stream, from `Open` to its end; and after that, what its proxy may be serving still.
    async fn serve(
        self,
        address: SocketAddr,
        certificate: PeerCertificate,
        mut requests: Streaming<SubscribeRequest>,
        responses: Responses,
    ) {
        let (mut stream, orders) = match self.admit(address, certificate, &mut requests).await {
            Ok(admitted) => admitted,
            Err(Refusal { status, duplicate }) => {
                let _ = responses.send(Box::new(Err(status))).await;
                drop((requests, responses));
                if let Some((stream, orders)) = duplicate {
                    stream.watch_lost(orders).await;
                }
                return;
            }
        };
        let proxy = stream.proxy();
        let ended = stream.run(&mut requests, &responses, orders.clone()).await;
        let farewell = matches!(ended, Ok(End::Farewell));
        stream.distributor.tracker.closed(stream.id, farewell, Instant::now());
        match ended {
            Ok(End::Farewell) => return tracing::info!(proxy, "proxy left"),
            Ok(End::Goodbye(reason)) => tracing::info!(proxy, reason, "stream ended"),
            Err(status) => {
                tracing::info!(proxy, code = ?status.code(), reason = status.message(), "proxy disconnected");
                let _ = responses.send(Box::new(Err(status))).await;
            }
        }
        drop((requests, responses));
        stream.watch_lost(orders).await;
    }

    /// Takes `Open`, and decides whether this proxy is served.
    async fn admit(
        self,
        address: SocketAddr,
        certificate: PeerCertificate,
        requests: &mut Streaming<SubscribeRequest>,
    ) -> Result<(ProxyStream, Orders), Refusal> {
        let open = match timeout(OPEN_TIMEOUT, requests.message()).await {
            Ok(Ok(Some(SubscribeRequest { request: Some(subscribe_request::Request::Open(open)) }))) => open,
            Ok(Ok(_)) => return Err(Status::invalid_argument("the first request must be Open").into()),
            Ok(Err(status)) => return Err(status.into()),
            Err(_) => return Err(Status::deadline_exceeded("no Open came").into()),
        };
        let PeerCertificate { identity, not_after } = certificate;
        let refused = |status: &Status| {
            let (workload, reason) = (bounded(&open.workload), status.message());
            tracing::warn!(%address, %identity, workload, reason, "refused a proxy");
        };
        if open.workload.is_empty() || open.workload.len() > limits::WORKLOAD_BYTES {
            let status = Status::invalid_argument(format!(
                "a workload's name has 1 to {} bytes: set --workload to the Pod's name",
                limits::WORKLOAD_BYTES
            ));
            refused(&status);
            return Err(status.into());
        }
        let has_pod = authorize(&self.world.borrow(), &identity, &open.workload).inspect_err(refused)?;
        let opened = Opened {
            identity: identity.clone(),
            workload: open.workload.clone(),
            instance: open.instance,
            address,
            version: bounded(&open.version),
            has_pod,
            certificate_not_after: not_after,
        };
        let (workload, held) = (open.workload.clone(), open.held.len());
        let session = Session::open(open).map_err(violation)?;
        let stream = |id| {
            ProxyStream {
                namespace: identity.namespace().into(),
                subscriber: Subscriber { identity: identity.clone(), workload },
                bundle_compiled: compiled_bundle(&self.bundle.borrow()),
                session,
                id,
                refresh: true,
                heard: 0,
                proved: 0,
                prove: false,
                unreported: Report::default(),
                due_since: None,
                sent_for: None,
                distributor: self.clone(),
            }
            .begin()
        };
        match self.claim(&opened).await {
            Ok((id, orders)) => {
                let stream = stream(id);
                tracing::info!(proxy = stream.proxy(), %address, version = opened.version, held, "proxy connected");
                Ok((stream, orders))
            }
            Err(holder) => {
                let status = duplicate(&opened, &holder);
                let (id, orders, news) = self.tracker.refused(opened, Instant::now());
                let stream = stream(id);
                if news {
                    tracing::warn!(proxy = stream.proxy(), %address, %identity, held_by = %holder.address,
                        "refused a proxy: another of the same name is connected");
                }
                Err(Refusal { status, duplicate: Some((stream, orders)) })
            }
        }
    }

    /// A stream under the workload's name, unless another process holds it and answers.
    async fn claim(&self, opened: &Opened) -> Result<(StreamId, Orders), Holder> {
        let mut dead = None;
        loop {
            let holder = match self.tracker.claim(opened, dead) {
                Claim::Granted(id, orders) => return Ok((id, orders)),
                Claim::Contested(holder) => holder,
            };
            let mut revision = self.tracker.revision();
            let answered = async {
                loop {
                    revision.mark_unchanged();
                    match self.tracker.answered(&holder) {
                        Some(false) if revision.changed().await.is_ok() => {}
                        answered => return answered,
                    }
                }
            };
            match timeout(limits::PROOF, answered).await {
                Ok(Some(true)) => return Err(holder),
                Ok(_) => {}
                Err(_) => dead = Some(holder.stream),
            }
        }
    }
}

/// Why a stream was not opened.
struct Refusal {
    status: Status,
    /// The proxy may be serving by what it was sent before another got its name.
    duplicate: Option<(ProxyStream, Orders)>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, duplicate: None }
    }
}

fn duplicate(opened: &Opened, holder: &Holder) -> Status {
    let Opened { identity, workload, .. } = opened;
    let name = format!("{}/{workload}", identity.namespace());
    let address = holder.address.ip();
    if holder.identity == *identity {
        Status::already_exists(format!(
            "another proxy, at {address}, is connected as {name}: start each with a --workload of its own"
        ))
    } else {
        Status::permission_denied(format!(
            "a proxy of another identity ({}), at {address}, is connected as {name}: start this one with a --workload \
             of its own",
            holder.identity
        ))
    }
}

/// How a stream ended, other than by an error.
enum End {
    /// The proxy closed it: it exits.
    Farewell,
    /// This side did.
    Goodbye(&'static str),
}

struct ProxyStream {
    distributor: Distributor,
    subscriber: Subscriber,
    namespace: Arc<str>,
    session: Session,
    id: StreamId,
    bundle_compiled: Arc<Compiled>,
    /// Requests that came.
    heard: u64,
    /// Something was subscribed to, or changed, since the last refresh.
    refresh: bool,
    /// How often it was asked for a proof.
    proved: u64,
    /// The proxy is to show that it is there.
    prove: bool,
    unreported: Report,
    /// When the first change, or subscription, came that no delta was sent for yet.
    due_since: Option<Instant>,
    /// The same of what the outstanding delta was sent for.
    sent_for: Option<Instant>,
}

impl ProxyStream {
    async fn run(
        &mut self,
        requests: &mut Streaming<SubscribeRequest>,
        responses: &Responses,
        mut orders: Orders,
    ) -> Result<End, Status> {
        let world = self.distributor.world.clone();
        let mut bundle = self.distributor.bundle.clone();
        let mut stopping = self.distributor.stopping.clone();
        let end_at = TokioInstant::now() + jittered(limits::STREAM_LIFETIME, random());
        loop {
            self.compare_with_latest(&world, Self::authorize)?;
            self.step(responses).await?;
            let goodbye = tokio::select! {
                request = requests.message() => match request? {
                    Some(SubscribeRequest { request: Some(request) }) => {
                        self.heard += 1;
                        self.take(request)?;
                        continue;
                    }
                    // A request of a later version.
                    Some(SubscribeRequest { request: None }) => continue,
                    None => return Ok(End::Farewell),
                },
                Ok(()) = bundle.changed() => {
                    self.bundle_compiled = compiled_bundle(&bundle.borrow_and_update());
                    self.due();
                    continue;
                }
                asked = orders.changed() => {
                    asked.map_err(|_| Status::aborted("another stream was opened for this workload"))?;
                    self.obey(*orders.borrow_and_update());
                    continue;
                }
                () = sleep_until(end_at) => "the stream has lived long enough: reconnect",
                _ = stopping.wait_for(|s| *s) => "the control plane is stopping",
            };
            return self.say_goodbye(goodbye, requests, responses).await;
        }
    }

    /// From now on it is told of changes.
    fn begin(self) -> Self {
        let Subscriber { identity, workload } = &self.subscriber;
        self.distributor.interests.change(self.id, &[], &[workload_topic(identity, workload)]);
        self
    }

    fn obey(&mut self, order: Order) {
        self.prove |= order.prove > self.proved;
        self.proved = order.prove;
        if order.compare > self.session.seen() {
            self.due();
        }
    }

    /// There may be something new.
    fn due(&mut self) {
        self.refresh = true;
        self.due_since.get_or_insert_with(Instant::now);
    }

    /// The Pod may run as another service account by now, and what is another's is no longer to be had.
    fn authorize(&self, world: &World) -> Result<(), Status> {
        if self.session.seen() == world.generation() {
            return Ok(());
        }
        let Subscriber { identity, workload } = &self.subscriber;
        authorize(world, identity, workload).map(|_| ()).inspect_err(
            |status| tracing::warn!(proxy = self.proxy(), %identity, reason = status.message(), "a proxy is no longer served"),
        )
    }

    /// Sends what is due, reports what happened.
    async fn step(&mut self, responses: &Responses) -> Result<(), Status> {
        let prove = std::mem::take(&mut self.prove);
        let delta = self.session.poll();
        match delta.or_else(|| prove.then(|| self.session.probe()).flatten()) {
            Some(delta) => self.send(delta, responses).await?,
            None if !self.session.has_outstanding() => self.due_since = None,
            None => {}
        }
        self.report();
        Ok(())
    }

    /// Compiles what changed, once `check` has nothing against it.
    fn compare_with_latest(
        &mut self,
        world: &watch::Receiver<Arc<World>>,
        check: impl Fn(&Self, &World) -> Result<(), Status>,
    ) -> Result<(), Status> {
        loop {
            let now = Arc::clone(&world.borrow());
            check(self, &now)?;
            self.compare(&now);
            // Of a change that came before this stream's interest was known, nobody tells it.
            if world.borrow().generation() == now.generation() {
                return Ok(());
            }
        }
    }

    fn compare(&mut self, world: &World) {
        if !std::mem::take(&mut self.refresh) && self.session.seen() == world.generation() {
            return;
        }
        let compiler = &self.distributor.compiler;
        let view = compiler.view(world, &self.bundle_compiled, &self.subscriber, &self.namespace);
        self.session.refresh(&view);
        for (before, after) in self.session.take_remade() {
            self.distributor.interests.change(self.id, topics(before.as_ref()), topics(after.as_ref()));
        }
    }

    fn report(&mut self) {
        let report = Report {
            heard: self.heard,
            answered: self.session.answered(),
            seen: self.session.seen(),
            subscriptions: self.session.subscriptions(),
            changes: self.session.take_changes(),
            ..std::mem::take(&mut self.unreported)
        };
        self.distributor.tracker.report(self.id, report);
    }

    /// The stream is gone, but the proxy may be serving by what it holds: that is compared with each change, until the proxy
    /// is back or forgotten.
    async fn watch_lost(mut self, mut orders: Orders) {
        let world = self.distributor.world.clone();
        let mut stopping = self.distributor.stopping.clone();
        self.session.lost();
        loop {
            if self.compare_with_latest(&world, |_, _| Ok(())).is_err() {
                return;
            }
            self.report();
            tokio::select! {
                // Nobody is there who could be asked for a proof.
                ordered = orders.changed() => if ordered.is_err() { return },
                _ = stopping.wait_for(|s| *s) => return,
            }
        }
    }

    /// "namespace/workload"
    fn proxy(&self) -> String {
        format!("{}/{}", self.namespace, self.subscriber.workload)
    }

    async fn send(&mut self, delta: Update, responses: &Responses) -> Result<(), Status> {
        let resources = delta.changed.len() + delta.removed.len();
        let bytes = delta.encoded_len();
        self.unreported.resources_sent += resources as u64;
        self.unreported.bytes_sent += bytes as u64;
        self.distributor.metrics.delta_sent(resources, bytes);
        self.sent_for = self.due_since.take();
        tracing::debug!(
            proxy = self.subscriber.workload,
            nonce = delta.nonce,
            generation = delta.generation,
            changed = delta.changed.len(),
            removed = delta.removed.len(),
            bytes,
            "sent"
        );
        responses.send(Box::new(Ok(Outgoing::Update(delta)))).await.map_err(|_| Status::cancelled("the proxy is gone"))
    }

    fn take(&mut self, request: subscribe_request::Request) -> Result<(), Status> {
        match request {
            subscribe_request::Request::Open(_) => Err(Status::invalid_argument("a stream is opened once")),
            subscribe_request::Request::Interest(interest) => {
                self.due();
                self.session.interest(interest).map_err(violation)
            }
            subscribe_request::Request::Verdict(verdict) => {
                for rejection in &verdict.rejected {
                    tracing::warn!(
                        proxy = self.proxy(),
                        resource = rejection.name.as_ref().map(|n| format!("{:?} {}", n.kind(), bounded(&n.key))),
                        field = bounded(&rejection.field),
                        reason = bounded(&rejection.reason),
                        "a proxy rejected a resource: its last good version stays in force there"
                    );
                }
                let waited = self.sent_for.take().map(|since| since.elapsed());
                self.distributor.metrics.verdict(verdict.rejected.len(), waited);
                self.session.verdict(verdict).map_err(violation)
            }
        }
    }

    /// Gives the proxy a moment to answer what it holds and to hang up by itself.
    async fn say_goodbye(
        &mut self,
        reason: &'static str,
        requests: &mut Streaming<SubscribeRequest>,
        responses: &Responses,
    ) -> Result<End, Status> {
        let goodbye = Outgoing::Goodbye(Goodbye { reason: reason.to_owned() });
        let _ = responses.send(Box::new(Ok(goodbye))).await;
        let hang_up = async { while let Ok(Some(_)) = requests.message().await {} };
        let _ = timeout(limits::GOODBYE_GRACE, hang_up).await;
        Ok(End::Goodbye(reason))
    }
}

impl Drop for ProxyStream {
    fn drop(&mut self) {
        let Subscriber { identity, workload } = &self.subscriber;
        let interests = &self.distributor.interests;
        interests.change(self.id, &[workload_topic(identity, workload)], &[]);
        for (before, after) in self.session.take_remade() {
            interests.change(self.id, topics(before.as_ref()), topics(after.as_ref()));
        }
        for wanted in self.session.wanted() {
            interests.change(self.id, &wanted.topics, &[]);
        }
    }
}

fn topics(compiled: Option<&Arc<Compiled>>) -> &[TopicId] {
    compiled.map(|compiled| &*compiled.topics).unwrap_or_default()
}

fn compiled_bundle(bundle: &Arc<Resource>) -> Arc<Compiled> {
    Arc::new(Compiled::new(Some(Resource::clone(bundle)), Vec::new(), 0))
}

fn violation(violation: Violation) -> Status {
    match violation {
        Violation::TooManySubscriptions | Violation::TooManyCapabilities => {
            Status::resource_exhausted(violation.to_string())
        }
        Violation::KeyTooLong | Violation::NoName | Violation::StrayVerdict(_) => {
            Status::invalid_argument(violation.to_string())
        }
    }
}

/// A proxy's text, cut to what a log line can bear.
fn bounded(text: &str) -> String {
    text.chars().take(256).collect()
}

/// `base` ± 20 %.
fn jittered(base: Duration, random: u16) -> Duration {
    base.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u16::MAX))
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    // Without randomness there is no jitter, which is no reason to refuse a proxy.
    let _ = aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    u16::from_be_bytes(bytes)
}
