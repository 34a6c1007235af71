//! One stream: what its proxy says is taken in, what touches it is compiled, what it must be sent goes out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use leno_proto::{
    spiffe::SpiffeId,
    v1::{Goodbye, Resource, SubscribeRequest, subscribe_request},
};
use rustls::crypto::aws_lc_rs;
use tokio::{
    sync::watch,
    time::{Instant as TokioInstant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{Distributor, Responses, authorize};
use crate::{
    authority::bound_pod::BoundPod,
    compile::Subscriber,
    model::{Topic, TopicId, World},
    serve::{
        compiled::Compiled,
        limits,
        session::{Session, Violation},
        tracker::{Order, Orders, Report, StreamId},
        wire::{Outgoing, Update},
    },
};

/// How a stream ended, other than by an error.
pub(super) enum End {
    /// The proxy closed it: it exits.
    Farewell,
    /// This side did.
    Goodbye(&'static str),
}

/// One proxy, for as long as it may be serving.
pub(super) struct ProxyStream {
    pub(super) distributor: Distributor,
    subscriber: Subscriber,
    /// The Pod that its certificate is bound to.
    bound: Option<BoundPod>,
    namespace: Arc<str>,
    session: Session,
    pub(super) id: StreamId,
    bundle_compiled: Arc<Compiled>,
    /// Requests that came.
    heard: u64,
    /// Something was subscribed to, or changed, since the last refresh.
    refresh: bool,
    /// How often it was asked for a proof.
    proved: u64,
    /// The proxy is to show that it is there.
    prove: bool,
    /// How often there were questions for it.
    asked: u64,
    unreported: Report,
    /// When the first change, or subscription, came that no delta was sent for yet.
    due_since: Option<Instant>,
    /// The same of what the outstanding delta was sent for.
    sent_for: Option<Instant>,
}

impl ProxyStream {
    /// From now on it is told of changes.
    pub(super) fn new(
        distributor: Distributor,
        subscriber: Subscriber,
        bound: Option<BoundPod>,
        session: Session,
        id: StreamId,
    ) -> Self {
        let Subscriber { identity, workload } = &subscriber;
        distributor.interests.change(id, &[], &[workload_topic(identity, workload)]);
        let bundle_compiled = compiled_bundle(&distributor.bundle.borrow());
        Self {
            namespace: identity.namespace().into(),
            bundle_compiled,
            subscriber,
            bound,
            session,
            id,
            refresh: true,
            heard: 0,
            proved: 0,
            prove: false,
            asked: 0,
            unreported: Report::default(),
            due_since: None,
            sent_for: None,
            distributor,
        }
    }

    pub(super) async fn run(
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
                    let order = *orders.borrow_and_update();
                    self.obey(order);
                    self.ask(order, responses);
                    continue;
                }
                () = sleep_until(end_at) => "the stream has lived long enough: reconnect",
                _ = stopping.wait_for(|s| *s) => "the control plane is stopping",
            };
            return self.say_goodbye(goodbye, requests, responses).await;
        }
    }

    fn obey(&mut self, order: Order) {
        self.prove |= order.prove > self.proved;
        self.proved = order.prove;
        if order.compare > self.session.seen() {
            self.due();
        }
    }

    /// Passes questions on. A proxy that is so slow that there is no room for them does not get them.
    fn ask(&mut self, order: Order, responses: &Responses) {
        if order.ask > self.asked {
            self.asked = order.ask;
            for question in self.distributor.tracker.questions.take(&self.proxy()) {
                let _ = responses.try_send(Box::new(Ok(Outgoing::Question(question))));
            }
        }
    }

    /// There may be something new.
    fn due(&mut self) {
        self.refresh = true;
        self.due_since.get_or_insert_with(Instant::now);
    }

    /// The Pod may be another, or run as another service account, by now, and what is another's is no longer to be had.
    fn authorize(&self, world: &World) -> Result<(), Status> {
        if self.session.seen() == world.generation() {
            return Ok(());
        }
        let Subscriber { identity, workload } = &self.subscriber;
        authorize(world, identity, self.bound.as_ref(), workload).map(|_| ()).inspect_err(
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
    pub(super) async fn watch_lost(mut self, mut orders: Orders) {
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
    pub(super) fn proxy(&self) -> String {
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
            subscribe_request::Request::Explanation(explanation) => {
                self.distributor.tracker.questions.answer(&self.proxy(), explanation);
                Ok(())
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

/// What [`authorize`] depends on.
fn workload_topic(identity: &SpiffeId, workload: &str) -> TopicId {
    Topic::Workload(format!("{}/{workload}", identity.namespace()).into()).id()
}

fn compiled_bundle(bundle: &Arc<Resource>) -> Arc<Compiled> {
    Arc::new(Compiled::new(Some(Resource::clone(bundle)), Vec::new(), 0))
}

pub(super) fn violation(violation: Violation) -> Status {
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
pub(super) fn bounded(text: &str) -> String {
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
