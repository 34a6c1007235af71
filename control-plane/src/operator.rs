//! Answers operators over a Unix socket in the state folder, whose mode is the authorization; in Kubernetes over TCP on the Pod's
//! loopback, which operators reach by a port-forward through the API server: who may create `pods/portforward` there may ask anything.

use std::{
    fs,
    future::ready,
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use leno_proto::v1::{
    self, CheckAuthorityRequest, CheckAuthorityResponse, ExplainRequest, Explanation, FindRequestsRequest,
    FindRequestsResponse, IssueTokenRequest, IssueTokenResponse, ListObjectsRequest, ListObjectsResponse,
    ListProxiesRequest, ListProxiesResponse, ObjectRef, ObjectStatus, Question, RequestToExplain, WatchObjectRequest,
    operator_server::{Operator, OperatorServer},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream},
};
use tonic::{Request, Response, Status};

use crate::{
    authority::{Authority, issue, token},
    model::{DocumentError, Kind, ObjectInfo, ObjectKey, World},
    serve::{limits, questions::NoAnswer, tracker::Tracker},
    sources::Prompt,
};

mod find;
mod servers;

/// How long an answer waits for every connected proxy's subscriptions to be compiled against the newest generation.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The socket of the control plane with that state folder.
pub fn socket(state: &Path) -> PathBuf {
    state.join("leno.sock")
}

/// Between looks for the newest version of an object that somebody waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The port of an operator's loopback in Kubernetes.
pub const PORT: u16 = 4192;

/// Where operators are answered.
pub enum Listener {
    /// Of that state folder.
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    /// At `address`, or at the socket of `state`.
    ///
    /// # Errors
    /// If it cannot be bound.
    pub async fn bind(address: Option<SocketAddr>, state: &Path) -> anyhow::Result<Self> {
        match address {
            None => Ok(Self::Unix(bind(state)?, state.to_owned())),
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Ok(Self::Tcp(bound.with_context(|| format!("cannot listen on {address} for operators"))?))
            }
        }
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(_, state) => socket(state).display().fmt(f),
            Self::Tcp(tcp) => match tcp.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("tcp"),
            },
        }
    }
}

/// Binds the socket, for the folder's owner only. A socket left over from an earlier run is replaced: the caller holds
/// the folder's lock, so nobody listens on it.
///
/// # Errors
/// If the path is something else, or cannot be bound.
fn bind(state: &Path) -> anyhow::Result<UnixListener> {
    let path = socket(state);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(&path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Ok(_) => bail!("{} is in the way: it is not a socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    // Bound under a private name and renamed once its mode is set, so that it is never open to others.
    let private = state.join(".leno.sock");
    let _ = fs::remove_file(&private);
    let listener = UnixListener::bind(&private)
        .with_context(|| format!("cannot listen on {} (a socket's path has 107 bytes at most)", private.display()))?;
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&private, &path))
        .with_context(|| format!("cannot set up {}", path.display()))?;
    Ok(listener)
}

/// Removes the socket of a control plane that ended, whoever still holds a stream of it.
pub fn unbind(state: &Path) {
    let _ = fs::remove_file(socket(state));
}

/// Serves until `stopping`.
///
/// # Errors
/// If the socket fails.
pub async fn serve(listener: Listener, answers: Answers, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
    let server = tonic::transport::Server::builder().max_concurrent_streams(64);
    let service = OperatorServer::new(answers).max_encoding_message_size(usize::MAX);
    let stop = async move {
        let _ = stopping.wait_for(|s| *s).await;
    };
    let served = match listener {
        Listener::Unix(unix, _) => {
            server.serve_with_incoming_shutdown(service, UnixListenerStream::new(unix), stop).await
        }
        Listener::Tcp(tcp) => server.serve_with_incoming_shutdown(service, TcpListenerStream::new(tcp), stop).await,
    };
    served.context("the operator's socket failed")
}

/// Answers `Operator`.
#[derive(Clone)]
pub struct Answers {
    authority: Arc<Authority>,
    world: watch::Receiver<Arc<World>>,
    prompt: Prompt,
    tracker: Arc<Tracker>,
}

impl Answers {
    pub fn new(
        authority: Arc<Authority>,
        world: watch::Receiver<Arc<World>>,
        prompt: Prompt,
        tracker: Arc<Tracker>,
    ) -> Self {
        Self { authority, world, prompt, tracker }
    }

    /// What was written before the question is part of the answer; whether that is sure.
    async fn up_to_date(&self, object: Option<&ObjectKey>) -> (Arc<World>, bool) {
        let looked = self.looked(object).await;
        (self.now(), looked)
    }

    /// Whether what was written before is read by now.
    async fn looked(&self, object: Option<&ObjectKey>) -> bool {
        timeout(SETTLE_TIMEOUT, self.prompt.look(object)).await.unwrap_or(false)
    }

