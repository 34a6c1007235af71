//! The way to the control plane, from the asking side: the socket in a state folder, or, in a cluster, a port-forward through the API
//! server to each of its Pods.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{
    core::v1::Pod,
    discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice},
};
use kube::{
    Api,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use leno_proto::{CONTROL_PLANE_NAMESPACE, v1::operator_client::OperatorClient};
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::replicas::Replicas;
use crate::{kubernetes, operator};

pub(super) type Client = OperatorClient<Channel>;

/// The Service of the control plane, in [`CONTROL_PLANE_NAMESPACE`].
const SERVICE: &str = "leno";
/// One call of the API server.
const CALL: Duration = Duration::from_secs(10);

/// Until a control plane begins to answer, which waits itself for proxies that are being told.
const ANSWER: Duration = Duration::from_secs(30);

/// Status of an API server that has too much to do.
const TOO_MANY_REQUESTS: u16 = 429;

/// No control plane answers now, and one may soon: it is being rolled out, or started anew.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Away(pub(super) String);

/// Whether the same question may have an answer soon.
pub(super) fn is_away(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Away>().is_some()
}

/// Which control plane is asked.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct State {
    /// State folder of a control plane that reads a folder [default: ask the control plane of the cluster]
    #[arg(long = "state", value_name = "DIR", env = "LENO_STATE")]
    pub(super) folder: Option<PathBuf>,
    #[command(flatten)]
    pub(super) cluster: Cluster,
}

/// Which cluster is asked, as kubectl is told.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Cluster {
    /// Context of the kubeconfig to use [default: its current one]
    #[arg(long, value_name = "NAME", env = "LENO_CONTEXT")]
    context: Option<String>,
    /// Kubeconfig file [default: that of KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE", env = "LENO_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

impl State {
    /// The namespace meant by who names none: that of the kubeconfig's context, or "default".
    pub(super) fn namespace(&self, said: Option<&str>) -> String {
        let of_context = || if self.folder.is_none() { self.cluster.namespace() } else { None };
        said.map(str::to_owned).or_else(of_context).unwrap_or_else(|| "default".to_owned())
    }

    /// # Errors
    /// If no control plane can be asked; says what to do.
    pub(super) async fn connect(&self) -> anyhow::Result<Replicas> {
        match &self.folder {
            Some(folder) => Ok(Replicas::one(connect(folder).await?)),
            None => self.cluster.connect().await,
        }
    }
}

impl Cluster {
    fn read(&self) -> anyhow::Result<Kubeconfig> {
        match &self.kubeconfig {
            Some(file) => {
                Kubeconfig::read_from(file).with_context(|| format!("cannot read the kubeconfig {}", file.display()))
            }
            None => Kubeconfig::read().context(
                "there is no kubeconfig that can be read: set KUBECONFIG or --kubeconfig to ask a cluster, or --state DIR to ask \
                 a control plane that reads a folder",
            ),
        }
    }

    fn namespace(&self) -> Option<String> {
        let config = self.read().ok()?;
        let name = self.context.as_ref().or(config.current_context.as_ref())?;
        let context = config.contexts.iter().find(|context| context.name == *name)?;
        context.context.as_ref()?.namespace.clone()
    }

    /// A client of the API server; in a Pod without a kubeconfig, of the cluster it runs in.
    ///
    /// # Errors
    /// If there is no kubeconfig, or it cannot be used.
    pub(super) async fn client(&self) -> anyhow::Result<kube::Client> {
        if self.context.is_none() && self.kubeconfig.is_none() && Kubeconfig::read().is_err() && in_pod() {
            return kubernetes::client().await;
        }
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = kube::Config::from_custom_kubeconfig(self.read()?, &options).await;
        let mut config = config.context("the kubeconfig cannot be used")?;
        config.connect_timeout = Some(CALL);
        config.read_timeout = None;
        config.write_timeout = None;
        kube::Client::try_from(config).context("the kubeconfig cannot be used")
    }

