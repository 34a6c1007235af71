//! The control stream, on the control runtime: connect, open (or resume), take deltas, answer them, ask for what
//! workers lack; and again, with backoff, when it breaks. While it is down, nothing that is held is touched.

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher, RandomState},
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use leno_proto::v1::{
    Delta, Explanation, Question, SubscribeRequest, SubscribeResponse, Verdict, discovery_client::DiscoveryClient,
    subscribe_request::Request, subscribe_response::Response,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use super::{
    Destination, DestinationKey, Store, Unavailable, apply, explain, session,
    session::{Denied, Session},
    store::{self, Ask},
};
use crate::{config::Config, net::connect::KnownHost, telemetry::Telemetry, tls::CredentialStore};

mod metrics;
use metrics::Metrics;

/// Connecting, TLS, and the server's first word.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings on the connection, so that a control plane that vanished is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message taken, in bytes: the control plane cuts deltas at 2 MiB and resources at 12 MiB.
const MESSAGE_BYTES: usize = 16 << 20;
/// HTTP/2 window, in bytes: of the stream and of the connection, which is the stream's alone.
const WINDOW: u32 = 1 << 20;
/// How often used destinations are looked at.
const SWEEP: Duration = Duration::from_secs(5);
/// The wait for the server to see a farewell.
const FAREWELL: Duration = Duration::from_millis(500);
/// While the control plane is away, one line this often says so (the first failure always does).
const REMINDER: Duration = Duration::from_secs(60);

/// Keeps `store` supplied until `shutdown`; then says farewell, so that the control plane does not miss us.
pub async fn run(
    config: Arc<Config>,
    store: Arc<Store>,
    credentials: Arc<CredentialStore>,
    telemetry: Arc<Telemetry>,
    asks: mpsc::Receiver<Ask>,
    shutdown: impl Future<Output = ()>,
) {
    let pinned = config.outbound.iter().map(|listener| listener.destination.as_str().into());
    let session = Session::new(pinned, Instant::now());
    let mark = config.transparent.as_ref().and_then(|transparent| transparent.mark);
    let mut client = Client {
        control_plane: KnownHost::new(&config.control_plane, mark),
        config,
        store,
        credentials,
        telemetry,
        asks,
        session,
        instance: instance(),
        waiting: HashMap::new(),
        metrics: Metrics::new(),
    };
    let mut shutdown = pin!(shutdown);
    let mut failures = 0;
    let mut reminded: Option<Instant> = None;
    // The stream that said goodbye lives until its successor does.
    let mut leaving: Option<Stream> = None;
    loop {
        let opened = tokio::select! {
            opened = client.open() => opened,
            () = &mut shutdown => return,
        };
        let failure = match opened {
            Ok(mut stream) => {
                drop(leaving.take());
                client.metrics.connected.set(1.0);
                if failures == 0 {
                    client.tell_open();
                }
                let held = client.hold(&mut stream, failures > 0, &mut shutdown).await;
                client.metrics.connected.set(0.0);
                match held {
                    End::Shutdown => return stream.farewell().await,
                    End::Goodbye(reason) => {
                        tracing::info!(reason, "the control plane ends the stream: opening another");
                        leaving = Some(stream);
                        failures = 0;
                        continue;
                    }
                    End::Broken { answered, failure } => {
                        if answered {
                            (failures, reminded) = (0, None);
                        }
                        failure
                    }
                }
            }
            Err(failure) => failure,
        };
        leaving = None;
        failures += 1;
        client.metrics.failures.increment(1);
        let wait = session::backoff(failures, chance());
        if reminded.is_none_or(|last| last.elapsed() >= REMINDER) {
            reminded = Some(Instant::now());
            let control_plane = &client.config.control_plane;
            tracing::warn!(%failure, failures, retry_in = ?wait, control_plane,
                "no policy stream: what is held stays in force");
        }
        tokio::select! {
            () = time::sleep(wait) => {}
            () = &mut shutdown => return,
        }
    }
}

/// Tells this process from another that bears the same workload's name. Not 0.
fn instance() -> u64 {
    RandomState::new().hash_one(std::process::id()) | 1
}

/// A number in 0.0..1.0 that differs between processes and calls; only spreads load.
fn chance() -> f64 {
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

type Reply = oneshot::Sender<Result<Arc<Destination>, Unavailable>>;

/// What outlives a stream.
struct Client {
    control_plane: KnownHost,
    config: Arc<Config>,
    store: Arc<Store>,
    credentials: Arc<CredentialStore>,
    telemetry: Arc<Telemetry>,
    asks: mpsc::Receiver<Ask>,
    session: Session,
    instance: u64,
    /// Workers that wait for a destination.
    waiting: HashMap<DestinationKey, Vec<Reply>>,
    metrics: Metrics,
}

/// One stream.
struct Stream {
    requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
}

/// How a stream ended.
enum End {
    Shutdown,
    Goodbye(String),
    /// `answered`: the server had said something before.
    Broken {
        answered: bool,
        failure: Failure,
    },
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot reach the control plane: {0}")]
    Unreachable(io::Error),
    #[error("TLS with the control plane: {0}")]
    Tls(#[from] crate::tls::TlsError),
    #[error("the connection to the control plane: {0}")]
    Broken(String),
    #[error("the control plane refused: {message} ({code:?})", message = .0.message(), code = .0.code())]
    Refused(tonic::Status),
    #[error("the control plane ended the stream")]
    Ended,
    #[error("no answer from the control plane within {OPEN_TIMEOUT:?}")]
    Timeout,
}

impl From<tonic::Status> for Failure {
    /// A transport error hides what happened in its sources; a status without one is the control plane's word.
    fn from(status: tonic::Status) -> Self {
        match std::error::Error::source(&status) {
            Some(source) => Self::Broken(innermost(source).to_string()),
            None => Self::Refused(status),
        }
    }
}

fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

impl Stream {
    /// Ends the requests and waits, shortly, until the server has seen it.
    async fn farewell(self) {
        let Self { requests, mut responses } = self;
        drop(requests);
        let _ = time::timeout(FAREWELL, async { while let Ok(Some(_)) = responses.message().await {} }).await;
    }

    async fn send(&self, request: Request) -> Result<(), Failure> {
        let request = SubscribeRequest { request: Some(request) };
        self.requests.send(request).await.map_err(|_| Failure::Ended)
    }
}

impl Client {
    /// A stream that has said `Open`, over a connection of its own. Waits for the first certificate.
    async fn open(&mut self) -> Result<Stream, Failure> {
        let credentials = self.credentials.ready().await;
        let connect = async {
            let tcp = self.control_plane.connect().await.map_err(Failure::Unreachable)?;
            let mut tls = Some(TokioIo::new(credentials.connect_control_plane(tcp).await?));
            let hand_over = tower::service_fn(move |_| {
                let tls = tls.take().ok_or_else(|| io::Error::other("one stream, one connection"));
                async move { tls }
            });
            // The name only fills `:authority`; who is there was proven by TLS.
            let channel = Endpoint::from_static("http://control-plane")
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .connect_with_connector(hand_over)
                .await
                .map_err(|error| Failure::Broken(innermost(&error).to_string()))?;
            let (requests, receiver) = mpsc::channel(16);
            let open = Request::Open(self.session.open(&self.store.snapshot(), &self.config.workload, self.instance));
            let _ = requests.try_send(SubscribeRequest { request: Some(open) });
            let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
            let responses = client.subscribe(ReceiverStream::new(receiver)).await?.into_inner();
            Ok(Stream { requests, responses })
        };
        time::timeout(OPEN_TIMEOUT, connect).await.unwrap_or(Err(Failure::Timeout))
    }

    fn tell_open(&self) {
        let generation = self.store.snapshot().generation;
        tracing::info!(generation, subscriptions = self.session.size(), "policy stream open");
    }

    /// Serves a stream until it ends. `again`: the one before failed, and this one is told of only once it does not: a control plane
    /// that refuses its streams opens each first.
    async fn hold(
        &mut self,
        stream: &mut Stream,
        again: bool,
        shutdown: &mut (impl Future<Output = ()> + Unpin),
    ) -> End {
        let opened = Instant::now();
        let mut answered = false;
        let mut untold = again;
        let mut sweep = time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                () = &mut *shutdown => return End::Shutdown,
                response = stream.responses.message() => match response {
                    Ok(Some(SubscribeResponse { response: Some(Response::Delta(delta)) })) => {
                        answered = true;
                        self.take(delta, stream).await
                    }
                    Ok(Some(SubscribeResponse { response: Some(Response::Goodbye(goodbye)) })) => {
                        return End::Goodbye(goodbye.reason);
                    }
                    Ok(Some(SubscribeResponse { response: Some(Response::Question(question)) })) => {
                        self.explain(question, stream);
                        Ok(())
                    }
                    // Of a later version of the protocol.
                    Ok(Some(SubscribeResponse { response: None })) => Ok(()),
                    Ok(None) => Err(Failure::Ended),
                    Err(status) => Err(status.into()),
                },
                Some(ask) = self.asks.recv() => {
                    self.ask(ask);
                    // A burst is one message.
                    while let Ok(ask) = self.asks.try_recv() {
                        self.ask(ask);
                    }
                    self.tell(stream).await
                }
                _ = sweep.tick() => {
                    self.sweep();
                    self.tell(stream).await
                }
            };
            if let Err(failure) = step {
                // Nothing to say is an answer too: what was resumed is up to date.
                return End::Broken { answered: answered || opened.elapsed() >= OPEN_TIMEOUT, failure };
            }
            if untold && (answered || opened.elapsed() >= OPEN_TIMEOUT) {
                untold = false;
                self.tell_open();
            }
        }
    }

    /// Answers an operator's question, for which a destination may have to be asked for first.
    fn explain(&self, question: Question, stream: &Stream) {
        let (store, telemetry) = (Arc::clone(&self.store), Arc::clone(&self.telemetry));
        // Weak: the stream ends with its requests, whatever is being answered.
        let (requests, config) = (stream.requests.downgrade(), Arc::clone(&self.config));
        tokio::spawn(async move {
            let mut answer = Explanation { id: question.id, ..Explanation::default() };
            match question.find {
                Some(wanted) => {
                    (answer.requests, answer.requests_left_out) = telemetry.kept.find(&wanted, Instant::now());
                }
                None => {
                    let request = question.request.unwrap_or_default();
                    match explain::explain(&store, &config.workload, &config.outbound, &request).await {
                        Ok(told) => (answer.decisions, answer.generation) = (told.decisions, told.generation),
                        Err(error) => answer.error = error,
                    }
                }
            }
            let answer = Request::Explanation(answer);
            // If the stream is gone, so is who asked.
            if let Some(requests) = requests.upgrade() {
                let _ = requests.send(SubscribeRequest { request: Some(answer) }).await;
            }
        });
    }

    /// Puts a delta in force and answers it.
    async fn take(&mut self, delta: Delta, stream: &Stream) -> Result<(), Failure> {
        let (nonce, removed) = (delta.nonce, delta.removed.clone());
        let credentials = &self.credentials;
        let mut trust = |domain: &str, anchors: &[Vec<u8>]| {
            credentials.set_anchors(domain, anchors).map_err(|error| error.to_string())
        };
        let session = &self.session;
        let change = apply::apply(&self.store.snapshot(), delta, |name| session.wants(name), &mut trust);
        let rejected = change.commit(&self.store);
        for rejection in &rejected {
            let (name, field, reason) = (rejection.name.as_ref(), &rejection.field, &rejection.reason);
            let (kind, key) = name.map_or(("", ""), |name| (name.kind().as_str_name(), &name.key));
            tracing::warn!(
                kind,
                key,
                field,
                reason,
                version = rejection.version,
                "a resource was refused; its last good version stays in force"
            );
        }
        let snapshot = self.store.snapshot();
        if let Some(settings) = &snapshot.settings {
            self.telemetry.kept.follow(&settings.explain);
        }
        let gone = self.session.follow(&snapshot, &removed, &rejected);
        self.metrics.took(rejected.len());
        self.metrics.holds(&snapshot);
        // Subscriptions first: the server need not wait another turn for them.
        self.tell(stream).await?;
        stream.send(Request::Verdict(Verdict { nonce, rejected })).await?;
        self.answer(&gone);
        Ok(())
    }

    /// Answers the workers that wait for what is now known.
    fn answer(&mut self, gone: &[DestinationKey]) {
        let unavailable = |key: &DestinationKey| Unavailable(key.to_string());
        for key in gone {
            for reply in self.waiting.remove(key).unwrap_or_default() {
                let _ = reply.send(Err(unavailable(key)));
            }
        }
        let snapshot = self.store.snapshot();
        let Self { waiting, session, .. } = self;
        waiting.retain(|key, replies| {
            let destination = match snapshot.destinations.get(key) {
                Some(held) => held.destination.clone(),
                None if snapshot.is_outside(key) => {
                    session.forget(key);
                    store::outside(key)
                }
                None => return true,
            };
            for reply in replies.drain(..) {
                let _ = reply.send(Ok(destination.clone()));
            }
            false
        });
    }

    /// A worker lacks a destination.
    fn ask(&mut self, Ask { key, reply }: Ask) {
        if reply.is_closed() {
            return;
        }
        let snapshot = self.store.snapshot();
        if let Some(held) = snapshot.destinations.get(&key) {
            let _ = reply.send(Ok(held.destination.clone()));
        } else if snapshot.is_outside(&key) {
            let _ = reply.send(Ok(store::outside(&key)));
        } else {
            match self.session.ask(&key, Instant::now()) {
                Ok(()) => self.waiting.entry(key).or_default().push(reply),
                Err(denied) => {
                    if denied == Denied::Full {
                        self.metrics.full.increment(1);
                    }
                    let _ = reply.send(Err(Unavailable(key.to_string())));
                }
            }
        }
    }

    /// Tells the server what is newly wanted and what no longer is.
    async fn tell(&mut self, stream: &Stream) -> Result<(), Failure> {
        match self.session.interest() {
            Some(interest) => stream.send(Request::Interest(interest)).await,
            None => Ok(()),
        }
    }

    /// Lets go what is idle, and those who gave up waiting.
    fn sweep(&mut self) {
        self.telemetry.kept.sweep(Instant::now());
        let snapshot = self.store.snapshot();
        let Self { waiting, session, .. } = self;
        waiting.retain(|key, replies| {
            replies.retain(|reply| !reply.is_closed());
            if replies.is_empty() && !snapshot.destinations.contains_key(key) {
                session.forget(key);
            }
            !replies.is_empty()
        });
        let idle = self.session.idle(&snapshot, Instant::now());
        if idle.is_empty() {
            return;
        }
        tracing::debug!(count = idle.len(), "destinations let go");
        for key in &idle {
            self.session.forget(key);
        }
        self.store.swap(snapshot.without(&idle));
        let snapshot = self.store.snapshot();
        self.session.follow(&snapshot, &[], &[]);
        self.metrics.holds(&snapshot);
    }
}

#[cfg(test)]
mod tests;