    fn now(&self) -> Arc<World> {
        Arc::clone(&self.world.borrow())
    }

    fn status(&self, world: &World, info: &ObjectInfo, settled: bool) -> ObjectStatus {
        let object = object_ref(&info.key);
        let progress = self.tracker.progress(&object, Some(info.generation), &info.uid);
        ObjectStatus {
            generation: info.generation,
            source: info.source.clone(),
            conditions: info.conditions.iter().map(condition).collect(),
            subscribed: progress.subscribed,
            programmed: progress.programmed,
            laggards: progress.laggards,
            absent: false,
            held_over: info.held_over,
            errors: errors_of(world, &object, info.held_over.then(|| file_of(&info.source))),
            settled,
            object: Some(object),
        }
    }

    fn status_of(&self, world: &World, object: &ObjectRef, settled: bool) -> ObjectStatus {
        if let Some(info) = object_key(object).and_then(|key| world.info(&key)) {
            return self.status(world, &info, settled);
        }
        let progress = self.tracker.progress(object, None, "");
        ObjectStatus {
            object: Some(object.clone()),
            subscribed: progress.subscribed,
            programmed: progress.programmed,
            laggards: progress.laggards,
            absent: true,
            errors: errors_of(world, object, Some(None)),
            settled,
            ..ObjectStatus::default()
        }
    }

    /// Sends the object's status, and again whenever it changes, until the caller leaves.
    async fn watch(self, object: ObjectRef, statuses: mpsc::Sender<Result<ObjectStatus, Status>>) {
        let mut world = self.world.clone();
        let mut revision = self.tracker.revision();
        let mut last: Option<ObjectStatus> = None;
        loop {
            world.mark_unchanged();
            revision.mark_unchanged();
            let now = self.now();
            let look = |settled| ready(self.status_of(&now, &object, settled));
            let status = self.tracker.look(now.generation(), SETTLE_TIMEOUT, look).await;
            if last.as_ref() != Some(&status) {
                if statuses.send(Ok(status.clone())).await.is_err() {
                    return;
                }
                last = Some(status);
            }
            tokio::select! {
                changed = world.changed() => if changed.is_err() { return },
                changed = revision.changed() => if changed.is_err() { return },
                () = statuses.closed() => return,
            }
        }
    }
}

#[tonic::async_trait]
impl Operator for Answers {
    type WatchObjectStream = Pin<Box<dyn Stream<Item = Result<ObjectStatus, Status>> + Send>>;

    async fn list_objects(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        let wanted = request.into_inner();
        let named =
            ObjectRef { kind: wanted.kind.clone(), namespace: wanted.namespace.clone(), name: wanted.name.clone() };
        let (world, looked) = self.up_to_date(object_key(&named).filter(|key| !key.name.is_empty()).as_ref()).await;
        let matches = |info: &ObjectInfo| {
            (wanted.kind.is_empty() || wanted.kind == info.key.kind.as_str())
                && (wanted.namespace.is_empty() || wanted.namespace == *info.key.namespace)
                && (wanted.name.is_empty() || wanted.name == *info.key.name)
        };
        let look = |settled| {
            let objects = world.objects();
            let wanted = objects.iter().filter(|info| matches(info));
            ready(wanted.map(|info| self.status(&world, info, settled && looked)).collect())
        };
        Ok(Response::new(ListObjectsResponse {
            objects: self.tracker.look(world.generation(), SETTLE_TIMEOUT, look).await,
            generation: world.generation(),
            errors: world.errors().iter().map(document_error).collect(),
        }))
    }

    async fn list_proxies(&self, _: Request<ListProxiesRequest>) -> Result<Response<ListProxiesResponse>, Status> {
        let generation = self.up_to_date(None).await.0.generation();
        self.tracker.settles(generation, SETTLE_TIMEOUT).await;
        Ok(Response::new(ListProxiesResponse { proxies: self.tracker.proxies(), generation }))
    }