    /// To every replica that serves: each knows the proxies that are connected to it.
    pub(super) async fn connect(&self) -> anyhow::Result<Replicas> {
        let client = self.client().await?;
        let pods = serving_pods(&client).await?;
        if !pods.iter().any(|pod| pod.ready) {
            bail!(Away(format!(
                "no control plane is ready in namespace {CONTROL_PLANE_NAMESPACE}: see kubectl -n {CONTROL_PLANE_NAMESPACE} get pods"
            )));
        }
        let mut replicas: Option<Replicas> = None;
        for pod in &pods {
            let channel = match forward(client.clone(), pod.name.clone()).await {
                Ok(channel) => client_of(channel),
                // It may have ended by now.
                Err(_) if !pod.ready => continue,
                Err(error) => return Err(unreachable(&pod.name, &error)),
            };
            replicas = Some(match replicas {
                None => Replicas::one(channel),
                Some(replicas) => replicas.and(channel),
            });
        }
        Ok(replicas.context("no control plane answers")?.of_cluster(client, pods))
    }
}

fn unreachable(pod: &str, error: &anyhow::Error) -> anyhow::Error {
    let what = format!("cannot reach the control plane's Pod {CONTROL_PLANE_NAMESPACE}/{pod}: {error:#}");
    // A forwarded port's refusal comes wrapped in what cannot be looked into.
    match what.contains("Forbidden") {
        true => anyhow::anyhow!(
            "{what}; you need the right to create pods/portforward there (kubectl auth can-i create pods/portforward -n \
             {CONTROL_PLANE_NAMESPACE})"
        ),
        false => Away(what).into(),
    }
}

/// Whether Kubernetes gave this process a service account.
fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// A Pod of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Replica {
    name: String,
    /// False: it is ending, and still has proxies.
    ready: bool,
}

/// The control plane's Pods that serve, by its Service.
pub(super) async fn serving_pods(client: &kube::Client) -> anyhow::Result<Vec<Replica>> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), CONTROL_PLANE_NAMESPACE);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={SERVICE}"));
    let what =
        || format!("cannot ask the API server for the control plane (EndpointSlices in {CONTROL_PLANE_NAMESPACE})");
    let slices = match timeout(CALL, slices.list(&of_service)).await {
        Err(_) => bail!(Away("the API server does not answer".to_owned())),
        // What it refuses, it will refuse again, unless it has too much to do.
        Ok(Err(error)) if kubernetes::code(&error).is_some_and(|code| code < 500 && code != TOO_MANY_REQUESTS) => {
            return Err(error).with_context(what);
        }
        Ok(Err(error)) => bail!(Away(format!("{}: {error}", what()))),
        Ok(Ok(slices)) => slices,
    };
    // A Service has one, also while none of its Pods is there.
    if slices.items.is_empty() {
        bail!(
            "no control plane is installed in namespace {CONTROL_PLANE_NAMESPACE}: helm install leno charts/leno --namespace \
             {CONTROL_PLANE_NAMESPACE}"
        );
    }
    let replica = |endpoint: SliceEndpoint| {
        let conditions = endpoint.conditions.unwrap_or_default();
        let ready = conditions.ready != Some(false);
        let serves = conditions.serving.unwrap_or(ready);
        Some(Replica { name: endpoint.target_ref?.name?, ready }).filter(|_| serves)
    };
    let endpoints = slices.items.into_iter().filter_map(|slice| slice.endpoints).flatten();
    let mut pods: Vec<Replica> = endpoints.filter_map(replica).collect();
    pods.sort();
    pods.dedup_by(|a, b| a.name == b.name);
    Ok(pods)
}

