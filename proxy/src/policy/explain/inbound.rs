//! What the workload's own port would do with a request that comes in.

use std::time::Instant;

use leno_proto::{spiffe::SpiffeId, v1::RequestToExplain};

use super::{Explainer, head};
use crate::{
    config::limits,
    http::{head::RequestHead, headers},
    inbound::{head_size, protection::Protection},
    policy::{Protocol, Store},
};

/// Decisions over a request to a port, by the limits' state at this moment. `question.client` names who comes by the mesh.
pub(super) fn explain(
    store: &Store,
    workload: &str,
    question: &RequestToExplain,
    now: Instant,
) -> Result<super::Told, String> {
    let port = u16::try_from(question.inbound_port).map_err(|_| format!("{} is no port", question.inbound_port))?;
    let head = head(question)?;
    let client: Option<SpiffeId> = question.client.parse().ok();
    let inbound = store.inbound();
    let snapshot = store.snapshot();
    let mut explainer = Explainer { snapshot: &snapshot, workload, now, decisions: Vec::new() };
    let known = inbound.port(port);
    let protocol = known.map_or(Protocol::Detect, |known| known.protocol);
    explainer.add(
        "port",
        known.is_some(),
        match known {
            Some(_) => format!("{port}, {}", protocol.declared()),
            None => format!("{port}, which no Service names: what is spoken is found out"),
        },
    );
    let mode = if inbound.strict {
        "strict: mesh TLS alone; plaintext is refused (leno-reason: refused)"
    } else {
        "permissive: mesh TLS, and plaintext, too"
    };
    let by = inbound.mode_origin.as_deref().unwrap_or_default();
    explainer.add_by("mode", true, mode.to_owned(), by.to_owned(), snapshot.generation_of(by));
    match &client {
        Some(client) => explainer.add("client", true, format!("let in as {client}, once its certificate says so")),
        None => explainer.add("client", !inbound.strict, "not in the mesh".to_owned()),
    }
    if matches!(protocol, Protocol::Tcp | Protocol::Tls) {
        explainer.add("request", false, "the port carries bytes as they are: no request is looked at".to_owned());
        return Ok(explainer.told());
    }
    let origin = known.and_then(|known| known.policy.origin.clone()).unwrap_or_default();
    let generation = snapshot.generation_of(&origin);
    let protection = store.protection(port);
    for (within, text) in sizes(&protection, &head) {
        explainer.add_by("size", within, text, origin.to_string(), generation);
    }
    if let Some(limits) = &*protection.rate_limits() {
        for fill in limits.fills(&head, client.as_ref(), None, now) {
            let lets_in = fill.matches && !fill.is_empty();
            explainer.add_by("rate-limit", lets_in, fill.to_string(), origin.to_string(), generation);
        }
    }
    explainer.add_by("concurrency", true, protection.concurrency.to_string(), origin.to_string(), generation);
    if let Some((open, most)) = protection.connections() {
        let text = format!("{open} of {most} connections are open");
        explainer.add_by("connections", open < most, text, origin.to_string(), generation);
    }
    Ok(explainer.told())
}

/// What the port's policy says of how large requests may be, and whether this one, as far as it is known, is within.
fn sizes(protection: &Protection, head: &RequestHead) -> Vec<(bool, String)> {
    let (bytes, most_head, most_body) = (head_size(head), protection.max_head(), protection.max_body());
    let mut told = Vec::new();
    if most_head < limits::HEAD_BYTES {
        let within = bytes <= most_head;
        let status = if headers::is_grpc(&head.fields) { "RESOURCE_EXHAUSTED" } else { "431" };
        let refused = if within { String::new() } else { format!(": {status} (leno-reason: head-too-large)") };
        told.push((within, format!("the head has {bytes} of {most_head} bytes{refused}")));
    }
    if most_body != u64::MAX {
        told.push((true, format!("its body may have {most_body} bytes (beyond it leno-reason: body-too-large)")));
    }
    told
}
