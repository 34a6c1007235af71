//! A client of the control plane's Unix socket, as `leno get` and `leno wait` are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use leno_proto::v1::{ObjectRef, ObjectStatus, WatchObjectRequest, operator_client::OperatorClient};
use tokio::net::UnixStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// Connects when first used. `state`: the control plane's state folder.
pub fn client(state: &Path) -> OperatorClient<Channel> {
    let socket: PathBuf = state.join("leno.sock");
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    // The address is the socket's; a URI is needed all the same.
    OperatorClient::new(Endpoint::from_static("http://leno").connect_with_connector_lazy(connector))
}

/// Follows an object's status, absent ones' too: an item now and at each change. `kind`: as in the document.
pub async fn watch(state: &Path, kind: &str, namespace: &str, name: &str) -> Result<Streaming<ObjectStatus>> {
    let object = ObjectRef { kind: kind.into(), namespace: namespace.into(), name: name.into() };
    let request = WatchObjectRequest { object: Some(object) };
    Ok(client(state).watch_object(request).await.with_context(|| format!("watch {kind} {name}"))?.into_inner())
}
