//! The operator's socket, from the asking side.

use std::{io::ErrorKind, path::Path};

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use leno_proto::v1::operator_client::OperatorClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::operator;

pub(super) type Client = OperatorClient<Channel>;

/// Whether a control plane answers there: None if there is none.
pub(super) async fn find(state: &Path) -> anyhow::Result<Option<Client>> {
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
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The name is never resolved: the connector knows the way.
    let channel = Endpoint::from_static("http://leno").connect_with_connector(connector).await?;
    Ok(Some(OperatorClient::new(channel).max_decoding_message_size(usize::MAX)))
}

/// As [`find`], if there must be one.
pub(super) async fn connect(state: &Path) -> anyhow::Result<Client> {
    match find(state).await? {
        Some(client) => Ok(client),
        None => bail!(
            "no control plane answers at {}: is `leno control-plane --state {}` running?",
            operator::socket(state).display(),
            state.display()
        ),
    }
}

/// What the control plane answered instead of an answer.
pub(super) fn said(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => anyhow::anyhow!("the control plane is older than this command: upgrade it"),
        _ => anyhow::anyhow!("the control plane says: {}", status.message()),
    }
}
