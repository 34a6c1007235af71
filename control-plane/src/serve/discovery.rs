//! `Discovery.Subscribe`: one task per proxy, which owns its [`Session`].

use std::{
    future::{Ready, ready},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use leno_proto::{
    spiffe::SpiffeId,
    v1::{Resource, SubscribeRequest, subscribe_request},
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, body::Body, codegen::http, server::StreamingService};

use self::stream::{End, ProxyStream, bounded, violation};
use super::{
    compiled::Compiler,
    interests::Interests,
    limits,
    listener::{Peer, PeerCertificate},
    metrics::Metrics,
    session::Session,
    tracker::{Claim, Holder, Opened, Orders, StreamId, Tracker},
    wire::{Outgoing, Wire},
};
use crate::{
    authority::{bound_pod::BoundPod, issue},
    compile::Subscriber,
    model::World,
};

mod stream;

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

/// That a certificate that is bound to a Pod is used by no other.
fn check_pod(world: &World, namespace: &str, bound: &BoundPod, workload: &str) -> Result<(), Status> {
    let BoundPod { name, uid } = bound;
    if workload != name {
        return Err(Status::permission_denied(format!(
            "the certificate is for the Pod {namespace}/{name} alone, but the proxy calls itself {workload:?}: set --workload \
             (LENO_WORKLOAD) to the name of its own Pod (fieldRef metadata.name)"
        )));
    }
    match world.pod_uid(namespace, name) {
        Some(known) if *known != **uid => Err(Status::permission_denied(format!(
            "the certificate is for the Pod {namespace}/{name} of uid {uid}, but the Pod of that name has uid {known}: it was deleted \
             and made again. The new one is let in as soon as the control plane has heard of it; delete the old one if it still runs"
        ))),
        // None: not (or not yet, or no longer) known.
        Some(_) | None => Ok(()),
    }
}

/// That the workload is the Pod of the certificate, if that is bound to one, and that its Pod runs as the service account of the
/// certificate. Returns whether there is such a Pod.
fn authorize(world: &World, identity: &SpiffeId, bound: Option<&BoundPod>, workload: &str) -> Result<bool, Status> {
    let namespace = identity.namespace();
    if let Some(bound) = bound {
        check_pod(world, namespace, bound, workload)?;
    }
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
        // At most one delta is outstanding, one goodbye follows it, and there are no more questions at a time than that: sending
        // never waits for a slow proxy.
        let (responses, receiver) = mpsc::channel(4 + limits::QUESTIONS);
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
        let PeerCertificate { identity, not_after, pod } = certificate;
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
        let has_pod = authorize(&self.world.borrow(), &identity, pod.as_ref(), &open.workload).inspect_err(refused)?;
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
        let subscriber = Subscriber { identity: identity.clone(), workload };
        let stream = |id| ProxyStream::new(self.clone(), subscriber, pod, session, id);
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
