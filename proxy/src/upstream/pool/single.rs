//! Requests that need a connection for themselves, over HTTP/1.1 by hyper: changes of protocol, CONNECT, and bodies that
//! wait for `100 Continue`.

use std::{error::Error as _, pin::pin};

use http::{Method, StatusCode};
use hyper::{client::conn::http1, upgrade::on as on_upgrade};
use hyper_util::rt::TokioIo;

use super::{Dialed, Extras, Reply, SendError};
use crate::{
    config::limits,
    http::{
        Body,
        adapt::{self, HyperBody},
        head::RequestHead,
        upgrade::Upgraded,
    },
};

/// Sends the request on a connection that nobody used before, and that ends with it.
pub(super) async fn send(dialed: Dialed, head: &RequestHead, body: Body, extras: &Extras) -> Result<Reply, SendError> {
    let mut request = adapt::http1_request(head, body).map_err(|body| SendError {
        unfit: Some("an invalid target"),
        ..SendError::unsent(body, "an invalid target".into())
    })?;
    if let Some(gate) = extras.gate.clone() {
        // By the connection's task.
        hyper::ext::on_informational(&mut request, move |response| {
            gate.hear(adapt::informational_head(response.status(), response.headers()));
        });
    }
    let handshake = http1::Builder::new()
        .http09_responses(false)
        .allow_spaces_after_header_name_in_responses(false)
        .allow_obsolete_multiline_headers_in_responses(false)
        .ignore_invalid_headers_in_responses(false)
        .preserve_header_case(false)
        .title_case_headers(false)
        .writev(true)
        .max_headers(limits::HEADERS)
        .max_header_size(limits::HEAD_BYTES)
        .max_buf_size(limits::HTTP1_BUFFER)
        .handshake::<_, HyperBody>(TokioIo::new(dialed.io));
    let place = dialed.place;
    let (mut sender, connection) = match handshake.await {
        Ok(made) => made,
        Err(error) => return Err(SendError::unsent(request.into_body().0, describe(&error))),
    };
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "HTTP/1 connection ended");
        }
        drop(place);
    });
    let sending = pin!(sender.try_send_request(request));
    let mut response = extras.heard_while(sending).await.map_err(|mut error| {
        let body = error.take_message().map(|request| request.into_body().0);
        SendError { not_processed: body.is_some(), body, ..SendError::sent(describe(error.error())) }
    })?;
    let status = response.status();
    let tunnel = head.method == Method::CONNECT && status.is_success();
    let upgraded =
        (tunnel || status == StatusCode::SWITCHING_PROTOCOLS).then(|| Upgraded::Hyper(on_upgrade(&mut response)));
    let (parts, body) = response.into_parts();
    Ok(Reply { head: adapt::response_head(&parts), body: Body::hyper(body), upgraded })
}

/// The error with its causes.
fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