    async fn watch_object(
        &self,
        request: Request<WatchObjectRequest>,
    ) -> Result<Response<Self::WatchObjectStream>, Status> {
        let Some(object) = request.into_inner().object else {
            return Err(Status::invalid_argument("which object?"));
        };
        let (sender, receiver) = mpsc::channel(1);
        let answers = self.clone();
        tokio::spawn(async move {
            let key = object_key(&object);
            // Until it is sure that this is about the newest version, nothing is settled.
            while !answers.looked(key.as_ref()).await {
                let status = answers.status_of(&answers.now(), &object, false);
                if sender.send(Ok(status)).await.is_err() {
                    return;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            answers.watch(object, sender).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        let ExplainRequest { proxy, request } = request.into_inner();
        let request = request.ok_or_else(|| Status::invalid_argument("which request?"))?;
        let asked = ask(&self.tracker, &proxy, request.clone(), limits::ANSWER).await;
        let mut explanation = asked.map_err(|why| match why {
            NoAnswer::TooManyQuestions => Status::resource_exhausted("too many questions at once: ask again"),
            NoAnswer::NotConnected => not_connected(&proxy),
            NoAnswer::InTime(limit) => Status::deadline_exceeded(format!(
                "proxy {proxy} did not answer within {limit:?}: it is busy, or older than this question"
            )),
        })?;
        explanation.servers = servers::ask(&self.tracker, &proxy, &request, &explanation.decisions).await;
        Ok(Response::new(explanation))
    }

    async fn find_requests(
        &self,
        request: Request<FindRequestsRequest>,
    ) -> Result<Response<FindRequestsResponse>, Status> {
        find::find(&self.tracker, request.into_inner()).await.map(Response::new)
    }

    async fn issue_token(&self, request: Request<IssueTokenRequest>) -> Result<Response<IssueTokenResponse>, Status> {
        let request = request.into_inner();
        let lifetime = match request.lifetime_s {
            0 => token::DEFAULT_LIFETIME,
            seconds => Duration::from_secs(seconds),
        };
        let tokens = self.authority.tokens().ok_or_else(|| {
            Status::failed_precondition(
                "there are no join tokens here: in Kubernetes a workload proves itself by its Pod's service-account token",
            )
        })?;
        let (token, expires_at) = tokens
            .issue(&request.namespace, &request.service_account, lifetime, SystemTime::now())
            .map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        tracing::info!(
            namespace = request.namespace,
            service_account = request.service_account,
            expires_at = %issue::display(expires_at),
            "issued a join token"
        );
        Ok(Response::new(IssueTokenResponse { token, expires_at: issue::unix_i64(expires_at) }))
    }

    async fn check_authority(
        &self,
        _: Request<CheckAuthorityRequest>,
    ) -> Result<Response<CheckAuthorityResponse>, Status> {
        let material = self.authority.material();
        Ok(Response::new(CheckAuthorityResponse {
            root_not_after: issue::unix_i64(material.anchors_not_after),
            issuer_not_after: issue::unix_i64(material.issuer_not_after),
            root_key_present: material.root_key.is_some(),
            certificate_lifetime_s: self.authority.certificate_lifetime().as_secs(),
        }))
    }
}

async fn ask(
    tracker: &Tracker,
    proxy: &str,
    request: RequestToExplain,
    within: Duration,
) -> Result<Explanation, NoAnswer> {
    let question = Question { request: Some(request), ..Question::default() };
    tracker.questions.ask(proxy, question, within, |proxy| tracker.tell_of_questions(proxy)).await
}

fn not_connected(proxy: &str) -> Status {
    Status::not_found(format!("no proxy {proxy} is connected here: `leno get proxies` shows those that are"))
}

fn object_ref(key: &ObjectKey) -> ObjectRef {
    ObjectRef { kind: key.kind.as_str().to_owned(), namespace: key.namespace.to_string(), name: key.name.to_string() }
}

/// None: there is no such kind.
fn object_key(object: &ObjectRef) -> Option<ObjectKey> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == object.kind)?;
    Some(ObjectKey { kind, namespace: object.namespace.as_str().into(), name: object.name.as_str().into() })
}

/// "shop.yaml" of "shop.yaml#2"
fn file_of(source: &str) -> Option<&str> {
    source.rsplit_once('#').map(|(file, _)| file)
}

/// What is wrong with the object's own document, and with documents of which it cannot be told whose they are: none if the
/// object is well, those of its file if it is held over (`Some(Some(file))`), all if it is absent (`Some(None)`).
fn errors_of(world: &World, object: &ObjectRef, unnamed: Option<Option<&str>>) -> Vec<v1::DocumentError> {
    let of_it = |error: &&DocumentError| match (&error.object, unnamed) {
        (Some(key), _) => object_ref(key) == *object,
        // Whether there is a newer version of it nobody knows.
        (None, _) if DocumentError::is_of_all(&error.file) => true,
        (None, Some(Some(file))) => file == &*error.file,
        (None, Some(None)) => true,
        (None, None) => false,
    };
    world.errors().iter().filter(of_it).map(document_error).collect()
}

fn condition(condition: &crate::model::Condition) -> v1::Condition {
    v1::Condition {
        r#type: condition.kind.to_owned(),
        status: condition.status,
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        parent: condition.parent.clone().unwrap_or_default(),
    }
}

/// As the operator is shown it.
pub(crate) fn document_error(error: &DocumentError) -> v1::DocumentError {
    v1::DocumentError {
        file: error.file.to_string(),
        document: error.document,
        object: error.object.as_ref().map(ToString::to_string).unwrap_or_default(),
        field: error.field.clone(),
        reason: error.reason.clone(),
    }
}