/// To the operator's port on the Pod's own loopback.
async fn forward(client: kube::Client, pod: String) -> anyhow::Result<Channel> {
    let pods: Api<Pod> = Api::namespaced(client, CONTROL_PLANE_NAMESPACE);
    let connector = service_fn(move |_: Uri| {
        let (pods, pod) = (pods.clone(), pod.clone());
        async move {
            let forwarded = timeout(CALL, pods.portforward(&pod, &[operator::PORT])).await?;
            let stream = forwarded.map_err(io::Error::other)?.take_stream(operator::PORT);
            stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the API server forwarded no port"))
        }
    });
    // The name is never resolved: the connector knows the way.
    Ok(Endpoint::from_static("http://leno").timeout(ANSWER).connect_with_connector(connector).await?)
}

fn client_of(channel: Channel) -> Client {
    OperatorClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// Whether a control plane answers there: None if there is none.
pub(super) async fn find(state: &Path) -> anyhow::Result<Option<Client>> {
    find_within(state, ANSWER).await
}

/// `answer`: how long it may take to begin to answer.
async fn find_within(state: &Path, answer: Duration) -> anyhow::Result<Option<Client>> {
    let path = operator::socket(state);
    let first = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open the control plane's socket {}", path.display()));
        }
    };
    let mut first = Some(first);
    let connector = service_fn(move |_: Uri| {
        let first = first.take();
        let path = path.clone();
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(&path).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://leno").timeout(answer).connect_with_connector(connector).await;
    let channel = channel.map_err(|error| Away(format!("the control plane of {} ended: {error}", state.display())))?;
    Ok(Some(client_of(channel)))
}

/// As [`find`], if there must be one.
async fn connect(state: &Path) -> anyhow::Result<Client> {
    match find(state).await? {
        Some(client) => Ok(client),
        None => {
            let what = format!(
                "no control plane answers at {}: is `leno control-plane --state {}` running?",
                operator::socket(state).display(),
                state.display()
            );
            // Where none ever ran, it is the wrong folder.
            Err(if state.is_dir() { Away(what).into() } else { anyhow::Error::msg(what) })
        }
    }
}

/// As tonic says it, of [`ANSWER`].
const EXPIRED: &str = "Timeout expired";

/// What the control plane answered instead of an answer.
pub(super) fn said(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => anyhow::anyhow!("the control plane is older than this command: upgrade it"),
        tonic::Code::Cancelled if status.message() == EXPIRED => Away(format!(
            "the control plane takes connections, and did not answer within {ANSWER:?}: look at its log, and whether its process is \
             stopped or its machine has too much to do"
        ))
        .into(),
        // It never says these itself: they are what becomes of its connection.
        tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown | tonic::Code::Internal => {
            Away(format!("the control plane stopped answering: {}", status.message())).into()
        }
        _ => anyhow::anyhow!("the control plane says: {}", status.message()),
    }
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use serde_json::json;
    use tonic::codegen::http::{Request, Response};

    use super::*;

    /// An API server that refuses everything.
    fn refusing(code: u16) -> kube::Client {
        let answer = service_fn(move |_: Request<Body>| async move {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
                "message": "no", "reason": "no" });
            let body = Body::from(status.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
        });
        kube::Client::new(answer, "default")
    }

    #[tokio::test]
    async fn a_control_plane_that_does_not_answer_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        // Like a process that is stopped: the kernel takes its connections.
        let _socket = tokio::net::UnixListener::bind(operator::socket(folder.path())).unwrap();
        let mut client = find_within(folder.path(), Duration::from_millis(50)).await.unwrap().unwrap();
        let error = said(client.list_proxies(leno_proto::v1::ListProxiesRequest {}).await.unwrap_err());
        assert!(is_away(&error) && error.to_string().contains("did not answer within"), "{error:#}");
    }

    #[tokio::test]
    async fn an_api_server_with_too_much_to_do_is_asked_again() {
        for (code, again) in [(429, true), (500, true), (503, true), (401, false), (403, false)] {
            let error = serving_pods(&refusing(code)).await.unwrap_err();
            assert_eq!(is_away(&error), again, "{code}: {error:#}");
        }
    }
}
